"""``--deploy`` through the whole fold and the command line."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.command import Call
from support.nets import Net

from caffe_fold import InputError, fold

TRAIN_VAL = """\
layer {
  name: "data" type: "Data" top: "data" top: "label"
  include { phase: TRAIN }
}
layer {
  name: "data" type: "Data" top: "data" top: "label"
  include { phase: TEST }
  transform_param { crop_size: 8 }
}
"""
LOSS = 'layer { name: "loss" type: "SoftmaxWithLoss" bottom: "ip" bottom: "label" top: "loss" }\n'


def train_val(folder: Path) -> tuple[Path, Path]:
    """A train_val net with a BatchNorm."""
    net = Net()
    net.conv("conv", "data", 3, 4)
    net.batch_norm("bn", "conv", 4, params="")
    net.inner_product("ip", "conv", 4 * 6 * 6, 5)
    model, weights = net.write(folder)
    model.write_text(TRAIN_VAL + model.read_text() + LOSS)
    return model, weights


def test_without_deploy_there_is_a_warning(tmp_path: Path) -> None:
    report = fold(*train_val(tmp_path))
    (warning,) = [note for note in report.warnings if note.code == "data-layers"]
    assert "'data'" in warning.message
    assert "--deploy" in warning.message


def test_deploy_writes_a_deploy_net(tmp_path: Path, call: Call) -> None:
    model, weights = train_val(tmp_path)
    result = call("--model", str(model), "--weights", str(weights), "--deploy")
    assert result.code == 0, result.err
    text = (tmp_path / "net_inference.prototxt").read_text()
    assert 'type: "Input"' in text
    assert "dim: 1 dim: 3 dim: 8 dim: 8" in text
    assert 'type: "Softmax"' in text
    assert "Data" not in text
    assert "BatchNorm" not in text
    assert "warning" not in result.err


def test_a_shape_from_the_command_line(tmp_path: Path, call: Call) -> None:
    model, weights = train_val(tmp_path)
    model.write_text(model.read_text().replace("transform_param { crop_size: 8 }", ""))
    with pytest.raises(InputError, match="--input-shape data=1,3,"):
        fold(model, weights, deploy=True)
    arguments = ["--model", str(model), "--weights", str(weights), "--deploy"]
    result = call(*arguments, "--input-shape", "data=2,3,8,8")
    assert result.code == 0, result.err
    text = (tmp_path / "net_inference.prototxt").read_text()
    assert "dim: 2 dim: 3 dim: 8 dim: 8" in text


@pytest.mark.parametrize("value", ["data", "data=", "=1,3", "data=1,x", "data=0,3"])
def test_a_shape_that_is_none_is_bad_usage(tmp_path: Path, value: str, call: Call) -> None:
    model, weights = train_val(tmp_path)
    arguments = ["--model", str(model), "--weights", str(weights), "--deploy"]
    result = call(*arguments, "--input-shape", value)
    assert result.code == 2
    assert "data=1,3,224,224" in result.err


def test_shapes_without_deploy_are_an_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="--deploy"):
        fold(*train_val(tmp_path), input_shapes={"data": (1, 3, 8, 8)})


def test_a_silenced_prediction_is_the_output(tmp_path: Path) -> None:
    net = Net()
    net.conv("conv", "data", 3, 4)
    net.inner_product("ip", "conv", 4 * 6 * 6, 5)
    model, weights = net.write(tmp_path)
    rest = (
        'layer { name: "accuracy" type: "Accuracy" bottom: "ip" bottom: "label" top: "a" }\n'
        'layer { name: "quiet" type: "Silence" bottom: "ip" }\n'
    )
    model.write_text(TRAIN_VAL + model.read_text() + rest)
    fold(model, weights, deploy=True)
    assert "Silence" not in (tmp_path / "net_inference.prototxt").read_text()


def test_a_constant_of_another_batch_is_an_error(tmp_path: Path) -> None:
    net = Net()
    net.conv("conv", "data", 3, 4)
    net.layer("one", "DummyData", [], ["one"], "dummy_data_param { shape { dim: 2 dim: 4 } }")
    net.eltwise("sum", ["conv", "one"], "sum")
    model, weights = net.write(tmp_path)
    model.write_text(TRAIN_VAL + model.read_text())
    with pytest.raises(InputError, match=r"'one' \(DummyData\) has a batch of 2"):
        fold(model, weights, deploy=True)
    fold(model, weights, deploy=True, input_shapes={"data": (2, 3, 8, 8)})
