"""The index of a caffemodel against protobuf's own parse, and on files that lie."""

from __future__ import annotations

import re
import struct
import tracemalloc
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.nets import Net
from support.weights import read_blob

from caffe_fold import caffe_pb2
from caffe_fold.errors import CaffemodelError
from caffe_fold.weights.blob import Blob, Form, Storage
from caffe_fold.weights.caffemodel import Caffemodel
from caffe_fold.weights.wire import length_field, tag_bytes, varint_bytes

QUICK = settings(
    deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60
)


def opened(data: bytes, folder: Path) -> Caffemodel:
    path = folder / "net.caffemodel"
    path.write_bytes(data)
    return Caffemodel.open(path)


def number(field: int, value: int) -> bytes:
    return tag_bytes(field, 0) + varint_bytes(value)


def shape(*dims: int) -> bytes:
    return length_field(7, length_field(1, b"".join(map(varint_bytes, dims))))


def floats(*values: float) -> bytes:
    return length_field(5, struct.pack(f"<{len(values)}f", *values))


def layer(*blobs: bytes, name: bytes = b"conv") -> bytes:
    return length_field(100, length_field(1, name) + b"".join(length_field(7, b) for b in blobs))


def the_blob(data: bytes, folder: Path) -> tuple[Blob, list[float]]:
    with opened(layer(data), folder) as model:
        (blob,) = model.entries[0].blobs
        return blob, [] if blob.problem else model.vector(blob).tolist()


# ---- Files by property ----

FLOATS = st.floats(width=16, allow_nan=False, allow_infinity=False)
UNKNOWN = st.sampled_from(
    [
        b"",
        number(14, 7),
        number(1000, 2**64 - 1),
        length_field(20, b"\xff\x00junk"),
        tag_bytes(30, 3) + number(5, 1) + length_field(8, b"in a group") + tag_bytes(30, 4),
        tag_bytes(31, 5) + b"abcd",
        tag_bytes(32, 1) + b"abcdefgh",
        length_field(6, struct.pack("<2f", 1, 2)),
        b"".join(tag_bytes(6, 5) + struct.pack("<f", i) for i in range(4)),
        length_field(9, struct.pack("<d", 1)),
        number(11, 2) + length_field(13, b"\0\0"),
    ]
)


@st.composite
def runs(draw: st.DrawFn, field: int, code: str, values: list[float]) -> bytes:
    """Values packed, unpacked, and mixed, in any number of runs, with fields between."""
    wire_type = 5 if code == "f" else 1
    made, rest = b"", list(values)
    while rest:
        count = draw(st.integers(1, len(rest)))
        part, rest = rest[:count], rest[count:]
        if draw(st.booleans()):
            made += length_field(field, struct.pack(f"<{count}{code}", *part))
        else:
            tag = tag_bytes(field, wire_type)
            made += b"".join(tag + struct.pack(f"<{code}", value) for value in part)
        made += draw(UNKNOWN)
    return made


@st.composite
def blobs(draw: st.DrawFn) -> bytes:
    values = draw(st.lists(FLOATS, max_size=6))
    dims = draw(st.sampled_from([[len(values)], [1, 1, 1, len(values)], [len(values), 1]]))
    kind = draw(st.sampled_from(["data", "double", "both", "raw", "raw and data", "none"]))
    made = b""
    if kind in ("data", "both", "raw and data"):
        made += draw(runs(5, "f", values))
    if kind in ("double", "both"):
        made += draw(runs(8, "d", values))
    if kind.startswith("raw"):
        code, dtype = draw(st.sampled_from([(0, "<f8"), (1, "<f4"), (2, "<f2")]))
        raw = length_field(12, np.array(values, dtype).tobytes())
        parts = [number(10, code), raw]
        made += b"".join(parts if draw(st.booleans()) else reversed(parts))
    legacy = len(dims) == 4 and draw(st.booleans())
    four = b"".join(number(i + 1, dim) for i, dim in enumerate(dims))
    head = four if legacy else shape(*dims)
    made = head + made if draw(st.booleans()) else made + head
    return draw(UNKNOWN) + made + draw(UNKNOWN)


NAMES = st.sampled_from([b"", b"conv1", "\u4e2d".encode(), b"conv\xb5"])


@st.composite
def layers(draw: st.DrawFn, is_v2: bool) -> bytes:
    numbers = (1, 2, 3, 4, 7) if is_v2 else (4, 5, 2, 3, 6)
    name, kind, bottom, top, blob = numbers
    parts = [length_field(name, draw(NAMES))]
    parts.append(length_field(kind, b"Scale") if is_v2 else number(kind, 4))
    parts += [length_field(bottom, n) for n in draw(st.lists(NAMES, max_size=2))]
    parts += [length_field(top, n) for n in draw(st.lists(NAMES, max_size=2))]
    parts += [length_field(blob, b) for b in draw(st.lists(blobs(), max_size=3))]
    parts.append(length_field(149, b"MKLDNN"))
    body = b"".join(draw(st.permutations(parts)))
    return length_field(100 if is_v2 else 2, body)


def _files(is_v2: bool) -> st.SearchStrategy[bytes]:
    """Files of one format; both in one file is an error, which has a test of its own."""
    layer = layers(is_v2)
    fields = st.lists(st.one_of(layer, layer, st.just(length_field(1, b"net"))), min_size=1)
    rest = st.sampled_from([b"", number(4, 224), length_field(10_000, b"junk")])
    return st.tuples(fields, rest).map(lambda parts: b"".join(parts[0]) + parts[1])


FILES = st.booleans().flatmap(_files)


def test_both_formats_in_one_file_are_an_error(tmp_path: Path) -> None:
    data = length_field(100, length_field(1, b"a")) + length_field(2, length_field(4, b"b"))
    with pytest.raises(CaffemodelError, match=r"byte 6: the file has both 'layer' and 'layers'"):
        opened(data, tmp_path)


def as_bytes(name: str | bytes) -> bytes:
    return name if isinstance(name, bytes) else name.encode("utf-8", "surrogateescape")


@given(data=FILES)
@QUICK
def test_the_index_is_what_protobuf_parses(data: bytes, tmp_path: Path) -> None:
    parsed = caffe_pb2.NetParameter.FromString(data)
    if not parsed.layer and not parsed.layers:
        with pytest.raises(CaffemodelError, match="no layers"):
            opened(data, tmp_path)
        return
    with opened(data, tmp_path) as model:
        for number, protos in ((100, list(parsed.layer)), (2, list(parsed.layers))):
            entries = [entry for entry in model.entries if entry.number == number]
            assert len(entries) == len(protos)
            for entry, proto in zip(entries, protos):
                same_entry(model, entry, proto)
        assert [entry.index for entry in model.entries] == list(range(len(model.entries)))
        assert sum(map(len, model.by_name.values())) == len(model.entries)


def same_entry(model: Caffemodel, entry: Any, proto: Any) -> None:
    assert entry.name.encode("utf-8", "surrogateescape") == as_bytes(proto.name)
    assert entry.type == str(proto.type)
    for names, theirs in ((entry.bottoms, proto.bottom), (entry.tops, proto.top)):
        assert [n.encode("utf-8", "surrogateescape") for n in names] == list(map(as_bytes, theirs))
    assert len(entry.blobs) == len(proto.blobs)
    for blob, theirs in zip(entry.blobs, proto.blobs):
        wanted = read_blob(theirs)
        if blob.problem:
            assert wanted.values.size != int(np.prod(wanted.shape))
            continue
        assert (blob.shape, blob.legacy) == (wanted.shape, wanted.is_legacy)
        assert blob.count == wanted.values.size
        assert model.vector(blob).tolist() == wanted.values.tolist()
        for start in range(blob.count + 1):
            tail = model.values(blob, start).astype(float).tolist()
            assert tail == wanted.values[start:].tolist()
            head = model.values(blob, 0, start).astype(float).tolist()
            assert head == wanted.values[:start].tolist()


@given(data=FILES)
@QUICK
def test_the_head_of_a_blob_is_all_but_values_and_gradients(data: bytes, tmp_path: Path) -> None:
    if not data.count(b"\xa2\x06"):
        return
    with opened(data, tmp_path) as model:
        for blob in (blob for entry in model.entries for blob in entry.blobs):
            head = b"".join(model.source.read(start, end) for start, end in blob.head)
            kept = caffe_pb2.BlobProto.FromString(head)
            whole = caffe_pb2.BlobProto.FromString(model.source.read(blob.start, blob.end))
            for name in ("data", "diff", "double_data", "double_diff"):
                whole.ClearField(name)
            for name in ("raw_data", "raw_diff", "raw_data_type", "raw_diff_type"):
                whole.ClearField(name)
            assert kept.SerializeToString() == whole.SerializeToString()


# ---- Blobs one by one ----


def test_double_data_goes_before_data(tmp_path: Path) -> None:
    data = floats(1, 2) + length_field(8, struct.pack("<2d", 3, 4)) + shape(2)
    blob, values = the_blob(data, tmp_path)
    assert (blob.form, blob.storage, values) == (Form.DOUBLE_DATA, Storage.DOUBLE, [3, 4])


@pytest.mark.parametrize(
    ("code", "dtype", "storage"),
    [(0, "<f8", Storage.DOUBLE), (1, "<f4", Storage.FLOAT), (2, "<f2", Storage.HALF)],
)
def test_raw_data(code: int, dtype: str, storage: Storage, tmp_path: Path) -> None:
    raw = np.array([1.5, -2.25], dtype).tobytes()
    blob, values = the_blob(number(10, code) + length_field(12, raw) + shape(2), tmp_path)
    assert (blob.form, blob.storage, values) == (Form.RAW_DATA, storage, [1.5, -2.25])


def test_values_of_no_length_are_none(tmp_path: Path) -> None:
    raw = number(10, 1) + length_field(12, struct.pack("<2f", 1, 2))
    for data in (length_field(8, b"") + floats(1, 2), floats() + raw):
        blob, values = the_blob(data + shape(2), tmp_path)
        assert (blob.problem, values) == ("", [1, 2])


def test_of_raw_data_given_twice_the_last_counts(tmp_path: Path) -> None:
    twice = length_field(12, b"\0" * 8) + length_field(12, struct.pack("<f", 3))
    _, values = the_blob(number(10, 0) + number(10, 1) + twice + shape(1), tmp_path)
    assert values == [3]


def test_a_legacy_shape_goes_before_a_shape(tmp_path: Path) -> None:
    four = number(1, 1) + number(2, 1) + number(3, 1) + number(4, 2)
    blob, _ = the_blob(floats(1, 2) + shape(2) + four, tmp_path)
    assert (blob.shape, blob.legacy) == ((1, 1, 1, 2), True)


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (floats(1, 2) + shape(3), "shape (3,) does not fit its 2 values"),
        (shape(1 << 40), "does not fit its 0 values"),
        (shape(1 << 62, 1 << 62, 1 << 62), "does not fit its 0 values"),
        (floats(1) + shape(2**64 - 1), "shape (-1,) does not fit its 1 values"),
        (floats(1) + shape(2**64 - 1, 2**64 - 1), "does not fit its 1 values"),
        (floats(1, 2), "shape () does not fit its 2 values"),
        (floats(1) + shape(*[1] * 40), "of 40 dims"),
        (length_field(12, b"\0\0") + shape(1), "raw_data is of no known type"),
        (number(10, 3) + length_field(12, b"\0" * 4) + shape(1), "raw_data is of type INT"),
        (number(10, 9) + length_field(12, b"\0" * 4) + shape(1), "raw_data is of no known type"),
        (number(10, 1) + length_field(12, b"\0" * 5) + shape(1), "is no run of float32"),
    ],
)
def test_a_blob_whose_values_cannot_be_read_says_why(
    data: bytes, problem: str, tmp_path: Path
) -> None:
    assert problem in the_blob(data, tmp_path)[0].problem


@pytest.mark.parametrize("size", [0, 5000])
def test_blobs_of_another_wire_type_are_unknown_as_in_protobuf(size: int, tmp_path: Path) -> None:
    data = length_field(1, b"n" * size) + number(7, 1)
    assert not caffe_pb2.LayerParameter.FromString(data).blobs
    path = tmp_path / "net.caffemodel"
    path.write_bytes(length_field(100, data))
    with Caffemodel.open(path) as model:
        assert [entry.blobs for entry in model.entries] == [()]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (number(100, 1), "its layers are no messages"),
        (number(2, 1), "its layers are no messages"),
        (length_field(1, b"net"), "it holds no layers"),
        (b"", "it holds no layers"),
        (layer(length_field(5, b"\0" * 7)), "a run of 7 bytes is no run of 32-bit floats"),
        (layer(length_field(8, b"\0" * 12)), "a run of 12 bytes is no run of 64-bit floats"),
        (layer(number(5, 1)), "a blob's values are not floats"),
        (layer(length_field(7, b"\xff")), "a blob is damaged"),
        (length_field(100, length_field(6, b"\xff")), "a layer is damaged"),
    ],
)
def test_what_is_no_caffemodel_is_refused(data: bytes, message: str, tmp_path: Path) -> None:
    with pytest.raises(CaffemodelError, match=message):
        opened(data, tmp_path)


def test_a_signalling_nan_is_read_without_a_warning(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        _, values = the_blob(length_field(5, b"\x01\x00\x80\x7f") + shape(1), tmp_path)
    assert np.isnan(values).all()


def test_same_values_are_the_same_bit_by_bit(tmp_path: Path) -> None:
    zero, minus = floats(0.0) + shape(1), floats(-0.0) + shape(1)
    split = tag_bytes(5, 5) + struct.pack("<f", 0.0) + shape(1)
    row = floats(0.0) + shape(1, 1)
    with opened(layer(zero, minus, split, row), tmp_path) as model:
        first, other, alike, turned = model.entries[0].blobs
        assert model.same_values(first, alike)
        assert not model.same_values(first, other)
        assert not model.same_values(first, turned)


# ---- Files that lie ----


def small_model() -> bytes:
    net = Net("small")
    net.input("data", (1, 2, 4, 4))
    net.conv("conv", "data", 2, 2, 1)
    net.batch_norm("bn", "conv", 2)
    group = tag_bytes(900, 3) + number(1, 1) + tag_bytes(900, 4)
    old = length_field(1, b"old") + length_field(7, floats(1, 2) + number(4, 2))
    return net.caffemodel() + group + length_field(100, old)


def test_a_file_cut_at_any_byte_is_an_error_or_a_shorter_net(tmp_path: Path) -> None:
    data = small_model()
    with opened(data, tmp_path) as model:
        whole = [entry.name for entry in model.entries]
    for size in range(len(data)):
        names, complaint = names_or_complaint(data[:size], tmp_path)
        assert names == whole[: len(names)]
        if not names:
            assert re.search(r": byte \d+: .|it holds no layers", complaint)
            assert "\n" not in complaint


def names_or_complaint(data: bytes, folder: Path) -> tuple[list[str], str]:
    try:
        with opened(data, folder) as model:
            return [entry.name for entry in model.entries], ""
    except CaffemodelError as error:
        return [], str(error)


@given(at=st.integers(0, 10_000), byte=st.integers(0, 255))
@QUICK
def test_a_file_with_any_byte_changed_is_read_or_refused(
    at: int, byte: int, tmp_path: Path
) -> None:
    data = bytearray(small_model())
    data[at % len(data)] = byte
    try:
        with opened(bytes(data), tmp_path) as model:
            for entry in model.entries:
                for blob in entry.blobs:
                    if not blob.problem:
                        assert model.vector(blob).size == blob.count
    except CaffemodelError:
        pass


def test_nothing_beyond_the_files_size_is_allocated(tmp_path: Path) -> None:
    liars = [
        layer(shape(1 << 40, 1 << 20)),
        layer(shape(1 << 31) + number(10, 1) + length_field(12, b"")),
        layer(number(1, 1 << 30) + number(2, 1 << 30) + number(3, 1) + number(4, 1)),
        length_field(100, tag_bytes(7, 2) + varint_bytes(1 << 50)),
        layer(tag_bytes(5, 2) + varint_bytes(1 << 45)),
        layer(shape(*[1 << 62] * 100_000)),
    ]
    for data in liars:
        tracemalloc.start()
        try:
            with opened(data, tmp_path) as model:
                assert model.entries[0].blobs[0].problem
        except CaffemodelError:
            pass
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        # A list of integers takes some forty bytes for each of the file's.
        assert peak < (1 << 20) + 40 * len(data)


def test_values_are_read_in_pieces(tmp_path: Path) -> None:
    values = np.arange(1_000_000, dtype="<f4")
    packed = length_field(5, values.tobytes()) + shape(values.size)
    singles = np.zeros(values.size, [("tag", "u1"), ("value", "<f4")])
    singles["tag"], singles["value"] = tag_bytes(5, 5)[0], values
    with opened(layer(packed, singles.tobytes() + shape(values.size)), tmp_path) as model:
        for blob in model.entries[0].blobs:
            assert len(list(model.chunks(blob, 0, blob.count))) > 1
            assert np.array_equal(model.values(blob), values)
            assert np.array_equal(model.values(blob, 262_100, 524_300), values[262_100:524_300])
        first, second = model.entries[0].blobs
        assert model.same_values(first, second)
