"""Deploy nets of real nets for training, and real deploy nets, which stay as they are."""

from __future__ import annotations

import difflib
from pathlib import Path

import numpy as np
import pytest
from deploying import (
    Shapes,
    classifier,
    deploy_files,
    images,
    inputs,
    outputs,
)
from support import compare, netdef
from support.evaluate import Evaluator
from support.made_weights import make_weights

SHARED = Path(__file__).resolve().parents[2] / "shared"

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
