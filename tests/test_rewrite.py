"""What a fold changes in the two files, byte by byte."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest
from support.nets import Net
from support.wire import BlobFormat, number, run

from caffe_fold import caffe_pb2, fold
from caffe_fold.weights.blob import Form, Storage
from caffe_fold.weights.caffemodel import Caffemodel

HEAD = 'name: "n"\ninput: "data"\ninput_shape { dim: 1 dim: 1 dim: 4 dim: 4 }\n'

_ONE = struct.pack("<f", 1.0)

UNKNOWN = number(150, 7) + run(149, b"MKLDNN") + b"\xa3\x38\x08\x01\xa4\x38"  # and a group 900


def one_by_one(*blobs: bytes, name: str = "conv", inside: bytes = b"", of: str = "") -> bytes:
    """An entry of the weights; ``inside`` stands before its blobs."""
    body = run(1, name.encode()) + run(2, (of or "Convolution").encode())
    body += run(3, b"data") + run(4, b"conv")
    return run(100, body + inside + b"".join(run(7, blob) for blob in blobs))


def floats(*values: float, shape: tuple[int, ...]) -> bytes:
    return run(7, run(1, bytes(shape))) + run(5, struct.pack(f"<{len(values)}f", *values))


WEIGHT = floats(2.0, shape=(1, 1, 1, 1))

# y = (x - 1) / sqrt(4) on what the convolution gives.
BN = run(
    100,
    run(1, b"bn")
    + run(2, b"BatchNorm")
    + run(3, b"conv")
    + run(4, b"bn")
    + b"".join(run(7, floats(value, shape=(1,))) for value in (1.0, 4.0, 1.0)),
)
BN_TEXT = """\
layer {
  name: "bn"
  type: "BatchNorm"
  bottom: "conv"
  top: "bn"
  batch_norm_param { eps: 0 }
}
"""


def conv_text(params: str, extra: str = "") -> str:
    return (
        'layer {\n  name: "conv"\n  type: "Convolution"\n  bottom: "data"\n  top: "conv"\n'
        f"{extra}{params}}}\n"
    )


def folded(folder: Path, text: str | bytes, weights: bytes) -> tuple[bytes, bytes]:
    """The text and the weights that a fold makes."""
    (folder / "net.prototxt").write_bytes(text if isinstance(text, bytes) else text.encode())
    (folder / "net.caffemodel").write_bytes(weights)
    report = fold(folder / "net.prototxt", folder / "net.caffemodel")
    assert report.folded or report.merged
    outputs = report.output_model, report.output_weights
    text_out, weights_out = (Path(path).read_bytes() for path in outputs)
    return text_out, weights_out


# ---- The prototxt ----


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
@pytest.mark.parametrize(
    ("before", "after"),
    [
        pytest.param(
            "  convolution_param { num_output: 1 bias_term: false # none\n kernel_size: 1 }\n",
            "  convolution_param { num_output: 1 bias_term: true # none\n kernel_size: 1 }\n",
            id="in place",
        ),
        pytest.param(
            "  convolution_param { num_output: 1 bias_term:0, kernel_size: 1 }\n",
            "  convolution_param { num_output: 1 bias_term:true, kernel_size: 1 }\n",
            id="as a number",
        ),
        pytest.param(
            "  convolution_param <\n\tnum_output: 1\n\tbias_term : false;\n\tkernel_size: 1 >\n",
            "  convolution_param <\n\tnum_output: 1\n\tbias_term : true;\n\tkernel_size: 1 >\n",
            id="angle brackets",
        ),
    ],
)
def test_a_bias_term_changes_in_place(
    before: str, after: str, newline: str, tmp_path: Path
) -> None:
    text = (HEAD + "# a\n" + conv_text(before) + "# b\n" + BN_TEXT).replace("\n", newline)
    wanted = HEAD + "# a\n" + conv_text(after).replace('top: "conv"', 'top: "bn"')
    found, _ = folded(tmp_path, text, one_by_one(WEIGHT) + BN)
    assert found == wanted.replace("\n", newline).encode()


def test_a_new_top_keeps_its_quotes_and_escapes_what_it_must(tmp_path: Path) -> None:
    text = HEAD + conv_text("  convolution_param { num_output: 1 bias_term: false }\n")
    text = text.replace('top: "conv"', "top: 'conv' # its top") + BN_TEXT
    name = b"it's \\\"\\\\\xb5\\n"
    changed = text.encode().replace(b'top: "bn"', b'top: "' + name + b'"')
    found, weights = folded(tmp_path, changed, one_by_one(WEIGHT) + BN)
    assert b"top: 'it\\'s \"\\\\\xb5\\012' # its top" in found
    assert b"\x22\x09it's \"\\\xb5\n" in weights  # field 4 of nine bytes


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("  scale_param { }\n", "  scale_param { bias_term: true }\n"),
        ("  scale_param {}\n", "  scale_param { bias_term: true }\n"),
        ("  scale_param { axis: 1}\n", "  scale_param { axis: 1 bias_term: true }\n"),
        (
            "  scale_param {\n    axis: 1 # c\n  }\n",
            "  scale_param {\n    axis: 1 # c\n    bias_term: true\n  }\n",
        ),
        (
            "\tscale_param: <\n\t\taxis: 1\n\t>\n",
            "\tscale_param: <\n\t\taxis: 1\n\t\tbias_term: true\n\t>\n",
        ),
        ("  scale_param {\n  }\n", "  scale_param {\n    bias_term: true\n  }\n"),
        ("", "  scale_param { bias_term: true }\n"),
        ("  scale_param { bias_term: false }\n", "  scale_param { bias_term: true }\n"),
    ],
)
@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_a_new_field_takes_the_style_of_its_message(
    before: str, after: str, newline: str, tmp_path: Path
) -> None:
    scale = 'layer {\n  name: "s"\n  type: "Scale"\n  bottom: "bn"\n  top: "s"\n{}}}\n'
    relu = 'layer {\n  name: "r"\n  type: "ReLU"\n  bottom: "data"\n  top: "conv"\n}\n'
    text = HEAD + relu + BN_TEXT + scale.replace("{}", before).replace("}}", "}")
    entry = one_by_one(floats(3.0, shape=(1,)), name="s", of="Scale")
    wanted = HEAD + relu + scale.replace("{}", after).replace("}}", "}").replace('"bn"', '"conv"')
    found, _ = folded(tmp_path, text.replace("\n", newline), BN + entry)
    assert found.decode() == wanted.replace("\n", newline)


def test_a_layer_that_becomes_a_scale_loses_its_params_in_a_list_too(tmp_path: Path) -> None:
    net = Net("merge")
    net.input("data", (1, 3, 4, 4))
    net.relu("relu", "data", "relu")
    net.batch_norm("bn1", "relu", 3, top="bn1")
    params = "param: [{ lr_mult: 0 }, # a, b\n { lr_mult: 0 }, { lr_mult: 0 }]"
    net.batch_norm("bn2", "bn1", 3, top="bn2", extra=params)
    model, weights = net.write(tmp_path)
    report = fold(model, weights)
    text = Path(report.output_model).read_text()
    assert "  param: []\n" in text
    assert '  type: "Scale"\n' in text
    assert "  scale_param { bias_term: true }\n" in text


def test_layers_removed_from_a_list_leave_a_list(tmp_path: Path) -> None:
    layers = [conv_text("  convolution_param { num_output: 1 bias_term: false }\n"), BN_TEXT]
    text = HEAD + "layer: [" + ",\n".join(part[len("layer ") :].rstrip() for part in layers) + "]\n"
    found, _ = folded(tmp_path, text, one_by_one(WEIGHT) + BN)
    wanted = layers[0][len("layer ") :].rstrip().replace("false", "true")
    assert found.decode() == HEAD + "layer: [" + wanted.replace('top: "conv"', 'top: "bn"') + "]\n"


# ---- The weights ----


def entry_of(data: bytes, name: str) -> caffe_pb2.LayerParameter:
    net = caffe_pb2.NetParameter.FromString(data)
    (found,) = [layer for layer in net.layer if layer.name == name]
    return found


CONV_TEXT = HEAD + conv_text("  convolution_param { num_output: 1 bias_term: false }\n") + BN_TEXT


def test_a_folded_entry_is_as_it_was_but_for_what_the_fold_changes(tmp_path: Path) -> None:
    """Unknown fields at their places, the bias behind the weight, the rest byte for byte."""
    other = run(100, run(1, b"other") + UNKNOWN)
    convolution_param = run(106, number(1, 1) + number(2, 0) + UNKNOWN)
    before = run(1, b"n") + other + run(9, b"unknown")
    data = before + one_by_one(WEIGHT, inside=UNKNOWN + convolution_param) + BN + other
    _, found = folded(tmp_path, CONV_TEXT, data)
    new_blobs = floats(1.0, shape=(1, 1, 1, 1)), _bias(-0.5)
    new = one_by_one(
        *new_blobs, inside=UNKNOWN + run(106, number(1, 1) + number(2, 1) + UNKNOWN)
    ).replace(run(4, b"conv"), run(4, b"bn"))
    body = new[3:] if new[2] < 0x80 else new[4:]
    assert found == before + run(100, body) + other


def _bias(value: float) -> bytes:
    """A new blob has its values before its shape."""
    return run(5, struct.pack("<f", value)) + run(7, run(1, b"\x01"))


def test_gradients_go_and_unknown_fields_of_a_blob_stay(tmp_path: Path) -> None:
    gradients = run(6, b"\0" * 4) + run(9, b"\0" * 8) + number(11, 2) + run(13, b"\0\0")
    blob = number(200, 1) + WEIGHT + gradients + run(201, b"kept")
    _, found = folded(tmp_path, CONV_TEXT, one_by_one(blob) + BN)
    weight, bias = entry_of(found, "conv").blobs
    # What stood before the values still does, and what stood behind them too.
    shape = run(7, run(1, b"\x01" * 4))
    assert run(7, number(200, 1) + shape + run(5, _ONE) + run(201, b"kept")) in found
    for new in (weight, bias):
        assert not new.diff
        assert not new.double_diff
        assert not new.HasField("raw_diff")
        assert not new.HasField("raw_diff_type")
    assert (list(weight.data), list(bias.data)) == ([1.0], [-0.5])


@pytest.mark.parametrize(
    ("kind", "form", "storage"),
    [
        ("data", Form.DATA, Storage.FLOAT),
        ("double", Form.DOUBLE_DATA, Storage.DOUBLE),
        ("raw_float", Form.RAW_DATA, Storage.FLOAT),
        ("raw_double", Form.RAW_DATA, Storage.DOUBLE),
    ],
)
@pytest.mark.parametrize("legacy", [False, True], ids=["shape", "legacy"])
def test_blobs_keep_their_form_and_the_new_bias_takes_it(
    kind: str, form: Form, storage: Storage, legacy: bool, tmp_path: Path
) -> None:
    net = Net("forms")
    net.input("data", (1, 3, 4, 4))
    net.conv("conv", "data", 3, 4, bias=False).format = BlobFormat(kind, legacy=legacy)
    net.batch_norm("bn", "conv", 4)
    report = fold(*net.write(tmp_path))
    with Caffemodel.open(report.output_weights) as model:
        weight, bias = model.by_name["conv"][0].blobs
        assert [(b.form, b.storage, b.problem) for b in (weight, bias)] == [(form, storage, "")] * 2
        assert (weight.shape, weight.legacy) == ((4, 3, 3, 3), legacy)
        assert (bias.shape, bias.legacy) == ((1, 1, 1, 4) if legacy else (4,), legacy)
        scale = net.layers[2].blobs[1] / net.layers[2].blobs[2]
        wanted = net.layers[1].blobs[0].ravel().reshape(4, -1) / np.sqrt(scale + 1e-5)[:, None]
        assert np.allclose(model.vector(weight), wanted.ravel(), rtol=1e-5)


def test_half_weights_beside_a_float_batch_norm_become_floats(tmp_path: Path) -> None:
    net = Net("half")
    net.input("data", (1, 3, 4, 4))
    net.conv("conv", "data", 3, 4, bias=False).format = BlobFormat("half")
    net.batch_norm("bn", "conv", 4)
    report = fold(*net.write(tmp_path))
    with Caffemodel.open(report.output_weights) as model:
        for blob in model.by_name["conv"][0].blobs:
            assert (blob.form, blob.storage) == (Form.DATA, Storage.FLOAT)
        assert b"\x50\x02\x62" not in model.source.read(0, model.source.size)  # raw half


def test_half_weights_and_a_half_batch_norm_stay_half(tmp_path: Path) -> None:
    net = Net("half")
    net.input("data", (1, 3, 4, 4))
    net.conv("conv", "data", 3, 4, bias=False).format = BlobFormat("half")
    net.batch_norm("bn", "conv", 4, factor=1.0).format = BlobFormat("half")
    report = fold(*net.write(tmp_path))
    with Caffemodel.open(report.output_weights) as model:
        for blob in model.by_name["conv"][0].blobs:
            assert (blob.form, blob.storage) == (Form.RAW_DATA, Storage.HALF)


@pytest.mark.parametrize("runs", [BlobFormat(unpacked=True), BlobFormat(runs=3)])
def test_values_in_pieces_come_out_as_one_run(runs: BlobFormat, tmp_path: Path) -> None:
    net = Net("pieces")
    net.input("data", (1, 3, 4, 4))
    net.conv("conv", "data", 3, 4).format = runs
    net.batch_norm("bn", "conv", 4)
    report = fold(*net.write(tmp_path))
    with Caffemodel.open(report.output_weights) as model:
        for blob in model.by_name["conv"][0].blobs:
            assert [run.stride for run in blob.runs] == [4]


def test_double_data_beside_data_is_what_counts_and_what_is_written(tmp_path: Path) -> None:
    blob = WEIGHT.replace(struct.pack("<f", 2.0), struct.pack("<f", 77.0))
    blob += run(8, struct.pack("<d", 2.0))
    _, found = folded(tmp_path, CONV_TEXT, one_by_one(blob) + BN)
    weight, bias = entry_of(found, "conv").blobs
    assert (list(weight.data), list(weight.double_data)) == ([], [1.0])
    assert list(bias.double_data) == [-0.5]


def test_a_v1_entry_stays_one(tmp_path: Path) -> None:
    body = run(2, b"data") + run(3, b"conv") + run(4, b"conv") + number(5, 4) + run(6, WEIGHT)
    blobs = [floats(1.0, shape=(1,)), floats(4.0, shape=(1,)), floats(1.0, shape=(1,))]
    statistics = run(2, run(4, b"bn") + b"".join(run(6, blob) for blob in blobs))
    _, found = folded(tmp_path, CONV_TEXT, run(2, body + UNKNOWN) + statistics)
    net = caffe_pb2.NetParameter.FromString(found)
    (old,) = net.layers
    assert not net.layer
    assert (old.name, old.type, list(old.bottom), list(old.top)) == ("conv", 4, ["data"], ["bn"])
    assert [list(blob.data) for blob in old.blobs] == [[1.0], [-0.5]]
    assert UNKNOWN in found


def test_entries_without_tops_and_bottoms_get_none(tmp_path: Path) -> None:
    bare = run(100, run(1, b"conv") + run(7, WEIGHT))
    _, found = folded(tmp_path, CONV_TEXT, bare + BN)
    entry = entry_of(found, "conv")
    assert (list(entry.bottom), list(entry.top)) == ([], [])
    assert len(entry.blobs) == 2


def test_each_of_two_equal_entries_is_folded(tmp_path: Path) -> None:
    _, found = folded(tmp_path, CONV_TEXT, one_by_one(WEIGHT) * 2 + BN * 2)
    net = caffe_pb2.NetParameter.FromString(found)
    assert [layer.name for layer in net.layer] == ["conv", "conv"]
    assert net.layer[0] == net.layer[1]
    assert list(net.layer[0].blobs[0].data) == [1.0]


def test_a_name_in_another_encoding_goes_through_both_files(tmp_path: Path) -> None:
    text = CONV_TEXT.encode().replace(b'"conv"', b'"c\xb5"').replace(b'"bn"', b'"\xe4\xb8"')
    data = one_by_one(WEIGHT).replace(b"\x04conv", b"\x02c\xb5")
    data = run(100, data[3:] if data[2] < 0x80 else data[4:])
    bn = BN.replace(b"\x02bn", b"\x02\xe4\xb8").replace(b"\x04conv", b"\x02c\xb5")
    found, weights = folded(tmp_path, text, data + run(100, bn[3:]))
    assert b'top: "\xe4\xb8"' in found
    assert b"\x22\x02\xe4\xb8" in weights
