"""Ranges of output channels, against the definition of each layer's weights."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from support.nets import Net

from caffe_fold.nets.graph import build
from caffe_fold.nets.net import State, read_net
from caffe_fold.nets.prototxt import parse
from caffe_fold.planning.facts import Facts
from caffe_fold.quantization.readiness import keep_largest
from caffe_fold.weights.caffemodel import Caffemodel
from caffe_fold.writing.arithmetic import blocks


@pytest.mark.parametrize("kind", ["conv", "grouped", "deconv", "inner", "transposed"])
def test_the_largest_weight_of_each_output_channel(kind: str, tmp_path: Path) -> None:
    net = Net("ranges")
    net.input("data", (1, 6, 5, 5))
    if kind in ("conv", "grouped"):
        made = net.conv("layer", "data", 6, 4, 3, group=1 if kind == "conv" else 2)
        expected = np.abs(made.blobs[0]).reshape(4, -1).max(axis=1)
    elif kind == "deconv":
        made = net.deconv("layer", "data", 6, 4, 3, group=2)
        sizes = np.abs(made.blobs[0]).reshape(2, 3, 2, 9)  # group, input, output, taps
        expected = sizes.max(axis=(1, 3)).ravel()
    else:
        made = net.inner_product("layer", "data", 150, 4, transpose=kind == "transposed")
        expected = np.abs(made.blobs[0]).max(axis=0 if kind == "transposed" else 1)
    prototxt, caffemodel = net.write(tmp_path)
    graph = build(read_net(parse(prototxt.read_bytes(), "net")), State("TEST", 0, frozenset()))
    with Caffemodel.open(caffemodel) as model:
        at = [layer.name for layer in graph.layers].index("layer")
        layer = Facts(graph, model).linear(at)
        layout, found = layer.layout, np.zeros(layer.layout.outputs)
        for row, rows, col, cols in blocks(layout, 40):
            start = row * layout.cols + col
            values = model.values(layer.weight, start, start + rows * cols)
            keep_largest(found, layout, np.abs(values).reshape(rows, cols), row, col)
    np.testing.assert_array_equal(found, expected.astype(np.float32))
