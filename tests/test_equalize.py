"""Pairs of layers that are equalised: every layout, every activation, chains."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from equalizing import equalize_net, sizes
from hypothesis import HealthCheck, given, settings
from random_nets import RandomNet, nets
from support.nets import Net, NetLayer
from support.wire import BlobFormat

C, MID, OUT = 3, 6, 4


def spread(net: Net, *names: str) -> None:
    """Give the output channels of layers very different ranges, as folding does."""
    for layer in net.layers:
        if layer.name in names:
            factors = 2.0 ** net.rng.uniform(-5, 5, layer.blobs[-1].size)
            kind = layer.type
            if kind == "Deconvolution":
                group = layer.blobs[0].shape[1]
                layer.blobs[0] *= np.resize(factors, group)[None, :, None, None]
            elif "transpose" in layer.text:
                layer.blobs[0] *= factors
            else:
                layer.blobs[0] *= factors.reshape(-1, *[1] * (layer.blobs[0].ndim - 1))


def linear(net: Net, kind: str, name: str, bottom: str, channels: int, count: int) -> int:
    """Add a layer of a kind; gives its outputs."""
    if kind == "grouped":
        net.conv(name, bottom, channels, count, 1, group=2 if channels % 2 == 0 else 1)
    elif kind == "depthwise":
        net.conv(name, bottom, channels, channels, 3, pad=1, group=channels)
        return channels
    elif kind == "fork":
        net.conv(name, bottom, channels, channels, 3, pad=1, type="DepthwiseConvolution",
                 group=channels)  # fmt: skip
        return channels
    elif kind == "deconv":
        net.deconv(name, bottom, channels, count, 3, pad=1)
    elif kind == "grouped deconv":
        net.deconv(name, bottom, channels, count, 3, pad=1, group=2 if channels % 2 == 0 else 1)
    else:
        net.conv(name, bottom, channels, count, 3, pad=1)
    return count


KINDS = ["conv", "grouped", "depthwise", "deconv", "grouped deconv"]


@pytest.mark.parametrize("second", KINDS)
@pytest.mark.parametrize("first", KINDS)
def test_every_layout_on_either_side(first: str, second: str, tmp_path: Path) -> None:
    net = Net(seed=KINDS.index(first) * 10 + KINDS.index(second))
    net.input("data", (1, MID, 5, 5))
    width = linear(net, first, "first", "data", MID, MID)
    net.relu("relu", "first")
    linear(net, second, "second", "first", width, OUT)
    spread(net, "first")
    done = equalize_net(net, tmp_path)
    assert done.pairs == [("first", "second")]
    assert done.equalized.blobs == ("first",)
    assert done.left("second").code == "net-output"


@pytest.mark.parametrize("transpose", [False, True])
def test_inner_products_behind_each_other(transpose: bool, tmp_path: Path) -> None:
    net = Net()
    net.input("data", (2, 5))
    net.inner_product("ip1", "data", 5, 7, transpose=transpose)
    net.relu("relu1", "ip1")
    net.inner_product("ip2", "ip1", 7, 6, transpose=not transpose)
    net.relu("relu2", "ip2", "relu2")
    net.inner_product("ip3", "relu2", 6, 2, transpose=transpose)
    spread(net, "ip1", "ip2")
    done = equalize_net(net, tmp_path)
    assert done.pairs == [("ip1", "ip2"), ("ip2", "ip3")]
    assert done.equalized.blobs == ("ip1", "ip2", "relu2")


@pytest.mark.parametrize("transpose", [False, True])
def test_an_inner_product_that_flattens_a_convolution(transpose: bool, tmp_path: Path) -> None:
    net = Net()
    net.input("data", (2, C, 4, 4))
    net.conv("conv", "data", C, MID, 3)
    net.relu("relu", "conv")
    net.inner_product("ip", "conv", MID * 4, 5, transpose=transpose)
    spread(net, "conv")
    assert equalize_net(net, tmp_path).pairs == [("conv", "ip")]


@pytest.mark.parametrize(
    "between",
    ["nothing", "relu", "leaky", "negative slope", "prelu", "shared prelu", "dropout", "many"],
)
def test_what_a_factor_passes_through(between: str, tmp_path: Path) -> None:
    net = Net(seed=3)
    net.input("data", (2, C, 6, 6))
    net.conv("first", "data", C, MID)
    if between in ("relu", "many"):
        net.relu("relu", "first")
    if between in ("leaky", "many"):
        net.relu("leaky", "first", slope=0.1)
    if between == "negative slope":
        net.relu("negative", "first", slope=-0.3)
    if between in ("prelu", "many"):
        slopes = [0.1, -0.2, 0.0, 1.5, -3.0, 0.3]
        net.layer("prelu", "PReLU", "first", "first", "", [slopes])
    if between == "shared prelu":
        net.layer("prelu", "PReLU", "first", "first", "prelu_param { channel_shared: true }",
                  [np.array(-0.3)])  # fmt: skip
    if between in ("dropout", "many"):
        net.layer("dropout", "Dropout", "first", "first", "dropout_param { dropout_ratio: 0.3 }")
    net.conv("second", "first", MID, OUT)
    spread(net, "first")
    assert equalize_net(net, tmp_path).pairs == [("first", "second")]


def mobilenet(blocks: int = 3) -> Net:
    """Depthwise and pointwise convolutions in turn, with BatchNorms of uneven variances."""
    net = Net(seed=5)
    net.input("data", (1, C, 8, 8))
    net.conv("conv0", "data", C, MID, 3, pad=1, bias=False)
    last = "conv0"
    for index in range(blocks):
        for name, group in ((f"dw{index}", MID), (f"pw{index}", 1)):
            norm = net.batch_norm(f"{last}/bn", last, MID)
            norm.blobs[1] *= 10.0 ** net.rng.uniform(-4, 2, MID)
            net.scale(f"{last}/scale", last, MID)
            net.relu(f"{last}/relu", last)
            net.conv(name, last, MID, MID, 3 if group > 1 else 1, group=group, pad=int(group > 1))
            last = name
    return net


def test_a_chain_is_balanced_as_a_whole_and_its_ranges_get_better(tmp_path: Path) -> None:
    done = equalize_net(mobilenet(), tmp_path)
    names = ["conv0", "dw0", "pw0", "dw1", "pw1", "dw2", "pw2"]
    assert done.pairs == list(zip(names, names[1:]))
    ratios = [found.ratios for found in done.equalized.ranges]
    # The last layer's outputs are left, and with them their ranges.
    assert [found.layer for found in done.equalized.ranges] == names
    assert np.median([before for before, _ in ratios]) > 2 * np.median([b for _, b in ratios])
    first = done.equalized.ranges[0]
    (layer,) = [layer for layer in done.net.layers if layer.name == "conv0"]
    found = sizes(layer, done.blobs("conv0")[0], None).max(axis=1)
    assert first.largest_after == pytest.approx(found.max(), rel=1e-6)
    assert first.median_after == pytest.approx(np.median(found), rel=1e-6)


def test_channels_without_weights_keep_theirs(tmp_path: Path) -> None:
    net = Net()
    net.input("data", (1, C, 6, 6))
    first = net.conv("first", "data", C, MID)
    net.relu("relu", "first")
    second = net.conv("second", "first", MID, OUT)
    first.blobs[0][1] = 0
    second.blobs[0][:, 2] = 0
    first.blobs[0][3] *= 100
    done = equalize_net(net, tmp_path)
    np.testing.assert_array_equal(done.blobs("first")[1][1:3], np.float32(first.blobs[1][1:3]))
    np.testing.assert_array_equal(
        done.blobs("second")[0][:, 1], second.blobs[0][:, 1].astype(np.float32)
    )


def test_a_channel_that_is_all_but_dead_gets_no_enormous_bias(tmp_path: Path) -> None:
    """BatchNorms leave such channels: no weight to speak of, and a bias of ordinary size."""
    net = Net()
    net.input("data", (1, C, 6, 6))
    first = net.conv("first", "data", C, MID)
    net.relu("relu", "first")
    second = net.conv("second", "first", MID, OUT)
    first.blobs[0][1] *= 1e-20
    first.blobs[1][1] = 0.5
    second.blobs[0][:, 1] *= 50 / np.abs(second.blobs[0][:, 1]).max()
    first.blobs[0][2] *= 1e-20  # and one that the second layer hardly reads, too
    second.blobs[0][:, 2] *= 1e-3
    done = equalize_net(net, tmp_path, balance=np.inf)
    bias = done.blobs("first")[1]
    assert bias[2] == np.float32(first.blobs[1][2])
    # The second layer's largest weight is no longer there.
    assert np.abs(done.blobs("second")[0]).max() < 5
    assert 0.5 < bias[1] < 100


def test_a_layer_with_one_channel(tmp_path: Path) -> None:
    net = Net()
    net.input("data", (1, 1, 6, 6))
    net.conv("first", "data", 1, 1)
    net.relu("relu", "first")
    second = net.conv("second", "first", 1, 1)
    second.blobs[0] *= 1000
    assert equalize_net(net, tmp_path).pairs == [("first", "second")]


def even_net() -> tuple[Net, NetLayer, NetLayer]:
    """Two layers all of whose weights are 1 or -1."""
    net = Net()
    net.input("data", (1, C, 6, 6))
    first = net.conv("first", "data", C, MID)
    second = net.conv("second", "first", MID, OUT)
    for layer in (first, second):
        layer.blobs[0] = np.sign(layer.blobs[0])
    return net, first, second


SAME = "its channels and those that layer 'second' (Convolution) reads have the same range"


def test_what_is_in_balance_is_left_alone_and_said_so(tmp_path: Path) -> None:
    net, _, _ = even_net()
    done = equalize_net(net, tmp_path)
    assert done.pairs == []
    assert (done.left("first").code, done.left("first").reason) == ("in-balance", SAME)


@pytest.mark.parametrize(("kind", "by"), [("data", 1.01), ("half", 1.75)])
def test_how_far_from_balance_is_told(kind: str, by: float, tmp_path: Path) -> None:
    """In float16 factors are powers of two, and a factor of less than two is too little."""
    net, first, second = even_net()
    second.blobs[0][:, 0] *= by
    for layer in (first, second):
        layer.format = BlobFormat(kind)
    done = equalize_net(net, tmp_path, tolerance=1e-3)
    assert done.left("first").reason == f"{SAME} to a factor of {by}"


def test_channels_that_are_in_no_balance_are_told(tmp_path: Path) -> None:
    """Zeros on one side of two channels, and so little of a third that int8 loses it."""
    net, first, second = even_net()
    first.blobs[0][0] *= 100
    second.blobs[0][:, 0] = 0
    first.blobs[0][1] = 0
    first.blobs[0][2] *= 1e-9
    done = equalize_net(net, tmp_path)
    assert done.left("first").code == "in-balance"
    but = ", but for 2 with only zeros on one side and 1 that int8 would round to zero"
    assert done.left("first").reason == SAME + but


@pytest.mark.parametrize("at", [0, 1])
def test_a_layer_of_zeros(at: int, tmp_path: Path) -> None:
    net, *layers = even_net()
    layers[at].blobs[0] *= 0
    done = equalize_net(net, tmp_path)
    assert (done.pairs, done.left("first").code) == ([], "zero-weights")
    wanted = "no channel has weights other than 0 both in it and in layer 'second' (Convolution)"
    assert done.left("first").reason.startswith(wanted)


def test_a_pair_in_balance_by_the_factors_beside_it(tmp_path: Path) -> None:
    """Its ranges are compared as they are once its neighbour has its factors."""
    net, _, second = even_net()
    third = net.conv("third", "second", OUT, OUT, 1)
    second.blobs[0][3] *= 4
    third.blobs[0] = np.ones(third.blobs[0].shape)
    third.blobs[0][:, 3] = 0.25
    done = equalize_net(net, tmp_path)
    assert done.pairs == [("second", "third")]
    assert done.left("first").reason == SAME


def test_a_net_with_nothing_to_fold_is_equalised(tmp_path: Path) -> None:
    net = Net()
    net.input("data", (1, C, 6, 6))
    net.conv("first", "data", C, MID)
    net.conv("second", "first", MID, OUT)
    spread(net, "first")
    done = equalize_net(net, tmp_path)
    assert done.report.folded == ()
    assert "nothing-to-fold" not in [note.code for note in done.report.notes]


def test_the_text_names_pairs_reasons_and_blobs(tmp_path: Path) -> None:
    done = equalize_net(mobilenet(1), tmp_path)
    lines = done.report.to_text().splitlines()
    assert any(line.startswith("balanced conv0 -> dw0 by ") for line in lines)
    assert "left     pw0 (Convolution): blob 'pw0' is an output of the net" in lines
    (summary,) = [line for line in lines if line.startswith("equalized 2 pairs: ")]
    assert summary.endswith("other scale in 2 blobs: conv0, dw0")


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
@given(made=nets())
def test_random_nets(made: RandomNet, tmp_path_factory: pytest.TempPathFactory) -> None:
    equalize_net(made.net, tmp_path_factory.mktemp("net"), balance=np.inf)
