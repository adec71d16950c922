"""Files of older formats, alone and mixed: each is folded in its own, or comes out as it was."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from folding import absorbed, fold_net
from support.engines import EngineError, Job, Unavailable, caffe_forward_many
from support.nets import V1_ENUMS, Net
from support.wire import number, run

import caffe_fold
from caffe_fold import caffe_pb2

C, N = 3, 4


def as_v1(net: Net) -> Net:
    """Write the weights in V1, whose enum lacks what came later."""
    net.v1 = True
    for layer in net.layers:
        layer.weights_type = layer.type if layer.type in V1_ENUMS else ""
    return net


def modern() -> Net:
    """A fold behind, one before, and a merge."""
    net = Net()
    net.input("data", (1, C, 5, 5))
    net.conv("conv", "data", C, N, 3, bias=False)
    net.batch_norm("bn", "conv", N)
    net.scale("scale", "conv", N)
    net.relu("relu", "conv")
    net.batch_norm("bn2", "conv", N, "y")
    net.conv("conv2", "y", N, N, 1)
    net.relu("relu2", "conv2")
    net.batch_norm("bn3", "conv2", N)
    net.scale("scale3", "conv2", N)
    net.layer("out", "TanH", "conv2", "out")
    return net


def old(v1_weights: bool = True) -> Net:
    """All that folds in V1: a Power of exponent 1."""
    net = Net(v1=True)
    net.input("data", (1, C, 5, 5))
    net.conv("conv", "data", C, N, 3, bias=False, extra="blobs_lr: 1 weight_decay: 1")
    net.power("power", "conv", -2.0, 0.5)
    net.relu("relu", "conv")
    net.power("power2", "conv", 3.0, 1.0, top="y")
    net.inner_product("ip", "y", N * 9, 2)
    net.layer("prob", "Softmax", "ip", "prob")
    net.v1 = v1_weights
    return net


def nothing_to_fold(v1_text: bool) -> Net:
    net = Net(v1=v1_text)
    net.input("data", (1, C, 5, 5))
    net.conv("conv", "data", C, N, 3)
    net.relu("relu", "conv")
    net.power("square", "conv", power=2.0)
    return net


# ---- V1, in either file ----


@pytest.mark.parametrize("v1_weights", [True, False], ids=["V1 weights", "V2 weights"])
def test_a_v1_prototxt(v1_weights: bool, tmp_path: Path) -> None:
    done = fold_net(old(v1_weights), tmp_path)
    assert absorbed(done.report) == {"conv": ("power",), "ip": ("power2",)}
    assert done.text.count("layers {") == 4
    written = caffe_pb2.NetParameter.FromString(done.new_weights)
    assert (len(written.layers), len(written.layer)) == ((4, 0) if v1_weights else (0, 4))


def test_a_v2_prototxt_with_v1_weights(tmp_path: Path) -> None:
    done = fold_net(as_v1(modern()), tmp_path)
    assert absorbed(done.report) == {"conv": ("bn", "scale"), "conv2": ("bn2",)}
    assert [merge.layer for merge in done.report.merged] == ["scale3"]
    written = caffe_pb2.NetParameter.FromString(done.new_weights)
    assert not written.layer
    assert [layer.name for layer in written.layers] == [
        "data", "conv", "relu", "conv2", "relu2", "scale3", "out",
    ]  # fmt: skip


def test_v1_and_v2_weights_fold_to_the_same_numbers(tmp_path: Path) -> None:
    found = []
    for name, net in (("new", modern()), ("old", as_v1(modern()))):
        (tmp_path / name).mkdir()
        found.append(fold_net(net, tmp_path / name))
    assert found[0].new_text == found[1].new_text
    for name in ("conv", "conv2", "scale3"):
        for one, other in zip(found[0].blobs(name), found[1].blobs(name)):
            assert np.array_equal(one.values, other.values)


def test_v1_weights_without_tops_and_bottoms(tmp_path: Path) -> None:
    net = as_v1(modern())
    for layer in net.layers:
        layer.bottoms, layer.tops = [], []
    done = fold_net(net, tmp_path)
    assert done.layers == ["conv", "relu", "conv2", "relu2", "scale3", "out"]


@pytest.mark.parametrize("v1", [True, False], ids=["V1 weights", "V2 weights"])
@pytest.mark.parametrize("has_entry", [True, False], ids=["an entry", "no entry"])
def test_a_power_that_becomes_a_scale(v1: bool, has_entry: bool, tmp_path: Path) -> None:
    """An entry of its own is written in the format of the file."""
    net = Net()
    net.input("data", (1, C, 5, 5))
    net.relu("relu", "data", "x")
    net.bias("bias", "x", C)
    power = net.power("power", "x", 3.0, 1.0, top="y")
    power.in_weights = has_entry
    net.layer("out", "TanH", "y", "out")
    done = fold_net(as_v1(net) if v1 else net, tmp_path)
    assert [merge.layer for merge in done.report.merged] == ["power"]
    written = caffe_pb2.NetParameter.FromString(done.new_weights)
    entries = written.layers if v1 else written.layer
    (entry,) = [entry for entry in entries if entry.name == "power"]
    assert len(entry.blobs) == 2
    assert [layer.name for layer in entries] == ["data", "relu", "power", "out"]
    if v1:
        assert not entry.HasField("type") or entry.type == 0
    else:
        assert getattr(entry, "type") == "Scale"  # noqa: B009
    assert (list(entry.bottom), list(entry.top)) == (["x"], ["y"])


def test_a_run_of_powers_is_no_layer_of_v1(tmp_path: Path) -> None:
    """V1 has no Scale, so that what would become one stays."""
    net = Net(v1=True)
    net.input("data", (1, C, 5, 5))
    net.relu("relu", "data", "x")
    net.power("one", "x", 2.0, 1.0)
    net.power("two", "x", 3.0, 1.0)
    assert fold_net(net, tmp_path).is_unchanged


def merged() -> Net:
    """A Power without an entry that becomes a Scale with one, in V1 weights."""
    net = Net()
    net.input("data", (1, C, 5, 5))
    net.relu("relu", "data", "x")
    net.bias("bias", "x", C)
    net.power("power", "x", 3.0, 1.0).in_weights = False
    net.layer("out", "TanH", "x", "out")
    return as_v1(net)


@pytest.mark.oracle
def test_real_caffe_reads_what_is_written(tmp_path: Path) -> None:
    nets = {"V1": old(), "text": old(False), "weights": as_v1(modern()), "merge": merged()}
    pairs = [("net.prototxt", "net.caffemodel"), ("folded.prototxt", "folded.caffemodel")]
    jobs = []
    for kind, net in nets.items():
        folder = tmp_path / kind
        folder.mkdir()
        assert not fold_net(net, folder).is_unchanged
        jobs += [Job(folder / model, folder / weights, net.inputs()) for model, weights in pairs]
    try:
        found = caffe_forward_many(jobs)
    except Unavailable as why:
        pytest.skip(str(why))
    for kind, before, after in zip(nets, found[::2], found[1::2]):
        assert not isinstance(before, EngineError), (kind, before)
        assert not isinstance(after, EngineError), (kind, after)
        name = "out" if "out" in before else "prob"
        assert np.abs(before[name] - after[name]).max() < 1e-5, kind


# ---- Nothing to fold ----


@pytest.mark.parametrize("v1_weights", [True, False], ids=["V1 weights", "V2 weights"])
@pytest.mark.parametrize("v1_text", [True, False], ids=["V1 text", "V2 text"])
def test_where_nothing_folds_both_come_out_byte_for_byte(
    v1_text: bool, v1_weights: bool, tmp_path: Path
) -> None:
    net = nothing_to_fold(v1_text)
    if v1_weights:
        as_v1(net)
    net.v1 = v1_weights
    done = fold_net(net, tmp_path)
    assert done.is_unchanged
    assert [note.code for note in done.report.notes] == ["nothing-to-fold"]


# ---- V0 ----

V0_TEXT = """name: "old" # 2013
input: "data"
input_dim: 1 input_dim: 3 input_dim: 5 input_dim: 5
layers {
  layer { name: "conv" type: "conv" num_output: 4 kernelsize: 3 blobs_lr: 1. blobs_lr: 2. }
  bottom: "data" top: "conv"
}
layers { layer { name: "relu" type: "relu" } bottom: "conv" top: "conv" }
"""
V0_WEIGHTS = run(1, b"old") + b"".join(
    run(2, run(1, run(1, name) + run(2, kind) + blobs) + run(2, bottom) + run(3, b"conv"))
    for name, kind, bottom, blobs in (
        (b"conv", b"conv", b"data", run(50, number(1, 4) + run(5, bytes(16)))),
        (b"relu", b"relu", b"conv", b""),
    )
)


@pytest.mark.parametrize("newer", ["none", "text", "weights"])
def test_v0_comes_out_byte_for_byte(newer: str, tmp_path: Path) -> None:
    model, weights = nothing_to_fold(True).write(tmp_path)
    if newer != "text":
        model.write_text(V0_TEXT)
    if newer != "weights":
        weights.write_bytes(V0_WEIGHTS)
    before = model.read_bytes(), weights.read_bytes()
    report = caffe_fold.fold(model, weights)
    after = Path(report.output_model).read_bytes(), Path(report.output_weights).read_bytes()
    assert after == before
    assert report.stayed == ()


def test_a_v1_prototxt_with_v0_weights_is_not_folded(tmp_path: Path) -> None:
    """A Power that stays needs no reason, as it has no weights."""
    model, weights = old().write(tmp_path)
    weights.write_bytes(V0_WEIGHTS)
    before = model.read_bytes()
    report = caffe_fold.fold(model, weights)
    assert (report.folded, report.stayed) == ((), ())
    assert Path(report.output_weights).read_bytes() == V0_WEIGHTS
    assert Path(report.output_model).read_bytes() == before


def test_v0_weights_of_a_fold_are_refused_with_the_way_to_upgrade(tmp_path: Path) -> None:
    net = Net()
    net.input("data", (1, C, 5, 5))
    net.conv("conv", "data", C, N, 3)
    net.batch_norm("bn", "conv", N)
    net.power("power", "conv", 2.0)
    model, weights = net.write(tmp_path)
    weights.write_bytes(V0_WEIGHTS + run(2, run(1, run(1, b"bn")) + run(3, b"conv")))
    report = caffe_fold.fold(model, weights)
    stays = {stay.layer: stay for stay in report.stayed}
    assert stays["bn"].code == "old-format"
    assert "upgrade_net_proto_binary" in stays["bn"].reason


# ---- Both formats in one file ----


def test_a_prototxt_of_both_formats_is_an_error(tmp_path: Path) -> None:
    model, weights = modern().write(tmp_path)
    text = model.read_text() + 'layers { name: "late" type: RELU bottom: "out" top: "out" }\n'
    model.write_text(text)
    with pytest.raises(caffe_fold.InputError, match=r"both 'layer' and 'layers'.*upgrade") as error:
        caffe_fold.fold(model, weights)
    line = text[: text.index("layers {")].count("\n") + 1
    assert f":{line}:1" in str(error.value)
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize("first", [2, 100])
def test_a_caffemodel_of_both_formats_is_an_error(first: int, tmp_path: Path) -> None:
    net = modern()
    model, weights = net.write(tmp_path)
    parts = [net.caffemodel(), as_v1(modern()).caffemodel()]
    weights.write_bytes(b"".join(parts if first == 100 else parts[::-1]))
    with pytest.raises(caffe_fold.InputError, match=r"both 'layer' and 'layers'.*upgrade"):
        caffe_fold.fold(model, weights)
    assert len(list(tmp_path.iterdir())) == 2


# ---- Inputs of the net itself ----


@pytest.mark.parametrize("form", ["input_dim", "input_shape"])
@pytest.mark.parametrize("count", [1, 2])
def test_net_level_inputs(form: str, count: int, tmp_path: Path) -> None:
    net = Net()
    for index in range(count):
        net.input(f"data{index}", (1, C, 5, 5), net_level=form)
    for index in range(count):
        net.scale(f"scale{index}", f"data{index}", C, f"x{index}")
        net.conv(f"conv{index}", f"x{index}", C, N, 3)
        net.batch_norm(f"bn{index}", f"conv{index}", N)
    done = fold_net(net, tmp_path)
    expected = {f"conv{index}": (f"scale{index}", f"bn{index}") for index in range(count)}
    assert absorbed(done.report) == expected
    assert done.text.startswith(net.header)


def test_a_net_level_input_tells_the_rank_of_an_axis(tmp_path: Path) -> None:
    net = Net()
    net.input("data", (1, C, 5, 5), net_level="input_dim")
    net.scale("scale", "data", C, "x", params="axis: -3")
    net.conv("conv", "x", C, N, 3)
    assert absorbed(fold_net(net, tmp_path).report) == {"conv": ("scale",)}


@pytest.mark.parametrize("bias", [True, False])
def test_an_input_keeps_its_name(bias: bool, tmp_path: Path) -> None:
    """What changes nothing right behind an input goes by renaming its readers' bottoms."""
    net = Net()
    net.input("data", (1, C, 5, 5), net_level="input_shape")
    blobs = [np.ones(C), np.zeros(C)][: 1 + bias]
    params = "scale_param { bias_term: true }" if bias else ""
    net.layer("same", "Scale", "data", "x", params, blobs)
    net.layer("out", "TanH", "x", "out")
    done = fold_net(net, tmp_path)
    assert done.layers == ["out"]
    assert done.layer("out").bottoms == ("data",)
