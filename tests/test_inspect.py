"""``inspect``: what it says of each layer, from both files and from the prototxt alone."""

from __future__ import annotations

import math
from pathlib import Path

import hypothesis
import numpy as np
import pytest
import random_nets
from hypothesis import HealthCheck, given, settings
from support.nets import Net

import caffe_fold
from caffe_fold.inspection.inspection import Inspection
from caffe_fold.inspection.layers import Fate

SHARED = Path(__file__).resolve().parents[2] / "shared"


def fates(found: Inspection) -> dict[str, Fate]:
    return {layer.name: layer.fate for layer in found.layers}


def branched() -> Net:
    """A fold, a merge with a reason, a Power that goes, and a layer that is not concerned."""
    net = Net("branched")
    net.input("data", (1, 3, 8, 8))
    net.conv("conv", "data", 3, 4, pad=1)
    net.batch_norm("bn", "conv", 4)
    net.scale("scale", "conv", 4)
    net.relu("relu", "conv")
    net.layer("sum", "Eltwise", ["conv", "conv"], "sum")
    net.batch_norm("bn2", "sum", 4, top="bn2")
    net.scale("scale2", "bn2", 4, top="scale2")
    net.relu("relu2", "scale2")
    net.layer("same", "Power", "scale2", "same", "power_param { scale: 1 }")
    net.relu("relu3", "same")
    net.inner_product("fc", "same", 4 * 8 * 8, 5)
    return net


def test_each_layer_says_what_becomes_of_it(tmp_path: Path) -> None:
    found = caffe_fold.inspect(*branched().write(tmp_path))
    said = fates(found)
    assert said["conv"] == Fate("takes", ("bn", "scale"))
    assert said["bn"] == said["scale"] == Fate("folds", ("conv",))
    assert said["bn2"] == Fate("merges", ("scale2",))
    assert (said["scale2"].kind, said["scale2"].names) == ("becomes", ("bn2",))
    assert "'sum' (Eltwise), which is not linear" in said["scale2"].reason
    assert said["same"] == Fate("removed")
    assert said["fc"] == said["relu"] == Fate("same")
    assert (found.before, found.after) == (12, 8)
    totals = {total.type: (total.before, total.after) for total in found.totals}
    assert totals == {
        "Convolution": (1, 1),
        "BatchNorm": (2, 0),
        "Scale": (2, 1),
        "Power": (1, 0),
        "InnerProduct": (1, 1),
    }


def test_shapes_parameters_and_gains(tmp_path: Path) -> None:
    net = branched()
    net.layers[3].blobs[0][:] = [0.5, -2, 0, 1]
    layers = {la.name: la for la in caffe_fold.inspect(*net.write(tmp_path)).layers}
    assert layers["conv"].shapes == ((4, 3, 3, 3), (4,))
    assert (layers["conv"].parameters, layers["bn"].parameters) == (112, 9)
    assert (layers["scale"].name, layers["scale"].gain) == ("scale", (0, 2))
    assert layers["conv"].gain is None
    assert layers["same"].gain == (1, 1)


def test_the_report_of_a_fold_says_the_same(tmp_path: Path) -> None:
    files = branched().write(tmp_path)
    assert_agrees(caffe_fold.inspect(*files), caffe_fold.fold(*files, dry_run=True))


def assert_agrees(found: Inspection, report: caffe_fold.Report) -> None:
    said = [(la.name, la.fate) for la in found.layers]
    taken = {fold.layer: (*fold.before, *fold.behind) for fold in report.folded}
    assert {name: fate.names for name, fate in said if fate.kind == "takes"} == taken
    assert [name for name, fate in said if fate.kind == "becomes"] == [
        merge.layer for merge in report.merged
    ]
    assert sorted(name for name, fate in said if fate.kind == "removed") == sorted(report.removed)
    assert [(name, fate.reason, fate.codes) for name, fate in said if fate.reason] == [
        (stay.layer, stay.reason, stay.codes) for stay in report.stayed
    ]
    assert found.after == report.after.layers


@given(made=random_nets.nets())
@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@hypothesis.seed(5)
def test_random_nets_agree_with_their_fold(
    made: random_nets.RandomNet, tmp_path_factory: pytest.TempPathFactory
) -> None:
    files = made.net.write(tmp_path_factory.mktemp("random"))
    assert_agrees(caffe_fold.inspect(*files), caffe_fold.fold(*files, dry_run=True))


# ---- The prototxt alone ----


def test_the_prototxt_alone_tells_the_same(tmp_path: Path) -> None:
    files = branched().write(tmp_path)
    both, alone = caffe_fold.inspect(*files), caffe_fold.inspect(files[0])
    assert fates(alone) == fates(both)
    assert [la.shapes for la in alone.layers] == [la.shapes for la in both.layers]
    assert {la.name for la in alone.layers if la.gain is not None} == {"same"}
    assert alone.weights is None
    assert "only the weights show" in alone.to_text()


@pytest.mark.parametrize("name", sorted(path.name for path in SHARED.glob("models/*/")))
def test_real_prototxts_alone_tell_the_same(name: str) -> None:
    models = [
        path for path in (SHARED / "models" / name).glob("*.prototxt") if "train.p" not in path.name
    ]
    weights = list((SHARED / "models" / name).glob("*.caffemodel"))
    if not models or not weights:
        pytest.skip("not a pair of files")
    both, alone = caffe_fold.inspect(models[0], weights[0]), caffe_fold.inspect(models[0])
    assert fates(alone) == fates(both)
    for layer, known in zip(alone.layers, both.layers):
        if layer.role != "other":
            assert layer.shapes is not None, layer.name
            assert known.shapes is not None
            assert len(layer.shapes) == len(known.shapes), layer.name
            for shape, real in zip(layer.shapes, known.shapes):
                known_dims = [dim for dim in shape if dim is not None]
                is_told = len(known_dims) == len(shape)
                assert not is_told or math.prod(known_dims) == math.prod(dim or 0 for dim in real)


def test_real_prototxts_are_there() -> None:
    if not SHARED.is_dir():
        pytest.skip("the shared models are not there")
    assert list(SHARED.glob("models/*/"))


def test_an_unknown_number_of_channels_is_no_hindrance(tmp_path: Path) -> None:
    """What a layer of an unknown type makes is not told; what is behind it folds anyhow."""
    net = Net("unknown")
    net.input("data", (1, 3, 8, 8))
    net.layer("odd", "Odd", "data", "odd")
    net.batch_norm("bn", "odd", 12, top="bn")
    net.layer("zero", "Power", "bn", "zero", "power_param { shift: 0 scale: 3 }")
    net.conv("conv", "zero", 12, 6, group=3)
    net.layer("odd2", "Odd", "conv", "odd2")
    net.batch_norm("bn2", "odd2", 7, top="bn2")
    net.inner_product("fc", "bn2", 70, 5)
    files = net.write(tmp_path)
    both, alone = caffe_fold.inspect(*files), caffe_fold.inspect(files[0])
    assert fates(alone) == fates(both)
    assert fates(alone)["conv"].names == ("bn", "zero")
    layers = {layer.name: layer for layer in alone.layers}
    assert layers["conv"].shapes == ((6, None, 3, 3), (6,))
    assert layers["conv"].parameters is None
    assert "6x?x3x3" in alone.to_text()


@pytest.mark.parametrize(
    ("text", "shapes"),
    [
        ("BatchNorm", [(4,), (4,), (1,)]),
        ("BatchNorm batch_norm_param { scale_bias: true }", [(4,), (4,), (1,), (4,), (4,)]),
        ("BatchNorm batch_norm_param { scale_bias: false }", [(4,), (4,), (1,)]),
        ("BatchNorm batch_norm_param { use_weight_bias: true }", [(4,), (4,), (1,), (4,)]),
        ("BN bn_param { slope_filler { } }", [(4,)] * 4),
        ("BN bn_param { bn_mode: INFERENCE }", [(4,)] * 2),
        ("CuDNNBatchNorm", [(4,)] * 4),
        ("Scale scale_param { num_axes: 0 }", [()]),
        ("Scale scale_param { bias_term: true num_axes: 2 }", [(4, 6), (4, 6)]),
        ("Bias bias_param { axis: -1 }", [(6,)]),
        ("Deconvolution convolution_param { num_output: 8 kernel_h: 2 kernel_w: 3 group: 2 }",
         [(4, 4, 2, 3), (8,)]),
        ("ConvolutionDepthwise convolution_param { num_output: 4 kernel_size: 3 bias_term: false }",
         [(4, 1, 3, 3)]),
        ("InnerProduct inner_product_param { num_output: 3 transpose: true }", [(144, 3), (3,)]),
    ],
)  # fmt: skip
def test_blobs_that_a_prototxt_implies(
    text: str, shapes: list[tuple[int, ...]], tmp_path: Path
) -> None:
    net = Net("blobs")
    net.input("data", (1, 4, 6, 6))
    kind, _, params = text.partition(" ")
    net.layer("layer", kind, "data", "top", params)
    (layer,) = caffe_fold.inspect(net.write(tmp_path)[0]).layers[1:]
    assert list(layer.shapes or ()) == shapes


@pytest.mark.parametrize("kind", ["PReLU", "Normalize", "Odd", "ReLU", "Scale", "shifted Scale"])
def test_blobs_of_a_type_that_is_not_known_are_null(kind: str, tmp_path: Path) -> None:
    net = Net("blobs")
    net.input("data", (1, 4, 6, 6))
    bottoms = ["data", "data"] if kind.endswith("Scale") else ["data"]
    params = "scale_param { bias_term: true }" if kind == "shifted Scale" else ""
    net.layer("layer", kind.split()[-1], bottoms, "top", params)
    found = caffe_fold.inspect(net.write(tmp_path)[0], html=tmp_path / "page.html")
    layer = found.to_dict()["layers"][1]
    is_known = kind in ("ReLU", "Scale")
    assert layer["shapes"] == ([] if is_known else None)
    assert layer["parameters"] == (0 if is_known else None)


def test_shared_statistics_are_taken_as_equal_and_others_as_different(tmp_path: Path) -> None:
    """Two Convolutions that share their weights fold together if what is behind them is
    shared, too; the prototxt does not tell that two BatchNorms of their own are equal."""
    for shared, kind in ((True, "takes"), (False, "same")):
        net = Net("siamese")
        net.input("a", (1, 3, 8, 8))
        net.input("b", (1, 3, 8, 8))
        for side in "ab":
            params = 'param { name: "w" } param { name: "b" }'
            net.conv(f"conv_{side}", side, 3, 4, extra=params)
            names = " ".join(f'param {{ name: "{n}" }}' for n in "mvf") if shared else ""
            net.batch_norm(f"bn_{side}", f"conv_{side}", 4, extra=names)
        said = fates(caffe_fold.inspect(net.write(tmp_path)[0]))
        assert said["conv_a"].kind == said["conv_b"].kind == kind


def test_shared_parameters_of_two_shapes_are_no_equal_copies(tmp_path: Path) -> None:
    net = Net("unlike")
    net.input("data", (1, 3, 8, 8))
    net.batch_norm("bn", "data", 3, top="x")
    for name, kernel in (("a", 3), ("b", 1)):
        net.conv(name, "x", 3, 4, kernel, extra='param { name: "w" }')
    stays = fates(caffe_fold.inspect(net.write(tmp_path)[0]))["bn"]
    assert "the stored copies of its shared parameter 'w' differ" in stays.reason


@pytest.mark.parametrize(
    "params",
    [
        "convolution_param { num_output: 4294967295 kernel_size: 3 }",
        "convolution_param { num_output: 4 kernel_size: 3 stride: 0 }",
        "convolution_param { }",
        "convolution_param { num_output: 4 kernel_size: 0 group: 0 }",
        "convolution_param { num_output: 5 kernel_size: 3 group: 3 axis: -9 }",
    ],
)
def test_parameters_that_make_no_sense_are_no_crash(params: str, tmp_path: Path) -> None:
    net = Net("nonsense")
    net.input("data", (1, 3, 8, 8))
    net.layer("conv", "Convolution", "data", "conv", params)
    net.batch_norm("bn", "conv", 4)
    net.layer("pool", "Pooling", "conv", "pool", "pooling_param { kernel_size: 0 stride: 0 }")
    net.layer("flat", "Flatten", "pool", "flat", "flatten_param { axis: 77 }")
    net.layer("cut", "Slice", "flat", ["x", "y"], "slice_param { axis: -50 }")
    net.inner_product("fc", "x", 4, 2)
    assert len(caffe_fold.inspect(net.write(tmp_path)[0]).layers) == 7


# ---- Values that count ----


def test_what_cannot_be_computed_is_said_to_stay(tmp_path: Path) -> None:
    """A fold to float16 that overflows is found when it is computed, so it is computed."""
    net = Net("large")
    net.input("data", (1, 3, 8, 8))
    net.conv("conv", "data", 3, 4)
    net.scale("scale", "conv", 4).blobs[0][:] = 1e30
    files = net.write(tmp_path)
    found = caffe_fold.inspect(*files, weights_dtype="float16")
    assert "would not fit float16" in fates(found)["scale"].reason
    assert fates(caffe_fold.inspect(*files))["scale"].kind == "folds"


def test_weights_that_are_no_numbers(tmp_path: Path) -> None:
    net = branched()
    net.layers[2].blobs[0][1] = np.nan
    found = caffe_fold.inspect(*net.write(tmp_path), int8=True)
    assert "not finite" in fates(found)["bn"].reason
    assert found.layers[2].gain is None
    net = branched()
    net.layers[1].blobs[0][0] = np.nan
    assert "not finite" in fates(caffe_fold.inspect(*net.write(tmp_path)))["scale"].reason


def test_blobs_to_keep(tmp_path: Path) -> None:
    files = branched().write(tmp_path)
    for weights in (files[1], None):
        with pytest.raises(caffe_fold.InputError, match="no blob is named 'bm2'; the closest"):
            caffe_fold.inspect(files[0], weights, keep=["bm2"])
    kept = fates(caffe_fold.inspect(files[0], keep=["bn2"]))["bn2"]
    assert kept.kind == "stays"
    assert "'bn2' is to keep its values" in kept.reason


def test_a_net_without_any_such_layer(tmp_path: Path) -> None:
    net = Net("plain")
    net.input("data", (1, 3, 8, 8))
    net.relu("relu", "data")
    found = caffe_fold.inspect(net.write(tmp_path)[0])
    assert (found.totals, found.before, found.after) == ((), 2, 2)
    assert "layers 2 -> 2" in found.to_text()
