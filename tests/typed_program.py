"""A user's program, which uses every public name with its types. It is checked and not run: by
test_typed_api.py against the package as it is installed, and with the other tests by mypy."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

import caffe_fold
from caffe_fold import (
    CaffeFoldError,
    CaffemodelError,
    CheckError,
    EngineMissing,
    ExtraMissing,
    InputError,
    Inspection,
    OutputError,
    PrototxtError,
    Report,
    Verification,
    VerifyError,
    fold,
    fold_weights,
    inspect,
    verify,
)

if TYPE_CHECKING:  # which mypy brings along
    from typing_extensions import assert_type


def folds(model: Path, weights: os.PathLike[str]) -> Report:
    assert_type(caffe_fold.__version__, str)
    report = fold(
        model,
        weights,
        "folded.prototxt",
        output_weights=None,
        stages=["deploy"],
        level=1,
        keep=("conv1",),
        bn_layout="nvidia",
        weights_dtype="float16",
        deploy=True,
        input_shapes={"data": (1, 3, 224, 224)},
        verify={"samples": 2},
        threads=2,
        html=Path("page.html"),
    )
    assert_type(report, Report)
    assert_type(report.to_text(), str)
    assert_type(report.to_dict(), dict[str, Any])
    assert_type(report.written, bool)
    assert_type(report.left, int)
    assert_type(report.before.by_type, dict[str, int])
    assert_type([absorbed.before for absorbed in report.folded], list[tuple[str, ...]])
    assert_type([(stay.layer, stay.code) for stay in report.stayed], list[tuple[str, str]])
    assert_type([note.message for note in report.warnings], list[str])
    if report.checked is not None:
        assert_type(report.checked.worst, float)
    if report.equalized is not None:
        assert_type(report.equalized.blobs, tuple[str, ...])
    assert_type(report.verified, "Verification | None")
    return report


def looks(model: str, weights: str | None) -> Inspection:
    inspection = inspect(model, weights, int8=True)
    assert_type(inspection, Inspection)
    for layer in inspection.layers:
        assert_type(layer.name, str)
        assert_type(layer.fate.names, tuple[str, ...])
        assert_type(layer.fate.reason, str)
    assert_type(inspection.to_dict(), dict[str, Any])
    return inspection


def verifies(pair: tuple[str, str], folded: tuple[Path, Path]) -> Verification:
    result = verify(*pair, *folded, engine="opencv", input_shapes={"data": [1, 3, 8, 8]})
    assert_type(result, Verification)
    assert_type(result.passed, bool)
    assert_type([blob.relative for blob in result.blobs], list[float])
    assert_type(result.timing.ratio if result.timing is not None else 1.0, float)
    assert_type(result.to_text(rows=None), str)
    return result


def computes(weight: npt.NDArray[np.float32]) -> npt.NDArray[np.floating[Any]]:
    new, bias = fold_weights(weight, None, [0.0], [1.0], gamma=np.ones(1), factor=2.0, group=1)
    assert_type(bias, npt.NDArray[np.floating[Any]])
    return new


def tells(error: CaffeFoldError) -> int:
    kinds: list[type[CaffeFoldError]] = [CheckError, VerifyError, OutputError]
    kinds += [EngineMissing, ExtraMissing, InputError]
    inputs: list[type[InputError]] = [PrototxtError, CaffemodelError]
    if isinstance(error, PrototxtError):
        assert_type((error.line, error.column), tuple[int, int])
    assert_type(error.exit_code, int)
    return len(kinds) + len(inputs)
