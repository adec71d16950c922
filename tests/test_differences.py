"""Where the readers differ from protobuf's own on purpose, one by one.

The fuzzer (docs/fuzzing.md) passes over these, and finds any other. Caffe reads a prototxt
by protobuf's parser in C++, which is stricter than that in Python.
"""

from __future__ import annotations

import pytest
from fuzzing.schema import net_class, weights_class
from google.protobuf import text_format
from google.protobuf.message import DecodeError

from caffe_fold import CaffeFoldError
from caffe_fold.nets.graph import build
from caffe_fold.nets.net import read_net
from caffe_fold.nets.prototxt import parse
from caffe_fold.weights import wire
from caffe_fold.weights.caffemodel import Caffemodel
from caffe_fold.weights.wire import length_field, tag_bytes, varint_bytes


def reads_text(text: bytes) -> bool:
    try:
        net = read_net(parse(text))
        build(net, net.state)
    except CaffeFoldError:
        return False
    return True


def text_format_reads(text: bytes) -> bool:
    try:
        text_format.Parse(text.decode(), net_class()(), allow_unknown_field=True)
    except (text_format.ParseError, UnicodeDecodeError):
        return False
    return True


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize(
    "text",
    [
        pytest.param(b"layer { } layers { }", id="both formats"),
        pytest.param(b"", id="no layer"),
        pytest.param(b"net: 'a.prototxt' base_lr: 1", id="a solver"),
        pytest.param(b"layer { include { } exclude { } }", id="both kinds of rules"),
        pytest.param(b"layers { phase: 2 }", id="a phase in a V1 layer, which to Caffe has none"),
        pytest.param(b"layer { name: '\\q' }", id="an escape that C++ refuses"),
        pytest.param(b"layer { a: 1_0 }", id="a number of Python"),
        pytest.param(b"layer { a: 0b1 }", id="another"),
        pytest.param(b"layer { a-b: 1 }", id="a sign in a word"),
        pytest.param(b"layer { 1: 1 }", id="a number for a name"),
        pytest.param("layer {\u2003}".encode(), id="white space of Unicode"),
    ],
)
def test_text_format_in_python_reads_what_is_refused(text: bytes) -> None:
    assert text_format_reads(text)
    assert not reads_text(text)


@pytest.mark.parametrize(
    "text",
    [
        pytest.param(b"layer { convolution_param { engine: MKLDNN } }", id="an enum of a fork"),
        pytest.param(b"layer { name: '\xb5' }", id="a name in another encoding"),
        pytest.param(b"layer { loss_weight: - 1 }", id="a minus that stands apart, as in C++"),
        pytest.param(b"layer { [a.b/c] { x: 1 } }", id="a name in brackets, as in C++"),
        pytest.param(b"layer { name: [ ] }", id="an empty list of what is not repeated"),
        pytest.param(b"layer { name: ['x'] }", id="a list of one of it"),
        pytest.param(b"force_backward: 7 layer { }", id="a wrong value that is not read"),
        pytest.param(b"name: 'a' name: 'b' layer { }", id="one given twice"),
        pytest.param(b"layer { propagate_down: '\\q' }", id="a bad escape in one"),
        pytest.param(b"layer { x: 0x" + b"f" * 17 + b" }", id="an unknown one of over 64 bits"),
    ],
)
def test_text_format_in_python_refuses_what_is_read(text: bytes) -> None:
    assert not text_format_reads(text)
    assert reads_text(text)


def reads_weights(data: bytes) -> bool:
    try:
        Caffemodel.indexed(wire.Source("<memory>", -1, len(data), data))
    except CaffeFoldError:
        return False
    return True


def protobuf_reads(data: bytes) -> bool:
    try:
        weights_class().FromString(data)
    except DecodeError:
        return False
    return True


LAYER = length_field(100, length_field(1, b"conv"))


def in_blob(data: bytes) -> bytes:
    return length_field(100, length_field(7, data))


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(LAYER + length_field(2, b""), id="both formats"),
        pytest.param(b"", id="no layer"),
        pytest.param(LAYER + tag_bytes(100, 0) + b"\1", id="a layer that is a number"),
        pytest.param(in_blob(tag_bytes(5, 0) + b"\1"), id="values that are no floats"),
    ],
)
def test_protobuf_reads_weights_that_are_refused(data: bytes) -> None:
    assert protobuf_reads(data)
    assert not reads_weights(data)


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(LAYER + length_field(6, b"\xff"), id="a damaged state of the net"),
        pytest.param(in_blob(length_field(6, b"\0\0\0")), id="a damaged gradient"),
    ],
)
def test_protobuf_refuses_weights_that_are_read(data: bytes) -> None:
    assert not protobuf_reads(data)
    assert reads_weights(data)


def test_a_length_of_ten_bytes_is_read() -> None:
    """As by the protobuf of Caffe's days; that of today takes five bytes at most."""
    assert reads_weights(tag_bytes(100, 2) + b"\x80" * 9 + b"\0")


def test_a_length_of_eleven_bytes_is_refused_by_both() -> None:
    data = tag_bytes(100, 2) + b"\x80" * 10 + b"\0" + varint_bytes(0)
    assert not protobuf_reads(data)
    assert not reads_weights(data)
