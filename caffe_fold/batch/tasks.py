"""The plan: each pair with its outputs, which are different files inside the output folder."""

from __future__ import annotations

import os
import posixpath
import re
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from caffe_fold._version import __version__
from caffe_fold.batch import storage
from caffe_fold.batch.folders import Pair
from caffe_fold.batch.ledger import OWN_FILES, input_addresses, is_inside
from caffe_fold.batch.pairing import FOLDED, stem
from caffe_fold.errors import InputError, OutputError, show

__all__ = ["Task", "addressed", "identity", "plan", "require_inside"]


@dataclass(frozen=True)
class Task:
    """One fold. It is sent to another process, maybe on another machine.

    :param name: the weights' name below the output folder, which is the task's own.
    :param model: the prototxt's address; ``weights`` is that of its weights.
    :param output: the output folder's address.
    :param output_model: the address of the folded prototxt; ``output_weights`` is that of its
        weights.
    :param options: the options of ``caffe_fold.fold``.
    :param strict: whether a BatchNorm that is left is a failure.
    :param checksum: whether the inputs' contents are to be recorded.
    :param version: of the tool that planned it; the one that folds has to be the same.
    """

    name: str
    model: str
    weights: str
    output: str
    output_model: str
    output_weights: str
    options: Mapping[str, Any]
    strict: bool
    checksum: bool
    version: str = __version__


def addressed(report: Mapping[str, Any], task: Task) -> dict[str, Any]:
    """A fold's report, ``Report.to_dict``, with the task's addresses: it may be of copies of
    the files, or of where they were before."""
    model, weights = show(task.model, 10**9), show(task.weights, 10**9)
    folded_model, folded_weights = show(task.output_model, 10**9), show(task.output_weights, 10**9)
    new = {"model": model, "weights": weights}
    changed = {**report, **new, "output_model": folded_model, "output_weights": folded_weights}
    if report.get("verified"):
        new.update(folded_model=folded_model, folded_weights=folded_weights)
        changed["verified"] = {**report["verified"], **new}
    return changed


def plan(
    pairs: Iterable[Pair],
    output: str,
    options: Mapping[str, Any],
    checksum: bool,
    others: Iterable[str],
) -> list[Task]:
    """A task for each pair; its own options go before ``options``.

    :param others: addresses of what else the batch reads: no output replaces it.

    :raises InputError: if an output is not inside the output folder.
    :raises OutputError: if two pairs would write one file, or one would write an input.
    """
    pairs = list(pairs)
    tasks = [_task(pair, output, options, checksum) for pair in pairs]
    _require_different(tasks, [pair.origin for pair in pairs], others)
    return tasks


def _task(pair: Pair, output: str, common: Mapping[str, Any], checksum: bool) -> Task:
    options = _gathered({**common, **pair.options}, pair)
    model, weights = (_inside(name, output, pair.origin) for name in _names(pair))
    return Task(
        name=weights,
        model=pair.model,
        weights=pair.weights,
        output=output,
        output_model=storage.join(output, model),
        output_weights=storage.join(output, weights),
        strict=options.pop("strict"),
        options=options,
        checksum=checksum,
    )


def _names(pair: Pair) -> tuple[str, str]:
    """The outputs' names: those given, or one of the other's stem, or the weights' stem plus
    ``_inference``, since many weights may have one prototxt."""
    last = storage.basename(pair.weights)
    bare = stem(last)
    given = pair.output_weights or pair.output_model
    name = stem(given) if given else posixpath.join(pair.place, bare + FOLDED)
    suffix = last[len(bare) :] or ".caffemodel"
    return pair.output_model or f"{name}.prototxt", pair.output_weights or f"{name}{suffix}"


def _gathered(options: dict[str, Any], pair: Pair) -> dict[str, Any]:
    """The options with those of ``verify`` in one place, as ``caffe_fold.fold`` takes them.

    :raises InputError: where a pair has one, and is not to be verified.
    """
    prefix = "verify_"
    own = [name for name in pair.options if name.startswith(prefix)]
    verify = {
        name[len(prefix) :]: options.pop(name) for name in list(options) if name.startswith(prefix)
    }
    if own and not options["verify"]:
        raise InputError(f"{pair.origin}: '{own[0].replace('_', '-')}' needs 'verify'")
    options["verify"] = verify if options["verify"] else None
    return options


def _inside(name: str, output: str, origin: str) -> str:
    """A name below the output folder, made plain.

    :raises InputError: if it leads out of it, be it by a link in it.
    """
    slashed = name.replace(os.sep, "/")
    parts = slashed.split("/")
    is_rooted = slashed.startswith("/") or storage.is_url(name) or re.match(r"[A-Za-z]:", name)
    # A backslash is a separator where the folder may be read from Windows.
    if is_rooted or ".." in parts or "\0" in name or parts[-1] in ("", "."):
        raise InputError(
            f"{origin}: the output '{show(name)}' is not below the output folder; expected a "
            "relative path of a file without '..'"
        )
    plain = posixpath.normpath(slashed)
    if posixpath.basename(plain) in OWN_FILES:
        raise InputError(f"{origin}: the output '{show(name)}' has the name of the batch's ledger")
    require_inside(storage.join(output, plain), output)
    return plain


def require_inside(path: str, output: str) -> None:
    """Check that a path's folder is really inside the output folder, whatever links there are.

    :raises OutputError: if it is not.
    """
    if not storage.is_url(output) and not is_inside(path, output):
        real = os.path.realpath(os.path.dirname(path))
        raise OutputError(
            f"{show(path, 1000)} is outside of the output folder, since a link leads to "
            f"{show(real, 1000)}; remove the link"
        )


def _require_different(tasks: list[Task], origins: list[str], others: Iterable[str]) -> None:
    """``origins`` says of each task where it comes from."""
    owners: dict[str, Task] = {}
    told: dict[str, str] = {}
    for task, origin in zip(tasks, origins):
        for path in (task.output_model, task.output_weights):
            real, who = identity(path), f"{show(task.weights, 1000)} (of {origin})"
            if real in owners:
                raise OutputError(
                    f"{show(path, 1000)} would be written by two: {told[real]} and {who}; "
                    "leave one out, name other outputs in a manifest, or give each source an "
                    "--output-dir of its own"
                )
            owners[real], told[real] = task, who
    for path in (*others, *(path for task in tasks for path in input_addresses(task))):
        writer = owners.get(identity(path))
        if writer is not None:
            raise OutputError(
                f"{show(path, 1000)} is an input, and {show(writer.weights, 1000)} would be "
                "written to it; inputs are never changed"
            )


def identity(address: str) -> str:
    """The same for all addresses of one file."""
    if storage.is_url(address):
        return address
    path = os.path.normcase(os.path.realpath(address))
    return path.casefold() if sys.platform == "darwin" else path
