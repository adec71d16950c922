"""Quantisation leftovers describe the weights as they were: refused, or dropped on request."""

from __future__ import annotations

from pathlib import Path

import pytest
from folding import absorbed, fold_net
from support.nets import Net

import caffe_fold

C, N = 3, 4
FIELD = "quantization_param { bw_params: 8 fl_params: 7 precision: DYNAMIC_FIXED_POINT }"
LINES = "quantization_param {\n    bw_layer_in: 8 # of the input\n    fl_params: 7\n  }"


def net_of(kind: str) -> Net:
    """A run that goes behind a layer, before one, or into one Scale; and layers beside it."""
    net = Net()
    net.input("data", (1, C, 5, 5))
    net.conv("first", "data", C, C, 1)
    net.relu("relu", "first", "x")
    if kind == "behind":
        net.conv("linear", "x", C, N, 1, top="z")
    bottom = "z" if kind == "behind" else "x"
    width = N if kind == "behind" else C
    net.batch_norm("bn", bottom, width, "b")
    net.scale("scale", "b", width, "s")
    if kind == "before":
        net.conv("linear", "s", C, N, 1)
    else:
        net.relu("out", "s")
    return net


def put(net: Net, name: str, field: str, inside: bool) -> None:
    """Write a field into a layer or into its parameter message."""
    (layer,) = [layer for layer in net.layers if layer.name == name]
    if inside:
        assert "_param { " in layer.text
        layer.text = layer.text.replace("_param { ", f"_param {{ {field} ", 1)
    else:
        layer.text = layer.text.replace("\n}", f"\n  {field}\n}}")


INSIDE = pytest.mark.parametrize("inside", [False, True], ids=["layer", "parameters"])
PLACES = [
    ("behind", "linear"),
    ("behind", "bn"),
    ("behind", "scale"),
    ("before", "linear"),
    ("before", "bn"),
    ("merge", "bn"),
    ("merge", "scale"),
]


@INSIDE
@pytest.mark.parametrize(("kind", "layer"), PLACES)
def test_it_is_refused_by_default(kind: str, layer: str, inside: bool, tmp_path: Path) -> None:
    net = net_of(kind)
    put(net, layer, FIELD, inside)
    done = fold_net(net, tmp_path)
    assert "quantization_param" in done.text
    stays = {stay.layer: stay for stay in done.report.stayed}
    gone = {name for names in absorbed(done.report).values() for name in names}
    assert layer not in gone
    # A run that its linear layer does not take becomes one Scale.
    stay = stays["scale" if layer == "linear" else layer]
    assert stay.code == "quantization" or (kind, layer) == ("before", "linear")
    assert "'quantization_param'" in stay.reason
    assert "--drop-quantization" in stay.reason


@INSIDE
@pytest.mark.parametrize("field", [FIELD, LINES], ids=["a line", "lines"])
@pytest.mark.parametrize("kind", ["behind", "before", "merge"])
def test_it_is_dropped_on_request_and_nothing_else_is(
    kind: str, field: str, inside: bool, tmp_path: Path
) -> None:
    """What comes out is what would, had the field never been there."""
    (tmp_path / "plain").mkdir()
    plain = fold_net(net_of(kind), tmp_path / "plain")
    net = net_of(kind)
    layers = ["bn", "scale"] + (["linear"] if kind != "merge" else [])
    for layer in layers:
        put(net, layer, field, inside)
    put(net, "first", FIELD, inside)
    folder = tmp_path / "quantised"
    folder.mkdir()
    model, weights = net.write(folder)
    report = caffe_fold.fold(model, weights, drop_quantization=True)
    assert absorbed(report) == absorbed(plain.report)
    assert report.merged == plain.report.merged
    assert Path(report.output_weights).read_bytes() == plain.new_weights
    text = Path(report.output_model).read_text()
    # The layer that takes no part keeps its own.
    assert text.count("quantization_param") == 1
    assert text.split() == _with_field(plain.text, inside).split()


def _with_field(text: str, inside: bool) -> str:
    """The folded text with the field in the first convolution, as it went in."""
    start = text.index('name: "first"')
    if inside:
        return text[:start] + text[start:].replace("_param { ", f"_param {{ {FIELD} ", 1)
    return text[:start] + text[start:].replace("\n}", f"\n  {FIELD}\n}}", 1)


def test_several_fields_of_one_layer_all_go(tmp_path: Path) -> None:
    net = net_of("behind")
    for inside in (True, False):
        for _ in range(2):
            put(net, "linear", FIELD, inside)
    model, weights = net.write(tmp_path)
    report = caffe_fold.fold(model, weights, drop_quantization=True)
    assert absorbed(report) == {"linear": ("bn", "scale")}
    dropped = [note for note in report.warnings if note.code == "quantization-dropped"]
    assert len(dropped) == 2
    assert all("'linear'" in note.message for note in dropped)
    assert "quantization" not in Path(report.output_model).read_text()


def test_without_a_fold_there_is_nothing_to_drop(tmp_path: Path) -> None:
    net = Net()
    net.input("data", (1, C, 5, 5))
    net.conv("conv", "data", C, N, 1)
    net.relu("relu", "conv")
    net.batch_norm("bn", "conv", N, "y")
    for name, inside in (("conv", True), ("bn", False)):
        put(net, name, FIELD, inside)
    model, weights = net.write(tmp_path)
    before = model.read_bytes(), weights.read_bytes()
    report = caffe_fold.fold(model, weights, drop_quantization=True)
    after = Path(report.output_model).read_bytes(), Path(report.output_weights).read_bytes()
    assert after == before


def test_a_layer_that_only_gets_another_name_keeps_its_own(tmp_path: Path) -> None:
    """The reader of a dissolved identity computes what it did."""
    net = Net()
    net.input("data", (1, C, 5, 5))
    net.power("same", "data", top="x")
    net.conv("conv", "x", C, N, 1)
    put(net, "conv", FIELD, True)
    done = fold_net(net, tmp_path)
    assert done.layers == ["conv"]
    assert done.layer("conv").bottoms == ("data",)
    assert FIELD in done.text


@pytest.mark.parametrize("drop", [True, False])
def test_only_what_says_quantization_is_meant(drop: bool, tmp_path: Path) -> None:
    net = net_of("behind")
    put(net, "linear", "quant: 8", True)
    done = fold_net(net, tmp_path, drop_quantization=drop)
    assert absorbed(done.report) == {"linear": ("bn", "scale")}
    assert "quant: 8" in done.text
    assert "convolution_param.quant" in done.warnings["unknown-field"]
