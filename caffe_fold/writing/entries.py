"""One layer of the new caffemodel, as pieces: spans to copy, bytes, values to compute.

The pieces' sizes are known before any value is computed, so that lengths can be
written ahead and the values streamed behind them.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Callable, Union

import numpy as np
from numpy.typing import NDArray

from caffe_fold.choices import Choices
from caffe_fold.named import NamedTuple
from caffe_fold.planning.plan import Fold, Merge
from caffe_fold.weights import wire
from caffe_fold.weights.blob import Blob, Form, Storage
from caffe_fold.weights.caffemodel import Caffemodel, Entry
from caffe_fold.writing.folded_values import FoldedValues, rounded_vector

__all__ = ["Bytes", "Names", "Parts", "Piece", "Span", "Values"]
__all__ += ["rewritten_fold", "rewritten_merge", "rewritten_names", "size_of"]

Chunk = NDArray[Any]

# Field numbers by NetParameter's field of the entry: 100 is a LayerParameter, 2 a
# V1LayerParameter.
_NUMBERS = {
    100: {"name": 1, "type": 2, "bottom": 3, "top": 4, "param": 6, "blobs": 7},
    2: {"name": 4, "type": 5, "bottom": 2, "top": 3, "param": 1001, "blobs": 6},
}
# Where BVLC's schema holds these messages; forks differ, so only what is there is changed.
_BATCH_NORM_PARAM, _SCALE_PARAM, _SCALE_BIAS_TERM = 139, 142, 4
_BIAS_TERM = 2
# convolution_param and inner_product_param of both formats, and scale_param.
_HYPER_PARAMETERS = frozenset((106, 117, 10, 17, _SCALE_PARAM))


class Span(NamedTuple):
    """Bytes to copy from the original file."""

    start: int
    end: int

    @property
    def size(self) -> int:
        return self.end - self.start


class Bytes(NamedTuple):
    """Bytes to write."""

    data: bytes

    @property
    def size(self) -> int:
        return len(self.data)


class Values(NamedTuple):
    """Numbers to compute: ``chunks`` gives arrays of ``storage``'s dtype, ``count`` in all."""

    count: int  # type: ignore[assignment]
    storage: Storage
    chunks: Callable[[], Iterator[Chunk]]

    @property
    def size(self) -> int:
        return self.count * self.storage.value


Piece = Union[Span, Bytes, Values]
Parts = Sequence[Sequence[Piece]]


def size_of(parts: Parts) -> int:
    """The bytes of all pieces."""
    return sum(piece.size for part in parts for piece in part)


def _message(number: int, pieces: list[Piece]) -> list[Piece]:
    """Pieces as a length-delimited field."""
    size = sum(piece.size for piece in pieces)
    head = wire.tag_bytes(number, wire.LENGTH) + wire.varint_bytes(size)
    return [Bytes(head), *pieces]


class Names(NamedTuple):
    """The new bottoms and tops of a layer, None where one did not change."""

    bottoms: tuple[str | None, ...]
    tops: tuple[str | None, ...]


def rewritten_names(model: Caffemodel, entry: Entry, names: Names) -> list[Piece]:
    """An entry with other tops and bottoms."""
    return _entry(model, entry, _Changes(names))


def rewritten_fold(
    model: Caffemodel, entry: Entry, fold: Fold, names: Names, choices: Choices
) -> list[Piece]:
    """A folded layer's entry: new weights, and its bias behind them."""
    if not fold.changes_weights:
        return rewritten_names(model, entry, names)
    storage = _storage(fold, choices)
    computed = FoldedValues(model, fold, storage)
    weight, bias = fold.linear.weight, fold.linear.bias
    blobs = {0: _blob(weight, storage, computed.weights)}
    if bias is not None:
        blobs[1] = _blob(bias, storage, computed.bias)
    elif fold.needs_bias:
        outputs = fold.linear.layout.outputs
        shape = (1, 1, 1, outputs) if weight.legacy else (outputs,)
        form = _form(weight, storage)
        blobs[1] = _new_blob(shape, weight.legacy, form, storage, computed.bias)
    return _entry(model, entry, _Changes(names, blobs, _bias_term_on if 1 in blobs else None))


def rewritten_merge(
    model: Caffemodel, entry: Entry | None, merge: Merge, names: Names, choices: Choices
) -> list[Piece]:
    """The entry of a run that became one Scale with bias. ``entry`` is that of the kept
    layer, None where it had none, as a Power."""
    keeper = merge.keeper
    blobs = _merged_blobs(merge, choices)
    if entry is None:
        return _new_scale(model.entries[0].number, merge, names, blobs)
    new_type = None if keeper.layer.type == "Scale" else "Scale"
    return _entry(model, entry, _Changes(names, blobs, _scale_bias_term_on, new_type))


def _new_scale(
    number: int, merge: Merge, names: Names, blobs: dict[int, list[Piece]]
) -> list[Piece]:
    """An entry of its own for a layer that had none, in the format of the file."""
    layer, numbers = merge.keeper.layer, _NUMBERS[number]
    fields = [_text(numbers["name"], layer.name)]
    if number == 100:
        fields.append(_text(numbers["type"], "Scale"))
    for kind, new, old in (
        ("bottom", names.bottoms, layer.bottoms),
        ("top", names.tops, layer.tops),
    ):
        fields += [_text(numbers[kind], b if a is None else a) for a, b in zip(new, old)]
    return _message(number, [*fields, *_blob_fields(number, blobs)])


def _merged_blobs(merge: Merge, choices: Choices) -> dict[int, list[Piece]]:
    """Multiplier and bias of a merged run; a Scale that is kept keeps its blob's shape."""
    keeper = merge.keeper
    stored = [blob for layer in merge.layers for blob in layer.blobs]
    widest = max((blob.storage for blob in stored), default=Storage.FLOAT)
    storage = _asked(choices) or widest
    own = keeper.entries[0].blobs[0] if keeper.entries else None
    size = merge.map.channels or 1
    shape: tuple[int, ...] = () if merge.map.channels is None else (size,)
    legacy = False
    if own and keeper.layer.type == "Scale" and keeper.map.channels == merge.map.channels:
        shape, legacy = own.shape, own.legacy
    form = _form(own, storage) if own else _USUAL_FORM[storage]
    blobs = {}
    for index, values in enumerate((merge.map.scale, merge.map.shift)):
        rounded = rounded_vector(np.broadcast_to(values, (size,)), storage, keeper.layer)
        blobs[index] = _new_blob(shape, legacy, form, storage, _constant(rounded))
    return blobs


def _constant(numbers: Chunk) -> Callable[[], Iterator[Chunk]]:
    return lambda: iter((numbers,))


def _storage(fold: Fold, choices: Choices) -> Storage:
    """The number type asked for, or the widest among the blobs that go into a fold."""
    blobs = [fold.linear.weight, *([fold.linear.bias] if fold.linear.bias else [])]
    for layer in (*fold.layers_before, *fold.layers_behind):
        blobs += layer.blobs
    return _asked(choices) or max(blob.storage for blob in blobs)


def _asked(choices: Choices) -> Storage | None:
    return None if choices.weights_dtype is None else _STORAGES[choices.weights_dtype]


_STORAGES = {storage.label: storage for storage in Storage}


# ---- Entries ----


class _Changes(NamedTuple):
    """What becomes of an entry: names, blobs (all or none), flags and type."""

    names: Names
    blobs: Mapping[int, list[Piece]] = MappingProxyType({})
    bias_term: Callable[[int, bytes], bytes] | None = None
    type: str | None = None


def _entry(model: Caffemodel, entry: Entry, changes: _Changes) -> list[Piece]:
    """An entry with some of its fields replaced; all others are copied as they are."""
    seen: Counter[int] = Counter()
    pieces: list[Piece] = []
    for record in wire.Walk(model.source, entry.body, entry.end):
        replaced = _replaced(model, entry, record, seen[record.number], changes)
        seen[record.number] += record.wire_type == wire.LENGTH
        pieces += [Span(record.start, record.end)] if replaced is None else replaced
    if not seen[_NUMBERS[entry.number]["blobs"]]:
        pieces += _blob_fields(entry.number, changes.blobs)
    return _message(entry.number, pieces)


def _replaced(
    model: Caffemodel, entry: Entry, record: wire.Record, index: int, changes: _Changes
) -> list[Piece] | None:
    """What stands in a field's place, or None where it stays. ``index`` counts the
    fields of its number before it."""
    numbers = _NUMBERS[entry.number]
    if record.wire_type != wire.LENGTH:
        # V1's type is an enum, and it has no Scale.
        is_type = entry.number == 2 and record.number == numbers["type"]
        return [] if is_type and changes.type is not None else None
    for kind, names in (("bottom", changes.names.bottoms), ("top", changes.names.tops)):
        if record.number == numbers[kind]:
            name = names[index] if index < len(names) else None
            return None if name is None else [_text(record.number, name)]
    if record.number == numbers["blobs"] and changes.blobs:
        return [] if index else _blob_fields(entry.number, changes.blobs)
    if changes.type is not None:
        if record.number == numbers["param"]:
            return []
        if record.number == numbers["type"]:
            return [_text(record.number, changes.type)] if entry.number == 100 else None
        if record.number == _BATCH_NORM_PARAM and entry.type == "BatchNorm":
            return [Bytes(wire.length_field(_SCALE_PARAM, _flag(_SCALE_BIAS_TERM)))]
    if changes.bias_term is None or record.number not in _HYPER_PARAMETERS:
        return None
    old = model.source.read(record.value, record.end)
    new = changes.bias_term(record.number, old)
    return None if new == old else [Bytes(wire.length_field(record.number, new))]


def _blob_fields(number: int, blobs: Mapping[int, list[Piece]]) -> list[Piece]:
    blob_number = _NUMBERS[number]["blobs"]
    return [piece for index in sorted(blobs) for piece in _message(blob_number, blobs[index])]


def _text(number: int, name: str) -> Bytes:
    return Bytes(wire.length_field(number, name.encode("utf-8", "surrogateescape")))


def _flag(number: int) -> bytes:
    """A flag that is on."""
    return wire.tag_bytes(number, wire.VARINT) + b"\1"


def _bias_term_on(number: int, message: bytes) -> bytes:
    """``bias_term: true`` in a convolution_param or inner_product_param."""
    return message if number == _SCALE_PARAM else _flag_on(message, _BIAS_TERM)


def _scale_bias_term_on(number: int, message: bytes) -> bytes:
    """``bias_term: true`` in a scale_param, whose default is false."""
    if number != _SCALE_PARAM:
        return message
    is_given = any(record.number == _SCALE_BIAS_TERM for record in wire.walk_bytes(message))
    return _flag_on(message, _SCALE_BIAS_TERM) + (b"" if is_given else _flag(_SCALE_BIAS_TERM))


def _flag_on(message: bytes, number: int) -> bytes:
    """A message with a flag on wherever it is given."""
    return b"".join(
        _flag(number)
        if record.number == number and record.wire_type == wire.VARINT
        else message[record.start : record.end]
        for record in wire.walk_bytes(message)
    )


# ---- Blobs ----


_USUAL_FORM = {
    Storage.HALF: Form.RAW_DATA,
    Storage.FLOAT: Form.DATA,
    Storage.DOUBLE: Form.DOUBLE_DATA,
}


def _form(old: Blob, storage: Storage) -> Form:
    """A blob keeps its field while its type stays; else the type's usual one."""
    return old.form if old.storage == storage else _USUAL_FORM[storage]


_RAW_TYPE = {Storage.DOUBLE: 0, Storage.FLOAT: 1, Storage.HALF: 2}


def _value_field(
    form: Form, storage: Storage, count: int, chunks: Callable[[], Iterator[Chunk]]
) -> list[Piece]:
    pieces = _message(form.value, [Values(count, storage, chunks)])
    if form is Form.RAW_DATA:
        pieces.insert(0, Bytes(wire.tag_bytes(10, wire.VARINT) + bytes([_RAW_TYPE[storage]])))
    return pieces


def _blob(old: Blob, storage: Storage, chunks: Callable[[], Iterator[Chunk]]) -> list[Piece]:
    """A blob with new values; its other fields stay, its gradients go."""
    spans: list[Piece] = [Span(start, end) for start, end in old.head]
    values = _value_field(_form(old, storage), storage, old.count, chunks)
    return [*spans[: old.head_before], *values, *spans[old.head_before :]]


def _new_blob(
    shape: tuple[int, ...],
    legacy: bool,
    form: Form,
    storage: Storage,
    chunks: Callable[[], Iterator[Chunk]],
) -> list[Piece]:
    values = _value_field(form, storage, math.prod(shape), chunks)
    if legacy:
        dims = b"".join(
            wire.tag_bytes(i + 1, wire.VARINT) + wire.varint_bytes(d) for i, d in enumerate(shape)
        )
        return [Bytes(dims), *values]
    packed = b"".join(map(wire.varint_bytes, shape))
    return [*values, Bytes(wire.length_field(7, wire.length_field(1, packed) if shape else b""))]
