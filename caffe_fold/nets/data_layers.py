"""Layers that read a data set: what a deploy net does not have."""

from __future__ import annotations

from caffe_fold.nets.graph import Graph
from caffe_fold.nets.net import Layer
from caffe_fold.nets.prototxt import Document

__all__ = ["data_layers", "is_source"]


# A ContinuationIndicator makes the zeros and ones that an LSTM reads (a fork's, for text).
_NO_DATA = frozenset(("Input", "Parameter", "ContinuationIndicator"))


def data_layers(graph: Graph) -> list[Layer]:
    """The net's data layers: all that make something of nothing, but those that need no data.

    A DummyData that makes constants is one only where the net has no other input.
    """
    sources = [layer for layer in graph.layers if is_source(layer)]
    data = [layer for layer in sources if not _is_constant(graph.net.document, layer)]
    has_input = graph.net.inputs or any(layer.type == "Input" for layer in graph.layers)
    return data if data or has_input else sources


def is_source(layer: Layer) -> bool:
    """Whether a layer makes something of nothing and is no Input or one that needs no data."""
    return not layer.bottoms and bool(layer.tops) and layer.type not in _NO_DATA


def _is_constant(document: Document, layer: Layer) -> bool:
    """Whether a DummyData fills all its tops with constants (DummyDataLayer::LayerSetUp,
    dummy_data_layer.cpp: without a filler, zeros)."""
    parameters = [f for m in layer.all("dummy_data_param") for f in m.fields or ()]
    fillers = [f for p in parameters if p.name == "data_filler" for f in p.fields or ()]
    types = {document.value(f).strip("\"'") for f in fillers if f.name == "type"}
    return layer.type == "DummyData" and types <= {"constant"}
