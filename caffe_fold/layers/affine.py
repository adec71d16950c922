"""Layers that are a per-channel affine map, ``y = scale * x + shift``.

A BatchNorm with global statistics is one (batch_norm.py), so are a Scale and a Bias
with constants along channel axis 1 (scale_layer.cpp, bias_layer.cpp in BVLC Caffe)
and a Power of exponent 1 (power_layer.cpp). Each type is one entry of ``AFFINE``.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from caffe_fold import caffe_pb2
from caffe_fold.layers.affine_map import (
    AffineMap,
    AffineType,
    Array,
    Constants,
    Dims,
    Refused,
    Standard,
)
from caffe_fold.layers.batch_norm import BATCH_NORM, BN, CUDNN_BATCH_NORM

__all__ = ["AFFINE", "AffineMap", "AffineType", "Array", "Constants", "Refused", "Standard"]


def _channels(constants: Constants, name: str) -> int | None:
    """C where blob 0 of a Scale or Bias lies along channel axis 1, None where it is a
    scalar (ScaleLayer::LayerSetUp, BiasLayer::LayerSetUp)."""
    shape, message = constants.shapes[0], constants.message
    size = constants.blobs[0].size
    if message.num_axes == 0:
        if size != 1:
            raise Refused(
                "blob-shape", f"'num_axes: 0' makes its {name} one number and its blob is {shape}"
            )
        return None
    axis = message.axis
    if axis < 0:
        if constants.rank is None:
            raise Refused(
                "unknown-rank",
                f"its 'axis: {axis}' counts from the end and the rank of its bottom is not known",
            )
        axis += constants.rank
    if axis != 1:
        raise Refused("not-per-channel", f"its {name} lies on axis {axis}, not on channel axis 1")
    if not shape or shape[0] != size:
        raise Refused("not-per-channel", f"its {name} of shape {shape} is not one number a channel")
    return size


def _along(message: Any, bottom: Dims) -> Dims:
    """The axes of its bottom that a Scale or Bias lies along."""
    axis, count = int(message.axis), int(message.num_axes)
    if count == 0:
        return ()
    if not bottom:
        return (None,) * max(count, 1)
    start = axis + len(bottom) if axis < 0 else axis
    return bottom[start:] if count < 0 else bottom[start : start + count]


def _scale(constants: Constants) -> AffineMap:
    if len(constants.blobs) == 2 and not constants.message.bias_term:
        raise Refused(
            "blob-count", "its prototxt asks for no 'bias_term' and its weights have a bias"
        )
    channels = _channels(constants, "multiplier")
    scale = constants.blobs[0]
    shift = constants.blobs[1] if len(constants.blobs) > 1 else np.zeros(1)
    if len(set(constants.shapes)) > 1:
        first, second = constants.shapes
        raise Refused("blob-shape", f"its multiplier has the shape {first} and its bias {second}")
    return AffineMap(scale, shift, channels)


def _scale_forward(x: Array, constants: Constants) -> Array:
    y = x * constants.blobs[0][:, None]
    return y + constants.blobs[1][:, None] if len(constants.blobs) > 1 else y


def _scale_blobs(message: Any, bottoms: tuple[Dims, ...]) -> tuple[Dims, ...] | None:
    if len(bottoms) > 1:  # the second is the multiplier
        return None if message.bias_term else ()
    return (_along(message, bottoms[0]),) * (2 if message.bias_term else 1)


def _bias(constants: Constants) -> AffineMap:
    channels = _channels(constants, "shift")
    return AffineMap(np.ones(1), constants.blobs[0], channels)


def _bias_forward(x: Array, constants: Constants) -> Array:
    return x + constants.blobs[0][:, None]


def _bias_blobs(message: Any, bottoms: tuple[Dims, ...]) -> tuple[Dims, ...]:
    return (_along(message, bottoms[0]),) if len(bottoms) == 1 else ()  # else the second is it


def _power(constants: Constants) -> AffineMap:
    message = constants.message
    if message.power != 1:
        raise Refused("not-affine", f"its power is {message.power:g}, and only 1 is affine")
    numbers = np.array([message.scale, message.shift], np.float32).astype(np.float64)
    return AffineMap(numbers[:1], numbers[1:], None)


def _power_forward(x: Array, constants: Constants) -> Array:
    scale, shift = np.float32(constants.message.scale), np.float32(constants.message.shift)
    base: Array = np.float64(shift) + np.float64(scale) * x
    result: Array = base ** float(constants.message.power)
    return result


AFFINE: dict[str, AffineType] = {
    "BatchNorm": BATCH_NORM,
    "BN": BN,
    "CuDNNBatchNorm": CUDNN_BATCH_NORM,
    "Scale": AffineType(
        "scale_param",
        caffe_pb2.ScaleParameter,
        (1, 2),
        _scale,
        _scale_forward,
        implied=_scale_blobs,
    ),
    "Bias": AffineType(
        "bias_param",
        caffe_pb2.BiasParameter,
        (1,),
        _bias,
        _bias_forward,
        implied=_bias_blobs,
        standard=lambda constants: Standard(
            scale=(np.ones_like(constants.blobs[0]), constants.blobs[0])
        ),
    ),
    # A net has Power layers for reasons of its own, so one that stays needs no reason.
    "Power": AffineType(
        "power_param", caffe_pb2.PowerParameter, (0,), _power, _power_forward, explained=False
    ),
}
