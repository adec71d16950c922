"""Which layers are there, what reads what, and names that stand in the way."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from folding import absorbed, fold_net, raw_layers
from support.nets import Net
from support.wire import run as message

import caffe_fold

C = 3
IMAGE = (2, C, 4, 4)


def _net() -> Net:
    net = Net()
    net.input("data", IMAGE)
    return net


# ---- States ----

RULES: list[tuple[str, dict[str, object], bool]] = [
    ("include { phase: TEST }", {}, True),
    ("include { phase: TRAIN }", {}, False),
    ("exclude { phase: TEST }", {}, False),
    ("exclude { phase: TRAIN }", {}, True),
    ("include { phase: TRAIN } include { phase: TEST }", {}, True),
    ("exclude { phase: TRAIN } exclude { stage: 'deploy' }", {"stages": ["deploy"]}, False),
    ("include { stage: 'deploy' }", {}, False),
    ("include { stage: 'deploy' }", {"stages": ["deploy"]}, True),
    ("include { stage: 'a' stage: 'b' }", {"stages": ["a"]}, False),
    ("include { stage: 'a' stage: 'b' }", {"stages": ["b", "a"]}, True),
    ("include { not_stage: 'a' }", {"stages": ["a"]}, False),
    ("include { not_stage: 'a' }", {"stages": ["b"]}, True),
    ("include { min_level: 1 }", {}, False),
    ("include { min_level: 1 }", {"level": 1}, True),
    ("include { max_level: 1 }", {"level": 2}, False),
    ("exclude { min_level: 1 max_level: 2 }", {"level": 2}, False),
    ("exclude { phase: TEST min_level: 3 }", {"level": 2}, True),
]


@pytest.mark.parametrize(("rule", "state", "is_there"), RULES)
def test_rules(rule: str, state: dict[str, object], is_there: bool, tmp_path: Path) -> None:
    """A reader in the way of the fold, in some states."""
    net = _net()
    net.conv("conv", "data", C, C, 1)
    net.batch_norm("bn", "conv", C, "y")
    net.layer("reader", "Sigmoid", "conv", "z", extra=rule)
    done = fold_net(net, tmp_path, **state)  # type: ignore[arg-type]
    assert ("reader" in done.layers) == is_there
    assert done.is_unchanged == is_there
    if is_there:
        assert done.stayed("bn").code == "second-reader"
    else:
        assert net.layers[-1].text in done.text, "layers outside stay in the file"
        assert "'reader'" in done.warnings["other-states"]


def test_state_in_the_file(tmp_path: Path) -> None:
    net = _net()
    net.header += 'state { stage: "a" }\n'
    net.conv("conv", "data", C, C, 1)
    net.batch_norm("bn", "conv", C, "y", extra='include { stage: "a" stage: "b" }')
    assert fold_net(net, tmp_path, stages=["b"]).layers == ["conv"]
    assert fold_net(net, tmp_path).report.before.layers == 2


def test_include_and_exclude_in_one_layer(tmp_path: Path) -> None:
    net = _net()
    rules = "include { phase: TEST } exclude { stage: 'x' }"
    net.conv("conv", "data", C, C, 1, extra=rules)
    with pytest.raises(caffe_fold.PrototxtError, match=r"net\.prototxt:8:1: layer 'conv' has both"):
        caffe_fold.fold(*net.write(tmp_path))


def test_twins_go_together(tmp_path: Path) -> None:
    """A BatchNorm for TRAIN and one for TEST, of one name; and two data layers."""
    net = Net()
    net.input("data", IMAGE)
    net.layers[0].text = net.layers[0].text.replace("\n}", "\n  include { phase: TEST }\n}")
    net.layer("train", "Data", [], ["data", "label"], "include { phase: TRAIN }", in_weights=False)
    net.conv("conv", "data", C, C, 1)
    train = net.batch_norm("bn", "conv", C, params="", extra="include { phase: TRAIN }")
    train.in_weights = False
    net.batch_norm("bn", "conv", C, extra="include { phase: TEST }")
    net.layer("loss", "SoftmaxWithLoss", ["conv", "label"], "loss", "include { phase: TRAIN }")
    done = fold_net(net, tmp_path)
    assert done.layers == ["conv"]
    assert "BatchNorm" not in done.text
    assert "SoftmaxWithLoss" in done.text
    assert "other-states" not in done.warnings


def test_a_twin_of_another_type_stays(tmp_path: Path) -> None:
    net = _net()
    net.conv("conv", "data", C, C, 1)
    net.layer("bn", "Dropout", "conv", "conv", extra="include { phase: TRAIN }", in_weights=False)
    net.batch_norm("bn", "conv", C, extra="include { phase: TEST }")
    done = fold_net(net, tmp_path)
    assert done.layers == ["conv"]
    assert "Dropout" in done.text


# ---- Old formats ----


def _floats(values: list[float]) -> bytes:
    return np.array(values, np.float32).tobytes()


def test_v1(tmp_path: Path) -> None:
    """A V1 net has no BatchNorm, but Power; its weights have other field numbers."""
    text = (
        'input: "data"\ninput_dim: 1\ninput_dim: 2\ninput_dim: 3\ninput_dim: 3\n'
        'layers {\n  name: "conv"\n  type: CONVOLUTION\n  bottom: "data"\n  top: "conv"\n'
        "  blobs_lr: 1\n  blobs_lr: 2\n  convolution_param {\n    num_output: 2\n"
        "    kernel_size: 1\n    bias_term: false\n  }\n}\n"
        'layers {\n  name: "power"\n  type: POWER\n  bottom: "conv"\n  top: "prob"\n'
        "  power_param { scale: 2 shift: 3 }\n}\n"
        'layers {\n  name: "same"\n  type: POWER\n  bottom: "prob"\n  top: "out"\n}\n'
    )
    data = _floats([1, 2, 3, 4])
    dims = bytes([0x08, 2, 0x10, 2, 0x18, 1, 0x20, 1])
    layer = [
        message(2, b"data"), message(3, b"conv"), message(4, b"conv"), bytes([0x28, 4]),
        message(6, dims + message(5, data)), message(10, bytes([0x10, 0])),
    ]  # fmt: skip
    model, weights = tmp_path / "v1.prototxt", tmp_path / "v1.caffemodel"
    model.write_text(text)
    weights.write_bytes(message(2, b"".join(layer)))
    report = caffe_fold.fold(model, weights)
    assert absorbed(report) == {"conv": ("power", "same")}
    assert Path(report.output_model).read_text() == text[
        : text.index('layers {\n  name: "po')
    ].replace("bias_term: false", "bias_term: true").replace('top: "conv"', 'top: "out"')
    folded = Path(report.output_weights).read_bytes()
    for part in (message(3, b"out"), _floats([2, 4, 6, 8]), bytes([0x10, 1])):
        assert part in folded
    bias = bytes([0x08, 1, 0x10, 1, 0x18, 1, 0x20, 2])
    assert message(6, bias + message(5, _floats([3, 3]))) in folded


# ---- Names that stand in the way ----


@pytest.fixture
def any_names(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the evaluator run nets that write a blob twice, as some engines do, unlike Caffe."""
    monkeypatch.setattr("support.evaluate.check_graph", lambda *_: None)


@pytest.mark.usefixtures("any_names")
@pytest.mark.parametrize("use", ["read", "write"])
def test_a_write_does_not_move_past_another_use(use: str, tmp_path: Path) -> None:
    net = _net()
    net.relu("old", "data", "t")
    net.conv("conv", "data", C, C, 1)
    if use == "read":
        net.layer("between", "Sigmoid", "t", "u")
    else:
        net.layer("between", "Sigmoid", "data", "t")
    net.batch_norm("bn", "conv", C, "t")
    net.layer("last", "TanH", "t", "v")
    done = fold_net(net, tmp_path)
    assert done.is_unchanged
    assert done.stayed("bn").code == "blob-name"
    assert "'t'" in done.stayed("bn").reason
    assert "'between' (Sigmoid)" in done.stayed("bn").reason


@pytest.mark.usefixtures("any_names")
def test_a_write_does_not_move_past_a_use_within_its_run(tmp_path: Path) -> None:
    net = _net()
    net.relu("old", "data", "t")
    net.conv("conv", "data", C, C, 1)
    net.batch_norm("bn", "conv", C, "b")
    net.layer("between", "Sigmoid", "t", "u")
    net.scale("scale", "b", C, "t")
    net.layer("last", "TanH", "t", "v")
    done = fold_net(net, tmp_path, any_names=True)
    assert done.layers == ["old", "conv", "between", "scale", "last"]
    assert "'between' (Sigmoid) uses the blob name 't'" in done.stayed("scale").reason


@pytest.mark.usefixtures("any_names")
def test_a_write_does_not_move_into_a_reader_of_its_name(tmp_path: Path) -> None:
    """The folded layer would work in place, or write one name twice."""
    net = _net()
    net.relu("relu", "data", "t")
    net.conv("conv", "t", C, C, 1)
    net.batch_norm("bn", "conv", C, "t")
    done = fold_net(net, tmp_path)
    assert done.is_unchanged
    assert done.stayed("bn").code == "blob-name"
    assert "'conv' (Convolution)" in done.stayed("bn").reason


@pytest.mark.usefixtures("any_names")
def test_a_read_does_not_move_past_a_write(tmp_path: Path) -> None:
    net = _net()
    net.relu("relu", "data", "x")
    net.batch_norm("bn", "x", C, "y")
    net.layer("between", "Sigmoid", "data", "x")
    net.conv("conv", "y", C, C, 1)
    done = fold_net(net, tmp_path)
    assert done.is_unchanged
    assert "'between' (Sigmoid) writes blob 'x' anew" in done.stayed("bn").reason


@pytest.mark.usefixtures("any_names")
def test_a_read_does_not_move_past_a_write_behind_its_run(tmp_path: Path) -> None:
    net = _net()
    net.relu("relu", "data", "x")
    net.batch_norm("bn", "x", C, "y")
    net.scale("scale", "y", C, "z")
    net.layer("between", "Sigmoid", "data", "x")
    net.conv("conv", "z", C, C, 1)
    done = fold_net(net, tmp_path, any_names=True)
    assert done.layers == ["relu", "scale", "between", "conv"]
    assert "'between' (Sigmoid) writes blob 'x' anew" in done.stayed("scale").reason


@pytest.mark.usefixtures("any_names")
@pytest.mark.parametrize("name", ["x", "z"])
def test_a_merge_does_not_move_past_another_use(name: str, tmp_path: Path) -> None:
    net = _net()
    net.relu("relu", "data", "x")
    net.batch_norm("bn", "x", C, "y")
    if name == "z":
        net.scale("scale", "y", C, "w")  # the layer that would be kept, and write z here
    net.layer("between", "Sigmoid", "data", name)
    if name == "x":
        net.scale("scale", "y", C, "w")  # and that would read x here
    net.bias("bias", "w", C, "z")
    done = fold_net(net, tmp_path)
    assert done.is_unchanged
    for layer in ("bn", "scale", "bias"):
        assert "nor can its run become one Scale" in done.stayed(layer).reason
        assert "'between' (Sigmoid)" in done.stayed(layer).reason
        assert f"'{name}'" in done.stayed(layer).reason
        assert done.stayed(layer).codes == ("not-linear", "net-output", "blob-name")


@pytest.mark.usefixtures("any_names")
def test_an_identity_does_not_take_the_name_of_its_producers_other_top(tmp_path: Path) -> None:
    net = Net()
    net.input("data", (2, 2, 4, 4))
    net.layer("slice", "Slice", "data", ["a", "b"])
    net.power("same", "b", top="a")
    net.layer("reader", "TanH", "a", "out")
    done = fold_net(net, tmp_path, any_names=True)
    assert done.layer("slice").tops == ("a", "b")
    assert done.layer("reader").bottoms == ("b",)


@pytest.mark.usefixtures("any_names")
def test_an_identity_stays_where_its_names_are_used_between(tmp_path: Path) -> None:
    net = _net()
    net.relu("relu", "data", "x")
    net.layer("old", "Sigmoid", "data", "y")
    net.layer("reader", "TanH", "y", "u")
    net.power("same", "x", top="y")
    net.layer("new", "Sigmoid", "data", "x")
    net.layer("last", "TanH", "y", "v")
    assert fold_net(net, tmp_path).is_unchanged


def test_a_reader_in_place_reads_from_elsewhere_now(tmp_path: Path) -> None:
    """x has two readers; what was in place behind the identity no longer is."""
    net = _net()
    net.relu("relu", "data", "x")
    net.power("same", "x", top="y")
    net.layer("in-place", "TanH", "y", "y")
    net.layer("other", "Sigmoid", "x", "z")
    done = fold_net(net, tmp_path)
    assert done.report.removed == ("same",)
    assert (done.layer("in-place").bottoms, done.layer("in-place").tops) == (("x",), ("y",))


def test_an_in_place_identity_between_two_in_place_layers(tmp_path: Path) -> None:
    net = _net()
    net.relu("relu", "data", "x")
    net.layer("before", "Sigmoid", "x", "x")
    net.power("same", "x")
    net.layer("behind", "TanH", "x", "x")
    assert fold_net(net, tmp_path).layers == ["relu", "before", "behind"]


def test_merged_scale_is_not_in_place_on_a_value_with_two_readers(tmp_path: Path) -> None:
    net = _net()
    net.relu("relu", "data", "x")
    net.layer("other", "Sigmoid", "x", "z")
    net.batch_norm("bn", "x", C, "y")
    net.scale("scale", "y", C)
    done = fold_net(net, tmp_path)
    assert (done.layer("scale").bottoms, done.layer("scale").tops) == (("x",), ("y",))


def test_one_value_read_twice_by_one_layer(tmp_path: Path) -> None:
    net = _net()
    net.conv("conv", "data", C, C, 1)
    net.batch_norm("bn", "conv", C, "y")
    net.eltwise("sum", ["y", "y"])
    net.eltwise("sum2", ["conv", "conv"])
    done = fold_net(net, tmp_path)
    assert done.is_unchanged
    assert "'sum2'" in done.stayed("bn").reason
    del net.layers[-1]
    done = fold_net(net, tmp_path)
    assert done.layers == ["conv", "sum"]
    assert done.layer("sum").bottoms == ("y", "y")


@pytest.mark.usefixtures("any_names")
def test_a_linear_layer_in_place(tmp_path: Path) -> None:
    net = _net()
    net.conv("conv", "data", C, C, 1, top="data")
    net.batch_norm("bn", "data", C, "y")
    done = fold_net(net, tmp_path)
    assert done.is_unchanged
    assert done.stayed("bn").code == "in-place"


def test_batch_norm_far_from_its_convolution(tmp_path: Path) -> None:
    net = _net()
    net.conv("conv", "data", C, C, 1)
    net.conv("other", "data", C, C, 1)
    net.relu("relu", "other")
    net.batch_norm("bn", "conv", C, "y")
    net.eltwise("sum", ["y", "other"])
    done = fold_net(net, tmp_path)
    assert done.layers == ["conv", "other", "relu", "sum"]
    assert absorbed(done.report) == {"conv": ("bn",)}


def test_stray_outputs_and_bottoms(tmp_path: Path) -> None:
    net = _net()
    net.shapes["stray"] = IMAGE
    net.layer("slice", "Slice", "stray", ["a", "b", "c"], "slice_param { axis: 1 }")
    net.conv("conv", "b", 1, C, 1)
    net.batch_norm("bn", "conv", C)
    assert fold_net(net, tmp_path).layers == ["slice", "conv"]


def test_keeping_a_blob_that_is_not_there(tmp_path: Path) -> None:
    net = _net()
    net.conv("conv", "data", C, C, 1, top="normal1")
    with pytest.raises(caffe_fold.InputError, match=r"no blob is named 'normal'.*'normal1'"):
        caffe_fold.fold(*net.write(tmp_path), keep=["normal"])


def test_names_in_lists(tmp_path: Path) -> None:
    net = _net()
    net.layer("slice", "Slice", "data", ["a", "b"], "slice_param { axis: 1 slice_point: 1 }")
    slice_text = net.layers[1].text
    listed = slice_text.replace('  top: "a"\n  top: "b"\n', "  top: ['a',\n 'b' # two\n  ]\n")
    net.power("same", "b", top="c")
    net.conv("conv", "c", C - 1, C, 1)
    net.batch_norm("bn", "conv", C, "y")
    text = net.prototxt().replace(slice_text, listed).replace('top: "conv"', 'top: ["conv"]')
    done = fold_net(net, tmp_path, text)
    assert done.layers == ["slice", "conv"]
    assert "top: ['a',\n 'b' # two\n  ]\n" in done.text
    assert 'top: ["y"]' in done.text


def test_layers_of_one_name_are_renamed_each_by_itself(tmp_path: Path) -> None:
    """Layers without weights may share a name; their entries go by order."""
    net = _net()
    net.relu("relu", "data", "a")
    net.layer("other", "Sigmoid", "a", "b")
    net.power("same", "a", top="c")
    net.relu("relu", "c", "d")
    done = fold_net(net, tmp_path)
    assert done.layers == ["relu", "other", "relu"]
    first, second = (data for name, data in raw_layers(done.new_weights) if name == "relu")
    assert first == raw_layers(done.old_weights)[1][1]
    assert message(3, b"a") in second
