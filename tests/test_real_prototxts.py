"""Real prototxts, of which the weights are made: read, printed back, folded and judged."""

from __future__ import annotations

import re
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from support import engines
from support.files import check_text, check_weights
from support.judge import (
    CAFFE,
    OPENCV,
    Inputs,
    Net,
    adapted,
    by_caffe,
    by_evaluator,
    by_opencv,
    definition_of,
    fold_points,
    judge,
)
from support.made_weights import make_weights
from support.netdef import NetDef, read_net
from support.registry import FORWARD
from support.shapes import infer

import caffe_fold
from caffe_fold.nets.edits import apply_edits
from caffe_fold.nets.net import read_net as read_by_the_tool
from caffe_fold.nets.prototxt import parse

ROOT = Path(__file__).resolve().parents[2] / "shared" / "prototxts"
PLACEHOLDER = re.compile(rb"\bcls\dx\b")


@dataclass(frozen=True)
class Real:
    """A real prototxt, and what is left of it.

    ``left`` are its BatchNorm and Scale layers in the end; ``stays`` the codes of the
    sentences on what stays, with how many there are of each; ``says`` a part of each
    such sentence; ``unknown`` the types that the evaluator does not run; ``size`` the
    images' height and width. Where the text itself depends on it, ``smaller`` has what stands
    there and what is to, by turns.
    """

    left: tuple[int, int] = (0, 0)
    stays: tuple[tuple[str, int], ...] = ()
    says: str = ""
    folds: bool = True
    unknown: tuple[str, ...] = ()
    size: int = 64
    width: int | None = None
    gain: float = 1.0
    smaller: tuple[str, ...] = ()


def kept(count: int, code: str = "not-linear", says: str = "which is not linear") -> Real:
    """Return a net in which so many Scale layers stay, each for a whole run."""
    return Real((0, count), ((code, count),), says)


SSD = Real(unknown=("PriorBox",), size=128)
SSD_DEPLOY = Real(unknown=("DetectionOutput", "PriorBox"), size=128)

REAL = {
    "BVLC_caffe_cifar10/cifar10_full_sigmoid_train_test_bn": Real(
        (1, 0),
        (("not-linear", 1),),
        "which is not linear",
        unknown=("Accuracy", "SoftmaxWithLoss"),
        size=224,
    ),
    "BVLC_caffe_googlenet/deploy": Real(folds=False),
    "KaimingHe_deep-residual-networks/ResNet-50-deploy": Real(),
    "NVIDIA_caffe_inception_v2/train_val_fp16": Real(
        unknown=("Accuracy", "SoftmaxWithLoss"), size=224
    ),
    "NVIDIA_caffe_resnet50/train_val_1K": Real(unknown=("Accuracy", "SoftmaxWithLoss")),
    # Its Upsample layers name the sizes of its own images, of 360x480.
    "SegNet-Tutorial/segnet_inference": Real(
        size=72,
        width=96,
        smaller=("_w: 30", "_w: 6", "_h: 23", "_h: 5", "_w: 60", "_w: 12", "_h: 45", "_h: 9"),
    ),
    "chuanqi305_MobileNet-SSD/MobileNetSSD_deploy_template": SSD_DEPLOY,
    "chuanqi305_MobileNet-SSD/MobileNetSSD_train_template": SSD,
    "chuanqi305_MobileNet-SSD/deploy": SSD_DEPLOY,
    "chuanqi305_MobileNet-SSD/train": SSD,
    "cvjena_cnn-models/deploy": kept(5),
    "cvjena_cnn-models/train": Real(
        (0, 5), (("not-linear", 5),), "not linear", unknown=("Accuracy", "SoftmaxWithLoss")
    ),
    # So do the layers of its pyramid.
    "hszhao_PSPNet/pspnet50_ADE20K_473": Real(
        size=89,
        smaller=(
            *("dim: 473", "dim: 89", "height: 60", "height: 12", "width: 60", "width: 12"),
            *("size: 60", "size: 12", "size: 30", "size: 6", "size: 20", "size: 4"),
            *("size: 10", "size: 2", "stride: 60", "stride: 12", "stride: 30", "stride: 6"),
            *("stride: 20", "stride: 4", "stride: 10", "stride: 2"),
        ),
    ),
    # Squeezed values pass a sigmoid, which large ones would saturate.
    "hujie-frank_SENet/SE-ResNet-50": Real(gain=0.3),
    "intel_caffe/deploy": Real(),
    "intel_caffe/mobilenet_v1_int8_full_conv_acc": Real(
        (0, 27),
        (("quantization", 27),),
        "'quantization_param' holds scales of the weights as they are",
        unknown=("Accuracy",),
    ),
    "shicai_MobileNet-Caffe/mobilenet_deploy": Real(),
    "shicai_MobileNet-Caffe/mobilenet_v2_deploy": Real(),
    "soeaver_caffe-model/deploy_densenet121": kept(62),
    "soeaver_caffe-model/deploy_dpn92": kept(35),
    "soeaver_caffe-model/deploy_inception-resnet-v2": Real(size=75),
    "soeaver_caffe-model/deploy_inception-v3": Real(size=75),
    "soeaver_caffe-model/deploy_inception-v4": Real(size=75),
    "soeaver_caffe-model/deploy_resnet101-v2": kept(33),
    "soeaver_caffe-model/deploy_resnet50": Real(),
    "soeaver_caffe-model/deploy_resnext50-32x4d": Real(),
    # Its InnerProducts read all positions, so the text itself gets the smaller input.
    "soeaver_caffe-model/deploy_vgg16bn-pytorch": Real(size=32, smaller=("dim: 224", "dim: 32")),
    "soeaver_caffe-model/deploy_xception": Real(size=75),
}
"""Every prototxt, by folder and stem."""

CAFFE_RUNS = [
    "KaimingHe_deep-residual-networks/ResNet-50-deploy",
    "cvjena_cnn-models/deploy",
    "intel_caffe/deploy",
    "shicai_MobileNet-Caffe/mobilenet_deploy",
    "shicai_MobileNet-Caffe/mobilenet_v2_deploy",
]
OPENCV_RUNS = [
    "chuanqi305_MobileNet-SSD/deploy",
    "soeaver_caffe-model/deploy_densenet121",
    "soeaver_caffe-model/deploy_dpn92",
    "soeaver_caffe-model/deploy_inception-resnet-v2",
    "soeaver_caffe-model/deploy_inception-v3",
    "soeaver_caffe-model/deploy_inception-v4",
    "soeaver_caffe-model/deploy_resnet101-v2",
    "soeaver_caffe-model/deploy_resnet50",
    "soeaver_caffe-model/deploy_resnext50-32x4d",
    "soeaver_caffe-model/deploy_vgg16bn-pytorch",
    "soeaver_caffe-model/deploy_xception",
]
"""Those of which an engine knows the layers. Not among them: train nets, which no engine
loads without data; templates; NVIDIA's, SegNet's and PSPNet's layers; SE-ResNet, whose
Axpy OpenCV computes as ``a * y + x``; what has nothing to fold."""


def path_of(name: str) -> Path:
    """Return where a prototxt is; skip where it is not."""
    path = ROOT / f"{name}.prototxt"
    if not path.exists():
        pytest.skip(f"{path} is not there")
    return path


def test_every_prototxt_is_listed() -> None:
    if not ROOT.exists():
        pytest.skip(f"{ROOT} is not there")
    found = {str(path.relative_to(ROOT).with_suffix("")) for path in ROOT.glob("*/*.prototxt")}
    assert found == set(REAL)


@pytest.mark.parametrize("name", REAL)
def test_the_text_prints_back(name: str) -> None:
    path = path_of(name)
    data = path.read_bytes()
    document = parse(data, path)
    assert apply_edits(document, []) == data
    net = read_by_the_tool(document)
    mine = {layer.name: (layer.type, layer.bottoms, layer.tops) for layer in read_net(path).layers}
    theirs = {
        layer.name: (layer.type, tuple(layer.bottoms), tuple(layer.tops)) for layer in net.layers
    }
    mine.pop("input", None)  # made from net-level fields, and no layer of the text
    assert mine.items() <= theirs.items()


@dataclass(frozen=True)
class Case:
    """A prototxt with made weights, and the net folded from them."""

    real: Real
    original: Net
    folded: Net
    report: caffe_fold.Report
    folder: Path


def fold(name: str, folder: Path) -> Case:
    """Make weights for a prototxt and fold it."""
    real, path = REAL[name], path_of(name)
    if real.smaller:
        text = path.read_text()
        for old, new in zip(real.smaller[::2], real.smaller[1::2]):
            assert old in text
            text = re.sub(rf"{old}\b", new, text)
        path = folder / path.name
        path.write_text(text)
    original = Net(path, folder / "made.caffemodel")
    make_weights(path, original.caffemodel, seed=3, gain=real.gain)
    folded = Net(folder / "folded.prototxt", folder / "folded.caffemodel")
    report = caffe_fold.fold(path, original.caffemodel, folded.prototxt, folded.caffemodel)
    return Case(real, original, folded, report, folder)


@pytest.fixture(scope="module", params=REAL)
def case(request: pytest.FixtureRequest) -> Iterator[Case]:
    """A net for all of its tests, which come one after another; then its folder goes, since the
    weights of all nets take gigabytes."""
    with tempfile.TemporaryDirectory(prefix="caffe-fold-test-") as folder:
        yield fold(request.param, Path(folder))


def check_what_is_left(case: Case) -> None:
    """Assert that as much is left as there must be, each with its sentence."""
    found = Counter(layer.type for layer in definition_of(case.folded).layers)
    assert (found["BatchNorm"], found["Scale"]) == case.real.left
    assert Counter(stay.code for stay in case.report.stayed) == dict(case.real.stays)
    assert all(case.real.says in stay.reason for stay in case.report.stayed)
    if not case.real.folds:
        assert case.folded.prototxt.read_bytes() == case.original.prototxt.read_bytes()
        assert case.folded.caffemodel.read_bytes() == case.original.caffemodel.read_bytes()
        assert [note.code for note in case.report.notes] == ["nothing-to-fold"]


def filled(net: Net) -> Net:
    """Return a template with its placeholders filled in, or the net itself."""
    data = net.prototxt.read_bytes()
    if not PLACEHOLDER.search(data):
        return net
    copy = net.caffemodel.with_suffix(".filled.prototxt")
    copy.write_bytes(PLACEHOLDER.sub(b"6", data))
    return Net(copy, net.caffemodel)


def inputs_of(net: NetDef, size: int, width: int) -> Inputs:
    """Return random values for what the net reads and does not make, at a small size."""
    rng = np.random.default_rng(5)
    found: dict[str, npt.NDArray[np.float32]] = {}
    made: set[str] = set()
    for layer, tops in zip(net.layers, infer(net)[1]):
        images = {bottom for bottom in layer.bottoms if bottom not in made}
        if not layer.bottoms:
            images = {top for top, shape in zip(layer.tops, tops) if shape and len(shape) == 4}
            found.update({top: np.zeros(1, np.float32) for top in {*layer.tops} - images})
        for name in sorted(images):
            found[name] = rng.normal(0, 1, (1, 3, size, width)).astype(np.float32)
        made.update(images, layer.tops)
    return found


def nets_for(case: Case, known: frozenset[str], unknown: set[str]) -> tuple[list[Net], Inputs]:
    """Return both nets as an engine runs them, cut off behind the unknown types alone."""
    first, second = filled(case.original), filled(case.folded)
    inputs = inputs_of(definition_of(first), case.real.size, case.real.width or case.real.size)
    small = case.real.size < 224 and not case.real.smaller
    both = [
        adapted(net, known, inputs, case.folder / key, small=small)
        for net, key in ((first, "a"), (second, "b"))
    ]
    assert all(each.unknown == unknown for each in both)
    return [each.net for each in both], inputs


@pytest.mark.slow
def test_it_folds_with_made_weights(case: Case) -> None:
    check_what_is_left(case)
    check_text(case.original, case.folded, case.report)
    check_weights(case.original, case.folded, case.report)
    if case.real.folds:
        assert case.report.checked
        assert case.report.checked.layers == len(case.report.folded) + len(case.report.merged)
        known = frozenset([*FORWARD, "Input"])
        nets, inputs = nets_for(case, known, set(case.real.unknown))
        before, after = (by_evaluator(net, inputs) for net in nets)
        # In float64 only the rounding of the folded weights is left.
        judge(before, after, fold_points(case.report), 1e-5)


@pytest.mark.oracle
@pytest.mark.slow
@pytest.mark.parametrize("case", CAFFE_RUNS, indirect=True)
def test_real_caffe_finds_the_same_values(case: Case) -> None:
    nets, inputs = nets_for(case, CAFFE, set())
    try:
        before, after = by_caffe(nets, inputs)
    except engines.Unavailable as reason:
        pytest.skip(str(reason))
    judge(before, after, fold_points(case.report))


@pytest.mark.oracle
@pytest.mark.slow
@pytest.mark.parametrize("case", OPENCV_RUNS, indirect=True)
def test_opencv_finds_the_same_values(case: Case) -> None:
    nets, inputs = nets_for(case, OPENCV, set())
    try:
        before, after = (by_opencv(net, inputs) for net in nets)
    except engines.Unavailable as reason:
        pytest.skip(str(reason))
    judge(before, after, fold_points(case.report))
