"""Layers that share parameters fold together and keep sharing, or are refused together."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
from folding import Folded, absorbed, fold_net
from support.nets import Array, Net, NetLayer
from support.wire import BlobFormat

from caffe_fold import CheckError, fold
from caffe_fold.writing import arithmetic

C, N = 3, 4
WEIGHT = 'param { name: "w" }'
BOTH = f'{WEIGHT} param {{ name: "b" }}'
STATISTICS = 'param { name: "m" } param { name: "v" } param { name: "f" }'


def sharing(layers: Iterable[NetLayer]) -> None:
    """Give layers whose params have one name the blobs of the first of them."""
    first, *others = layers
    for other in others:
        named = [i for i, part in enumerate(first.text.split("param {")[1:]) if " name:" in part]
        for index in named:
            if index < len(first.blobs):
                other.blobs[index] = first.blobs[index]


def siamese(extra: str, sides: str = "ab", bn: str = "", bias: bool = True) -> Net:
    """Branches of a convolution and a BatchNorm with equal statistics, and their sum."""
    net = Net()
    net.input("data", (1, C, 4, 4))
    convs, norms = [], []
    for side in sides:
        net.relu(f"relu_{side}", "data", f"x_{side}")
        convs.append(net.conv(f"conv_{side}", f"x_{side}", C, N, 2, extra=extra, bias=bias))
        norms.append(net.batch_norm(f"bn_{side}", f"conv_{side}", N, extra=bn))
    sharing(convs)
    for norm in norms:
        norm.blobs = norms[0].blobs
    net.eltwise("sum", [f"conv_{side}" for side in sides])
    return net


def copies(done: Folded, sides: str = "ab") -> list[list[Array]]:
    """The blobs of each side's convolution as they are written."""
    return [[blob.array() for blob in done.blobs(f"conv_{side}")] for side in sides]


def assert_refused(net: Net, folder: Path, *words: str, runs: bool = True) -> None:
    """Nothing changes, and each BatchNorm or Scale stays for a reason that is sharing's, in
    sentences that hold these words between them."""
    done = fold_net(net, folder, runs=runs)
    assert done.is_unchanged
    reasons = " | ".join(stay.reason for stay in done.report.stayed)
    assert done.report.stayed
    assert "share" in reasons
    for word in words:
        assert word in reasons


# ---- They fold, and keep sharing ----


@pytest.mark.parametrize("sides", ["ab", "abc"])
@pytest.mark.parametrize("bn", ["", STATISTICS], ids=["own statistics", "shared statistics"])
def test_both_blobs_shared(sides: str, bn: str, tmp_path: Path) -> None:
    done = fold_net(siamese(BOTH, sides, bn), tmp_path)
    assert absorbed(done.report) == {f"conv_{side}": (f"bn_{side}",) for side in sides}
    assert done.text.count('name: "w"') == len(sides)
    first, *others = copies(done, sides)
    for other in others:
        assert all(np.array_equal(a, b) for a, b in zip(first, other))


@pytest.mark.parametrize("extra", [WEIGHT, f"{WEIGHT} param {{ lr_mult: 2 }}"])
def test_weights_shared_and_biases_their_own(extra: str, tmp_path: Path) -> None:
    first, second = copies(fold_net(siamese(extra), tmp_path))
    assert np.array_equal(first[0], second[0])
    assert not np.array_equal(first[1], second[1])


def test_without_a_bias_each_gets_an_equal_copy_of_the_new_one(tmp_path: Path) -> None:
    done = fold_net(siamese(WEIGHT, "abc", bias=False), tmp_path)
    assert done.text.count("bias_term: true") == 3
    first, *others = copies(done, "abc")
    assert [blob.shape for blob in first] == [(N, C, 2, 2), (N,)]
    for other in others:
        assert all(np.array_equal(a, b) for a, b in zip(first, other))


@pytest.mark.parametrize("extra", [WEIGHT, BOTH])
def test_one_run_goes_forward_into_all_sharers(extra: str, tmp_path: Path) -> None:
    net = Net()
    net.input("data", (1, C, 4, 4))
    net.relu("relu", "data", "x")
    net.batch_norm("bn", "x", C, "y")
    sharing([net.conv(f"conv_{side}", "y", C, N, 2, extra=extra) for side in "abc"])
    done = fold_net(net, tmp_path)
    assert absorbed(done.report) == {f"conv_{side}": ("bn",) for side in "abc"}
    first, *others = copies(done, "abc")
    for other in others:
        assert np.array_equal(first[0], other[0])
        assert np.array_equal(first[1], other[1]) == (extra == BOTH)


def test_a_scale_without_shift_goes_forward_beside_a_shared_bias(tmp_path: Path) -> None:
    net = Net()
    net.input("data", (1, C, 4, 4))
    net.relu("relu", "data", "x")
    net.scale("scale", "x", C, "y", bias=False)
    convs = [
        net.conv(f"conv_{side}", "y", C, N, 2, extra='param { } param { name: "b" }')
        for side in "ab"
    ]
    convs[1].blobs[1] = convs[0].blobs[1]
    done = fold_net(net, tmp_path)
    assert absorbed(done.report) == {"conv_a": ("scale",), "conv_b": ("scale",)}


def test_v1_sharers(tmp_path: Path) -> None:
    """V1 names a shared blob by a string of its own: ``param: "w"``."""
    net = Net(v1=True)
    net.input("data", (1, C, 4, 4))
    for side in "ab":
        net.conv(f"conv_{side}", "data", C, N, 2, extra='param: "w" param: "b"')
        net.power(f"power_{side}", f"conv_{side}", -2.0, 0.5)
    net.layers[2].blobs = net.layers[0].blobs
    net.eltwise("sum", ["conv_a", "conv_b"])
    done = fold_net(net, tmp_path)
    assert absorbed(done.report) == {"conv_a": ("power_a",), "conv_b": ("power_b",)}
    net.layers[3].text = net.layers[3].text.replace("0.5", "0.25")
    assert fold_net(net, tmp_path).is_unchanged


@pytest.mark.parametrize("extra", [BOTH, WEIGHT])
def test_a_name_that_one_layer_has_is_no_sharing(extra: str, tmp_path: Path) -> None:
    net = siamese("")
    at = next(i for i, layer in enumerate(net.layers) if layer.name == "conv_a")
    net.layers[at].text = net.layers[at].text.replace("\n}", f"\n  {extra}\n}}")
    net.layers[at + 1].blobs = [*net.rng.uniform(1, 2, (2, N)), np.ones(1)]
    assert fold_net(net, tmp_path).layers == ["relu_a", "conv_a", "relu_b", "conv_b", "sum"]


def test_a_name_that_only_another_state_shares_is_no_sharing(tmp_path: Path) -> None:
    net = siamese("")
    for layer in net.layers:
        if layer.name.startswith("conv_"):
            phase = "TEST" if layer.name == "conv_a" else "TRAIN"
            fields = f"{WEIGHT}\n  include {{ phase: {phase} }}"
            layer.text = layer.text.replace("\n}", f"\n  {fields}\n}}")
    net.layers = [layer for layer in net.layers if layer.name not in ("bn_b", "relu_b", "sum")]
    net.layers[-1].text = net.layers[-1].text.replace('"x_b"', '"x_a"')
    assert absorbed(fold_net(net, tmp_path).report) == {"conv_a": ("bn_a",)}


# ---- They are refused ----


def test_sharing_that_goes_on_by_another_blob(tmp_path: Path) -> None:
    """The second convolution shares its weights with one and its bias with another."""
    net = siamese(WEIGHT, "abc")
    convs = [layer for layer in net.layers if layer.type == "Convolution"]
    texts = [f'{WEIGHT} param {{ name: "{name}" }}' for name in ("b1", "b2", "b2")]
    texts[2] = texts[2].replace('"w"', '"w3"')
    for conv, text in zip(convs, texts):
        conv.text = conv.text.replace(WEIGHT, text)
    convs[2].blobs[0] = net.weight((N, C, 2, 2))
    convs[2].blobs[1] = convs[1].blobs[1]
    assert_refused(net, tmp_path, "otherwise than 'conv_")


def test_a_blob_in_another_place(tmp_path: Path) -> None:
    """A Bias layer's blob may be a convolution's second."""
    net = siamese('param { } param { name: "b" }')
    net.bias("bias", "sum", N, extra='param { name: "b" }')
    net.layers[-1].blobs = [net.layers[2].blobs[1]]
    assert_refused(net, tmp_path, "otherwise than 'bias'")


def two_kinds(kinds: tuple[str, str], forward: bool) -> Net:
    """Two layers of as many inputs as outputs that share a square weight."""
    net = Net()
    net.input("data", (1, N, 3, 3) if "Convolution" in kinds else (1, N))
    net.relu("relu", "data", "x")
    bottom = "x"
    if forward:
        net.scale("scale", "x", N, "y", bias=False)
        bottom = "y"
    for side, kind in zip("ab", kinds):
        if kind in ("Convolution", "Deconvolution"):
            net.conv(side, bottom, N, N, 1, type=kind, extra=WEIGHT, bias=False)
        else:
            is_turned = kind == "transposed"
            net.inner_product(side, bottom, N, N, transpose=is_turned, extra=WEIGHT, bias=False)
        if not forward:
            net.scale(f"scale_{side}", side, N, bias=False).blobs = [np.arange(1.0, N + 1)]
    net.layers[-1 if forward else -2].blobs = net.layers[-2 if forward else -4].blobs
    return net


@pytest.mark.parametrize("forward", [False, True], ids=["behind", "before"])
@pytest.mark.parametrize("kinds", [("Convolution", "Deconvolution"), ("inner", "transposed")])
def test_layers_that_use_one_blob_in_two_ways(
    kinds: tuple[str, str], forward: bool, tmp_path: Path
) -> None:
    assert_refused(two_kinds(kinds, forward), tmp_path, "use them in another way")


@pytest.mark.parametrize("kind", ["Convolution", "inner"])
def test_the_same_two_layers_of_one_kind_fold(kind: str, tmp_path: Path) -> None:
    assert len(fold_net(two_kinds((kind, kind), False), tmp_path).report.folded) == 2


def test_a_shift_before_a_shared_bias_and_weights_of_their_own(tmp_path: Path) -> None:
    """Each bias would change by another sum, and it is one bias."""
    net = Net()
    net.input("data", (1, C, 4, 4))
    net.relu("relu", "data", "x")
    net.batch_norm("bn", "x", C, "y")
    extra = 'param { name: "" } param { name: "b" }'
    convs = [net.conv(f"conv_{side}", "y", C, N, 2, extra=extra) for side in "ab"]
    convs[1].blobs[1] = convs[0].blobs[1]
    assert_refused(net, tmp_path, "'conv_a'", "shares its bias and not its weights")


def test_copies_that_differ(tmp_path: Path) -> None:
    net = siamese(BOTH)
    conv = next(layer for layer in net.layers if layer.name == "conv_b")
    conv.blobs = [conv.blobs[0], conv.blobs[1] + np.eye(N)[1]]
    assert_refused(net, tmp_path, "copies", "'b' differ", "'conv_b'")


def test_a_copy_that_is_missing(tmp_path: Path) -> None:
    net = siamese(BOTH)
    next(layer for layer in net.layers if layer.name == "conv_b").in_weights = False
    assert_refused(net, tmp_path, "no blob 0 of layer 'conv_b'", runs=False)


def test_a_copy_of_a_bias_that_is_missing(tmp_path: Path) -> None:
    net = siamese('param { name: "" } param { name: "b" }')
    next(layer for layer in net.layers if layer.name == "conv_b").in_weights = False
    assert_refused(net, tmp_path, "no blob 1 of layer 'conv_b'", runs=False)


def test_permissive_sharing_of_unequal_shapes(tmp_path: Path) -> None:
    """Caffe asks for one count only: kernels of 1x4 and 2x2 may be one blob."""
    permissive = 'param { name: "w" share_mode: PERMISSIVE }'
    net = siamese(permissive)
    conv = next(layer for layer in net.layers if layer.name == "conv_b")
    conv.blobs[0] = conv.blobs[0].reshape(N, C, 1, 4)
    conv.text = conv.text.replace("kernel_size: 2 kernel_size: 2", "kernel_h: 1 kernel_w: 4")
    net.layers = [layer for layer in net.layers if layer.name != "sum"]
    assert_refused(net, tmp_path, "'w' differ")


def test_permissive_sharing_of_equal_shapes_folds(tmp_path: Path) -> None:
    net = siamese('param { name: "w" share_mode: PERMISSIVE }')
    assert len(fold_net(net, tmp_path).report.folded) == 2


RUNS = ["other values", "none", "second reader", "kept", "longer", "other number type"]


@pytest.mark.parametrize("what", RUNS)
def test_runs_behind_sharers_that_are_not_alike(what: str, tmp_path: Path) -> None:
    net, keep = siamese(BOTH), list[str]()
    at = next(i for i, layer in enumerate(net.layers) if layer.name == "bn_b")
    if what == "other values":
        net.layers[at].blobs = [blob * 2 for blob in net.layers[at].blobs]
        net.layers[at].blobs[2] = net.layers[at].blobs[2] / 3
    elif what == "none":
        del net.layers[at]
    elif what == "second reader":
        net.layers[at].text = net.layers[at].text.replace('top: "conv_b"', 'top: "y"')
    elif what == "kept":
        net.layers[at].text = net.layers[at].text.replace('top: "conv_b"', 'top: "y"')
        net.layers[at + 1].text = net.layers[at + 1].text.replace('"conv_b"', '"y"')
        keep = ["conv_b"]
    elif what == "longer":
        net.power("power", "conv_b", 2.0)
        net.layers[at + 1 :] = net.layers[:at:-1]
    else:
        net.layers[at].format = BlobFormat("double")
    done = fold_net(net, tmp_path, keep=keep)
    assert absorbed(done.report) == {}
    assert done.stayed("bn_a").code == "shared"
    assert "'conv_b'" in done.stayed("bn_a").reason
    for name in ("conv_a", "conv_b"):
        assert len(done.blobs(name)) == 2


@pytest.mark.parametrize("kind", ["double", "half"])
def test_copies_of_different_number_types(kind: str, tmp_path: Path) -> None:
    """Equal numbers would be folded and rounded to two types, and be equal no more."""
    net = siamese(WEIGHT)
    conv = next(layer for layer in net.layers if layer.name == "conv_b")
    conv.format = BlobFormat(kind)
    conv.blobs[0][...] = np.round(conv.blobs[0] * 8) / 8
    assert_refused(net, tmp_path, "'w' differ")


@pytest.mark.parametrize("kind", ["double", "half"])
def test_biases_of_different_number_types(kind: str, tmp_path: Path) -> None:
    """The widest type that goes into a fold is that of its weights, which are shared."""
    net = siamese("", bias=True)
    convs = [layer for layer in net.layers if layer.type == "Convolution"]
    for conv in convs:
        conv.text = conv.text.replace("\n}", f"\n  {WEIGHT}\n}}")
        conv.blobs[0] = convs[0].blobs[0]
    _, weights = net.write(tmp_path, "one")
    convs[1].format = BlobFormat(kind)
    assert_refused(net, tmp_path, "differ")
    assert weights.exists()


def test_a_sharer_that_is_no_linear_layer(tmp_path: Path) -> None:
    """An Embed may have the weights of an InnerProduct, which are to stay as they are."""
    net = Net()
    net.input("data", (1, N))
    net.inner_product("ip", "data", N, N, extra=WEIGHT, bias=False, transpose=True)
    net.scale("scale", "ip", N, bias=False)
    net.input("words", (1, 1))
    params = f"embed_param {{ input_dim: {N} num_output: {N} bias_term: false }}"
    net.layer("embed", "Embed", "words", "e", params, net.layers[1].blobs, WEIGHT)
    assert_refused(net, tmp_path, "'embed' (Embed) is not linear", runs=False)


# ---- The proof ----


def test_written_copies_that_differ_fail_the_proof(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An error of a rounding is within what each layer may have, and not what two may."""
    right, calls = arithmetic.Folding.weights, []

    def wrong(self: arithmetic.Folding, block: Array, row: int, col: int) -> Array:
        calls.append(row)
        found = np.array(right(self, block, row, col))
        if len(calls) > 1:
            found[0, 0] = np.nextafter(np.float32(found[0, 0]), np.float32(9))
        return found

    model, weights = siamese(WEIGHT).write(tmp_path)
    monkeypatch.setattr(arithmetic.Folding, "weights", wrong)
    with pytest.raises(CheckError, match=r"copies of its shared parameter 'w' differ"):
        fold(model, weights)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["net.caffemodel", "net.prototxt"]


def branches_with_a_norm_before(equal: bool) -> Net:
    """Two branches, each with a BatchNorm of its own before the convolution that they share."""
    net = Net()
    convs, norms = [], []
    for side in "ab":
        net.input(f"data_{side}", (1, C, 4, 4))
        norms.append(net.batch_norm(f"bn_{side}", f"data_{side}", C, f"x_{side}"))
        convs.append(net.conv(f"conv_{side}", f"x_{side}", C, N, 2, extra=BOTH))
    sharing(convs)
    if equal:
        norms[1].blobs = norms[0].blobs
    net.eltwise("sum", ["conv_a", "conv_b"])
    return net


def test_equal_runs_before_each_sharer_go_forward_together(tmp_path: Path) -> None:
    done = fold_net(branches_with_a_norm_before(True), tmp_path)
    assert absorbed(done.report) == {"conv_a": ("bn_a",), "conv_b": ("bn_b",)}
    first, second = copies(done)
    assert [a.tolist() for a in first] == [b.tolist() for b in second]


def test_unequal_runs_before_sharers_are_refused(tmp_path: Path) -> None:
    assert_refused(branches_with_a_norm_before(False), tmp_path, "which has no such run before it")
