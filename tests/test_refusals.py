"""What is not folded, and what the report says of it: code, layer and blob names."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest
from folding import Folded, fold_net
from support.nets import Net, NetLayer
from support.wire import BlobFormat

import caffe_fold

C, N = 3, 4


def _net(*, conv: bool = True, bias: bool = True) -> Net:
    """``data`` and a layer ``front`` that writes ``x``: a convolution, or a ReLU."""
    net = Net()
    net.input("data", (2, C, 5, 5))
    if conv:
        net.conv("front", "data", C, N, 1, top="x", bias=bias)
    else:
        net.conv("stem", "data", C, N, 1, top="s")
        net.relu("front", "s", "x")
    return net


def _bn(net: Net, **options: str) -> NetLayer:
    return net.batch_norm("bn", "x", N, "y", **options)  # type: ignore[arg-type]


def _assert_stays(done: Folded, layer: str, code: str, *words: str) -> None:
    """A layer stays for a reason that names all these words, and the text has it so."""
    stay = done.stayed(layer)
    assert stay.code == code, stay
    for word in words:
        assert word in stay.reason, stay
    assert layer in done.layers
    assert f"stays    {layer} ({stay.type}): {stay.reason}" in done.report.to_text()
    assert "\n" not in stay.reason
    assert not stay.reason.endswith(".")


# ---- The affine layer itself ----


@pytest.mark.parametrize("how", ["use_global_stats", "phase"])
@pytest.mark.parametrize("assume", [False, True])
def test_batch_statistics(how: str, assume: bool, tmp_path: Path) -> None:
    net = _net()
    if how == "phase":
        _bn(net, params="", extra="phase: TRAIN")
    else:
        _bn(net, params="use_global_stats: false")
    meaning = None
    if assume:
        meaning = net.prototxt().replace("use_global_stats: false", "").replace("phase: TRAIN", "")
    done = fold_net(net, tmp_path, meaning=meaning, assume_global_stats=assume)
    if assume:
        assert done.layers == ["front"]
    else:
        assert done.is_unchanged
        named = "use_global_stats: false" if how == "use_global_stats" else "phase: TRAIN"
        _assert_stays(done, "bn", "batch-statistics", named, "--assume-global-stats")


def test_its_own_phase_may_be_test(tmp_path: Path) -> None:
    net = _net()
    _bn(net, params="", extra="phase: TEST")
    assert fold_net(net, tmp_path).layers == ["front"]


def test_global_statistics_beat_its_own_phase(tmp_path: Path) -> None:
    net = _net()
    _bn(net, extra="phase: TRAIN")
    assert fold_net(net, tmp_path).layers == ["front"]


def test_variance_that_has_no_root(tmp_path: Path) -> None:
    net = _net()
    bn = net.batch_norm("bn", "x", N, factor=1.0, params="eps: 1e-5")
    bn.blobs[1][2] = -2e-5
    done = fold_net(net, tmp_path)
    assert done.is_unchanged
    _assert_stays(done, "bn", "variance", "variance + eps is -1e-05 in channel 2")


def test_variance_that_is_minus_eps(tmp_path: Path) -> None:
    net = _net()
    bn = net.batch_norm("bn", "x", N, factor=1.0, params="eps: 0")
    bn.blobs[1][0] = 0
    done = fold_net(net, tmp_path)
    _assert_stays(done, "bn", "variance", "variance + eps is 0 in channel 0")


def test_slightly_negative_variance_is_none(tmp_path: Path) -> None:
    net = _net()
    net.batch_norm("bn", "x", N, factor=1.0, params="eps: 1e-5").blobs[1][:] = -7e-44
    assert fold_net(net, tmp_path).layers == ["front"]


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_blobs_that_are_not_finite(value: float, tmp_path: Path) -> None:
    net = _net()
    net.scale("scale", "x", N).blobs[1][0] = value
    done = fold_net(net, tmp_path)
    assert done.is_unchanged
    _assert_stays(done, "scale", "not-finite", "finite")


def test_a_factor_whose_inverse_is_not_finite(tmp_path: Path) -> None:
    """Said in the report, and not by a warning of NumPy."""
    net = _net()
    bn = net.batch_norm("bn", "x", N, factor=1e-310)
    bn.format = BlobFormat("double")
    bn.blobs[0][:] = 0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        done = fold_net(net, tmp_path, runs=False)
    assert done.is_unchanged
    _assert_stays(done, "bn", "not-finite", "finite")


@pytest.mark.parametrize("value", [np.inf, np.nan])
def test_weights_whose_fold_is_not_finite(value: float, tmp_path: Path) -> None:
    net = _net()
    net.conv("behind", "x", N, N, 1)
    front, behind = net.layers[-2], net.layers[-1]
    net.layers.remove(behind)
    net.scale("scale", "x", N).blobs[1][0] = 0
    net.layers.append(behind)
    for layer in (front, behind):
        layer.format = BlobFormat("double")
        layer.blobs[0][0] = value
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        report = caffe_fold.fold(*net.write(tmp_path), threads=1)
    assert [stay.layer for stay in report.stayed] == ["scale"]


@pytest.mark.parametrize("conv", [True, False])
def test_maps_that_compose_to_no_finite_number(conv: bool, tmp_path: Path) -> None:
    net = _net(conv=conv)
    for name in ("scale1", "scale2"):
        scale = net.scale(name, "x", N)
        scale.format = BlobFormat("double")
        scale.blobs[0][:] = 1e200
    done = fold_net(net, tmp_path)
    assert done.is_unchanged
    _assert_stays(done, "scale1", "not-finite", "finite")
    _assert_stays(done, "scale2", "not-finite", "finite")


def test_two_bottoms(tmp_path: Path) -> None:
    net = _net()
    net.layer("excite", "Sigmoid", "data", "gate")
    net.conv("squeeze", "gate", C, N, 1)
    net.layer("scale", "Scale", ["x", "squeeze"], "y", "scale_param { axis: 0 }")
    net.layer("bias", "Bias", ["y", "squeeze"], "z", "bias_param { axis: 0 }")
    done = fold_net(net, tmp_path)
    assert done.is_unchanged
    _assert_stays(done, "scale", "two-bottoms", "'squeeze'")
    _assert_stays(done, "bias", "two-bottoms", "'squeeze'")


SHAPES: dict[str, tuple[str, tuple[int, ...], str]] = {
    "width": ("axis: 3", (5,), "not-per-channel"),
    "batch": ("axis: 0", (2,), "not-per-channel"),
    "batch-and-channels": ("axis: 0 num_axes: 2", (2, N), "not-per-channel"),
    "channels-and-height": ("axis: 1 num_axes: 2", (N, 5), "not-per-channel"),
    "to-the-end": ("num_axes: -1", (N, 5, 5), "not-per-channel"),
    "negative": ("axis: -1", (5,), "not-per-channel"),
}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("type", ["Scale", "Bias"])
def test_other_axes(type: str, shape: str, tmp_path: Path) -> None:
    params, size, code = SHAPES[shape]
    net = _net()
    blobs = [net.rng.normal(0, 1, size)]
    net.layer("it", type, "x", "y", f"{type.lower()}_param {{ {params} }}", blobs)
    done = fold_net(net, tmp_path)
    assert done.is_unchanged
    _assert_stays(done, "it", code, "multiplier" if type == "Scale" else "shift", "channel")


def test_power_that_is_not_affine(tmp_path: Path) -> None:
    """It ends the run; only BatchNorm, Scale and Bias get a sentence."""
    net = _net()
    net.power("square", "x", 1.0, 0.0, 2.0)
    net.scale("scale", "x", N)
    done = fold_net(net, tmp_path)
    assert done.is_unchanged
    assert [stay.layer for stay in done.report.stayed] == ["scale"]
    _assert_stays(done, "scale", "not-linear", "'square' (Power)")


def test_loss_weight(tmp_path: Path) -> None:
    net = _net()
    _bn(net, extra="loss_weight: 1")
    net.conv("reader", "y", N, 2, 1)
    done = fold_net(net, tmp_path)
    assert done.is_unchanged
    _assert_stays(done, "bn", "loss-weight", "loss_weight")


def test_loss_weights_beside_a_forward_fold_keep_their_values(tmp_path: Path) -> None:
    net = _net()
    net.layers[-1].text = net.layers[-1].text.replace("\n}", "\n  loss_weight: 0.5\n}")
    _bn(net)
    net.conv("reader", "y", N, 2, 1, extra="loss_weight: 1")
    assert fold_net(net, tmp_path).absorbed("reader") == (("bn",), ())


def test_loss_weight_of_its_producer(tmp_path: Path) -> None:
    net = _net()
    net.layers[-1].text = net.layers[-1].text.replace("\n}", "\n  loss_weight: 0.5\n}")
    _bn(net)
    done = fold_net(net, tmp_path)
    assert done.is_unchanged
    _assert_stays(done, "bn", "loss-weight", "'x'", "'y'")


def test_loss_weight_of_zero_is_none(tmp_path: Path) -> None:
    net = _net()
    _bn(net, extra="loss_weight: 0.0")
    assert fold_net(net, tmp_path).layers == ["front"]


# ---- What is beside it ----


def test_net_input(tmp_path: Path) -> None:
    net = Net()
    net.input("data", (1, C, 2, 2), "input_shape")
    net.batch_norm("bn", "data", C, "y")
    done = fold_net(net, tmp_path)
    _assert_stays(done, "bn", "net-input", "'data' is an input", "'y' is an output")


def test_no_layer_writes_it(tmp_path: Path) -> None:
    net = Net()
    net.shapes["stray"] = (1, C, 2, 2)
    net.batch_norm("bn", "stray", C, "y")
    done = fold_net(net, tmp_path)
    _assert_stays(done, "bn", "net-input", "'stray'", "no layer")


def test_not_linear_on_both_sides(tmp_path: Path) -> None:
    net = _net(conv=False)
    _bn(net)
    net.relu("reader", "y", "z")
    done = fold_net(net, tmp_path)
    assert done.is_unchanged
    _assert_stays(done, "bn", "not-linear", "'x'", "'front' (ReLU)", "'y'", "'reader' (ReLU)")


def test_second_reader(tmp_path: Path) -> None:
    net = _net()
    _bn(net)
    net.layer("other", "Sigmoid", "x", "z")
    done = fold_net(net, tmp_path)
    assert done.is_unchanged
    _assert_stays(done, "bn", "second-reader", "'x'", "'other' (Sigmoid)", "'y' is an output")


@pytest.mark.parametrize("kept", ["x", "y"])
def test_kept(kept: str, tmp_path: Path) -> None:
    net = _net()
    _bn(net)
    done = fold_net(net, tmp_path, keep=[kept])
    if kept == "y":
        assert done.layers == ["front"]
    else:
        assert done.is_unchanged
        _assert_stays(done, "bn", "kept", "'x' is to keep its values")


def test_kept_before_a_reader(tmp_path: Path) -> None:
    net = _net(conv=False)
    _bn(net)
    net.conv("reader", "y", N, 2, 1)
    done = fold_net(net, tmp_path, keep=["y"])
    assert done.is_unchanged
    _assert_stays(done, "bn", "not-linear", "'front'", "'y' is to keep its values")


def test_kept_splits_a_run(tmp_path: Path) -> None:
    net = _net()
    _bn(net)
    net.scale("scale", "y", N, "z")
    net.scale("last", "z", N, "w")
    done = fold_net(net, tmp_path, keep=["z"])
    assert done.layers == ["front", "last"]
    _assert_stays(done, "last", "kept", "'z'")
    assert done.absorbed("front") == ((), ("bn", "scale"))


def test_a_map_of_other_channels_than_the_reader(tmp_path: Path) -> None:
    """One number on the batch axis is no channel; K must be a multiple of C."""
    net = Net()
    net.input("data", (2, N, 1, 1))
    net.relu("front", "data", "x")
    _bn(net)
    net.layer("shape", "Reshape", "y", "z", "reshape_param { shape { dim: 1 dim: -1 } }")
    net.inner_product("ip", "z", 2 * N, 2)
    done = fold_net(net, tmp_path)
    assert done.is_unchanged
    _assert_stays(done, "bn", "not-linear", "'shape' (Reshape)")


@pytest.mark.parametrize(("bottoms", "tops"), [([], ["y"]), (["x", "x"], []), (["x"], [])])
def test_other_numbers_of_bottoms_and_tops(
    bottoms: list[str], tops: list[str], tmp_path: Path
) -> None:
    net = _net()
    net.layer("bn", "BatchNorm", bottoms, tops, blobs=[np.ones(N), np.ones(N)])
    done = fold_net(net, tmp_path, runs=False)
    assert done.is_unchanged
    count = f"{len(bottoms)} bottoms and {len(tops)} tops"
    assert done.stayed("bn").code == "tops-and-bottoms"
    assert count in done.stayed("bn").reason


# ---- The linear layer ----


def test_several_bottoms_and_tops(tmp_path: Path) -> None:
    net = _net(conv=False)
    net.layer("copy", "Split", "x", ["a", "b"])
    net.conv("conv", ["a", "b"], N, N, 1, top=["c", "d"])
    net.batch_norm("bn", "c", N)
    net.batch_norm("bn2", "d", N)
    done = fold_net(net, tmp_path)
    assert done.is_unchanged
    for name in ("bn", "bn2"):
        _assert_stays(
            done, name, "tops-and-bottoms", "'conv' (Convolution)", "2 bottoms and 2 tops"
        )


@pytest.mark.parametrize("axis", [2, -2])
def test_linear_axis(axis: int, tmp_path: Path) -> None:
    net = Net()
    net.input("data", (2, N, 5))
    net.inner_product("front", "data", 5, 3, "x", params=f"axis: {2 if axis > 0 else -1}")
    _bn(net)
    done = fold_net(net, tmp_path)
    assert done.is_unchanged
    _assert_stays(done, "bn", "axis", "'front' (InnerProduct)", "axis", "'y'")


def test_unknown_rank(tmp_path: Path) -> None:
    net = _net(conv=False)
    net.layer("shape", "Reshape", "x", "z", "reshape_param { shape { dim: 0 dim: -1 } }")
    net.layer("scale", "Scale", "z", "w", "scale_param { axis: -1 }", [np.ones(N * 25) * 2])
    done = fold_net(net, tmp_path)
    assert done.is_unchanged
    _assert_stays(done, "scale", "unknown-rank", "axis: -1")


def test_a_convolution_tells_the_rank_that_nothing_before_it_does(tmp_path: Path) -> None:
    net = _net(conv=False)
    net.layer(
        "shape", "Reshape", "x", "z", "reshape_param { shape { dim: 2 dim: 4 dim: 5 dim: 5 } }"
    )
    net.conv("conv", "z", N, N)
    net.scale("scale", "conv", N, "y", params="axis: -3")
    assert fold_net(net, tmp_path).absorbed("conv") == ((), ("scale",))


def test_the_axis_of_a_convolution_whose_rank_is_unknown(tmp_path: Path) -> None:
    net = _net(conv=False)
    net.layer(
        "shape", "Reshape", "x", "z", "reshape_param { shape { dim: 2 dim: 4 dim: 5 dim: 5 } }"
    )
    net.conv("conv", "z", N, N, params="axis: -3")
    net.batch_norm("bn", "conv", N, "y")
    done = fold_net(net, tmp_path)
    assert done.is_unchanged
    _assert_stays(done, "bn", "unknown-rank", "'conv'", "'axis: -3'")


def test_an_inner_product_along_the_first_axis_has_one_axis(tmp_path: Path) -> None:
    net = Net()
    net.input("data", (6,))
    net.inner_product("ip", "data", 6, N, params="axis: 0")
    net.scale("scale", "ip", N, "y", params="axis: -1")
    done = fold_net(net, tmp_path, runs=False)
    _assert_stays(done, "scale", "not-per-channel", "axis 0")


def test_a_convolution_along_another_axis_does_not(tmp_path: Path) -> None:
    net = _net(conv=False)
    net.layer("shape", "Reshape", "x", "z", "reshape_param { shape { dim: 0 dim: 1 dim: -1 } }")
    net.conv("conv", "z", N, N, params="axis: 2")
    net.scale("scale", "conv", N, "y", params="axis: -3")
    net.conv("last", "y", N, N)
    done = fold_net(net, tmp_path, runs=False)
    assert done.is_unchanged
    _assert_stays(done, "scale", "unknown-rank", "'axis: -3' counts from the end")


@pytest.mark.parametrize("field", ["relu: true", "fusion_type: SUM_FUSION", "relu: 1"])
def test_fields_that_change_the_convolution(field: str, tmp_path: Path) -> None:
    net = _net()
    _bn(net)
    net.layers[1].text = net.layers[1].text.replace("num_output", f"{field} num_output")
    done = fold_net(net, tmp_path, runs=False)
    assert done.is_unchanged
    _assert_stays(done, "bn", "changes-computation", "'front'", field)


def test_quantization_beside_a_convolution(tmp_path: Path) -> None:
    net = _net()
    _bn(net)
    net.layers[1].text = net.layers[1].text.replace(
        "\n}", "\n  quantization_param { bw_layer_in: 8 }\n}"
    )
    done = fold_net(net, tmp_path)
    assert done.is_unchanged
    _assert_stays(done, "bn", "quantization", "'front'", "quantization_param")


def test_a_fused_activation_of_a_batch_norm(tmp_path: Path) -> None:
    net = _net()
    _bn(net, params="use_global_stats: true relu: true")
    done = fold_net(net, tmp_path, runs=False)
    assert done.is_unchanged
    _assert_stays(done, "bn", "changes-computation", "relu: true")


@pytest.mark.parametrize(
    "field", ["relu: false", "fusion_type: UNFUSED", "sr: 3", "engine: MKLDNN", "odd { x: Y }"]
)
def test_unknown_fields_that_do_not_are_named(field: str, tmp_path: Path) -> None:
    net = _net()
    _bn(net)
    net.layers[1].text = net.layers[1].text.replace("num_output", f"{field} num_output")
    done = fold_net(net, tmp_path, runs=False)
    assert done.layers == ["front"]
    assert field in done.text
    assert field.split(" ")[0].strip(":") in done.warnings["unknown-field"]
    assert "'front'" in done.warnings["unknown-field"]


def test_unknown_fields_of_layers_that_take_no_part_are_nobodys_business(tmp_path: Path) -> None:
    net = _net()
    _bn(net)
    net.layer("relu", "ReLU", "y", "z", 'odd_param { a: FOO b: "x" } odd: BAR')
    done = fold_net(net, tmp_path)
    assert done.layers == ["front", "relu"]
    assert done.warnings == {}


def test_overflow(tmp_path: Path) -> None:
    """The fold would not fit float32; the rest is folded all the same."""
    net = _net()
    net.conv("other", "x", N, N, 1).blobs[0] *= 1e10
    net.batch_norm("bn", "other", N)
    net.scale("scale", "other", N).blobs[0] *= 1e35
    net.layer("tanh", "TanH", "other", "other")
    net.conv("third", "other", N, N, 1)
    net.batch_norm("bn3", "third", N)
    done = fold_net(net, tmp_path)
    assert done.layers == ["front", "other", "scale", "tanh", "third"]
    assert [merge.layers for merge in done.report.merged] == [("bn", "scale")]
    _assert_stays(done, "scale", "overflow", "'other' (Convolution)", "float32")


def test_overflow_of_a_merge(tmp_path: Path) -> None:
    net = _net(conv=False)
    for name in ("scale1", "scale2"):
        net.scale(name, "x", N).blobs[0][:] = 1e25
    done = fold_net(net, tmp_path)
    assert done.is_unchanged
    _assert_stays(done, "scale2", "not-linear", "become one Scale", "float32")
