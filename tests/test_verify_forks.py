"""Layers of forks run in an engine as their standard equals; and numbers that are none."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.command import Call
from support.nets import Net

import caffe_fold
from caffe_fold.errors import InputError
from caffe_fold.verification.compare import differ
from caffe_fold.verification.detections import differ_in_rows

C = 4


def positive(net: Net, count: int) -> list[Any]:
    return [net.rng.uniform(0.5, 2, C) for _ in range(count)]


# Type, parameters, number of blobs, and what the user has to say.
FORKS: dict[str, tuple[str, str, int, dict[str, Any]]] = {
    "BN of SegNet": ("BN", "bn_param { bn_mode: INFERENCE }", 2, {}),
    "BN, inverse deviation": ("BN", "bn_param { eps: 0.01 }", 4, {"bn_variance": "invstd"}),
    "CuDNNBatchNorm, 2 blobs": ("CuDNNBatchNorm", "", 2, {}),
    "CuDNNBatchNorm, 3 blobs": ("CuDNNBatchNorm", "", 3, {}),
    "BatchNorm, 2 blobs": ("BatchNorm", "", 2, {}),
}


@pytest.mark.oracle
@pytest.mark.parametrize("name", FORKS)
@pytest.mark.parametrize("is_right", [True, False], ids=["right", "wrong"])
def test_a_fork_runs_as_its_standard_equal(name: str, is_right: bool, tmp_path: Path) -> None:
    pytest.importorskip("cv2", reason="OpenCV is not installed")
    type, params, count, options = FORKS[name]
    net = Net()
    net.input("data", (1, 3, 8, 8))
    net.conv("conv", "data", 3, C)
    layer = net.layer("norm", type, "conv", "norm", params, positive(net, count))
    net.relu("relu", "norm")
    model, weights = net.write(tmp_path)
    folded = tmp_path / "f.prototxt", tmp_path / "f.caffemodel"
    assert caffe_fold.fold(model, weights, *folded, **options).folded
    if not is_right:  # the fold of another layer
        factor = 0 if type == "BN" else 1  # by which all is multiplied, in some way
        layer.blobs[factor] = layer.blobs[factor] * 1.01
        model, weights = net.write(tmp_path)
    result = caffe_fold.verify(model, weights, *folded, engine="opencv", **options)
    assert (result.passed, result.how) == (is_right, "rewritten")


@pytest.mark.oracle
def test_a_bias_that_the_weights_lack_is_none_in_the_engine(tmp_path: Path) -> None:
    """The text of both nets implies one."""
    pytest.importorskip("cv2", reason="OpenCV is not installed")
    net = Net()
    net.input("data", (1, 3, 8, 8))
    net.conv("first", "data", 3, C)
    net.batch_norm("bn", "first", C)
    net.layer("forks", "BN", "first", "x", "bn_param { bn_mode: INFERENCE }", positive(net, 2))
    net.relu("relu", "x")
    net.conv("last", "x", C, C)
    net.layers[-1].blobs.pop()
    model, weights = net.write(tmp_path)
    folded = tmp_path / "f.prototxt", tmp_path / "f.caffemodel"
    caffe_fold.fold(model, weights, *folded)
    assert caffe_fold.verify(model, weights, *folded, engine="opencv").passed


@pytest.mark.oracle
@pytest.mark.parametrize("is_right", [True, False], ids=["right", "wrong"])
def test_a_bias_runs_in_opencv_which_has_none(is_right: bool, tmp_path: Path) -> None:
    """As a Scale; the input's mean and scale of nets that other frameworks trained are such."""
    pytest.importorskip("cv2", reason="OpenCV is not installed")
    net = Net()
    net.input("data", (1, 3, 8, 8))
    net.bias("minus", "data", 3, "centred")
    net.scale("times", "centred", 3, "scaled", bias=False)
    net.conv("conv", "scaled", 3, C, pad=1)
    net.batch_norm("bn", "conv", C)
    model, weights = net.write(tmp_path)
    folded = tmp_path / "f.prototxt", tmp_path / "f.caffemodel"
    report = caffe_fold.fold(model, weights, *folded)
    assert [merge.layers for merge in report.merged] == [("minus", "times")]
    if not is_right:
        net.layers[1].blobs[0] += 0.1
        model, weights = net.write(tmp_path)
    result = caffe_fold.verify(model, weights, *folded, engine="opencv")
    assert (result.passed, result.how) == (is_right, "rewritten")


@pytest.mark.oracle
@pytest.mark.parametrize("is_right", [True, False], ids=["right", "wrong"])
def test_a_fork_in_the_format_of_layers_runs_in_todays(is_right: bool, tmp_path: Path) -> None:
    """V1 has no BatchNorm and no Scale that a BN of a fork could become."""
    pytest.importorskip("cv2", reason="OpenCV is not installed")
    net = Net(v1=True)
    net.input("data", (1, 3, 8, 8))
    extra = 'blobs_lr: 1 blobs_lr: 2 weight_decay: 1 weight_decay: 0 param: "w" param: "b"'
    net.conv("conv", "data", 3, C, extra=extra)
    bn = net.layer("bn", "Power", "conv", "conv", "bn_param { bn_mode: INFERENCE }")
    bn.text = bn.text.replace("POWER", "BN")
    bn.blobs = positive(net, 2)
    net.relu("relu", "conv")
    net.layer("pool", "Pooling", "conv", "pool", "pooling_param { pool: MAX kernel_size: 2 }")
    model, weights = net.write(tmp_path)
    folded = tmp_path / "f.prototxt", tmp_path / "f.caffemodel"
    assert caffe_fold.fold(model, weights, *folded).folded
    if not is_right:
        bn.blobs[0] = bn.blobs[0] * 1.01
        model, weights = net.write(tmp_path)
    result = caffe_fold.verify(model, weights, *folded, engine="opencv")
    assert (result.passed, result.how) == (is_right, "rewritten")


@pytest.mark.oracle
def test_a_python_layer_whose_module_is_missing_is_cut_out(
    tmp_path: Path, real_caffe: None
) -> None:
    """As the proposals of a detector: all else is run."""
    net = Net()
    net.input("data", (1, 3, 8, 8))
    net.conv("conv", "data", 3, C)
    net.batch_norm("bn", "conv", C)
    net.relu("relu", "conv")
    net.layer("own", "Python", "conv", "own", 'python_param { module: "no_such" layer: "L" }')
    model, weights = net.write(tmp_path)
    folded = tmp_path / "f.prototxt", tmp_path / "f.caffemodel"
    assert caffe_fold.fold(model, weights, *folded).folded
    result = caffe_fold.verify(model, weights, *folded, engine="caffe")
    assert (result.passed, result.how, result.coverage.by_parts) == (True, "parts", 2)


# ---- Numbers that are none, and options that make no sense ----


def test_values_without_a_finite_number_prove_nothing() -> None:
    bad = np.full((1, 2), np.nan)
    assert differ(bad, bad).absolute == math.inf
    assert differ(bad, bad).problem == "it holds no finite number"
    assert differ(np.zeros((0, 2)), np.zeros((0, 2))).absolute == 0


def test_detections_that_are_not_finite_match_nothing() -> None:
    rows = np.array([[[[0, 1, 0.9, 0, 0, 1, np.nan]]]])
    assert differ_in_rows(rows, rows, 1e-4).absolute == math.inf


def test_an_unknown_engine_is_named(tmp_path: Path) -> None:
    net = Net()
    net.input("data", (1, 3, 8, 8))
    net.conv("conv", "data", 3, C)
    files = net.write(tmp_path)
    with pytest.raises(InputError, match="engine is 'torch'; expected 'auto', 'opencv' or 'caffe'"):
        caffe_fold.verify(*files, *files, engine="torch")


def test_a_mean_that_is_no_number(call: Call) -> None:
    done = call("verify", "--model", "a", "--weights", "b", "--mean", "1,x")
    assert done.code == 2
    assert "'1,x': expected a number, or one a channel" in done.err


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("value", [np.inf, 1e300])
def test_an_input_that_is_not_finite(value: float, tmp_path: Path) -> None:
    pytest.importorskip("cv2", reason="OpenCV is not installed")
    net = Net()
    net.input("data", (1, 3, 8, 8))
    net.conv("conv", "data", 3, C)
    files = net.write(tmp_path)
    np.save(tmp_path / "x.npy", np.full((1, 3, 8, 8), value))
    with pytest.raises(InputError, match="not finite in float32"):
        caffe_fold.verify(*files, *files, input=tmp_path / "x.npy")
