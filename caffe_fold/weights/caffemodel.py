"""A caffemodel, indexed: where each layer and each of its blobs lies in the file.

The file is walked, not loaded. The compiled bindings parse everything but the
values of the blobs; those stay in the file as *runs* and are read in chunks, so
that memory does not grow with the model. Protobuf itself stops at 2 GiB; a walk
does not.
"""

from __future__ import annotations

import contextlib
import enum
import functools
import math
import os
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
from google.protobuf.message import DecodeError
from numpy.typing import NDArray

from caffe_fold import caffe_pb2
from caffe_fold.errors import CaffemodelError, Path, show
from caffe_fold.named import NamedTuple
from caffe_fold.scratch import scratch
from caffe_fold.weights import wire

__all__ = ["Blob", "Caffemodel", "Entry", "Form", "Run", "Storage", "name_text"]

Array = NDArray[np.float64]

# LayerParameter and V1LayerParameter, by NetParameter's field that holds them.
_LAYER_FIELDS = {100: {"blobs": 7}, 2: {"blobs": 6}}
_HEAD_LIMIT = 1 << 26
_CHUNK = 1 << 18
_SMALL = 1 << 10
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


class Entry(NamedTuple):
    """One layer of the file: its field lies at ``start:end``, its message at
    ``body:end``. ``index`` counts all layers of the file. ``is_v0`` marks the format
    before V1LayerParameter, whose blobs are not read."""

    index: int  # type: ignore[assignment]
    number: int
    start: int
    body: int
    end: int
    name: str
    type: str
    bottoms: tuple[str, ...]
    tops: tuple[str, ...]
    blobs: tuple[Blob, ...]
    is_v0: bool = False


class Caffemodel:
    """An open, indexed caffemodel. Use it as a context manager."""

    def __init__(
        self,
        source: wire.Source,
        entries: tuple[Entry, ...],
        by_name: dict[str, tuple[Entry, ...]],
    ) -> None:
        self.source, self.entries, self.by_name = source, entries, by_name

    @classmethod
    def open(cls, path: Path, may_be_empty: bool = False) -> Caffemodel:
        """Walk the file and index its layers; one that was folded may have none left.

        :raises CaffemodelError: if the file is not a NetParameter, or is damaged.
        """
        source = wire.Source.open(path)
        try:
            return cls.indexed(source, may_be_empty)
        except BaseException:
            source.close()
            raise

    @classmethod
    def indexed(cls, source: wire.Source, may_be_empty: bool = False) -> Caffemodel:
        entries: list[Entry] = []
        by_name: dict[str, list[Entry]] = {}
        for record in wire.Walk(source, 0, source.size):
            if record.number not in _LAYER_FIELDS:
                continue
            if record.wire_type != wire.LENGTH:
                raise source.error(record.start, "not a caffemodel (its layers are no messages)")
            if entries and record.number != entries[0].number:
                raise source.error(
                    record.start,
                    "the file has both 'layer' and 'layers' fields, of which Caffe ignores one "
                    "kind; expected one format (Caffe's upgrade_net_proto_binary writes the newer)",
                )
            entry = _entry(source, record, len(entries))
            entries.append(entry)
            by_name.setdefault(entry.name, []).append(entry)
        if not (entries or may_be_empty):
            raise CaffemodelError(
                f"{show(os.fspath(source.path))}: not a caffemodel: it holds no layers"
            )
        grouped = {name: tuple(found) for name, found in by_name.items()}
        return cls(source, tuple(entries), grouped)

    def __enter__(self) -> Caffemodel:
        return self

    def __exit__(self, *_: object) -> None:
        self.source.close()

    @property
    def is_v1(self) -> bool:
        """Whether the file holds its layers in the older format, ``layers``."""
        return self.entries[0].number == 2

    def chunks(self, blob: Blob, start: int, stop: int) -> Iterator[NDArray[Any]]:
        """The values ``start:stop`` of a blob, in order, as arrays of its own dtype."""
        for run in blob.runs:
            first, last = max(start, 0), min(stop, run.count)
            while first < last:
                count = min(_CHUNK, last - first)
                yield self._chunk(blob, run, first, count)
                first += count
            start, stop = start - run.count, stop - run.count

    def _chunk(self, blob: Blob, run: Run, first: int, count: int) -> NDArray[Any]:
        """The values ``first:first + count`` of a run."""
        at = run.offset + first * run.stride
        data = self.source.read(at, at + (count - 1) * run.stride + blob.storage.value)
        return np.ndarray((count,), blob.storage.dtype, data, 0, (run.stride,))

    def values(self, blob: Blob, start: int = 0, stop: int | None = None) -> NDArray[Any]:
        """The values ``start:stop`` of a blob as one array of its own dtype, 1-D."""
        stop = blob.count if stop is None else stop
        if len(blob.runs) == 1 and 0 <= start < stop <= min(blob.runs[0].count, start + _CHUNK):
            return self._chunk(blob, blob.runs[0], start, stop - start)
        parts = list(self.chunks(blob, start, stop))
        if not parts:
            return np.zeros(0, blob.storage.dtype)
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def block(self, blob: Blob, start: int, stop: int) -> Array:
        """The values ``start:stop`` of a blob in float64, 1-D, in memory that this thread's
        next block takes. For large blobs, a block at a time."""
        count, run = stop - start, blob.runs[0]
        block: Array = scratch("block", count, np.dtype(np.float64))
        if len(blob.runs) > 1 or run.stride != blob.storage.value:
            values = self.values(blob, start, stop)
        else:
            values = scratch("values", count, blob.storage.dtype)
            self.source.read_into(run.offset + start * run.stride, values.data.cast("B"))
        with np.errstate(invalid="ignore"):  # a signalling NaN
            block[:] = values
        return block

    def vector(self, blob: Blob) -> Array:
        """All values of a (small) blob in float64, 1-D."""
        with np.errstate(invalid="ignore"):  # a signalling NaN
            return self.values(blob).astype(np.float64)

    def same_values(self, a: Blob, b: Blob, other: Caffemodel | None = None) -> bool:
        """Whether two blobs, ``b`` of another file if one is given, have one shape and
        number type and equal values, bit by bit."""
        if (a.shape, a.storage, a.count) != (b.shape, b.storage, b.count):
            return False
        # Not by ``chunks``, which end where the runs do, and a file may split those anyhow.
        return all(
            self.values(a, at, at + _CHUNK).tobytes()
            == (other or self).values(b, at, at + _CHUNK).tobytes()
            for at in range(0, a.count, _CHUNK)
        )


def name_text(value: str | bytes) -> str:
    """A name as text. The bindings give bytes for what is not UTF-8."""
    return value if isinstance(value, str) else value.decode("utf-8", "surrogateescape")


def _entry(source: wire.Source, record: wire.Record, index: int) -> Entry:
    """Index one layer. Most have no blobs and are small; these the bindings read whole,
    which is quicker than to walk them."""
    if record.number == 100 and record.end - record.value <= _SMALL:
        with contextlib.suppress(DecodeError):  # the walk finds the place
            layer = caffe_pb2.LayerParameter.FromString(source.read(record.value, record.end))
            if not layer.blobs:
                return _made(record, index, layer, (), None)
    return _walked_entry(source, record, index)


def _walked_entry(source: wire.Source, record: wire.Record, index: int) -> Entry:
    blobs: list[Blob] = []
    head: list[tuple[int, int]] = []
    v0_name: str | None = None
    blobs_number = _LAYER_FIELDS[record.number]["blobs"]
    for field in wire.Walk(source, record.value, record.end):
        # Protobuf takes a field of another wire type for one that it does not know.
        is_message = field.wire_type == wire.LENGTH
        if field.number == blobs_number and is_message:
            blobs.append(_blob(source, field))
        elif record.number == 2 and field.number == _V0_LAYER and is_message:
            v0_name = _v0_name(source, field)
        else:
            head.append((field.start, field.end))
    layer = _message(source, record, _joined(source, record, head))
    return _made(record, index, layer, tuple(blobs), v0_name)


def _made(
    record: wire.Record, index: int, layer: Any, blobs: tuple[Blob, ...], v0_name: str | None
) -> Entry:
    return Entry(
        index=index,
        number=record.number,
        start=record.start,
        body=record.value,
        end=record.end,
        name=name_text(layer.name) if v0_name is None else v0_name,
        type=name_text(layer.type) if record.number == 100 else str(layer.type),
        bottoms=tuple(map(name_text, layer.bottom)),
        tops=tuple(map(name_text, layer.top)),
        blobs=blobs,
        is_v0=v0_name is not None,
    )


def _joined(source: wire.Source, record: wire.Record, spans: Iterable[tuple[int, int]]) -> bytes:
    """The bytes of spans, read with those that they touch, and not without bound."""
    joined: list[tuple[int, int]] = []
    for start, end in spans:
        if joined and joined[-1][1] == start:
            joined[-1] = (joined[-1][0], end)
        else:
            joined.append((start, end))
    if sum(end - start for start, end in joined) > _HEAD_LIMIT:
        raise source.error(record.start, "a message holds over 64 MiB beside its values")
    return b"".join(source.read(start, end) for start, end in joined)


# V1LayerParameter.layer is a V0LayerParameter, whose first field is the name.
_V0_LAYER, _V0_NAME = 1, 1


def _v0_name(source: wire.Source, record: wire.Record) -> str:
    name = b""
    for field in wire.Walk(source, record.value, record.end):
        if field.number == _V0_NAME and field.wire_type == wire.LENGTH:
            name = source.read(field.value, min(field.end, field.value + _HEAD_LIMIT))
    return name.decode("utf-8", "surrogateescape")


def _message(source: wire.Source, record: wire.Record, head: bytes) -> Any:
    """A layer's message; ``head`` may leave its blobs out."""
    kind = caffe_pb2.LayerParameter if record.number == 100 else caffe_pb2.V1LayerParameter
    try:
        return kind.FromString(head)
    except DecodeError as error:
        raise source.error(record.start, f"a layer is damaged ({error})") from None


def _blob(source: wire.Source, record: wire.Record) -> Blob:
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
        rows = min(_CHUNK // 8, (end - at) // size)
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
        proto = _blob_proto(_joined(source, record, head) + types)
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
    return _small_blob_proto(head) if len(head) <= _AXES else caffe_pb2.BlobProto.FromString(head)


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
