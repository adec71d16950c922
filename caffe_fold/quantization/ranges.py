"""The range of each output channel of a linear layer's weights.

Per-tensor int8 has one step for all weights of a layer, so a channel whose range is far
below the largest keeps few of its 256 levels (Nagel et al. 2019, section 3).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from caffe_fold.layers.linear import Layout
from caffe_fold.planning.facts import LinearLayer
from caffe_fold.weights.caffemodel import Caffemodel
from caffe_fold.writing.arithmetic import blocks

__all__ = ["keep_largest", "output_ranges"]

Array = NDArray[np.float64]


def output_ranges(model: Caffemodel, layer: LinearLayer) -> Array:
    """The largest |w| of each output channel, (N,) in float64; read in blocks."""
    layout = layer.layout
    found = np.zeros(layout.outputs)
    for row, rows, col, cols in blocks(layout):
        start = row * layout.cols + col
        values = model.values(layer.weight, start, start + rows * cols)
        sizes = np.abs(values.astype(np.float64)).reshape(rows, cols)
        keep_largest(found, layout, sizes, row, col)
    return found


def keep_largest(ranges: Array, layout: Layout, sizes: Array, row: int, col: int) -> None:
    """Raise ranges (N,) to the sizes of a block, which begins at a row and column."""
    if layout.kind == "transposed":
        place = ranges[col : col + sizes.shape[1]]
        np.maximum(place, sizes.max(axis=0), out=place)
    else:
        outputs = layout.output_of(np.arange(row, row + sizes.shape[0]))
        np.maximum.at(ranges, outputs, sizes.max(axis=1))
