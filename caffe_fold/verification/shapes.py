"""The shapes of a net's values, as far as text and weights tell them.

Where a net is cut, the values behind the cut become inputs, and an input has a shape.
What a layer of an unknown type makes is not known; then the net ends there.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Optional

from caffe_fold.layers.linear import LINEAR
from caffe_fold.layers.other import keeps_shape
from caffe_fold.nets.fields import Fields, fields_of
from caffe_fold.nets.graph import Graph
from caffe_fold.nets.net import Layer

__all__ = ["Shape", "infer", "stated"]

Shape = tuple[int, ...]
Shapes = Sequence[Optional[Shape]]


def stated(graph: Graph, value: int) -> Shape | None:
    """The shape that the text gives an input, or None."""
    found = graph.values[value]
    if found.producer is None:
        return dict(graph.net.inputs).get(found.blob)
    layer = graph.layers[found.producer]
    fields = fields_of(graph.net.document, layer)
    for parameter in ("input_param", "dummy_data_param"):
        shapes = fields.message(parameter).messages("shape")
        if shapes:
            return tuple(shapes[found.slot if found.slot < len(shapes) else 0].integers("dim"))
    return None


def infer(
    graph: Graph, given: Mapping[int, Shape], otherwise: Shape | None = None
) -> dict[int, Shape]:
    """The shapes of all values that follow from some; ``given`` goes before all else, and
    ``otherwise`` is taken where nothing tells the shape."""
    found = dict(given)
    for value in graph.sources():
        shape = stated(graph, value)
        if shape is None or not all(dim > 0 for dim in shape):
            shape = otherwise
        if shape:
            found.setdefault(value, shape)
    for at, tops in enumerate(graph.tops):
        bottoms = [found.get(value) for value in graph.bottoms[at]]
        if not bottoms:
            continue
        for value, shape in zip(tops, _tops(graph, graph.layers[at], bottoms)):
            if shape is None or not all(dim > 0 for dim in shape):
                shape = otherwise
            if shape is not None:
                found.setdefault(value, shape)
    return found


def _tops(graph: Graph, layer: Layer, bottoms: Shapes) -> Shapes:
    """The shapes of a layer's tops, which parameters that make no sense do not tell."""
    try:
        return _by_rule(graph, layer, bottoms)
    except (ArithmeticError, LookupError):
        return [None] * len(layer.tops)


def _by_rule(graph: Graph, layer: Layer, bottoms: Shapes) -> Shapes:
    first, count = bottoms[0], len(layer.tops)
    kind = LINEAR.get(layer.type)
    if kind is not None:
        message = graph.net.parsed(layer, kind.parameter, kind.message).message
        return [None if shape is None else kind.top(message, shape) for shape in bottoms]
    fields = fields_of(graph.net.document, layer)
    if keeps_shape(layer.type):
        return [first] * count
    if layer.type == "Eltwise":
        return [next((shape for shape in bottoms if shape), None)]
    if layer.type == "Axpy":
        return [next((shape for shape in bottoms[1:] if shape), None)]
    if layer.type == "Slice":
        return _sliced(fields.message("slice_param"), first, count)
    if first is None or layer.type not in _RULES:
        return [None] * count
    if layer.type == "Concat":
        return [_concatenated(fields.message("concat_param"), bottoms)]
    return [_RULES[layer.type](fields, first), *[None] * (count - 1)]


# ---- One rule a type ----


def _pooled(fields: Fields, bottom: Shape) -> Shape | None:
    message = fields.message("pooling_param")
    if len(bottom) != 4:
        return None
    if message.flag("global_pooling"):
        return (*bottom[:2], 1, 1)
    kernel = _sides(message, "kernel", message.integer("kernel_size", 0))
    stride = _sides(message, "stride", message.integer("stride", 1))
    pad = _sides(message, "pad", message.integer("pad", 0))
    is_floor = message.word("round_mode") in ("FLOOR", "1") or message.word("ceil_mode") == "false"
    sizes = []
    for size, k, s, p in zip(bottom[2:], kernel, stride, pad):
        steps = (size + 2 * p - k) / max(s, 1)
        count = (math.floor(steps) if is_floor else math.ceil(steps)) + 1
        # The last window must begin inside the image (PoolingLayer::Reshape).
        if any(pad) and (count - 1) * s >= size + p:
            count -= 1
        sizes.append(count)
    return (*bottom[:2], *sizes)


def _sides(message: Fields, name: str, both: int) -> list[int]:
    return [message.integer(f"{name}_{side}", both) for side in "hw"]


def _axis(axis: int, rank: int) -> int:
    return axis + rank if axis < 0 else axis


def _flattened(fields: Fields, bottom: Shape) -> Shape:
    message = fields.message("flatten_param")
    start = _axis(message.integer("axis", 1), len(bottom))
    end = _axis(message.integer("end_axis", -1), len(bottom))
    return (*bottom[:start], math.prod(bottom[start : end + 1]), *bottom[end + 1 :])


def _permuted(fields: Fields, bottom: Shape) -> Shape | None:
    order = fields.message("permute_param").integers("order")
    order += [axis for axis in range(len(bottom)) if axis not in order]
    return tuple(bottom[axis] for axis in order) if len(order) == len(bottom) else None


def _reshaped(fields: Fields, bottom: Shape) -> Shape | None:
    message = fields.message("reshape_param")
    dims = message.message("shape").integers("dim")
    start = _axis(message.integer("axis", 0), len(bottom))
    axes = message.integer("num_axes", -1)
    end = len(bottom) if axes == -1 else start + axes
    middle = [bottom[start + i] if dim == 0 else dim for i, dim in enumerate(dims)]
    rest = math.prod(bottom[:start]) * math.prod(bottom[end:])
    known = rest * math.prod(dim for dim in middle if dim != -1)
    middle = [math.prod(bottom) // known if dim == -1 else dim for dim in middle]
    return (*bottom[:start], *middle, *bottom[end:])


def _upsampled(fields: Fields, bottom: Shape) -> Shape | None:
    message = fields.message("upsample_param")
    sizes = [message.integer(f"upsample_{axis}", 0) for axis in "hw"]
    if all(sizes):
        return (*bottom[:2], *sizes)
    scale = message.integer("scale", message.integer("stride", 0))
    return (*bottom[:2], *(scale * size for size in bottom[2:])) if scale else None


def _interpolated(fields: Fields, bottom: Shape) -> Shape | None:
    message = fields.message("interp_param")
    sizes = [message.integer(name, 0) for name in ("height", "width")]
    factor = message.integer("zoom_factor", 0)
    if factor:
        sizes = [size + (size - 1) * (factor - 1) for size in bottom[2:]]
    return (*bottom[:2], *sizes) if all(sizes) else None


def _concatenated(message: Fields, bottoms: Shapes) -> Shape | None:
    shapes = [shape for shape in bottoms if shape is not None]
    if len(shapes) < len(bottoms):
        return None
    axis = message.integer("axis", message.integer("concat_dim", 1))
    axis = _axis(axis, len(shapes[0]))
    if any(len(shape) <= axis for shape in shapes):
        return None
    return (*shapes[0][:axis], sum(shape[axis] for shape in shapes), *shapes[0][axis + 1 :])


def _sliced(message: Fields, bottom: Shape | None, count: int) -> Shapes:
    if bottom is None:
        return [None] * count
    axis = _axis(message.integer("axis", message.integer("slice_dim", 1)), len(bottom))
    points = message.integers("slice_point")
    if len(points) != count - 1:
        points = [bottom[axis] * i // count for i in range(1, count)]
    bounds = [0, *points, bottom[axis]]
    return [
        (*bottom[:axis], end - start, *bottom[axis + 1 :]) for start, end in zip(bounds, bounds[1:])
    ]


_RULES: dict[str, Callable[[Fields, Shape], Shape | None]] = {
    "Pooling": _pooled,
    "Flatten": _flattened,
    "Permute": _permuted,
    "Reshape": _reshaped,
    "Upsample": _upsampled,
    "Interp": _interpolated,
    "Concat": lambda fields, bottom: None,
}
