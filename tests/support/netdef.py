"""A net as Caffe sees it at one phase: the prototxt, filtered and upgraded.

    >>> net = read_net(Path("deploy.prototxt"))
    >>> [layer.type for layer in net.layers]
    ['Input', 'Convolution', ...]

Rules (include, exclude) are applied, V1 layers renamed and net-level inputs
made into an Input layer, in the order in which Caffe does it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from . import prototext
from .prototext import Ident, Message, ProtoTextError


class NetError(ValueError):
    """Caffe would abort on this net; the message says on what."""


# V1LayerParameter.LayerType: its number and the name of the type today.
V1_TYPES: dict[int, tuple[str, str]] = {
    0: ("NONE", ""), 35: ("ABSVAL", "AbsVal"), 1: ("ACCURACY", "Accuracy"),
    30: ("ARGMAX", "ArgMax"), 2: ("BNLL", "BNLL"), 3: ("CONCAT", "Concat"),
    37: ("CONTRASTIVE_LOSS", "ContrastiveLoss"), 4: ("CONVOLUTION", "Convolution"),
    5: ("DATA", "Data"), 39: ("DECONVOLUTION", "Deconvolution"), 6: ("DROPOUT", "Dropout"),
    32: ("DUMMY_DATA", "DummyData"), 7: ("EUCLIDEAN_LOSS", "EuclideanLoss"),
    25: ("ELTWISE", "Eltwise"), 38: ("EXP", "Exp"), 8: ("FLATTEN", "Flatten"),
    9: ("HDF5_DATA", "HDF5Data"), 10: ("HDF5_OUTPUT", "HDF5Output"),
    28: ("HINGE_LOSS", "HingeLoss"), 11: ("IM2COL", "Im2col"), 12: ("IMAGE_DATA", "ImageData"),
    13: ("INFOGAIN_LOSS", "InfogainLoss"), 14: ("INNER_PRODUCT", "InnerProduct"),
    15: ("LRN", "LRN"), 29: ("MEMORY_DATA", "MemoryData"),
    16: ("MULTINOMIAL_LOGISTIC_LOSS", "MultinomialLogisticLoss"), 34: ("MVN", "MVN"),
    17: ("POOLING", "Pooling"), 26: ("POWER", "Power"), 18: ("RELU", "ReLU"),
    19: ("SIGMOID", "Sigmoid"), 27: ("SIGMOID_CROSS_ENTROPY_LOSS", "SigmoidCrossEntropyLoss"),
    36: ("SILENCE", "Silence"), 20: ("SOFTMAX", "Softmax"), 21: ("SOFTMAX_LOSS", "SoftmaxWithLoss"),
    22: ("SPLIT", "Split"), 33: ("SLICE", "Slice"), 23: ("TANH", "TanH"),
    24: ("WINDOW_DATA", "WindowData"), 31: ("THRESHOLD", "Threshold"),
}  # fmt: skip


@dataclass(frozen=True)
class Layer:
    """One layer of a net, at its place in the order of running."""

    name: str
    type: str
    bottoms: tuple[str, ...]
    tops: tuple[str, ...]
    text: Message = field(repr=False)

    def params(self, *names: str) -> Message:
        """Return the parameter message of the first of these names that is given."""
        for name in names:
            if self.text.has(name):
                return self.text.message(name)
        return Message()

    @property
    def param_names(self) -> list[str]:
        """The name each of the layer's blobs is shared by ('' where it is not)."""
        if self.text.has("param") and not isinstance(self.text.all("param")[0], Message):
            return [str(name) for name in self.text.all("param")]  # V1: a plain string
        return [spec.text("name") for spec in self.text.messages("param")]

    @property
    def is_permissive(self) -> bool:
        """Whether any of the layer's sharing asks for the same count only."""
        modes = [spec.text("share_mode") for spec in self.text.all("param")
                 if isinstance(spec, Message)]  # fmt: skip
        return "PERMISSIVE" in [*modes, *self.text.all("blob_share_mode")]

    @property
    def loss_weights(self) -> list[float]:
        """The loss weights that the text gives."""
        return self.text.reals("loss_weight")


@dataclass(frozen=True)
class NetDef:
    """The layers that are left at one phase, in order."""

    name: str
    layers: tuple[Layer, ...]


def float32(value: float) -> float:
    """Round to the nearest float32, as which Caffe keeps every real parameter."""
    return float(np.float32(value))


def read_net(
    prototxt: str | Path, stages: Sequence[str] = (), level: int = 0, phase: str = "TEST"
) -> NetDef:
    """Read a prototxt as Caffe loads it at this phase, level and stages.

    ``prototxt`` is a path, or the text itself where it is a str with a brace in it.
    """
    is_text = isinstance(prototxt, str) and "{" in prototxt
    root = prototext.parse(str(prototxt)) if is_text else prototext.parse_file(prototxt)
    state = _State(phase, level, frozenset([*stages, *_file_stages(root)]))
    messages = root.messages("layer")
    is_v1 = root.has("layers")
    if is_v1 and messages:
        raise NetError("the text has both 'layer' and 'layers'")
    if is_v1:
        messages = root.messages("layers")
    layers = [_layer(message, is_v1) for message in messages if _included(message, state)]
    return NetDef(root.text("name"), tuple(_net_inputs(root) + layers))


def _file_stages(root: Message) -> list[str]:
    return [str(stage) for stage in root.message("state").all("stage")]


@dataclass(frozen=True)
class _State:
    phase: str
    level: int
    stages: frozenset[str]


def _included(message: Message, state: _State) -> bool:
    include, exclude = message.messages("include"), message.messages("exclude")
    if include and exclude:
        raise NetError(f"layer {message.text('name')!r} has include rules and exclude rules")
    if include:
        return any(_meets(rule, state) for rule in include)
    return not any(_meets(rule, state) for rule in exclude)


def _meets(rule: Message, state: _State) -> bool:
    if rule.has("phase") and _phase(rule) != state.phase:
        return False
    if rule.has("min_level") and state.level < rule.integer("min_level"):
        return False
    if rule.has("max_level") and state.level > rule.integer("max_level"):
        return False
    wanted = {str(stage) for stage in rule.all("stage")}
    unwanted = {str(stage) for stage in rule.all("not_stage")}
    return wanted <= state.stages and not (unwanted & state.stages)


def _phase(rule: Message) -> str:
    value = rule.one("phase")
    return {0: "TRAIN", 1: "TEST"}[value] if isinstance(value, int) else str(value)


def _layer(message: Message, is_v1: bool) -> Layer:
    return Layer(
        name=message.text("name"),
        type=_v1_type(message) if is_v1 else message.text("type"),
        bottoms=tuple(str(name) for name in message.all("bottom")),
        tops=tuple(str(name) for name in message.all("top")),
        text=message,
    )


def _v1_type(message: Message) -> str:
    given = message.one("type")
    if isinstance(given, Ident):
        for enum, name in V1_TYPES.values():
            if enum == given:
                return name
    if isinstance(given, int) and given in V1_TYPES:
        return V1_TYPES[given][1]
    raise NetError(f"layer {message.text('name')!r}: no V1 layer type {given!r}")


def _net_inputs(root: Message) -> list[Layer]:
    """Make the net-level inputs one Input layer in front, as Caffe's upgrade does."""
    names = [str(name) for name in root.all("input")]
    if not names:
        return []
    shapes = [Message(("dim", dim) for dim in shape.integers("dim")) for shape in
              root.messages("input_shape")]  # fmt: skip
    dims = root.integers("input_dim")
    if dims and shapes:
        raise NetError("the text has both input_dim and input_shape")
    for start in range(0, len(dims), 4):
        shapes.append(Message(("dim", dim) for dim in dims[start : start + 4]))
    if shapes and len(shapes) != len(names):
        raise NetError(f"{len(names)} inputs, but {len(shapes)} shapes of inputs")
    text = Message([("input_param", Message(("shape", shape) for shape in shapes))])
    return [Layer("input", "Input", (), tuple(names), text)]


def input_shapes(layer: Layer) -> list[tuple[int, ...]]:
    """Return the shape of each top of an Input layer (one shape stands for all)."""
    shapes = [tuple(shape.integers("dim")) for shape in
              layer.params("input_param").messages("shape")]  # fmt: skip
    if len(shapes) == 1:
        shapes = shapes * len(layer.tops)
    return shapes


def check_graph(net: NetDef, given: Sequence[str] = ()) -> None:
    """Raise where Caffe would abort on the blobs' names.

    ``given`` are the names of blobs that the caller feeds, though nothing in
    the net makes them.
    """
    writer: dict[str, tuple[int, int]] = {name: (-1, i) for i, name in enumerate(given)}
    readers = _readers(net, dict(writer))
    for index, layer in enumerate(net.layers):
        sources = []
        for bottom in layer.bottoms:
            if bottom not in writer:
                raise NetError(f"layer {layer.name!r}: unknown bottom blob {bottom!r}")
            sources.append(writer[bottom])
        for place, top in enumerate(layer.tops):
            in_place = place < len(layer.bottoms) and layer.bottoms[place] == top
            # A Split renames the bottom of a value with several readers, so that
            # the names no longer match and the layer is not in place any more.
            if in_place and readers.get(sources[place], 0) > 1:
                raise NetError(f"layer {layer.name!r}: in place on {top!r}, which others read too")
            if not in_place and top in writer and writer[top][0] >= 0:
                raise NetError(f"top blob {top!r} produced by multiple sources ({layer.name!r})")
        for place, top in enumerate(layer.tops):
            writer[top] = (index, place)


def _readers(net: NetDef, writer: dict[str, tuple[int, int]]) -> dict[tuple[int, int], int]:
    """Count the readers of each top (layer index, place); a loss weight is one."""
    counts: dict[tuple[int, int], int] = {}
    for index, layer in enumerate(net.layers):
        for bottom in layer.bottoms:
            if bottom in writer:
                counts[writer[bottom]] = counts.get(writer[bottom], 0) + 1
        for place, top in enumerate(layer.tops):
            writer[top] = (index, place)
            if place < len(layer.loss_weights) and layer.loss_weights[place]:
                counts[(index, place)] = counts.get((index, place), 0) + 1
    return counts


__all__ = [
    "V1_TYPES",
    "Layer",
    "NetDef",
    "NetError",
    "ProtoTextError",
    "check_graph",
    "float32",
    "input_shapes",
    "read_net",
]  # fmt: skip
