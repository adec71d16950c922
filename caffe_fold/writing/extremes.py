"""Numbers so far from 1 that float64, in which all is computed, cannot prove what is made of them.

Float32 has none. Products of a few such numbers overflow, or lose their digits to underflow, in
the original as in what stands for it, so that comparing the two says nothing.
"""

from __future__ import annotations

import numpy as np

from caffe_fold.layers.affine_map import Array
from caffe_fold.nets.net import Layer
from caffe_fold.planning.facts import AffineLayer, LinearLayer
from caffe_fold.weights.caffemodel import Caffemodel
from caffe_fold.writing.folded_values import Blocked, weight_blocks

__all__ = ["has_extremes", "linear_has_extremes", "unprovable"]

# Six of them multiplied, as in a fold from both sides, stay within float64.
_LARGE = 1e50


def has_extremes(layer: AffineLayer) -> bool:
    """Whether an affine layer holds such numbers."""
    return any(map(_extreme, (*layer.constants.blobs, layer.map.scale, layer.map.shift)))


def linear_has_extremes(layer: LinearLayer, model: Caffemodel) -> bool:
    """Whether a linear layer's weights or bias hold such numbers."""
    if any(_extreme(block) for block, _, _ in weight_blocks(model, layer)):
        return True
    return layer.bias is not None and _extreme(model.vector(layer.bias))


def unprovable(layer: Layer) -> Blocked:
    """The refusal of such a layer's fold."""
    why = "numbers that go into them are too large or too small for float64 to prove them"
    return Blocked(layer, "precision", why)


def _extreme(values: Array) -> bool:
    size = np.abs(values[values != 0])
    return not ((size < _LARGE) & (size > 1 / _LARGE)).all()
