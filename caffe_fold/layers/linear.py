"""Linear layers ``y = W x + b``, and where an affine map goes in their weights.

Behind the layer, ``a * (W x + b) + c`` per output channel::

    W' = a * W          b' = a * b + c

and before it, ``W (a * x + c) + b`` per input channel::

    W' = W * a          b' = b + W c

The types differ only in which weight belongs to which output and input channel.
That is said once for each, as a Layout: the weights in file order are a matrix
of ``rows`` by ``cols``; row r adds the product of its weights with input vector
``inputs[r]`` to output channel ``outputs[r]``. Shapes: Convolution (N, C/g, k...),
Deconvolution (C, N/g, k...) (BaseConvolutionLayer::LayerSetUp, base_conv_layer.cpp),
InnerProduct (N, K) or transposed (K, N) (InnerProductLayer::LayerSetUp).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, Callable

import numpy as np
from numpy.typing import NDArray

from caffe_fold import caffe_pb2
from caffe_fold.layers.affine_map import Dims, Refused, channels_of
from caffe_fold.named import NamedTuple

__all__ = ["LINEAR", "Layout", "LinearType", "fitted"]

Array = NDArray[np.float64]
Indices = NDArray[np.intp]
Shape = tuple[int, ...]


class Layout(NamedTuple):
    """Which weight meets which channels.

    ``outputs`` is N, ``inputs`` C (for an InnerProduct K, the columns, in any number of
    channels), ``group`` and ``taps`` the kernel's size. ``kind`` is "convolution",
    "deconvolution", "inner" or "transposed". ``shift`` is empty, or why a shift before
    the layer is not a bias behind it.
    """

    kind: str
    outputs: int
    inputs: int
    group: int
    taps: int
    shift: str

    @property
    def rows(self) -> int:
        if self.kind == "deconvolution":
            return self.inputs * (self.outputs // self.group)
        return self.inputs if self.kind == "transposed" else self.outputs

    @property
    def cols(self) -> int:
        if self.kind == "convolution":
            return self.inputs // self.group * self.taps
        if self.kind == "deconvolution":
            return self.taps
        return self.outputs if self.kind == "transposed" else self.inputs

    def output_of(self, rows: Indices) -> Indices:
        """The output channel of each row (not for "transposed", where it is the column)."""
        if self.kind != "deconvolution":
            return rows
        outputs, inputs = self.outputs // self.group, self.inputs // self.group
        return rows // outputs // inputs * outputs + rows % outputs

    def input_of(self, rows: Indices) -> Indices:
        """The input vector of each row, its index into ``spread`` (for "convolution" and
        "deconvolution" alone: "inner" has one input vector, "transposed" one a row)."""
        return rows // (self.outputs // self.group)

    def add_per_output(self, sums: Array, block: Array, row: int, col: int) -> None:
        """Add the numbers of a block, which begins at a row and column, to those of their
        output channels, (N,)."""
        if self.kind == "transposed":
            sums[col : col + block.shape[1]] += block.sum(axis=0)
        else:
            rows = np.arange(row, row + block.shape[0])
            np.add.at(sums, self.output_of(rows), block.sum(axis=1))

    def spread(self, channels: Array) -> Array:
        """One number an input channel, (C,) or (1,), as the input vectors (V, cols).

        For "transposed" it is (K, 1), one number a row. In an InnerProduct each
        channel covers K/C columns.
        """
        if self.kind in ("inner", "transposed"):
            values = np.repeat(channels, self.inputs // channels.size)
            return values[None, :] if self.kind == "inner" else values[:, None]
        values = np.broadcast_to(channels, (self.inputs,))
        return np.repeat(values, self.taps).reshape(-1, self.cols)

    def takes(self, channels: int | None) -> bool:
        """Whether a map of that many channels fits the layer's input."""
        if channels is None:
            return True
        if self.kind in ("inner", "transposed"):
            return self.inputs % channels == 0
        return channels == self.inputs


class LinearType(NamedTuple):
    """One type of linear layer.

    ``parameter`` and ``message`` are its hyper-parameters in the prototxt, which have a
    ``num_output`` and a ``bias_term``; ``weight_rank`` is how many axes its weights have,
    or None if as many as its bottom. ``read`` takes the message, the weights' shape and
    the bottom's rank (None where not known), and raises Refused where they do not fit each
    other. ``weight`` gives the weights' shape, and ``top`` the top's, that the message and
    the bottom's shape imply. ``flattens`` is whether it takes the numbers of all axes from
    ``axis`` on as one row, as an InnerProduct does.

    ``standard`` is the type of BVLC Caffe that computes the same, where this is another,
    and ``added`` the text that its message needs then.
    """

    parameter: str
    message: type[Any]
    weight_rank: int | None
    read: Callable[[Any, tuple[int, ...], int | None], Layout]
    weight: Callable[[Any, Dims], Dims]
    top: Callable[[Any, Shape], Shape]
    flattens: bool = False
    standard: str = ""
    added: Callable[[Any], str] = lambda message: ""

    def blob_shapes(self, message: Any, bottoms: tuple[Dims, ...]) -> tuple[Dims, ...]:
        """The shapes of a layer's blobs by its prototxt, for bottoms of these shapes."""
        weight = self.weight(message, bottoms[0] if bottoms else ())
        return (weight, (message.num_output,)) if message.bias_term else (weight,)


def fitted(shape: tuple[int, ...], legacy: bool, rank: int | None) -> tuple[int, ...]:
    """A legacy shape without the leading ones that right-align it (Blob::ShapeEquals)."""
    if not legacy or rank is None:
        return shape
    lead = len(shape) - rank
    return shape[lead:] if lead > 0 and all(d == 1 for d in shape[:lead]) else shape


def _axis(axis: int, rank: int | None) -> None:
    """The axis must be 1, or the outputs do not lie on the channel axis."""
    if axis < 0 and rank is None:
        raise Refused(
            "unknown-rank",
            f"its 'axis: {axis}' counts from the end and the rank of its bottom is not known",
        )
    if axis + (rank or 0) * (axis < 0) != 1:
        raise Refused("axis", f"its 'axis: {axis}' is not channel axis 1")


def _kernel(message: Any, spatial: int) -> tuple[int, ...] | None:
    """The kernel that the prototxt asks for, or None where it does not say."""
    if message.HasField("kernel_h") or message.HasField("kernel_w"):
        return (message.kernel_h, message.kernel_w)
    sizes = tuple(message.kernel_size)
    return sizes * spatial if len(sizes) == 1 else (sizes or None)


def _is_padded(message: Any) -> bool:
    return any(message.pad) or message.pad_h > 0 or message.pad_w > 0


def _convolution_shape(
    message: Any, shape: tuple[int, ...], rank: int | None, outputs: int
) -> tuple[int, ...]:
    """Check the weights' shape against the prototxt; gives the kernel."""
    _axis(message.axis, rank)
    if len(shape) < 2 or min(shape) < 1:
        raise Refused("blob-shape", f"its weights have the shape {shape}")
    if message.HasField("num_output") and message.num_output != outputs:
        raise Refused(
            "blob-shape",
            f"its prototxt says 'num_output: {message.num_output}' and its weights of shape "
            f"{shape} have {outputs} outputs",
        )
    kernel = _kernel(message, len(shape) - 2)
    if kernel is not None and kernel != shape[2:]:
        raise Refused(
            "blob-shape",
            f"its prototxt says a kernel of {kernel} and its weights have the shape {shape}",
        )
    return shape[2:]


def _convolution(message: Any, shape: tuple[int, ...], rank: int | None) -> Layout:
    return _grouped_convolution(message, shape, rank, message.group)


def _depthwise(message: Any, shape: tuple[int, ...], rank: int | None) -> Layout:
    """Depthwise types often leave ``group`` out: each output has its own channel."""
    group = message.group
    if not message.HasField("group") and len(shape) > 1 and shape[1] == 1:
        group = shape[0]
    return _grouped_convolution(message, shape, rank, group)


def _grouped_convolution(
    message: Any, shape: tuple[int, ...], rank: int | None, group: int
) -> Layout:
    outputs = shape[0] if shape else 0
    kernel = _convolution_shape(message, shape, rank, outputs)
    _group(group, outputs, shape)
    shift = "it pads its input with zeros" if _is_padded(message) else ""
    taps = math.prod(kernel)
    return Layout("convolution", outputs, shape[1] * group, group, taps, shift)


def _group(group: int, channels: int, shape: tuple[int, ...]) -> None:
    if group < 1 or channels % group:
        raise Refused("blob-shape", f"'group: {group}' does not divide its weights' {shape}")


def _deconvolution(message: Any, shape: tuple[int, ...], rank: int | None) -> Layout:
    group = message.group
    outputs = shape[1] * group if len(shape) > 1 else 0
    kernel = _convolution_shape(message, shape, rank, outputs)
    _group(group, shape[0], shape)
    shift = "a Deconvolution does not add the same number of taps everywhere"
    return Layout("deconvolution", outputs, shape[0], group, math.prod(kernel), shift)


def _inner_product(message: Any, shape: tuple[int, ...], rank: int | None) -> Layout:
    _axis(message.axis, rank)
    if len(shape) != 2 or min(shape) < 1:
        raise Refused("blob-shape", f"its weights have the shape {shape}, not two axes")
    outputs, inputs = shape[::-1] if message.transpose else shape
    if message.HasField("num_output") and message.num_output != outputs:
        raise Refused(
            "blob-shape",
            f"its prototxt says 'num_output: {message.num_output}' and its weights of shape "
            f"{shape} have {outputs} outputs",
        )
    return Layout("transposed" if message.transpose else "inner", outputs, inputs, 1, 1, "")


# ---- The shapes that a prototxt implies ----


def _convolution_weight(message: Any, bottom: Dims) -> Dims:
    inputs = channels_of(bottom)
    of_group = None if inputs is None else inputs // max(message.group, 1)
    return (message.num_output, of_group, *_told_kernel(message, bottom))


def _depthwise_weight(message: Any, bottom: Dims) -> Dims:
    if message.HasField("group"):
        return _convolution_weight(message, bottom)
    return (message.num_output, 1, *_told_kernel(message, bottom))


def _deconvolution_weight(message: Any, bottom: Dims) -> Dims:
    of_group = message.num_output // max(message.group, 1)
    return (channels_of(bottom), of_group, *_told_kernel(message, bottom))


def _inner_product_weight(message: Any, bottom: Dims) -> Dims:
    known = [dim for dim in bottom[1:] if dim is not None]
    inputs = math.prod(known) if known and len(known) == len(bottom) - 1 else None
    return (inputs, message.num_output) if message.transpose else (message.num_output, inputs)


def _told_kernel(message: Any, bottom: Dims) -> Dims:
    spatial = max(len(bottom) - 2, 1) if bottom else 2
    return _kernel(message, spatial) or (None,) * spatial


def _convolved(message: Any, bottom: Shape) -> Shape:
    windows = _windows(message, bottom)
    sizes = [(size + 2 * pad - span) // stride + 1 for size, span, stride, pad in windows]
    return (*bottom[:1], message.num_output, *sizes)


def _deconvolved(message: Any, bottom: Shape) -> Shape:
    windows = _windows(message, bottom)
    sizes = [stride * (size - 1) + span - 2 * pad for size, span, stride, pad in windows]
    return (*bottom[:1], message.num_output, *sizes)


def _windows(message: Any, bottom: Shape) -> Iterator[tuple[int, int, int, int]]:
    """Of each axis behind the channels its size, how much of it the kernel spans, the stride
    and the padding; a kernel that is not given is 1 (BaseConvolutionLayer::LayerSetUp)."""
    axes = len(bottom) - 2
    kernel = _kernel(message, axes) or (1,) * axes
    dilations = _spread(message.dilation, axes, 1)
    spans = [dilation * (size - 1) + 1 for dilation, size in zip(dilations, kernel)]
    strides, pads = _sides(message, "stride"), _sides(message, "pad")
    return zip(bottom[2:], spans, _spread(strides, axes, 1), _spread(pads, axes, 0))


def _sides(message: Any, name: str) -> Sequence[int]:
    """``pad_h`` and ``pad_w``, or else ``pad``; and ``stride`` likewise."""
    sides = (f"{name}_h", f"{name}_w")
    if any(map(message.HasField, sides)):
        return [getattr(message, side) for side in sides]
    found: Sequence[int] = getattr(message, name)
    return found


def _spread(given: Sequence[int], axes: int, default: int) -> Sequence[int]:
    """One number an axis, where one, or all, or none are given."""
    return given if len(given) == axes else [*given, default][:1] * axes


def _flattened(message: Any, bottom: Shape) -> Shape:
    return (*bottom[: message.axis], message.num_output)


_CONVOLUTION = ("convolution_param", caffe_pb2.ConvolutionParameter)
_DEPTHWISE = LinearType(
    *_CONVOLUTION,
    None,
    _depthwise,
    _depthwise_weight,
    _convolved,
    standard="Convolution",
    added=lambda message: "" if message.HasField("group") else f"group: {message.num_output}",
)

LINEAR: dict[str, LinearType] = {
    "Convolution": LinearType(*_CONVOLUTION, None, _convolution, _convolution_weight, _convolved),
    "DepthwiseConvolution": _DEPTHWISE,
    "ConvolutionDepthwise": _DEPTHWISE,
    "Deconvolution": LinearType(
        *_CONVOLUTION, None, _deconvolution, _deconvolution_weight, _deconvolved
    ),
    "InnerProduct": LinearType(
        "inner_product_param",
        caffe_pb2.InnerProductParameter,
        2,
        _inner_product,
        _inner_product_weight,
        _flattened,
        flattens=True,
    ),
}
