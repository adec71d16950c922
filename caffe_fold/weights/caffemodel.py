"""A caffemodel, indexed: where each layer and each of its blobs lies in the file.

The file is walked, not loaded. The compiled bindings parse everything but the
values of the blobs; those stay in the file and are read in chunks, so that memory
does not grow with the model. Protobuf itself stops at 2 GiB; a walk does not.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from google.protobuf.message import DecodeError
from numpy.typing import NDArray

from caffe_fold import caffe_pb2
from caffe_fold.errors import CaffemodelError, Path, show
from caffe_fold.named import NamedTuple
from caffe_fold.scratch import scratch
from caffe_fold.weights import wire
from caffe_fold.weights.blob import Blob, Run, index_blob

__all__ = ["Caffemodel", "Entry", "name_text"]

Array = NDArray[np.float64]

# LayerParameter and V1LayerParameter, by NetParameter's field that holds them.
_LAYER_FIELDS = {100: {"blobs": 7}, 2: {"blobs": 6}}
_CHUNK = 1 << 18
_SMALL = 1 << 10


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

    def same_blobs(
        self, a: Sequence[Blob], b: Sequence[Blob], other: Caffemodel | None = None
    ) -> bool:
        """Whether two layers have as many blobs, and all are the same, as of ``same_values``."""
        return len(a) == len(b) and all(self.same_values(x, y, other) for x, y in zip(a, b))


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
            blobs.append(index_blob(source, field))
        elif record.number == 2 and field.number == _V0_LAYER and is_message:
            v0_name = _v0_name(source, field)
        else:
            head.append((field.start, field.end))
    layer = _message(source, record, source.read_spans(head, record.start))
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


_V0_LAYER, _V0_NAME = 1, 1


def _v0_name(source: wire.Source, record: wire.Record) -> str:
    name = b""
    for field in wire.Walk(source, record.value, record.end):
        if field.number == _V0_NAME and field.wire_type == wire.LENGTH:
            name = source.read(field.value, min(field.end, field.value + wire.SPANS_LIMIT))
    return name.decode("utf-8", "surrogateescape")


def _message(source: wire.Source, record: wire.Record, head: bytes) -> Any:
    """A layer's message; ``head`` may leave its blobs out."""
    kind = caffe_pb2.LayerParameter if record.number == 100 else caffe_pb2.V1LayerParameter
    try:
        return kind.FromString(head)
    except DecodeError as error:
        raise source.error(record.start, f"a layer is damaged ({error})") from None
