"""Affine layers behind a linear layer: every type, with every kind of run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from folding import absorbed, fold_net
from support.nets import Net
from support.wire import BlobFormat

C, N = 4, 6
Input = tuple[int, ...]

# ---- Linear layers of C inputs and N outputs, by what they are ----


def _depthwise(type: str) -> Callable[[Net], None]:
    """One weight a channel, and no ``group``: the type says it."""

    def add(net: Net) -> None:
        blobs = [net.rng.normal(0, 1, (N, 1, 3, 3)), net.rng.normal(0, 1, N)]
        params = f"convolution_param {{ num_output: {N} kernel_size: 3 }}"
        net.layer("linear", type, "data", "linear", params, blobs)

    return add


IMAGE: Input = (2, C, 7, 6)
LINEAR: dict[str, tuple[Input, Callable[[Net], object]]] = {
    "conv": (IMAGE, lambda n: n.conv("linear", "data", C, N)),
    "conv-no-bias": (IMAGE, lambda n: n.conv("linear", "data", C, N, bias=False)),
    "conv-1x1": (IMAGE, lambda n: n.conv("linear", "data", C, N, 1)),
    "conv-padded": (IMAGE, lambda n: n.conv("linear", "data", C, N, 3, pad=1, stride=2)),
    "conv-dilated": (IMAGE, lambda n: n.conv("linear", "data", C, N, params="dilation: 2")),
    "conv-rectangular": (IMAGE, lambda n: n.conv("linear", "data", C, N, (3, 2))),
    "conv-grouped": (IMAGE, lambda n: n.conv("linear", "data", C, N, group=2, bias=False)),
    "conv-depthwise": ((2, N, 7, 6), lambda n: n.conv("linear", "data", N, N, group=N)),
    "conv-axis": (IMAGE, lambda n: n.conv("linear", "data", C, N, params="axis: -3")),
    "conv-1d": ((2, C, 9), lambda n: n.conv("linear", "data", C, N, spatial=1)),
    "conv-3d": ((1, C, 3, 5, 4), lambda n: n.conv("linear", "data", C, N, 2, spatial=3, group=2)),
    "DepthwiseConvolution": ((2, N, 7, 6), _depthwise("DepthwiseConvolution")),
    "ConvolutionDepthwise": ((2, N, 7, 6), _depthwise("ConvolutionDepthwise")),
    "deconv": (IMAGE, lambda n: n.deconv("linear", "data", C, N, stride=2, pad=1)),
    "deconv-grouped": (IMAGE, lambda n: n.deconv("linear", "data", C, N, 4, group=2, bias=False)),
    "ip": (IMAGE, lambda n: n.inner_product("linear", "data", 42 * C, N)),
    "ip-no-bias": (IMAGE, lambda n: n.inner_product("linear", "data", 42 * C, N, bias=False)),
    "ip-transposed": ((2, C), lambda n: n.inner_product("linear", "data", C, N, transpose=True)),
    "ip-axis": (IMAGE, lambda n: n.inner_product("linear", "data", 42 * C, N, params="axis: -3")),
}

# ---- Runs of layers on N channels: each part adds one layer reading a blob ----

Part = Callable[[Net, str, str, int], object]


def _scalar(net: Net, bottom: str, top: str, rank: int) -> None:
    params = "scale_param { num_axes: 0 bias_term: true }"
    net.layer("scalar", "Scale", bottom, top, params, [np.array(-1.75), np.array(0.5)])


PARTS: dict[str, Part] = {
    "bn": lambda n, b, t, r: n.batch_norm("bn", b, N, t),
    "scale": lambda n, b, t, r: n.scale("scale", b, N, t),
    "gamma": lambda n, b, t, r: n.scale("gamma", b, N, t, bias=False),
    "bias": lambda n, b, t, r: n.bias("bias", b, N, t),
    "power": lambda n, b, t, r: n.power("power", b, -0.3, 0.7, 1.0, t),
    "scalar": _scalar,
    "negative": lambda n, b, t, r: n.scale("negative", b, N, t, params=f"axis: {1 - r}"),
    "to-the-end": lambda n, b, t, r: n.bias("to-the-end", b, N, t, params="num_axes: 1 axis: 1"),
}
RUNS = [
    ["bn"], ["bn", "scale"], ["gamma"], ["bn", "gamma"], ["scale"], ["bias"], ["power"],
    ["scalar"], ["negative"], ["to-the-end"], ["gamma", "bias"], ["scalar", "power"],
    ["power", "bn", "scale", "bias", "gamma", "scalar", "negative"],
]  # fmt: skip


def _tops(form: str, count: int) -> list[str]:
    """The tops of a run: all in place, none, or the first only not."""
    if form == "in-place":
        return ["linear"] * count
    return [f"top{i}" for i in range(count)] if form == "fresh" else ["run"] * count


def _with_run(net: Net, linear: str, run: list[str], form: str) -> Net:
    shape, add = LINEAR[linear]
    net.input("data", shape)
    add(net)
    rank = 2 if linear.startswith("ip") else len(shape)
    bottom = "linear"
    for name, top in zip(run, _tops(form, len(run))):
        PARTS[name](net, bottom, top, rank)
        bottom = top
    net.relu("relu", bottom, "out")
    return net


# Each linear layer with the usual run, the longest and a part of the others, in every form.
FORMS = ("in-place", "fresh", "mixed")
CASES = [
    (linear, run, FORMS[(i + j) % 3])
    for i, linear in enumerate(LINEAR)
    for j, run in enumerate(RUNS)
    if run in (["bn", "scale"], RUNS[-1]) or (i + j) % 4 == 0
]


@pytest.mark.parametrize(("linear", "run", "form"), CASES)
def test_run_goes_into_the_linear_layer(
    linear: str, run: list[str], form: str, tmp_path: Path
) -> None:
    net = _with_run(Net(), linear, run, form)
    done = fold_net(net, tmp_path)
    assert done.layers == ["linear", "relu"]
    assert done.absorbed("linear") == ((), tuple(run))
    assert done.layer("linear").tops == (_tops(form, len(run))[-1],)
    assert (done.report.stayed, done.report.warnings, done.report.notes) == ((), (), ())
    weight = done.blobs("linear")[0]
    assert weight.shape == net.layers[1].blobs[0].shape
    shifts = set(run) - {"gamma"} or len(net.layers[1].blobs) > 1
    assert [blob.shape for blob in done.blobs("linear")[1:]] == ([(N,)] if shifts else [])


def test_bias_term_is_switched_in_place_or_needs_nothing(tmp_path: Path) -> None:
    net = Net()
    net.input("data", (1, 2, 4, 4))
    net.conv("off", "data", 2, 2, 1, bias=False)
    net.batch_norm("bn1", "off", 2)
    net.conv("none", "off", 2, 2, 1, bias=False)
    net.scale("gamma", "none", 2, bias=False)
    net.conv("own", "none", 2, 2, 1)
    net.bias("bias", "own", 2)
    done = fold_net(net, tmp_path)
    expected = net.prototxt().replace("bias_term: false", "bias_term: true", 1)
    for name in ("bn1", "gamma", "bias"):
        (text,) = [layer.text for layer in net.layers if layer.name == name]
        expected = expected.replace(text, "")
    assert done.text == expected


def test_top_takes_the_name_of_the_last(tmp_path: Path) -> None:
    net = Net()
    net.input("data", (1, 2, 4, 4))
    net.conv("conv", "data", 2, 3, 1)
    net.batch_norm("bn", "conv", 3, "normal")
    net.scale("scale", "normal", 3, "prob")
    done = fold_net(net, tmp_path)
    conv = net.layers[1].text
    assert done.text == net.header + net.layers[0].text + conv.replace('top: "conv"', 'top: "prob"')
    assert done.report.before.layers == 4
    assert done.report.after.layers == 2
    assert done.types == {"Input": 1, "Convolution": 1}
    assert done.report.checked is not None
    assert done.report.checked.layers == 1
    assert "folded   conv (Convolution) <- bn + scale" in done.report.to_text()


@pytest.mark.parametrize("between", ["Dropout", "Flatten", "ReLU"])
def test_other_layers_end_a_run_and_stay(between: str, tmp_path: Path) -> None:
    net = Net()
    net.input("data", (2, 3, 1, 1))
    net.conv("conv", "data", 3, 4, 1)
    net.batch_norm("bn", "conv", 4, "bn")
    net.layer("between", between, "bn", "between")
    net.scale("scale", "between", 4)
    done = fold_net(net, tmp_path)
    assert done.layers == ["conv", "between", "scale"]
    assert done.absorbed("conv") == ((), ("bn",))
    assert done.stayed("scale").code == "not-linear"
    assert "'between'" in done.stayed("scale").reason


@pytest.mark.parametrize("factor", [1.0, 999.98236, 9.99999, 1e-3, -2.0])
def test_moving_average_factor(factor: float, tmp_path: Path) -> None:
    net = _with_run(Net(), "conv", ["bn"], "fresh")
    bn = net.layers[2]
    mean, variance, _ = bn.blobs
    bn.blobs = [mean * factor / 1000, variance * factor / 1000, np.array([factor])]
    assert fold_net(net, tmp_path).warnings == {}


def test_a_factor_of_zero_is_folded_with_a_warning(tmp_path: Path) -> None:
    net = Net()
    net.input("data", (1, 3, 4, 4))
    net.conv("conv", "data", 3, 4)
    net.batch_norm("bn", "conv", 4, factor=0.0)
    done = fold_net(net, tmp_path)
    assert done.layers == ["conv"]
    assert list(done.warnings) == ["untrained"]
    assert "'bn'" in done.warnings["untrained"]


@pytest.mark.parametrize("eps", ["", "eps: 1e-3", "eps: 2e-5", "eps: 1e-8", "eps: 0.1f"])
def test_eps_is_read_for_each_layer(eps: str, tmp_path: Path) -> None:
    net = Net()
    net.input("data", (1, 3, 4, 4))
    net.conv("conv", "data", 3, 4)
    net.batch_norm("bn", "conv", 4, params=eps).blobs[1] *= 1e-4
    assert fold_net(net, tmp_path).layers == ["conv"]


@pytest.mark.parametrize("linear", ["conv", "deconv", "ip"])
def test_one_channel(linear: str, tmp_path: Path) -> None:
    net = Net()
    net.input("data", (2, 1, 4, 4))
    if linear == "ip":
        net.inner_product("linear", "data", 16, 1)
    else:
        net.conv("linear", "data", 1, 1, type={"conv": "Convolution"}.get(linear, "Deconvolution"))
    net.batch_norm("bn", "linear", 1)
    net.scale("scale", "linear", 1)
    assert fold_net(net, tmp_path).layers == ["linear"]


FORMATS = {
    "legacy": BlobFormat(legacy=True),
    "double": BlobFormat("double"),
    "unpacked": BlobFormat(unpacked=True),
    "runs": BlobFormat(runs=3),
    "unpacked-double": BlobFormat("double", unpacked=True),
    "raw-float": BlobFormat("raw_float"),
    "raw-double-legacy": BlobFormat("raw_double", legacy=True),
}


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("which", ["all", "linear", "affine"])
@pytest.mark.parametrize("linear", ["conv-no-bias", "ip"])
def test_forms_of_blobs(linear: str, which: str, format: str, tmp_path: Path) -> None:
    net = _with_run(Net(), linear, ["bn", "scale"], "in-place")
    for layer in net.layers:
        if which == "all" or (layer.name == "linear") == (which == "linear"):
            layer.format = FORMATS[format]
    done = fold_net(net, tmp_path)
    assert done.layers == ["linear", "relu"]
    weight, bias = done.blobs("linear")
    assert weight.is_legacy == bias.is_legacy == (net.layers[1].format.legacy)
    assert bias.shape == ((1, 1, 1, N) if bias.is_legacy else (N,))


def test_doubles_stay_doubles(tmp_path: Path) -> None:
    """Two nets whose weights differ beyond float32 fold to different weights."""
    net = _with_run(Net(), "conv", ["bn", "scale"], "in-place")
    for layer in net.layers:
        layer.format = BlobFormat("double")
    fold_net(net, tmp_path, tolerance=1e-13)


def test_weights_follow_where_the_prototxt_implies_a_bias(tmp_path: Path) -> None:
    """The bias that folding makes is the one that was implied."""
    net = Net()
    net.input("data", (1, 3, 4, 4))
    net.conv("conv", "data", 3, 4).blobs.pop()
    net.batch_norm("bn", "conv", 4, "bn")
    meaning = net.prototxt().replace("num_output: 4", "num_output: 4 bias_term: false")
    done = fold_net(net, tmp_path, meaning=meaning)
    assert done.layers == ["conv"]
    assert "bias_term" not in done.text
    assert len(done.blobs("conv")) == 2
    assert "'conv'" in done.warnings["no-bias-blob"]


def test_weights_follow_where_only_the_scale_is_folded(tmp_path: Path) -> None:
    net = Net()
    net.input("data", (1, 3, 6, 6))
    net.conv("conv", "data", 3, 4).blobs.pop()
    net.scale("gamma", "conv", 4, bias=False)
    net.relu("relu", "conv")
    net.conv("plain", "conv", 4, 2, extra="param { lr_mult: 1 } param { lr_mult: 2 }").blobs.pop()
    meaning = net.prototxt().replace("kernel_size: 3 }", "kernel_size: 3 bias_term: false }")
    meaning = meaning.replace("kernel_size: 3  }", "kernel_size: 3 bias_term: false }")
    meaning = meaning.replace("param { lr_mult: 2 }", "")
    done = fold_net(net, tmp_path, meaning=meaning)
    assert done.layers == ["conv", "relu", "plain"]
    for name in ("conv", "plain"):
        assert done.layer(name).params("convolution_param").flag("bias_term", True) is False
        assert len(done.layer(name).param_names) <= len(done.blobs(name)) == 1


def test_types_of_the_two_files_may_differ(tmp_path: Path) -> None:
    net = Net()
    net.input("data", (1, 4, 5, 5))
    net.conv("conv", "data", 4, 4, group=4).weights_type = "DepthwiseConvolution"
    net.batch_norm("bn", "conv", 4)
    done = fold_net(net, tmp_path)
    assert done.layers == ["conv"]
    assert [entry.type for entry in done.entries()] == ["Input", "DepthwiseConvolution"]


def test_every_branch_folds_into_its_own(tmp_path: Path) -> None:
    """Residual blocks: a value with two readers, and sums of two folded branches."""
    net = Net()
    net.input("data", (1, 4, 6, 6))
    net.conv("stem", "data", 4, 4, 3, pad=1)
    net.batch_norm("bn0", "stem", 4)
    for name in ("left", "right"):
        net.conv(name, "stem", 4, 4, 3, pad=1, bias=name == "left")
        net.batch_norm(f"bn_{name}", name, 4, f"{name}/bn")
        net.scale(f"scale_{name}", f"{name}/bn", 4)
    net.eltwise("sum", ["left/bn", "right/bn"])
    net.relu("relu", "sum")
    done = fold_net(net, tmp_path)
    assert done.layers == ["stem", "left", "right", "sum", "relu"]
    assert absorbed(done.report) == {
        "stem": ("bn0",),
        "left": ("bn_left", "scale_left"),
        "right": ("bn_right", "scale_right"),
    }
