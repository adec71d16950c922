"""Protobuf's wire format, walked in a file without reading what it holds.

Source: the encoding chapter of protobuf's documentation. Every length is checked
against what encloses it before anything is read or allocated.
"""

from __future__ import annotations

import os
from collections.abc import Iterable

from caffe_fold.errors import CaffemodelError, Path, reading, show
from caffe_fold.named import NamedTuple

__all__ = ["FIXED32", "FIXED64", "LENGTH", "SPANS_LIMIT", "VARINT", "Record", "Source", "Walk"]
__all__ += ["length_field", "tag_bytes", "varint_bytes", "walk_bytes"]

VARINT, FIXED64, LENGTH, GROUP, END_GROUP, FIXED32 = 0, 1, 2, 3, 4, 5

SPANS_LIMIT = 1 << 26
_WINDOW = 1 << 14
_VARINT_LIMIT = 10
# As deep as protobuf itself reads. A stack without end would outgrow the file.
_GROUP_LIMIT = 100


class Record(NamedTuple):
    """One field of a message: the tag lies at ``start``, the value at ``value:end``.

    ``number`` and ``wire_type`` come from the tag. For a varint ``integer`` is its
    value, else 0.
    """

    number: int
    wire_type: int
    start: int
    value: int
    end: int
    integer: int


class Source:
    """A file opened for reading at any place, with a small window over its bytes."""

    def __init__(self, path: Path, descriptor: int, size: int, window: bytes = b"") -> None:
        self.path, self.descriptor, self.size = path, descriptor, size
        # Where the window begins, and its bytes: one value, since threads share it.
        self._held = (0, window)

    @classmethod
    def open(cls, path: Path) -> Source:
        """Open a file.

        :raises InputError: if the system does not let it, here and where it is read.
        """
        with reading(path):
            descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0))
            return cls(path, descriptor, os.fstat(descriptor).st_size)

    def close(self) -> None:
        os.close(self.descriptor)

    def read(self, start: int, end: int) -> bytes:
        """The bytes ``start:end``.

        :raises CaffemodelError: if the file has become shorter meanwhile.
        """
        base, window = self._held
        if not (base <= start and end <= base + len(window)):
            if end - start > _WINDOW // 2:
                return self._read(start, end)
            # What is small is likely to have more of its kind behind it.
            base, window = start, self._read(start, max(end, min(start + _WINDOW, self.size)))
            self._held = base, window
        return window[start - base : end - base]

    def _read(self, start: int, end: int) -> bytes:
        pieces, at = [], start
        with reading(self.path):
            while at < end:
                piece = _pread(self.descriptor, end - at, at)
                if not piece:
                    raise self.error(at, "the file became shorter while it was read")
                pieces.append(piece)
                at += len(piece)
        return b"".join(pieces)

    def read_spans(self, spans: Iterable[tuple[int, int]], at: int) -> bytes:
        """The bytes of spans in their order, those that touch at one go.

        :param at: where the message begins that they are of, for the error.
        :raises CaffemodelError: if there are more of them than a message has any use for.
        """
        joined: list[tuple[int, int]] = []
        for start, end in spans:
            if joined and joined[-1][1] == start:
                joined[-1] = (joined[-1][0], end)
            else:
                joined.append((start, end))
        if sum(end - start for start, end in joined) > SPANS_LIMIT:
            raise self.error(at, "a message holds over 64 MiB beside its values")
        return b"".join(self.read(start, end) for start, end in joined)

    def read_into(self, start: int, buffer: memoryview) -> None:
        """Fill a buffer with the bytes from ``start`` on.

        :raises CaffemodelError: if the file has become shorter meanwhile.
        """
        with reading(self.path):
            while buffer:
                count = _pread_into(self.descriptor, buffer, start)
                if not count:
                    raise self.error(start, "the file became shorter while it was read")
                buffer, start = buffer[count:], start + count

    def window(self, at: int) -> tuple[bytes, int]:
        """Bytes around a place and the offset of their first one.

        At least 32 bytes lie behind ``at``, or all that the file has.
        """
        base, window = self._held
        if base <= at <= base + len(window) - 32:
            return window, base
        limit = base + len(window)
        if at < base or (at + 32 > limit and (limit < self.size or at >= limit)):
            base, window = self._held = at, self._read(at, min(at + _WINDOW, self.size))
        return window, base

    def error(self, offset: int, message: str) -> CaffemodelError:
        return CaffemodelError(f"{show(os.fspath(self.path))}: byte {offset}: {message}")


def _pread(descriptor: int, count: int, at: int) -> bytes:
    if hasattr(os, "pread"):
        return os.pread(descriptor, count, at)
    os.lseek(descriptor, at, os.SEEK_SET)
    return os.read(descriptor, count)


def _pread_into(descriptor: int, buffer: memoryview, at: int) -> int:
    if hasattr(os, "preadv"):
        return os.preadv(descriptor, [buffer], at)
    data = _pread(descriptor, len(buffer), at)
    buffer[: len(data)] = data
    return len(data)


class Walk:
    """The fields of the message that lies at ``start:end`` of a file, one after another.

    :raises CaffemodelError: while it is drawn, where the bytes are not a message.
    """

    def __init__(self, source: Source, start: int, end: int) -> None:
        self._source, self._at, self._end = source, start, end

    def __iter__(self) -> Walk:
        return self

    def skip_to(self, at: int) -> None:
        """Go on at a field further behind."""
        self._at = at

    def __next__(self) -> Record:
        at, end = self._at, self._end
        if at >= end:
            raise StopIteration
        source = self._source
        window, base = source.window(at)
        tag = window[at - base]
        # Nearly all fields are of this kind, and a call or two less is half of the time.
        if tag & 0x87 == LENGTH < tag and end - at > 1:
            length, value = window[at - base + 1], at + 2
            if length >= 0x80:
                length, value = _varint(source, window, at - base + 1, base, end)
            stop = value + length
            if stop <= end:
                self._at = stop
                return _new(Record, (tag >> 3, LENGTH, at, value, stop, 0))
        value = at + 1
        if tag >= 0x80:
            tag, value = _varint(source, window, at - base, base, end)
        number, wire_type = tag >> 3, tag & 7
        if not 0 < number < 1 << 29:
            raise source.error(at, "not a protobuf message (bad field number)")
        integer = 0
        if wire_type == GROUP:
            stop = _group_end(source, value, end, number)
        else:
            value, stop, integer = _value(source, window, base, value, end, wire_type, at)
        self._at = stop
        return _new(Record, (number, wire_type, at, value, stop, integer))


# What Record itself would call, in half of the time.
_new = tuple.__new__


def _value(
    source: Source, window: bytes, base: int, value: int, end: int, wire_type: int, at: int
) -> tuple[int, int, int]:
    """Where a field's value starts and stops, and a varint's value."""
    integer = 0
    if wire_type == VARINT:
        integer, stop = _varint(source, window, value - base, base, end)
    elif wire_type == LENGTH:
        length, value = _varint(source, window, value - base, base, end)
        stop = value + length
    elif wire_type in (FIXED32, FIXED64):
        stop = value + (4 if wire_type == FIXED32 else 8)
    else:
        raise source.error(at, f"not a protobuf message (wire type {wire_type})")
    if stop > end:
        raise source.error(
            at,
            f"a field claims {stop - value} bytes and {end - value} are left; "
            f"{'the file is truncated' if end == source.size else 'the file is damaged'}",
        )
    return value, stop, integer


def _varint(source: Source, window: bytes, i: int, base: int, end: int) -> tuple[int, int]:
    """A varint at index ``i`` of a window: its value and where it ends in the file."""
    result = shift = 0
    limit = min(len(window), end - base)
    for j in range(i, min(i + _VARINT_LIMIT, limit)):
        byte = window[j]
        result |= (byte & 0x7F) << shift
        if byte < 0x80:
            return result & 0xFFFFFFFFFFFFFFFF, base + j + 1
        shift += 7
    if i + _VARINT_LIMIT > limit:
        raise source.error(base + i, "the file is truncated or damaged inside a number")
    raise source.error(base + i, "not a protobuf message (a number of more than 10 bytes)")


def _group_end(source: Source, at: int, end: int, number: int) -> int:
    """Where the group that opened before ``at`` ends; groups nest, so with a stack."""
    open_groups = [number]
    while open_groups:
        if at >= end:
            raise source.error(at, "the file is truncated or damaged inside a group")
        window, base = source.window(at)
        tag, value = _varint(source, window, at - base, base, end)
        if not 0 < tag >> 3 < 1 << 29:
            raise source.error(at, "not a protobuf message (bad field number)")
        if tag & 7 == GROUP:
            if len(open_groups) == _GROUP_LIMIT:
                raise source.error(at, f"groups nest deeper than {_GROUP_LIMIT}")
            open_groups.append(tag >> 3)
            at = value
        elif tag & 7 == END_GROUP:
            if open_groups.pop() != tag >> 3:
                raise source.error(at, "not a protobuf message (groups do not match)")
            at = value
        else:
            _, at, _ = _value(source, window, base, value, end, tag & 7, at)
    return at


def walk_bytes(data: bytes) -> Walk:
    """The fields of a message in memory; places count from its first byte."""
    return Walk(Source("<memory>", -1, len(data), data), 0, len(data))


def varint_bytes(value: int) -> bytes:
    """An unsigned integer as a varint."""
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def tag_bytes(number: int, wire_type: int) -> bytes:
    """A field's tag."""
    return varint_bytes(number << 3 | wire_type)


def length_field(number: int, value: bytes) -> bytes:
    """A length-delimited field: tag, length, bytes."""
    return tag_bytes(number, LENGTH) + varint_bytes(len(value)) + value
