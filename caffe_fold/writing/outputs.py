"""Writing two files as one: beside their final place, then renamed, the prototxt last.

After an error nothing is left. After a kill there may be hidden files, which the next run
onto the same outputs takes away, and there is the old pair, the new pair, or weights
without a prototxt; never a prototxt beside weights that are not its own. Two runs onto one
output would break that, so each holds the locks of its outputs.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from caffe_fold.errors import OutputError, Path, show
from caffe_fold.interrupts import uninterrupted
from caffe_fold.writing.lock import hidden, locked

__all__ = ["Outputs", "TemporaryPair", "require_place", "resolve_outputs", "temporary_file"]
__all__ += ["require_apart", "temporary_pair"]


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
        require_apart(path, (model, weights, *outputs))
        for given in (model, weights):
            if os.path.exists(path) and os.path.samefile(path, given):
                raise OutputError(
                    f"{show(path)} is an input; give another output path, since inputs are "
                    "never changed"
                )
    if _real(outputs.model) == _real(outputs.weights):
        raise OutputError(f"{show(outputs.model)} is given for both outputs; they are two files")
    return outputs


def require_apart(path: str, others: Iterable[Path | None]) -> None:
    """Raise OutputError where another file of a run has the name of one that is written, and
    then removed, beside ``path``."""
    taken = {_real(hidden(path, suffix)) for suffix in ("lock", "old", "tmp")}
    for other in others:
        if other is not None and _real(os.fspath(other)) in taken:
            raise OutputError(
                f"{show(os.fspath(other), 1000)} has the name of a file that is made and removed "
                f"while {show(path, 1000)} is written; give one of them another name"
            )


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
    if os.path.exists(path) and not os.path.isfile(path):
        raise OutputError(f"{shown} is no regular file, and would be replaced; give another path")


class TemporaryPair(NamedTuple):
    """The two files while they are written and checked; ``commit`` renames them."""

    outputs: Outputs
    model: str
    weights: str

    def commit(self) -> None:
        """Put both in place: the old prototxt goes, the weights come, the prototxt
        comes."""
        aside = hidden(self.outputs.model, "old")
        with uninterrupted():
            with contextlib.suppress(FileNotFoundError):
                os.replace(self.outputs.model, aside)
            try:
                os.replace(self.weights, self.outputs.weights)
            except BaseException:
                with contextlib.suppress(FileNotFoundError):
                    os.replace(aside, self.outputs.model)
                raise
            try:
                os.replace(self.model, self.outputs.model)
            except BaseException:
                # Neither the new pair nor the old one is whole any more.
                with contextlib.suppress(OSError):
                    os.unlink(self.outputs.weights)
                raise
            finally:
                with contextlib.suppress(OSError):
                    os.unlink(aside)


@contextlib.contextmanager
def temporary_pair(outputs: Outputs) -> Iterator[TemporaryPair]:
    """Two new empty files beside the outputs, gone at the end if they are still there.

    :raises OutputError: for whatever the system says against it.
    """
    try:
        with contextlib.ExitStack() as stack:
            # In one order for all runs, or two of them could refuse each other.
            locks = {path: stack.enter_context(locked(path)) for path in sorted(outputs)}
            made = [stack.enter_context(temporary_file(path, locks[path])) for path in outputs]
            yield TemporaryPair(outputs, *made)
    except OSError as error:
        where = error.filename if isinstance(error.filename, str) else outputs.weights
        raise OutputError(f"{show(where, 1000)} cannot be written: {error.strerror}") from error


@contextlib.contextmanager
def temporary_file(path: str, is_locked: bool) -> Iterator[str]:
    """A new empty file beside an output, gone at the end if it still has its name. Not by
    ``tempfile``, whose files are private: this one is to have the mode of any new file."""
    name = hidden(path, "tmp" if is_locked else f"{os.urandom(6).hex()}.tmp")
    for left in (name, hidden(path, "old")):
        with contextlib.suppress(FileNotFoundError):
            os.unlink(left)  # of a run that was killed
    os.close(os.open(name, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
    try:
        yield name
    finally:
        with contextlib.suppress(OSError):
            os.unlink(name)
