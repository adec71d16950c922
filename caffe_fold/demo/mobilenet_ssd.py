"""MobileNet-SSD as it is before folding.

The topology is the VOC detector of 21 classes at 300x300 that chuanqi305's MobileNet-SSD made
well known: MobileNet v1 (Howard et al., arXiv:1704.04861) up to conv13, four pairs of extra
convolutions, and SSD heads (Liu et al., arXiv:1512.02325) on six of the blobs. It is built here
from three tables, and stands for what people bring: 35 chains of Convolution, BatchNorm and
Scale, all in place, 13 of them depthwise, and 12 convolutions with no BatchNorm behind them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from caffe_fold.demo.layers import Blob, Fields, Layer, Scalar, Shape, Word
from caffe_fold.demo.values import (
    gain,
    he_normal,
    small_normal,
    stored_factor,
    stored_mean,
    stored_variance,
)

__all__ = ["INPUT_SIZE", "layers"]

_CLASSES = 21  # the 20 of Pascal VOC, and the background as class 0
INPUT_SIZE = 300  # pixels

# (outputs, stride) of conv1 to conv13, each a depthwise 3x3 of that stride and then a 1x1.
_SEPARABLE = (
    (64, 1),
    (128, 2),
    (128, 1),
    (256, 2),
    (256, 1),
    (512, 2),
    (512, 1),
    (512, 1),
    (512, 1),
    (512, 1),
    (512, 1),
    (1024, 2),
    (1024, 1),
)

# (number, outputs of the 1x1 that narrows, outputs of the 3x3 of stride 2).
_EXTRA = ((14, 256, 512), (15, 128, 256), (16, 128, 256), (17, 64, 128))


@dataclass(frozen=True)
class _Head:
    """An SSD head: default boxes of ``min_size`` to ``max_size`` pixels on the blob ``source``."""

    source: str
    channels: int
    min_size: float
    max_size: float | None
    aspect_ratios: tuple[float, ...]

    @property
    def boxes(self) -> int:
        """Default boxes at a place: a square for each size, and each ratio both ways up."""
        return 1 + (self.max_size is not None) + 2 * len(self.aspect_ratios)


_HEADS = (
    _Head("conv11", 512, 60.0, None, (2.0,)),
    _Head("conv13", 1024, 105.0, 150.0, (2.0, 3.0)),
    _Head("conv14_2", 512, 150.0, 195.0, (2.0, 3.0)),
    _Head("conv15_2", 256, 195.0, 240.0, (2.0, 3.0)),
    _Head("conv16_2", 256, 240.0, 285.0, (2.0, 3.0)),
    _Head("conv17_2", 128, 285.0, 300.0, (2.0, 3.0)),
)


# How the solver treated a blob. BatchNorm's three are statistics, which no gradient moves.
_FROZEN: Fields = (("lr_mult", 0), ("decay_mult", 0))
_WEIGHT: Fields = (("lr_mult", 1.0), ("decay_mult", 1.0))
_GAIN: Fields = (("lr_mult", 1.0), ("decay_mult", 0.0))
_BIAS: Fields = (("lr_mult", 2.0), ("decay_mult", 0.0))


def _convolution(
    name: str,
    bottom: str,
    shape: Shape,
    *,
    stride: int = 1,
    group: int = 1,
    bias: bool = False,
    comment: str = "",
) -> Layer:
    """A Convolution with weights of ``shape`` (N, C/group, k, k), padded to keep the size."""
    outputs, _, kernel, _ = shape
    param: list[tuple[str, Scalar | Fields]] = [("num_output", outputs)]
    if not bias:
        param.append(("bias_term", False))
    if kernel > 1:
        param.append(("pad", kernel // 2))
    param.append(("kernel_size", kernel))
    if stride > 1:
        param.append(("stride", stride))
    if group > 1:
        param.append(("group", group))
    param.append(("weight_filler", (("type", "msra"),)))
    blobs = [Blob(shape, he_normal)]
    specs: list[tuple[str, Fields]] = [("param", _WEIGHT)]
    if bias:
        param.append(("bias_filler", (("type", "constant"), ("value", 0.0))))
        blobs.append(Blob((outputs,), small_normal))
        specs.append(("param", _BIAS))
    fields: Fields = (*specs, ("convolution_param", param))
    return Layer(name, "Convolution", (bottom,), (name,), fields, tuple(blobs), comment)


def _normalised(convolution: Layer) -> Iterator[Layer]:
    """``convolution``, and in place behind it BatchNorm (of default eps), Scale and ReLU."""
    name = convolution.name
    channels = (convolution.blobs[0].shape[0],)
    yield convolution
    yield Layer(
        f"{name}/bn",
        "BatchNorm",
        (name,),
        (name,),
        (("param", _FROZEN),) * 3,
        (
            Blob(channels, stored_mean),
            Blob(channels, stored_variance),
            Blob((1,), stored_factor),
        ),
    )
    scale_param: Fields = (
        ("filler", (("value", 1.0),)),
        ("bias_term", True),
        ("bias_filler", (("value", 0.0),)),
    )
    yield Layer(
        f"{name}/scale",
        "Scale",
        (name,),
        (name,),
        (("param", _GAIN), ("param", _BIAS), ("scale_param", scale_param)),
        (Blob(channels, gain), Blob(channels, small_normal)),
    )
    yield Layer(f"{name}/relu", "ReLU", (name,), (name,))


def _trunk() -> Iterator[Layer]:
    """From the image to conv17_2."""
    bottom, channels = "conv0", 32
    yield from _normalised(
        _convolution(
            bottom, "data", (channels, 3, 3, 3), stride=2, comment="MobileNet v1, from the image"
        )
    )
    for number, (outputs, stride) in enumerate(_SEPARABLE, start=1):
        name = f"conv{number}"
        comment = f"{name}: a depthwise 3x3, then a 1x1 from {channels} to {outputs} channels"
        depthwise = _convolution(
            f"{name}/dw",
            bottom,
            (channels, 1, 3, 3),
            stride=stride,
            group=channels,
            comment=comment,
        )
        yield from _normalised(depthwise)
        yield from _normalised(_convolution(name, depthwise.name, (outputs, channels, 1, 1)))
        bottom, channels = name, outputs
    for number, narrow, outputs in _EXTRA:
        first, second = f"conv{number}_1", f"conv{number}_2"
        comment = f"conv{number}: half the size, for larger objects"
        yield from _normalised(
            _convolution(first, bottom, (narrow, channels, 1, 1), comment=comment)
        )
        yield from _normalised(_convolution(second, first, (outputs, narrow, 3, 3), stride=2))
        bottom, channels = second, outputs


def _flattened(head: _Head, kind: str, values: int, comment: str = "") -> Iterator[Layer]:
    """The ``values`` of every default box of ``head`` as one row, ordered by place and box."""
    name = f"{head.source}_mbox_{kind}"
    shape = (head.boxes * values, head.channels, 1, 1)
    yield _convolution(name, head.source, shape, bias=True, comment=comment)
    to_channels_last: Fields = tuple(("order", axis) for axis in (0, 2, 3, 1))
    yield Layer(
        f"{name}_perm",
        "Permute",
        (name,),
        (f"{name}_perm",),
        (("permute_param", to_channels_last),),
    )
    yield _flatten(f"{name}_flat", f"{name}_perm")


def _flatten(name: str, bottom: str) -> Layer:
    return Layer(name, "Flatten", (bottom,), (name,), (("flatten_param", (("axis", 1),)),))


def _prior_boxes(head: _Head) -> Layer:
    """The default boxes of ``head``, laid out over the image."""
    name = f"{head.source}_mbox_priorbox"
    param: list[tuple[str, Scalar]] = [("min_size", head.min_size)]
    if head.max_size is not None:
        param.append(("max_size", head.max_size))
    param += [("aspect_ratio", ratio) for ratio in head.aspect_ratios]
    param += [("flip", True), ("clip", False)]
    param += [("variance", variance) for variance in (0.1, 0.1, 0.2, 0.2)]
    param.append(("offset", 0.5))
    return Layer(
        name, "PriorBox", (head.source, "data"), (name,), (("prior_box_param", tuple(param)),)
    )


def _heads() -> Iterator[Layer]:
    """Box offsets, class scores and default boxes on each of the six blobs."""
    for head in _HEADS:
        comment = f"Head on {head.source}: {head.boxes} boxes a place"
        yield from _flattened(head, "loc", 4, comment)
        yield from _flattened(head, "conf", _CLASSES)
        yield _prior_boxes(head)


def _concat(name: str, suffix: str, axis: int, comment: str = "") -> Layer:
    bottoms = tuple(f"{head.source}_{suffix}" for head in _HEADS)
    fields: Fields = (("concat_param", (("axis", axis),)),)
    return Layer(name, "Concat", bottoms, (name,), fields, comment=comment)


def _detections() -> Iterator[Layer]:
    """All heads together, the softmax over the classes, and the boxes that remain."""
    yield _concat("mbox_loc", "mbox_loc_flat", 1, "All heads together")
    yield _concat("mbox_conf", "mbox_conf_flat", 1)
    yield _concat("mbox_priorbox", "mbox_priorbox", 2)
    by_box: Fields = (("shape", (("dim", 0), ("dim", -1), ("dim", _CLASSES))),)
    name = "mbox_conf"
    yield Layer(
        f"{name}_reshape", "Reshape", (name,), (f"{name}_reshape",), (("reshape_param", by_box),)
    )
    yield Layer(
        f"{name}_softmax",
        "Softmax",
        (f"{name}_reshape",),
        (f"{name}_softmax",),
        (("softmax_param", (("axis", 2),)),),
    )
    yield _flatten(f"{name}_flatten", f"{name}_softmax")
    yield _detection_output()


def _detection_output() -> Layer:
    """The layer that decodes the boxes and drops those that overlap."""
    param: Fields = (
        ("num_classes", _CLASSES),
        ("share_location", True),
        ("background_label_id", 0),
        ("nms_param", (("nms_threshold", 0.45), ("top_k", 100))),
        ("code_type", Word("CENTER_SIZE")),
        ("keep_top_k", 100),
        ("confidence_threshold", 0.25),
    )
    return Layer(
        "detection_out",
        "DetectionOutput",
        ("mbox_loc", "mbox_conf_flatten", "mbox_priorbox"),
        ("detection_out",),
        (("include", (("phase", Word("TEST")),)), ("detection_output_param", param)),
        comment="One row a detection: image, class, confidence, box",
    )


def layers() -> Iterator[Layer]:
    """The whole net, in the order of its files."""
    yield from _trunk()
    yield from _heads()
    yield from _detections()
