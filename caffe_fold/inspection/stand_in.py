"""Weights as they would be, for a net of which only the prototxt is at hand.

Planning asks the weights for shapes, and for values that decide: is a map the identity,
has it a shift, are two maps equal? A stand-in has the shapes that the prototxt implies
and values of no special kind. So a plan made with it is that of any trained weights,
but for those few that hold special values.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from caffe_fold.inspection.known_shapes import Dims, known_shapes
from caffe_fold.layers.affine import AFFINE
from caffe_fold.layers.linear import LINEAR
from caffe_fold.nets.graph import Graph
from caffe_fold.nets.net import Layer
from caffe_fold.weights.blob import Blob, Form, Run, Storage
from caffe_fold.weights.caffemodel import Array, Caffemodel, Entry
from caffe_fold.weights.wire import Source

__all__ = ["StandIn", "blob_shapes", "stand_in"]

# More channels than any net has; beyond, a number is not believed but taken as not told.
_MOST = 1 << 16

# Types without blobs, of Caffe (src/caffe/layers) and of its SSD fork. Of any other type
# but those that fold it is not known what blobs a layer has.
_WITHOUT_BLOBS = frozenset(
    (
        "AbsVal Accuracy AnnotatedData ArgMax BNLL BatchReindex Clip Concat ContrastiveLoss Crop "
        "Data DetectionEvaluate DetectionOutput Dropout DummyData ELU Eltwise EuclideanLoss Exp "
        "Filter Flatten HDF5Data HDF5Output HingeLoss Im2col ImageData InfogainLoss Input LRN Log "
        "MVN MemoryData MultiBoxLoss MultinomialLogisticLoss Permute Pooling Power PriorBox ReLU "
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
    shapes = known_shapes(graph)
    implied = tuple(blob_shapes(graph, at, shapes) for at in range(len(graph.layers)))
    unknown = _channels_unknown(graph)
    numbers: dict[object, int] = {}
    entries = []
    for at, layer in enumerate(graph.layers):
        blobs = []
        bottom = shapes[graph.bottoms[at][0]] if layer.bottoms else ()
        for index, dims in enumerate(implied[at] or ()):
            name = layer.params[index] if index < len(layer.params) else ""
            number = numbers.setdefault(name or (at, index), len(numbers) + 1)
            blobs.append(_blob(number, _filled(graph, layer, dims, bottom, unknown)))
        entries.append(_entry(at, layer, tuple(blobs)))
    by_name: dict[str, tuple[Entry, ...]] = {}
    for entry in entries:
        if entry.blobs:
            by_name.setdefault(entry.name, (entry,))
    return StandIn(tuple(entries), by_name, implied)


def blob_shapes(graph: Graph, at: int, shapes: list[Dims]) -> tuple[Dims, ...] | None:
    """The shapes of a layer's blobs as its prototxt implies them. What it does not tell is
    None, and so is all where the blobs of its type are not known. Sources: as in
    layers/linear.py, affine.py and batch_norm.py."""
    layer = graph.layers[at]
    bottom = shapes[graph.bottoms[at][0]] if layer.bottoms else ()
    if layer.type in LINEAR:
        return _linear_shapes(layer, _message(graph, layer, LINEAR), bottom)
    if layer.type in _WITHOUT_BLOBS:
        return ()
    if layer.type not in AFFINE:
        return None
    message = _message(graph, layer, AFFINE)
    if len(layer.bottoms) != 1:
        # The second bottom is the multiplier or the shift (scale_layer.cpp, bias_layer.cpp).
        is_told = layer.type == "Bias" or (layer.type == "Scale" and not message.bias_term)
        return () if is_told else None
    channels = bottom[1] if len(bottom) > 1 else None
    if layer.type == "BatchNorm":
        return _batch_norm_shapes(message, channels)
    if layer.type in ("BN", "CuDNNBatchNorm"):
        return ((channels,),) * (2 if layer.type == "BN" and _is_segnet(message) else 4)
    if layer.type in ("Scale", "Bias"):
        has_two = layer.type == "Scale" and message.bias_term
        return (_axes(message, bottom),) * (2 if has_two else 1)
    return None


def _message(graph: Graph, layer: Layer, types: Mapping[str, Any]) -> Any:
    kind = types[layer.type]
    return graph.net.parsed(layer, kind.parameter, kind.message).message


def _linear_shapes(layer: Layer, message: Any, bottom: Dims) -> tuple[Dims, ...]:
    outputs, inputs = message.num_output, bottom[1] if len(bottom) > 1 else None
    weight: Dims
    if layer.type == "InnerProduct":
        known = [dim for dim in bottom[1:] if dim is not None]
        total = math.prod(known) if known and len(known) == len(bottom) - 1 else None
        weight = (total, outputs) if message.transpose else (outputs, total)
    else:
        group = max(message.group, 1)
        kernel = _kernel(message, max(len(bottom) - 2, 1) if bottom else 2)
        if layer.type == "Deconvolution":
            weight = (inputs, outputs // group, *kernel)
        elif layer.type != "Convolution" and not message.HasField("group"):
            weight = (outputs, 1, *kernel)
        else:
            weight = (outputs, None if inputs is None else inputs // group, *kernel)
    return (weight, (outputs,)) if message.bias_term else (weight,)


def _kernel(message: Any, spatial: int) -> Dims:
    if message.HasField("kernel_h") or message.HasField("kernel_w"):
        return (int(message.kernel_h), int(message.kernel_w))
    sizes: Dims = tuple(message.kernel_size) or (None,)
    return sizes * spatial if len(sizes) == 1 else sizes


def _batch_norm_shapes(message: Any, channels: int | None) -> tuple[Dims, ...]:
    has_filler = any(map(message.HasField, ("scale_filler", "bias_filler", "filler")))
    is_nvidia = any(map(message.HasField, ("scale_bias", "scale_filler")))
    if is_nvidia:
        more = 2 if message.scale_bias or has_filler else 0
    elif message.bias_term or (has_filler and not message.HasField("bias_term")):
        more = 2
    else:
        more = 1 if message.use_weight_bias or has_filler else 0
    return ((channels,), (channels,), (1,), *[(channels,)] * more)


def _is_segnet(message: Any) -> bool:
    return any(map(message.HasField, ("bn_mode", "scale_filler", "shift_filler")))


def _axes(message: Any, bottom: Dims) -> Dims:
    """The axes of its bottom that a Scale or Bias lies along."""
    axis, count = int(message.axis), int(message.num_axes)
    if count == 0:
        return ()
    if not bottom:
        return (None,) * max(count, 1)
    start = axis + len(bottom) if axis < 0 else axis
    return bottom[start:] if count < 0 else bottom[start : start + count]


# ---- What is not told ----


def _channels_unknown(graph: Graph) -> int:
    """A number of channels for where it is not told: one that every layer's groups divide."""
    groups = 1
    for layer in graph.layers:
        if layer.type in LINEAR and layer.type != "InnerProduct":
            groups = math.lcm(groups, max(_message(graph, layer, LINEAR).group, 1))
    return groups if groups <= _MOST else 1


def _filled(graph: Graph, layer: Layer, dims: Dims, bottom: Dims, unknown: int) -> tuple[int, ...]:
    """A shape without gaps. A Convolution's weights hold the channels of a group, on axis 1;
    an InnerProduct's any multiple of the channels of its bottom."""
    if layer.type in AFFINE:
        return tuple(unknown if dim is None or dim > _MOST else dim for dim in dims)
    channels = unknown
    if layer.type == "InnerProduct":
        channels = (bottom[1] if len(bottom) > 1 else None) or unknown
    elif layer.type != "Deconvolution":
        channels = max(unknown // max(_message(graph, layer, LINEAR).group, 1), 1)
    filled = [channels if dim is None else dim for dim in dims[:2]]
    return (*filled, *(1 if dim is None else dim for dim in dims[2:]))


def _blob(number: int, shape: tuple[int, ...]) -> Blob:
    runs = (Run(0, math.prod(shape), 4),)
    return Blob(number, number, shape, False, Form.DATA, Storage.FLOAT, runs, (), 0, "")


def _entry(at: int, layer: Layer, blobs: tuple[Blob, ...]) -> Entry:
    return Entry(at, 100, 0, 0, 0, layer.name, layer.type, layer.bottoms, layer.tops, blobs)
