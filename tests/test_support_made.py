"""The test support's makers: small nets, made weights, inferred shapes, comparisons."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from support import compare
from support.evaluate import evaluate
from support.made_weights import make_weights
from support.netdef import read_net
from support.nets import Net
from support.registry import Unsupported
from support.shapes import infer
from support.weights import read_weights
from support.wire import BlobFormat

PROTOTXTS = Path(__file__).resolve().parents[2] / "shared" / "prototxts"


def chain() -> Net:
    """Return Input, Convolution, BatchNorm, Scale, ReLU, the last three in place."""
    net = Net("chain", seed=3)
    net.input("data", (2, 3, 6, 6))
    net.conv("conv", "data", 3, 4)
    net.batch_norm("bn", "conv", 4)
    net.scale("scale", "conv", 4)
    net.relu("relu", "conv")
    return net


def folded_by_hand(original: Net) -> Net:
    """Fold the chain, by the formula and not by the tool."""
    net = chain()
    conv, bn, scale = (original.layers[i].blobs for i in (1, 2, 3))
    gain = scale[0] / np.sqrt(bn[1] / bn[2] + np.float32(1e-5))
    net.layers[1].blobs = [
        conv[0] * gain[:, None, None, None],
        (conv[1] - bn[0] / bn[2]) * gain + scale[1],
    ]
    del net.layers[2:4]
    return net


def test_compare_finds_a_right_fold_right(tmp_path: Path) -> None:
    net = chain()
    before = evaluate(*net.write(tmp_path, "a"), net.inputs())
    after = evaluate(*folded_by_hand(net).write(tmp_path, "b"), net.inputs())
    compare.assert_same(before, after, [("conv", "scale")])
    labels = [item.blob for item in compare.compare_pair(before, after, [("conv", "scale")])]
    assert labels == ["data@data", "conv@conv = scale", "relu@conv", "data", "conv"]


def test_compare_finds_a_wrong_fold_wrong(tmp_path: Path) -> None:
    net = chain()
    wrong = folded_by_hand(net)
    wrong.layers[1].blobs[1][2] += 0.01
    before = evaluate(*net.write(tmp_path, "a"), net.inputs())
    after = evaluate(*wrong.write(tmp_path, "b"), net.inputs())
    with pytest.raises(AssertionError, match="conv@conv = scale"):
        compare.assert_same(before, after, [("conv", "scale")])


@pytest.mark.parametrize(
    ("left", "right", "relative"),
    [
        ([1.0, 2.0], [1.0, 2.5], 0.25),
        ([np.nan, 2.0], [np.nan, 2.0], 0.0),
        ([np.nan, 2.0], [1.0, 2.0], np.inf),
        ([1.0, 2.0], [1.0, np.nan], np.inf),
        ([np.inf], [-np.inf], np.inf),
        ([1.0], [1.0, 1.0], np.inf),
        ([0.0], [0.5], 0.5),
    ],
)
def test_differ(left: list[float], right: list[float], relative: float) -> None:
    assert compare.differ("x", left, right).relative == relative


@pytest.mark.parametrize(
    "format",
    [
        BlobFormat("data"),
        BlobFormat("double"),
        BlobFormat("half"),
        BlobFormat("raw_float"),
        BlobFormat("raw_double"),
        BlobFormat("data", legacy=True),
        BlobFormat("data", unpacked=True),
        BlobFormat("double", unpacked=True, legacy=True),
        BlobFormat("data", runs=3),
    ],
)
def test_every_format_of_blobs_is_read_back(format: BlobFormat) -> None:
    net = chain()
    blobs = [np.arange(-4.0, 32.0).reshape(4, 1, 3, 3), np.arange(4.0)]
    net.layer("kept", "Convolution", blobs=blobs, format=format)
    kept = read_weights(net.caffemodel())[-1]
    for blob, wanted in zip(kept.blobs, blobs):
        np.testing.assert_array_equal(blob.values, wanted.reshape(-1))
        assert blob.is_legacy == format.legacy
        assert blob.fits(wanted.shape)


def test_layers_may_stand_in_one_file_only(tmp_path: Path) -> None:
    net = chain()
    net.conv("only_weights", "conv", 4, 4).in_text = False
    net.relu("only_text", "conv", "out")
    net.layers[-1].in_weights = False
    prototxt, caffemodel = net.write(tmp_path)
    assert [layer.name for layer in read_net(prototxt).layers][-1] == "only_text"
    assert [layer.name for layer in read_weights(caffemodel)][-1] == "only_weights"


def test_lenient_leaves_what_cannot_be_run(tmp_path: Path) -> None:
    net = chain()
    net.layer("odd", "Mystery", "conv", "odd")
    net.relu("behind", "odd", "behind")
    files = net.write(tmp_path)
    with pytest.raises(Unsupported, match="'odd'"):
        evaluate(*files, net.inputs())
    result = evaluate(*files, net.inputs(), lenient=True)
    assert result.unknown == {"odd", "behind"}
    assert "conv" in result.blobs


def test_random_fillers_are_refused(tmp_path: Path) -> None:
    net = Net()
    net.input("data", (1, 3, 6, 6))
    net.conv("conv", "data", 3, 4, params='weight_filler { type: "xavier" }').in_weights = False
    with pytest.raises(ValueError, match="'conv': no weights, its weight stays random"):
        evaluate(*net.write(tmp_path), net.inputs())


FORKS = """
layer { name: "d" type: "Data" top: "data" top: "label" transform_param { crop_size: 32 } }
layer { name: "conv" type: "Convolution" bottom: "data" top: "conv"
        convolution_param { num_output: 8 kernel_size: 3 pad: 1 bias_term: false } }
layer { name: "five" type: "BatchNorm" bottom: "conv" top: "conv"
        batch_norm_param { scale_bias: true } }
layer { name: "dw" type: "DepthwiseConvolution" bottom: "conv" top: "dw"
        convolution_param { num_output: 8 kernel_size: 3 pad: 1 } }
layer { name: "bn4" type: "BN" bottom: "dw" top: "dw" bn_param { frozen: true } }
layer { name: "bn2" type: "BN" bottom: "dw" top: "bn2" bn_param { bn_mode: INFERENCE } }
layer { name: "up" type: "Upsample" bottom: "bn2" top: "up" upsample_param { scale: 2 } }
layer { name: "odd" type: "Mystery" bottom: "up" top: "odd" }
layer { name: "pw" type: "Convolution" bottom: "odd" top: "pw"
        convolution_param { num_output: 4 kernel_size: 1 } }
layer { name: "bn3" type: "BatchNorm" bottom: "pw" top: "pw" }
"""


def test_made_weights_fit_forks_and_unknown_layers(tmp_path: Path) -> None:
    prototxt, caffemodel = tmp_path / "net.prototxt", tmp_path / "net.caffemodel"
    prototxt.write_text(FORKS)
    make_weights(prototxt, caffemodel, 1)
    shapes = {layer.name: [b.shape for b in layer.blobs] for layer in read_weights(caffemodel)}
    each = (1, 8, 1, 1)
    assert shapes == {
        "d": [],
        "conv": [(8, 3, 3, 3)],
        "five": [(8,), (8,), (1,), (8,), (8,)],
        "dw": [(8, 1, 3, 3), (8,)],
        "bn4": [each] * 4,
        "bn2": [each] * 2,
        "up": [],
        "odd": [],
        "pw": [(4, 8, 1, 1), (4,)],
        "bn3": [(4,), (4,), (1,)],
    }
    data = np.ones((1, 3, 32, 32))
    result = evaluate(prototxt, caffemodel, {"data": data}, lenient=True)
    assert result.blobs["up"].shape == (1, 8, 64, 64)
    assert infer(read_net(prototxt))[1][-1] == [(1, 4, None, None)]


def test_made_weights_depend_on_the_seed_alone(tmp_path: Path) -> None:
    prototxt = tmp_path / "net.prototxt"
    prototxt.write_text(FORKS)
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        make_weights(prototxt, tmp_path / name, seed)
    first, second, third = ((tmp_path / name).read_bytes() for name in "abc")
    assert first == second != third
