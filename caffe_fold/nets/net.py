"""A net as its prototxt gives it: layers with their typed fields, phases and state.

Layers stay tied to their span in the text. Of each layer only the fields that
every layer has are read here; its hyper-parameters are parsed when somebody
asks, by protobuf's ``text_format`` over the compiled schema, so that defaults
and enums are Caffe's.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, TypeVar

from caffe_fold.errors import InputError, show
from caffe_fold.named import NamedTuple
from caffe_fold.nets.messages import Parsed, canonical, from_text, parsed_message
from caffe_fold.nets.prototxt import Document, Field, string_value

if TYPE_CHECKING:
    from google.protobuf.message import Message

    M = TypeVar("M", bound=Message)

__all__ = ["Layer", "Net", "State", "read_net", "selected"]

# UpgradeV1LayerType (BVLC, util/upgrade_proto.cpp); the other names follow from
# their enum's: INNER_PRODUCT is InnerProduct.
_V1_TYPES = {
    "ABSVAL": "AbsVal",
    "ARGMAX": "ArgMax",
    "BN": "BN",
    "BNLL": "BNLL",
    "HDF5_DATA": "HDF5Data",
    "HDF5_OUTPUT": "HDF5Output",
    "LRN": "LRN",
    "MVN": "MVN",
    "PRELU": "PReLU",
    "RELU": "ReLU",
    "SOFTMAX_LOSS": "SoftmaxWithLoss",
    "SPP": "SPP",
    "TANH": "TanH",
}


class State(NamedTuple):
    """What decides which layers a net has: Caffe's NetState."""

    phase: str = "TEST"
    level: int = 0
    stages: frozenset[str] = frozenset()


class Layer(NamedTuple):
    """One layer of the file.

    ``index`` is its place among all layers of the file; ``version`` is 2 for
    ``layer``, 1 for ``layers`` and 0 for the ``layers { layer { } }`` before
    them. ``params`` holds the sharing name of each parameter blob, or "".
    """

    index: int  # type: ignore[assignment]
    version: int
    field: Field
    name: str
    type: str
    bottoms: tuple[str, ...]
    tops: tuple[str, ...]
    params: tuple[str, ...]
    permissive: bool
    has_loss_weight: bool
    phase: str | None

    @property
    def fields(self) -> tuple[Field, ...]:
        return self.field.fields or ()

    @property
    def described(self) -> str:
        """Its name and type for a sentence: ``'conv1' (Convolution)``."""
        return f"'{show(self.name)}' ({show(self.type)})"

    def all(self, name: str) -> list[Field]:
        """The layer's fields of one name, in order."""
        return [f for f in self.fields if f.name == name]


class Net(NamedTuple):
    """A prototxt as a net. ``inputs`` are the net-level inputs with their shapes,
    where given."""

    document: Document
    layers: tuple[Layer, ...]
    inputs: tuple[tuple[str, tuple[int, ...] | None], ...]
    state: State

    def parsed(self, layer: Layer, name: str, message: type[M]) -> Parsed:
        """A layer's message field, such as ``convolution_param``; empty if not there."""
        fields = layer.all(name)
        if len(fields) > 1:
            raise self.document.error(
                fields[1].start, f"{name!r} is given twice in layer '{show(layer.name)}'"
            )
        return parsed_message(self.document, fields[0] if fields else None, message)

    def where(self, layer: Layer) -> str:
        """A layer for a message: its name and line."""
        return f"layer '{show(layer.name)}' (line {self.document.line(layer.field)})"


def read_net(document: Document) -> Net:
    """See a document as a net.

    :raises PrototxtError: if it is a text of another kind, or a field that every
        layer has is malformed.
    """
    fields = document.fields
    kinds = {f.name for f in fields if f.name in ("layer", "layers")}
    if len(kinds) == 2:
        late = next(f for f in fields if f.name == "layers")
        raise document.error(
            late.start,
            "the file has both 'layer' and 'layers' fields, of which Caffe ignores one kind; "
            "expected one format (Caffe's upgrade_net_proto_text writes the newer)",
        )
    if not kinds:
        _refuse_other_text(document)
    spans = [field for field in fields if field.name in kinds]
    layers = tuple(_layer(document, field, index) for index, field in enumerate(spans))
    return Net(document, layers, _inputs(document), _state(document))


_SOLVER_FIELDS = {"base_lr", "lr_policy", "train_net", "test_net", "net", "max_iter", "snapshot"}


def _refuse_other_text(document: Document) -> None:
    names = {f.name for f in document.fields}
    path = show(str(document.path))
    inside = [f for f in document.fields if f.name.endswith("net_param")]
    if inside:
        raise InputError(
            f"{path}:{document.line(inside[0])}: this is a solver prototxt with the net in its "
            f"'{show(inside[0].name)}'; give what is between its braces in a file of its own"
        )
    if names & _SOLVER_FIELDS:
        nets = [f for f in document.fields if f.name in ("net", "train_net", "test_net")]
        hint = f": {show(document.value(nets[0]))}" if nets else ""
        raise InputError(
            f"{path}: this is a solver prototxt, not a net; give the net's own file{hint}"
        )
    shown = ", ".join(show(name, 60) for name in sorted(names)[:5])
    found = f"found {shown}" if names else "found no field at all"
    raise InputError(f"{path}: not a net: it has no 'layer' field ({found})")


def _layer(document: Document, field: Field, index: int) -> Layer:
    if field.fields is None:
        raise document.error(field.value_start, f"{field.name!r} takes a message in braces")
    version = 2 if field.name == "layer" else 1
    body = field.fields
    nested = [f for f in body if f.name == "layer" and f.fields is not None]
    if version == 1 and nested:
        version, body = 0, nested[0].fields or ()
    name = _one_string(document, body, "name")
    return Layer(
        index=index,
        version=version,
        field=field,
        name=name,
        type=_type(document, body, version),
        bottoms=_strings(document, field.fields, "bottom"),
        tops=_strings(document, field.fields, "top"),
        params=_params(document, body, version),
        permissive=_permissive(document, body),
        has_loss_weight=_has_loss_weight(document, body),
        phase=_phase(document, body),
    )


def _strings(document: Document, fields: tuple[Field, ...], name: str) -> tuple[str, ...]:
    return tuple(string_value(document, f) for f in fields if f.name == name)


def _one(document: Document, fields: tuple[Field, ...], name: str) -> Field | None:
    found = [f for f in fields if f.name == name]
    if len(found) > 1:
        raise document.error(found[1].start, f"{name!r} is given twice; expected it once")
    return found[0] if found else None


def _one_string(document: Document, fields: tuple[Field, ...], name: str) -> str:
    field = _one(document, fields, name)
    return string_value(document, field) if field else ""


def _type(document: Document, fields: tuple[Field, ...], version: int) -> str:
    field = _one(document, fields, "type")
    if field is None:
        return ""
    if version != 1:
        return string_value(document, field)
    if field.fields is not None:
        raise document.error(field.value_start, "'type' takes a word, such as CONVOLUTION")
    raw = document.value(field).strip("\"'")
    return _V1_TYPES.get(raw, "".join(word.capitalize() for word in raw.split("_")))


def _params(document: Document, fields: tuple[Field, ...], version: int) -> tuple[str, ...]:
    names = []
    for field in fields if version else ():  # before V1 there were none
        if field.name == "param" and version == 1:
            names.append(string_value(document, field))
        elif field.name == "param":
            if field.fields is None:
                raise document.error(field.value_start, "'param' takes a message in braces")
            names.append(_one_string(document, field.fields, "name"))
    return tuple(names)


def _permissive(document: Document, fields: tuple[Field, ...]) -> bool:
    modes = [f for p in fields if p.name == "param" for f in p.fields or ()]
    modes += [f for f in fields if f.name == "blob_share_mode"]
    return any(document.value(f) in ("PERMISSIVE", "1") for f in modes if "share_mode" in f.name)


def _has_loss_weight(document: Document, fields: tuple[Field, ...]) -> bool:
    """Whether any top has a loss weight other than zero, which reads that top."""
    for field in fields:
        if field.name == "loss_weight":
            raw = re.sub(r"(?<=[0-9.])[fF]\Z", "", canonical(document.value(field)))
            try:
                if float(raw) != 0:
                    return True
            except ValueError:
                raise document.error(
                    field.value_start, f"found '{show(raw, 40)}'; 'loss_weight' takes a number"
                ) from None
    return False


def _phase(document: Document, fields: tuple[Field, ...]) -> str | None:
    field = _one(document, fields, "phase")
    if field is None:
        return None
    raw = document.value(field)
    phase = {"TRAIN": "TRAIN", "TEST": "TEST", "0": "TRAIN", "1": "TEST"}.get(raw)
    if phase is None:
        raise document.error(field.value_start, _not_a_phase(raw))
    return phase


def _not_a_phase(raw: str) -> str:
    return f"found '{show(raw, 40)}'; 'phase' is TRAIN or TEST"


def _inputs(document: Document) -> tuple[tuple[str, tuple[int, ...] | None], ...]:
    """The net-level inputs (UpgradeNetInput in BVLC's util/upgrade_proto.cpp): one
    ``input_shape`` each, or four ``input_dim`` each."""
    from caffe_fold import caffe_pb2

    names = _strings(document, document.fields, "input")
    shapes: list[tuple[int, ...]] = []
    for field in document.fields:
        if field.name == "input_shape":
            shapes.append(tuple(parsed_message(document, field, caffe_pb2.BlobShape).message.dim))
    dims = _input_dims(document)
    if not shapes:
        shapes = [tuple(dims[i : i + 4]) for i in range(0, len(dims) - 3, 4)]
    known: list[tuple[int, ...] | None] = [*shapes, *[None] * len(names)]
    return tuple(zip(names, known))


def _input_dims(document: Document) -> list[int]:
    from caffe_fold import caffe_pb2

    fields = [f for f in document.fields if f.name == "input_dim"]
    text = "\n".join(f"input_dim: {canonical(document.value(f))}" for f in fields)
    parsed, line, complaint = from_text(caffe_pb2.NetParameter, text)
    if complaint:
        raise document.error(fields[line - 1].value_start, complaint)
    return list(parsed.input_dim)


def _state(document: Document) -> State:
    from caffe_fold import caffe_pb2

    field = _one(document, document.fields, "state")
    message = parsed_message(document, field, caffe_pb2.NetState).message
    return State("TEST", message.level, frozenset(message.stage))


def selected(net: Net, state: State) -> tuple[Layer, ...]:
    """The layers of the net in one state (``Net::FilterNet`` in BVLC's net.cpp).

    :raises PrototxtError: where a layer has both include and exclude rules, which
        is fatal in Caffe.
    """
    return tuple(layer for layer in net.layers if _is_selected(net, layer, state))


_RULES = ("include", "exclude")


def _rule(document: Document, field: Field) -> Any:
    """A rule; a phase that is not Caffe's would make it one that is always met."""
    from caffe_fold import caffe_pb2

    parsed = parsed_message(document, field, caffe_pb2.NetStateRule)
    for phase in parsed.fields:
        if phase.name == "phase" and not parsed.message.HasField("phase"):
            raise document.error(phase.value_start, _not_a_phase(document.value(phase)))
    return parsed.message


def _is_selected(net: Net, layer: Layer, state: State) -> bool:
    rules = {kind: [_rule(net.document, f) for f in layer.all(kind)] for kind in _RULES}
    if rules["include"] and rules["exclude"]:
        raise net.document.error(
            layer.field.start,
            f"layer '{show(layer.name)}' has both 'include' and 'exclude' rules; "
            "Caffe allows one kind in a layer",
        )
    if rules["include"]:
        return any(_meets(state, rule) for rule in rules["include"])
    return not any(_meets(state, rule) for rule in rules["exclude"])


def _meets(state: State, rule: Any) -> bool:
    """``Net::StateMeetsRule`` in BVLC's net.cpp."""
    phases = {"TRAIN": 0, "TEST": 1}
    return not (
        (rule.HasField("phase") and rule.phase != phases[state.phase])
        or (rule.HasField("min_level") and state.level < rule.min_level)
        or (rule.HasField("max_level") and state.level > rule.max_level)
        or not state.stages.issuperset(rule.stage)
        or not state.stages.isdisjoint(rule.not_stage)
    )
