"""Pairs that are left alone: each reason, with its code and what its sentence names."""

from __future__ import annotations

from pathlib import Path
from typing import Callable

import numpy as np
import pytest
from equalizing import equalize_net
from support.nets import Net, NetLayer
from support.wire import BlobFormat

C, MID, OUT = 3, 6, 4


def start(first: str = "first", extra: str = "") -> Net:
    """An input and a convolution."""
    net = Net()
    net.input("data", (1, C, 6, 6))
    net.conv(first, "data", C, MID, extra=extra)
    return net


def end(net: Net, bottom: str = "first", extra: str = "", params: str = "") -> NetLayer:
    """A convolution that reads it, with uneven weights."""
    layer = net.conv("second", bottom, MID, OUT, extra=extra, params=params)
    layer.blobs[0] *= 2.0 ** net.rng.uniform(-3, 3, MID)[None, :, None, None]
    return layer


def between(type: str, params: str = "", blobs: tuple[np.ndarray, ...] = ()) -> Net:
    """Two convolutions with a layer between them."""
    net = start()
    net.layer("middle", type, "first", "middle", params, blobs)
    end(net, "middle")
    return net


BETWEEN = {
    "ReLU6": ("", "not-homogeneous"),
    "Sigmoid": ("", "not-homogeneous"),
    "TanH": ("", "not-homogeneous"),
    "ELU": ("", "not-homogeneous"),
    "Clip": ("clip_param { min: 0 max: 6 }", "not-homogeneous"),
    "AbsVal": ("", "not-homogeneous"),
    "Power": ("power_param { power: 2 }", "not-homogeneous"),
    "Pooling": ("pooling_param { kernel_size: 2 }", "not-homogeneous"),
    "LRN": ("", "not-homogeneous"),
    "BatchNorm": ("batch_norm_param { use_global_stats: false }", "not-homogeneous"),
    "Split": ("", "not-homogeneous"),
    "ReLU": ("relu_param { clip: 6 }", "unknown-field"),
    "Dropout": ("dropout_param { sample_weights_test: true }", "unknown-field"),
    "PReLU": ("fused_scale: 2", "unknown-field"),
}


@pytest.mark.parametrize("type", BETWEEN)
def test_a_layer_between_through_which_no_factor_passes(type: str, tmp_path: Path) -> None:
    params, code = BETWEEN[type]
    net = between(type, params, (np.full(MID, 0.1),) if type == "PReLU" else ())
    done = equalize_net(net, tmp_path, runs=False)
    assert done.pairs == []
    assert done.left("first").code == code
    assert f"'middle' ({type})" in done.left("first").reason


def test_a_sum_of_two_layers(tmp_path: Path) -> None:
    net = start()
    net.conv("other", "data", C, MID)
    net.eltwise("sum", ["first", "other"])
    end(net, "sum")
    done = equalize_net(net, tmp_path)
    assert (done.pairs, done.left("first").code) == ([], "not-homogeneous")


def test_two_readers(tmp_path: Path) -> None:
    net = start()
    net.relu("relu", "first", "relu")
    end(net, "relu")
    net.conv("third", "relu", MID, OUT)
    done = equalize_net(net, tmp_path)
    assert done.left("first").code == "second-reader"
    assert "'second' (Convolution) and 'third' (Convolution)" in done.left("first").reason


def test_a_reader_before_an_activation_in_place(tmp_path: Path) -> None:
    """What the first of the two reads is the convolution's own top."""
    net = start()
    net.conv("early", "first", MID, OUT)
    net.relu("relu", "first")
    end(net)
    done = equalize_net(net, tmp_path, runs=False)  # on which newer Caffes abort
    assert (done.pairs, done.left("first").code) == ([], "second-reader")


def test_an_output_and_a_kept_blob(tmp_path: Path) -> None:
    net = start()
    net.relu("relu", "first", "x")
    end(net, "x")
    for keep, pairs in (("x", []), ("first", []), ("second", [("first", "second")])):
        folder = tmp_path / keep
        folder.mkdir()
        done = equalize_net(net, folder, keep=[keep])
        assert done.pairs == pairs
        if not pairs:
            assert done.left("first").code == "kept"
            assert f"'{keep}'" in done.left("first").reason
            assert done.left("second").code == "net-output"


@pytest.mark.parametrize("shared", ["weights", "bias"])
def test_siamese_layers(shared: str, tmp_path: Path) -> None:
    names = ['param { name: "w" }', 'param { name: "b" }']
    if shared == "bias":
        names[0] = "param { }"
    net = start(extra=" ".join(names))
    end(net)
    net.input("data2", (1, C, 6, 6))
    other = net.conv("twin", "data2", C, MID, extra=" ".join(names))
    net.conv("third", "twin", MID, OUT)
    index = 0 if shared == "weights" else 1
    other.blobs[index] = net.layers[1].blobs[index]
    if shared == "weights":
        other.blobs[1] = net.layers[1].blobs[1]
    done = equalize_net(net, tmp_path)
    assert done.pairs == []
    assert {done.left(name).code for name in ("first", "twin")} == {"shared"}


def test_a_second_layer_that_shares(tmp_path: Path) -> None:
    net = start()
    one = end(net, extra='param { name: "w" } param { name: "b" }')
    net.input("data2", (1, MID, 6, 6))
    other = net.conv("twin", "data2", MID, OUT, extra='param { name: "w" } param { name: "b" }')
    other.blobs = one.blobs
    done = equalize_net(net, tmp_path)
    assert done.left("first").code == "shared"
    assert "'second' (Convolution)" in done.left("first").reason


def test_a_lone_param_name_is_no_sharing(tmp_path: Path) -> None:
    net = start(extra='param { name: "w" }')
    end(net)
    assert equalize_net(net, tmp_path).pairs == [("first", "second")]


TRAIN = "include { phase: TRAIN }"
OUTSIDE: dict[str, Callable[[Net], object]] = {
    "reader": lambda net: net.layer("loss", "EuclideanLoss", ["first", "data"], "loss", TRAIN),
    "twin": lambda net: net.layer(
        "second", "Convolution", "first2", "second2", f"{TRAIN} convolution_param {{ }}",
        in_weights=False,
    ),
    "sharer": lambda net: net.layer(
        "other", "Convolution", "first2", "other",
        f'{TRAIN} param {{ name: "w" }} convolution_param {{ }}', in_weights=False,
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", OUTSIDE)
def test_layers_outside_the_state(kind: str, tmp_path: Path) -> None:
    net = start(extra='param { name: "w" }')
    end(net)
    OUTSIDE[kind](net)
    done = equalize_net(net, tmp_path)
    assert (done.pairs, done.left("first").code) == ([], "other-states")


def test_a_loss_weight_on_a_layer_or_an_activation(tmp_path: Path) -> None:
    for name in ("first", "relu"):
        net = start(extra="loss_weight: 1" if name == "first" else "")
        relu = net.relu("relu", "first", "relu")
        if name == "relu":
            relu.text = relu.text.replace("type:", "loss_weight: 0.5 type:")
        end(net, "relu")
        folder = tmp_path / name
        folder.mkdir()
        done = equalize_net(net, folder, runs=False)
        assert (done.pairs, done.left("first").code) == ([], "loss-weight")


def test_memory_that_others_read(tmp_path: Path) -> None:
    """A Split's tops are its bottom's memory, which the ReLU changes in place."""
    net = start()
    net.layer("split", "Split", "first", ["one", "two"])
    net.relu("change", "one")
    end(net, "one")
    net.conv("third", "two", MID, OUT)
    done = equalize_net(net, tmp_path, runs=False)
    assert (done.pairs, done.left("first").code) == ([], "not-homogeneous")


def test_a_blob_name_that_is_used_again(tmp_path: Path) -> None:
    """``verify`` goes by names, and could not tell the two."""
    net = start()
    end(net)
    net.conv("third", "second", OUT, MID, top="first", params="weight_filler { }")
    done = equalize_net(net, tmp_path, runs=False)
    assert done.left("first").code == "blob-name"


def test_layers_that_are_not_what_they_say(tmp_path: Path) -> None:
    no_weights = start()
    end(no_weights).in_weights = False
    wrong = start()
    end(wrong).blobs[0] = np.zeros((OUT, MID + 1, 3, 3))
    twice = start()
    end(twice)
    twice.conv("first", "second", OUT, OUT, top="third").in_weights = False
    slopes = between("PReLU")
    infinite = start()
    end(infinite).blobs[0][1, 2] = np.inf
    odd = start()
    end(odd, params="winograd_tile: 4")
    quantized = start(extra="quantization_param { bw_params: 8 }")
    end(quantized)
    harmful = start(extra="fused_relu: true")
    end(harmful)
    nets = {
        "no-weights": no_weights,
        "channels": wrong,
        "duplicate-name": twice,
        "not-finite": infinite,
        "unknown-field": odd,
        "quantization": quantized,
        "changes-computation": harmful,
    }
    for code, net in nets.items():
        folder = tmp_path / code
        folder.mkdir()
        done = equalize_net(net, folder, runs=False)
        assert done.pairs == []
        assert code in [left.code for left in done.equalized.left if left.layer == "first"]
        if code == "not-finite":
            assert "'second' (Convolution)" in done.left("first").reason
    done = equalize_net(slopes, tmp_path, runs=False)
    assert done.left("first").code == "no-weights"


@pytest.mark.parametrize(
    ("slopes", "code", "reason"),
    [
        (np.full(MID - 1, 0.1), "channels", "'middle' (PReLU) has 5 slopes for 6 channels"),
        (np.array([0.1, 0.2, np.nan, 0.3, 0.4, 0.5]), "not-finite", "a slope of layer 'middle'"),
        (np.array([-np.inf]), "not-finite", "a slope of layer 'middle' (PReLU) is no finite"),
    ],
    ids=["count", "nan", "infinite"],
)
def test_a_prelu_whose_slopes_are_none(
    slopes: np.ndarray, code: str, reason: str, tmp_path: Path
) -> None:
    """Its pair alone is left; another one is balanced."""
    net = between("PReLU", "prelu_param { }", (slopes,))
    net.conv("a", "data", C, MID)
    net.conv("b", "a", MID, OUT).blobs[0] *= 10
    done = equalize_net(net, tmp_path, runs=False)
    assert done.pairs == [("a", "b")]
    assert done.left("first").code == code
    assert reason in done.left("first").reason


@pytest.mark.parametrize("at", [0, 1])
def test_the_reason_of_a_layer_that_is_not_finite_stands_alone(at: int, tmp_path: Path) -> None:
    """The sentence is the one of a fold, and here there is nothing to take in."""
    net = start()
    second = end(net)
    (net.layers[1], second)[at].blobs[0][1, 2] = np.nan
    done = equalize_net(net, tmp_path, runs=False)
    name = ("first", "second")[at]
    assert done.left("first").reason == (
        f"layer '{name}' (Convolution) cannot get new weights: its weights hold numbers that are "
        "not finite"
    )


def test_a_relu_that_is_none(tmp_path: Path) -> None:
    for name, tops, params, code in (
        ("two", ["x", "y"], "", "tops-and-bottoms"),
        ("slope", ["x"], "relu_param { negative_slope: nan }", "not-finite"),
    ):
        net = start()
        net.layer("relu", "ReLU", "first", tops, params)
        end(net, "x")
        folder = tmp_path / name
        folder.mkdir()
        done = equalize_net(net, folder, runs=False)
        assert (done.pairs, done.left("first").code) == ([], code)


def test_dropped_quantization_that_stays_in_the_text_refuses(tmp_path: Path) -> None:
    """A layer that takes no other in keeps its field, and so its weights."""
    net = start(extra="quantization_param { bw_params: 8 }")
    end(net)
    done = equalize_net(net, tmp_path, runs=False, drop_quantization=True)
    assert done.left("first").code == "quantization"


def test_numbers_that_would_not_fit(tmp_path: Path) -> None:
    """The pair whose bias would overflow is left alone, and so is the next, of one layer; a
    pair elsewhere is not."""
    net = start()
    first, second = net.layers[1], end(net)
    first.blobs[0] *= 1e-20
    first.blobs[1][:] = 1e30
    second.blobs[0] *= 1e10
    net.conv("a", "data", C, MID)
    net.conv("b", "a", MID, OUT).blobs[0] *= 10
    done = equalize_net(net, tmp_path)
    assert done.left("first").code == "overflow"
    assert done.left("first").reason == (
        "layer 'first' (Convolution) cannot get new weights: its new bias would not fit float32"
    )
    assert done.pairs == [("a", "b")]


def half_net(size: float) -> Net:
    """Two layers in float16, of which the second has small numbers."""
    net = start()
    first, second = net.layers[1], end(net)
    first.blobs[0] *= 1e-2 / np.abs(first.blobs[0]).max()
    second.blobs[0] = np.full(second.blobs[0].shape, size)
    for layer in (first, second):
        layer.format = BlobFormat("half")
    return net


def test_float16_is_scaled_by_powers_of_two_which_round_nothing(tmp_path: Path) -> None:
    net = half_net(1e-1)
    done = equalize_net(net, tmp_path, balance=2.01)
    assert done.pairs == [("first", "second")]
    for name, layer in (("first", net.layers[1]), ("second", net.layers[2])):
        for found, blob in zip(done.blobs(name), layer.blobs):
            fractions = [np.frexp(values)[0] for values in (found, blob.astype(np.float16))]
            np.testing.assert_array_equal(fractions[0].ravel(), fractions[1].ravel())


def test_float16_factors_that_cancel_in_a_layer(tmp_path: Path) -> None:
    """A depthwise layer between two factors of 4 keeps its weights, and is reported."""
    net = Net()
    net.input("data", (1, C, 6, 6))
    net.conv("first", "data", C, C, 1)
    net.relu("relu1", "first")
    net.conv("depthwise", "first", C, C, 1, group=C)
    net.relu("relu2", "depthwise")
    net.conv("last", "depthwise", C, C, 1)
    for layer, value in zip([layer for layer in net.layers if layer.blobs], (16.0, 4.0, 1.0)):
        layer.format = BlobFormat("half")
        layer.blobs[0] = np.full(layer.blobs[0].shape, value)
        layer.blobs[1] = layer.blobs[1].astype(np.float16).astype(np.float64)
    done = equalize_net(net, tmp_path)
    assert done.pairs == [("first", "depthwise"), ("depthwise", "last")]
    assert [found.layer for found in done.equalized.ranges] == ["first", "depthwise", "last"]
    assert {found.largest_after for found in done.equalized.ranges} == {4.0}
    text = done.report.to_text()
    assert "balanced depthwise -> last by 4 to 4; largest/median range 1 -> 1" in text


def test_float16_that_would_underflow(tmp_path: Path) -> None:
    done = equalize_net(half_net(1e-6), tmp_path)
    assert (done.pairs, done.left("first").code) == ([], "precision")
