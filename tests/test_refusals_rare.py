"""Refusals that real nets seldom meet: odd shapes of blobs, old formats, names in the way."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from folding import fold_net
from support.nets import Net
from support.wire import BlobFormat

import caffe_fold

C, N = 3, 4


def net_of(type: str, params: str, *shapes: tuple[int, ...]) -> Net:
    """A convolution and one affine layer with blobs of ones."""
    net = Net()
    net.input("data", (2, C, 5, 5))
    net.conv("conv", "data", C, N, 1)
    net.layer("it", type, "conv", "y", params, [np.ones(shape) for shape in shapes])
    return net


@pytest.mark.parametrize(
    ("net", "code", "words"),
    [
        (net_of("Scale", "scale_param { num_axes: 0 }", (N,)), "blob-shape", "one number"),
        (net_of("Scale", "scale_param { axis: 1 bias_term: true }", (N,), (1,)), "blob-shape", ""),
        (net_of("Scale", "scale_param { num_axes: 2 }", (N, 5)), "not-per-channel", "(4, 5)"),
        (net_of("BN", "bn_param { bn_mode: INFERENCE }", (N,), (1,)), "bn-layout", "2 blobs"),
        (net_of("BN", "", (N,), (N,), (N,), (1,)), "bn-layout", "4 blobs"),
        (net_of("BN", "bn_param { bn_mode: LEARN }", *[(N,)] * 4), "bn-layout", "4 blobs"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_blobs_of_an_affine_layer(net: Net, code: str, words: str, tmp_path: Path) -> None:
    done = fold_net(net, tmp_path, runs=False)
    assert done.is_unchanged
    assert done.stayed("it").code == code
    assert words in done.stayed("it").reason


@pytest.mark.parametrize(
    ("shape", "words"),
    [
        ((N, C, 5), "not two axes"),
        ((N, 0), "(4, 0)"),
        ((1, 1, N, C * 25), "not two axes"),  # of a new shape, which Caffe does not shorten
        ((N + 1, C * 25), "'num_output: 4'"),
    ],
)
def test_weights_of_an_inner_product(shape: tuple[int, ...], words: str, tmp_path: Path) -> None:
    net = Net()
    net.input("data", (2, C, 5, 5))
    net.inner_product("ip", "data", C * 25, N)
    net.scale("scale", "ip", N)
    net.layers[1].blobs[0] = np.ones(shape)
    done = fold_net(net, tmp_path, runs=False)
    assert done.is_unchanged
    stay = done.stayed("scale")
    assert stay.code == "blob-shape"
    assert "'ip'" in stay.reason
    assert words in stay.reason


def test_legacy_weights_of_an_inner_product_lose_leading_ones_alone(tmp_path: Path) -> None:
    net = Net()
    net.input("data", (2, C, 5, 5))
    net.inner_product("ip", "data", C * 25, N)
    net.scale("scale", "ip", N)
    net.layers[1].blobs[0] = np.ones((2, 1, N, C * 25))
    net.layers[1].format = BlobFormat(legacy=True)
    done = fold_net(net, tmp_path, runs=False)
    assert done.is_unchanged
    assert done.stayed("scale").code == "blob-shape"


def test_weights_of_a_convolution_that_are_a_vector(tmp_path: Path) -> None:
    net = net_of("Power", "power_param { scale: 2 }")
    net.batch_norm("bn", "y", N, top="z")
    net.layers[1].blobs[0] = np.ones(N)
    stay = fold_net(net, tmp_path, runs=False).stayed("bn")
    assert "'conv'" in stay.reason
    assert "its weights have the shape (4,)" in stay.reason


@pytest.mark.parametrize("reader", ["conv", "ip"])
def test_a_reader_of_another_number_of_channels(reader: str, tmp_path: Path) -> None:
    """Caffe aborts on such a pair of files; no map is stretched to fit."""
    net = Net()
    net.input("data", (2, C, 5, 5))
    net.scale("scale", "data", C + 1, top="y")
    if reader == "conv":
        net.conv(reader, "y", C, N)
    else:
        net.inner_product(reader, "y", C * 25, N)
    done = fold_net(net, tmp_path, runs=False)
    assert done.is_unchanged
    stay = done.stayed("scale")
    assert stay.codes == ("not-linear", "channels")
    inputs = C if reader == "conv" else C * 25
    assert f"takes {inputs} inputs, not its {C + 1} channels" in stay.reason


def test_the_format_before_layer_has_no_scale_to_merge_into(tmp_path: Path) -> None:
    net = Net(v1=True)
    net.input("data", (2, C, 5, 5))
    net.relu("relu", "data", top="x")
    blobs = [net.rng.uniform(0.5, 1.5, C) for _ in range(4)]
    layer = net.layer("bn", "Power", "x", "y", "", blobs)
    layer.text = layer.text.replace("POWER", "BN")
    net.layer("power", "Power", "y", "z", "power_param { scale: 2 }")
    report = caffe_fold.fold(*net.write(tmp_path))  # the judge knows no BN of this format
    (stay,) = report.stayed
    assert (stay.layer, report.merged) == ("bn", ())
    assert "old-format" in stay.codes
    assert "its prototxt is of a format without Scale layers" in stay.reason


def test_a_merge_in_place_where_others_read_the_blob(tmp_path: Path) -> None:
    """The run's last top has the name of its bottom, which another layer reads before it."""
    net = Net()
    net.input("data", (2, C, 5, 5))
    net.relu("relu", "data", top="x")
    net.batch_norm("bn", "x", C, top="y")
    net.layer("other", "TanH", "x", "t")
    net.scale("scale", "y", C, top="x")
    net.eltwise("sum", ["x", "t"])
    done = fold_net(net, tmp_path, runs=False, any_names=True)  # on whose names Caffe aborts
    assert done.is_unchanged
    assert "blob 'x' would be changed in place while others read it" in done.stayed("bn").reason


def test_a_negative_axis_behind_an_input_without_a_shape(tmp_path: Path) -> None:
    net = Net()
    net.input("data", (2, C, 5, 5))
    net.layers[0].text = 'layer {\n  name: "data"\n  type: "Input"\n  top: "data"\n}\n'
    net.relu("relu", "data", top="x")
    net.batch_norm("bn", "x", C, top="y")
    net.layer("scale", "Scale", "y", "z", "scale_param { axis: -3 }", [np.full(C, 2.0)])
    stay = fold_net(net, tmp_path, runs=False).stayed("scale")
    assert stay.code == "unknown-rank"
    assert "'axis: -3' counts from the end" in stay.reason


def test_a_kept_blob_is_kept_behind_a_layer_that_goes(tmp_path: Path) -> None:
    """What stood under the kept name stands there still, and nothing later folds into it."""
    net = Net()
    net.input("data", (2, C, 5, 5))
    net.relu("relu", "data", top="x")
    net.layer("same", "Scale", "x", "x", "", [np.ones(C)])
    net.conv("conv", "x", C, N)
    done = fold_net(net, tmp_path, keep=["x"])
    assert done.layers == ["relu", "conv"]
    assert done.report.removed == ("same",)
