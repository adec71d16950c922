"""The largest |w| between each output channel and each input channel of a linear layer.

Read in pieces of bounded size, each time they are asked for or once, as the caller can
afford.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from caffe_fold.named import NamedTuple
from caffe_fold.planning.facts import LinearLayer
from caffe_fold.weights.caffemodel import Caffemodel

__all__ = ["Maxima"]

Array = NDArray[np.float64]
Box = tuple[slice, ...]

_PIECE = 1 << 18


class _Piece(NamedTuple):
    """Maxima (groups, outputs, inputs), in the weights' own number type, with the places of
    the groups, and of outputs and inputs in their group."""

    groups: slice
    outputs: slice
    inputs: slice
    values: NDArray[Any]


class Maxima:
    """The maxima of one layer, whose input has ``channels`` channels; of an InnerProduct
    each of those may be many columns. They are remembered if they fit in ``memory`` bytes."""

    def __init__(
        self, model: Caffemodel, layer: LinearLayer, channels: int, memory: int = 0
    ) -> None:
        self.model, self.layer, self.channels = model, layer, channels
        layout = layer.layout
        self.group = layout.group
        self.outputs, self.inputs = layout.outputs // self.group, channels // self.group
        taps = layout.taps * (layout.inputs // channels)
        # The axes of the weights in the file: group, output, input, taps.
        self.axes = {"deconvolution": "gict", "transposed": "gitc"}.get(layout.kind, "gcit")
        sizes = {"g": self.group, "c": self.outputs, "i": self.inputs, "t": taps}
        self.shape = tuple(sizes[axis] for axis in self.axes)
        item = layer.weight.storage.value
        self.size = self.group * self.outputs * self.inputs * item
        self.is_remembered = self.size <= memory
        self._pieces: list[_Piece] | None = None

    def of_outputs(self, scale: Array) -> Array:
        """The largest |w| * scale of each output channel, (N,), for a scale (C,) of the
        inputs."""
        found = np.zeros((self.group, self.outputs))
        scales = scale.reshape(self.group, 1, self.inputs)
        for piece in self._all():
            sizes = (piece.values * scales[piece.groups, :, piece.inputs]).max(axis=2)
            place = found[piece.groups, piece.outputs]
            np.maximum(place, sizes, out=place)
        return found.ravel()

    def of_inputs(self, scale: Array) -> Array:
        """The largest |w| * scale of each input channel, (C,), for a scale (N,) of the
        outputs."""
        found = np.zeros((self.group, self.inputs))
        scales = scale.reshape(self.group, self.outputs, 1)
        for piece in self._all():
            sizes = (piece.values * scales[piece.groups, piece.outputs]).max(axis=1)
            place = found[piece.groups, piece.inputs]
            np.maximum(place, sizes, out=place)
        return found.ravel()

    def _all(self) -> Iterator[_Piece]:
        if not self.is_remembered:
            return self._read()
        if self._pieces is None:
            self._pieces = list(self._read())
        return iter(self._pieces)

    def _read(self) -> Iterator[_Piece]:
        g, c, i, t = (self.axes.index(axis) for axis in "gcit")
        start = 0
        for box in _boxes(self.shape, _PIECE):
            shape = tuple(place.stop - place.start for place in box)
            stop = start + math.prod(shape)
            sizes = np.abs(self.model.values(self.layer.weight, start, stop)).reshape(shape)
            start = stop
            values = sizes.transpose(g, c, i, t).max(axis=3)
            yield _Piece(box[g], box[c], box[i], values)


def _boxes(shape: tuple[int, ...], size: int) -> Iterator[Box]:
    """Cut an array into boxes that lie in one piece each and hold at most ``size`` numbers,
    in their order."""
    if not shape:
        yield ()
        return
    rest = math.prod(shape[1:])
    step = max(1, size // max(rest, 1))
    whole = tuple(slice(0, length) for length in shape[1:])
    for first in range(0, shape[0], step):
        place = slice(first, min(first + step, shape[0]))
        for inner in [whole] if rest <= size else _boxes(shape[1:], size):
            yield (place, *inner)
