"""Window geometry of convolutions and poolings, read from a layer's text.

Shared by the evaluator (which knows every size) and by the shape inference
(where a size may be None, unknown).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Optional

from .netdef import Layer, NetError
from .prototext import Message

Dim = Optional[int]

DEPTHWISE = ("DepthwiseConvolution", "ConvolutionDepthwise")


@dataclass(frozen=True)
class Window:
    """Kernel, stride, pad and dilation, one number a spatial axis."""

    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    pad: tuple[int, ...]
    dilation: tuple[int, ...]

    @property
    def extent(self) -> tuple[int, ...]:
        """Size of the dilated kernel on each spatial axis."""
        return tuple(d * (k - 1) + 1 for k, d in zip(self.kernel, self.dilation))

    def conv_size(self, sizes: Sequence[Dim]) -> tuple[Dim, ...]:
        """Return a Convolution's output sizes (rounded down)."""
        return tuple(
            None if size is None else (size + 2 * pad - extent) // stride + 1
            for size, pad, extent, stride in zip(sizes, self.pad, self.extent, self.stride)
        )

    def deconv_size(self, sizes: Sequence[Dim]) -> tuple[Dim, ...]:
        """Return a Deconvolution's output sizes."""
        return tuple(
            None if size is None else stride * (size - 1) + extent - 2 * pad
            for size, pad, extent, stride in zip(sizes, self.pad, self.extent, self.stride)
        )


def conv_axis(layer: Layer, rank: int) -> int:
    """Return the channel axis of a Convolution, counted from the front."""
    return canonical(layer.params("convolution_param").integer("axis", 1), rank)


def canonical(axis: int, rank: int) -> int:
    """Count a negative axis from the end; raise where there is no such axis."""
    if not -rank <= axis < rank:
        raise NetError(f"axis {axis} of a blob with {rank} axes")
    return axis % rank


def conv_window(layer: Layer, spatial: int) -> Window:
    """Read a convolution's window for that many spatial axes."""
    params = layer.params("convolution_param")
    kernel = _per_axis(params, "kernel_size", "kernel", spatial, None)
    return Window(
        kernel=kernel,
        stride=_per_axis(params, "stride", "stride", spatial, 1),
        pad=_per_axis(params, "pad", "pad", spatial, 0),
        dilation=_per_axis(params, "dilation", "", spatial, 1),
    )


def _per_axis(
    params: Message, field: str, stem: str, spatial: int, default: int | None
) -> tuple[int, ...]:
    """Read ``field`` (one for all axes, or one each), or ``stem_h`` and ``stem_w``."""
    values = params.integers(field)
    height, width = stem + "_h", stem + "_w"
    if stem and (params.has(height) or params.has(width)):
        if spatial != 2 or values:
            raise NetError(f"{height} and {width} are for 2 spatial axes, without {field}")
        return params.integer(height), params.integer(width)
    if not values and default is not None:
        values = [default]
    if len(values) == 1:
        values = values * spatial
    if len(values) != spatial:
        raise NetError(f"{len(values)} values of {field} for {spatial} spatial axes")
    return tuple(values)


def conv_group(layer: Layer, channels: int) -> int:
    """Return the number of groups; a depthwise layer that gives none has one a channel."""
    default = channels if layer.type in DEPTHWISE else 1
    return layer.params("convolution_param").integer("group", default)


def pool_window(layer: Layer, sizes: Sequence[Dim]) -> Window | None:
    """Read a Pooling layer's window over two spatial axes; None where it is unknown."""
    params = layer.params("pooling_param")
    if params.flag("global_pooling"):
        if None in sizes:
            return None
        kernel = tuple(size for size in sizes if size is not None)
    else:
        kernel = _per_axis(params, "kernel_size", "kernel", 2, None)
    return Window(
        kernel=kernel,
        stride=_per_axis(params, "stride", "stride", 2, 1),
        pad=_per_axis(params, "pad", "pad", 2, 0),
        dilation=(1, 1),
    )


def pool_size(layer: Layer, window: Window, sizes: Sequence[Dim]) -> tuple[Dim, ...]:
    """Return a Pooling's output sizes: rounded up, the last window clipped when padded."""
    params = layer.params("pooling_param")
    floor = not params.flag("ceil_mode", True) or params.text("round_mode", "CEIL") == "FLOOR"
    pooled: list[Dim] = []
    for axis, size in enumerate(sizes):
        if size is None:
            pooled.append(None)
            continue
        kernel, stride, pad = window.kernel[axis], window.stride[axis], window.pad[axis]
        steps = (size + 2 * pad - kernel) / stride
        count = (math.floor(steps) if floor else math.ceil(steps)) + 1
        # Caffe clips on both axes where either is padded: on the other it never bites.
        if any(window.pad) and (count - 1) * stride >= size + pad:
            count -= 1
        pooled.append(count)
    return tuple(pooled)


def upsample_size(layer: Layer, sizes: Sequence[Dim]) -> tuple[Dim, ...]:
    """Return an Upsample's output sizes: given, or a multiple of the input's."""
    params = layer.params("upsample_param")
    if params.has("upsample_h") or params.has("upsample_w"):
        return params.integer("upsample_h"), params.integer("upsample_w")
    scales = params.integers("scale") or [2]
    return tuple(None if size is None else size * scales[0] for size in sizes)


def interp_size(layer: Layer, sizes: Sequence[Dim]) -> tuple[Dim, ...]:
    """Return an Interp's output sizes: shrunk, then zoomed, or given."""
    params = layer.params("interp_param")
    pad = params.integer("pad_beg") + params.integer("pad_end")  # negative: a crop
    if params.has("height") and params.has("width"):
        return params.integer("height"), params.integer("width")
    shrink, zoom = params.integer("shrink_factor", 1), params.integer("zoom_factor", 1)
    found: list[Dim] = []
    for size in sizes:
        if size is None:
            found.append(None)
            continue
        shrunk = (size + pad - 1) // shrink + 1
        found.append(shrunk + (shrunk - 1) * (zoom - 1))
    return tuple(found)
