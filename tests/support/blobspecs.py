"""Which parameter blobs a layer has: their shapes, roles and fillers.

A dimension is None where a bottom's shape is not known.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Callable

from .geometry import DEPTHWISE, Dim, canonical, conv_axis, conv_group, conv_window
from .netdef import Layer, NetError, float32
from .prototext import Message

Dims = tuple[Dim, ...]

RANDOM = math.nan
"""The fill of a blob whose filler is random: its values cannot be told."""


@dataclass(frozen=True)
class BlobSpec:
    """A parameter blob: its role, its shape, and the value Caffe fills it with."""

    role: str
    shape: Dims
    fill: float


def blob_specs(layer: Layer, bottoms: Sequence[Dims]) -> list[BlobSpec]:
    """Return the blobs that Caffe gives this layer at set-up, in order."""
    specs = _SPECS.get(layer.type)
    return specs(layer, list(bottoms)) if specs else []


def _fill(params: Message, filler: str, default: float = 0.0) -> float:
    if not params.has(filler):
        return default
    message = params.message(filler)
    if message.text("type", "constant") != "constant":
        return RANDOM
    return float32(message.real("value", 0.0))


def _convolution(layer: Layer, bottoms: list[Dims]) -> list[BlobSpec]:
    params = layer.params("convolution_param")
    axis = conv_axis(layer, len(bottoms[0]))
    channels = bottoms[0][axis]
    count = params.integer("num_output")
    window = conv_window(layer, len(bottoms[0]) - axis - 1)
    if layer.type in DEPTHWISE and channels is None:
        channels = count
    group = conv_group(layer, channels or 1)
    if channels is not None and (channels % group or count % group):
        raise NetError(f"layer {layer.name!r}: {channels} to {count} channels in {group} groups")
    outer, inner = count, None if channels is None else channels // group
    weight: Dims = (outer, inner, *window.kernel)
    if layer.type == "Deconvolution":
        weight = (channels, count // group, *window.kernel)
    specs = [BlobSpec("weight", weight, _fill(params, "weight_filler"))]
    if params.flag("bias_term", True):
        specs.append(BlobSpec("bias", (count,), _fill(params, "bias_filler")))
    return specs


def _inner_product(layer: Layer, bottoms: list[Dims]) -> list[BlobSpec]:
    params = layer.params("inner_product_param")
    axis = canonical(params.integer("axis", 1), len(bottoms[0]))
    count, width = params.integer("num_output"), product(bottoms[0][axis:])
    weight = (width, count) if params.flag("transpose") else (count, width)
    specs = [BlobSpec("weight", weight, _fill(params, "weight_filler"))]
    if params.flag("bias_term", True):
        specs.append(BlobSpec("bias", (count,), _fill(params, "bias_filler")))
    return specs


def product(dims: Sequence[Dim]) -> Dim:
    """Return the product of the dimensions, None where one is unknown."""
    total = 1
    for dim in dims:
        if dim is None:
            return None
        total *= dim
    return total


def channels_of(bottom: Dims) -> Dim:
    """Return the size of axis 1; a blob with one axis has one channel."""
    return 1 if len(bottom) == 1 else bottom[1]


def has_scale_bias(layer: Layer) -> bool:
    """Say whether a BatchNorm has its own scale and bias (NVIDIA's five blobs)."""
    params = layer.params("batch_norm_param")
    return params.flag("scale_bias", params.has("scale_filler") or params.has("bias_filler"))


def _batch_norm(layer: Layer, bottoms: list[Dims]) -> list[BlobSpec]:
    params = layer.params("batch_norm_param")
    each: Dims = (channels_of(bottoms[0]),)
    specs = [BlobSpec("mean", each, 0.0), BlobSpec("variance", each, 0.0)]
    if not has_scale_bias(layer):
        return [*specs, BlobSpec("factor", (1,), 0.0)]
    return [
        *specs,
        BlobSpec("one", (1,), 1.0),
        BlobSpec("gamma", each, _fill(params, "scale_filler", 1.0)),
        BlobSpec("beta", each, _fill(params, "bias_filler", 0.0)),
    ]


def is_segnet_bn(layer: Layer) -> bool:
    """Say whether a BN layer is SegNet's two-blob one (scale, shift)."""
    params = layer.params("bn_param")
    return any(params.has(name) for name in ("bn_mode", "scale_filler", "shift_filler"))


def _bn(layer: Layer, bottoms: list[Dims]) -> list[BlobSpec]:
    params = layer.params("bn_param")
    each: Dims = (1, channels_of(bottoms[0]), 1, 1)
    if is_segnet_bn(layer):
        return [
            BlobSpec("gamma", each, _fill(params, "scale_filler", 1.0)),
            BlobSpec("beta", each, _fill(params, "shift_filler", 0.0)),
        ]
    return [
        BlobSpec("gamma", each, _fill(params, "slope_filler", 1.0)),
        BlobSpec("beta", each, _fill(params, "bias_filler", 0.0)),
        BlobSpec("mean", each, 0.0),
        BlobSpec("variance", each, 1.0),
    ]


def _cudnn_batch_norm(layer: Layer, bottoms: list[Dims]) -> list[BlobSpec]:
    each: Dims = (channels_of(bottoms[0]),)
    roles = ("mean", "variance", "gamma", "beta")
    return [BlobSpec(role, each, float(role in ("variance", "gamma"))) for role in roles]


def covered(layer: Layer, params: Message, bottom: Dims) -> Dims:
    """Return the shape that a Scale's or Bias's own blob has: the axes it covers."""
    axis = canonical(params.integer("axis", 1), len(bottom))
    count = params.integer("num_axes", 1)
    if count < -1 or (count >= 0 and axis + count > len(bottom)):
        raise NetError(f"layer {layer.name!r}: {count} axes from axis {axis} of {len(bottom)}")
    return bottom[axis:] if count == -1 else bottom[axis : axis + count]


def _scale(layer: Layer, bottoms: list[Dims]) -> list[BlobSpec]:
    params = layer.params("scale_param")
    specs: list[BlobSpec] = []
    if len(bottoms) == 1:
        shape = covered(layer, params, bottoms[0])
        specs.append(BlobSpec("gamma", shape, _fill(params, "filler", 1.0)))
    else:
        shape = bottoms[1]
    if params.flag("bias_term"):
        specs.append(BlobSpec("beta", shape, _fill(params, "bias_filler")))
    return specs


def _bias(layer: Layer, bottoms: list[Dims]) -> list[BlobSpec]:
    if len(bottoms) > 1:
        return []
    params = layer.params("bias_param")
    return [BlobSpec("beta", covered(layer, params, bottoms[0]), _fill(params, "filler"))]


def _per_channel(message: str, filler: str, role: str, default: float) -> _Specs:
    """Make the specs of a layer with one blob, per channel or (channel_shared) a scalar."""

    def specs(layer: Layer, bottoms: list[Dims]) -> list[BlobSpec]:
        params = layer.params(message)
        each: Dims = (channels_of(bottoms[0]),)
        shared = params.flag("channel_shared", role == "norm")
        return [BlobSpec(role, () if shared else each, _fill(params, filler, default))]

    return specs


_Specs = Callable[[Layer, list[Dims]], list[BlobSpec]]

_SPECS: dict[str, _Specs] = {
    "Convolution": _convolution,
    "DepthwiseConvolution": _convolution,
    "ConvolutionDepthwise": _convolution,
    "Deconvolution": _convolution,
    "InnerProduct": _inner_product,
    "BatchNorm": _batch_norm,
    "BN": _bn,
    "CuDNNBatchNorm": _cudnn_batch_norm,
    "Scale": _scale,
    "Bias": _bias,
    "PReLU": _per_channel("prelu_param", "filler", "slope", 0.25),
    "Normalize": _per_channel("norm_param", "scale_filler", "norm", 1.0),
}

__all__ = [
    "RANDOM",
    "BlobSpec",
    "Dims",
    "blob_specs",
    "channels_of",
    "covered",
    "has_scale_bias",
    "is_segnet_bn",
    "product",
]  # fmt: skip
