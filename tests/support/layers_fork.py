"""Forward passes of layers that only forks of Caffe have."""

from __future__ import annotations

import numpy as np

from .geometry import interp_size, upsample_size
from .registry import Array, Call, Unsupported, layer_type


@layer_type("Axpy")
def axpy(call: Call) -> list[Array]:
    """a (N, C, 1, 1) times x (N, C, H, W), plus y."""
    factor, x, y = call.bottoms
    return [factor.reshape(*factor.shape[:2], 1, 1) * x + y]


@layer_type("ShuffleChannel")
def shuffle_channel(call: Call) -> list[Array]:
    """Interleave the channels of the groups."""
    group = call.layer.params("shuffle_channel_param").integer("group", 1)
    bottom = call.bottoms[0]
    batch, channels = bottom.shape[:2]
    parts = bottom.reshape(batch, group, channels // group, *bottom.shape[2:])
    return [parts.swapaxes(1, 2).reshape(bottom.shape)]


@layer_type("Upsample")
def upsample(call: Call) -> list[Array]:
    """Repeat each value, or (SegNet, a second bottom) put it where its maximum was."""
    bottom = call.bottoms[0]
    height, width = (int(size or 0) for size in upsample_size(call.layer, bottom.shape[2:]))
    if len(call.bottoms) == 1:
        if height % bottom.shape[2] or width % bottom.shape[3]:
            raise Unsupported("an Upsample to no multiple of the size")
        taller = bottom.repeat(height // bottom.shape[2], 2)
        return [taller.repeat(width // bottom.shape[3], 3)]
    planes = bottom.shape[0] * bottom.shape[1]
    canvas = np.zeros((planes, height * width))
    places = call.bottoms[1].reshape(planes, -1).astype(np.int64)
    np.put_along_axis(canvas, places, bottom.reshape(planes, -1), 1)
    return [canvas.reshape(*bottom.shape[:2], height, width)]


@layer_type("Interp")
def interp(call: Call) -> list[Array]:
    """Bilinear, the corners' centres kept in the corners."""
    params, result = call.layer.params("interp_param"), call.bottoms[0]
    begin, end = -params.integer("pad_beg"), -params.integer("pad_end")
    sizes = interp_size(call.layer, result.shape[2:])
    result = result[:, :, begin : result.shape[2] - end, begin : result.shape[3] - end]
    for axis, size in zip((2, 3), sizes):
        result = _stretch(result, int(size or 0), axis)
    return [result]


def _stretch(bottom: Array, size: int, axis: int) -> Array:
    last = bottom.shape[axis] - 1
    where = np.arange(size) * (last / (size - 1) if size > 1 else 0.0)
    low = np.minimum(where.astype(np.int64), last)
    shape = [1] * bottom.ndim
    shape[axis] = size
    part = (where - low).reshape(shape)
    high = np.minimum(low + 1, last)
    left, right = bottom.take(low, axis), bottom.take(high, axis)
    return np.asarray(left + (right - left) * part)
