"""Deploy nets: what goes, what stays byte for byte, and that the values stay."""

from __future__ import annotations

import difflib
import re
from pathlib import Path

import numpy as np
import pytest
from deploying import (
    Shapes,
    classifier,
    data,
    deploy,
    deploy_files,
    images,
    inputs,
    loss,
    names,
    outputs,
    types,
)
from support import compare, engines, netdef
from support.evaluate import Evaluator
from support.made_weights import make_weights
from support.nets import Net

import caffe_fold
from caffe_fold.errors import InputError

SHARED = Path(__file__).resolve().parents[2] / "shared"

# ---- The text ----

TRAIN_VAL = """\
# A net of two phases.
name: "small"
# Only for training.
layer {
  name: "data"  type: "Data"
  top: "data"
  top: "label"
  include { phase: TRAIN }
  transform_param { crop_size: 6 mirror: true }
}

# The images.
layer {
    name: 'data'
    type: "Data"
    top: "data"
    top: "label"
    include { phase: TEST }   # twin
    transform_param { crop_size: 8 }
    data_param { source: "val_lmdb" batch_size: 50 }
}
layer { # first
  type: "Convolution"   name: "conv1"
  top: "conv1" bottom: "data"
  exclude { stage: "never" }
  convolution_param { num_output: 4  kernel_size: 3 pad: 1 }; # half
}
layer {
  name: "relu1" type: "ReLU" bottom: "conv1" top: "conv1" include { } include { phase: TRAIN } }
layer { name: "fc" type: "InnerProduct" top: "fc" bottom: "conv1"
  inner_product_param { num_output: 5 } }
layer {
  name: "loss"
  type: "SoftmaxWithLoss"
  bottom: "fc"
  bottom: "label"
  top: "loss"
  softmax_param { axis: 1 }  loss_param { ignore_label: 255 }
  loss_weight: 1
}

# How good it is.
layer {
  name: "accuracy"
  type: "Accuracy"
  bottom: "fc"
  bottom: "label"
  top: "accuracy"
}
"""

DEPLOY = """\
# A net of two phases.
name: "small"

# The images.
layer {
    name: 'data'
    type: "Input"
    top: "data"
    input_param { shape { dim: 1 dim: 3 dim: 8 dim: 8 } }
}
layer { # first
  type: "Convolution"   name: "conv1"
  top: "conv1" bottom: "data"
  convolution_param { num_output: 4  kernel_size: 3 pad: 1 }; # half
}
layer {
  name: "relu1" type: "ReLU" bottom: "conv1" top: "conv1"   }
layer { name: "fc" type: "InnerProduct" top: "fc" bottom: "conv1"
  inner_product_param { num_output: 5 } }
layer {
  name: "prob"
  type: "Softmax"
  bottom: "fc"
  top: "prob"
  softmax_param { axis: 1 }
}

"""  # fmt: skip


def test_a_train_val_net_becomes_a_deploy_net(tmp_path: Path) -> None:
    assert deploy(classifier(), tmp_path, TRAIN_VAL) == DEPLOY


def test_line_endings_stay(tmp_path: Path) -> None:
    text = deploy(classifier(), tmp_path, TRAIN_VAL.replace("\n", "\r\n"))
    assert text == DEPLOY.replace("\n", "\r\n")


def test_one_line_layers_stay_on_one_line(tmp_path: Path) -> None:
    net = classifier()
    loss(net)
    text = re.sub(r"\n(?!layer)", " ", net.prototxt()) + "\n"
    lines = deploy(net, tmp_path, text).splitlines()
    assert 'layer { name: "data" type: "Input" top: "data" input_param' in lines[1]
    assert lines[-1] == 'layer { name: "prob" type: "Softmax" bottom: "fc" top: "prob" } '


def test_lists_are_understood(tmp_path: Path) -> None:
    net = classifier()
    loss(net)
    text = net.prototxt().replace('top: "data"\n  top: "label"', 'top: ["data", "label"]')
    text = text.replace('bottom: "fc"\n  bottom: "label"', 'bottom: ["fc", "label"]')
    text = text.replace('name: "relu1"', 'name: "relu1" include: [{phase: TEST}, {phase: TRAIN}]')
    made = deploy(net, tmp_path, text)
    assert types(made) == ["Input", "Convolution", "ReLU", "InnerProduct", "Softmax"]
    assert outputs(made) == {"prob"}
    assert "phase" not in made


def test_a_deploy_net_comes_out_byte_for_byte(tmp_path: Path) -> None:
    net = Net()
    net.input("data", (2, 3, 8, 8))
    net.conv("conv1", "data", 3, 4, extra="include { phase: TEST } # stays")
    net.layer("quiet", "Silence", "conv1")
    assert deploy(net, tmp_path) == net.prototxt()


def test_a_deploy_net_of_a_deploy_net_is_the_same(tmp_path: Path) -> None:
    assert deploy(classifier(), tmp_path, DEPLOY) == DEPLOY


# ---- Values ----


def test_values_stay(tmp_path: Path) -> None:
    net = classifier()
    loss(net)
    model, weights = net.write(tmp_path)
    made = tmp_path / "deploy.prototxt"
    made.write_bytes(deploy_files(model, weights, {}))
    given = {"data": images()}
    before = Evaluator(model, weights).run(given, lenient=True)
    after = Evaluator(made, weights).run(given)
    compare.assert_same(before, after, tolerance=0)
    scores = np.exp(before.blobs["fc"])
    assert compare.differ("prob", after.blobs["prob"], scores / scores.sum()).relative < 1e-9


def test_the_deploy_net_folds(tmp_path: Path) -> None:
    net = Net()
    data(net)
    net.conv("conv1", "data", 3, 4, pad=1)
    net.batch_norm("bn1", "conv1", 4, params="", extra="include { phase: TEST }")
    net.scale("scale1", "conv1", 4)
    net.inner_product("fc", "conv1", 4 * 8 * 8, 5)
    loss(net)
    model, weights = net.write(tmp_path)
    made = tmp_path / "deploy.prototxt"
    made.write_bytes(deploy_files(model, weights, {}))
    report = caffe_fold.fold(made, weights)
    assert [fold.behind for fold in report.folded] == [("bn1", "scale1")]
    before = Evaluator(model, weights).run({"data": images()}, lenient=True)
    after = Evaluator(report.output_model, report.output_weights).run({"data": images()})
    assert compare.differ("fc", before.blobs["fc"], after.blobs["fc"]).relative < 1e-5


@pytest.mark.oracle
@pytest.mark.parametrize("v1", [False, True])
def test_engines_load_it(tmp_path: Path, v1: bool) -> None:
    net = classifier(v1=v1)
    loss(net)
    model, weights = net.write(tmp_path)
    made = tmp_path / "deploy.prototxt"
    made.write_bytes(deploy_files(model, weights, {}))
    given = {"data": images()}
    mine = Evaluator(made, weights).run(given)
    ran = []
    try:
        compare.assert_engine(
            mine.by_caffe_key(), engines.caffe_forward(made, weights, given), 2e-5
        )
        ran.append("Caffe")
    except engines.Unavailable as reason:
        print(reason)
    try:
        compare.assert_engine(mine.by_layer(), engines.opencv_forward(made, weights, given), 2e-5)
        ran.append("OpenCV")
    except engines.Unavailable as reason:
        print(reason)
    if not ran:
        pytest.skip("neither real Caffe nor OpenCV is there")


# ---- Losses ----


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


# ---- Old formats ----


def test_the_format_of_layers_gets_net_level_inputs(tmp_path: Path) -> None:
    net = classifier(v1=True)
    net.layer("accuracy", "Accuracy", ["fc", "label"], "accuracy", "include: { phase: TEST }")
    loss(net)
    text = deploy(net, tmp_path)
    head = 'name: "net"\ninput: "data"\ninput_shape { dim: 1 dim: 3 dim: 8 dim: 8 }\nlayers {'
    assert text.startswith(head)
    tail = '  name: "prob"\n  type: SOFTMAX\n  bottom: "fc"\n  top: "prob"\n}\n'
    assert text.endswith(tail)
    assert inputs(text) == {"data": (1, 3, 8, 8)}


def test_the_format_of_layers_keeps_to_input_dim(tmp_path: Path) -> None:
    net = Net(v1=True)
    net.input("side", (1, 3, 8, 8), "input_dim")
    data(net)
    net.conv("conv1", "data", 3, 3)
    net.eltwise("sum", ["conv1", "side"])
    loss(net, "sum")
    text = deploy(net, tmp_path)
    assert inputs(text) == {"side": (1, 3, 8, 8), "data": (1, 3, 8, 8)}
    with pytest.raises(InputError, match="'data' has 3 dimensions"):
        deploy(net, tmp_path, shapes={"data": (1, 3, 8)})


def test_older_formats_are_refused(tmp_path: Path) -> None:
    text = 'layers { layer { name: "data" type: "data" } top: "data" top: "label" }\n'
    with pytest.raises(InputError, match=r":1:1: layer 'data' .* too old .*upgrade_net_proto"):
        deploy(classifier(), tmp_path, text)


# ---- Real nets ----

Known = tuple[str, tuple[int, ...], Shapes, set[str]]

TRAINING: dict[str, Known] = {
    "models/resnet20_nhzlx/res20_cifar_train_test.prototxt": (
        "Data1", (1, 3, 36, 36), {"Data1": (1, 3, 36, 36)}, {"prob"},
    ),
    "models/yolov3_lite_tusimple/mobilenet_yolov3_lite_train.prototxt": (
        "data", (1, 3, 512, 512), {}, {"conv16"},
    ),
    "prototxts/BVLC_caffe_cifar10/cifar10_full_sigmoid_train_test_bn.prototxt": (
        "data", (1, 3, 32, 32), {"data": (1, 3, 32, 32)}, {"prob"},
    ),
    "prototxts/NVIDIA_caffe_inception_v2/train_val_fp16.prototxt": (
        "data", (1, 3, 224, 224), {}, {"loss1/prob", "loss2/prob", "prob"},
    ),
    "prototxts/NVIDIA_caffe_resnet50/train_val_1K.prototxt": (
        "data", (1, 3, 224, 224), {}, {"prob"},
    ),
    "prototxts/SegNet-Tutorial/segnet_inference.prototxt": (
        "data", (1, 3, 360, 480), {"data": (1, 3, 360, 480)}, {"prob"},
    ),
    "prototxts/chuanqi305_MobileNet-SSD/train.prototxt": (
        "data", (1, 3, 300, 300), {}, {"mbox_loc", "mbox_conf", "mbox_priorbox"},
    ),
    "prototxts/chuanqi305_MobileNet-SSD/MobileNetSSD_train_template.prototxt": (
        "data", (1, 3, 300, 300), {}, {"mbox_loc", "mbox_conf", "mbox_priorbox"},
    ),
    "prototxts/cvjena_cnn-models/train.prototxt": ("data", (1, 3, 224, 224), {}, {"prob"}),
    "prototxts/intel_caffe/mobilenet_v1_int8_full_conv_acc.prototxt": (
        "data", (1, 3, 224, 224), {}, {"fc7"},
    ),
}  # fmt: skip


def weights_for(model: Path, folder: Path) -> Path:
    """The weights beside a net, or made ones."""
    for found in model.parent.glob("*.caffemodel"):
        return found
    made = folder / "made.caffemodel"
    make_weights(model, made)
    return made


@pytest.mark.parametrize("name", TRAINING)
def test_real_nets_for_training(tmp_path: Path, name: str) -> None:
    model = SHARED / name
    if not model.exists():
        pytest.skip(f"{model} is not there")
    blob, shape, given, ends = TRAINING[name]
    weights = weights_for(model, tmp_path)
    made = deploy_files(model, weights, given)
    text = made.decode()
    assert inputs(text) == {blob: shape}
    assert outputs(text) == ends
    netdef.check_graph(netdef.read_net(text))
    old, new = (
        model.read_bytes().decode("latin-1").splitlines(),
        made.decode("latin-1").splitlines(),
    )
    added = [line for line in difflib.ndiff(old, new) if line.startswith("+ ")]
    assert len(added) <= 6


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in TRAINING if name.startswith("models/")])
def test_values_of_real_nets_stay(tmp_path: Path, name: str) -> None:
    model = SHARED / name
    if not model.exists():
        pytest.skip(f"{model} is not there")
    blob, shape, given, ends = TRAINING[name]
    weights, made = weights_for(model, tmp_path), tmp_path / "deploy.prototxt"
    made.write_bytes(deploy_files(model, weights, given))
    values = {blob: images((1, 3, *(min(size, 64) for size in shape[2:])))}
    labels = {"label": np.zeros((1, 1)), "seg_label": np.zeros((1, 1, 8, 8))}
    before = Evaluator(model, weights).run({**labels, **values}, lenient=True)
    after = Evaluator(made, weights).run(values)
    compare.assert_same(before, after, tolerance=0)
    assert ends <= set(after.blobs)


def other_files() -> list[Path]:
    """The real prototxts that are deploy nets already."""
    found = sorted([*SHARED.glob("prototxts/*/*.prototxt"), *SHARED.glob("models/*/*.prototxt")])
    return [path for path in found if str(path.relative_to(SHARED)) not in TRAINING]


def test_real_deploy_nets_come_out_byte_for_byte(tmp_path: Path) -> None:
    files = other_files()
    if not files:
        pytest.skip(f"no real nets in {SHARED}")
    _, weights = classifier().write(tmp_path)
    for path in files:
        assert deploy_files(path, weights, {}) == path.read_bytes(), path
