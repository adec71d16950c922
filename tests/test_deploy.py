"""Deploy nets: what goes, what stays byte for byte, and that the values stay."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from deploying import (
    classifier,
    data,
    deploy,
    deploy_files,
    images,
    inputs,
    loss,
    outputs,
    types,
)
from support import compare, engines
from support.evaluate import Evaluator
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
