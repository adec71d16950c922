"""Runs that no linear layer takes: they become one Scale, or disappear where they do nothing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from folding import fold_net
from support.nets import Net
from support.wire import BlobFormat

C = 3
Part = Callable[[Net, str, str], object]


def _scalar(net: Net, bottom: str, top: str) -> None:
    params = "scale_param { num_axes: 0 axis: 0 }"
    net.layer("scalar", "Scale", bottom, top, params, [np.array(-2.5)])


def _shift(net: Net, bottom: str, top: str) -> None:
    net.layer("shift", "Bias", bottom, top, "bias_param { num_axes: 0 }", [np.array(0.75)])


def _to_the_end(net: Net, bottom: str, top: str) -> None:
    blobs = [net.rng.normal(0, 1, (C, 1, 1))]
    net.layer("to-the-end", "Scale", bottom, top, "scale_param { num_axes: -1 }", blobs)


PARAMS = "param { lr_mult: 0 } param { lr_mult: 0 } param { lr_mult: 0 }"
PARTS: dict[str, Part] = {
    "bn": lambda n, b, t: n.batch_norm("bn", b, C, t, extra=PARAMS),
    "scale": lambda n, b, t: n.scale("scale", b, C, t, params="axis: 1"),
    "gamma": lambda n, b, t: n.scale("gamma", b, C, t, bias=False, extra="param { lr_mult: 1 }"),
    "bias": lambda n, b, t: n.bias("bias", b, C, t, extra="param { lr_mult: 1 }"),
    "power": lambda n, b, t: n.power("power", b, -0.5, 0.25, 1.0, t),
    "scalar": _scalar,
    "shift": _shift,
    "to-the-end": _to_the_end,
}

# Each run, the layer that is kept, and the shape of its blobs.
MERGES: list[tuple[list[str], str, tuple[int, ...]]] = [
    (["bn", "scale"], "scale", (C,)),
    (["bn", "gamma"], "gamma", (C,)),
    (["scale", "bn"], "scale", (C,)),
    (["bn", "power"], "power", (C,)),
    (["power", "bn"], "bn", (C,)),
    (["bn", "bias"], "bias", (C,)),
    (["bias", "bn"], "bn", (C,)),
    (["bias", "scale"], "scale", (C,)),
    (["bn", "scalar"], "scalar", (C,)),
    (["scalar", "bias"], "scalar", (C,)),
    (["scalar", "power"], "scalar", ()),
    (["shift", "power"], "power", ()),
    (["power", "shift"], "shift", ()),
    (["bn", "scale", "gamma", "bias", "power"], "gamma", (C,)),
    (["bn", "to-the-end"], "to-the-end", (C, 1, 1)),
    (["scalar", "scale"], "scale", (C,)),
]


@pytest.mark.parametrize("form", ["in-place", "fresh", "last-fresh"])
@pytest.mark.parametrize(("run", "keeper", "shape"), MERGES)
def test_run_becomes_one_scale(
    run: list[str], keeper: str, shape: tuple[int, ...], form: str, tmp_path: Path
) -> None:
    net = Net()
    net.input("data", (2, C, 1, 1) if "to-the-end" in run else (2, C, 3, 2))
    net.relu("before", "data", "x")
    bottom = "x"
    for at, part in enumerate(run):
        is_fresh = form == "fresh" or (form == "last-fresh" and at == len(run) - 1)
        top = f"top{at}" if is_fresh else bottom
        PARTS[part](net, bottom, top)
        bottom = top
    net.relu("behind", bottom, "out")
    done = fold_net(net, tmp_path)
    assert done.layers == ["before", keeper, "behind"]
    (merged,) = done.report.merged
    assert (merged.layer, merged.layers) == (keeper, tuple(run))
    scale = done.layer(keeper)
    assert (scale.type, scale.bottoms, scale.tops) == ("Scale", ("x",), (bottom,))
    assert scale.params("scale_param").flag("bias_term")
    assert [blob.shape for blob in done.blobs(keeper)] == [shape, shape]
    (entry,) = [entry for entry in done.entries() if entry.name == keeper]
    assert entry.type == "Scale"
    assert [stay.layer for stay in done.report.stayed] == [keeper]
    assert "'before'" in done.stayed(keeper).reason
    others = " + ".join(name for name in run if name != keeper)
    assert f"merged   {keeper} (Scale) <- {others}" in done.report.to_text()


@pytest.mark.parametrize("part", ["bn", "scale", "gamma", "bias", "power"])
def test_one_layer_stays_as_it_is(part: str, tmp_path: Path) -> None:
    net = Net()
    net.input("data", (2, C, 3, 2))
    net.relu("relu", "data", "x")
    PARTS[part](net, "x", "out")
    done = fold_net(net, tmp_path)
    assert done.is_unchanged
    assert [note.code for note in done.report.notes] == ["nothing-to-fold"]
    assert [stay.layer for stay in done.report.stayed] == ([part] if part != "power" else [])


def test_powers_alone_are_not_merged(tmp_path: Path) -> None:
    net = Net()
    net.input("data", (1, C, 2, 2))
    net.relu("relu", "data", "x")
    net.power("power1", "x", 2.0, 1.0)
    net.power("power2", "x", 3.0, 1.0)
    assert fold_net(net, tmp_path).is_unchanged


def test_text_of_a_rewritten_batch_norm(tmp_path: Path) -> None:
    net = Net()
    net.input("data", (1, C, 2, 2))
    net.relu("relu", "data", "x")
    scale = "layer {\n  name: 'bias'\n  type: 'Bias'\n  bottom: 'x'\n  top: 'x'\n}\n"
    net.layer("bias", "Bias", "x", "x", blobs=[net.rng.normal(0, 1, C)])
    bn = (
        "layer { # normal\n\tname: 'bn'\n\ttype: 'BatchNorm'\n\tbottom: 'x'\n\ttop: 'y'\n"
        "\t# not trained\n\tparam { lr_mult: 0 }\n\tparam { lr_mult: 0 }\n\tparam { lr_mult: 0 }\n"
        "\tbatch_norm_param { eps: 0.01 }\n}\n"
    )
    net.batch_norm("bn", "x", C, "y", params="eps: 0.01")
    text = net.header + net.layers[0].text + net.layers[1].text + scale + bn
    done = fold_net(net, tmp_path, text)
    expected = text.replace(scale, "").replace("'BatchNorm'", '"Scale"')
    expected = expected.replace("batch_norm_param { eps: 0.01 }", "scale_param { bias_term: true }")
    expected = expected.replace("\t# not trained\n" + "\tparam { lr_mult: 0 }\n" * 3, "")
    assert done.text == expected


@pytest.mark.parametrize("format", [BlobFormat(legacy=True), BlobFormat("double")])
@pytest.mark.parametrize("run", [["bn", "scale"], ["scale", "bn"], ["bias", "bn"], ["bn", "power"]])
def test_forms_of_blobs(run: list[str], format: BlobFormat, tmp_path: Path) -> None:
    net = Net()
    net.input("data", (1, C, 2, 2))
    net.relu("relu", "data", "x")
    for part in run:
        PARTS[part](net, "x", "x")
    for layer in net.layers:
        layer.format = format
    assert len(fold_net(net, tmp_path).report.merged) == 1


def test_the_merged_scale_of_a_power_stands_behind_its_run(tmp_path: Path) -> None:
    """A Power has no entry of its own in many files."""
    net = Net()
    net.input("data", (1, C, 2, 2))
    net.relu("relu", "data", "x")
    net.batch_norm("bn", "x", C)
    net.power("power", "x", 2.0, 1.0).in_weights = False
    net.relu("relu2", "x")
    done = fold_net(net, tmp_path)
    assert [entry.name for entry in done.entries()] == ["data", "relu", "power", "relu2"]


@pytest.mark.parametrize("readers", [1, 2])
def test_a_second_reader_splits_a_run(readers: int, tmp_path: Path) -> None:
    net = Net()
    net.input("data", (1, C, 2, 2))
    net.relu("relu", "data", "x")
    net.batch_norm("bn", "x", C, "middle")
    net.scale("scale", "middle", C, "top")
    if readers == 2:
        net.relu("reader", "middle", "read")
    done = fold_net(net, tmp_path)
    assert len(done.report.merged) == (readers == 1)
    assert done.is_unchanged == (readers == 2)


def test_merge_keeps_clear_of_a_shared_bottom(tmp_path: Path) -> None:
    """What reads x beside the run still reads x: the merged Scale is not in place."""
    net = Net()
    net.input("data", (1, C, 2, 2))
    net.relu("relu", "data", "x")
    net.batch_norm("bn", "x", C, "y")
    net.scale("scale", "y", C)
    net.relu("reader", "x", "read")
    done = fold_net(net, tmp_path)
    assert done.layer("scale").bottoms == ("x",)
    assert done.layer("scale").tops == ("y",)


# ---- Layers that change nothing ----


def _identity(net: Net, kind: str, bottom: str, top: str) -> None:
    if kind == "power":
        net.power("identity", bottom, 1.0, 0.0, 1.0, top)
    elif kind == "scale":
        net.scale("identity", bottom, C, top).blobs = [np.ones(C), np.zeros(C)]
    elif kind == "bias":
        net.bias("identity", bottom, C, top).blobs = [np.zeros(C)]
    else:
        net.layer("identity", "Scale", bottom, top, "", [np.ones(C)])


IDENTITIES = ["power", "scale", "bias", "plain"]


@pytest.mark.parametrize("kind", IDENTITIES)
def test_identity_goes_by_renaming_the_top(kind: str, tmp_path: Path) -> None:
    net = Net()
    net.input("data", (1, C, 2, 2))
    net.relu("relu", "data", "x")
    _identity(net, kind, "x", "prob")
    done = fold_net(net, tmp_path)
    assert done.layers == ["relu"]
    assert done.report.removed == ("identity",)
    assert done.layer("relu").tops == ("prob",)
    assert "removed  identity" in done.report.to_text()


@pytest.mark.parametrize("kind", IDENTITIES)
@pytest.mark.parametrize("why", ["input", "second-reader", "in-place-producer"])
def test_identity_goes_by_renaming_the_bottoms(kind: str, why: str, tmp_path: Path) -> None:
    net = Net()
    net.input("data", (1, C, 2, 2))
    bottom = "data"
    if why != "input":
        net.relu("first", "data", "x")
        bottom = "x"
    if why == "in-place-producer":
        net.layer("sigmoid", "Sigmoid", "x", "x")
    _identity(net, kind, bottom, "y")
    net.relu("reader1", "y", "read1")
    net.layer("reader2", "Sigmoid", "y", "read2")
    if why == "second-reader":
        net.layer("reader3", "TanH", "x", "read3")
    done = fold_net(net, tmp_path)
    assert done.report.removed == ("identity",)
    assert done.layer("reader1").bottoms == done.layer("reader2").bottoms == (bottom,)


@pytest.mark.parametrize("kind", IDENTITIES)
@pytest.mark.parametrize("why", ["input", "second-reader", "kept"])
def test_identity_stays_where_both_names_are_needed(kind: str, why: str, tmp_path: Path) -> None:
    net = Net()
    net.input("data", (1, C, 2, 2))
    net.relu("relu", "data", "x")
    _identity(net, kind, "data" if why == "input" else "x", "prob")
    if why == "second-reader":
        net.layer("reader", "TanH", "x", "read")
    done = fold_net(net, tmp_path, keep=["x"] if why == "kept" else [])
    assert done.is_unchanged
    if kind != "power":
        assert done.stayed("identity").code == "both-names"
        assert "'prob'" in done.stayed("identity").reason


def test_identity_in_place(tmp_path: Path) -> None:
    net = Net()
    net.input("data", (1, C, 2, 2))
    net.relu("relu", "data", "x")
    _identity(net, "scale", "x", "x")
    net.layer("sigmoid", "Sigmoid", "x", "x")
    done = fold_net(net, tmp_path)
    assert done.text == net.prototxt().replace(net.layers[2].text, "")


def test_a_run_that_cancels_out_goes_too(tmp_path: Path) -> None:
    net = Net()
    net.input("data", (1, C, 2, 2))
    net.relu("relu", "data", "x")
    net.power("double", "x", 2.0, 1.0)
    net.power("half", "x", 0.5, -0.5)
    assert fold_net(net, tmp_path).layers == ["relu"]


def test_identity_between_two_linear_layers_lets_them_be(tmp_path: Path) -> None:
    net = Net()
    net.input("data", (1, C, 4, 4))
    net.conv("conv1", "data", C, C, 2)
    _identity(net, "scale", "conv1", "y")
    net.conv("conv2", "y", C, C, 2)
    done = fold_net(net, tmp_path)
    assert done.layers == ["conv1", "conv2"]
    assert [b.values.tolist() for b in done.blobs("conv1")] == [
        np.float32(b).reshape(-1).tolist() for b in net.layers[1].blobs
    ]


@pytest.mark.parametrize("line", [True, False])
def test_a_scale_param_that_meant_nothing_gives_way(line: bool, tmp_path: Path) -> None:
    """Caffe lets a layer have another type's parameters, and does not look at them."""
    net = Net("strange")
    net.input("data", (1, C, 4, 4))
    net.relu("relu", "data", "x")
    net.power("power", "x", -0.5, 0.25, 1.0, "y")
    bias = net.bias("bias", "y", C, "z", extra="scale_param { axis: 2 }")
    if line:
        bias.text = bias.text.replace("\n", " ")
    net.relu("last", "z", "last")
    done = fold_net(net, tmp_path)
    assert done.types["Scale"] == 1
    assert done.text.count("scale_param") == 1
