"""Where the results go, and what must not be there."""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterable

from caffe_fold.errors import OutputError, Path, show
from caffe_fold.named import NamedTuple
from caffe_fold.writing.beside import SUFFIXES
from caffe_fold.writing.lock import hidden

__all__ = [
    "Outputs",
    "is_same",
    "require_apart",
    "require_ending",
    "require_place",
    "resolve_outputs",
    "written",
]


class Outputs(NamedTuple):
    """Where the results go."""

    model: str
    weights: str


def resolve_outputs(
    model: Path, weights: Path, output_model: Path | None, output_weights: Path | None
) -> Outputs:
    """The output paths: those given, or the inputs' stems plus ``_inference``.

    :raises OutputError: if a path is an input, the other output, a folder, or in a
        folder that is not there.
    """
    outputs = Outputs(
        os.fspath(output_model) if output_model is not None else _beside(model),
        os.fspath(output_weights) if output_weights is not None else _beside(weights),
    )
    for path in outputs:
        require_place(path)
    for path in outputs:
        require_apart(path, (model, weights, *outputs))
        for given in (model, weights):
            if is_same(path, given):
                raise OutputError(
                    f"{show(path)} is an input; give another output path, since inputs are "
                    "never changed"
                )
    if is_same(*outputs):
        raise OutputError(f"{show(outputs.model)} is given for both outputs; they are two files")
    return outputs


def require_ending(kind: str, weights: Path, output: str) -> None:
    """Raise OutputError where weights of a kind, "binary" or "hdf5", get a name by which Caffe
    takes them for the other: it reads ``.h5`` as HDF5. An input that has such a name already
    tells that it does not matter here."""
    is_hdf5 = kind == "hdf5"
    is_odd, was_odd = (os.fspath(path).endswith(".h5") != is_hdf5 for path in (output, weights))
    if is_odd and not was_odd:
        found, expected = ("HDF5", "ending in") if is_hdf5 else ("binary", "without")
        raise OutputError(
            f"{show(output, 1000)}: the weights are {found}, as {show(os.fspath(weights), 1000)} "
            f"is, and Caffe tells by the name; give one {expected} .h5"
        )


def require_apart(path: str, others: Iterable[Path | None]) -> None:
    """Raise OutputError where another file of a run has the name of one that is written, and
    then removed, beside ``path``."""
    taken = {_real(hidden(path, suffix)) for suffix in SUFFIXES}
    for other in others:
        if other is not None and _real(os.fspath(other)) in taken:
            raise OutputError(
                f"{show(os.fspath(other), 1000)} has the name of a file that is made and removed "
                f"while {show(path, 1000)} is written; give one of them another name"
            )


def is_same(path: Path, other: Path) -> bool:
    """Whether both are one file, be it there or not."""
    with contextlib.suppress(OSError, ValueError):
        if _real(os.fspath(path)) == _real(os.fspath(other)):
            return True
        return os.path.samefile(path, other)
    return False


def _beside(path: Path) -> str:
    stem, suffix = os.path.splitext(os.fspath(path))
    if suffix == ".h5" and stem.endswith(".caffemodel"):
        stem, suffix = stem[: -len(".caffemodel")], ".caffemodel.h5"
    return f"{stem}_inference{suffix}"


def _real(path: str) -> str:
    return os.path.normcase(os.path.realpath(path))


def require_place(path: str) -> None:
    """Raise OutputError where a file cannot come under a path, or must not."""
    shown = show(path, 1000)
    if not path:
        raise OutputError("an empty path is given for an output; give the file's path")
    try:
        os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        pass  # told of below
    except (OSError, ValueError) as error:
        # A name that is too long, or has a zero byte in it.
        reason = error.strerror if isinstance(error, OSError) else error
        raise OutputError(f"{shown} cannot be written: {reason}") from None
    if not os.path.basename(path) or os.path.isdir(path):
        raise OutputError(f"{shown} is a folder; give the output file's path")
    folder = os.path.dirname(path) or os.curdir
    if not os.path.isdir(folder):
        raise OutputError(f"{shown} cannot be written: there is no folder {show(folder)}")
    # As root, /dev/stdout would be replaced for all programs: it is a link to what may be a file.
    if os.path.realpath(folder) == os.path.dirname(os.devnull):
        raise OutputError(f"{shown} is among the system's devices; give another path")
    # Asked once: another run may be about to replace it.
    with contextlib.suppress(OSError):
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise OutputError(
                f"{shown} is no regular file, and would be replaced; give another path"
            )


def written(model: str, weights: str) -> str:
    """What is said of both outputs where something fails afterwards."""
    return f"{show(model, 1000)} and {show(weights, 1000)} are written"
