"""A net to try the tool on: MobileNet-SSD as it is before folding, with random weights.

The topology is the VOC detector of 21 classes at 300x300 that chuanqi305's MobileNet-SSD made
well known: MobileNet v1 (Howard et al., arXiv:1704.04861) up to conv13, four pairs of extra
convolutions, and SSD heads (Liu et al., arXiv:1512.02325) on six of the blobs. It is built here
from three tables, and stands for what people bring: 35 chains of Convolution, BatchNorm and
Scale, all in place, 13 of them depthwise, and 12 convolutions with no BatchNorm behind them.

The weights are random. They are scaled as training leaves them, so that activations neither die
nor explode, and a comparison of two nets' outputs means something.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Callable, Union

import numpy as np
import numpy.typing as npt

from caffe_fold import caffe_pb2
from caffe_fold.weights.wire import length_field

__all__ = ["write_demo"]

_FloatArray = npt.NDArray[np.float32]
_Shape = tuple[int, ...]
_Draw = Callable[[np.random.Generator, _Shape], _FloatArray]

_CLASSES = 21  # the 20 of Pascal VOC, and the background as class 0
_INPUT_SIZE = 300  # pixels

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

# A moving-average factor as solvers leave it: sum of 0.999^k over many iterations, nearly 1000.
# BatchNorm's mean and variance are stored multiplied by it.
_FACTOR = 999.98236


# ---- What a net is made of ----


class _Word(str):
    """A value that a prototxt writes without quotes: the name of an enum's value."""

    __slots__ = ()


_Scalar = Union[bool, int, float, str]
_Fields = Sequence[tuple[str, Union[_Scalar, "_Fields"]]]


@dataclass(frozen=True)
class _Blob:
    """A blob that is still to be drawn: its shape and the distribution of its values."""

    shape: _Shape
    draw: _Draw


@dataclass(frozen=True)
class _Layer:
    """One layer; ``comment`` goes above it in the prototxt, ``blobs`` into the caffemodel."""

    name: str
    type: str
    bottoms: tuple[str, ...]
    tops: tuple[str, ...]
    fields: _Fields = ()
    blobs: tuple[_Blob, ...] = ()
    comment: str = ""


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


# ---- How the weights are drawn ----


def _normal(rng: np.random.Generator, shape: _Shape, std: float) -> _FloatArray:
    """Normal values around 0, drawn as float64: NumPy's float32 stream differs by version."""
    return (rng.standard_normal(shape) * std).astype(np.float32)


def _he_normal(rng: np.random.Generator, shape: _Shape) -> _FloatArray:
    """He et al., arXiv:1502.01852: variance 2 / fan-in keeps the signal through a ReLU."""
    return _normal(rng, shape, math.sqrt(2.0 / math.prod(shape[1:])))


def _small_normal(rng: np.random.Generator, shape: _Shape) -> _FloatArray:
    """Biases and Scale's shifts."""
    return _normal(rng, shape, 0.2)


def _stored_mean(rng: np.random.Generator, shape: _Shape) -> _FloatArray:
    """BatchNorm's blob 0: the mean, times the factor."""
    return _normal(rng, shape, 0.3 * _FACTOR)


def _stored_variance(rng: np.random.Generator, shape: _Shape) -> _FloatArray:
    """BatchNorm's blob 1: the variance, times the factor.

    Its middle is about what these distributions bring about behind a convolution (tried: around
    1.0 the activations grow sevenfold on their way to the heads, and saturate the softmax).
    """
    return (rng.uniform(0.4, 2.8, shape) * _FACTOR).astype(np.float32)


def _stored_factor(rng: np.random.Generator, shape: _Shape) -> _FloatArray:
    """BatchNorm's blob 2."""
    return np.full(shape, _FACTOR, dtype=np.float32)


def _gain(rng: np.random.Generator, shape: _Shape) -> _FloatArray:
    """Scale's multiplier: about 1, and now and then negative, as trained nets have it."""
    magnitude = rng.uniform(0.5, 1.5, shape)
    sign = np.where(rng.uniform(size=shape) < 0.1, -1.0, 1.0)
    return (magnitude * sign).astype(np.float32)


# ---- The layers ----

# How the solver treated a blob. BatchNorm's three are statistics, which no gradient moves.
_FROZEN: _Fields = (("lr_mult", 0), ("decay_mult", 0))
_WEIGHT: _Fields = (("lr_mult", 1.0), ("decay_mult", 1.0))
_GAIN: _Fields = (("lr_mult", 1.0), ("decay_mult", 0.0))
_BIAS: _Fields = (("lr_mult", 2.0), ("decay_mult", 0.0))


def _convolution(
    name: str,
    bottom: str,
    shape: _Shape,
    *,
    stride: int = 1,
    group: int = 1,
    bias: bool = False,
    comment: str = "",
) -> _Layer:
    """A Convolution with weights of ``shape`` (N, C/group, k, k), padded to keep the size."""
    outputs, _, kernel, _ = shape
    param: list[tuple[str, _Scalar | _Fields]] = [("num_output", outputs)]
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
    blobs = [_Blob(shape, _he_normal)]
    specs: list[tuple[str, _Fields]] = [("param", _WEIGHT)]
    if bias:
        param.append(("bias_filler", (("type", "constant"), ("value", 0.0))))
        blobs.append(_Blob((outputs,), _small_normal))
        specs.append(("param", _BIAS))
    fields: _Fields = (*specs, ("convolution_param", param))
    return _Layer(name, "Convolution", (bottom,), (name,), fields, tuple(blobs), comment)


def _normalised(convolution: _Layer) -> Iterator[_Layer]:
    """``convolution``, and in place behind it BatchNorm (of default eps), Scale and ReLU."""
    name = convolution.name
    channels = (convolution.blobs[0].shape[0],)
    yield convolution
    yield _Layer(
        f"{name}/bn",
        "BatchNorm",
        (name,),
        (name,),
        (("param", _FROZEN),) * 3,
        (
            _Blob(channels, _stored_mean),
            _Blob(channels, _stored_variance),
            _Blob((1,), _stored_factor),
        ),
    )
    scale_param: _Fields = (
        ("filler", (("value", 1.0),)),
        ("bias_term", True),
        ("bias_filler", (("value", 0.0),)),
    )
    yield _Layer(
        f"{name}/scale",
        "Scale",
        (name,),
        (name,),
        (("param", _GAIN), ("param", _BIAS), ("scale_param", scale_param)),
        (_Blob(channels, _gain), _Blob(channels, _small_normal)),
    )
    yield _Layer(f"{name}/relu", "ReLU", (name,), (name,))


def _trunk() -> Iterator[_Layer]:
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


def _flattened(head: _Head, kind: str, values: int, comment: str = "") -> Iterator[_Layer]:
    """The ``values`` of every default box of ``head`` as one row, ordered by place and box."""
    name = f"{head.source}_mbox_{kind}"
    shape = (head.boxes * values, head.channels, 1, 1)
    yield _convolution(name, head.source, shape, bias=True, comment=comment)
    to_channels_last: _Fields = tuple(("order", axis) for axis in (0, 2, 3, 1))
    yield _Layer(
        f"{name}_perm",
        "Permute",
        (name,),
        (f"{name}_perm",),
        (("permute_param", to_channels_last),),
    )
    yield _flatten(f"{name}_flat", f"{name}_perm")


def _flatten(name: str, bottom: str) -> _Layer:
    return _Layer(name, "Flatten", (bottom,), (name,), (("flatten_param", (("axis", 1),)),))


def _prior_boxes(head: _Head) -> _Layer:
    """The default boxes of ``head``, laid out over the image."""
    name = f"{head.source}_mbox_priorbox"
    param: list[tuple[str, _Scalar]] = [("min_size", head.min_size)]
    if head.max_size is not None:
        param.append(("max_size", head.max_size))
    param += [("aspect_ratio", ratio) for ratio in head.aspect_ratios]
    param += [("flip", True), ("clip", False)]
    param += [("variance", variance) for variance in (0.1, 0.1, 0.2, 0.2)]
    param.append(("offset", 0.5))
    return _Layer(
        name, "PriorBox", (head.source, "data"), (name,), (("prior_box_param", tuple(param)),)
    )


def _heads() -> Iterator[_Layer]:
    """Box offsets, class scores and default boxes on each of the six blobs."""
    for head in _HEADS:
        comment = f"Head on {head.source}: {head.boxes} boxes a place"
        yield from _flattened(head, "loc", 4, comment)
        yield from _flattened(head, "conf", _CLASSES)
        yield _prior_boxes(head)


def _concat(name: str, suffix: str, axis: int, comment: str = "") -> _Layer:
    bottoms = tuple(f"{head.source}_{suffix}" for head in _HEADS)
    fields: _Fields = (("concat_param", (("axis", axis),)),)
    return _Layer(name, "Concat", bottoms, (name,), fields, comment=comment)


def _detections() -> Iterator[_Layer]:
    """All heads together, the softmax over the classes, and the boxes that remain."""
    yield _concat("mbox_loc", "mbox_loc_flat", 1, "All heads together")
    yield _concat("mbox_conf", "mbox_conf_flat", 1)
    yield _concat("mbox_priorbox", "mbox_priorbox", 2)
    by_box: _Fields = (("shape", (("dim", 0), ("dim", -1), ("dim", _CLASSES))),)
    name = "mbox_conf"
    yield _Layer(
        f"{name}_reshape", "Reshape", (name,), (f"{name}_reshape",), (("reshape_param", by_box),)
    )
    yield _Layer(
        f"{name}_softmax",
        "Softmax",
        (f"{name}_reshape",),
        (f"{name}_softmax",),
        (("softmax_param", (("axis", 2),)),),
    )
    yield _flatten(f"{name}_flatten", f"{name}_softmax")
    yield _detection_output()


def _detection_output() -> _Layer:
    """The layer that decodes the boxes and drops those that overlap."""
    param: _Fields = (
        ("num_classes", _CLASSES),
        ("share_location", True),
        ("background_label_id", 0),
        ("nms_param", (("nms_threshold", 0.45), ("top_k", 100))),
        ("code_type", _Word("CENTER_SIZE")),
        ("keep_top_k", 100),
        ("confidence_threshold", 0.25),
    )
    return _Layer(
        "detection_out",
        "DetectionOutput",
        ("mbox_loc", "mbox_conf_flatten", "mbox_priorbox"),
        ("detection_out",),
        (("include", (("phase", _Word("TEST")),)), ("detection_output_param", param)),
        comment="One row a detection: image, class, confidence, box",
    )


def _layers() -> Iterator[_Layer]:
    """The whole net, in the order of its files."""
    yield from _trunk()
    yield from _heads()
    yield from _detections()


# ---- The prototxt ----

_LINE = 80  # a message of scalars alone that is no longer than this stays on one line


def _scalar_text(value: _Scalar) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str) and not isinstance(value, _Word):
        return f'"{value}"'
    return str(value)


def _field_lines(name: str, value: _Scalar | _Fields, indent: str) -> Iterator[str]:
    """One field as lines of prototxt, each with its indent."""
    if isinstance(value, (bool, int, float, str)):
        yield f"{indent}{name}: {_scalar_text(value)}"
        return
    scalars = [f"{key}: {_scalar_text(v)}" for key, v in value if isinstance(v, (int, float, str))]
    line = f"{indent}{name} {{ {' '.join(scalars)} }}"
    if len(scalars) == len(value) and len(line) <= _LINE:
        yield line
        return
    yield f"{indent}{name} {{"
    for key, inner in value:
        yield from _field_lines(key, inner, indent + "  ")
    yield f"{indent}}}"


def _layer_text(layer: _Layer) -> str:
    """One layer with the comment above it."""
    fields: _Fields = (
        ("name", layer.name),
        ("type", layer.type),
        *(("bottom", bottom) for bottom in layer.bottoms),
        *(("top", top) for top in layer.tops),
        *layer.fields,
    )
    comment = [f"\n# {layer.comment}"] if layer.comment else []
    body = (line for key, value in fields for line in _field_lines(key, value, "  "))
    return "\n".join([*comment, "layer {", *body, "}", ""])


def _prototxt() -> Iterator[str]:
    """The prototxt, piece by piece."""
    yield (
        "# MobileNet-SSD for the 20 classes of Pascal VOC, before its BatchNorm is folded.\n"
        "# The input is BGR, as (pixel - 127.5) * 0.007843.\n"
        'name: "MobileNet-SSD"\n'
        'input: "data"\n'
        f"input_shape {{ dim: 1 dim: 3 dim: {_INPUT_SIZE} dim: {_INPUT_SIZE} }}\n"
    )
    for layer in _layers():
        yield _layer_text(layer)


# ---- The caffemodel ----


def _blob_wire(values: _FloatArray) -> bytes:
    """``values`` as the field ``blobs`` of a LayerParameter.

    The floats are laid down as they are in memory, which is what a packed field holds, since
    ``data.extend`` takes 0.4 s for each million of them.
    """
    data = values.astype("<f4", copy=False).tobytes()
    shape = caffe_pb2.BlobProto(shape=caffe_pb2.BlobShape(dim=values.shape))
    blob = length_field(caffe_pb2.BlobProto.DATA_FIELD_NUMBER, data) + shape.SerializeToString()
    return length_field(caffe_pb2.LayerParameter.BLOBS_FIELD_NUMBER, blob)


def _layer_wire(layer: _Layer, rng: np.random.Generator) -> bytes:
    """``layer``, its blobs drawn from ``rng``, as the field ``layer`` of a NetParameter."""
    head = caffe_pb2.LayerParameter(
        name=layer.name, type=layer.type, bottom=layer.bottoms, top=layer.tops
    )
    blobs = (_blob_wire(blob.draw(rng, blob.shape)) for blob in layer.blobs)
    body = b"".join((head.SerializeToString(), *blobs))
    return length_field(caffe_pb2.NetParameter.LAYER_FIELD_NUMBER, body)


def _caffemodel(rng: np.random.Generator) -> Iterator[bytes]:
    """The caffemodel, piece by piece: never more than one layer is in memory."""
    yield caffe_pb2.NetParameter(name="MobileNet-SSD").SerializeToString()
    for layer in _layers():
        yield _layer_wire(layer, rng)


def write_demo(folder: Path, seed: int = 0) -> tuple[Path, Path]:
    """Writes MobileNet-SSD with random weights, ``mobilenet_ssd.prototxt`` and ``.caffemodel``.

    :param folder: where to; it is made if it is not there. Files of these names are replaced.
    :param seed: of the random weights, 23 MB of them; the same seed gives the same weights.
    :returns: the prototxt's path and the caffemodel's.
    :raises OSError: if the folder cannot be made or written to.
    """
    folder.mkdir(parents=True, exist_ok=True)
    prototxt = folder / "mobilenet_ssd.prototxt"
    caffemodel = folder / "mobilenet_ssd.caffemodel"
    with prototxt.open("w", encoding="utf-8", newline="\n") as text:
        text.writelines(_prototxt())
    with caffemodel.open("wb") as weights:
        weights.writelines(_caffemodel(np.random.default_rng(seed)))
    return prototxt, caffemodel
