"""Real nets with trained weights: folded, and judged by every engine that runs them.

They are looked for beside the project, and in the cache that scripts/fetch_models.py fills.
"""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from support import engines
from support.files import check_text, check_weights
from support.judge import (
    CAFFE,
    OPENCV,
    Adapted,
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
from support.netdef import input_shapes
from support.registry import FORWARD

import caffe_fold

BESIDE = Path(__file__).resolve().parents[2] / "shared" / "models"


def cache() -> Path:
    """Return the folder into which scripts/fetch_models.py fetches."""
    named = os.environ.get("CAFFE_FOLD_MODELS")
    if named:
        return Path(named)
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home) / "caffe-fold" / "models"


@dataclass(frozen=True)
class Real:
    """A real net: its files, what is to be left of it, and what the engines make of it.

    ``left`` are its BatchNorm and Scale layers in the end; ``opencv`` and ``caffe`` the
    types that the engine does not know (their layers are cut off, and all behind them),
    or why it cannot run the net at all.
    """

    folder: str
    prototxt: str
    caffemodel: str
    left: tuple[int, int] = (0, 0)
    opencv: frozenset[str] | str = frozenset()
    caffe: frozenset[str] | str = frozenset()
    evaluator: frozenset[str] = frozenset()
    inputs: dict[str, tuple[int, ...]] = field(default_factory=dict)
    folds: bool = True
    tolerance: float = 1e-4


def types(names: str) -> frozenset[str]:
    """Return the types of a list in one string."""
    return frozenset(names.split())


HALF = "it does not read half-precision blobs"

REAL = {
    "hyperlpr_finemapping": Real(
        "hyperlpr_finemapping",
        "HorizonalFinemapping.prototxt",
        "HorizonalFinemapping.caffemodel",
        caffe=HALF,
        folds=False,
    ),
    "hyperlpr_segfree_inception": Real(
        "hyperlpr_segfree_inception",
        "SegmenationFree-Inception.prototxt",
        "SegmenationFree-Inception.caffemodel",
        caffe=HALF,
        tolerance=2e-3,
    ),
    "landmark106": Real("landmark106", "landmark106.prototxt", "landmark106.caffemodel"),
    "open_nsfw_resnet50": Real(
        "open_nsfw_resnet50", "deploy.prototxt", "resnet_50_1by2_nsfw.caffemodel"
    ),
    "openvino_face_retail_0044": Real(
        "openvino_face_retail_0044",
        "deploy.prototxt",
        "face-detection-retail-0044.caffemodel",
        (0, 1),
        caffe=types("PriorBoxClustered DetectionOutput"),
        evaluator=types("PriorBoxClustered DetectionOutput"),
    ),
    "res10_ssd_fp32": Real(
        "res10_ssd_fp32",
        "deploy.prototxt",
        "res10_300x300_ssd_iter_140000.caffemodel",
        (0, 5),
        caffe=types("Normalize PriorBox DetectionOutput"),
        evaluator=types("PriorBox DetectionOutput"),
    ),
    "residual_haoliu": Real(
        "residual_haoliu",
        "deploy.prototxt",
        "residual.caffemodel",
        # Nothing makes the bottom of its InnerProduct.
        inputs={"data": (1, 3, 224, 224), "flatten": (1, 32)},
    ),
    "resnet20_nhzlx": Real(
        "resnet20_nhzlx",
        "res20_cifar_train_test.prototxt",
        "ResNet_20.caffemodel",
        inputs={"Data1": (2, 3, 28, 28), "Data2": (2,)},
        opencv=types("SoftmaxWithLoss Accuracy"),
        evaluator=types("SoftmaxWithLoss Accuracy"),
    ),
    "retinaface_mnet_nnie": Real(
        "retinaface_mnet_nnie",
        "mnet.prototxt",
        "mnet.caffemodel",
        inputs={"data": (1, 3, 128, 160)},
    ),
    "v1_cifar10_quick": Real(
        "v1_cifar10_quick",
        "cifar10_quick.prototxt",
        "cifar10_quick_iter_5000.caffemodel",
        folds=False,
    ),
    "yoloface_500k_v2": Real(
        "yoloface_500k_v2",
        "yoloface-500k-v2.prototxt",
        "yoloface-500k-v2.caffemodel",
        (0, 3),
        opencv=types("Upsample"),
    ),
    "yolov3_lite_tusimple": Real(
        "yolov3_lite_tusimple",
        "mobilenet_yolov3_lite_deploy.prototxt",
        "mobilenet_yolov3_lite_deploy_iter_50000.caffemodel",
        inputs={"data": (1, 3, 96, 128)},
    ),
    "yolov3_lite_tusimple_train": Real(
        "yolov3_lite_tusimple",
        "mobilenet_yolov3_lite_train.prototxt",
        "mobilenet_yolov3_lite_deploy_iter_50000.caffemodel",
        # Its data layers are of the TRAIN phase, and its losses read their labels.
        inputs={"data": (1, 3, 96, 128), "seg_label": (1, 1, 96, 128), "label": (1,)},
        evaluator=types("YoloSeg"),
        caffe=types("YoloSeg"),
        opencv=types("YoloSeg Reduction Silence"),
    ),
    "yolov3_nano_mnv2_voc": Real(
        "yolov3_nano_mnv2_voc",
        "MobileNetV2-YOLOv3-Nano-voc.prototxt",
        "MobileNetV2-YOLOv3-Nano-voc.caffemodel",
        opencv=types("Upsample"),
    ),
}
"""Every pair, by name; one net comes with two prototxts."""


@dataclass(frozen=True)
class Case:
    """A real net and the net folded from it."""

    real: Real
    original: Net
    folded: Net
    report: caffe_fold.Report
    folder: Path

    def inputs(self) -> Inputs:
        """Return random values for the net's inputs, one image where the text does not say."""
        rng = np.random.default_rng(7)
        shapes = dict(self.real.inputs)
        if not shapes:
            layer = definition_of(self.original).layers[0]
            shapes = {top: (1, *shape[1:]) for top, shape in zip(layer.tops, input_shapes(layer))}
        return {
            name: (rng.normal(0, 50, shape) if len(shape) > 1 else np.zeros(shape)).astype("f4")
            for name, shape in shapes.items()
        }


def files(real: Real) -> Net | None:
    """Find a net beside the project or in the cache."""
    for root in (BESIDE, cache()):
        net = Net(root / real.folder / real.prototxt, root / real.folder / real.caffemodel)
        if net.prototxt.exists() and net.caffemodel.exists():
            return net
    return None


@pytest.fixture(scope="module", params=REAL)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    """Fold one real net."""
    real = REAL[request.param]
    original = files(real)
    if original is None:
        pytest.skip(
            f"{real.folder} is neither in {BESIDE} nor in {cache()}; "
            "scripts/fetch_models.py brings three of the nets"
        )
    folder = tmp_path_factory.mktemp(request.param)
    folded = Net(folder / "folded.prototxt", folder / "folded.caffemodel")
    report = caffe_fold.fold(
        original.prototxt, original.caffemodel, folded.prototxt, folded.caffemodel
    )
    return Case(real, original, folded, report, folder)


def counts(net: Net) -> tuple[int, int]:
    """Return how many BatchNorm and Scale layers the TEST net has."""
    found = Counter(layer.type for layer in definition_of(net).layers)
    return found["BatchNorm"], found["Scale"]


def test_as_many_layers_are_left_as_there_must_be(case: Case) -> None:
    assert counts(case.folded) == case.real.left
    after = case.report.after.by_type
    assert (after.get("BatchNorm", 0), after.get("Scale", 0)) == case.real.left
    assert len([stay for stay in case.report.stayed if stay.reason]) == sum(case.real.left)
    assert len(case.report.stayed) == sum(case.real.left)


def test_the_text_changes_in_what_the_fold_needs_alone(case: Case) -> None:
    check_text(case.original, case.folded, case.report)


def test_untouched_weights_are_the_same_bytes(case: Case) -> None:
    assert check_weights(case.original, case.folded, case.report) > 0
    if not case.real.folds:
        assert case.original.caffemodel.read_bytes() == case.folded.caffemodel.read_bytes()
        assert case.original.prototxt.read_bytes() == case.folded.prototxt.read_bytes()


def test_folding_again_changes_nothing(case: Case) -> None:
    again = Net(case.folder / "again.prototxt", case.folder / "again.caffemodel")
    report = caffe_fold.fold(
        case.folded.prototxt, case.folded.caffemodel, again.prototxt, again.caffemodel
    )
    assert not report.folded + report.merged + report.removed
    assert again.prototxt.read_bytes() == case.folded.prototxt.read_bytes()
    assert again.caffemodel.read_bytes() == case.folded.caffemodel.read_bytes()


# ---- The values ----


def require(verdict: frozenset[str] | str, engine: str) -> frozenset[str]:
    """Return the types that an engine does not know; skip where it cannot run the net."""
    if isinstance(verdict, str):
        pytest.skip(f"{engine}: {verdict}.")
    return verdict


def both(case: Case, known: frozenset[str], unknown: frozenset[str], engine: str) -> list[Adapted]:
    """Return both nets as an engine can run them, cut off where the table says so alone."""
    nets = {"original": case.original, "folded": case.folded}
    inputs = case.inputs()
    found = [
        adapted(net, known, inputs, case.folder / engine / key, engine == "caffe")
        for key, net in nets.items()
    ]
    assert all(each.unknown == unknown for each in found)
    return found


@pytest.mark.slow
def test_the_evaluator_finds_the_same_values(case: Case) -> None:
    before, after = (by_evaluator(net, case.inputs(), True) for net in (case.original, case.folded))
    layers = after.net.layers if after.net else ()
    assert {layer.type for layer in layers if layer.type not in FORWARD and layer.bottoms} == (
        case.real.evaluator
    )
    cut = frozenset(layer.name for layer in layers if set(layer.tops) & after.unknown)
    # In float64 only the rounding of the folded weights is left.
    tolerance = 1e-5 if case.real.tolerance < 1e-3 else case.real.tolerance
    judge(before, after, fold_points(case.report), tolerance, cut)


@pytest.mark.oracle
def test_real_caffe_finds_the_same_values(case: Case) -> None:
    unknown = require(case.real.caffe, "real Caffe")
    nets = both(case, CAFFE, unknown, "caffe")
    try:
        before, after = by_caffe([each.net for each in nets], case.inputs())
    except engines.Unavailable as reason:
        pytest.skip(str(reason))
    judge(before, after, fold_points(case.report), case.real.tolerance, nets[1].cut)


@pytest.mark.oracle
def test_opencv_finds_the_same_values(case: Case) -> None:
    unknown = require(case.real.opencv, "OpenCV")
    nets = both(case, OPENCV, unknown, "opencv")
    try:
        before, after = (by_opencv(each.net, case.inputs()) for each in nets)
    except engines.Unavailable as reason:
        pytest.skip(str(reason))
    judge(before, after, fold_points(case.report), case.real.tolerance, nets[1].cut)
