"""Layers that are a per-channel affine map, ``y = scale * x + shift``.

A BatchNorm with global statistics is one (BatchNormLayer::Forward_cpu, BVLC's
batch_norm_layer.cpp)::

    s = 0 if factor == 0 else 1 / factor
    y = (x - s * mean) / sqrt(s * variance + eps)

so are a Scale and a Bias with constants along channel axis 1 (scale_layer.cpp,
bias_layer.cpp) and a Power of exponent 1 (power_layer.cpp). Maps compose::

    (a2, c2) after (a1, c1)  =  (a2 * a1, a2 * c1 + c2)

Each type is one entry of ``AFFINE``: how its prototxt message is called, how its
map is read, and how Caffe itself computes it, which the proof uses and the fold
does not.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Callable

import numpy as np
from numpy.typing import NDArray

from caffe_fold import caffe_pb2

__all__ = ["AFFINE", "AffineMap", "AffineType", "Constants", "Refused"]

Array = NDArray[np.float64]


class Refused(Exception):
    """What stands in the way of a fold: a stable code and one sentence."""

    def __init__(self, code: str, sentence: str) -> None:
        super().__init__(sentence)
        self.code = code
        self.sentence = sentence


@dataclass(frozen=True)
class AffineMap:
    """``y = scale * x + shift`` per channel.

    ``scale`` and ``shift`` are float64 of shape (C,), or (1,) where one number
    serves all channels. ``channels`` is C, or None for a map that fits any number.
    """

    scale: Array
    shift: Array
    channels: int | None

    def then(self, later: AffineMap) -> AffineMap:
        """This map and then another, of as many channels or of any number."""
        with np.errstate(over="ignore", invalid="ignore"):  # see is_finite
            return AffineMap(
                later.scale * self.scale,
                later.scale * self.shift + later.shift,
                self.channels if later.channels is None else later.channels,
            )

    @property
    def is_identity(self) -> bool:
        return bool((self.scale == 1).all() and (self.shift == 0).all())

    @property
    def has_shift(self) -> bool:
        return bool((self.shift != 0).any())

    @property
    def is_finite(self) -> bool:
        return bool(np.isfinite(self.scale).all() and np.isfinite(self.shift).all())

    def equals(self, other: AffineMap) -> bool:
        """Whether both maps hold the same numbers."""
        return np.array_equal(self.scale, other.scale) and np.array_equal(self.shift, other.shift)


@dataclass(frozen=True)
class Constants:
    """What a layer's map is read from.

    ``message`` is its parsed hyper-parameters, ``blobs`` its values in float64, 1-D,
    ``shapes`` the blobs' shapes (legacy ones without their leading ones), ``rank`` the
    number of axes of its bottom, or None where that is not known.
    """

    message: Any
    blobs: tuple[Array, ...]
    shapes: tuple[tuple[int, ...], ...]
    rank: int | None


@dataclass(frozen=True)
class AffineType:
    """One type of affine layer.

    ``blobs`` are the numbers of blobs that it may have. ``read`` gives its map or
    raises Refused; ``forward`` computes the layer on ``x`` of shape (C, M) as Caffe
    does, for blobs that are scalars or have one value a channel.
    """

    parameter: str
    message: type[Any]
    blobs: tuple[int, ...]
    read: Callable[[Constants], AffineMap]
    forward: Callable[[Array, Constants], Array]


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


def _batch_norm(constants: Constants) -> AffineMap:
    mean, variance = constants.blobs[:2]
    factor = float(constants.blobs[2][0]) if len(constants.blobs) > 2 else 1.0
    share = 0.0 if factor == 0 else 1.0 / factor
    if mean.size != variance.size:
        raise Refused(
            "blob-shape", f"its mean has {mean.size} values and its variance {variance.size}"
        )
    inside = share * variance + np.float64(np.float32(constants.message.eps))
    if not (inside > 0).all():
        channel = int(np.flatnonzero(~(inside > 0))[0])
        raise Refused(
            "variance",
            f"variance + eps is {inside[channel]:.3g} in channel {channel}, "
            "which has no inverse square root",
        )
    scale = 1.0 / np.sqrt(inside)
    return AffineMap(scale, -share * mean * scale, mean.size)


def _batch_norm_forward(x: Array, constants: Constants) -> Array:
    mean, variance = constants.blobs[0], constants.blobs[1]
    factor = constants.blobs[2][0] if len(constants.blobs) > 2 else 1.0
    share = 0 if factor == 0 else 1 / factor
    eps = np.float64(np.float32(constants.message.eps))
    return (x - (share * mean)[:, None]) / np.sqrt(share * variance + eps)[:, None]


def _scale(constants: Constants) -> AffineMap:
    channels = _channels(constants, "multiplier")
    scale = constants.blobs[0]
    shift = constants.blobs[1] if len(constants.blobs) > 1 else np.zeros(1)
    if len(constants.blobs) > 1 and shift.size != scale.size:
        raise Refused(
            "blob-shape", f"its multiplier has {scale.size} values and its bias {shift.size}"
        )
    return AffineMap(scale, shift, channels)


def _scale_forward(x: Array, constants: Constants) -> Array:
    y = x * constants.blobs[0][:, None]
    return y + constants.blobs[1][:, None] if len(constants.blobs) > 1 else y


def _bias(constants: Constants) -> AffineMap:
    channels = _channels(constants, "shift")
    return AffineMap(np.ones(1), constants.blobs[0], channels)


def _bias_forward(x: Array, constants: Constants) -> Array:
    return x + constants.blobs[0][:, None]


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
    "BatchNorm": AffineType(
        "batch_norm_param", caffe_pb2.BatchNormParameter, (2, 3), _batch_norm, _batch_norm_forward
    ),
    "Scale": AffineType("scale_param", caffe_pb2.ScaleParameter, (1, 2), _scale, _scale_forward),
    "Bias": AffineType("bias_param", caffe_pb2.BiasParameter, (1,), _bias, _bias_forward),
    "Power": AffineType("power_param", caffe_pb2.PowerParameter, (0,), _power, _power_forward),
}
