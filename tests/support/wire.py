"""Layers and blobs as bytes of a caffemodel, in every form that is met in files.

They are encoded by hand: it is the only way to the odd forms, and for big
blobs many times as fast as through messages.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from .netdef import V1_TYPES


@dataclass
class BlobFormat:
    """How a blob is written.

    ``kind`` is "data" (float), "double" (double_data), or "half", "raw_float",
    "raw_double" (raw_data); ``legacy`` writes num, channels, height, width in
    place of a shape; ``unpacked`` writes each value with a tag of its own, and
    ``runs`` splits the packed values into that many runs.
    """

    kind: str = "data"
    legacy: bool = False
    unpacked: bool = False
    runs: int = 1


# Numbers of the fields: the layer in the net; its name, type, bottom, top, blobs.
FIELDS = (100, 1, 2, 3, 4, 7)
V1_FIELDS = (2, 4, 5, 2, 3, 6)

_RAW = {"half": (2, "<f2"), "raw_float": (1, "<f4"), "raw_double": (0, "<f8")}


def varint(value: int) -> bytes:
    """Encode a whole number of at least 0 as protobuf does."""
    parts = []
    while value > 0x7F:
        parts.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*parts, value])


def number(field: int, value: int) -> bytes:
    """Encode a field that holds a whole number."""
    return varint(field << 3) + varint(value)


def run(field: int, payload: bytes) -> bytes:
    """Encode a length-delimited field (a message, bytes, packed values)."""
    return varint(field << 3 | 2) + varint(len(payload)) + payload


def blob_bytes(values: npt.ArrayLike, format: BlobFormat) -> bytes:
    """Encode a blob of any shape as a BlobProto."""
    array = np.asarray(values)
    return _shape_bytes(array.shape, format.legacy) + _value_bytes(array.reshape(-1), format)


def _shape_bytes(shape: tuple[int, ...], legacy: bool) -> bytes:
    if not legacy:
        return run(7, run(1, b"".join(varint(dim) for dim in shape)))
    four = (1,) * (4 - len(shape)) + shape
    return b"".join(number(field, dim) for field, dim in enumerate(four, 1))


def _value_bytes(flat: npt.NDArray[np.generic], format: BlobFormat) -> bytes:
    if format.kind in _RAW:
        code, dtype = _RAW[format.kind]
        return number(10, code) + run(12, flat.astype(dtype).tobytes())
    field, wire, dtype = (8, 1, "<f8") if format.kind == "double" else (5, 5, "<f4")
    flat = flat.astype(dtype)
    if format.unpacked:
        return b"".join(varint(field << 3 | wire) + value.tobytes() for value in flat)
    return b"".join(run(field, part.tobytes()) for part in np.array_split(flat, format.runs))


def layer_bytes(
    name: str,
    type: str,
    bottoms: Sequence[str],
    tops: Sequence[str],
    blobs: Sequence[npt.ArrayLike],
    format: BlobFormat,
    v1: bool = False,
) -> bytes:
    """Encode a LayerParameter (or V1LayerParameter) as a field of a NetParameter."""
    in_net, in_name, in_type, in_bottom, in_top, in_blobs = V1_FIELDS if v1 else FIELDS
    kind = number(in_type, _v1_number(type)) if v1 else run(in_type, type.encode())
    parts = [run(in_name, name.encode()), kind]
    parts += [run(in_bottom, blob.encode()) for blob in bottoms]
    parts += [run(in_top, blob.encode()) for blob in tops]
    parts += [run(in_blobs, blob_bytes(blob, format)) for blob in blobs]
    return run(in_net, b"".join(parts))


def _v1_number(type: str) -> int:
    return next(value for value, (_, name) in V1_TYPES.items() if name == type)
