"""The new weights, written: each part of the file at its place, by several threads."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Sequence

import numpy as np

from caffe_fold.named import NamedTuple
from caffe_fold.threads import each
from caffe_fold.weights.caffemodel import Caffemodel
from caffe_fold.writing.entries import Bytes, Parts, Piece, Span, Values, size_of

__all__ = ["write_parts"]

# From this size on, bytes are written as they are; smaller ones are gathered.
_LARGE = 1 << 17
_BUFFER = 1 << 20
# What a thread copies before it looks whether it is to stop.
_COPIED = 1 << 24


class _Job(NamedTuple):
    """Pieces that lie one behind another, from ``at`` in the new file on."""

    at: int
    pieces: list[Piece]


def write_parts(
    model: Caffemodel, parts: Parts, path: str | None, threads: int | None = None
) -> None:
    """Write parts one behind another as all of a file; without a path only compute their
    values.

    The pieces of a part are computed in their order, parts by up to ``threads`` threads.
    """
    if path is None:
        computed = [part for part in parts if _values(part)]
        each(_compute, computed, lambda part: size_of([part]), threads)
        return
    # Not "wb": a file that was cut to nothing is written out to the disk when it is closed, by
    # ext4 (auto_da_alloc) among others, and the next step would wait for that.
    target = os.open(path, os.O_CREAT | os.O_WRONLY | getattr(os, "O_BINARY", 0), 0o666)
    try:
        jobs = list(_jobs(parts))
        each(
            lambda job: _write(model, job, target), jobs, lambda job: size_of([job.pieces]), threads
        )
        if os.fstat(target).st_size > size_of(parts):
            os.ftruncate(target, size_of(parts))
    finally:
        os.close(target)


def _values(part: Sequence[Piece]) -> list[Values]:
    return [piece for piece in part if isinstance(piece, Values)]


def _compute(part: Sequence[Piece]) -> None:
    for piece in _values(part):
        for _ in piece.chunks():
            pass


def _jobs(parts: Parts) -> Iterator[_Job]:
    """The parts as jobs: what is copied is joined, cut where it is long, and goes with the
    next part that is computed where it is short."""
    at, held, size = 0, list[Piece](), 0
    for part in parts:
        is_whole = bool(_values(part))
        for piece in part if is_whole else _cut(part):
            if not is_whole and size + piece.size > _COPIED:
                yield _Job(at, held)
                at, held, size = at + size, [], 0
            _append(held, piece)
            size += piece.size
        if is_whole:
            yield _Job(at, held)
            at, held, size = at + size, [], 0
    if held:
        yield _Job(at, held)


def _cut(part: Sequence[Piece]) -> Iterator[Piece]:
    for piece in part:
        if isinstance(piece, Span) and piece.size > _COPIED:
            for start in range(piece.start, piece.end, _COPIED):
                yield Span(start, min(start + _COPIED, piece.end))
        else:
            yield piece


def _append(pieces: list[Piece], piece: Piece) -> None:
    """Add a piece, as one with the last where both are spans that follow each other."""
    last = pieces[-1] if pieces else None
    if isinstance(piece, Span) and isinstance(last, Span) and last.end == piece.start:
        pieces[-1] = Span(last.start, piece.end)
    else:
        pieces.append(piece)


def _write(model: Caffemodel, job: _Job, target: int) -> None:
    at, gathered = job.at, bytearray()
    for piece in job.pieces:
        if isinstance(piece, Span) and piece.size >= _LARGE:
            at = _write_all(target, gathered, at)
            gathered = bytearray()
            _copy(model, piece, target, at)
            at += piece.size
            continue
        for data in _data(model, piece):
            if len(data) < _LARGE:
                gathered += data
            if len(data) >= _LARGE or len(gathered) >= _LARGE:
                at = _write_all(target, gathered, at)
                gathered = bytearray()
            if len(data) >= _LARGE:
                at = _write_all(target, data, at)
    _write_all(target, gathered, at)


def _data(model: Caffemodel, piece: Piece) -> Iterator[bytes | memoryview]:
    """The bytes of a piece."""
    if isinstance(piece, Span):
        yield model.source.read(piece.start, piece.end)
    elif isinstance(piece, Bytes):
        yield piece.data
    else:
        for chunk in piece.chunks():
            yield np.ascontiguousarray(chunk).data.cast("B")


def _write_all(target: int, data: bytes | bytearray | memoryview, at: int) -> int:
    """Write bytes; gives the place behind them."""
    view = memoryview(data)
    with _ONE_AT_A_TIME:
        while view:
            written = _pwrite(target, view, at)
            view, at = view[written:], at + written
    return at


# The kernel lets one thread at a time write to a file, and others wait in it and spin: two
# that copy take half as long again as one.
_ONE_AT_A_TIME = threading.Lock()


def _pwrite(descriptor: int, data: memoryview, at: int) -> int:
    if hasattr(os, "pwrite"):
        return os.pwrite(descriptor, data, at)
    os.lseek(descriptor, at, os.SEEK_SET)
    return os.write(descriptor, data)


def _copy(model: Caffemodel, span: Span, target: int, at: int) -> None:
    """Copy bytes of the original, by the kernel where it can."""
    start = _copy_by_kernel(model.source.descriptor, span, target, at)
    while start < span.end:
        end = min(start + _BUFFER, span.end)
        _write_all(target, model.source.read(start, end), at + start - span.start)
        start = end


def _copy_by_kernel(source: int, span: Span, target: int, at: int) -> int:
    """Copy what the kernel will; gives the place from which on to copy otherwise."""
    start = span.start
    while start < span.end and hasattr(os, "copy_file_range"):
        try:
            with _ONE_AT_A_TIME:
                copied = os.copy_file_range(
                    source, target, span.end - start, start, at + start - span.start
                )
        except OSError:
            # Not every pair of file systems can; a full disk will say so again.
            return start
        if copied == 0:
            return start
        start += copied
    return start
