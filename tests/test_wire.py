"""The wire format, walked: every field found where it lies, every lie about a length caught."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from caffe_fold.errors import CaffemodelError
from caffe_fold.weights import wire

NUMBERS = st.integers(1, 2**29 - 1)
INTEGERS = st.one_of(st.integers(0, 300), st.integers(0, 2**64 - 1))

Made = tuple[int, int, int, bytes]
"""Number, wire type, a varint's value, all its bytes."""


def field(number: int, wire_type: int, payload: bytes) -> bytes:
    return wire.tag_bytes(number, wire_type) + payload


def group(number: int, inside: bytes) -> bytes:
    return field(number, wire.GROUP, inside) + wire.tag_bytes(number, wire.END_GROUP)


PLAIN: st.SearchStrategy[Made] = st.one_of(
    st.builds(lambda n, i: (n, 0, i, field(n, 0, wire.varint_bytes(i))), NUMBERS, INTEGERS),
    st.builds(lambda n, b: (n, 1, 0, field(n, 1, b)), NUMBERS, st.binary(min_size=8, max_size=8)),
    st.builds(lambda n, b: (n, 2, 0, wire.length_field(n, b)), NUMBERS, st.binary(max_size=200)),
    st.builds(lambda n, b: (n, 5, 0, field(n, 5, b)), NUMBERS, st.binary(min_size=4, max_size=4)),
)
FIELDS: st.SearchStrategy[Made] = st.recursive(
    PLAIN,
    lambda inner: st.builds(
        lambda n, fields: (n, 3, 0, group(n, b"".join(f[3] for f in fields))),
        NUMBERS,
        st.lists(inner, max_size=3),
    ),
    max_leaves=5,
)


def walk_file(data: bytes, path: Path) -> list[wire.Record]:
    path.write_bytes(data)
    source = wire.Source.open(path)
    try:
        return list(wire.Walk(source, 0, source.size))
    finally:
        source.close()


@given(st.lists(FIELDS))
@settings(deadline=None)
def test_fields_are_found_where_they_lie(fields: list[Made]) -> None:
    data = b"".join(f[3] for f in fields)
    at = 0
    records = list(wire.walk_bytes(data))
    assert len(records) == len(fields)
    for record, (number, wire_type, integer, raw) in zip(records, fields):
        assert (record.number, record.wire_type, record.integer) == (number, wire_type, integer)
        assert (record.start, record.end) == (at, at + len(raw))
        assert record.start < record.value <= record.end
        at = record.end


def test_fields_are_found_across_the_windows_of_a_file(tmp_path: Path) -> None:
    """Tags, lengths and numbers that straddle the ends of what is read at a time."""
    sizes = [*range(32_700, 32_790), 1, 0, 70_000, *[3] * 12_000]
    data = b"".join(
        wire.length_field(100, b"x" * size) + field(5, 0, wire.varint_bytes(2**63 + size))
        for size in sizes
    )
    records = walk_file(data, tmp_path / "x")
    assert [r.end - r.value for r in records[::2]] == sizes
    assert [r.integer - 2**63 for r in records[1::2]] == sizes


@given(INTEGERS)
def test_a_varint_comes_back(value: int) -> None:
    (record,) = wire.walk_bytes(field(1, 0, wire.varint_bytes(value)))
    assert record.integer == value


def test_a_varint_may_be_longer_than_it_has_to() -> None:
    (record,) = wire.walk_bytes(field(1, 0, b"\x85" + b"\x80" * 8 + b"\x00"))
    assert record.integer == 5
    (record,) = wire.walk_bytes(b"\x8a\x80\x80\x80\x00" + b"\x81\x00" + b"x")
    assert (record.number, record.wire_type, record.end - record.value) == (1, 2, 1)


@pytest.mark.parametrize(
    ("data", "offset", "message"),
    [
        pytest.param(b"\x08" + b"\xff" * 10 + b"\x01", 1, "more than 10 bytes", id="11 bytes"),
        pytest.param(b"\xff" * 11, 0, "more than 10 bytes", id="tag of 11 bytes"),
        pytest.param(b"\x0a\x80", 1, "truncated or damaged inside a number", id="open length"),
        pytest.param(b"\x08\x01\x88", 2, "truncated or damaged inside a number", id="open tag"),
        pytest.param(b"\x0a\x05abcd", 0, "claims 5 bytes and 4 are left", id="short"),
        pytest.param(b"\x0a" + b"\xff" * 9 + b"\x01", 0, "bytes and 0 are left", id="2^64-1"),
        pytest.param(b"\x08\x01\x0d\x00\x00", 2, "claims 4 bytes and 2 are left", id="fixed32"),
        pytest.param(b"\x09" + b"\0" * 7, 0, "claims 8 bytes and 7 are left", id="fixed64"),
        pytest.param(b"\x0e\x00", 0, "wire type 6", id="reserved 6"),
        pytest.param(b"\x08\x01\x0f\x00", 2, "wire type 7", id="reserved 7"),
        pytest.param(b"\x0c", 0, "wire type 4", id="end of no group"),
        pytest.param(b"\x00\x01", 0, "bad field number", id="number 0"),
        pytest.param(b"\xf8\xff\xff\xff\x7f\x00", 0, "bad field number", id="number 2^32"),
        pytest.param(b"\x0b\x08\x01", 3, "inside a group", id="open group"),
        pytest.param(b"\x0b\x14", 1, "groups do not match", id="other group"),
        pytest.param(b"\x0b\x0e\x0c", 1, "wire type 6", id="reserved 6 in a group"),
        pytest.param(b"\x0b" * 200 + b"\x0c" * 200, 100, "nest", id="200 groups"),
    ],
)
def test_what_is_no_message_is_refused_at_its_byte(
    data: bytes, offset: int, message: str, tmp_path: Path
) -> None:
    with pytest.raises(CaffemodelError, match=message) as caught:
        walk_file(data, tmp_path / "x.caffemodel")
    assert f"x.caffemodel: byte {offset}: " in str(caught.value)
    with pytest.raises(CaffemodelError, match=message):
        list(wire.walk_bytes(data))


@given(st.binary(max_size=80))
@example(b"\x0b\x0b")
@settings(deadline=None)
def test_any_bytes_are_fields_one_behind_the_other_or_an_error(data: bytes) -> None:
    at = 0
    try:
        for record in wire.walk_bytes(data):
            assert record.start == at < record.value <= record.end <= len(data)
            at = record.end
    except CaffemodelError:
        return
    assert at == len(data)


def test_a_field_inside_a_message_may_not_reach_behind_it(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(wire.length_field(1, b"\x0a\x05ab") + b"x" * 100)
    source = wire.Source.open(path)
    with pytest.raises(CaffemodelError, match="byte 2: a field claims 5 bytes and 2 are left; the"):
        list(wire.Walk(source, 2, 6))
    source.close()


def test_a_length_past_the_end_allocates_nothing(tmp_path: Path) -> None:
    tracemalloc.start()
    with pytest.raises(CaffemodelError, match="claims 1099511627776 bytes"):
        walk_file(b"\x0a" + wire.varint_bytes(1 << 40), tmp_path / "x")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1 << 20


def test_a_file_that_shrinks_while_it_is_read_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"x" * 100)
    source = wire.Source.open(path)
    path.write_bytes(b"x" * 50)
    with pytest.raises(CaffemodelError, match="byte 50: the file became shorter"):
        source.read(0, 100)
    source.close()
