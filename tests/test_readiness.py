"""What int8 does to folded weights, against its definition on the weights that a fold writes."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from support.nets import Net
from support.weights import read_weights

import caffe_fold
from caffe_fold.quantization import readiness
from caffe_fold.quantization.readiness import LayerReadiness
from caffe_fold.writing import arithmetic, folded_values

KINDS = ["conv", "grouped", "deconv", "inner", "transposed"]


def net_of(kind: str, side: str = "behind") -> Net:
    net = Net(kind)
    net.input("data", (1, 6, 5, 5))
    if side == "before":
        net.batch_norm("bn", "data", 6, top="x")
        net.scale("scale", "x", 6)
    bottom = "x" if side == "before" else "data"
    if kind in ("conv", "grouped"):
        net.conv("layer", bottom, 6, 4, 3, group=1 if kind == "conv" else 2)
    elif kind == "deconv":
        net.deconv("layer", bottom, 6, 4, 3, group=2)
    else:
        net.inner_product("layer", bottom, 150, 4, transpose=kind == "transposed")
    if side == "behind":
        net.batch_norm("bn", "layer", 4)
        net.scale("scale", "layer", 4)
    net.relu("relu", "layer")
    return net


def per_output(kind: str, weights: NDArray[Any]) -> NDArray[np.float64]:
    """Weights as one row an output channel."""
    if kind == "deconv":
        return weights.reshape(2, 3, 2, 9).transpose(0, 2, 1, 3).reshape(4, -1).astype(np.float64)
    if kind == "transposed":
        return weights.T.astype(np.float64)
    return weights.reshape(4, -1).astype(np.float64)


def measured(net: Net, folder: Path) -> LayerReadiness:
    found = caffe_fold.inspect(*net.write(folder), int8=True).readiness
    assert found is not None
    (layer,) = found.layers
    return layer


def folded(folder: Path) -> tuple[NDArray[Any], NDArray[Any]]:
    caffe_fold.fold(folder / "net.prototxt", folder / "net.caffemodel")
    entries = read_weights((folder / "net_inference.caffemodel").read_bytes())
    (layer,) = [entry for entry in entries if entry.name == "layer"]
    weight, bias = layer.blobs
    return np.asarray(weight.values).reshape(weight.shape), np.asarray(bias.values).ravel()


@pytest.mark.parametrize(
    ("kind", "side"),
    [*((kind, "behind") for kind in KINDS), ("conv", "before"), ("transposed", "before")],
)
def test_it_measures_what_the_fold_writes(
    kind: str, side: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Blocks of a few weights.
    monkeypatch.setattr(folded_values, "blocks", lambda layout: arithmetic.blocks(layout, 11))
    net = net_of(kind, side)
    layer = measured(net, tmp_path)
    made = next(each for each in net.layers if each.name == "layer")
    before = per_output(kind, made.blobs[0].astype(np.float32))
    monkeypatch.undo()
    weights, bias = folded(tmp_path)
    after = per_output(kind, weights)
    for state, rows, biases in (
        (layer.before, before, made.blobs[1].astype(np.float32)),
        (layer.after, after, bias),
    ):
        step = np.abs(rows).max() / 127
        errors = rows - np.round(rows / step) * step
        noise = (errors**2).sum(axis=1) / (rows**2).sum(axis=1)
        np.testing.assert_allclose(state.ranges, np.abs(rows).max(axis=1), rtol=1e-6)
        np.testing.assert_allclose(state.noise, noise, rtol=1e-3)
        np.testing.assert_allclose(state.bias, biases, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(state.norms, np.linalg.norm(rows, axis=1), rtol=1e-6)
        assert state.sqnr == pytest.approx(-10 * math.log10(noise.mean()), abs=1e-2)


def test_bits_spread_and_bias() -> None:
    state = readiness.Weights(
        np.array([1.0, 0.5, 1 / 254, 0.25]), np.zeros(4), np.array([3.0, -8, 0, 0]), np.full(4, 2.0)
    )
    np.testing.assert_allclose(state.bits, [math.log2(255), 7, 1, math.log2(64.5)])
    assert state.spread == pytest.approx(1 / 0.375)
    assert (state.largest_bias, state.bias_to_weights) == (8, 4)
    assert state.sqnr == math.inf


def test_a_small_gain_is_named_as_the_cause(tmp_path: Path) -> None:
    net = net_of("conv")
    net.layers[2].blobs[1][:] = 1
    net.layers[2].blobs[2][:] = 1
    net.layers[3].blobs[0][:] = [1, 1, 0.002, 1]
    layer = measured(net, tmp_path)
    (data,) = caffe_fold.inspect(tmp_path / "net.prototxt", tmp_path / "net.caffemodel", int8=True
                                 ).to_dict()["int8"]["layers"]  # fmt: skip
    assert layer.is_hurt
    assert layer.before.sqnr - layer.after.sqnr > 6
    assert re.search(r"Channel 2 has 0\.\d+% of the largest range, by its gain of 0\.002",
                     data["reason"])  # fmt: skip
    assert re.search(r"keeps 0\.\d bits", data["reason"])
    assert "before folding it was" in data["reason"]
    assert data["hurt"] is True


def test_a_large_gain_is_named_as_the_cause(tmp_path: Path) -> None:
    net = net_of("conv")
    net.layers[2].blobs[1][:] = 1
    net.layers[2].blobs[2][:] = 1
    net.layers[3].blobs[0][:] = [1, 300, 1, 1]
    (layer,) = caffe_fold.inspect(*net.write(tmp_path), int8=True).to_dict()["int8"]["layers"]
    assert "times the median range, by its gain of 300 (median 1), and sets" in layer["reason"]
    assert "3 of 4 channels keep fewer than 4 of 8 bits" in layer["reason"]


def reason_of(rows: list[float], gains: list[float], folder: Path) -> str:
    """The words for a layer whose channels have these ranges, and then these gains."""
    net = net_of("conv")
    ranges = np.reshape(rows, (4, 1, 1, 1))
    net.layers[1].blobs[0] *= ranges / np.abs(net.layers[1].blobs[0]).max((1, 2, 3), keepdims=True)
    net.layers[2].blobs[1][:] = 1
    net.layers[2].blobs[2][:] = 1
    net.layers[3].blobs[0][:] = gains
    return str(measured(net, folder).to_dict()["reason"])


def test_a_gain_is_no_cause_of_a_range_that_it_makes_smaller(tmp_path: Path) -> None:
    reason = reason_of([100, 1, 1, 1], [0.2, 1, 1, 1], tmp_path)
    assert reason.startswith("Channel 0 has 20 times the median range, and sets the step")
    assert "gain" not in reason


def test_a_gain_is_no_cause_of_a_range_that_it_makes_larger(tmp_path: Path) -> None:
    reason = reason_of([1, 1, 1, 0.002], [1, 1, 1, 5], tmp_path)
    assert "Channel 3 has 1% of the largest range and keeps" in reason
    assert "gain" not in reason


def test_a_gain_that_is_only_a_part_of_the_cause(tmp_path: Path) -> None:
    reason = reason_of([8, 1, 1, 0.125], [4, 1, 1, 0.25], tmp_path)
    assert reason.startswith(
        "Channel 0 has 32 times the median range, 8 times the median without its gain of 4 "
        "(median 1), and sets the step"
    )
    assert (
        "of the largest range, 0.12 times the median without its gain of 0.25 (median 1) and keeps"
    ) in reason


def test_a_fold_that_makes_a_layer_better_is_said_to(tmp_path: Path) -> None:
    reason = reason_of([50, 1, 1, 1], [0.02, 1, 1, 1], tmp_path)
    assert reason.endswith("%, so folding made it better.")
    assert "; before folding it was" in reason


def test_gains_that_are_alike_hurt_nothing(tmp_path: Path) -> None:
    net = net_of("conv")
    net.layers[2].blobs[1][:] = 1
    net.layers[3].blobs[0][:] = 1
    layer = measured(net, tmp_path)
    assert not layer.is_hurt
    assert abs(layer.before.sqnr - layer.after.sqnr) < 0.01
    assert layer.to_dict()["reason"].endswith(", as it was before folding.")
    assert layer.dead == layer.zero_gains == 0


def test_dead_channels_do_not_count_as_noise(tmp_path: Path) -> None:
    net = net_of("conv")
    net.layers[2].blobs[1][:] = 1
    net.layers[3].blobs[0][:] = [1, 0, 1e-9, 1]
    layer = measured(net, tmp_path)
    assert (layer.zero_gains, layer.dead) == (1, 2)
    assert not layer.is_hurt
    assert layer.after.sqnr > 30


def test_a_layer_that_is_all_dead(tmp_path: Path) -> None:
    net = net_of("conv")
    net.layers[3].blobs[0][:] = 0
    layer = measured(net, tmp_path)
    assert layer.dead == 4
    assert layer.to_dict()["reason"] == "All of its weights are zero."
    assert layer.to_dict()["after"]["range_to_median"] is None


def test_weights_that_are_not_finite_are_said_to_be_unread(tmp_path: Path) -> None:
    """Such a fold is refused, so that there is nothing to measure."""
    net = net_of("conv")
    net.layers[1].blobs[0][0] = np.inf
    found = caffe_fold.inspect(*net.write(tmp_path), int8=True)
    assert found.readiness == readiness.Readiness((), ())
    assert "not finite" in found.layers[3].fate.reason


def test_worst_first(tmp_path: Path) -> None:
    net = Net("two")
    net.input("data", (1, 6, 9, 9))
    bottom = "data"
    for index, gain in enumerate((0.01, 1, 0.002)):
        net.conv(f"conv{index}", bottom, 6, 6, 3)
        net.batch_norm(f"bn{index}", f"conv{index}", 6).blobs[1][:] = 1
        net.scale(f"scale{index}", f"conv{index}", 6).blobs[0][:] = [1, 1, 1, gain, 1, gain]
        net.relu(f"relu{index}", f"conv{index}")
        bottom = f"conv{index}"
    found = caffe_fold.inspect(*net.write(tmp_path), int8=True).readiness
    assert found is not None
    assert [layer.layer for layer in found.layers] == ["conv0", "conv1", "conv2"]
    assert [layer.layer for layer in found.hurt] == ["conv2", "conv0"]
