"""Fields of the forks in layers that take part: what may pad, what may activate, what is off."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from folding import Folded, absorbed, fold_net
from support.nets import Net

C, N = 3, 4

PLACES = ["in the layer", "in its parameters"]


def put(net: Net, name: str, field: str, place: str) -> None:
    """Write a field into a layer or into its parameter message."""
    (layer,) = [layer for layer in net.layers if layer.name == name]
    if place == "in the layer":
        layer.text = layer.text.replace("\n}", f"\n  {field}\n}}")
    else:
        assert "_param { " in layer.text
        layer.text = layer.text.replace("_param { ", f"_param {{ {field} ")


def before(shift: bool = True) -> Net:
    """A run before a convolution without padding, which takes it with its shift."""
    net = Net()
    net.input("data", (1, C, 5, 5))
    net.relu("relu", "data", "x")
    net.scale("scale", "x", C, "y", bias=shift)
    net.conv("conv", "y", C, N, 3)
    return net


def behind() -> Net:
    net = Net()
    net.input("data", (1, C, 5, 5))
    net.conv("conv", "data", C, N, 3)
    net.batch_norm("bn", "conv", N)
    net.scale("scale", "conv", N)
    return net


# ---- Padding ----

PADDING = [
    "pad_type: SAME",
    "pad_top: 1",
    "pads: 1",
    "same: true",
    "border_mode: 'same'",
    "auto_pad: SAME_UPPER",
    "padding_mode: 'x'",
    "PAD: 1",
    "asymmetric_pad { left: 1 }",
]


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("field", PADDING)
def test_what_may_pad_takes_no_shift(field: str, place: str, tmp_path: Path) -> None:
    net = before()
    put(net, "conv", field, place)
    done = fold_net(net, tmp_path, runs=False)
    assert done.is_unchanged
    stay = done.stayed("scale")
    assert "may pad it" in stay.reason
    assert f"{field.split(':')[0].split(' ')[0]}'" in stay.reason


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("field", PADDING)
def test_what_may_pad_takes_a_scale_and_all_that_is_behind(
    field: str, place: str, tmp_path: Path
) -> None:
    """Zeros around the input are the same zeros when all is scaled."""
    for net, gone in ((before(shift=False), ("scale",)), (behind(), ("bn", "scale"))):
        put(net, "conv", field, place)
        done = fold_net(net, tmp_path, runs=False)
        assert absorbed(done.report) == {"conv": gone}
        assert field in done.text
        assert "'conv'" in done.warnings["unknown-field"]


@pytest.mark.parametrize("field", ["hole: 2", "sr: 3", "kernel_stride: 1", "engine: MKLDNN"])
def test_other_fields_take_a_shift(field: str, tmp_path: Path) -> None:
    net = before()
    put(net, "conv", field, "in its parameters")
    assert absorbed(fold_net(net, tmp_path, runs=False).report) == {"conv": ("scale",)}


# ---- Activations ----

ON = [
    "relu: true",
    "relu: 1",
    "relu: t",
    "sum_relu: true",
    "fuse_relu: true",
    "with_ReLU: true",
    "leaky: 0.1",
    "negative_slope: 0.1",
    "fusion_type: SUM_FUSION",
    "activation: 'relu'",
    "activation: 1",
    "relu_param { negative_slope: 0 }",
    "fused_tanh: true",
]
OFF = [
    "relu: false",
    "relu: False",
    "relu: f",
    "relu: 0",
    "with_ReLU: false",
    "leaky: 0.0",
    "leaky: 0.f",
    "negative_slope: 0",
    "fusion_type: UNFUSED",
    "activation: NONE",
    "activation: 'none'",
    'activation: "linear"',
]


def assert_refused(done: Folded, *words: str) -> None:
    assert {stay.code for stay in done.report.stayed} <= {"changes-computation", "not-linear"}
    reasons = " | ".join(stay.reason for stay in done.report.stayed)
    assert "changes what it computes" in reasons
    for word in words:
        assert word in reasons


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("field", ON)
def test_what_may_activate_refuses_its_linear_layer(field: str, place: str, tmp_path: Path) -> None:
    net = before()
    put(net, "conv", field, place)
    done = fold_net(net, tmp_path, runs=False)
    assert done.is_unchanged
    assert_refused(done, "'conv'", field.split(" {")[0])
    net = behind()
    put(net, "conv", field, place)
    done = fold_net(net, tmp_path, runs=False)
    assert done.report.folded == ()
    assert_refused(done, "'conv'")


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("field", ON)
def test_what_may_activate_refuses_its_affine_layer(field: str, place: str, tmp_path: Path) -> None:
    net = behind()
    put(net, "bn", field, place)
    done = fold_net(net, tmp_path, runs=False)
    assert done.is_unchanged
    assert done.stayed("bn").code == "changes-computation"


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("field", OFF)
def test_what_is_off_is_only_named(field: str, place: str, tmp_path: Path) -> None:
    net = behind()
    for name in ("conv", "bn", "scale"):
        put(net, name, field, place)
    done = fold_net(net, tmp_path, runs=False)
    assert done.layers == ["conv"]
    found = [note.message for note in done.report.warnings if note.code == "unknown-field"]
    assert all(f"{field.split(':')[0]}'" in message for message in found)
    assert all(f"'{name}'" in " ".join(found) for name in ("conv", "bn", "scale"))


def test_a_merged_run_keeps_no_activation_of_what_stays(tmp_path: Path) -> None:
    """A layer that is refused ends the runs beside it."""
    net = Net()
    net.input("data", (1, C, 5, 5))
    net.relu("relu", "data", "x")
    net.batch_norm("bn", "x", C)
    net.scale("scale", "x", C)
    net.power("power", "x", 2.0, 1.0)
    put(net, "scale", "relu: true", "in its parameters")
    done = fold_net(net, tmp_path, runs=False)
    assert done.is_unchanged
    assert done.stayed("scale").code == "changes-computation"


# ---- Blobs that do not go together ----


@pytest.mark.parametrize("reader", ["behind", "before", "merge"])
def test_two_blobs_of_a_batch_norm_have_no_factor(reader: str, tmp_path: Path) -> None:
    """Caffe would not load it, and what is meant is clear."""
    net = Net()
    net.input("data", (1, C, 5, 5))
    net.relu("relu", "data", "x")
    if reader == "behind":
        net.conv("conv", "x", C, C, 1, top="y")
    bottom = "y" if reader == "behind" else "x"
    bn = net.batch_norm("bn", bottom, C, "z", factor=1.0)
    if reader == "before":
        net.conv("conv", "z", C, C, 1)
    elif reader == "merge":
        net.scale("scale", "z", C)
    whole = [blob.copy() for blob in bn.blobs]
    folder = tmp_path / "whole"
    folder.mkdir()
    wanted = fold_net(net, folder)
    bn.blobs = whole[:2]
    done = fold_net(net, tmp_path, runs=False)
    assert "'bn'" in done.warnings["no-factor"]
    assert "no-factor" not in wanted.warnings
    name = "scale" if reader == "merge" else "conv"
    for one, other in zip(wanted.blobs(name), done.blobs(name)):
        assert np.array_equal(one.values, other.values)


def test_two_blobs_of_a_batch_norm_that_stays_need_no_warning(tmp_path: Path) -> None:
    net = Net()
    net.input("data", (1, C, 5, 5))
    net.relu("relu", "data", "x")
    net.batch_norm("bn", "x", C, "y").blobs.pop()
    done = fold_net(net, tmp_path, runs=False)
    assert done.is_unchanged
    assert done.warnings == {}


@pytest.mark.parametrize("shape", [(2, 2), (N, 1), (1, N), (1,), (N + 1,)])
def test_a_scale_whose_bias_has_another_shape(shape: tuple[int, ...], tmp_path: Path) -> None:
    net = behind()
    net.layers[-1].blobs[1] = np.ones(shape)
    done = fold_net(net, tmp_path, runs=False)
    assert done.layers == ["conv", "scale"]
    stay = done.stayed("scale")
    assert stay.code == "blob-shape"
    assert f"({N},)" in stay.reason
    assert str(shape) in stay.reason


@pytest.mark.parametrize("factor", [[1.0, 2.0], [1.0, 1.0, 1.0, 1.0], []])
def test_a_factor_that_is_not_one_number(factor: list[float], tmp_path: Path) -> None:
    net = behind()
    net.layers[2].blobs[2] = np.array(factor)
    done = fold_net(net, tmp_path, runs=False)
    assert done.is_unchanged
    assert done.stayed("bn").code in ("bn-layout", "blob-shape")


@pytest.mark.parametrize("shape", [(1,), (1, 1, 1, 1), ()])
def test_a_factor_of_one_number_in_any_shape(shape: tuple[int, ...], tmp_path: Path) -> None:
    net = behind()
    net.layers[2].blobs[2] = net.layers[2].blobs[2].reshape(shape)
    assert fold_net(net, tmp_path, runs=False).layers == ["conv"]
