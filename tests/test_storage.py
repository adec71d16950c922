"""Blobs in every number type: read, folded in the widest that goes in, or as asked for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.nets import Net
from support.wire import BlobFormat

import caffe_fold
from caffe_fold import caffe_pb2
from caffe_fold.report import Report


def net_of(weights: str, statistics: str, gain: float = 1.0) -> Net:
    """Input, Convolution, BatchNorm and Scale, with blobs of two kinds."""
    net = Net()
    net.input("data", (1, 3, 5, 5))
    net.conv("conv", "data", 3, 4, bias=False).format = BlobFormat(weights)
    net.batch_norm("bn", "conv", 4).format = BlobFormat(statistics)
    scale = net.scale("scale", "conv", 4)
    scale.format = BlobFormat(statistics)
    scale.blobs[0] = scale.blobs[0] * gain
    return net


def fold(net: Net, folder: Path, **options: Any) -> tuple[Report, list[caffe_pb2.BlobProto]]:
    """Fold a net; the report and the blobs of its layer "conv"."""
    model, weights = net.write(folder)
    out = folder / "out.prototxt", folder / "out.caffemodel"
    report = caffe_fold.fold(model, weights, *out, **options)
    written = caffe_pb2.NetParameter.FromString(out[1].read_bytes())
    (layer,) = [layer for layer in written.layer if layer.name == "conv"]
    return report, list(layer.blobs)


def kind(blob: caffe_pb2.BlobProto) -> str:
    """Which field holds a blob's values, and of which type."""
    if blob.HasField("raw_data"):
        return "raw " + caffe_pb2.BlobProto.Type.Name(blob.raw_data_type)
    return "double_data" if blob.double_data else "data"


@pytest.mark.parametrize(
    ("weights", "statistics", "expected"),
    [
        ("data", "data", "data"),
        ("data", "double", "double_data"),
        ("double", "data", "double_data"),
        ("half", "data", "data"),
        ("half", "half", "raw FLOAT16"),
        ("raw_float", "half", "raw FLOAT"),
        ("raw_float", "data", "raw FLOAT"),
        ("half", "raw_double", "double_data"),
    ],
)
def test_the_widest_type_is_written(
    tmp_path: Path, weights: str, statistics: str, expected: str
) -> None:
    report, blobs = fold(net_of(weights, statistics), tmp_path)
    assert [kind(blob) for blob in blobs] == [expected, expected]
    assert report.checked is not None


@pytest.mark.parametrize(
    ("asked", "expected"),
    [("float16", "raw FLOAT16"), ("float32", "data"), ("float64", "double_data")],
)
def test_the_type_asked_for_is_written(tmp_path: Path, asked: str, expected: str) -> None:
    report, blobs = fold(net_of("data", "data"), tmp_path, weights_dtype=asked)
    assert [kind(blob) for blob in blobs] == [expected, expected]
    assert report.left == 0


def test_a_value_too_large_for_half_is_refused(tmp_path: Path) -> None:
    report, blobs = fold(net_of("data", "data", gain=1e6), tmp_path, weights_dtype="float16")
    assert len(blobs) == 1
    assert {stay.code for stay in report.stayed} == {"overflow"}
    assert "'conv'" in report.stayed[0].reason
    assert "float16" in report.stayed[0].reason


def test_a_channel_too_small_for_half_is_refused(tmp_path: Path) -> None:
    net = net_of("data", "data")
    net.layers[-1].blobs[0][2] = 1e-6
    net.layers[-1].blobs[1][2] = 0
    net.layers[-2].blobs[0][2] = 0
    report, _ = fold(net, tmp_path, weights_dtype="float16")
    assert {stay.code for stay in report.stayed} == {"precision"}
    assert "channel 2" in report.stayed[0].reason


@pytest.mark.parametrize(("steps", "is_refused"), [(550.4, True), (1100.4, False)])
def test_where_half_loses_more_than_rounding_costs(
    tmp_path: Path, steps: float, is_refused: bool
) -> None:
    """Below 1024 steps of 2**-24 lie the subnormal numbers, which lose more than 2**-11."""
    net = net_of("data", "data")
    net.layers[1].blobs[0][:] = steps * 2.0**-24
    del net.layers[2:]
    net.power("shift", "conv", shift=1)
    report, _ = fold(net, tmp_path, weights_dtype="float16")
    assert (report.folded == ()) == is_refused


def test_a_merged_scale_too_small_for_half_is_refused(tmp_path: Path) -> None:
    net = Net()
    net.input("data", (1, 4, 5, 5))
    net.relu("relu", "data", "x")
    net.batch_norm("bn", "x", 4)
    net.scale("scale", "x", 4).blobs[0][2] = 1e-6
    model, weights = net.write(tmp_path)
    out = tmp_path / "out.prototxt", tmp_path / "out.caffemodel"
    report = caffe_fold.fold(model, weights, *out, weights_dtype="float16")
    assert report.merged == ()
    assert {stay.code for stay in report.stayed} == {"not-linear"}
    assert all("precision" in stay.codes for stay in report.stayed)
    assert len(caffe_fold.fold(model, weights, *out, weights_dtype="float32").merged) == 1


def test_what_float_cannot_hold_is_zero_in_a_merged_scale(tmp_path: Path) -> None:
    net = Net()
    net.input("data", (1, 4, 5, 5))
    net.relu("relu", "data", "x")
    for name in ("one", "other"):
        net.scale(name, "x", 4, bias=False).blobs[0][2] = 1e-30
    model, weights = net.write(tmp_path)
    out = tmp_path / "out.prototxt", tmp_path / "out.caffemodel"
    assert len(caffe_fold.fold(model, weights, *out).merged) == 1


def test_a_bias_does_not_hide_that_weights_are_lost(tmp_path: Path) -> None:
    net = net_of("data", "data", gain=1e-7)
    report, _ = fold(net, tmp_path, weights_dtype="float16")
    assert {stay.code for stay in report.stayed} == {"precision"}


def test_a_value_too_large_for_float_is_refused(tmp_path: Path) -> None:
    net = net_of("data", "data", gain=1e37)
    net.layers[1].blobs[0] *= 1e3
    report, blobs = fold(net, tmp_path)
    assert len(blobs) == 1
    assert {stay.code for stay in report.stayed} == {"overflow"}


@pytest.mark.parametrize("raw_type", [3, 4, 5, None])
def test_raw_data_that_is_no_float_is_refused(tmp_path: Path, raw_type: int | None) -> None:
    model, weights = net_of("half", "data").write(tmp_path)
    net = caffe_pb2.NetParameter.FromString(weights.read_bytes())
    (conv,) = [layer for layer in net.layer if layer.name == "conv"]
    if raw_type is None:
        conv.blobs[0].ClearField("raw_data_type")
    else:
        conv.blobs[0].raw_data_type = caffe_pb2.BlobProto.Type.values()[raw_type]  # type: ignore[assignment]
    weights.write_bytes(net.SerializeToString())
    out = tmp_path / "out.prototxt", tmp_path / "out.caffemodel"
    report = caffe_fold.fold(model, weights, *out)
    assert "raw_data" in report.stayed[0].reason
    written = caffe_pb2.NetParameter.FromString(out[1].read_bytes())
    assert [layer for layer in written.layer if layer.name == "conv"] == [conv]


def test_gradients_of_folded_blobs_go(tmp_path: Path) -> None:
    model, weights = net_of("data", "data").write(tmp_path)
    net = caffe_pb2.NetParameter.FromString(weights.read_bytes())
    for layer in net.layer:
        for blob in layer.blobs:
            blob.diff.extend([1.0] * len(blob.data))
            blob.double_diff.extend([1.0] * len(blob.data))
            blob.raw_diff = b"1234"
    weights.write_bytes(net.SerializeToString())
    out = tmp_path / "out.prototxt", tmp_path / "out.caffemodel"
    caffe_fold.fold(model, weights, *out)
    written = caffe_pb2.NetParameter.FromString(out[1].read_bytes())
    (conv,) = [layer for layer in written.layer if layer.name == "conv"]
    for blob in conv.blobs:
        assert list(blob.diff) + list(blob.double_diff) == []
        assert not blob.HasField("raw_diff")
        assert len(blob.data) == np.prod(blob.shape.dim)


def test_a_choice_that_is_none_is_an_input_error(tmp_path: Path) -> None:
    with pytest.raises(caffe_fold.InputError, match=r"'bfloat16'.*'float16', 'float32'"):
        fold(net_of("data", "data"), tmp_path, weights_dtype="bfloat16")
