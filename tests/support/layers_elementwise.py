"""Forward passes of the layers that keep each value in its place, and Eltwise."""

from __future__ import annotations

import math
from typing import Callable

import numpy as np

from .layers_linear import per_channel
from .netdef import NetError, float32
from .registry import Array, Call, Unsupported, layer_type


@layer_type("ReLU")
def relu(call: Call) -> list[Array]:
    """Leaky where ``negative_slope`` is given."""
    slope = float32(call.layer.params("relu_param").real("negative_slope"))
    bottom = call.bottoms[0]
    return [np.maximum(bottom, 0) + slope * np.minimum(bottom, 0)]


@layer_type("ReLU6")
def relu6(call: Call) -> list[Array]:
    """Clip to 0 and 6."""
    return [np.clip(call.bottoms[0], 0.0, 6.0)]


@layer_type("Clip")
def clip(call: Call) -> list[Array]:
    """Clip to the given range."""
    params = call.layer.params("clip_param")
    return [np.clip(call.bottoms[0], float32(params.real("min")), float32(params.real("max")))]


@layer_type("PReLU")
def prelu(call: Call) -> list[Array]:
    """A negative slope per channel, or one for all (channel_shared)."""
    bottom, slope = call.bottoms[0], call.blobs[0]
    each = slope if slope.ndim == 0 else per_channel(slope, bottom.ndim)
    return [np.maximum(bottom, 0) + each * np.minimum(bottom, 0)]


@layer_type("ELU")
def elu(call: Call) -> list[Array]:
    """Alpha * (exp(x) - 1) below zero."""
    alpha = float32(call.layer.params("elu_param").real("alpha", 1.0))
    bottom = call.bottoms[0]
    return [np.where(bottom > 0, bottom, alpha * np.expm1(np.minimum(bottom, 0)))]


def _unary(name: str, function: Callable[[Array], Array]) -> None:
    layer_type(name)(lambda call: [function(call.bottoms[0])])


_unary("Sigmoid", lambda x: 0.5 * np.tanh(0.5 * x) + 0.5)
_unary("TanH", lambda x: np.asarray(np.tanh(x)))
_unary("AbsVal", lambda x: np.asarray(np.abs(x)))
_unary("BNLL", lambda x: np.asarray(np.logaddexp(0.0, x)))


@layer_type("Power")
def power(call: Call) -> list[Array]:
    """(shift + scale * x) ^ power."""
    params = call.layer.params("power_param")
    exponent, factor = float32(params.real("power", 1.0)), float32(params.real("scale", 1.0))
    result = call.bottoms[0] * factor + float32(params.real("shift"))
    return [result if exponent == 1.0 else np.asarray(np.power(result, exponent))]


@layer_type("Exp")
def exp(call: Call) -> list[Array]:
    """Base ^ (shift + scale * x); a base of -1 is e."""
    params = call.layer.params("exp_param")
    base = float32(params.real("base", -1.0))
    inner = call.bottoms[0] * float32(params.real("scale", 1.0)) + float32(params.real("shift"))
    return [np.asarray(np.exp(inner if base == -1.0 else inner * math.log(base)))]


@layer_type("Log")
def log(call: Call) -> list[Array]:
    """log_base(shift + scale * x); a base of -1 is e."""
    params = call.layer.params("log_param")
    base = float32(params.real("base", -1.0))
    inner = call.bottoms[0] * float32(params.real("scale", 1.0)) + float32(params.real("shift"))
    return [np.log(inner) / (1.0 if base == -1.0 else math.log(base))]


@layer_type("Dropout")
def dropout(call: Call) -> list[Array]:
    """A copy at TEST, unless the layer asks to sample there."""
    is_train = call.layer.text.text("phase", "TEST") == "TRAIN"
    if is_train or call.layer.params("dropout_param").flag("sample_weights_test"):
        raise Unsupported("a Dropout that samples")
    return [call.bottoms[0].copy()]


@layer_type("Split")
def split(call: Call) -> list[Array]:
    """The bottom, once for every top."""
    return [call.bottoms[0].copy() for _ in call.layer.tops]


@layer_type("Silence")
def silence(_call: Call) -> list[Array]:
    """Swallow the bottoms."""
    return []


@layer_type("Eltwise")
def eltwise(call: Call) -> list[Array]:
    """SUM with coefficients, PROD or MAX of bottoms of one shape."""
    params = call.layer.params("eltwise_param")
    if any(bottom.shape != call.bottoms[0].shape for bottom in call.bottoms):
        raise NetError(f"shapes {[bottom.shape for bottom in call.bottoms]} differ")
    operation = params.text("operation", "SUM") if not _is_number(call) else _numbered(call)
    coefficients = params.reals("coeff")
    if coefficients and (operation != "SUM" or len(coefficients) != len(call.bottoms)):
        raise NetError(f"{len(coefficients)} coefficients of {operation}")
    result = call.bottoms[0] * float32(coefficients[0]) if coefficients else call.bottoms[0]
    for index, bottom in enumerate(call.bottoms[1:], 1):
        if operation == "PROD":
            result = result * bottom
        elif operation == "MAX":
            result = np.maximum(result, bottom)
        else:
            result = result + bottom * (float32(coefficients[index]) if coefficients else 1.0)
    return [result.copy()]


def _is_number(call: Call) -> bool:
    return isinstance(call.layer.params("eltwise_param").one("operation"), int)


def _numbered(call: Call) -> str:
    number = call.layer.params("eltwise_param").integer("operation")
    return ("PROD", "SUM", "MAX")[number]
