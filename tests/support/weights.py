"""A weights file as arrays, and binding them to a net's layers as Caffe does."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from caffe_fold import caffe_pb2

from .blobspecs import BlobSpec
from .netdef import V1_TYPES, Layer, NetDef, NetError

Array = npt.NDArray[np.float64]
Shape = tuple[int, ...]

_RAW_TYPES: dict[int, str] = {0: "<f8", 1: "<f4", 2: "<f2"}


@dataclass(frozen=True)
class Blob:
    """A blob of a weights file: its values, and its shape or four legacy dimensions."""

    values: Array
    shape: Shape
    is_legacy: bool

    def fits(self, shape: Shape) -> bool:
        """Say whether Caffe takes this blob for one of that shape (Blob::ShapeEquals)."""
        if not self.is_legacy:
            return self.shape == shape
        if len(shape) > 4:
            return False
        return self.shape == (1,) * (4 - len(shape)) + shape

    def array(self) -> Array:
        """Return the values in the file's own shape."""
        return self.values.reshape(self.shape)


@dataclass(frozen=True)
class Weights:
    """One layer of a weights file."""

    name: str
    type: str
    blobs: tuple[Blob, ...]


def read_blob(proto: caffe_pb2.BlobProto) -> Blob:
    """Read one blob; double_data goes before data, raw bytes before both."""
    if proto.raw_data:
        if proto.raw_data_type not in _RAW_TYPES:
            raise NetError(f"raw blob of type {proto.raw_data_type}, which is no real number")
        values = np.frombuffer(proto.raw_data, _RAW_TYPES[proto.raw_data_type]).astype(np.float64)
    elif len(proto.double_data):
        values = np.array(proto.double_data, dtype=np.float64)
    else:
        values = np.array(proto.data, dtype=np.float64)
    legacy = any(proto.HasField(part) for part in ("num", "channels", "height", "width"))
    if legacy:  # Caffe looks at these first, even beside a shape
        shape: Shape = (proto.num, proto.channels, proto.height, proto.width)
    else:
        shape = tuple(proto.shape.dim)
    return Blob(values, shape, legacy)


def read_weights(source: str | Path | bytes) -> list[Weights]:
    """Read every layer of a weights file (a path or its bytes), in order."""
    data = source if isinstance(source, bytes) else Path(source).read_bytes()
    net = caffe_pb2.NetParameter.FromString(data)
    found = [
        Weights(layer.name, layer.type, tuple(read_blob(blob) for blob in layer.blobs))
        for layer in net.layer
    ]
    found += [
        Weights(old.name, V1_TYPES.get(old.type, ("", ""))[1], tuple(map(read_blob, old.blobs)))
        for old in net.layers
    ]
    return found


class Binder:
    """Gives each layer of a net its parameter blobs, as Caffe's loading does.

    An entry of the weights goes to the first layer of its name; one that the
    net lacks is ignored; a later entry overwrites an earlier one. Blobs shared
    by ``param { name }`` are one blob, to which the last entry in the file's
    order gives the values.
    """

    def __init__(self, net: NetDef, weights: Sequence[Weights]) -> None:
        self._net = net
        self._entries: dict[int, list[Weights]] = {}
        self._shared: dict[str, Blob] = {}
        self._owners: dict[str, BlobSpec] = {}
        first: dict[str, int] = {}
        for index, layer in enumerate(net.layers):
            first.setdefault(layer.name, index)
        for entry in weights:
            if entry.name in first:
                index = first[entry.name]
                self._entries.setdefault(index, []).append(entry)
                for name, blob in zip(net.layers[index].param_names, entry.blobs):
                    if name:
                        self._shared[name] = blob

    def blobs(self, index: int, specs: Sequence[BlobSpec]) -> list[Array]:
        """Return the blobs of the layer at this index of the net, which are to be as in specs."""
        layer, entries = self._net.layers[index], self._entries.get(index, [])
        names = layer.param_names
        if len(names) > len(specs):
            raise NetError(f"layer {layer.name!r}: too many params specified")
        for entry in entries:
            _check(entry, specs)
        found = []
        for place, spec in enumerate(specs):
            name = names[place] if place < len(names) else ""
            own = entries[-1].blobs[place] if entries else None
            if name:
                self._check_owner(layer, name, spec)
                spec, own = self._owners[name], self._shared.get(name)
            values, shape = _filled(layer, spec, own), _known(specs[place])
            if values.size != int(np.prod(shape)):
                raise NetError(f"layer {layer.name!r}: the sharers of {name!r} differ in shape")
            found.append(values.reshape(shape))
        return found

    def _check_owner(self, layer: Layer, name: str, spec: BlobSpec) -> None:
        owner = self._owners.setdefault(name, spec)
        same_count = int(np.prod(_known(owner))) == int(np.prod(_known(spec)))
        if owner.shape != spec.shape and not (same_count and layer.is_permissive):
            raise NetError(
                f"layer {layer.name!r}: cannot share param {name!r} owned by another layer: "
                f"{owner.shape} there and {spec.shape} here"
            )


def _known(spec: BlobSpec) -> Shape:
    return tuple(int(dim or 0) for dim in spec.shape)


def _check(entry: Weights, specs: Sequence[BlobSpec]) -> None:
    if len(specs) != len(entry.blobs):
        raise NetError(
            f"layer {entry.name!r}: incompatible number of blobs, the net has "
            f"{len(specs)} and the weights have {len(entry.blobs)}"
        )
    for place, (spec, blob) in enumerate(zip(specs, entry.blobs)):
        if not blob.fits(_known(spec)):
            raise NetError(
                f"layer {entry.name!r}: cannot copy param {place}, shape mismatch: "
                f"the net has {spec.shape} and the weights have {blob.shape}"
            )
        if blob.values.size != int(np.prod(_known(spec))):
            raise NetError(
                f"layer {entry.name!r}: param {place} of shape {blob.shape} "
                f"has {blob.values.size} values"
            )


def _filled(layer: Layer, spec: BlobSpec, blob: Blob | None) -> Array:
    """Return the loaded values, or what Caffe's filler puts where none are loaded."""
    if blob is not None:
        return blob.values
    if math.isnan(spec.fill):
        raise NetError(f"layer {layer.name!r}: no weights, its {spec.role} stays random")
    return np.full(_known(spec), spec.fill, dtype=np.float64)
