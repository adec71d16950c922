"""The target ``weights``: a caffemodel through the reader, and through protobuf's own.

On whatever protobuf parses the reader finds the same layers and blobs, and the other way
round, but for the deliberate differences of docs/fuzzing.md.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from random import Random
from typing import Any

import numpy as np
from google.protobuf.message import DecodeError

from caffe_fold import CaffeFoldError
from caffe_fold.weights import wire
from caffe_fold.weights.blob import Blob, Form
from caffe_fold.weights.caffemodel import Caffemodel, Entry

from . import mutate_wire
from .outcome import Finding
from .schema import weights_class
from .seeds import made, pieces_of_weights

__all__ = ["again", "case", "check", "corpus", "from_bytes", "seeds"]


@functools.cache
def seeds() -> tuple[bytes, ...]:
    """The files that are mutated."""
    return tuple(piece for seed in made() for piece in pieces_of_weights(seed.weights, 500))


def case(rng: Random, pool: Sequence[bytes] = ()) -> bytes:
    """A mutated file; ``pool`` holds more of them to start from."""
    files = pool if pool and rng.random() < 0.5 else seeds()
    return mutate_wire.mutated(rng.choice(files), rng, files)


def check(data: bytes) -> str:
    """Read a file in both ways.

    :raises Finding: where the two differ.
    :raises CaffeFoldError: where the reader refuses, as it may.
    """
    theirs, complaint = None, ""
    try:
        theirs = weights_class().FromString(data)
    except DecodeError as error:
        complaint = str(error)
    try:
        # A file in memory, so that no case waits for a disk.
        model = Caffemodel.indexed(wire.Source("<memory>", -1, len(data), data))
        _read_all(model)
    except CaffeFoldError as error:
        if theirs is not None and not _is_stricter(str(error)):
            raise Finding(f"protobuf reads what is refused: {error}") from error
        raise
    if theirs is None:
        _require_damage_elsewhere(model, data, complaint)
        return "read"
    _require_same(model, theirs)
    return "read"


def _read_all(model: Caffemodel) -> None:
    for entry in model.entries:
        for blob in entry.blobs:
            if not blob.problem and model.vector(blob).size != blob.count:
                raise Finding(f"layer {entry.index}: a blob of {blob.count} values has others")


# ---- Against protobuf ----


def _require_same(model: Caffemodel, theirs: Any) -> None:
    layers = list(theirs.layer) if model.entries[0].number == 100 else list(theirs.layers)
    if len(layers) != len(model.entries):
        raise Finding(f"{len(model.entries)} layers, and {len(layers)} to protobuf")
    for entry, layer in zip(model.entries, layers):
        if entry.is_v0:
            continue
        _require_same_entry(entry, layer)
        for blob, other in zip(entry.blobs, layer.blobs):
            _require_same_blob(model, entry, blob, other)


def _require_same_entry(entry: Entry, layer: Any) -> None:
    pairs: dict[str, tuple[Any, Any]] = {
        "name": (_bytes(entry.name), _bytes(layer.name)),
        "type": (_bytes(entry.type), _bytes(str(layer.type) if entry.number == 2 else layer.type)),
        "bottoms": ([*map(_bytes, entry.bottoms)], [*map(_bytes, layer.bottom)]),
        "tops": ([*map(_bytes, entry.tops)], [*map(_bytes, layer.top)]),
        "blobs": (len(entry.blobs), len(layer.blobs)),
    }
    for what, (one, other) in pairs.items():
        if one != other:
            raise Finding(f"layer {entry.index}: {what} {one!r}, and {other!r} to protobuf")


def _bytes(name: str | bytes) -> bytes:
    return name if isinstance(name, bytes) else name.encode("utf-8", "surrogateescape")


def _require_same_blob(model: Caffemodel, entry: Entry, blob: Blob, other: Any) -> None:
    legacy = any(map(other.HasField, ("num", "channels", "height", "width")))
    four = (other.num, other.channels, other.height, other.width)
    shape = four if legacy else tuple(other.shape.dim)
    if (blob.legacy, blob.shape) != (legacy, shape):
        raise Finding(f"layer {entry.index}: shape {blob.shape}, and {shape} to protobuf")
    if blob.problem:
        if blob.form is not Form.RAW_DATA and _fits(shape, _values(blob, other).size):
            raise Finding(f"layer {entry.index}: {blob.problem}, and protobuf reads it")
        return
    values = _values(blob, other)
    read = model.values(blob)
    if not _fits(shape, values.size) or read.tobytes() != values.astype(read.dtype).tobytes():
        raise Finding(f"layer {entry.index}: {read!r}, and {values!r} to protobuf")


def _fits(shape: Sequence[int], count: int) -> bool:
    size = 1
    for dim in shape:
        size = min(size * max(dim, 0), 1 << 40)
    return min(shape, default=0) >= 0 and len(shape) <= 32 and size == count


_RAW = {0: "<f8", 1: "<f4", 2: "<f2"}


def _values(blob: Blob, other: Any) -> Any:
    """The values that count, as Caffe and its forks choose them."""
    if len(other.double_data):
        return np.array(other.double_data, "<f8")
    if len(other.data) or not other.HasField("raw_data"):
        return np.array(other.data, "<f4")
    return np.frombuffer(other.raw_data, _RAW[other.raw_data_type])


# ---- The deliberate differences; each has a test ----

# Caffe takes such fields for ones that it does not know; they tell of damage.
_STRICTER = (
    "has both 'layer' and 'layers' fields",
    "it holds no layers",
    "its layers are no messages",
    "a blob's values are not floats",
)


def _is_stricter(complaint: str) -> bool:
    return any(part in complaint for part in _STRICTER)


def _require_damage_elsewhere(model: Caffemodel, data: bytes, complaint: str) -> None:
    """What protobuf refuses and the reader takes is damaged where the fold reads nothing:
    outside of the layers, or in a gradient; or it has lengths of more bytes than they need,
    which the protobuf of Caffe's days takes and that of today does not."""
    layers = (data[entry.body : entry.end] for entry in model.entries)
    number = model.entries[0].number
    read = b"".join(wire.length_field(number, _only_read(body, number)) for body in layers)
    try:
        weights_class().FromString(read)
    except DecodeError as error:
        raise Finding(f"read, and refused by protobuf: {complaint}") from error


_BLOB = 0
_BLOBS = {100: 7, 2: 6}
_GRADIENTS = (6, 9, 11, 13)


def _only_read(data: bytes, kind: int) -> bytes:
    """A layer, by its number in the net, or a blob: without gradients, its tags and lengths
    in the fewest bytes."""
    made = b""
    for field in wire.walk_bytes(data):
        value = data[field.value : field.end]
        if kind == _BLOB and field.number in _GRADIENTS:
            continue
        if field.wire_type != wire.LENGTH:
            made += wire.tag_bytes(field.number, field.wire_type) + value
        elif _BLOBS.get(kind) == field.number:
            made += wire.length_field(field.number, _only_read(value, _BLOB))
        else:
            made += wire.length_field(field.number, value)
    return made


# ---- For a fuzzer that keeps cases as bytes ----


def again(data: bytes, rng: Random) -> bytes:
    """A case mutated further, or a new one where it is no whole file any more."""
    try:
        return mutate_wire.mutated(data, rng, seeds())
    except (ValueError, IndexError):
        return case(rng)


def from_bytes(data: bytes) -> bytes:
    """The case that bytes stand for."""
    return data


def corpus() -> list[bytes]:
    """What to start from."""
    return list(seeds())
