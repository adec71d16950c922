"""Small nets, one for each kind of layer and each rule that the evaluator follows.

``CASES`` has them by name. Real engines are run on every one, so that the
evaluator is known to be right where a fold is judged by it.
"""

from __future__ import annotations

from . import cases_files, cases_layers
from .case_registry import CASES

# Importing these modules fills CASES.
_FILLED = (cases_layers, cases_files)

NOT_IN_OPENCV: dict[str, str] = {
    "empty_windows": "it has another value where a window holds nothing",
    "log": "its Log takes no notice of base, scale and shift",
    "log_of_negatives": "a float32 and a float64 NaN, and nothing else, to compare",
    "reduction": "it has no Reduction",
    "conv_3d": "it does not take one pad or stride for three axes",
    "conv_axis_2": "it takes no notice of a convolution's axis",
    "inner_product_transposed": "it takes no notice of transpose",
    "scalar_scale": "it has no blobs without axes",
    "prelu_shared": "it has no blobs without axes",
    "biases": "it has no Bias layer",
    "two_bottom_bias": "it has no Bias layer",
    "two_bottom_scale_with_bias": "it takes the bias for the multiplier",
    "even_slice": "it slices in two where no slice points are given",
    "v1_shared_params": "it does not share parameters",
    "shared_params": "it does not share parameters",
    "rules": "it does not apply rules as Caffe does",
    "twins": "it gives the weights to the layer of that name that comes first in the text",
    "double_blobs": "it reads no double_data",
    "filled": "it has no fillers",
}
"""The cases that OpenCV does not import, or computes otherwise than Caffe, and why."""

__all__ = ["CASES", "NOT_IN_OPENCV"]
