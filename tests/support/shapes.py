"""Shape inference over a net's text, as far as it goes.

Where a size cannot be known it is None; where even the number of axes cannot
be known, the shape is None. A layer type that is not known here passes on the
batch and the channels of its first bottom, which is what most such layers do.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Callable, Optional

from .blobspecs import Dims, product
from .geometry import (
    Dim,
    canonical,
    conv_axis,
    conv_window,
    interp_size,
    pool_size,
    pool_window,
    upsample_size,
)
from .layers_shape import axis_of, permuted, reshaped, slice_sizes
from .netdef import Layer, NetDef, NetError, input_shapes
from .prototext import ProtoTextError

Tops = list[Optional[Dims]]

# The layers whose top has the shape of the first bottom.
SAME = frozenset(
    [
        "AbsVal",
        "BatchNorm",
        "Bias",
        "BN",
        "BNLL",
        "Clip",
        "CuDNNBatchNorm",
        "Dropout",
        "ELU",
        "Eltwise",
        "Exp",
        "Log",
        "LRN",
        "MVN",
        "Normalize",
        "Power",
        "PReLU",
        "ReLU",
        "ReLU6",
        "Scale",
        "ShuffleChannel",
        "Sigmoid",
        "Softmax",
        "Split",
        "TanH",
        "Threshold",
        "InstanceNorm",
        "Swish",
        "HardSwish",
        "HardSigmoid",
        "Mish",
    ]
)


def infer(net: NetDef, default_size: int = 224) -> tuple[list[list[Dims]], list[Tops]]:
    """Return each layer's bottoms' shapes and each layer's tops' shapes.

    A data layer's size is its crop_size, or else ``default_size``, with three
    channels; a bottom that nothing makes counts as a data layer's top, and one
    whose shape is unknown as (1, None, None, None).
    """
    size = _crop_size(net, default_size)
    known: dict[str, Dims | None] = {}
    all_bottoms: list[list[Dims]] = []
    all_tops: list[Tops] = []
    for layer in net.layers:
        data: Dims = (1, 3, size, size)
        bottoms = [known.get(name, data) or (1, None, None, None) for name in layer.bottoms]
        tops = layer_tops(layer, bottoms, size)
        known.update(zip(layer.tops, tops))
        all_bottoms.append(bottoms)
        all_tops.append(tops)
    return all_bottoms, all_tops


def _crop_size(net: NetDef, default: int) -> int:
    for layer in net.layers:
        for params in ("transform_param", "data_param", "image_data_param"):
            size = layer.params(params).integers("crop_size")
            if size and size[0]:
                return size[0]
    return default


def layer_tops(layer: Layer, bottoms: Sequence[Dims], size: int = 224) -> Tops:
    """Return the shapes of a layer's tops."""
    if not bottoms:
        return _source_tops(layer, size)
    count = len(layer.tops)
    if layer.type in SAME:
        return [bottoms[0]] * count
    try:
        if layer.type in _MANY:
            return _MANY[layer.type](layer, list(bottoms))
        if layer.type in _ONE:
            return [_ONE[layer.type](layer, list(bottoms))] * count
    except (NetError, ProtoTextError, IndexError):
        return [None] * count  # odd sizes: this inference is there to help, not to judge
    first = bottoms[0]
    return [(*first[:2], *([None] * (len(first) - 2)))] * count


def _source_tops(layer: Layer, size: int) -> Tops:
    if layer.type == "Input":
        shapes = input_shapes(layer)
        return [*shapes] if shapes else [(1, 3, size, size)] * len(layer.tops)
    tops: Tops = [(1, 3, size, size), (1,)]
    return [tops[min(index, 1)] for index in range(len(layer.tops))]


def _conv(layer: Layer, bottoms: list[Dims]) -> Dims | None:
    first = bottoms[0]
    axis = conv_axis(layer, len(first))
    window = conv_window(layer, len(first) - axis - 1)
    sized = window.deconv_size if layer.type == "Deconvolution" else window.conv_size
    count = layer.params("convolution_param").integer("num_output")
    return (*first[:axis], count, *sized(first[axis + 1 :]))


def _inner_product(layer: Layer, bottoms: list[Dims]) -> Dims | None:
    params = layer.params("inner_product_param")
    axis = canonical(params.integer("axis", 1), len(bottoms[0]))
    return (*bottoms[0][:axis], params.integer("num_output"))


def _pooling(layer: Layer, bottoms: list[Dims]) -> Dims | None:
    first = bottoms[0]
    if layer.params("pooling_param").flag("global_pooling"):
        return (*first[:2], 1, 1)
    window = pool_window(layer, first[2:])
    return (*first[:2], *pool_size(layer, window, first[2:])) if window else None


def _concat(layer: Layer, bottoms: list[Dims]) -> Dims | None:
    axis = canonical(axis_of(layer.params("concat_param"), "concat_dim"), len(bottoms[0]))
    total: Dim = 0
    for bottom in bottoms:
        size = bottom[axis]
        total = None if total is None or size is None else total + size
    # A size that one bottom lacks, another may know.
    merged = [
        next((bottom[place] for bottom in bottoms if bottom[place] is not None), None)
        for place in range(len(bottoms[0]))
    ]
    return (*merged[:axis], total, *merged[axis + 1 :])


def _slice(layer: Layer, bottoms: list[Dims]) -> Tops:
    params, first = layer.params("slice_param"), bottoms[0]
    axis = canonical(axis_of(params, "slice_dim"), len(first))
    total = first[axis]
    if total is None:
        return [(*first[:axis], None, *first[axis + 1 :])] * len(layer.tops)
    sizes = slice_sizes(params, total, len(layer.tops))
    return [(*first[:axis], size, *first[axis + 1 :]) for size in sizes]


def _flatten(layer: Layer, bottoms: list[Dims]) -> Dims | None:
    params, first = layer.params("flatten_param"), bottoms[0]
    start = canonical(params.integer("axis", 1), len(first))
    end = canonical(params.integer("end_axis", -1), len(first))
    return (*first[:start], product(first[start : end + 1]), *first[end + 1 :])


def _reshape(layer: Layer, bottoms: list[Dims]) -> Dims | None:
    params, first = layer.params("reshape_param"), bottoms[0]
    if None not in first:
        return reshaped(params, tuple(int(size or 0) for size in first))
    dims = params.message("shape").integers("dim")
    return tuple(_reshape_dim(dim, first, place) for place, dim in enumerate(dims))


def _reshape_dim(dim: int, first: Dims, place: int) -> Dim:
    if dim == 0:
        return first[place] if place < len(first) else None
    return None if dim < 0 else dim


def _permute(layer: Layer, bottoms: list[Dims]) -> Dims | None:
    order = permuted(layer.params("permute_param"), len(bottoms[0]))
    return tuple(bottoms[0][axis] for axis in order)


def _axpy(_layer: Layer, bottoms: list[Dims]) -> Dims | None:
    return bottoms[1]


def _reduction(layer: Layer, bottoms: list[Dims]) -> Dims | None:
    axis = canonical(layer.params("reduction_param").integer("axis", 0), len(bottoms[0]))
    return bottoms[0][:axis]


def _upsample(layer: Layer, bottoms: list[Dims]) -> Dims | None:
    return (*bottoms[0][:2], *upsample_size(layer, bottoms[0][2:]))


def _interp(layer: Layer, bottoms: list[Dims]) -> Dims | None:
    return (*bottoms[0][:2], *interp_size(layer, bottoms[0][2:]))


_ONE: dict[str, Callable[[Layer, list[Dims]], Dims | None]] = {
    "Convolution": _conv,
    "DepthwiseConvolution": _conv,
    "ConvolutionDepthwise": _conv,
    "Deconvolution": _conv,
    "InnerProduct": _inner_product,
    "Pooling": _pooling,
    "Concat": _concat,
    "Flatten": _flatten,
    "Reshape": _reshape,
    "Permute": _permute,
    "Axpy": _axpy,
    "Reduction": _reduction,
    "Upsample": _upsample,
    "Interp": _interp,
}

_MANY: dict[str, Callable[[Layer, list[Dims]], Tops]] = {"Slice": _slice}
