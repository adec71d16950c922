"""Writing two files as one: beside their final place, then renamed, the prototxt last.

After an error nothing is left. After a kill there may be a temporary file, and there
is the old pair, the new pair, or weights without a prototxt; never a prototxt beside
weights that are not its own.
"""

from __future__ import annotations

import contextlib
import os
import stat
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path as FilePath
from typing import IO

from caffe_fold.errors import OutputError, Path, show
from caffe_fold.weights.caffemodel import Caffemodel
from caffe_fold.writing.entries import Bytes, Piece, Span

__all__ = ["Outputs", "require_place", "resolve_outputs", "temporary_file", "temporary_pair"]
__all__ += ["write_pieces"]

_BUFFER = 1 << 20


@dataclass(frozen=True)
class Outputs:
    """Where the results go."""

    model: FilePath
    weights: FilePath


def resolve_outputs(
    model: Path, weights: Path, output_model: Path | None, output_weights: Path | None
) -> Outputs:
    """The output paths: those given, or the inputs' stems plus ``_inference``.

    :raises OutputError: if a path is an input, the other output, a folder, or in a
        folder that is not there.
    """
    outputs = Outputs(
        FilePath(output_model) if output_model is not None else _beside(model),
        FilePath(output_weights) if output_weights is not None else _beside(weights),
    )
    for path in (outputs.model, outputs.weights):
        require_place(path)
        for given in (model, weights):
            if path.exists() and os.path.samefile(path, given):
                raise OutputError(
                    f"{show(str(path))} is an input; give another output path, since inputs are "
                    "never changed"
                )
    if _real(outputs.model) == _real(outputs.weights):
        raise OutputError(
            f"{show(str(outputs.model))} is given for both outputs; they are two files"
        )
    return outputs


def _beside(path: Path) -> FilePath:
    given = FilePath(path)
    stem, suffix = given.stem, given.suffix
    if suffix == ".h5" and stem.endswith(".caffemodel"):
        stem, suffix = stem[: -len(".caffemodel")], ".caffemodel.h5"
    return given.with_name(f"{stem}_inference{suffix}")


def _real(path: FilePath) -> str:
    return os.path.normcase(os.path.realpath(path))


def require_place(path: FilePath) -> None:
    """Raise OutputError where a file cannot come under a path, or must not."""
    shown = show(str(path), 1000)
    if not path.name or path.is_dir():
        raise OutputError(f"{shown} is a folder; give the output file's path")
    if not path.parent.is_dir():
        raise OutputError(f"{shown} cannot be written: there is no folder {show(str(path.parent))}")
    if path.exists() and not stat.S_ISREG(path.stat().st_mode):
        raise OutputError(f"{shown} is no regular file, and would be replaced; give another path")


@dataclass(frozen=True)
class TemporaryPair:
    """The two files while they are written and checked; ``commit`` renames them."""

    outputs: Outputs
    model: FilePath
    weights: FilePath

    def commit(self) -> None:
        """Put both in place: the old prototxt goes, the weights come, the prototxt
        comes."""
        with contextlib.suppress(FileNotFoundError):
            self.outputs.model.unlink()
        try:
            os.replace(self.weights, self.outputs.weights)
            os.replace(self.model, self.outputs.model)
        except BaseException:
            # Neither the new pair nor the old one is whole any more.
            for path in (self.outputs.model, self.outputs.weights):
                with contextlib.suppress(OSError):
                    path.unlink()
            raise


@contextlib.contextmanager
def temporary_pair(outputs: Outputs) -> Iterator[TemporaryPair]:
    """Two new empty files beside the outputs, gone at the end if they are still there.

    :raises OutputError: for whatever the system says against it.
    """
    made: list[FilePath] = []
    try:
        for path in (outputs.model, outputs.weights):
            made.append(temporary_file(path))
        yield TemporaryPair(outputs, *made)
    except OSError as error:
        where = error.filename if isinstance(error.filename, str) else str(outputs.weights)
        raise OutputError(f"{show(where, 1000)} cannot be written: {error.strerror}") from error
    finally:
        for path in made:
            with contextlib.suppress(OSError):
                path.unlink()


def temporary_file(path: FilePath) -> FilePath:
    """A new empty file beside a path, with the mode of any new file."""
    prefix = f".{path.name[:40]}."
    descriptor, name = tempfile.mkstemp(prefix=prefix, suffix=".tmp", dir=path.parent)
    os.close(descriptor)
    # mkstemp's files are private; the result is to have the mode of any new file.
    mask = os.umask(0)
    os.umask(mask)
    with contextlib.suppress(OSError):
        os.chmod(name, 0o666 & ~mask)
    return FilePath(name)


def write_pieces(model: Caffemodel, pieces: Iterable[Piece], path: FilePath | None) -> None:
    """Write pieces one behind the other; without a path only compute them."""
    if path is None:
        for piece in pieces:
            if not isinstance(piece, (Span, Bytes)):
                for _ in piece.chunks():
                    pass
        return
    with open(path, "wb") as file:
        for piece in _joined(pieces):
            if isinstance(piece, Span):
                _copy(model, piece.start, piece.end, file)
            elif isinstance(piece, Bytes):
                file.write(piece.data)
            else:
                for chunk in piece.chunks():
                    file.write(chunk.data)


def _joined(pieces: Iterable[Piece]) -> Iterator[Piece]:
    """The pieces, with spans that follow each other in the file made one."""
    held: Span | None = None
    for piece in pieces:
        if isinstance(piece, Span) and held is not None and held.end == piece.start:
            held = Span(held.start, piece.end)
            continue
        if held is not None:
            yield held
        held = piece if isinstance(piece, Span) else None
        if held is None:
            yield piece
    if held is not None:
        yield held


def _copy(model: Caffemodel, start: int, end: int, file: IO[bytes]) -> None:
    """Copy bytes of the original, by the kernel where it can and it pays."""
    if end - start >= _BUFFER and hasattr(os, "copy_file_range"):
        file.flush()
        start = _copy_by_kernel(model.source.descriptor, start, end, file.fileno())
        file.seek(0, os.SEEK_END)
    while start < end:
        step = min(_BUFFER, end - start)
        file.write(model.source.read(start, start + step))
        start += step


def _copy_by_kernel(source: int, start: int, end: int, target: int) -> int:
    """Copy what the kernel will; gives the place from which on to copy otherwise."""
    while start < end:
        try:
            copied = os.copy_file_range(source, target, end - start, start)
        except OSError:
            # Not every pair of file systems can; a full disk will say so again.
            return start
        if copied == 0:
            return start
        start += copied
    return start
