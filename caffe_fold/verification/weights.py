"""Writes the weights of a net that an engine is to run: plain float blobs, which every
engine reads, whatever they were stored as."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from caffe_fold.weights.blob import Blob
from caffe_fold.weights.caffemodel import Caffemodel
from caffe_fold.weights.wire import LENGTH, VARINT, length_field, tag_bytes, varint_bytes

__all__ = ["Stored", "stored", "write_weights"]


@dataclass(frozen=True)
class Stored:
    """A blob to write: its shape, as num, channels, height and width where ``legacy``,
    and where its values come from."""

    shape: tuple[int, ...]
    legacy: bool
    values: NDArray[Any]


def stored(model: Caffemodel, blob: Blob) -> Stored:
    """A blob of a file as float32."""
    return Stored(blob.shape, blob.legacy, model.values(blob).astype("<f4"))


def write_weights(path: Path, layers: Iterable[tuple[str, str, Iterable[Stored]]]) -> None:
    """Write a caffemodel of layers, each with its name, type and blobs."""
    with open(path, "wb") as file:
        for name, kind, blobs in layers:
            parts = [length_field(1, _bytes(name)), length_field(2, _bytes(kind))]
            parts += [length_field(7, _blob(blob)) for blob in blobs]
            file.write(length_field(100, b"".join(parts)))


def _bytes(name: str) -> bytes:
    return name.encode("utf-8", "surrogateescape")


def _blob(blob: Stored) -> bytes:
    data = length_field(5, np.ascontiguousarray(blob.values, "<f4").tobytes())
    if blob.legacy:
        dims = enumerate(blob.shape, 1)
        return b"".join(tag_bytes(n, VARINT) + varint_bytes(d) for n, d in dims) + data
    packed = b"".join(map(varint_bytes, blob.shape))
    shape = tag_bytes(1, LENGTH) + varint_bytes(len(packed)) + packed if packed else b""
    return length_field(7, shape) + data
