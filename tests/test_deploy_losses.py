"""Deploy nets: which losses, labels and outputs go, and what becomes of the rest."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from deploying import (
    classifier,
    data,
    deploy,
    inputs,
    loss,
    names,
    outputs,
    types,
)
from support import netdef
from support.nets import Net

from caffe_fold.errors import InputError

SHARED = Path(__file__).resolve().parents[2] / "shared"


def test_what_feeds_another_loss_is_the_output(tmp_path: Path) -> None:
    net = classifier()
    loss(net, kind="SigmoidCrossEntropyLoss")
    text = deploy(net, tmp_path)
    assert types(text) == ["Input", "Convolution", "ReLU", "InnerProduct"]
    assert outputs(text) == {"fc"}


def test_a_net_without_a_softmax_loss_keeps_its_scores(tmp_path: Path) -> None:
    net = classifier()
    net.layer("top1", "Accuracy", ["fc", "label"], "top1", "accuracy_param { top_k: 1 }")
    assert outputs(deploy(net, tmp_path)) == {"fc"}


def test_a_file_of_outputs_is_not_written_in_deployment(tmp_path: Path) -> None:
    net = classifier()
    net.layer("file", "HDF5Output", ["fc", "label"], ())
    assert names(deploy(net, tmp_path)) == ["data", "conv1", "relu1", "fc"]


def test_a_softmax_that_is_there_is_enough(tmp_path: Path) -> None:
    net = classifier()
    net.layer("prob", "Softmax", "fc", "prob", extra="include { phase: TEST }")
    net.layer("accuracy", "Accuracy", ["prob", "label"], "accuracy")
    loss(net)
    text = deploy(net, tmp_path)
    assert names(text) == ["data", "conv1", "relu1", "fc", "prob"]
    assert "include" not in text


@pytest.mark.parametrize("kind", ["Softmax", "SoftmaxWithLoss"])
def test_a_softmax_without_bottoms_takes_part_in_nothing(tmp_path: Path, kind: str) -> None:
    net = classifier()
    loss(net)
    net.layer("odd", kind, [], "odd")
    text = deploy(net, tmp_path)
    assert names(text)[-2:] == ["fc", "prob"]


def test_a_taken_name_is_not_taken_twice(tmp_path: Path) -> None:
    net = Net()
    data(net)
    net.conv("prob", "data", 3, 4, top="conv1")
    loss(net, "conv1")
    text = deploy(net, tmp_path)
    assert names(text)[-1] == "loss"
    assert outputs(text) == {"prob"}
    net = Net()
    data(net)
    net.conv("conv1", "data", 3, 4, top="prob")
    loss(net, "prob")
    text = deploy(net, tmp_path)
    assert names(text)[-1] == "prob"
    assert outputs(text) == {"loss"}


def test_a_name_with_weights_is_not_taken(tmp_path: Path) -> None:
    net = classifier()
    loss(net)
    net.layer("prob", "InnerProduct", (), (), blobs=[np.zeros((2, 2))], in_text=False)
    text = deploy(net, tmp_path)
    assert names(text)[-1] == "loss"
    assert outputs(text) == {"prob"}


def test_a_loss_without_a_top_gets_one(tmp_path: Path) -> None:
    net = classifier()
    net.layer("loss", "SoftmaxWithLoss", ["fc", "label"], ())
    assert outputs(deploy(net, tmp_path)) == {"prob"}


def test_the_second_top_of_a_loss_keeps_its_name(tmp_path: Path) -> None:
    net = classifier()
    net.layer("loss", "SoftmaxWithLoss", ["fc", "label"], ["loss", "p"], "loss_weight: 1")
    net.layer("best", "ArgMax", "p", "best")
    text = deploy(net, tmp_path)
    assert types(text)[3:] == ["InnerProduct", "Softmax", "ArgMax"]
    assert outputs(text) == {"best"}
    assert "loss" not in text


def test_the_last_of_several_heads_is_prob(tmp_path: Path) -> None:
    net = classifier()
    net.layer("aux", "SoftmaxWithLoss", ["fc", "label"], "aux_loss", "loss_weight: 0.3")
    net.inner_product("fc2", "conv1", 4 * 8 * 8, 5)
    loss(net, "fc2")
    net.layer("again", "SoftmaxWithLoss", ["fc2", "label"], "again", extra="loss_weight: 0")
    text = deploy(net, tmp_path)
    assert outputs(text) == {"aux_loss", "prob"}
    assert names(text)[-3:] == ["aux", "fc2", "prob"]


def test_label_chains_go(tmp_path: Path) -> None:
    net = classifier()
    net.layer("cut", "Slice", "label", ["age", "name", "rest"])
    net.layer("flat", "Flatten", "age", "age")
    net.layer("quiet", "Silence", ["name", "rest"])
    net.layer("loss", "SoftmaxWithLoss", ["fc", "age"], "loss")
    text = deploy(net, tmp_path)
    assert names(text) == ["data", "conv1", "relu1", "fc", "prob"]
    unread = net.prototxt().replace('  bottom: "rest"\n', "")
    assert deploy(net, tmp_path, unread) == text


def test_a_silence_keeps_what_is_left_of_it(tmp_path: Path) -> None:
    net = classifier()
    net.layer("cut", "Slice", "fc", ["one", "two"])
    net.layer("quiet", "Silence", ["label", "two"])
    loss(net, "one", "EuclideanLoss")
    text = deploy(net, tmp_path)
    assert types(text)[-2:] == ["Slice", "Silence"]
    assert netdef.read_net(text).layers[-1].bottoms == ("two",)
    assert outputs(text) == {"one"}


@pytest.mark.parametrize("kind", ["Python", "YoloSeg"])
def test_losses_of_unknown_types_go_by_their_weight(tmp_path: Path, kind: str) -> None:
    net = classifier()
    net.layer("sum", "Reduction", "label", "sum")
    net.layer("loss", kind, ["fc", "label", "sum"], "loss", "loss_weight: 1")
    text = deploy(net, tmp_path)
    assert names(text) == ["data", "conv1", "relu1", "fc"]


def test_a_loss_made_of_several_layers_goes(tmp_path: Path) -> None:
    net = classifier()
    net.layer("diff", "Eltwise", ["fc", "label"], "diff", "eltwise_param { coeff: 1 coeff: -1 }")
    net.power("half", "diff", 0.5)
    net.layer("loss", "Reduction", "diff", "loss", "loss_weight: 1")
    net.power("shown", "loss", 100, top="shown")
    text = deploy(net, tmp_path)
    assert names(text) == ["data", "conv1", "relu1", "fc"]


def test_an_input_for_losses_alone_goes(tmp_path: Path) -> None:
    net = Net()
    net.input("data", (1, 3, 8, 8))
    net.input("label", (1,))
    net.conv("conv1", "data", 3, 4)
    net.eltwise("diff", ["conv1", "label"])
    net.layer("loss", "Reduction", "diff", "loss", "loss_weight: 1")
    text = deploy(net, tmp_path)
    assert names(text) == ["data", "conv1"]
    assert inputs(text) == {"data": (1, 3, 8, 8)}


def test_a_net_level_input_stays(tmp_path: Path) -> None:
    net = Net()
    net.input("data", (1, 3, 8, 8), "input_dim")
    net.input("label", (1, 1, 1, 1), "input_dim")
    net.conv("conv1", "data", 3, 4)
    loss(net, "conv1")
    text = deploy(net, tmp_path)
    assert inputs(text) == net.shapes
    assert types(text) == ["Input", "Convolution", "Softmax"]


def test_outputs_stay_whatever_they_need(tmp_path: Path) -> None:
    net = Net()
    data(net, tops=("data", "im_info", "label"))
    net.conv("score", "data", 3, 4)
    net.conv("box", "data", 3, 4)
    net.layer("proposal", "Proposal", ["score", "box", "im_info"], "rois")
    loss(net, "score")
    text = deploy(net, tmp_path, shapes={"im_info": (1, 3)})
    assert inputs(text) == {"data": (1, 3, 8, 8), "im_info": (1, 3)}
    assert outputs(text) == {"rois", "prob"}
    with pytest.raises(InputError, match=r"'im_info' from .*, which layer 'proposal'"):
        deploy(net, tmp_path)


def test_an_autoencoder_ends_at_its_decoder(tmp_path: Path) -> None:
    net = Net()
    data(net, tops=("data",))
    net.layer("flat", "Flatten", "data", "flat")
    net.inner_product("encode", "data", 3 * 8 * 8, 4)
    net.inner_product("decode", "encode", 4, 3 * 8 * 8)
    net.layer("out", "Sigmoid", "decode", "out")
    net.layer("cross", "SigmoidCrossEntropyLoss", ["decode", "flat"], "cross")
    net.layer("euclid", "EuclideanLoss", ["out", "flat"], "euclid")
    text = deploy(net, tmp_path)
    assert names(text) == ["data", "encode", "decode", "out"]
    assert inputs(text) == {"data": (1, 3, 8, 8)}


def test_loss_weights_and_rules_of_what_stays_go(tmp_path: Path) -> None:
    net = classifier()
    net.layers[1].text = net.layers[1].text.replace(
        "  name", '  phase: TEST loss_weight: 0\n  include { stage: "x" }\n  name'
    )
    net.layers[2].text = net.layers[2].text.replace("}\n", "  exclude { phase: TRAIN }\n}\n")
    net.layers[3].text = net.layers[3].text.replace("  top", "  loss_weight: 0.5\n  top")
    net.layer("other", "Dropout", "fc", "fc", 'include { stage: "y" }')
    loss(net)
    text = deploy(net, tmp_path, stages=("x",))
    assert names(text) == ["data", "conv1", "relu1", "fc", "prob"]
    assert not re.search("loss_weight|include|exclude|stage", text)
    assert "  phase: TEST \n" in text


def test_a_net_that_the_weights_do_not_know_is_refused(tmp_path: Path) -> None:
    net = classifier()
    loss(net)
    text = net.prototxt().replace('name: "', 'name: "my_')
    with pytest.raises(InputError, match=r"none of this net's layers.*of one net\?"):
        deploy(net, tmp_path, text)
