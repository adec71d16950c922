"""Where the two files do not fit each other: refused, repaired with a warning, or an error."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from folding import Folded, absorbed, fold_net
from support.nets import Net
from support.wire import BlobFormat

import caffe_fold

C, N = 3, 4


def _net() -> Net:
    net = Net()
    net.input("data", (2, C, 5, 5))
    net.conv("conv", "data", C, N, 1)
    net.batch_norm("bn", "conv", N, "y")
    return net


def _refused(net: Net, folder: Path, layer: str, code: str, *words: str) -> Folded:
    """Nothing folds, for a reason that names all these words. Caffe may abort on the net."""
    done = fold_net(net, folder, runs=False)
    assert done.is_unchanged
    stay = done.stayed(layer)
    assert stay.code == code, stay
    for word in words:
        assert word in stay.reason, stay
    return done


# ---- Blobs ----


@pytest.mark.parametrize(
    ("count", "code"), [(1, "blob-count"), (4, "bn-layout"), (5, "bn-layout"), (6, "blob-count")]
)
def test_number_of_blobs_of_a_batch_norm(count: int, code: str, tmp_path: Path) -> None:
    net = _net()
    net.layers[2].blobs = [np.ones(N)] * count
    _refused(net, tmp_path, "bn", code, str(count))


@pytest.mark.parametrize("type", ["Scale", "Bias"])
def test_number_of_blobs(type: str, tmp_path: Path) -> None:
    net = _net()
    net.layer("it", type, "y", "z", "", [np.ones(N)] * 3)
    del net.layers[2]
    net.layers[2].text = net.layers[2].text.replace('"y"', '"conv"')
    _refused(net, tmp_path, "it", "blob-count", "3")


@pytest.mark.parametrize("layer", [1, 2])
def test_no_blobs(layer: int, tmp_path: Path) -> None:
    net = _net()
    net.layers[layer].blobs = []
    done = _refused(net, tmp_path, "bn", "no-weights", "'conv'" if layer == 1 else "none")
    assert done.stayed("bn").layer == "bn"


@pytest.mark.parametrize("layer", [1, 2])
def test_no_entry(layer: int, tmp_path: Path) -> None:
    """Names that differ by a letter are the usual cause."""
    net = _net()
    entry = net.layers[layer]
    net.layer(f"{entry.name}_", entry.type, blobs=entry.blobs, in_text=False)
    entry.in_weights = False
    done = _refused(net, tmp_path, "bn", "no-weights", "of its name")
    assert f"'{entry.name}'" in done.warnings["no-weights"]
    assert f"'{entry.name}_'" in done.warnings["no-weights"]
    assert f"'{entry.name}_'" in done.warnings["extra-weights"]


def test_a_bias_under_bias_term_false_is_not_clear(tmp_path: Path) -> None:
    net = _net()
    net.layers[1].text = net.layers[1].text.replace("num_output", "bias_term: false num_output")
    _refused(net, tmp_path, "bn", "blob-count", "'conv'", "bias_term: false")


def test_a_bias_of_a_scale_that_has_none_is_not_clear(tmp_path: Path) -> None:
    net = _net()
    scale = net.scale("scale", "y", N)
    scale.text = scale.text.replace("bias_term: true", "")
    done = fold_net(net, tmp_path, runs=False)
    assert done.layers == ["conv", "scale"]
    assert done.stayed("scale").code == "blob-count"
    assert "bias_term" in done.stayed("scale").reason


def test_a_scale_without_the_bias_that_the_text_implies(tmp_path: Path) -> None:
    net = Net()
    net.input("data", (2, N, 5, 5))
    scale = net.scale("scale", "data", N, "y", extra="param { lr_mult: 1 } param { lr_mult: 2 }")
    scale.blobs.pop()
    meaning = net.prototxt().replace("bias_term: true", "").replace("param { lr_mult: 2 }", "")
    done = fold_net(net, tmp_path, meaning=meaning)
    assert not done.layer("scale").params("scale_param").flag("bias_term")
    assert "'scale'" in done.warnings["no-bias-blob"]


def test_the_one_blob_of_a_scale_with_two_bottoms_is_its_bias(tmp_path: Path) -> None:
    net = Net()
    net.input("data", (2, N, 5, 5))
    net.conv("gate", "data", N, N, 1)
    params = "scale_param { axis: 0 bias_term: true }"
    net.layer("scale", "Scale", ["data", "gate"], "y", params, [np.ones((2, N, 5, 5))])
    assert fold_net(net, tmp_path, runs=False).is_unchanged


def test_a_bias_stays_where_the_weights_are_those_of_another_layer_of_its_name(
    tmp_path: Path,
) -> None:
    """Caffe gives the weights to the first layer of a name; the second has its own from the
    layer with which it shares them."""
    net = Net("twice")
    net.input("data", (1, 2, 4, 4))
    shared = "param { name: 'w' } param { name: 'b' }"
    net.conv("conv", "data", 2, 2, 1, bias=False)
    net.conv("owner", "data", 2, 2, 1, extra=shared)
    net.conv("conv", "data", 2, 2, 1, top="second", extra=shared).in_weights = False
    assert fold_net(net, tmp_path).is_unchanged


@pytest.mark.parametrize("parameter", ["", "pad { num_output: 2 kernel_size: 1 }"])
def test_a_layer_without_its_parameters_is_not_given_any(parameter: str, tmp_path: Path) -> None:
    """Not even those that would repair its bias: it loads nowhere as it is."""
    net = Net("bare")
    net.input("data", (1, 2, 4, 4))
    net.layer("conv", "Convolution", "data", "conv", parameter, [np.ones((2, 2, 1, 1))])
    net.relu("relu", "conv")
    done = fold_net(net, tmp_path, runs=False)
    assert done.is_unchanged
    assert "no-bias-blob" not in done.warnings


def test_weights_may_have_no_layer_left(tmp_path: Path) -> None:
    net = Net("idle")
    net.input("data", (1, 2, 4, 4))
    net.layers[-1].in_weights = False
    net.relu("relu", "data", "relu")
    net.layers[-1].in_weights = False
    net.scale("ones", "relu", 2, top="ones", bias=False).blobs[0][:] = 1
    net.relu("last", "ones", "last")
    net.layers[-1].in_weights = False
    report = caffe_fold.fold(*net.write(tmp_path))
    assert report.removed == ("ones",)
    assert Path(report.output_weights).read_bytes() == b"\x0a\x04idle"


def test_an_inner_product_without_the_bias_that_the_text_implies(tmp_path: Path) -> None:
    net = Net()
    net.input("data", (2, N))
    net.inner_product("ip", "data", N, 2).blobs.pop()
    meaning = net.prototxt().replace("num_output: 2", "num_output: 2 bias_term: false")
    done = fold_net(net, tmp_path, meaning=meaning)
    assert "bias_term: false" in done.text
    assert "'ip'" in done.warnings["no-bias-blob"]


SHAPES: dict[str, tuple[int, int, tuple[int, ...], str]] = {
    # Layer, blob, its shape, and what the sentence names.
    "mean": (2, 0, (N + 1,), "mean"),
    "weights": (1, 0, (N + 1, C, 1, 1), "num_output: 4"),
    "kernel": (1, 0, (N, C, 2, 2), "kernel"),
    "kernel-of-more-axes": (1, 0, (N, C, 1, 1, 1), "'conv'"),
    "bias": (1, 1, (N + 1,), "bias"),
    "shorter-bias": (1, 1, (N - 1,), "bias"),
}


@pytest.mark.parametrize("case", SHAPES)
def test_shapes_of_blobs(case: str, tmp_path: Path) -> None:
    layer, blob, shape, word = SHAPES[case]
    net = _net()
    net.layers[layer].blobs[blob] = np.ones(shape)
    _refused(net, tmp_path, "bn", "blob-shape", word, "'conv'" if layer == 1 else "")


@pytest.mark.parametrize("size", [2, 4])
def test_weights_of_another_kernel(size: int, tmp_path: Path) -> None:
    net = Net()
    net.input("data", (2, C, 5, 5))
    net.conv("conv", "data", C, N, 3)
    net.batch_norm("bn", "conv", N, "y")
    net.layers[1].blobs[0] = np.ones((N, C, size, size))
    _refused(net, tmp_path, "bn", "blob-shape", "kernel of (3, 3)", f"(4, 3, {size}, {size})")


@pytest.mark.parametrize("side", ["kernel_h", "kernel_w"])
def test_a_kernel_of_one_side(side: str, tmp_path: Path) -> None:
    """The other one is 0 then, on which Caffe aborts."""
    net = _net()
    net.layers[1].text = net.layers[1].text.replace("kernel_size: 1 kernel_size", side)
    _refused(net, tmp_path, "bn", "blob-shape", "kernel of", "'conv'")


def test_fewer_channels_than_outputs(tmp_path: Path) -> None:
    net = _net()
    net.layers[2].blobs[:2] = [np.ones(N - 1), np.ones(N - 1)]
    _refused(net, tmp_path, "bn", "channels", f"{N - 1} channels", "'conv'", f"{N} outputs")


def test_a_shape_that_is_not_its_values(tmp_path: Path) -> None:
    net = _net()
    model, weights = net.write(tmp_path)
    data = weights.read_bytes()
    old = bytes([0x3A, 3, 0x0A, 1, N]) + bytes([0x2A, 4 * N])  # shape { dim: 4 } data of four
    assert old in data
    weights.write_bytes(data.replace(old, old.replace(bytes([1, N]), bytes([1, N + 1]))))
    report = caffe_fold.fold(model, weights)
    assert [stay.code for stay in report.stayed] == ["blob-shape"]
    assert "(5,)" in report.stayed[0].reason
    assert "4 values" in report.stayed[0].reason


def test_group_that_does_not_divide(tmp_path: Path) -> None:
    net = _net()
    net.layers[1].text = net.layers[1].text.replace("num_output", "group: 3 num_output")
    _refused(net, tmp_path, "bn", "blob-shape", "group: 3", "'conv'")


# ---- Names ----


def test_two_layers_of_one_name_in_the_net(tmp_path: Path) -> None:
    net = _net()
    net.conv("conv", "y", N, N, 1, top="z")
    net.batch_norm("bn2", "z", N)
    done = fold_net(net, tmp_path, runs=False)
    assert done.is_unchanged
    for name in ("bn", "bn2"):
        assert done.stayed(name).code == "duplicate-name"
        assert "'conv'" in done.stayed(name).reason


def test_two_batch_norms_of_one_name_in_the_net(tmp_path: Path) -> None:
    net = _net()
    net.conv("conv2", "y", N, N, 1, top="z")
    net.batch_norm("bn", "z", N)
    done = fold_net(net, tmp_path, runs=False)
    assert done.is_unchanged
    assert [stay.code for stay in done.report.stayed] == ["duplicate-name"] * 2


def test_layers_without_weights_may_share_a_name(tmp_path: Path) -> None:
    net = _net()
    net.relu("relu", "y")
    net.conv("conv2", "y", N, N, 1)
    net.batch_norm("bn2", "conv2", N, "z")
    net.relu("relu", "z", "w")
    done = fold_net(net, tmp_path)
    assert done.layers == ["conv", "relu", "conv2", "relu"]


@pytest.mark.parametrize("layer", [1, 2])
@pytest.mark.parametrize("same", [True, False])
def test_two_entries_of_one_name(layer: int, same: bool, tmp_path: Path) -> None:
    net = _net()
    entry = net.layers[layer]
    blobs = [blob.copy() for blob in entry.blobs]
    if not same:
        blobs[0].flat[0] += 1
    net.layer(entry.name, entry.type, entry.bottoms, entry.tops, blobs=blobs, in_text=False)
    if not same:
        _refused(net, tmp_path, "bn", "duplicate-weights", "'conv'" if layer == 1 else "2")
        return
    done = fold_net(net, tmp_path)
    assert done.layers == ["conv"]
    copies = [entry for entry in done.entries() if entry.name == "conv"]
    assert len(copies) == (2 if layer == 1 else 1)
    for copy in copies[1:]:
        assert all(np.array_equal(a.values, b.values) for a, b in zip(copies[0].blobs, copy.blobs))


# ---- Sharing ----


def _siamese(extras: tuple[str, str], same: tuple[bool, bool] = (True, True)) -> Net:
    """Two branches of convolution and BatchNorm with the same weights in the file, or not."""
    net = Net()
    net.input("data", (1, C, 4, 4))
    for side, extra in zip("ab", extras):
        net.conv(f"conv_{side}", "data", C, N, 2, extra=extra)
        net.batch_norm(f"bn_{side}", f"conv_{side}", N)
    _, conv_a, bn_a, conv_b, bn_b = net.layers
    if same[0]:
        conv_b.blobs = conv_a.blobs
    if same[1]:
        bn_b.blobs = bn_a.blobs
    net.eltwise("sum", ["conv_a", "conv_b"])
    return net


BOTH = 'param { name: "w" } param { name: "b" }'


@pytest.mark.parametrize("extra", [BOTH, 'param { name: "w" }', 'param { } param { name: "b" }'])
def test_sharers_that_fold_alike(extra: str, tmp_path: Path) -> None:
    done = fold_net(_siamese((extra, extra)), tmp_path)
    assert done.layers == ["conv_a", "conv_b", "sum"]
    assert absorbed(done.report) == {"conv_a": ("bn_a",), "conv_b": ("bn_b",)}


def test_sharers_that_fold_to_different_values(tmp_path: Path) -> None:
    done = fold_net(_siamese((BOTH, BOTH), (True, False)), tmp_path)
    assert done.is_unchanged
    for side in "ab":
        assert done.stayed(f"bn_{side}").code == "shared"
        assert f"'conv_{side}'" in done.stayed(f"bn_{side}").reason


def test_sharers_whose_copies_differ(tmp_path: Path) -> None:
    """The last copy in the file is the one that counts."""
    done = fold_net(_siamese((BOTH, BOTH), (False, True)), tmp_path)
    assert done.is_unchanged
    assert {stay.code for stay in done.report.stayed} == {"shared"}


def test_a_sharer_without_a_run(tmp_path: Path) -> None:
    net = _siamese((BOTH, BOTH))
    del net.layers[4]
    done = fold_net(net, tmp_path)
    assert done.is_unchanged
    assert done.stayed("bn_a").code == "shared"
    assert "'conv_b'" in done.stayed("bn_a").reason


def test_a_sharer_whose_run_is_longer(tmp_path: Path) -> None:
    net = _siamese((BOTH, BOTH))
    net.scale("scale", "conv_b", N)
    net.layers[-1], net.layers[-2] = net.layers[-2], net.layers[-1]
    done = fold_net(net, tmp_path)
    assert {stay.code for stay in done.report.stayed} == {"shared"}
    assert [merge.layers for merge in done.report.merged] == [("bn_b", "scale")]


def test_a_lone_param_name_is_no_sharing(tmp_path: Path) -> None:
    done = fold_net(_siamese((BOTH, "")), tmp_path)
    assert done.layers == ["conv_a", "conv_b", "sum"]


@pytest.mark.parametrize("same", [True, False])
def test_batch_norms_that_share(same: bool, tmp_path: Path) -> None:
    """Statistics shared by two BatchNorms: fine where both copies in the file are equal."""
    net = _siamese(("", ""), (False, same))
    for layer in (net.layers[2], net.layers[4]):
        params = "".join(f'param {{ name: "{name}" }} ' for name in ("m", "v", "f"))
        layer.text = layer.text.replace("\n}", f"\n  {params}\n}}")
    done = fold_net(net, tmp_path)
    assert done.is_unchanged != same
    assert [stay.code for stay in done.report.stayed] == ([] if same else ["shared", "shared"])


def test_sharers_before_which_a_run_stands(tmp_path: Path) -> None:
    net = Net()
    net.input("data", (1, C, 4, 4))
    net.relu("relu", "data", "x")
    net.batch_norm("bn", "x", C, "y")
    for side in "ab":
        net.conv(f"conv_{side}", "y", C, N, 2, extra=BOTH)
    net.layers[-1].blobs = net.layers[-2].blobs
    assert absorbed(fold_net(net, tmp_path).report) == {"conv_a": ("bn",), "conv_b": ("bn",)}
    net.layers[-1].text = net.layers[-1].text.replace('bottom: "y"', 'bottom: "x"')
    net.layers[-1].bottoms[:] = ["x"]
    done = fold_net(net, tmp_path)
    assert done.is_unchanged
    assert done.stayed("bn").code == "not-linear"
    assert "'conv_a' (Convolution)" in done.stayed("bn").reason
    assert "shares" in done.stayed("bn").reason


def test_merging_into_a_shared_scale(tmp_path: Path) -> None:
    net = Net()
    net.input("data", (1, C, 4, 4))
    for side in "ab":
        net.relu(f"relu_{side}", "data", side)
        net.batch_norm(f"bn_{side}", side, C)
        net.scale(f"scale_{side}", side, C, extra='param { name: "g" } param { name: "h" }')
    net.layers[-1].blobs = net.layers[3].blobs
    done = fold_net(net, tmp_path)
    assert done.is_unchanged
    assert all("shares its parameters" in stay.reason for stay in done.report.stayed)


# ---- Layers that only the weights have ----


def test_a_folded_prototxt_with_unfolded_weights(tmp_path: Path) -> None:
    net = _net()
    net.layers[2].in_text = False
    net.relu("relu", "conv")
    model, weights = net.write(tmp_path)
    with pytest.raises(caffe_fold.InputError, match=r"'bn'.*'conv'.*folded already"):
        caffe_fold.fold(model, weights)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["net.caffemodel", "net.prototxt"]
    done = fold_net(net, tmp_path, allow_extra_weights=True)
    assert done.is_unchanged
    assert "'bn'" in done.warnings["extra-weights"]


@pytest.mark.parametrize("graph", ["split", "order", "far"])
def test_how_the_weights_tell_what_is_behind(graph: str, tmp_path: Path) -> None:
    net = _net()
    bn = net.layers.pop()
    if graph == "split":
        net.layer("split", "Split", "conv", ["s0", "s1"], in_text=False)
        bn.bottoms = ["s1"]
    elif graph == "far":
        net.relu("between", "data", "z")
    net.layers.append(bn)
    if graph == "order":
        for layer in net.layers:
            layer.bottoms, layer.tops = [], []
    bn.in_text = False
    model, weights = net.write(tmp_path)
    with pytest.raises(caffe_fold.InputError, match=r"'bn'.*'conv'"):
        caffe_fold.fold(model, weights)


@pytest.mark.parametrize(
    ("shapes", "is_one"),
    [
        ([(N,), (N,), (1,)], True),
        ([(N,), (N,)], False),
        ([(N,), (N,), (N,)], False),
        ([(N,), (N,), (0,)], False),
        ([(N,), (1,), (1,)], False),
        ([(1, N), (1, N), (1,)], False),
        ([(), (), (1,)], False),
        ([(N,), (N,), (1,), (1,)], False),
    ],
)
def test_without_types_three_blobs_tell_a_batch_norm(
    shapes: list[tuple[int, ...]], is_one: bool, tmp_path: Path
) -> None:
    net = _net()
    net.layer("extra", "BatchNorm", [], [], blobs=[np.ones(shape) for shape in shapes])
    net.layers[-1].in_text = False
    del net.layers[2]
    for layer in net.layers:
        layer.weights_type, layer.bottoms, layer.tops = "", [], []
    graph = net.write(tmp_path)
    if is_one:
        with pytest.raises(caffe_fold.InputError, match=r"'extra'.*'conv'"):
            caffe_fold.fold(*graph)
    else:
        assert "extra-weights" in {note.code for note in caffe_fold.fold(*graph).warnings}


def test_the_second_batch_norm_may_be_the_one_that_the_prototxt_lacks(tmp_path: Path) -> None:
    net = _net()
    net.conv("conv2", "y", N, N, 1)
    net.batch_norm("bn2", "conv2", N, "y2").in_text = False
    with pytest.raises(caffe_fold.InputError, match=r"'bn2'.*'conv2'"):
        caffe_fold.fold(*net.write(tmp_path))


@pytest.mark.parametrize("where", ["behind-relu", "behind-tanh", "behind-extra", "renamed"])
def test_other_batch_norms_of_the_weights_are_extra(where: str, tmp_path: Path) -> None:
    net = _net()
    if where == "behind-relu":
        net.relu("relu", "y", "z")
        net.batch_norm("extra", "z", N).in_text = False
    elif where == "behind-tanh":
        net.conv("conv2", "y", N, N, 1)
        net.layer("tanh", "TanH", "conv2", "z")
        net.batch_norm("extra", "z", N).in_text = False
    elif where == "behind-extra":
        net.conv("aux", "data", C, N, 1).in_text = False
        net.batch_norm("extra", "aux", N).in_text = False
    else:
        blobs = net.layers[2].blobs
        net.layer("extra", "BatchNorm", "conv", "y", blobs=blobs, in_text=False)
    done = fold_net(net, tmp_path)
    assert "'extra'" in done.warnings["extra-weights"]
    assert "extra" in {entry.name for entry in done.entries()}


def test_extra_layers_are_kept(tmp_path: Path) -> None:
    net = _net()
    net.layer("loss", "SoftmaxWithLoss", ["y", "label"], "loss", in_text=False)
    net.conv("aux", "y", N, 7, 1).in_text = False
    done = fold_net(net, tmp_path)
    assert [entry.name for entry in done.entries()] == ["data", "conv", "loss", "aux"]
    assert "'aux'" in done.warnings["extra-weights"]
    assert "'loss'" not in done.warnings["extra-weights"]


def test_half_precision_is_read(tmp_path: Path) -> None:
    net = _net()
    net.layers[1].format = BlobFormat("half")
    assert fold_net(net, tmp_path).layers == ["conv"]


# ---- Numbers at the ends of float64 ----


def _extreme(net: Net, number: float) -> Net:
    """The net with its convolution's weights in float64, all of one size."""
    for layer in net.layers:
        layer.format = BlobFormat("double")
    conv = net.layers[1]
    conv.blobs = [np.sign(conv.blobs[0]) * number, *conv.blobs[1:]]
    return net


@pytest.mark.parametrize(("number", "variance"), [(1.7e308, 2e9), (1e-322, 0)])
def test_numbers_that_float64_cannot_prove(number: float, variance: float, tmp_path: Path) -> None:
    """Three of the largest add up to infinity; the smallest have a digit or two."""
    net = _extreme(_net(), number)
    net.layers[1].blobs[1:] = [np.zeros(N)]
    net.layers[2].blobs = [np.zeros(N), np.full(N, variance), np.ones(1)]
    _refused(net, tmp_path, "bn", "precision", "'conv'", "too large or too small for float64")


def test_equalizing_numbers_that_float64_cannot_prove(tmp_path: Path) -> None:
    net = Net()
    net.input("data", (1, C, 5, 5))
    net.conv("conv", "data", C, N, 3)
    net.relu("relu", "conv")
    net.conv("last", "conv", N, N, 1)
    net.layers[3].blobs[0] *= 1e10
    model, weights = _extreme(net, 1e300).write(tmp_path)
    report = caffe_fold.fold(model, weights, equalize=True)
    assert report.equalized is not None
    assert not report.equalized.pairs
    assert any("too large or too small" in left.reason for left in report.equalized.left)
