"""A folded net against its original in real engines: right ones pass, wrong ones fail."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.nets import Net

import caffe_fold
from caffe_fold import Verification, caffe_pb2
from caffe_fold.errors import EngineMissing
from caffe_fold.verification import opencv
from caffe_fold.verification.opencv_forward import Forward

MODELS = Path(__file__).resolve().parents[2] / "shared" / "models"

pytestmark = pytest.mark.oracle


@dataclass(frozen=True)
class Pairs:
    """The four files."""

    model: Path
    weights: Path
    folded_model: Path
    folded_weights: Path

    def verify(self, **options: object) -> Verification:
        files = (self.model, self.weights, self.folded_model, self.folded_weights)
        try:
            return caffe_fold.verify(*files, **options)  # type: ignore[arg-type]
        except EngineMissing as reason:
            pytest.skip(str(reason))

    def spoil(self, layer: str, blob: int, change: Callable[[np.ndarray], None]) -> None:
        """Change a blob of the folded weights."""
        net = caffe_pb2.NetParameter.FromString(self.folded_weights.read_bytes())
        for found in net.layer:
            if found.name == layer:
                proto = found.blobs[blob]
                values = np.array(proto.data, np.float32).reshape(tuple(proto.shape.dim))
                change(values)
                proto.data[:] = values.ravel().tolist()
        self.folded_weights.write_bytes(net.SerializeToString())


def folded(net: Net, folder: Path, as_if: Net | None = None) -> Pairs:
    """Fold a net; or give it the fold of another, as if that were its own."""
    files = net.write(folder, "net")
    source = files if as_if is None else as_if.write(folder, "other")
    pair = Pairs(*files, folder / "f.prototxt", folder / "f.caffemodel")
    caffe_fold.fold(*source, pair.folded_model, pair.folded_weights)
    return pair


def chain(factor: float = 999.98236, eps: str = "1e-5", seed: int = 3) -> Net:
    """A convolution, a deconvolution and an InnerProduct, each with its run."""
    net = Net(seed=seed)
    net.input("data", (1, 3, 8, 8))
    params = f"use_global_stats: true eps: {eps}"
    net.conv("conv", "data", 3, 4, pad=1, bias=False)
    net.batch_norm("bn1", "conv", 4, params=params, factor=factor)
    net.scale("scale1", "conv", 4)
    net.relu("relu1", "conv")
    net.deconv("deconv", "conv", 4, 4, stride=2)
    net.batch_norm("bn2", "deconv", 4, top="norm2", params=params, factor=factor)
    net.scale("scale2", "norm2", 4, top="out2")
    net.relu("relu2", "out2")
    net.inner_product("ip", "out2", 4 * 17 * 17, 5)
    net.batch_norm("bn3", "ip", 5, params=params, factor=factor)
    net.scale("scale3", "ip", 5)
    return net


# ---- Right ----


def test_a_folded_net_passes(tmp_path: Path) -> None:
    result = folded(chain(), tmp_path).verify(engine="opencv")
    assert result.passed
    assert result.how == "whole"
    assert [blob.layer for blob in result.blobs if not blob.passed] == []
    stands_for = {blob.layer: blob.stands_for for blob in result.blobs}
    assert stands_for == {
        "conv": ("bn1", "scale1"),
        "relu1": (),
        "deconv": ("bn2", "scale2"),
        "relu2": (),
        "ip": ("bn3", "scale3"),
    }
    assert result.coverage.compared == result.coverage.layers == 5
    assert result.coverage.folds == 3


@pytest.mark.usefixtures("real_caffe")
def test_real_caffe_says_the_same(tmp_path: Path) -> None:
    result = folded(chain(), tmp_path).verify(engine="caffe")
    assert result.passed
    assert result.engine.startswith("Caffe")
    assert len(result.blobs) == 5


def test_a_run_that_went_forward_in_place_leaves_a_name_not_comparable(tmp_path: Path) -> None:
    net = Net()
    net.input("data", (1, 3, 8, 8))
    net.batch_norm("bn", "data", 3)
    net.scale("scale", "data", 3)
    net.conv("conv", "data", 3, 4)
    result = folded(net, tmp_path).verify(engine="opencv")
    assert result.passed
    assert [(blob.layer, blob.stands_for) for blob in result.blobs] == [("conv", ("bn", "scale"))]
    (name,) = result.incomparable
    assert name.blob == "data"
    assert "'scale'" in name.reason


def test_two_readers_may_take_the_same_run_in(tmp_path: Path) -> None:
    net = Net()
    net.input("data", (1, 3, 8, 8))
    net.relu("relu", "data", top="relu")
    net.batch_norm("bn", "relu", 3, top="bn")
    net.conv("left", "bn", 3, 4)
    net.conv("right", "bn", 3, 2, kernel=1)
    net.layer("odd", "Odd", ["left"], "odd")
    result = folded(net, tmp_path).verify(engine="opencv")
    assert result.passed
    assert result.how == "parts"
    alone = {blob.layer for blob in result.blobs if blob.section == "fold"}
    assert alone == {"left", "right"}
    assert result.coverage.not_run == {"Odd": 1}


# ---- Wrong ----


def test_one_wrong_weight_fails(tmp_path: Path) -> None:
    pair = folded(chain(), tmp_path)

    def change(values: np.ndarray) -> None:
        values[2, 1, 0, 2] += 0.01 * np.abs(values).max()

    pair.spoil("conv", 0, change)
    result = pair.verify(engine="opencv")
    assert not result.passed
    assert "conv" in {blob.layer for blob in result.blobs if not blob.passed}


def test_a_wrong_eps_fails(tmp_path: Path) -> None:
    result = folded(chain(), tmp_path, chain(eps="1e-3")).verify(engine="opencv")
    assert not result.passed
    assert {"conv", "deconv", "ip"} <= {blob.layer for blob in result.blobs if not blob.passed}


def test_a_dropped_factor_fails(tmp_path: Path) -> None:
    other = chain()
    for layer in other.layers:
        if layer.type == "BatchNorm":
            layer.blobs[2][:] = 1
    result = folded(chain(), tmp_path, other).verify(engine="opencv")
    assert not result.passed
    assert {"conv", "deconv", "ip"} <= {blob.layer for blob in result.blobs if not blob.passed}


def test_a_swapped_channel_axis_fails(tmp_path: Path) -> None:
    net = chain()
    pair = folded(net, tmp_path)
    (original,) = (layer.blobs[0] for layer in net.layers if layer.name == "deconv")

    def swap(values: np.ndarray) -> None:
        scale = (values / original)[0, :, 0, 0]
        values[:] = original * scale[:, None, None, None]

    pair.spoil("deconv", 0, swap)
    result = pair.verify(engine="opencv")
    assert [blob.layer for blob in result.blobs if blob.layer == "conv" and blob.passed]
    assert "deconv" in {blob.layer for blob in result.blobs if not blob.passed}


def test_unfolded_weights_under_a_folded_text_fail(tmp_path: Path) -> None:
    net = Net()
    net.input("data", (1, 3, 8, 8))
    net.conv("conv", "data", 3, 4)
    net.batch_norm("bn", "conv", 4)
    pair = folded(net, tmp_path)
    pair.folded_weights.write_bytes(pair.weights.read_bytes())
    assert not pair.verify(engine="opencv").passed


def test_a_wrong_weight_fails_in_a_net_that_is_cut(tmp_path: Path) -> None:
    net = chain()
    net.layer("odd", "Odd", ["ip"], "odd")
    pair = folded(net, tmp_path)
    assert pair.verify(engine="opencv").passed
    pair.spoil("ip", 1, lambda values: np.negative(values, out=values))
    result = pair.verify(engine="opencv")
    assert result.how == "parts"
    failed = {(blob.layer, blob.section) for blob in result.blobs if not blob.passed}
    assert failed == {("ip", "parts"), ("ip", "fold")}


# ---- Forks ----


def test_types_of_forks_run_as_their_standard_equals(tmp_path: Path) -> None:
    net = Net()
    net.input("data", (1, 3, 8, 8))
    net.conv("conv", "data", 3, 4, bias=False)
    net.layer("bn", "BN", "conv", "bn", blobs=[net.rng.uniform(0.5, 2, 4) for _ in range(4)])
    net.relu("relu", "bn", top="relu")
    net.conv("dw", "relu", 4, 4, group=4, type="DepthwiseConvolution")
    net.layers[-1].text = net.layers[-1].text.replace("group: 4", "")
    net.batch_norm("bn2", "dw", 4)
    result = folded(net, tmp_path).verify(engine="opencv")
    assert result.passed
    assert result.how == "rewritten"
    assert {blob.layer: blob.stands_for for blob in result.blobs} == {
        "conv": ("bn",),
        "relu": (),
        "dw": ("bn2",),
    }


def test_a_bn_with_a_wrong_eps_fails(tmp_path: Path) -> None:
    def net(eps: float) -> Net:
        made = Net()
        made.input("data", (1, 3, 8, 8))
        made.conv("conv", "data", 3, 4)
        blobs = [made.rng.uniform(0.5, 2, 4) for _ in range(4)]
        made.layer("bn", "BN", "conv", "bn", f"bn_param {{ eps: {eps} }}", blobs)
        return made

    assert folded(net(1e-5), tmp_path).verify(engine="opencv").passed
    assert not folded(net(1e-5), tmp_path, net(1e-2)).verify(engine="opencv").passed


# ---- Real nets ----


class Watched:
    """A net of OpenCV, and whether it was told to fold by itself."""

    def __init__(self, net: Any, fuses: list[bool]) -> None:
        self.net, self.fuses = net, fuses

    def __getattr__(self, name: str) -> Any:
        return getattr(self.net, name)

    def enableFusion(self, fuses: bool) -> None:  # the name is OpenCV's
        self.fuses.append(fuses)
        self.net.enableFusion(fuses)


def test_opencv_folds_by_itself_where_time_is_taken_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cv2 = pytest.importorskip("cv2")
    pair, read = folded(chain(), tmp_path), cv2.dnn.readNetFromCaffe
    fuses: list[bool] = []
    monkeypatch.setattr(cv2.dnn, "readNetFromCaffe", lambda *files: Watched(read(*files), fuses))
    # In this process, where it can be watched.
    monkeypatch.setattr(opencv, "_asked", lambda name, *given: getattr(Forward(), name)(*given))
    result = pair.verify(engine="opencv", rounds=1)
    assert result.passed
    assert result.timing is not None
    assert fuses == [False, False, True, True]


@dataclass(frozen=True)
class Real:
    """A real net: its files, and how it can be run. A smaller input where the net's is large."""

    model: str
    weights: str
    how: str = "whole"
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    not_run: dict[str, int] = field(default_factory=dict)
    needs_caffe: bool = False


REAL = {
    "hyperlpr_finemapping": Real(
        "HorizonalFinemapping.prototxt", "HorizonalFinemapping.caffemodel"
    ),
    "hyperlpr_segfree_inception": Real(
        "SegmenationFree-Inception.prototxt", "SegmenationFree-Inception.caffemodel"
    ),
    "landmark106": Real("landmark106.prototxt", "landmark106.caffemodel"),
    "open_nsfw_resnet50": Real("deploy.prototxt", "resnet_50_1by2_nsfw.caffemodel"),
    "openvino_face_retail_0044": Real("deploy.prototxt", "face-detection-retail-0044.caffemodel"),
    "res10_ssd_fp32": Real("deploy.prototxt", "res10_300x300_ssd_iter_140000.caffemodel"),
    "residual_haoliu": Real(
        "deploy.prototxt", "residual.caffemodel", "parts", {"data": (1, 3, 224, 224)}
    ),
    "resnet20_nhzlx": Real(
        "res20_cifar_train_test.prototxt",
        "ResNet_20.caffemodel",
        "parts",
        {"Data1": (2, 3, 28, 28)},
        {"SoftmaxWithLoss": 1, "Accuracy": 1},
    ),
    "retinaface_mnet_nnie": Real(
        "mnet.prototxt", "mnet.caffemodel", shapes={"data": (1, 3, 256, 320)}
    ),
    "v1_cifar10_quick": Real("cifar10_quick.prototxt", "cifar10_quick_iter_5000.caffemodel"),
    "yoloface_500k_v2": Real(
        "yoloface-500k-v2.prototxt",
        "yoloface-500k-v2.caffemodel",
        "parts",
        {"data": (1, 3, 96, 128)},
        {"Upsample": 2},
    ),
    "yolov3_lite_tusimple": Real(
        "mobilenet_yolov3_lite_deploy.prototxt",
        "mobilenet_yolov3_lite_deploy_iter_50000.caffemodel",
        "rewritten",
        {"data": (1, 3, 192, 256)},
    ),
    "yolov3_nano_mnv2_voc": Real(
        "MobileNetV2-YOLOv3-Nano-voc.prototxt",
        "MobileNetV2-YOLOv3-Nano-voc.caffemodel",
        "parts",
        {"data": (1, 3, 128, 128)},
        {"Upsample": 1},
    ),
}


def real_pair(name: str, folder: Path) -> Pairs:
    real = REAL[name]
    source = MODELS / name
    files = source / real.model, source / real.weights
    if not all(path.exists() for path in files):
        pytest.skip(f"{name} is not in {MODELS}.")
    pair = Pairs(*files, folder / "f.prototxt", folder / "f.caffemodel")
    caffe_fold.fold(*files, pair.folded_model, pair.folded_weights)
    return pair


@pytest.mark.parametrize("name", REAL)
def test_a_real_net_verifies(name: str, tmp_path: Path) -> None:
    real = REAL[name]
    result = real_pair(name, tmp_path).verify(engine="opencv", input_shapes=real.shapes)
    assert result.passed, result.to_text()
    assert result.how == real.how
    cover = result.coverage
    assert cover.not_run == real.not_run
    assert cover.compared == cover.layers - sum(real.not_run.values())
    assert {blob.layer for blob in result.blobs if blob.problem} == set()
    if real.how == "parts":
        assert cover.folds_alone == cover.folds > 0


@pytest.mark.parametrize("name", ["hyperlpr_segfree_inception", "landmark106", "residual_haoliu"])
@pytest.mark.usefixtures("real_caffe")
def test_a_real_net_verifies_in_real_caffe(name: str, tmp_path: Path) -> None:
    result = real_pair(name, tmp_path).verify(engine="caffe", input_shapes=REAL[name].shapes)
    assert result.passed, result.to_text()
    folds = {blob.layer for blob in result.blobs if blob.stands_for}
    assert len(folds) == result.coverage.folds


@pytest.mark.usefixtures("real_caffe")
def test_auto_takes_the_engine_that_runs_a_net_whole(tmp_path: Path) -> None:
    pair = real_pair("resnet20_nhzlx", tmp_path)
    result = pair.verify(input_shapes={"Data1": (2, 3, 28, 28)})
    assert result.how == "rewritten"
    assert result.engine.startswith("Caffe")
    assert result.coverage.not_run == {}


@pytest.mark.parametrize("name", ["residual_haoliu", "yoloface_500k_v2"])
def test_a_net_that_no_engine_runs_whole_says_what_was_covered(name: str, tmp_path: Path) -> None:
    result = real_pair(name, tmp_path).verify(input_shapes=REAL[name].shapes)
    assert result.passed
    text = result.to_text()
    cover = result.coverage
    assert f"covered {cover.compared} of {cover.layers} layers of the folded net" in text
    assert f"{cover.folds} of {cover.folds} folds alone" in text
    assert "in parts" in text.splitlines()[-1]
    assert ("not run: 2 Upsample" in text) == (name == "yoloface_500k_v2")


def test_a_deploy_net_is_verified_against_the_deploy_net_of_the_original(tmp_path: Path) -> None:
    files = trained(tmp_path)
    pair = Pairs(*files, tmp_path / "f.prototxt", tmp_path / "f.caffemodel")
    shapes = {"data": (1, 3, 8, 8)}
    report = caffe_fold.fold(
        *files, pair.folded_model, pair.folded_weights, deploy=True, input_shapes=shapes, verify={}
    )
    assert report.verified is not None
    assert report.verified.passed
    result = pair.verify(engine="opencv", input_shapes=shapes)
    assert result.passed
    assert [name.blob for name in result.incomparable] == ["prob"]


def trained(folder: Path) -> tuple[Path, Path]:
    """A net with a data layer and a loss."""
    net = Net()
    net.layer("d", "Data", [], ["data", "label"], "data_param { batch_size: 4 }")
    net.conv("conv", "data", 3, 4)
    net.batch_norm("bn", "conv", 4)
    net.inner_product("ip", "conv", 4 * 6 * 6, 5)
    net.layer("prob", "SoftmaxWithLoss", ["ip", "label"], "loss")
    return net.write(folder)


def test_weights_in_hdf5_are_verified(tmp_path: Path) -> None:
    pytest.importorskip("h5py", reason="h5py is not installed.")
    from hdf5_files import write_h5

    net = chain()
    prototxt, _ = net.write(tmp_path)
    weights = write_h5(net, tmp_path / "net.caffemodel.h5")
    pair = Pairs(prototxt, weights, tmp_path / "f.prototxt", tmp_path / "f.caffemodel.h5")
    report = caffe_fold.fold(prototxt, weights, pair.folded_model, pair.folded_weights, verify={})
    assert report.verified is not None
    assert report.verified.weights == str(weights)
    assert pair.verify(engine="opencv").passed
