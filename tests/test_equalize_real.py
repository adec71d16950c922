"""Real nets, equalised: OpenCV computes what it did, and the ranges get better."""

from __future__ import annotations

import importlib.util
import json
import statistics
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from test_equalize import mobilenet
from test_real_nets import REAL, files

import caffe_fold

SCRIPT = Path(__file__).parents[1] / "scripts" / "quantize_error.py"

# How many pairs, and by how much the median of largest/median range falls at least.
WANTED = {
    "landmark106": (25, 1.2),
    "residual_haoliu": (9, 1.4),
    "retinaface_mnet_nnie": (28, 1.7),
    "v1_cifar10_quick": (1, 1.1),
    "yoloface_500k_v2": (32, 1.4),
    "yolov3_lite_tusimple": (17, 2.5),
}


@pytest.mark.oracle
@pytest.mark.parametrize("name", WANTED)
def test_a_real_net(name: str, tmp_path: Path) -> None:
    pytest.importorskip("cv2", reason="OpenCV is not installed")
    net = files(REAL[name])
    if net is None:
        pytest.skip(f"{name} is not there")
    made = tmp_path / "equal.prototxt", tmp_path / "equal.caffemodel"
    report = caffe_fold.fold(
        net.prototxt, net.caffemodel, *made, equalize=True, verify={"engine": "opencv"}
    )
    found = report.equalized
    assert found is not None
    assert report.verified is not None
    pairs, gain = WANTED[name]
    assert len(found.pairs) == pairs
    before, after = (statistics.median(r) for r in zip(*(each.ratios for each in found.ranges)))
    assert before / after > gain
    # The scales of blobs stay in reason, though some layers have channels of 1e-20.
    assert min(pair.smallest for pair in found.pairs) > 1e-6
    again = caffe_fold.fold(
        *made, tmp_path / "x.prototxt", tmp_path / "x.caffemodel", equalize=True
    )
    assert again.equalized is not None
    assert again.equalized.pairs == ()


# ---- scripts/quantize_error.py ----


@pytest.fixture
def script() -> Iterator[ModuleType]:
    """The script as a module."""
    pytest.importorskip("cv2", reason="OpenCV is not installed")
    spec = importlib.util.spec_from_file_location("quantize_error", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


def test_int8_gains_what_the_script_says(
    script: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    model, weights = mobilenet().write(tmp_path)
    arguments = ["--pair", str(model), str(weights), "--json", "--samples", "3"]
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), *arguments])
    script.main()
    (row,) = json.loads(capsys.readouterr().out)
    assert (row["net"], row["pairs"], row["problem"]) == ("net", 6, "")
    assert row["snr"]["equalized"] > row["snr"]["folded"] + 6
    assert row["outputs"] == dict.fromkeys(("unfolded", "folded", "equalized"), "pw2")


def test_weights_of_linear_layers_are_rounded_and_nothing_else(
    script: ModuleType, tmp_path: Path
) -> None:
    from support.weights import read_weights

    model, weights = mobilenet(1).write(tmp_path)
    target = tmp_path / "int8.caffemodel"
    script.quantize(model, weights, target)
    pairs = list(zip(read_weights(weights), read_weights(target)))
    assert [entry.name for entry, _ in pairs if entry.type == "Convolution"] != []
    for before, after in pairs:
        for index, (one, other) in enumerate(zip(before.blobs, after.blobs)):
            old, new = one.array(), other.array()
            if before.type == "Convolution" and index == 0:
                step = np.abs(old).max() / 127
                np.testing.assert_allclose(new / step, np.rint(new / step), atol=1e-4)
                assert 0 < np.abs(old - new).max() <= step / 2 * 1.001
            else:
                np.testing.assert_array_equal(old, new)
