"""What a user is warned of beside the fold: names that do not match, other states, data layers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from folding import absorbed, fold_net
from support.nets import Net

import caffe_fold
from caffe_fold import hints, summary
from caffe_fold.report import Report

C, N = 3, 4


def net_of() -> Net:
    net = Net()
    net.input("data", (1, C, 5, 5))
    net.conv("conv", "data", C, N, 3, bias=False)
    net.batch_norm("bn", "conv", N)
    net.relu("relu", "conv")
    return net


def codes(report: Report) -> list[str]:
    return [note.code for note in report.warnings]


def test_a_net_that_fits_gets_no_warning(tmp_path: Path) -> None:
    assert fold_net(net_of(), tmp_path).report.warnings == ()


# ---- Names that do not match ----


@pytest.mark.parametrize(
    ("type", "params"),
    [
        ("Convolution", "convolution_param { num_output: 4 kernel_size: 1 }"),
        ("InnerProduct", "inner_product_param { num_output: 4 }"),
        ("BatchNorm", ""),
        ("Scale", ""),
        ("Bias", ""),
        ("PReLU", ""),
    ],
)
def test_a_layer_that_the_weights_lack_gets_the_closest_name(
    type: str, params: str, tmp_path: Path
) -> None:
    net = net_of()
    net.layer("stage1_block2", type, "conv", "y", params).in_weights = False
    net.layer("stage1_blok2", type, blobs=[np.ones(N)], in_text=False)
    net.layer("another", type, blobs=[np.ones(N)], in_text=False)
    # A BatchNorm that only the weights have might tell of a prototxt folded before.
    done = fold_net(net, tmp_path, runs=False, allow_extra_weights=True)
    warning = done.warnings["no-weights"]
    assert f"no layer 'stage1_block2' ({type})" in warning
    assert warning.endswith("the closest is 'stage1_blok2'")
    assert "'stage1_blok2', 'another'" in done.warnings["extra-weights"]


@pytest.mark.parametrize("type", ["ReLU", "Power", "Pooling", "Eltwise"])
def test_a_layer_without_blobs_needs_no_weights(type: str, tmp_path: Path) -> None:
    net = net_of()
    net.layer("more", type, "conv", "y", "").in_weights = False
    assert fold_net(net, tmp_path, runs=False).report.warnings == ()


def test_a_scale_of_two_bottoms_has_no_weights(tmp_path: Path) -> None:
    net = net_of()
    net.layer("gate", "Scale", ["conv", "conv"], "y", "scale_param { axis: 0 }").in_weights = False
    assert fold_net(net, tmp_path, runs=False).warnings == {}


def test_a_name_that_is_close_to_none_gets_no_hint(tmp_path: Path) -> None:
    net = net_of()
    net.layers[1].in_weights = False
    net.layer("zzz", "PReLU", blobs=[np.ones(N)], in_text=False)
    done = fold_net(net, tmp_path, runs=False)
    assert done.warnings["no-weights"].endswith("at random values")


def test_two_names_that_were_swapped_are_both_told(tmp_path: Path) -> None:
    """Both entries are there, each under a name that is a letter off."""
    net = net_of()
    for layer in net.layers[1:3]:
        blobs, bottoms, tops = layer.blobs, layer.bottoms, layer.tops
        net.layer(f"{layer.name}_1", layer.type, bottoms, tops, "", blobs, in_text=False)
        layer.in_weights = False
    done = fold_net(net, tmp_path, runs=False, allow_extra_weights=True)
    found = [note.message for note in done.report.warnings if note.code == "no-weights"]
    assert [message.rpartition(" ")[2] for message in found] == ["'conv_1'", "'bn_1'"]
    assert done.stayed("bn").code == "no-weights"


def test_hints_are_for_the_first_few_of_many(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each name is compared with all the others, which takes its time."""
    net = net_of()
    for index in range(600):
        net.layer(f"block_{index}_act", "PReLU", "conv", f"y{index}").in_weights = False
        net.layer(f"res{index}_prelu", "PReLU", blobs=[np.ones(1)], in_text=False)
    asked: list[str] = []

    def counting(name: str, names: Any, *words: str) -> str:
        asked.append(name)
        return hints.closest(name, names, *words)

    monkeypatch.setattr(summary, "closest", counting)
    report = caffe_fold.fold(*net.write(tmp_path), dry_run=True)
    assert codes(report).count("no-weights") == 600
    assert codes(report).count("extra-weights") == 1
    assert len(asked) == 8


# ---- Layers that only the weights have ----


def test_extra_layers_are_listed_once_and_shortened(tmp_path: Path) -> None:
    net = net_of()
    for index in range(8):
        net.conv(f"aux{index}", "data", C, N, 1).in_text = False
    net.layer("loss", "SoftmaxWithLoss", ["conv", "label"], "loss", in_text=False)
    done = fold_net(net, tmp_path)
    assert codes(done.report) == ["extra-weights"]
    assert "'aux4' and 3 more" in done.warnings["extra-weights"]
    assert "'loss'" not in done.warnings["extra-weights"]


def test_layers_of_another_state_are_not_extra(tmp_path: Path) -> None:
    net = net_of()
    net.conv("aux", "data", C, N, 1, extra="include { phase: TRAIN }")
    assert fold_net(net, tmp_path).report.warnings == ()


# ---- Other states ----


def twins() -> Net:
    """A convolution for TRAIN and one for TEST, of one name and one set of weights."""
    net = Net()
    net.input("data", (1, C, 5, 5))
    net.conv("conv", "data", C, N, 3, extra="include { phase: TRAIN }").in_weights = False
    net.conv("conv", "data", C, N, 3, extra="include { phase: TEST }")
    net.batch_norm("bn", "conv", N)
    return net


def test_a_twin_of_a_folded_layer_is_named(tmp_path: Path) -> None:
    """Its weights are the folded ones now, and nothing normalises behind them in TRAIN."""
    done = fold_net(twins(), tmp_path)
    assert absorbed(done.report) == {"conv": ("bn",)}
    assert codes(done.report) == ["other-states"]
    assert "('conv')" in done.warnings["other-states"]
    assert "the selected state only" in done.warnings["other-states"]


def test_a_twin_of_a_layer_that_stays_is_nobodys_business(tmp_path: Path) -> None:
    net = twins()
    del net.layers[-1]
    assert fold_net(net, tmp_path).warnings == {}


@pytest.mark.parametrize("reads", ["conv", "other"])
def test_a_reader_in_another_state(reads: str, tmp_path: Path) -> None:
    net = net_of()
    net.conv("side", "data", C, N, 1, top="other")
    extra = "include { phase: TRAIN }"
    net.layers.insert(2, net.layer("train", "TanH", reads, "t", extra=extra, in_weights=False))
    net.layers.pop()
    if reads == "other":
        net.layers.append(net.layers.pop(2))
    done = fold_net(net, tmp_path)
    assert ("'train'" in done.warnings.get("other-states", "")) == (reads == "conv")


@pytest.mark.parametrize("name", ["w", "other"])
def test_a_sharer_in_another_state(name: str, tmp_path: Path) -> None:
    """Its shared weights are the folded ones now, whatever the layer's name."""
    net = net_of()
    net.layers[1].text = net.layers[1].text.replace("\n}", '\n  param { name: "w" }\n}')
    extra = f'param {{ name: "{name}" }} include {{ phase: TRAIN }}'
    net.conv("train", "data", C, N, 3, bias=False, extra=extra).in_weights = False
    done = fold_net(net, tmp_path)
    assert ("'train'" in done.warnings.get("other-states", "")) == (name == "w")


# ---- Data layers ----


@pytest.mark.parametrize("type", ["Data", "ImageData", "HDF5Data", "Python", "AnnotatedData"])
def test_data_layers_are_told(type: str, tmp_path: Path) -> None:
    net = Net()
    net.shapes["data"] = (1, C, 5, 5)
    net.layer("source", type, [], ["data", "label"], in_weights=False)
    net.conv("conv", "data", C, N, 3)
    net.batch_norm("bn", "conv", N)
    done = fold_net(net, tmp_path, runs=False)
    assert codes(done.report) == ["data-layers"]
    assert "'source'" in done.warnings["data-layers"]
    assert "--deploy" in done.warnings["data-layers"]


def test_a_data_layer_of_another_state_is_none(tmp_path: Path) -> None:
    net = net_of()
    extra = "include { phase: TRAIN }"
    net.layer("source", "Data", [], ["data", "label"], extra=extra, in_weights=False)
    assert fold_net(net, tmp_path).report.warnings == ()


@pytest.mark.parametrize("form", ["Input", "input_dim", "input_shape"])
def test_inputs_are_no_data_layers(form: str, tmp_path: Path) -> None:
    net = Net()
    net.input("data", (1, C, 5, 5), None if form == "Input" else form)
    net.conv("conv", "data", C, N, 3)
    net.batch_norm("bn", "conv", N)
    assert fold_net(net, tmp_path).report.warnings == ()


@pytest.mark.parametrize("kind", ["Parameter", "ContinuationIndicator"])
def test_a_layer_that_needs_no_data_is_no_data_layer(kind: str, tmp_path: Path) -> None:
    net = Net()
    net.input("data", (1, 3, 6, 6))
    net.layer("steps", kind, [], "steps")
    net.conv("conv", "data", 3, 4)
    net.batch_norm("bn", "conv", 4)
    net.layer("both", "Lstm", ["conv", "steps"], "both")
    model, weights = net.write(tmp_path)
    report = caffe_fold.fold(model, weights, dry_run=True)
    assert report.folded
    assert not report.warnings


# ---- Types that are not known ----


@pytest.mark.parametrize("type", ["SyncBN", "BatchReNorm", "CuDNNBN"])
def test_a_type_that_looks_like_a_batch_norm_is_named(type: str, tmp_path: Path) -> None:
    net = net_of()
    net.layer("odd", type, "conv", "y", "", [np.ones(N)] * 3)
    done = fold_net(net, tmp_path, runs=False)
    (note,) = [note for note in done.report.notes if note.code == "unknown-type"]
    assert f"'odd' stay: the type '{type}' is not known" in note.message


def test_other_types_are_not(tmp_path: Path) -> None:
    net = net_of()
    net.layer("lrn", "LRN", "conv", "y")
    net.layer("mvn", "MVN", "conv", "z")
    assert fold_net(net, tmp_path, runs=False).report.notes == ()
