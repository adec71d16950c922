"""Which files of a folder are pairs, by their names and kinds."""

from __future__ import annotations

import pytest

from caffe_fold.batch.pairing import pair_up

# What a folder holds; prototxts with their kinds. Then the pairs, and words of the reasons.
CASES = {
    "same name": ({"a.prototxt": "deploy", "b.prototxt": "deploy"}, {"a": "a", "b": "b"}),
    "one of each": ({"deploy.prototxt": "deploy"}, {"net": "deploy"}),
    "one of each, beside the solver and training": (
        {
            "deploy.prototxt": "deploy",
            "solver.prototxt": "other",
            "labelmap_voc.prototxt": "other",
            "train.prototxt": "training",
            "test.prototxt": "training",
        },
        {"net": "deploy"},
    ),
    "snapshots": (
        {"deploy.prototxt": "deploy", "train_val.prototxt": "training"},
        {"net_iter_1": "deploy", "net_iter_20": "deploy", "net_iter_300": "deploy"},
    ),
    "snapshots of a name": (
        {"a.prototxt": "deploy", "b.prototxt": "deploy"},
        {"a_iter_10": "a", "a_iter_20": "a", "b_iter_10": "b"},
    ),
    "the training net gave the snapshots their name": (
        {"train.prototxt": "training", "deploy.prototxt": "deploy"},
        {"train_iter_10": "deploy", "train_iter_20": "deploy"},
    ),
    "only a net of training": ({"train_test.prototxt": "training"}, {"net": "train_test"}),
    "the word inference": (
        {"segnet_inference.prototxt": "deploy", "segnet_train.prototxt": "training"},
        {"segnet_iter_1000": "segnet_inference"},
    ),
    "the word deploy": (
        {"resnet50_deploy.prototxt": "deploy", "deploy_vgg.prototxt": "deploy"},
        {"resnet50": "resnet50_deploy", "vgg": "deploy_vgg"},
    ),
    "the words deploy and model": (
        {"ResNet-50-deploy.prototxt": "deploy", "ResNet-101-deploy.prototxt": "deploy"},
        {"ResNet-50-model": "ResNet-50-deploy", "ResNet-101-model": "ResNet-101-deploy"},
    ),
    "a version is not another": (
        {"mobilenet_deploy.prototxt": "deploy", "mobilenet_v2_deploy.prototxt": "deploy"},
        {"mobilenet": "mobilenet_deploy", "mobilenet_v2": "mobilenet_v2_deploy"},
    ),
    "other case": ({"NET.prototxt": "deploy", "x.prototxt": "deploy"}, {"net": "NET", "x": "x"}),
    "the exact name goes first": (
        {"Net.prototxt": "deploy", "net.prototxt": "deploy"},
        {"net": "net"},
    ),
    "one cannot be read, and is all there is": ({"bad.prototxt": "unreadable"}, {"net": "bad"}),
    # ---- What is not guessed ----
    "no prototxt": ({}, {"net": "!no prototxt in its folder"}),
    "two nets": (
        {"a.prototxt": "deploy", "b.prototxt": "deploy"},
        {"net": "!fits none of 'a.prototxt' and 'b.prototxt'"},
    ),
    "one of the two cannot be read": (
        {"a.prototxt": "deploy", "b.prototxt": "unreadable"},
        {"net": "!fits none of"},
    ),
    "two weights": (
        {"deploy.prototxt": "deploy"},
        {"a": "!not snapshots of one training", "b": "!not snapshots of one training"},
    ),
    "snapshots of two trainings": (
        {"deploy.prototxt": "deploy"},
        {"a_iter_1": "!not snapshots", "b_iter_1": "!not snapshots"},
    ),
    "snapshots and another": (
        {"deploy.prototxt": "deploy"},
        {"a_iter_1": "!not snapshots", "final": "!not snapshots"},
    ),
    "the net is another's": (
        {"a.prototxt": "deploy", "solver.prototxt": "other"},
        {"a": "a", "b": "!is left for it"},
    ),
    "one of each is left, and there are others": (
        {"a.prototxt": "deploy", "c.prototxt": "deploy"},
        {"a": "a", "b": "!does not fit 'c.prototxt', and other weights are there"},
    ),
    "another's deploy net": (
        {"a_train.prototxt": "training", "other_deploy.prototxt": "deploy"},
        {"a": "!fits 'a_train.prototxt', which is for training, not 'other_deploy.prototxt'"},
    ),
    "another's deploy net, and snapshots": (
        {"a_train_val.prototxt": "training", "other.prototxt": "deploy"},
        {"a_iter_1": "!which is for training", "a_iter_2": "!which is for training"},
    ),
    "only a solver": ({"solver.prototxt": "other"}, {"net": "!is left for it"}),
    "two of the name but for case": (
        {"NET.prototxt": "deploy", "Net.prototxt": "deploy"},
        {"net": "!'NET.prototxt' and 'Net.prototxt' fit its name"},
    ),
    "a training net has its name, and there is a deploy net": (
        {"net.prototxt": "training", "deploy.prototxt": "deploy", "b.prototxt": "deploy"},
        {"net": "!fits none of"},
    ),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_pairs(case: tuple[dict[str, str], dict[str, str]]) -> None:
    kinds, expected = case
    weights = [f"{name}.caffemodel" for name in expected]
    found = pair_up(list(kinds), weights, kinds.__getitem__)
    assert [pair.weights for pair in found] == weights
    for pair, model in zip(found, expected.values()):
        if model.startswith("!"):
            assert pair.model is None
            assert model[1:] in pair.reason
        else:
            assert (pair.model, pair.reason) == (f"{model}.prototxt", "")


def test_two_formats_of_the_same_weights_are_not_guessed_at() -> None:
    weights = ["net.caffemodel", "net.caffemodel.h5"]
    found = pair_up(["net.prototxt"], weights, lambda _: "deploy")
    assert [pair.model for pair in found] == [None, None]
    assert "two weights files" in found[0].reason


def test_a_suffix_may_be_in_capitals_or_have_txt_behind() -> None:
    found = pair_up(["A.PROTOTXT", "b.prototxt.txt"], ["A.caffemodel", "b.CaffeModel"], str)
    assert [pair.model for pair in found] == ["A.PROTOTXT", "b.prototxt.txt"]


def test_names_that_tell_all_are_not_read() -> None:
    def kind_of(_: str) -> str:
        raise AssertionError("a prototxt was read")

    found = pair_up(["a.prototxt", "b.prototxt"], ["b.caffemodel", "a.caffemodel"], kind_of)
    assert [pair.model for pair in found] == ["b.prototxt", "a.prototxt"]
