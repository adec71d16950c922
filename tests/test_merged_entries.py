"""Merged layers in weights as Caffe writes them, with each layer's parameters beside its blobs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from support.nets import Net
from support.wire import number, run, varint

import caffe_fold
from caffe_fold import caffe_pb2

C = 3
# Of LayerParameter and ScaleParameter (caffe.proto of BVLC Caffe).
BATCH_NORM_PARAM, SCALE_PARAM, BIAS_TERM = 139, 142, 4


def merged(
    folder: Path, net: Net, change: caffe_pb2.NetParameter | None = None
) -> caffe_pb2.NetParameter:
    """The weights of a net's fold; ``change`` stands in place of the net's own."""
    model, weights = net.write(folder)
    if change is not None:
        weights.write_bytes(change.SerializeToString())
    out = folder / "f.prototxt", folder / "f.caffemodel"
    report = caffe_fold.fold(model, weights, *out)
    assert [merge.layers for merge in report.merged] == [("power", "bn")]
    return caffe_pb2.NetParameter.FromString(out[1].read_bytes())


def net_that_merges() -> Net:
    """A Power and a BatchNorm between two ReLUs, which become one Scale."""
    net = Net()
    net.input("data", (2, C, 5, 5))
    net.relu("relu", "data", top="x")
    net.layer("power", "Power", "x", "y", "power_param { scale: 2 shift: 1 }")
    net.batch_norm("bn", "y", C, top="z")
    net.relu("relu2", "z")
    return net


def entry(weights: caffe_pb2.NetParameter, name: str) -> caffe_pb2.LayerParameter:
    (found,) = [layer for layer in weights.layer if layer.name == name]
    return found


@pytest.mark.parametrize("has_parameters", [False, True])
def test_a_batch_norm_becomes_a_scale(has_parameters: bool, tmp_path: Path) -> None:
    """Nothing of a BatchNorm is left in its entry, and the Scale has a bias as its text says."""
    net = net_that_merges()
    _, weights = net.write(tmp_path)
    original = caffe_pb2.NetParameter.FromString(weights.read_bytes())
    before = entry(original, "bn")
    if has_parameters:
        before.MergeFromString(run(BATCH_NORM_PARAM, number(1, 1)))
        before.param.add().lr_mult = 0
        before.phase = caffe_pb2.TEST
    found = entry(merged(tmp_path, net, original), "bn")
    assert found.type == "Scale"
    assert not found.param
    data = found.SerializeToString()
    assert varint(BATCH_NORM_PARAM << 3 | 2) not in data
    assert (run(SCALE_PARAM, number(BIAS_TERM, 1)) in data) == has_parameters
    assert found.HasField("phase") == has_parameters  # which a fold has no business with
    mean, variance, factor = (np.array(blob.data, np.float64) for blob in before.blobs)
    gain = 1 / np.sqrt(variance / factor + np.float32(1e-5))
    np.testing.assert_allclose(found.blobs[0].data, 2 * gain, rtol=1e-6)
    np.testing.assert_allclose(found.blobs[1].data, gain * (1 - mean / factor), rtol=1e-5)


def test_an_entry_of_the_older_format_has_no_type_any_more(tmp_path: Path) -> None:
    """Its enum has no Scale; Caffe takes the type from the prototxt."""
    net = net_that_merges()
    _, weights = net.write(tmp_path)
    before = entry(caffe_pb2.NetParameter.FromString(weights.read_bytes()), "bn")
    old = caffe_pb2.NetParameter()
    layer = old.layers.add(name="bn", bottom=["y"], top=["z"])
    layer.type = 18  # RELU, whatever it was taken for
    layer.blobs.extend(before.blobs)
    (found,) = merged(tmp_path, net, old).layers
    assert not found.HasField("type")
    assert len(found.blobs) == 2
    assert list(found.bottom) == ["x"]
