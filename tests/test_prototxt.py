"""The text: strings, numbers, the places of errors, and texts of any size."""

from __future__ import annotations

import pytest
from test_prototxt_grammar import everything

from caffe_fold.errors import PrototxtError
from caffe_fold.nets.edits import apply_edits
from caffe_fold.nets.net import State, read_net, selected
from caffe_fold.nets.prototxt import parse, string_value

# ---- Strings ----


@pytest.mark.parametrize(
    ("literal", "value"),
    [
        (b'"conv1"', "conv1"),
        (b"'conv\"1'", 'conv"1'),
        (b'"con" "v1"', "conv1"),
        (b"\"con\" # c\n 'v1'", "conv1"),
        (b"\"con\"'v1'", "conv1"),
        (b'"\\x41\\102\\n\\t\\\\\\"\\\'"', "AB\n\t\\\"'"),
        (b'"\\x4"', "\x04"),
        ("'\u4e2d\u6587'".encode(), "\u4e2d\u6587"),
        (b'"\\344\\270\\255"', "\u4e2d"),
        (b'"\xe4\xb8" "\xad"', "\u4e2d"),
        (b'"\xe4\\270\\255"', "\u4e2d"),
        (b'"\xb5"', "\udcb5"),
        (b'"\\265"', "\udcb5"),
        (b'""', ""),
    ],
)
def test_a_strings_value(literal: bytes, value: str) -> None:
    document = parse(b"name: " + literal)
    assert string_value(document, document.fields[0]) == value


@pytest.mark.parametrize("value", [b"conv1", b"1", b"{ }"])
def test_a_name_that_is_no_string_is_refused(value: bytes) -> None:
    with pytest.raises(PrototxtError, match=r"<prototxt>:1:15: found .*'name' takes a string"):
        read_net(parse(b"layer { name: " + value + b" }"))


def test_a_bad_escape_is_refused_with_its_place() -> None:
    with pytest.raises(PrototxtError, match="<prototxt>:2:7: bad escape"):
        read_net(parse(b'layer {\nname: "\\xzz" }'))


# ---- Positions and errors ----


@pytest.mark.parametrize(
    ("text", "place", "message"),
    [
        (b"layer {\n  name: \n}", "3:1", "found '}'; expected a value for 'name'"),
        (b'layer {\n  name "x"\n}', "2:8", "found '\"'; expected ':' or '{' behind 'name'"),
        (b"layer {\n  name: 'x\n}", "2:9", "no closing quote on its line"),
        (b"layer {\n  a: 1\n", "3:1", "ends inside the message 'layer' opened in line 1"),
        (b"a: [1,\n2", "2:2", "ends inside the list 'a' opened in line 1; expected ']'"),
        (b"a: [1 2]", "1:7", "found '2'; expected ',' or ']'"),
        (b"a: [1,]", "1:7", "found ']'; expected a value behind ','"),
        (b"a: [,1]", "1:5", "found ','; expected a value or ']'"),
        (b"a { b: 1 >", "1:10", "found '>'; expected '}'"),
        (b"a { }\n}", "2:1", "found '}'; expected a field name"),
        (b"# \xe4\xb8\xad\na: $", "2:4", "found '$'; expected a value for 'a'"),
        ("name: '\u4e2d' $".encode(), "1:11", "found '$'; expected a field name"),
        (b"\xef\xbb\xbfa: $", "1:5", "found '$'"),
        (b"a: 1\r\nb: $\r\n", "2:4", "found '$'"),
        (b"\t\ta: $", "1:6", "found '$'"),
        (b"a: 1x", "1:4", "found '1x'; expected a value for 'a'"),
        (b"a: 1;; b: 2", "1:6", "found ';'; expected a field name"),
        (b"a { b: \xff }", "1:8", r"found '\xff'"),
        (b"a", "1:2", "expected ':' or '{' behind 'a'"),
    ],
)
def test_an_error_says_where_and_what_was_expected(text: bytes, place: str, message: str) -> None:
    with pytest.raises(PrototxtError) as caught:
        parse(text, "net.prototxt")
    assert str(caught.value).startswith(f"net.prototxt:{place}: ")
    assert message in str(caught.value)
    assert f"{caught.value.line}:{caught.value.column}" == place
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "text",
    [
        b"\x0e",
        b"a\x00",
        b"a: \x1b[31m",
        b"a \x85",
        b"[\na]: $",
        b"a: 1\n[ # c\n x ] {",
        b"x" * 1_000_000 + b" $",
        b"x" * 1_000_000 + b" {",
        b"layer { name: " + b"x" * 1_000_000 + b" }",
        b"layer { name: {\n} }",
        b"layer { name: '\\\x07' }",
        b"layer { phase: " + b"x" * 1_000_000 + b" }",
        b"layer { loss_weight: '" + b"x" * 1_000_000 + b"' }",
        b"layer { include { min_level: '" + b"x" * 1_000_000 + b"' } }",
    ],
    ids=lambda text: repr(text[:30]),
)
def test_an_error_is_one_printable_line_whatever_the_text_holds(text: bytes) -> None:
    with pytest.raises(PrototxtError) as caught:
        selected(read_net(parse(text)), State())
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 11_000


@pytest.mark.parametrize("number", ["09", "-09", "00.5", "08e1", "010f"])
def test_a_number_with_a_zero_in_front_is_octal_or_none(number: str) -> None:
    """As the tokenizer of protobuf in C++ has it, which reads Caffe's nets."""
    with pytest.raises(PrototxtError, match="expected a value for 'a'"):
        parse(f"a: {number}".encode())
    for good in ("0", "010", "0.5", "0.", "0f", "0e5", "00"):
        assert parse(f"a: {good}".encode()).fields


def test_lines_are_those_of_an_editor() -> None:
    document = parse(b"# one\r\n\r\na: 1\r\nlayer {\r\n b: 2 }\r\n")
    assert [document.line(f) for f in everything(document.fields)] == [3, 4, 5]


def test_a_byte_order_mark_is_passed_over_and_kept() -> None:
    data = b"\xef\xbb\xbfname: 'x'\r\n"
    document = parse(data)
    assert [f.name for f in document.fields] == ["name"]
    assert apply_edits(document, []) == data


# ---- Size ----


def test_deep_nesting_takes_no_stack() -> None:
    depth = 100_000
    document = parse(b"a {" * depth + b"}" * depth)
    field, count = document.fields[0], 1
    while field.fields:
        field, count = field.fields[0], count + 1
    assert count == depth
    with pytest.raises(PrototxtError, match="ends inside the message 'a'"):
        parse(b"a {" * depth)


def test_long_comments_and_strings_are_read_in_one_pass() -> None:
    comment = b"# " + b"x" * 1_000_000 + b"\n"
    many = b"#\n" * 100_000
    string = b'name: "' + b"x" * 1_000_000 + b'"'
    escapes = b'name: "' + b"\\x" * 1_000_000 + b'"'
    document = parse(comment + many + string + many + escapes)
    assert string_value(document, document.fields[0]) == "x" * 1_000_000


def test_a_long_text_without_an_end_is_refused_at_once() -> None:
    for text in (b'a: "' + b"x" * 1_000_000, b"a: " + b"'x' " * 200_000 + b"'", b"a" * 1_000_000):
        with pytest.raises(PrototxtError):
            parse(text)
