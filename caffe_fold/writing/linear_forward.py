"""Linear layers run forward by their definition, on weights that stay in their file.

For the proof: nothing of the fold's algebra or layouts is used here.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from caffe_fold.named import NamedTuple
from caffe_fold.planning.facts import LinearLayer
from caffe_fold.weights.blob import Blob
from caffe_fold.weights.caffemodel import Caffemodel

__all__ = ["linear_forward"]

Array = NDArray[np.float64]

# Weights at a time.
_STEP = 1 << 17


class _Weights(NamedTuple):
    """The weights of one file, some rows of its first axis at a time."""

    model: Caffemodel
    blob: Blob

    def rows(self, first: int, last: int, row: int) -> Array:
        """Rows ``first:last`` of ``row`` values each, in memory that the next rows take."""
        return self.model.block(self.blob, first * row, last * row).reshape(last - first, row)


def linear_forward(
    layer: LinearLayer, model: Caffemodel, x: Array, sizes: Array | None = None
) -> Array:
    """One output of each channel, (N,), for an input ``x`` of shape (channels, taps).

    To ``sizes`` (N,), if it is given, the sums of |w| |x| and |b| are added.
    """
    weights = _Weights(model, layer.weight)
    total = np.zeros(layer.layout.outputs)
    compute = {
        "convolution": _convolution,
        "deconvolution": _deconvolution,
        "inner": _inner_product,
        "transposed": _transposed,
    }[layer.layout.kind]
    compute(weights, layer, x, total, sizes)
    if layer.bias is not None:
        bias = model.vector(layer.bias)
        total += bias
        if sizes is not None:
            sizes += np.abs(bias)
    return total


def _convolution(
    weights: _Weights, layer: LinearLayer, x: Array, total: Array, sizes: Array | None
) -> None:
    """Output n of group g is W[n] times the input channels of g (weights N, C/g, k)."""
    layout = layer.layout
    outputs = layout.outputs // layout.group
    row = layout.inputs // layout.group * layout.taps
    vectors = x.reshape(layout.group, row)
    step = max(1, _STEP // row)
    if step < outputs:
        for n, last in _steps(layout.outputs, outputs, step):
            part, g = weights.rows(n, last, row), n // outputs
            total[n:last] = part @ vectors[g]
            if sizes is not None:
                sizes[n:last] += np.abs(part, out=part) @ np.abs(vectors[g])
        return
    many = step // outputs
    for g in range(0, layout.group, many):
        some = vectors[g : g + many, :, None]
        place = slice(g * outputs, (g + len(some)) * outputs)
        part = weights.rows(place.start, place.stop, row).reshape(len(some), outputs, row)
        total[place] = (part @ some).ravel()
        if sizes is not None:
            sizes[place] += (np.abs(part, out=part) @ np.abs(some)).ravel()


def _steps(count: int, unit: int, step: int) -> list[tuple[int, int]]:
    """Cut ``range(count)`` into ranges of at most ``step`` that lie in one unit each."""
    return [
        (first, min(first + step, start + unit))
        for start in range(0, count, unit)
        for first in range(start, start + unit, step)
    ]


def _deconvolution(
    weights: _Weights, layer: LinearLayer, x: Array, total: Array, sizes: Array | None
) -> None:
    """Each input channel c of group g adds to all outputs of g (weights C, N/g, k)."""
    layout = layer.layout
    outputs, inputs = layout.outputs // layout.group, layout.inputs // layout.group
    row = outputs * layout.taps
    for c, last in _steps(layout.inputs, inputs, max(1, _STEP // row)):
        place = slice(c // inputs * outputs, (c // inputs + 1) * outputs)
        part = weights.rows(c, last, row).reshape(last - c, outputs, layout.taps)
        some = x[c:last, :, None]
        total[place] += (part @ some).sum(axis=0)[:, 0]
        if sizes is not None:
            sizes[place] += (np.abs(part, out=part) @ np.abs(some)).sum(axis=0)[:, 0]


def _inner_product(
    weights: _Weights, layer: LinearLayer, x: Array, total: Array, sizes: Array | None
) -> None:
    """Output n is W[n] times all inputs (weights N, K)."""
    layout, flat = layer.layout, x.ravel()
    for n, last in _steps(layout.outputs, layout.outputs, max(1, _STEP // layout.inputs)):
        part = weights.rows(n, last, layout.inputs)
        total[n:last] = part @ flat
        if sizes is not None:
            sizes[n:last] += np.abs(part, out=part) @ np.abs(flat)


def _transposed(
    weights: _Weights, layer: LinearLayer, x: Array, total: Array, sizes: Array | None
) -> None:
    """Input k adds W[k] times itself to all outputs (weights K, N)."""
    layout, flat = layer.layout, x.ravel()
    for k, last in _steps(layout.inputs, layout.inputs, max(1, _STEP // layout.outputs)):
        part = weights.rows(k, last, layout.outputs)
        total += flat[k:last] @ part
        if sizes is not None:
            sizes += np.abs(flat[k:last]) @ np.abs(part, out=part)
