"""How many axes each value of a net has, as far as that can be told.

Only an axis that counts from the end needs it. What is not sure is None.
"""

from __future__ import annotations

from caffe_fold import caffe_pb2
from caffe_fold.layers.linear import LINEAR
from caffe_fold.layers.other import keeps_shape
from caffe_fold.nets.graph import Graph
from caffe_fold.weights.caffemodel import Caffemodel

__all__ = ["ranks"]

# Their tops have as many axes as their first bottom, and another shape.
_RESHAPING = frozenset("Concat Crop Eltwise Pooling Slice".split())


def ranks(graph: Graph, model: Caffemodel) -> dict[int, int | None]:
    """The rank of every value, in one pass in the order of the layers."""
    shapes = dict(graph.net.inputs)
    found: dict[int, int | None] = {}
    for index, value in enumerate(graph.values):
        if value.producer is None:
            shape = shapes.get(value.blob)
            found[index] = None if shape is None else len(shape)
    for at, tops in enumerate(graph.tops):
        bottoms = [found[value] for value in graph.bottoms[at]]
        for slot, top in enumerate(tops):
            found[top] = _rank(graph, model, at, slot, bottoms[0] if bottoms else None)
    return found


def _rank(graph: Graph, model: Caffemodel, at: int, slot: int, bottom: int | None) -> int | None:
    layer = graph.layers[at]
    if layer.type == "Input":
        message = graph.net.parsed(layer, "input_param", caffe_pb2.InputParameter).message
        if not message.shape:
            return None
        return len(message.shape[slot if len(message.shape) > slot else 0].dim)
    kind = LINEAR.get(layer.type)
    if kind is None:
        return bottom if keeps_shape(layer.type) or layer.type in _RESHAPING else None
    axis = getattr(graph.net.parsed(layer, kind.parameter, kind.message).message, "axis", 1)
    if kind.flattens:
        return axis + 1 if axis >= 0 else None if bottom is None else bottom + axis + 1
    if bottom is None and kind.weight_rank is None and axis == 1:
        entries = model.by_name.get(layer.name, ())
        return len(entries[0].blobs[0].shape) if entries and entries[0].blobs else None
    return bottom
