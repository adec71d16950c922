"""The benchmark: its nets fold, its peers fold alike, and what it says of its numbers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import astuple
from pathlib import Path

import bench_nets
import bench_report
import bench_straightforward
import numpy as np
import numpy.typing as npt
import pytest
from bench_report import Measured, Run

from caffe_fold import caffe_pb2, fold

pytestmark = pytest.mark.any_version

SCRIPTS = Path(__file__).resolve().parents[1] / "scripts"


def blobs(weights: Path) -> dict[str, list[npt.NDArray[np.float32]]]:
    """Return the blobs of the layers that have some."""
    net = caffe_pb2.NetParameter.FromString(weights.read_bytes())
    values = bench_straightforward.values
    return {layer.name: list(map(values, layer.blobs)) for layer in net.layer if layer.blobs}


def assert_alike(wanted: Path, found: Path) -> None:
    left, right = blobs(wanted), blobs(found)
    assert list(left) == list(right)
    for name, values in left.items():
        for a, b in zip(values, right[name]):
            np.testing.assert_allclose(b, a, rtol=1e-5, atol=1e-5 * np.abs(a).max(), err_msg=name)
        assert len(values) == len(right[name])


@pytest.mark.parametrize(("name", "convolutions"), [("resnet50", 53), ("vgg16_bn", 13)])
def test_the_nets_fold_and_the_straightforward_way_gives_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, convolutions: int
) -> None:
    bench_nets.write(name, tmp_path, tiny=True)
    model, weights = tmp_path / f"{name}.prototxt", tmp_path / f"{name}.caffemodel"
    folded, peer = tmp_path / "folded.caffemodel", tmp_path / "peer.caffemodel"
    report = fold(model, weights, tmp_path / "folded.prototxt", folded)
    for type in ("BatchNorm", "Scale"):
        assert report.before.by_type[type] == convolutions
        assert type not in report.after.by_type
    monkeypatch.setattr(sys, "argv", ["", str(weights), str(peer)])
    bench_straightforward.main()
    assert_alike(folded, peer)


@pytest.mark.oracle
def test_the_classic_way_gives_the_same(tmp_path: Path, real_caffe: None) -> None:
    bench_nets.write("resnet50", tmp_path, tiny=True)
    model, weights = tmp_path / "resnet50.prototxt", tmp_path / "resnet50.caffemodel"
    folded, peer = tmp_path / "folded.caffemodel", tmp_path / "peer.caffemodel"
    fold(model, weights, tmp_path / "folded.prototxt", folded)
    python = os.environ["CAFFE_FOLD_CAFFE_PYTHON"]
    files = (model, weights, tmp_path / "folded.prototxt", peer)
    subprocess.run([python, SCRIPTS / "bench_pycaffe.py", *files], check=True, capture_output=True)
    assert_alike(folded, peer)


def test_the_nets_have_the_sizes_that_they_are_named_for() -> None:
    sizes = {name: bench_nets.size_of(name) / 1e6 for name in bench_nets.MADE}
    assert sizes == pytest.approx({"resnet50": 102, "vgg16_bn": 554, "wide_2500mb": 2540}, rel=0.01)
    for megabytes in bench_nets.FIT_SIZES:
        found = bench_nets.size_of(bench_nets.fit_net(megabytes)) / 1e6
        assert found == pytest.approx(megabytes, rel=0.05)
    assert sizes["wide_2500mb"] * 1e6 > 1 << 31


def test_the_script_runs_and_leaves_its_nets_and_nothing_else(tmp_path: Path) -> None:
    answer, folder = tmp_path / "bench.json", tmp_path / "nets"
    command = [sys.executable, str(SCRIPTS / "bench.py"), "--tiny", "--nets", "vgg16_bn"]
    command += ["--rounds", "1", "--no-fit", "--folder", str(folder), "--json", str(answer)]
    environment = {k: v for k, v in os.environ.items() if k != "CAFFE_FOLD_CAFFE_PYTHON"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert "vgg16_bn_tiny, 2 MB  fold" in done.stdout
    names = sorted(path.name for path in folder.iterdir())
    assert names == ["vgg16_bn_tiny.caffemodel", "vgg16_bn_tiny.prototxt"]
    found = json.loads(answer.read_text("utf-8"))
    assert found["machine"].keys() >= {"cores", "python", "numpy", "protobuf", "click"}
    (net,) = found["nets"]
    assert list(net["runs"]) == ["fold", "cp", "start", "straightforward"]
    for command, runs in net["runs"].items():
        assert runs == [net["medians"][command]]
        assert all(number > 0 for number in runs[0].values())
    assert net["ratios"].keys() == {
        "wall_over_start_and_cp",
        "cpu_over_start_and_cp",
        "faster_than_straightforward",
        "less_cpu_than_straightforward",
        "peak_mib",
    }


def measured(name: str, megabytes: int, **walls: float) -> Measured:
    runs = {command: [Run(wall, 2 * wall, 70.0)] for command, wall in walls.items()}
    return Measured(name, megabytes * 1_000_000, runs)


def test_ratios_are_set_beside_their_targets() -> None:
    net = measured("vgg16_bn", 554, fold=1.5, cp=0.6, start=0.4, classic=15.0)
    net.cannot["straightforward"] = "it cannot"
    found = {key: ratio.texts for key, ratio in bench_report.ratios(net).items()}
    assert found == {
        "wall_over_start_and_cp": ("1.50", "<= 1.3", "missed"),
        "cpu_over_start_and_cp": ("1.50", "", ""),
        "faster_than_classic": ("10.00", ">= 8", "met"),
        "less_cpu_than_classic": ("10.00", "", ""),
        "peak_mib": ("70.00", "<= 64", "missed"),
    }
    assert "vgg16_bn: straightforward cannot: it cannot" in bench_report.tables([net])


def test_the_fit_finds_a_line_and_says_how_far_off_it_is() -> None:
    line = bench_report.fit([0.001, 0.1, 2.0], [0.301, 0.4, 2.3])
    assert astuple(line) == pytest.approx((0.3, 1.0, 0.0))
    bent = bench_report.fit([1.0, 2.0, 3.0], [1.0, 3.0, 3.0])
    assert bent.residual > 0.1


def test_the_fit_is_set_beside_that_of_cp() -> None:
    nets = [measured("a", 100, fold=0.5, cp=0.1), measured("b", 1100, fold=2.5, cp=1.1)]
    text = bench_report.fit_table(bench_report.fits(nets), nets)
    assert text.splitlines()[2].split() == "wall fold 0.300 2.000 2.00 0%".split()
