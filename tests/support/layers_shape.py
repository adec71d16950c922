"""Forward passes of the layers that move, pool or reduce values."""

from __future__ import annotations

import numpy as np

from .geometry import Window, canonical, pool_size, pool_window
from .netdef import NetError, float32
from .prototext import Message
from .registry import Array, Call, Unsupported, layer_type

LOWEST = float(np.finfo(np.float32).min)
"""Where a MAX pooling starts from in Caffe (-FLT_MAX)."""


def axis_of(params: Message, old: str, default: int = 1) -> int:
    """Read ``axis``, or the older field that stood for it."""
    return params.integer(old) if params.has(old) else params.integer("axis", default)


@layer_type("Concat")
def concat(call: Call) -> list[Array]:
    """Join the bottoms along an axis."""
    axis = axis_of(call.layer.params("concat_param"), "concat_dim")
    return [np.concatenate(call.bottoms, canonical(axis, call.bottoms[0].ndim))]


def slice_sizes(params: Message, total: int, tops: int) -> list[int]:
    """Return the size of each part of a Slice of ``total`` into that many tops."""
    points = params.integers("slice_point")
    if not points:
        if total % tops:
            raise NetError(f"{total} cannot be sliced evenly into {tops}")
        return [total // tops] * tops
    edges = [0, *points, total]
    if len(points) != tops - 1 or any(a >= b for a, b in zip(edges, edges[1:])):
        raise NetError(f"slice points {points} of {total} for {tops} tops")
    return [b - a for a, b in zip(edges, edges[1:])]


@layer_type("Slice")
def slice_(call: Call) -> list[Array]:
    """Cut the bottom along an axis, evenly or at the slice points."""
    params, bottom = call.layer.params("slice_param"), call.bottoms[0]
    axis = canonical(axis_of(params, "slice_dim"), bottom.ndim)
    sizes = slice_sizes(params, bottom.shape[axis], len(call.layer.tops))
    return list(np.split(bottom, np.cumsum(sizes)[:-1], axis))


@layer_type("Flatten")
def flatten(call: Call) -> list[Array]:
    """Join the axes from ``axis`` to ``end_axis``."""
    params, bottom = call.layer.params("flatten_param"), call.bottoms[0]
    start = canonical(params.integer("axis", 1), bottom.ndim)
    end = canonical(params.integer("end_axis", -1), bottom.ndim)
    return [bottom.reshape(*bottom.shape[:start], -1, *bottom.shape[end + 1 :]).copy()]


def reshaped(params: Message, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return a Reshape's output shape, where 0 copies an axis and -1 stands for the rest."""
    rank, axis = len(shape), params.integer("axis", 0)
    start = axis if axis >= 0 else rank + axis + 1
    count = params.integer("num_axes", -1)
    end = rank if count == -1 else start + count
    dims = params.message("shape").integers("dim")
    middle = [shape[start + i] if dim == 0 else dim for i, dim in enumerate(dims)]
    if -1 in middle:
        known = int(np.prod([dim for dim in (*shape[:start], *middle, *shape[end:]) if dim != -1]))
        middle[middle.index(-1)] = int(np.prod(shape)) // known
    return (*shape[:start], *middle, *shape[end:])


@layer_type("Reshape")
def reshape(call: Call) -> list[Array]:
    """Give the values another shape."""
    shape = reshaped(call.layer.params("reshape_param"), call.bottoms[0].shape)
    if int(np.prod(shape)) != call.bottoms[0].size:
        raise NetError(f"{call.bottoms[0].shape} cannot be shaped to {shape}")
    return [call.bottoms[0].reshape(shape).copy()]


def permuted(params: Message, rank: int) -> list[int]:
    """Return a Permute's order of axes; those it leaves out follow in their order."""
    order = params.integers("order")
    return [*order, *(axis for axis in range(rank) if axis not in order)]


@layer_type("Permute")
def permute(call: Call) -> list[Array]:
    """Reorder the axes."""
    order = permuted(call.layer.params("permute_param"), call.bottoms[0].ndim)
    return [np.ascontiguousarray(call.bottoms[0].transpose(order))]


@layer_type("Softmax")
def softmax(call: Call) -> list[Array]:
    """Exponentials along an axis, summing to one."""
    axis = call.layer.params("softmax_param").integer("axis", 1)
    bottom = call.bottoms[0]
    powers = np.exp(bottom - bottom.max(axis, keepdims=True))
    return [powers / powers.sum(axis, keepdims=True)]


@layer_type("Pooling")
def pooling(call: Call) -> list[Array]:
    """MAX or AVE over windows of (B, C, H, W), the last window rounded up."""
    params, bottom = call.layer.params("pooling_param"), call.bottoms[0]
    kind = params.one("pool")
    name = ("MAX", "AVE", "STOCHASTIC")[kind] if isinstance(kind, int) else str(kind or "MAX")
    if name not in ("MAX", "AVE"):
        raise Unsupported(f"{name} pooling")
    window = pool_window(call.layer, bottom.shape[2:])
    if bottom.ndim != 4 or window is None:
        raise NetError(f"pooling of a blob of shape {bottom.shape}")
    if any(pad >= kernel for pad, kernel in zip(window.pad, window.kernel)):
        raise NetError("a pad as large as the kernel")
    sizes = [int(size or 0) for size in pool_size(call.layer, window, bottom.shape[2:])]
    pooled = [_pooled(bottom, window, sizes, name == "MAX")]
    if len(call.layer.tops) > 1:
        pooled.append(_places(bottom, window, sizes))
    return pooled


def _pooled(bottom: Array, window: Window, sizes: list[int], is_max: bool) -> Array:
    """Pool along one axis and then the other: windows, clipped too, are products of spans."""
    for axis, count in zip((2, 3), sizes):
        lines = []
        for start, end, divisor in _spans(window, count, bottom.shape[axis], axis - 2):
            part = bottom[:, :, start:end] if axis == 2 else bottom[:, :, :, start:end]
            # The divisor counts the padding, but not what lies behind it. A window
            # may hold nothing at all, where the stride is larger than the kernel.
            lines.append(part.max(axis, initial=LOWEST) if is_max else part.sum(axis) / divisor)
        bottom = np.stack(lines, axis)
    return bottom


def _places(bottom: Array, window: Window, sizes: list[int]) -> Array:
    """Return where in its plane (H * W) the maximum of each window stands, the first of equals."""
    places = np.empty((*bottom.shape[:2], *sizes))
    for y, (top, low, _) in enumerate(_spans(window, sizes[0], bottom.shape[2], 0)):
        for x, (left, right, _) in enumerate(_spans(window, sizes[1], bottom.shape[3], 1)):
            part = bottom[:, :, top:low, left:right]
            row, column = np.divmod(part.reshape(*part.shape[:2], -1).argmax(2), right - left)
            places[:, :, y, x] = (top + row) * bottom.shape[3] + left + column
    return places


def _spans(window: Window, count: int, size: int, axis: int) -> list[tuple[int, int, int]]:
    """Return (first, end, divisor) of each window on one axis."""
    spans = []
    for index in range(count):
        start = index * window.stride[axis] - window.pad[axis]
        end = min(start + window.kernel[axis], size + window.pad[axis])
        spans.append((max(start, 0), min(end, size), end - start))
    return spans


@layer_type("LRN")
def lrn(call: Call) -> list[Array]:
    """Local response normalisation across channels."""
    params, bottom = call.layer.params("lrn_param"), call.bottoms[0]
    if params.text("norm_region", "ACROSS_CHANNELS") != "ACROSS_CHANNELS":
        raise Unsupported("LRN within a channel")
    size = params.integer("local_size", 5)
    alpha, beta = float32(params.real("alpha", 1.0)), float32(params.real("beta", 0.75))
    half = (size - 1) // 2
    squares = np.pad(bottom**2, [(0, 0), (half, half), (0, 0), (0, 0)])
    sums = sum(squares[:, i : i + bottom.shape[1]] for i in range(size))
    return [bottom / (float32(params.real("k", 1.0)) + alpha / size * sums) ** beta]


@layer_type("Normalize")
def normalize(call: Call) -> list[Array]:
    """SSD's: divide by the length over channels (or over all), times blob 0."""
    params, bottom = call.layer.params("norm_param"), call.bottoms[0]
    axes = (1, 2, 3) if params.flag("across_spatial", True) else (1,)
    eps = float32(params.real("eps", 1e-10))
    length = np.sqrt((bottom**2).sum(axes, keepdims=True) + eps)
    scale = call.blobs[0]
    return [bottom / length * (scale if scale.ndim == 0 else scale.reshape(1, -1, 1, 1))]


@layer_type("Reduction")
def reduction(call: Call) -> list[Array]:
    """SUM, MEAN, ASUM or SUMSQ over the axes from ``axis`` on."""
    params, bottom = call.layer.params("reduction_param"), call.bottoms[0]
    axis = canonical(params.integer("axis", 0), bottom.ndim)
    flat = bottom.reshape(*bottom.shape[:axis], -1)
    name = params.text("operation", "SUM")
    values = {"ASUM": np.abs(flat), "SUMSQ": flat**2}.get(name, flat)
    result = values.mean(-1) if name == "MEAN" else values.sum(-1)
    return [np.asarray(result * float32(params.real("coeff", 1.0)))]
