"""Verifies a pair that is written and has no name yet, for the commands that write one."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path as FilePath
from typing import Any

from caffe_fold.choices import Choices
from caffe_fold.errors import Path, VerifyError
from caffe_fold.nets.net import State
from caffe_fold.verification.result import Verification
from caffe_fold.verification.run import verify
from caffe_fold.verification.session import UNPROVED
from caffe_fold.writing.pair import TemporaryPair

__all__ = ["require_verified"]


def require_verified(
    original: tuple[Path, Path],
    text: bytes | None,
    pair: TemporaryPair,
    state: State,
    choices: Choices,
    options: Mapping[str, Any],
) -> Verification:
    """Verify a temporary pair against the original's prototxt and caffemodel.

    :param text: what stands for the original's prototxt, where that is not its own text.
    :param options: those of ``verify``.
    :returns: the result, with the names that the pair is about to get.
    :raises VerifyError: if it does not pass.
    """
    model, weights = original
    with tempfile.TemporaryDirectory(prefix="caffe-fold.") as folder:
        if text is not None:
            model = FilePath(folder) / FilePath(original[0]).name
            model.write_bytes(text)
        found = verify(
            model,
            weights,
            pair.model,
            pair.weights,
            stages=sorted(state.stages),
            level=state.level,
            assume_global_stats=choices.assume_global_stats,
            bn_layout=choices.bn_layout,
            bn_variance=choices.bn_variance,
            **options,
        )
    _require_passed(found)
    return replace(
        found,
        model=os.fspath(original[0]),
        folded_model=pair.outputs.model,
        folded_weights=pair.outputs.weights,
    )


def _require_passed(found: Verification) -> None:
    """Raise VerifyError unless it passed: a net that differs is told from one that no engine
    ran, or of which all that ran is skipped."""
    if found.passed:
        return
    failed = [blob for blob in found.blobs if not blob.passed]
    why = f" ({found.notes[0]})" if found.notes else ""
    if found.differences or not all(blob.problem == UNPROVED for blob in failed):
        what = f"the folded net does not compute what the original does: {found.verdict}"
    elif failed:
        what = f"the folded net could not be verified: {found.verdict}{why}"
    else:
        what = (
            f"nothing of the folded net could be compared{why}; --verify-input-shape may help, "
            "where the net does not tell the shape of its input"
        )
    raise VerifyError(f"{what}; nothing was written")
