"""Forward passes of the layers with weights: Convolution and its kin, normalisations."""

from __future__ import annotations

import numpy as np

from .blobspecs import is_segnet_bn
from .geometry import canonical, conv_axis, conv_group, conv_window
from .netdef import NetError, float32
from .prototext import Message
from .registry import Array, Call, Unsupported, layer_type

# Indexes the axes of the batch and the channels in whole.
_BATCH = (slice(None), slice(None))


@layer_type("Convolution", "DepthwiseConvolution", "ConvolutionDepthwise")
def convolution(call: Call) -> list[Array]:
    """Convolve each bottom (..., C, spatial) with the weight (N, C/g, kernel)."""
    return [_activated(call, _convolve(call, bottom)) for bottom in call.bottoms]


def _convolve(call: Call, bottom: Array) -> Array:
    axis = conv_axis(call.layer, bottom.ndim)
    window = conv_window(call.layer, bottom.ndim - axis - 1)
    channels, sizes = bottom.shape[axis], bottom.shape[axis + 1 :]
    group, weight = conv_group(call.layer, channels), call.blobs[0]
    batch = bottom.reshape(-1, channels, *sizes)
    padded = np.pad(batch, [(0, 0), (0, 0), *((p, p) for p in window.pad)])
    spatial = len(sizes)
    views = np.lib.stride_tricks.sliding_window_view(
        padded, window.extent, axis=tuple(range(2, 2 + spatial))
    )
    steps = tuple(slice(None, None, s) for s in (*window.stride, *window.dilation))
    views = views[_BATCH + steps]  # (B, C, out..., kernel...)
    out = views.shape[2 : 2 + spatial]
    order = (0, 1, *range(2 + spatial, 2 + 2 * spatial), *range(2, 2 + spatial))
    rows = channels // group * int(np.prod(window.kernel))
    columns = views.transpose(order).reshape(len(batch), group, rows, -1)
    result = weight.reshape(group, -1, rows) @ columns  # (B, g, N/g, out)
    result = result.reshape(len(batch), -1, *out)
    return _biased(call, result).reshape(*bottom.shape[:axis], -1, *out)


def _biased(call: Call, batch: Array) -> Array:
    """Add the bias (N), if there is one, to a batch (B, N, spatial)."""
    if len(call.blobs) < 2:
        return batch
    return batch + call.blobs[1].reshape(-1, *([1] * (batch.ndim - 2)))


def _activated(call: Call, result: Array) -> Array:
    """Apply the activation that Intel's fork fuses into a convolution."""
    params = call.layer.params("convolution_param", "inner_product_param")
    if params.text("fusion_type"):
        raise Unsupported("a fused sum")
    if not params.flag("relu"):
        return result
    slope = float32(params.real("negative_slope"))
    return np.where(result > 0, result, slope * result)


@layer_type("Deconvolution")
def deconvolution(call: Call) -> list[Array]:
    """Scatter each bottom (..., C, spatial) through the weight (C, N/g, kernel)."""
    return [_scatter(call, bottom) for bottom in call.bottoms]


def _scatter(call: Call, bottom: Array) -> Array:
    axis = conv_axis(call.layer, bottom.ndim)
    window = conv_window(call.layer, bottom.ndim - axis - 1)
    channels, sizes = bottom.shape[axis], bottom.shape[axis + 1 :]
    group, weight = conv_group(call.layer, channels), call.blobs[0]
    count = weight.shape[1] * group
    batch = bottom.reshape(-1, group, channels // group, int(np.prod(sizes)))
    turned = weight.reshape(group, channels // group, -1).transpose(0, 2, 1)
    columns = (turned @ batch).reshape(len(batch), count, *window.kernel, *sizes)
    full = tuple(s * (n - 1) + e for s, n, e in zip(window.stride, sizes, window.extent))
    canvas = np.zeros((len(batch), count, *full))
    for tap in np.ndindex(*window.kernel):
        place = tuple(
            slice(t * d, t * d + s * (n - 1) + 1, s)
            for t, d, s, n in zip(tap, window.dilation, window.stride, sizes)
        )
        canvas[_BATCH + place] += columns[_BATCH + tap]
    inner = tuple(slice(pad, size - pad) for pad, size in zip(window.pad, full))
    result = _biased(call, canvas[_BATCH + inner])
    return result.reshape(*bottom.shape[:axis], *result.shape[1:])


@layer_type("InnerProduct")
def inner_product(call: Call) -> list[Array]:
    """Multiply the bottom, flattened from ``axis`` on, with (N, K) or, transposed, (K, N)."""
    params = call.layer.params("inner_product_param")
    bottom, weight = call.bottoms[0], call.blobs[0]
    axis = canonical(params.integer("axis", 1), bottom.ndim)
    outer = bottom.shape[:axis]
    flat = bottom.reshape(int(np.prod(outer)), -1)
    result = flat @ (weight if params.flag("transpose") else weight.T)
    if len(call.blobs) > 1:
        result = result + call.blobs[1]
    return [_activated(call, result.reshape(*outer, -1))]


def per_channel(values: Array, rank: int) -> Array:
    """Shape C values so that they broadcast along axis 1 of a blob of that rank."""
    return values.reshape(-1) if rank == 1 else values.reshape(1, -1, *([1] * (rank - 2)))


def _normalise(bottom: Array, mean: Array, variance: Array, eps: float) -> Array:
    deviation = np.sqrt(variance + eps)
    return (bottom - per_channel(mean, bottom.ndim)) / per_channel(deviation, bottom.ndim)


def _batch_statistics(bottom: Array) -> tuple[Array, Array]:
    axes = tuple(axis for axis in range(bottom.ndim) if axis != 1)
    if bottom.ndim == 1:
        axes = (0,)
    return np.atleast_1d(bottom.mean(axes)), np.atleast_1d(bottom.var(axes))


@layer_type("BatchNorm")
def batch_norm(call: Call) -> list[Array]:
    """Normalise by the global statistics, or by the batch's where the text asks for it."""
    params = call.layer.params("batch_norm_param")
    bottom = call.bottoms[0]
    eps = float32(params.real("eps", 1e-5))
    is_test = call.layer.text.text("phase", "TEST") == "TEST"
    if len(call.blobs) == 5:
        return [_nvidia_batch_norm(call, bottom, eps)]
    if params.flag("relu"):
        raise Unsupported("a fused activation")
    if not params.flag("use_global_stats", is_test):
        return [_normalise(bottom, *_batch_statistics(bottom), eps)]
    mean, variance, factor = call.blobs
    scale = 0.0 if factor[0] == 0 else 1.0 / factor[0]
    return [_normalise(bottom, mean * scale, variance * scale, eps)]


def _nvidia_batch_norm(call: Call, bottom: Array, eps: float) -> Array:
    mean, variance, one, gamma, beta = call.blobs
    if one[0] != 1:
        raise Unsupported("five blobs with a factor: the forks differ on what it means")
    normal = _normalise(bottom, mean, variance, max(eps, 1e-5))
    return normal * per_channel(gamma, bottom.ndim) + per_channel(beta, bottom.ndim)


@layer_type("CuDNNBatchNorm")
def cudnn_batch_norm(call: Call) -> list[Array]:
    """Four blobs: mean, variance, scale, bias."""
    params, bottom = call.layer.params("batch_norm_param"), call.bottoms[0]
    mean, variance, gamma, beta = (per_channel(blob, bottom.ndim) for blob in call.blobs)
    eps = float32(params.real("eps", 1e-5))
    return [(bottom - mean) / np.sqrt(variance + eps) * gamma + beta]


@layer_type("BN")
def bn(call: Call) -> list[Array]:
    """SegNet's two blobs (scale, shift) or yjxiong's four (slope, bias, mean, variance)."""
    params, bottom = call.layer.params("bn_param"), call.bottoms[0]
    gamma, beta, *rest = (per_channel(blob, bottom.ndim) for blob in call.blobs)
    if not is_segnet_bn(call.layer):
        eps = float32(params.real("eps", 1e-5))
        return [(bottom - rest[0]) / np.sqrt(rest[1] + eps) * gamma + beta]
    if params.text("bn_mode", "LEARN") != "INFERENCE":
        raise Unsupported("BN in LEARN mode")
    return [bottom * gamma + beta]


def _placed(call: Call, params: Message, factor: Array) -> Array:
    """Shape a Scale's or Bias's operand so that it broadcasts onto bottom 0."""
    bottom = call.bottoms[0]
    axis = canonical(params.integer("axis", 1), bottom.ndim) if factor.ndim else 0
    if factor.shape != bottom.shape[axis : axis + factor.ndim]:
        raise NetError(f"shape {factor.shape} does not match {bottom.shape} from axis {axis}")
    return factor.reshape(*factor.shape, *([1] * (bottom.ndim - axis - factor.ndim)))


@layer_type("Scale")
def scale(call: Call) -> list[Array]:
    """Multiply by the second bottom or by blob 0, then add the bias, if any."""
    params = call.layer.params("scale_param")
    operands = [*call.bottoms[1:], *call.blobs]
    result = call.bottoms[0] * _placed(call, params, operands[0])
    if params.flag("bias_term"):
        result = result + _placed(call, params, operands[1])
    return [result]


@layer_type("Bias")
def bias(call: Call) -> list[Array]:
    """Add the second bottom or blob 0."""
    params = call.layer.params("bias_param")
    operand = call.bottoms[1] if len(call.bottoms) > 1 else call.blobs[0]
    return [call.bottoms[0] + _placed(call, params, operand)]
