"""Texts by the grammar: they are read as by other readers, and an edit changes nothing else."""

from __future__ import annotations

import math
import struct
from typing import Any

import pytest
from google.protobuf import text_format
from hypothesis import example, given, settings
from hypothesis import strategies as st
from support import prototext

from caffe_fold import caffe_pb2
from caffe_fold.errors import PrototxtError
from caffe_fold.nets.edits import Edit, apply_edits, removals
from caffe_fold.nets.net import read_net
from caffe_fold.nets.prototxt import (
    Document,
    Field,
    parse,
    string_value,
)

# ---- Texts by grammar ----


BLANKS = st.sampled_from(["", "", " ", "  ", "\t", "\n", "\r\n", " \n\n\t", "\f", "\v"])

COMMENTS = st.text(st.sampled_from("ab {}[]<>,;:#\"'\\\t\r\xe4\u4e2d")).map(
    lambda text: f"#{text}\n"
)

SKIPS = st.lists(st.one_of(BLANKS, BLANKS, COMMENTS), max_size=3).map("".join)

GAPS = SKIPS.map(lambda skip: skip or " ")

NAMES = st.sampled_from(["layer", "name", "a", "_b9", "convolution_param", "[caffe.x]", "inf"])

STRINGS = st.sampled_from(
    ['"conv1"', "'x'", '""', '"#{}"', "'\"'", '"\\""', '"\\\\"', '"a\\n\\x41\\101"', '"\u4e2d"']
)

WORDS = st.sampled_from(["true", "MAX", "inf", "-inf", "nan", "f0", "- x"])

NUMBERS = st.sampled_from(["1", "-1", "0x1F", "017", "1.", ".5", "1.5e-3", "1.f", "-2E+4F", "- 3"])

SCALARS = st.one_of(WORDS, NUMBERS, STRINGS, st.tuples(STRINGS, SKIPS, STRINGS).map("".join))


def braces(fields: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    return st.tuples(st.sampled_from(["{}", "<>"]), fields, SKIPS).map(
        lambda parts: parts[0][0] + parts[1] + parts[2] + parts[0][1]
    )


@st.composite
def lists(draw: st.DrawFn, values: st.SearchStrategy[str]) -> str:
    inside = draw(st.lists(st.tuples(SKIPS, values, SKIPS).map("".join), max_size=3))
    return f"[{','.join(inside)}{draw(SKIPS)}]"


@st.composite
def fields_of(draw: st.DrawFn, messages: st.SearchStrategy[str]) -> str:
    """Fields one behind the other, each with a name, perhaps a colon, and a separator."""
    parts = []
    values = st.one_of(SCALARS, messages, lists(SCALARS), lists(messages))
    for _ in range(draw(st.integers(0, 3))):
        value = draw(values)
        colon = ":" if value[0] not in "{<" else draw(st.sampled_from(["", ":"]))
        name = draw(SKIPS) + draw(NAMES) + draw(SKIPS)
        behind = draw(st.one_of(GAPS, st.tuples(SKIPS, st.sampled_from(",;")).map("".join)))
        parts.append(name + colon + draw(SKIPS) + value + behind)
    return "".join(parts)


MESSAGES = st.recursive(st.just("{}"), lambda inner: braces(fields_of(inner)), max_leaves=6)

GRAMMAR = settings(deadline=None, max_examples=80)

TEXTS = fields_of(MESSAGES).map(lambda text: text.encode())

Tree = list[tuple[str, Any]]


def tree(document: Document, fields: tuple[Field, ...]) -> Tree:
    """What is said, without where: a scalar is its text without blanks and comments."""
    return [
        (f.name, tokens(document, f) if f.fields is None else tree(document, f.fields))
        for f in fields
    ]


def tokens(document: Document, field: Field) -> Any:
    raw = document.value(field)
    if raw[0] in "\"'":
        return string_value(document, field)
    return float(raw.replace(" ", "")) if raw.strip("- ").isdigit() else raw.replace(" ", "")


def everything(fields: tuple[Field, ...]) -> list[Field]:
    """All fields, at any depth."""
    found = []
    for field in fields:
        found += [field, *everything(field.fields or ())]
    return found


def names_and_depth(message: prototext.Message) -> list[Any]:
    return [
        (name, names_and_depth(value) if isinstance(value, prototext.Message) else None)
        for name, value in message
    ]


@given(TEXTS)
@GRAMMAR
@example(b"")
@example(b"# only a comment")
@example(b"a: 1 # no line feed behind this")
def test_any_text_of_the_grammar_is_parsed_and_printed_back(data: bytes) -> None:
    document = parse(data)
    assert apply_edits(document, []) == data
    for field in everything(document.fields):
        assert field.start <= field.value_start < field.value_end == field.end <= len(data)
        if field.fields is not None:
            assert document.value(field)[0] + document.value(field)[-1] in ("{}", "<>")
        if not field.in_list:
            assert document.text.startswith(field.name, field.start)


@pytest.mark.slow
@given(TEXTS)
@GRAMMAR
def test_another_reader_sees_the_same_fields(data: bytes) -> None:
    document = parse(data)
    try:
        theirs = prototext.parse(data.decode())
    except prototext.ProtoTextError:
        return  # it is stricter on words such as "- x"

    def shape(fields: tuple[Field, ...]) -> list[Any]:
        return [(f.name, None if f.fields is None else shape(f.fields)) for f in fields]

    assert shape(document.fields) == names_and_depth(theirs)


@pytest.mark.slow
@given(TEXTS, st.data())
@GRAMMAR
def test_removing_fields_leaves_all_others(data: bytes, choice: st.DataObject) -> None:
    """Any set of fields, in lists too; comments that stood elsewhere stay."""
    document = parse(data)
    every = everything(document.fields)
    picked = choice.draw(st.sets(st.sampled_from(range(len(every))))) if every else set()
    gone = {id(every[i]) for i in picked}
    outermost: list[Field] = []

    def left(fields: tuple[Field, ...], inside: bool) -> Tree:
        kept: Tree = []
        for field in fields:
            if id(field) in gone:
                if not inside:
                    outermost.append(field)
                continue
            value = tokens(document, field) if field.fields is None else left(field.fields, inside)
            kept.append((field.name, value))
        return kept

    wanted = left(document.fields, False)
    edited = parse(apply_edits(document, removals(document, outermost)))
    assert tree(edited, edited.fields) == wanted


@given(TEXTS, st.data())
@GRAMMAR
def test_replacing_values_changes_those_spans_alone(data: bytes, choice: st.DataObject) -> None:
    document = parse(data)
    scalars = [f for f in everything(document.fields) if f.fields is None]
    picked = choice.draw(st.lists(st.sampled_from(scalars), unique_by=id)) if scalars else []
    edited = apply_edits(document, [Edit(f.value_start, f.value_end, "'N'") for f in picked])
    at, rest = 0, []
    for field in sorted(picked, key=lambda field: field.start):
        rest.append(data[at : field.value_start])
        at = field.value_end
    assert edited == b"'N'".join([*rest, data[at:]])
    assert len(everything(parse(edited).fields)) == len(everything(document.fields))


@given(st.binary(max_size=60))
@example(b"\xef\xbb\xbf")
@example(b"a: [1, # ]\n")
@example(b'a: "\\')
@example(b"a: 'x' 'y")
@example(b"\x00")
@example(b"a { } }")
def test_any_bytes_are_parsed_or_refused_with_a_place_in_them(data: bytes) -> None:
    try:
        document = parse(data)
    except PrototxtError as complaint:
        error = complaint
    else:
        assert apply_edits(document, []) == data
        return
    lines = data.split(b"\n")
    assert 1 <= error.line <= len(lines)
    assert 1 <= error.column <= len(lines[error.line - 1]) + 1


# ---- Against protobuf's own reader ----


def is_repeated(field: Any) -> bool:
    """Whether a field is repeated; protobuf before 6 has the label alone."""
    if hasattr(field, "is_repeated"):
        return bool(field.is_repeated)
    return bool(field.label == field.LABEL_REPEATED)


FLOATS = st.floats(width=32, allow_nan=False)


def message_of(kind: Any) -> st.SearchStrategy[Any]:
    """Random messages of our schema that text_format can write."""

    @st.composite
    def build(draw: st.DrawFn) -> Any:
        made = kind()
        for field in kind.DESCRIPTOR.fields:
            count = draw(st.integers(0, 2 if is_repeated(field) else 1))
            for _ in range(count):
                fill(draw, made, field)
        return made

    return build()


def fill(draw: st.DrawFn, message: Any, field: Any) -> None:
    if field.message_type is not None:
        part = draw(message_of(getattr(caffe_pb2, field.message_type.name)))
        target = getattr(message, field.name)
        (target.add() if is_repeated(field) else target).MergeFrom(part)
        if not is_repeated(field):
            target.SetInParent()
        return
    value = draw(scalar_of(field))
    if is_repeated(field):
        getattr(message, field.name).append(value)
    else:
        setattr(message, field.name, value)


def scalar_of(field: Any) -> st.SearchStrategy[Any]:
    if field.enum_type is not None:
        return st.sampled_from(sorted(field.enum_type.values_by_number))
    return {
        field.CPPTYPE_INT32: st.integers(-(2**31), 2**31 - 1),
        field.CPPTYPE_INT64: st.integers(-(2**63), 2**63 - 1),
        field.CPPTYPE_UINT32: st.integers(0, 2**32 - 1),
        field.CPPTYPE_FLOAT: FLOATS,
        field.CPPTYPE_BOOL: st.booleans(),
        field.CPPTYPE_STRING: st.text(st.characters(exclude_categories=["Cs"])),
    }[field.cpp_type]


HYPER_PARAMETERS = [
    caffe_pb2.ConvolutionParameter,
    caffe_pb2.InnerProductParameter,
    caffe_pb2.BatchNormParameter,
    caffe_pb2.ScaleParameter,
    caffe_pb2.BiasParameter,
    caffe_pb2.PowerParameter,
    caffe_pb2.InputParameter,
    caffe_pb2.NetStateRule,
]


def through_net(text: bytes, kind: Any) -> Any:
    """A message's text, read as a layer's message field ``x_param`` of a net."""
    net = read_net(parse(b'layer { name: "x" x_param {' + text + b"\n} }"))
    return net.parsed(net.layers[0], "x_param", kind).message


@pytest.mark.parametrize("kind", HYPER_PARAMETERS, ids=lambda kind: kind.DESCRIPTOR.name)
@given(data=st.data())
@settings(deadline=None, max_examples=30)
def test_what_text_format_writes_is_read_with_the_same_values(
    kind: Any, data: st.DataObject
) -> None:
    message = data.draw(message_of(kind))
    style: dict[str, Any] = data.draw(
        st.fixed_dictionaries(
            {
                "as_one_line": st.booleans(),
                "pointy_brackets": st.booleans(),
                "use_short_repeated_primitives": st.booleans(),
                "as_utf8": st.booleans(),
            }
        )
    )
    assert through_net(text_format.MessageToString(message, **style).encode(), kind) == message


SPELLINGS = [
    "axis: 010",
    "axis: -0x1",
    "axis:1,",
    "axis:1;",
    "pad: [1, 2] pad: 3",
    "pad: []",
    "bias_term: 1",
    "bias_term: t",
    "bias_term: True",
    "bias_term: False",
    "engine: 2",
    "engine: CAFFE",
    "weight_filler { value: 1.f }",
    "weight_filler < value: .5F >",
    "weight_filler: { value: 1e-5 }",
    "weight_filler { value: inf }",
    "weight_filler { value: -Infinity }",
    "weight_filler { value: 0x10 }",
    "weight_filler { value: 1 # c\n }",
    "weight_filler { type: 'x' \"avier\" # c\n 'z' }",
    "weight_filler { type: 'x' # it's\n \"avier\" }",
    "weight_filler { type: '\\303\\244\\x41\\n' }",
    "weight_filler { } weight_filler { value: 2 }",
    "axis: 99999999999",
    "axis: 1.5",
    "axis: true",
    "axis: 'x'",
    "axis: 1 axis: 2",
    "axis { }",
    "num_output: -1",
    "bias_term: 2",
    "weight_filler: 3",
    "weight_filler { type: x }",
    "weight_filler { value: 'x' }",
    "axis: 09",
]


@pytest.mark.parametrize("text", SPELLINGS)
def test_each_spelling_is_read_or_refused_as_text_format_does(text: str) -> None:
    kind = caffe_pb2.ConvolutionParameter
    try:
        wanted = text_format.Parse(text, kind())
    except text_format.ParseError:
        with pytest.raises(PrototxtError, match="<prototxt>:"):
            through_net(text.encode(), kind)
    else:
        assert through_net(text.encode(), kind) == wanted


def test_a_minus_may_stand_apart_as_protobufs_own_parser_in_cpp_has_it() -> None:
    assert through_net(b"axis: - # c\n 1", caffe_pb2.ConvolutionParameter).axis == -1


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_names_are_read_as_text_format_reads_them(name: str) -> None:
    message = caffe_pb2.LayerParameter(name=name)
    for as_utf8 in (False, True):
        text = text_format.MessageToString(message, as_utf8=as_utf8).encode()
        document = parse(text)
        if name:
            assert string_value(document, document.fields[0]) == name


# ---- Taking a field out ----


@given(FLOATS)
def test_a_float_keeps_all_its_bits(value: float) -> None:
    text = text_format.MessageToString(caffe_pb2.BatchNormParameter(eps=value)).encode()
    found = through_net(text, caffe_pb2.BatchNormParameter).eps
    assert struct.pack("<f", found) == struct.pack("<f", value)


def test_nan_is_a_number_to_the_reader() -> None:
    assert math.isnan(through_net(b"eps: nan", caffe_pb2.BatchNormParameter).eps)
