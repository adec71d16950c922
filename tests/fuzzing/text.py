"""The target ``text``: a prototxt through the reader, and through protobuf's own.

What protobuf's ``text_format`` takes, the reader takes with the same layers, and the
other way round, but for the deliberate differences of docs/fuzzing.md.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from random import Random
from typing import Any

import google.protobuf
from google.protobuf import empty_pb2, text_format

from caffe_fold import CaffeFoldError, caffe_pb2
from caffe_fold.nets.edits import apply_edits, removals
from caffe_fold.nets.graph import build
from caffe_fold.nets.net import Net, read_net, selected
from caffe_fold.nets.prototxt import Document, parse

from . import mutate_text
from .outcome import Finding
from .schema import PARAMETERS, net_class
from .seeds import made, pieces_of_text

__all__ = ["again", "case", "check", "corpus", "from_bytes", "seeds"]

# text_format recurses, and its tokens cost time: what is deep or long is not for it. Before
# protobuf 6 it reads 09 and "\\400" otherwise, and no lists of unknown messages.
_COMPARED = 20_000 if int(google.protobuf.__version__.split(".")[0]) >= 6 else -1


@functools.cache
def seeds() -> tuple[bytes, ...]:
    """The texts that are mutated."""
    return tuple(piece for seed in made() for piece in pieces_of_text(seed.text, 400))


def case(rng: Random, pool: Sequence[bytes] = ()) -> bytes:
    """A mutated text; ``pool`` holds more of them to start from."""
    texts = pool if pool and rng.random() < 0.5 else seeds()
    return mutate_text.mutated(rng.choice(texts), rng, texts)


def check(data: bytes) -> str:
    """Read a text in both ways.

    :raises Finding: where the two differ.
    :raises CaffeFoldError: where the reader refuses, as it may.
    """
    ours: CaffeFoldError | None = None
    net, document = None, None
    try:
        document = parse(data)
        _require_whole(document, data)
        net = read_net(document)
        build(net, net.state)
        _parameters(net)
    except CaffeFoldError as error:
        ours = error
    if len(data) <= _COMPARED and not _is_python_only(data):
        _compare(data, document, net, ours)
    if ours is not None:
        raise ours
    return "read"


def _require_whole(document: Document, data: bytes) -> None:
    """Spans lie in the text, one behind the other and one in another."""
    if apply_edits(document, []) != data:
        raise Finding("an unedited document is not what was read")
    stack = [(document.fields, 0, len(data))]
    while stack:
        fields, at, end = stack.pop()
        for field in fields:
            if not at <= field.start <= field.value_start < field.value_end == field.end <= end:
                raise Finding(f"the span {field[:5]} does not lie in {at}:{end}")
            at = field.end
            if field.fields is not None:
                stack.append((field.fields, field.value_start, field.value_end))


def _parameters(net: Net) -> dict[tuple[int, str], Any]:
    """All hyper-parameters that the fold knows, by layer and name."""
    return {
        (layer.index, name): net.parsed(layer, name, getattr(caffe_pb2, kind)).message
        for layer in net.layers
        for name, kind in PARAMETERS.items()
        if layer.all(name)
    }


# ---- Against text_format ----


def _compare(
    data: bytes, document: Document | None, net: Net | None, ours: CaffeFoldError | None
) -> None:
    try:
        theirs, complaint = _theirs(data, net_class())
    except RecursionError:
        return
    if theirs is not None:
        if net is not None and ours is None:
            _require_same(net, theirs)
        elif ours is not None and not _is_stricter(str(ours)):
            raise Finding(f"text_format reads what is refused: {ours}")
    elif document is not None:
        _require_refusal(data, document, net if ours is None else None, complaint)


def _theirs(data: bytes, kind: Any) -> tuple[Any, str]:
    """What text_format reads, or its complaint."""
    try:
        text = data.decode("utf-8")
        return text_format.Parse(text.lstrip("\ufeff"), kind(), allow_unknown_field=True), ""
    except (text_format.ParseError, UnicodeDecodeError) as error:
        return None, str(error)


def _require_refusal(data: bytes, document: Document, net: Net | None, complaint: str) -> None:
    """What text_format refuses and the reader takes differs in one of the known ways."""
    if _is_cpp_only(document, complaint):
        return
    theirs, syntax = _theirs(data, empty_pb2.Empty)
    if theirs is None and not _is_cpp_only(document, syntax):
        raise Finding(f"read, and to text_format no text at all: {syntax}")
    if net is None:
        return
    read = _only_read_fields(document)
    theirs, complaint = _theirs(read, net_class())
    if theirs is None and not _is_cpp_only(document, complaint):
        raise Finding(f"read, and refused by text_format: {complaint}")


def _require_same(net: Net, theirs: Any) -> None:
    layers = list(theirs.layer) or list(theirs.layers)
    if len(layers) != len(net.layers):
        raise Finding(f"{len(net.layers)} layers, and {len(layers)} to text_format")
    for one, other in zip(net.layers, layers):
        pairs = {
            "bottoms": (one.bottoms, tuple(other.bottom)),
            "tops": (one.tops, tuple(other.top)),
            "name": (one.name, other.name),
        }
        if one.version == 2:
            pairs["type"] = (one.type, other.type)
            pairs["params"] = (one.params, tuple(param.name for param in other.param))
        if one.version:
            for what, (a, b) in pairs.items():
                if a != b:
                    raise Finding(f"{what} {a!r}, and {b!r} to text_format")
    for (index, name), message in _parameters(net).items():
        if net.layers[index].version and not _same(message, getattr(layers[index], name)):
            raise Finding(f"{name} of layer {index} differs from text_format's")
    _require_same_net(net, theirs, layers)


def _same(one: Any, other: Any) -> bool:
    return bool(
        one.SerializeToString(deterministic=True) == other.SerializeToString(deterministic=True)
    )


def _require_same_net(net: Net, theirs: Any, layers: Sequence[Any]) -> None:
    if tuple(name for name, _ in net.inputs) != tuple(theirs.input):
        raise Finding("inputs differ from text_format's")
    if (net.state.level, net.state.stages) != (theirs.state.level, frozenset(theirs.state.stage)):
        raise Finding("the state differs from text_format's")
    try:
        chosen = {layer.index for layer in selected(net, net.state)}
    except CaffeFoldError:
        return
    for index, layer in enumerate(layers):
        if net.layers[index].version and (index in chosen) != _is_selected(layer, net):
            raise Finding(f"layer {index} is in one net and not in the other")


def _is_selected(layer: Any, net: Net) -> bool:
    def meets(rule: Any) -> bool:
        return (
            (not rule.HasField("phase") or rule.phase == caffe_pb2.TEST)
            and (not rule.HasField("min_level") or net.state.level >= rule.min_level)
            and (not rule.HasField("max_level") or net.state.level <= rule.max_level)
            and set(rule.stage) <= net.state.stages
            and not set(rule.not_stage) & net.state.stages
        )

    if layer.include:
        return any(map(meets, layer.include))
    return not any(map(meets, layer.exclude))


# ---- The deliberate differences; each has a test ----

_STRICTER = (
    "the file has both 'layer' and 'layers' fields",
    "it has no 'layer' field",
    "this is a solver prototxt",
    "has both 'include' and 'exclude' rules",
    "bad escape",
    "'phase' is TRAIN or TEST",  # also in a V1 layer, which to Caffe has no phase
)


def _is_stricter(complaint: str) -> bool:
    """Whether a refusal is one of a net, not of a text."""
    return any(part in complaint for part in _STRICTER)


_PYTHON_TOKEN = re.compile(
    r"""(?<![0-9A-Za-z_])[A-Za-z_][0-9A-Za-z_]*[+-]  # a word with a sign in it
      | [0-9+-][0-9a-zA-Z_.+-]*                  # a number, looked at below
      | [\x1c-\x1f]|[^\x00-\x7f]                 # white space and letters beyond ASCII
    """,
    re.VERBOSE,
)
_CPP_NUMBER = re.compile(
    r"-?(0[xX][0-9a-fA-F]+|0[0-7]+|(?:0|[1-9][0-9]*)?\.?[0-9]*([eE][+-]?[0-9]+)?[fF]?"
    r"|inf(inity)?f?|nanf?)\Z",
    re.IGNORECASE,
)
_LITERALS = re.compile(r'"(?:[^"\\\n]|\\.)*"|\'(?:[^\'\\\n]|\\.)*\'|#[^\n]*')
_NAME_NUMBER = re.compile(r"(?:^|[\s{}<>\[\],;])[0-9][\w.+-]*\s*[:{<]")


def _is_python_only(data: bytes) -> bool:
    """Whether a text holds tokens that only text_format in Python takes, and Caffe's own
    parser does not: 1_0, 0b1, a-b, names that are numbers, white space of Unicode."""
    text = _LITERALS.sub(" ", data.decode("utf-8", "replace").lstrip("\ufeff"))
    if _NAME_NUMBER.search(text):
        return True
    for token in _PYTHON_TOKEN.finditer(text):
        word = token[0]
        if word[0] not in "0123456789+-" or not _CPP_NUMBER.match(word):
            return True
    return False


def _is_cpp_only(document: Document, complaint: str) -> bool:
    """Whether text_format in Python refuses what Caffe's own parser takes, or may take."""
    text = _LITERALS.sub(" ", document.text)
    return bool(_LENIENT.search(complaint) or _CPP_ONLY.search(text))


_CPP_ONLY = re.compile(
    r"""-\s|-[A-Za-z_]                              # a minus apart, or before a word
      | \[\s*[A-Za-z0-9_./-]+\s*\]\s*[:{<]      # names in brackets
      | 0[xX][0-9a-fA-F]{17}|0[0-7]{22}             # more than 64 bits, in a field not read
    """,
    re.VERBOSE,
)
_LENIENT = re.compile(
    r"""has\ no\ value                              # an enum's value, of a fork
      | utf-8|codec                                 # names in any encoding
      | but\ found:\ '\[|Couldn't\ parse\ \w+:\ \[|Expected\ "true"  # a list of one or none
      | Invalid\ field\ value:\ ["']               # a bad escape, in a string not read
    """,
    re.VERBOSE,
)
_READ = {
    "layer": "name type bottom top param include exclude phase loss_weight",
    "layers": "name type bottom top param include exclude loss_weight",
    "": "layer layers input input_dim input_shape state",
}


def _only_read_fields(document: Document) -> bytes:
    """A text without the fields that the reader has no reason to look into."""
    gone = []
    for field in document.fields:
        if field.name not in _READ[""].split():
            gone.append(field)
        elif field.name in ("layer", "layers"):
            wanted = [*_READ[field.name].split(), *PARAMETERS]
            gone += [f for f in field.fields or () if f.name not in wanted]
            specs = [f.fields or () for f in field.fields or () if f.name == "param"]
            gone += [f for spec in specs for f in spec if f.name != "name"]
    return apply_edits(document, removals(document, gone))


# ---- For a fuzzer that keeps cases as bytes ----


def again(data: bytes, rng: Random) -> bytes:
    """A case mutated further."""
    return mutate_text.mutated(data, rng, seeds())


def from_bytes(data: bytes) -> bytes:
    """The case that bytes stand for."""
    return data


def corpus() -> list[bytes]:
    """What to start from."""
    return list(seeds())
