"""Affine layers before the linear layers that read them, where nothing linear feeds them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from folding import absorbed, fold_net
from support.nets import Net, NetLayer
from support.wire import BlobFormat

C, N = 4, 6
IMAGE = (2, C, 5, 6)


def _start(shape: tuple[int, ...] = IMAGE) -> Net:
    """A net whose value ``x`` no linear layer has written."""
    net = Net()
    net.input("data", shape)
    net.relu("start", "data", "x")
    return net


def _run(net: Net, parts: list[str], channels: int = C) -> str:
    """A run that reads ``x``; gives its top."""
    bottom = "x"
    for at, part in enumerate(parts):
        top = f"run{at}"
        if part == "bn":
            net.batch_norm("bn", bottom, channels, top)
        elif part == "scale":
            net.scale("scale", bottom, channels, top)
        elif part == "gamma":
            net.scale("gamma", bottom, channels, top, bias=False)
        elif part == "zero-mean":
            net.batch_norm("zero-mean", bottom, channels, top).blobs[0][:] = 0
        elif part == "bias":
            net.bias("bias", bottom, channels, top)
        else:
            net.power("power", bottom, 0.5, -0.25, 1.0, top)
        bottom = top
    return bottom


def _three_d(net: Net, bottom: str) -> None:
    net.conv("linear", bottom, C, N, 2, spatial=3, group=2)


def _depthwise(net: Net, bottom: str) -> None:
    """One without a group, which has as many as channels."""
    blobs = [net.weight((C, 1, 3, 2)), net.rng.normal(0, 0.1, C)]
    params = f"convolution_param {{ num_output: {C} kernel_h: 3 kernel_w: 2 }}"
    net.layer("linear", "DepthwiseConvolution", bottom, "linear", params, blobs)


READERS: dict[str, tuple[tuple[int, ...], Callable[[Net, str], object]]] = {
    "conv": (IMAGE, lambda n, b: n.conv("linear", b, C, N)),
    "conv-no-bias": (IMAGE, lambda n, b: n.conv("linear", b, C, N, bias=False)),
    "conv-strided": (IMAGE, lambda n, b: n.conv("linear", b, C, N, 2, stride=2, group=2)),
    "conv-depthwise": (IMAGE, lambda n, b: n.conv("linear", b, C, C, group=C)),
    "conv-multiplier": (IMAGE, lambda n, b: n.conv("linear", b, C, 2 * C, group=C, bias=False)),
    "depthwise": (IMAGE, _depthwise),
    "conv-1d": ((2, C, 6), lambda n, b: n.conv("linear", b, C, N, spatial=1)),
    "conv-3d": ((1, C, 3, 3, 3), _three_d),
    "ip": (IMAGE, lambda n, b: n.inner_product("linear", b, 30 * C, N)),
    "ip-no-bias": (IMAGE, lambda n, b: n.inner_product("linear", b, 30 * C, N, bias=False)),
    "ip-transposed": (IMAGE, lambda n, b: n.inner_product("linear", b, 120, N, transpose=True)),
    "ip-of-vectors": ((3, C), lambda n, b: n.inner_product("linear", b, C, N)),
}
SHIFTING = [["bn"], ["bn", "scale"], ["bias"], ["power", "bias"]]
SHIFTLESS = [["gamma"], ["zero-mean"], ["zero-mean", "gamma"]]


@pytest.mark.parametrize("parts", SHIFTING + SHIFTLESS, ids="+".join)
@pytest.mark.parametrize("reader", READERS)
def test_run_goes_into_its_reader(reader: str, parts: list[str], tmp_path: Path) -> None:
    shape, add = READERS[reader]
    net = _start(shape)
    add(net, _run(net, parts))
    done = fold_net(net, tmp_path)
    assert done.layers == ["start", "linear"]
    assert done.absorbed("linear") == (tuple(parts), ())
    assert done.layer("linear").bottoms == ("x",)
    assert done.report.stayed == ()
    has_bias = parts in SHIFTING or ("no-bias" not in reader and reader != "conv-multiplier")
    assert len(done.blobs("linear")) == 1 + has_bias


# More weights than one block of 131,072 holds: in whole rows, or in parts of one.
LARGE: dict[str, tuple[tuple[int, ...], Callable[[Net], NetLayer]]] = {
    "conv": ((1, 300, 1, 1), lambda n: n.conv("linear", "x", 300, 500, 1)),
    "conv-grouped": ((1, 300, 3, 1), lambda n: n.conv("linear", "x", 300, 500, (3, 1), group=2)),
    "deconv": ((1, 300, 1, 1), lambda n: n.deconv("linear", "x", 300, 500, 1)),
    "ip": ((1, 300, 2), lambda n: n.inner_product("linear", "x", 600, 500)),
    "ip-of-long-rows": ((1, 300, 500), lambda n: n.inner_product("linear", "x", 150_000, 2)),
    "ip-transposed": (
        (1, 300, 2),
        lambda n: n.inner_product("linear", "x", 600, 500, transpose=True),
    ),
}


@pytest.mark.parametrize("linear", LARGE)
def test_more_weights_than_one_block_holds(linear: str, tmp_path: Path) -> None:
    shape, add = LARGE[linear]
    net = Net()
    net.input("data", shape)
    net.scale("before", "data", shape[1], top="x", bias=linear != "deconv")
    outputs = add(net).blobs[-1].size
    net.batch_norm("behind", "linear", outputs, top="y")
    done = fold_net(net, tmp_path)
    assert done.absorbed("linear") == (("before",), ("behind",))


UNSHIFTED: dict[str, Callable[[Net, str], object]] = {
    "padded": lambda n, b: n.conv("linear", b, C, N, 3, pad=1, group=2),
    "padded-height": lambda n, b: n.conv("linear", b, C, N, 3, params="pad_h: 1 pad_w: 0"),
    "padded-width": lambda n, b: n.conv("linear", b, C, N, 3, params="pad: 0 pad: 2"),
    "deconv": lambda n, b: n.deconv("linear", b, C, N, 3, stride=2, pad=1),
    "deconv-grouped": lambda n, b: n.deconv("linear", b, C, N, 2, group=2, bias=False),
    "deconv-depthwise": lambda n, b: n.deconv("linear", b, C, C, 4, group=C, bias=False),
}


@pytest.mark.parametrize("parts", SHIFTING + SHIFTLESS, ids="+".join)
@pytest.mark.parametrize("reader", UNSHIFTED)
def test_a_shift_goes_nowhere_where_borders_would_tell(
    reader: str, parts: list[str], tmp_path: Path
) -> None:
    net = _start()
    UNSHIFTED[reader](net, _run(net, parts))
    done = fold_net(net, tmp_path)
    if parts in SHIFTLESS:
        assert done.layers == ["start", "linear"]
    else:
        assert {stay.code for stay in done.report.stayed} == {"not-linear"}
        assert all("'linear'" in stay.reason for stay in done.report.stayed)
        why = "pads" if "padded" in reader else "Deconvolution"
        assert all(why in stay.reason for stay in done.report.stayed)
        assert len(done.layers) == 3


def test_all_readers_take_it(tmp_path: Path) -> None:
    net = _start()
    top = _run(net, ["bn", "scale"])
    net.conv("conv", top, C, N, 1)
    net.conv("grouped", top, C, C, 2, group=2, bias=False)
    net.inner_product("ip", top, 30 * C, 3)
    done = fold_net(net, tmp_path)
    assert done.layers == ["start", "conv", "grouped", "ip"]
    assert set(absorbed(done.report).values()) == {("bn", "scale")}


def test_a_run_that_waits_for_a_reader_goes_whole(tmp_path: Path) -> None:
    """Its two shifts are none together, and padded convolutions take none."""
    net = _start()
    net.power("plus", "x", shift=1, top="p")
    net.power("minus", "p", scale=2, shift=-2, top="v")
    net.power("between", "v", scale=3, top="w")
    net.conv("conv", "w", C, N, 3, pad=1)
    net.conv("other", "v", C, N, 3, pad=1)
    done = fold_net(net, tmp_path)
    assert done.layers == ["start", "conv", "other"]
    assert done.absorbed("other") == (("plus", "minus"), ())


@pytest.mark.parametrize("other", ["relu", "padded", "deconv", "eltwise"])
def test_one_reader_that_cannot_take_it_keeps_it(other: str, tmp_path: Path) -> None:
    net = _start()
    top = _run(net, ["bn"])
    net.conv("conv", top, C, N, 1)
    if other == "relu":
        net.relu("other", top, "other")
    elif other == "eltwise":
        net.eltwise("other", [top, "x"], "other")
    elif other == "padded":
        net.conv("other", top, C, N, 3, pad=1)
    else:
        net.deconv("other", top, C, N, 3)
    done = fold_net(net, tmp_path)
    assert done.is_unchanged
    assert "'other'" in done.stayed("bn").reason
    assert f"'{top}'" in done.stayed("bn").reason


def test_other_readers_of_the_bottom_do_not_mind(tmp_path: Path) -> None:
    """A pre-activation block: the sum has a second reader, the BatchNorm has one."""
    net = _start()
    net.conv("conv", _run(net, ["bn", "scale"]), C, C, 1)
    net.eltwise("sum", ["x", "conv"])
    assert fold_net(net, tmp_path).layers == ["start", "conv", "sum"]


def test_a_second_reader_of_a_linear_layer_sends_the_run_forward(tmp_path: Path) -> None:
    net = _start()
    net.conv("first", "x", C, C, 1)
    net.batch_norm("bn", "first", C, "normal")
    net.conv("second", "normal", C, N, 1, bias=False)
    net.relu("reader", "first", "read")
    done = fold_net(net, tmp_path)
    assert absorbed(done.report) == {"second": ("bn",)}
    assert len(done.blobs("second")) == 2


def test_both_sides_of_one_layer(tmp_path: Path) -> None:
    net = _start()
    top = _run(net, ["bn", "scale"])
    net.conv("conv", top, C, N, 2, bias=False)
    net.batch_norm("bn_behind", "conv", N)
    net.scale("scale_behind", "conv", N, "normal")
    done = fold_net(net, tmp_path)
    assert done.layers == ["start", "conv"]
    assert done.absorbed("conv") == (("bn", "scale"), ("bn_behind", "scale_behind"))
    assert "bn + scale before it, bn_behind + scale_behind" in done.report.to_text()


@pytest.mark.parametrize("where", ["input", "net-level", "eltwise", "concat", "pooling"])
def test_runs_behind_what_is_not_linear(where: str, tmp_path: Path) -> None:
    net = Net()
    net.input("data", IMAGE, "input_dim" if where == "net-level" else None)
    bottom, channels = "data", C
    if where == "eltwise":
        bottom = net.eltwise("e", ["data", "data"]).tops[0]
    elif where == "concat":
        net.layer("cat", "Concat", ["data", "data"], "cat")
        bottom, channels = "cat", 2 * C
    elif where == "pooling":
        net.layer("pool", "Pooling", "data", "pool", "pooling_param { kernel_size: 2 }")
        bottom = "pool"
    net.batch_norm("bn", bottom, channels, "normal")
    net.conv("conv", "normal", channels, N, 2)
    done = fold_net(net, tmp_path)
    assert absorbed(done.report) == {"conv": ("bn",)}
    assert done.layer("conv").bottoms == (bottom,)


def test_run_in_place(tmp_path: Path) -> None:
    net = _start()
    net.batch_norm("bn", "x", C)
    net.scale("scale", "x", C)
    net.conv("conv", "x", C, N, 1)
    done = fold_net(net, tmp_path)
    assert done.layers == ["start", "conv"]
    assert done.text == net.prototxt().replace(net.layers[2].text + net.layers[3].text, "")


@pytest.mark.parametrize("width", [C, 3 * C, 30 * C])
def test_each_channel_covers_its_columns(width: int, tmp_path: Path) -> None:
    """(1, C, W, 1): each channel is W columns in a row, not each C-th column."""
    net = _start((2, C, width // C, 1))
    net.inner_product("linear", _run(net, ["gamma", "bias"]), width, N)
    assert fold_net(net, tmp_path).layers == ["start", "linear"]


def test_an_activation_between_keeps_both_apart(tmp_path: Path) -> None:
    net = _start()
    top = _run(net, ["bn"])
    net.relu("relu", top)
    net.conv("conv", top, C, N, 1)
    done = fold_net(net, tmp_path)
    assert done.is_unchanged
    assert done.stayed("bn").code == "not-linear"


@pytest.mark.parametrize("format", [BlobFormat(legacy=True), BlobFormat("double", runs=2)])
def test_forms_of_blobs(format: BlobFormat, tmp_path: Path) -> None:
    for name in ("conv-no-bias", "ip", "ip-no-bias"):
        shape, add = READERS[name]
        net = _start(shape)
        add(net, _run(net, ["bn", "scale"]))
        for layer in net.layers:
            layer.format = format
        folder = tmp_path / name
        folder.mkdir()
        assert fold_net(net, folder).layers == ["start", "linear"]


def test_a_shift_of_a_single_channel(tmp_path: Path) -> None:
    """The shift of channel 2 alone: it meets the weights of channel 2 of its group alone."""
    net = _start((1, 8, 4, 4))
    shift = np.zeros(8)
    shift[5] = 3.0
    net.layer("bias", "Bias", "x", "shifted", blobs=[shift])
    net.conv("conv", "shifted", 8, 4, 2, group=4, bias=False).blobs[0][:] = 1.0
    done = fold_net(net, tmp_path)
    assert done.blobs("conv")[1].values.tolist() == [0.0, 0.0, 12.0, 0.0]


def test_a_layer_takes_one_run_after_another(tmp_path: Path) -> None:
    """Where the second run is gone, the first has linear readers only."""
    net = _start()
    net.batch_norm("bn", "x", C, "y")
    net.scale("scale", "y", C, "z")
    net.conv("conv1", "z", C, N, 2)
    net.conv("conv2", "y", C, N, 1, bias=False)
    done = fold_net(net, tmp_path)
    assert done.layers == ["start", "conv1", "conv2"]
    assert absorbed(done.report) == {"conv1": ("bn", "scale"), "conv2": ("bn",)}
