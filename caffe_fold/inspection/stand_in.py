"""Weights as they would be, for a net of which only the prototxt is at hand.

Planning asks the weights for shapes, and for values that decide: is a map the identity,
has it a shift, are two maps equal? A stand-in has the shapes that the prototxt implies
and values of no special kind. So a plan made with it is that of any trained weights,
but for those few that hold special values.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from caffe_fold.inspection.known_shapes import known_shapes
from caffe_fold.layers.affine import AFFINE, AffineType
from caffe_fold.layers.affine_map import Dims
from caffe_fold.layers.linear import LINEAR, LinearType
from caffe_fold.nets.graph import Graph
from caffe_fold.nets.net import Layer
from caffe_fold.weights.blob import Blob, Form, Run, Storage
from caffe_fold.weights.caffemodel import Array, Caffemodel, Entry
from caffe_fold.weights.wire import Source

__all__ = ["StandIn", "stand_in"]

# More channels than any net has; beyond, a number is not believed but taken as not told.
_MOST = 1 << 16

# Types without blobs, of Caffe (src/caffe/layers) and of its SSD fork. Of any other type
# but those that fold it is not known what blobs a layer has.
_WITHOUT_BLOBS = frozenset(
    (
        "AbsVal Accuracy AnnotatedData ArgMax BNLL BatchReindex Clip Concat ContrastiveLoss Crop "
        "Data DetectionEvaluate DetectionOutput Dropout DummyData ELU Eltwise EuclideanLoss Exp "
        "Filter Flatten HDF5Data HDF5Output HingeLoss Im2col ImageData InfogainLoss Input LRN Log "
        "MVN MemoryData MultiBoxLoss MultinomialLogisticLoss Permute Pooling PriorBox ReLU "
        "Reduction Reshape SPP Sigmoid SigmoidCrossEntropyLoss Silence Slice SmoothL1Loss Softmax "
        "SoftmaxWithLoss Split Swish TanH Threshold Tile VideoData WindowData"
    ).split()
)


class StandIn(Caffemodel):
    """A caffemodel without a file. A blob's ``start`` is its number, and each of its values
    is that number and a half: never 0 or 1, and different from blob to blob. ``implied`` are
    the shapes of each layer's blobs, with None for what the prototxt does not tell, be it a
    size or which blobs there are."""

    def __init__(
        self,
        entries: tuple[Entry, ...],
        by_name: dict[str, tuple[Entry, ...]],
        implied: tuple[tuple[Dims, ...] | None, ...],
    ) -> None:
        super().__init__(Source(os.devnull, -1, 0), entries, by_name)
        self.implied = implied

    def chunks(self, blob: Blob, start: int, stop: int) -> Iterator[NDArray[Any]]:
        yield self.values(blob, start, stop)

    def values(self, blob: Blob, start: int = 0, stop: int | None = None) -> NDArray[Any]:
        count = (blob.count if stop is None else stop) - start
        return np.broadcast_to(np.float32(blob.start + 1.5), (count,))

    def vector(self, blob: Blob) -> Array:
        return np.broadcast_to(np.float64(blob.start + 1.5), (blob.count,))

    def same_values(self, a: Blob, b: Blob, other: Caffemodel | None = None) -> bool:
        return (a.shape, a.start) == (b.shape, b.start)


def stand_in(graph: Graph) -> StandIn:
    """The weights that a graph would have."""
    messages = [_message(graph, layer) for layer in graph.layers]
    unknown = _channels_unknown(messages)
    shapes = known_shapes(graph)
    numbers: dict[object, int] = {}
    implied, entries = [], []
    for at, (layer, message) in enumerate(zip(graph.layers, messages)):
        bottoms = tuple(shapes[value] for value in graph.bottoms[at])
        implied.append(_blob_shapes(layer, message, bottoms))
        most = _MOST if layer.type in AFFINE else math.inf
        full = tuple(_filled(bottom or (None,) * 4, unknown, most) for bottom in bottoms)
        blobs = []
        for index, dims in enumerate(_blob_shapes(layer, message, full) or ()):
            name = layer.params[index] if index < len(layer.params) else ""
            number = numbers.setdefault(name or (at, index), len(numbers) + 1)
            blobs.append(_blob(number, _filled(dims, 1)))
        entries.append(_entry(at, layer, tuple(blobs)))
    by_name: dict[str, tuple[Entry, ...]] = {}
    for entry in entries:
        if entry.blobs:
            by_name.setdefault(entry.name, (entry,))
    return StandIn(tuple(entries), by_name, tuple(implied))


def _kind(layer: Layer) -> LinearType | AffineType | None:
    return LINEAR.get(layer.type) or AFFINE.get(layer.type)


def _message(graph: Graph, layer: Layer) -> Any:
    """A layer's hyper-parameters, where it folds."""
    kind = _kind(layer)
    return None if kind is None else graph.net.parsed(layer, kind.parameter, kind.message).message


def _blob_shapes(layer: Layer, message: Any, bottoms: tuple[Dims, ...]) -> tuple[Dims, ...] | None:
    """The shapes of a layer's blobs as its prototxt implies them. What it does not tell is
    None, and so is all where the blobs of its type are not known."""
    kind = _kind(layer)
    if kind is None:
        return () if layer.type in _WITHOUT_BLOBS else None
    return kind.blob_shapes(message, bottoms)


# ---- What is not told ----


def _channels_unknown(messages: list[Any]) -> int:
    """A number of channels for where it is not told: one that every layer's groups divide."""
    groups = math.lcm(*(max(getattr(message, "group", 1), 1) for message in messages))
    return groups if groups <= _MOST else 1


def _filled(dims: Dims, missing: int, most: float = math.inf) -> tuple[int, ...]:
    """A shape without gaps, and without numbers beyond the most."""
    return tuple(missing if dim is None or dim > most else dim for dim in dims)


def _blob(number: int, shape: tuple[int, ...]) -> Blob:
    runs = (Run(0, math.prod(shape), 4),)
    return Blob(number, number, shape, False, Form.DATA, Storage.FLOAT, runs, (), 0, "")


def _entry(at: int, layer: Layer, blobs: tuple[Blob, ...]) -> Entry:
    return Entry(at, 100, 0, 0, 0, layer.name, layer.type, layer.bottoms, layer.tops, blobs)
