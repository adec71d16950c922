"""A blob, indexed: its shape and number type, and where its values lie in the file.

The bindings parse everything but the values, which stay in the file as *runs*.
"""

from __future__ import annotations

import enum
import functools
import math
from typing import Any

import numpy as np
from google.protobuf.message import DecodeError

from caffe_fold import caffe_pb2
from caffe_fold.named import NamedTuple
from caffe_fold.weights import wire

__all__ = ["Blob", "Form", "Run", "Storage", "index_blob"]

_REPEATS = 1 << 15
_SMALL = 32  # bytes
_AXES = 32  # kMaxBlobAxes (BVLC, blob.hpp)


class Storage(enum.IntEnum):
    """A blob's number type, in the order of width."""

    HALF = 2
    FLOAT = 4
    DOUBLE = 8

    @functools.cached_property
    def dtype(self) -> np.dtype[Any]:
        return np.dtype(f"<f{self.value}")

    @property
    def label(self) -> str:
        return f"float{8 * self.value}"


class Form(enum.Enum):
    """The field of BlobProto that holds the values."""

    DATA = 5
    DOUBLE_DATA = 8
    RAW_DATA = 12


class Run(NamedTuple):
    """Values that lie in the file at equal distances: ``count`` from ``offset``,
    each ``stride`` bytes behind the one before."""

    offset: int
    count: int  # type: ignore[assignment]  # Caffe's word; tuple.count is not used
    stride: int


class Blob(NamedTuple):
    """One blob of a layer. ``start:end`` is its message, without tag and length.

    ``legacy`` is true for the four dims num, channels, height and width, which
    Caffe right-aligns (Blob::ShapeEquals, blob.cpp). ``head`` are the spans of all fields
    but values and gradients, of which the first ``head_before`` stand before the values.
    ``problem`` says why the values cannot be read, or is empty.
    """

    start: int
    end: int
    shape: tuple[int, ...]
    legacy: bool
    form: Form
    storage: Storage
    runs: tuple[Run, ...]
    head: tuple[tuple[int, int], ...]
    head_before: int
    problem: str

    @property
    def count(self) -> int:  # type: ignore[override]
        return sum(run.count for run in self.runs)

    @property
    def size(self) -> int:
        """The bytes of its values."""
        return self.count * self.storage.value


def index_blob(source: wire.Source, record: wire.Record) -> Blob:
    """Index one blob: the runs of its values, and its shape by the bindings."""
    found: dict[int, list[Run]] = {5: [], 8: [], 12: []}
    head: list[tuple[int, int]] = []
    before, types = None, b""
    fields = wire.Walk(source, record.value, record.end)
    for field in fields:
        if field.number in _VALUES and before is None:
            before = len(head)
        if field.number in _FLOATS:
            item = _FLOATS[field.number]
            run = _run(source, field, record.end, item)
            if run.count:  # an empty one is to protobuf as none
                found[field.number].append(run)
            fields.skip_to(
                run.offset + run.stride * (run.count - 1) + item if run.count else field.end
            )
        elif field.number == 12 and field.wire_type == wire.LENGTH:
            found[12] = [Run(field.value, field.end - field.value, 1)]
        elif field.number in _GRADIENTS:
            fields.skip_to(_skip_repeats(source, field, record.end))
        elif field.number == 10:
            types += source.read(field.start, field.end)
        else:
            head.append((field.start, field.end))
    before = len(head) if before is None else before
    return _described(source, record, types, tuple(head), before, found)


_VALUES = frozenset((5, 8, 12))
_FLOATS = {5: 4, 8: 8}  # bytes a value
_GRADIENTS = frozenset((6, 9, 11, 13))


def _run(source: wire.Source, field: wire.Record, end: int, item: int) -> Run:
    """The values of one packed field, or of the unpacked fields in a row."""
    if field.wire_type == wire.LENGTH:
        length = field.end - field.value
        if length % item:
            raise source.error(
                field.start, f"a run of {length} bytes is no run of {8 * item}-bit floats"
            )
        return Run(field.value, length // item, item)
    if field.wire_type != (wire.FIXED32 if item == 4 else wire.FIXED64):
        raise source.error(field.start, "a blob's values are not floats")
    return Run(field.value, _repeats(source, field, end), field.end - field.start)


def _repeats(source: wire.Source, field: wire.Record, end: int) -> int:
    """How many fields of the same tag and size stand in a row, from this one on."""
    size, tag = field.end - field.start, source.read(field.start, field.value)
    count, at = 0, field.start
    while at + size <= end:
        rows = min(_REPEATS, (end - at) // size)
        block = np.frombuffer(source.read(at, at + rows * size), np.uint8).reshape(rows, size)
        other = np.flatnonzero((block[:, : len(tag)] != np.frombuffer(tag, np.uint8)).any(axis=1))
        if other.size:
            return count + int(other[0])
        count, at = count + rows, at + rows * size
    return count


def _skip_repeats(source: wire.Source, field: wire.Record, end: int) -> int:
    """Go behind gradients, which may be millions of unpacked fields."""
    if field.wire_type not in (wire.FIXED32, wire.FIXED64):
        return field.end
    return field.start + _repeats(source, field, end) * (field.end - field.start)


_RAW = {0: Storage.DOUBLE, 1: Storage.FLOAT, 2: Storage.HALF}


def _described(
    source: wire.Source,
    record: wire.Record,
    types: bytes,
    head: tuple[tuple[int, int], ...],
    before: int,
    found: dict[int, list[Run]],
) -> Blob:
    try:
        proto = _blob_proto(source.read_spans(head, record.start) + types)
    except DecodeError as error:
        raise source.error(record.start, f"a blob is damaged ({error})") from None
    form, storage, runs, problem = _values_of(proto, found)
    legacy = any(map(proto.HasField, ("num", "channels", "height", "width")))
    dims = (proto.num, proto.channels, proto.height, proto.width) if legacy else proto.shape.dim
    shape = tuple(dims)
    count = sum(run.count for run in runs)
    is_long = len(shape) > _AXES  # and so would be the number that its product is
    if not problem and (is_long or min(shape, default=0) < 0 or math.prod(shape) != count):
        problem = f"its shape {_shown(shape)} does not fit its {count} values"
    return Blob(
        record.value,
        record.end,
        shape,
        legacy,
        form,
        storage,
        tuple(runs),
        head,
        before,
        problem,
    )


def _blob_proto(head: bytes) -> caffe_pb2.BlobProto:
    """A blob's message without its values, not to be changed: many blobs share a shape."""
    return _small_blob_proto(head) if len(head) <= _SMALL else caffe_pb2.BlobProto.FromString(head)


@functools.lru_cache(maxsize=256)
def _small_blob_proto(head: bytes) -> caffe_pb2.BlobProto:
    return caffe_pb2.BlobProto.FromString(head)


def _shown(shape: tuple[int, ...]) -> str:
    return str(shape) if len(shape) <= 8 else f"of {len(shape)} dims"


def _values_of(
    proto: caffe_pb2.BlobProto, found: dict[int, list[Run]]
) -> tuple[Form, Storage, list[Run], str]:
    """The values that count: double_data before data (Blob::FromProto, blob.cpp), and
    raw_data where data is empty (NVIDIA's fork)."""
    data, doubles, raw_data = found.values()
    if doubles:
        return Form.DOUBLE_DATA, Storage.DOUBLE, doubles, ""
    if data or not raw_data:
        return Form.DATA, Storage.FLOAT, data, ""
    (raw,) = raw_data
    storage = _RAW.get(proto.raw_data_type) if proto.HasField("raw_data_type") else None
    if storage is None:
        kind = caffe_pb2.BlobProto.Type.Name(proto.raw_data_type)
        named = f"of type {kind}" if proto.HasField("raw_data_type") else "of no known type"
        return Form.RAW_DATA, Storage.FLOAT, [], f"its raw_data is {named}, not floats"
    if raw.count % storage.value:
        return Form.RAW_DATA, storage, [], f"its raw_data is no run of {storage.label}"
    run = Run(raw.offset, raw.count // storage.value, storage.value)
    return Form.RAW_DATA, storage, [run], ""
