"""Equalising through files: number types, formats, options, the proof and ``verify``."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from equalizing import equalize_net
from support.command import Call
from support.nets import Net
from support.weights import read_weights
from support.wire import BlobFormat

import caffe_fold
from caffe_fold.quantization import check_equalized, equalize
from caffe_fold.quantization.maxima import Maxima

C, MID, OUT = 3, 6, 4


def small_net(v1: bool = False, format: BlobFormat | None = None, norm: bool = True) -> Net:
    """Three layers in a chain, uneven, the second behind a BatchNorm where there may be one."""
    net = Net(seed=2, v1=v1)
    net.input("data", (1, C, 8, 8))
    net.conv("conv1", "data", C, MID)
    if norm:
        net.batch_norm("conv1/bn", "conv1", MID).blobs[1] *= 10.0 ** net.rng.uniform(-3, 2, MID)
    net.relu("relu1", "conv1")
    net.conv("conv2", "conv1", MID, MID).blobs[0] *= 2.0 ** net.rng.uniform(-3, 3, (MID, 1, 1, 1))
    net.relu("relu2", "conv2", "relu2")
    net.inner_product("ip", "relu2", MID * 16, OUT)
    for layer in net.layers:
        if layer.blobs and format is not None:
            layer.format = format
    return net


PAIRS = [("conv1", "conv2"), ("conv2", "ip")]


@pytest.mark.parametrize(
    "format",
    [
        BlobFormat("double"),
        BlobFormat("raw_float"),
        BlobFormat("raw_double"),
        BlobFormat("data", unpacked=True),
        BlobFormat("data", legacy=True),
        BlobFormat("data", runs=3),
    ],
    ids=["double", "raw_float", "raw_double", "unpacked", "legacy", "runs"],
)
def test_every_number_type_and_form(format: BlobFormat, tmp_path: Path) -> None:
    done = equalize_net(small_net(format=format), tmp_path)
    assert done.pairs == PAIRS
    old = {entry.name: entry for entry in read_weights(done.folded_weights)}
    for entry in read_weights(done.weights):
        for one, other in zip(old[entry.name].blobs, entry.blobs):
            assert one.array().dtype == other.array().dtype


def test_half_weights_are_balanced_to_a_factor_of_two(tmp_path: Path) -> None:
    net = small_net(format=BlobFormat("half"), norm=False)
    done = equalize_net(net, tmp_path, balance=2.01)
    assert done.pairs == PAIRS


def test_folded_weights_in_another_type(tmp_path: Path) -> None:
    """The layers that fold are written as half, and are scaled by powers of two."""
    done = equalize_net(
        small_net(), tmp_path, balance=2.03, tolerance=2e-3, weights_dtype="float16"
    )
    assert done.pairs == PAIRS


def test_v1_layers(tmp_path: Path) -> None:
    assert equalize_net(small_net(v1=True, norm=False), tmp_path).pairs == PAIRS


def write_hdf5(caffemodel: Path, target: Path, track_order: bool = False) -> Path:
    """The weights in HDF5, in float32."""
    import h5py

    with h5py.File(target, "w") as file:
        data = file.create_group("data", track_order=track_order)
        for entry in read_weights(caffemodel):
            group = data.create_group(entry.name, track_order=track_order)
            for index, blob in enumerate(entry.blobs):
                group[str(index)] = blob.array().astype("<f4")
    return target


def test_hdf5_weights(tmp_path: Path) -> None:
    h5py = pytest.importorskip("h5py", reason="h5py is not installed")
    model, caffemodel = small_net().write(tmp_path)
    weights = write_hdf5(caffemodel, tmp_path / "net.caffemodel.h5")
    binary = tmp_path / "binary.prototxt", tmp_path / "binary.caffemodel"
    hdf5 = tmp_path / "hdf5.prototxt", tmp_path / "hdf5.caffemodel.h5"
    wanted = caffe_fold.fold(model, caffemodel, *binary, equalize=True)
    report = caffe_fold.fold(model, weights, *hdf5, equalize=True)
    assert report.equalized == wanted.equalized
    assert report.equalized is not None
    assert len(report.equalized.pairs) == 2
    found = {entry.name: entry for entry in read_weights(binary[1])}
    with h5py.File(hdf5[1]) as file:
        for name in ("conv1", "conv2", "ip"):
            for index, blob in enumerate(found[name].blobs):
                values = file[f"data/{name}/{index}"][:]
                np.testing.assert_array_equal(values.ravel(), blob.array().ravel())
    left = {path.name for path in tmp_path.iterdir() if path.name.startswith(".")}
    assert left == set()


@pytest.mark.parametrize("track_order", [False, True])
def test_hdf5_weights_of_many_layers(track_order: bool, tmp_path: Path) -> None:
    """More than one node of a group's table of links holds; and again, from what was written."""
    h5py = pytest.importorskip("h5py", reason="h5py is not installed")
    net = Net()
    net.input("data", (1, C, 6, 6))
    for at in range(20):
        net.conv(f"conv{at}", f"conv{at - 1}" if at else "data", C, C, 1)
        net.batch_norm(f"bn{at}", f"conv{at}", C)
    model, caffemodel = net.write(tmp_path)
    weights = write_hdf5(caffemodel, tmp_path / "net.h5", track_order)
    made = tmp_path / "made.prototxt", tmp_path / "made.h5"
    report = caffe_fold.fold(model, weights, *made, equalize=True)
    assert report.equalized is not None
    assert len(report.equalized.pairs) == 19
    binary = tmp_path / "binary.prototxt", tmp_path / "binary.caffemodel"
    caffe_fold.fold(model, caffemodel, *binary, equalize=True)
    again = tmp_path / "again.prototxt", tmp_path / "again.h5"
    caffe_fold.fold(*made, *again, equalize=True)
    for path in (made[1], again[1]):
        with h5py.File(path) as file:
            names = ["data", *(f"conv{at}" for at in range(20))]
            assert list(file["data"]) == (names if track_order else sorted(names))
            for entry in read_weights(binary[1]):
                for index, blob in enumerate(entry.blobs):
                    values = file[f"data/{entry.name}/{index}"][:]
                    np.testing.assert_array_equal(values.ravel(), blob.array().ravel())


def test_scratch_files_are_beside_the_output(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a bare file name, too, and not in the system's temporary folder."""
    small_net().write(tmp_path)
    monkeypatch.chdir(tmp_path)
    elsewhere = tmp_path / "elsewhere"
    monkeypatch.setattr("tempfile.tempdir", str(elsewhere))  # not there, so not writable
    report = caffe_fold.fold("net.prototxt", "net.caffemodel", equalize=True)
    assert report.equalized is not None
    assert len(report.equalized.pairs) == 2


def test_big_layers_are_read_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pieces of any size, remembered or not, give the same."""
    from caffe_fold.quantization import maxima

    files = small_net().write(tmp_path)
    reports = []
    for piece, remembered in ((1 << 18, 1 << 24), (1 << 18, 0), (1, 0), (5, 1 << 24), (20, 0)):
        monkeypatch.setattr(maxima, "_PIECE", piece)
        monkeypatch.setattr(equalize, "_MEMORY", remembered)
        reports.append(caffe_fold.fold(*files, equalize=True).equalized)
    assert reports[0] is not None
    assert len(reports[0].pairs) == 2
    assert all(report == reports[0] for report in reports)


# ---- Options ----


def test_a_dry_run_reports_and_leaves_nothing(tmp_path: Path, call: Call) -> None:
    model, weights = small_net().write(tmp_path)
    there = set(tmp_path.iterdir())
    result = call("--model", model, "--weights", weights, "--equalize", "--dry-run", "--json")
    assert result.code == 0, result.err
    report = json.loads(result.out)
    assert not report["written"]
    assert [(p["first"], p["second"]) for p in report["equalized"]["pairs"]] == PAIRS
    assert set(tmp_path.iterdir()) == there


def equalized(tmp_path: Path, call: Call, *options: str) -> tuple[list[str | Path], dict[str, Any]]:
    """Fold with the command; gives the four files as options of ``verify``, and the report."""
    model, weights = small_net().write(tmp_path)
    result = call("--model", model, "--weights", weights, "--equalize", "--json", *options)
    assert result.code == 0, result.err
    (tmp_path / "report.json").write_text(result.out, "utf-8")
    report = json.loads(result.out)
    files = ["--model", model, "--weights", weights, "--folded-model", report["output_model"]]
    return [*files, "--folded-weights", report["output_weights"]], report


def test_the_report_in_json(tmp_path: Path, call: Call) -> None:
    _, report = equalized(tmp_path, call)
    found = report["equalized"]
    assert set(found) == {"pairs", "left", "ranges", "checked", "blobs"}
    assert set(found["pairs"][0]) == {"first", "second", "smallest", "largest", "blobs"}
    assert found["blobs"] == ["conv1", "conv2", "relu2"]
    assert [(left["layer"], left["code"]) for left in found["left"]] == [("ip", "net-output")]
    assert [found["layer"] for found in found["ranges"]] == ["conv1", "conv2", "ip"]
    assert found["checked"]["layers"] == 3
    assert 0 < found["checked"]["worst"] <= 1


@pytest.mark.parametrize("norm", [True, False])
def test_the_text_counts_what_was_proven(norm: bool, tmp_path: Path) -> None:
    """The fold's layers and then those of equalising; without any to fold, those alone."""
    report = caffe_fold.fold(*small_net(norm=norm).write(tmp_path), equalize=True)
    lines = [line for line in report.to_text().splitlines() if line.startswith("checked")]
    ends = [rf"{n} {what} layers re-read and compared, largest difference 0\.\d\d of what rounding "
            "allows" for n, what in ((1, "changed"), (3, "equalized"))]  # fmt: skip
    wanted = ends if norm else ends[1:]
    assert len(lines) == len(wanted)
    assert all(re.fullmatch(f"checked: {end}", line) for end, line in zip(wanted, lines))


def test_a_proof_of_no_layer_is_told(tmp_path: Path) -> None:
    net = Net()
    net.input("data", (1, C, 8, 8))
    net.conv("conv", "data", C, MID)
    report = caffe_fold.fold(*net.write(tmp_path), equalize=True)
    assert "checked: 0 changed layers re-read and compared" in report.to_text()


def test_without_the_proof(tmp_path: Path, call: Call) -> None:
    _, report = equalized(tmp_path, call, "--no-check")
    assert report["checked"] is None
    assert report["equalized"]["checked"] is None
    assert len(report["equalized"]["pairs"]) == 2


def test_verify_by_hand(tmp_path: Path, call: Call) -> None:
    pytest.importorskip("cv2", reason="OpenCV is not installed")
    files, report = equalized(tmp_path, call)
    assert call("verify", *files).code == 1
    skips = [word for blob in report["equalized"]["blobs"] for word in ("--skip", blob)]
    assert call("verify", *files, *skips).code == 0
    result = call("verify", *files, "--report", tmp_path / "report.json")
    assert result.code == 0, result.out
    assert call("verify", *files, *skips[2:]).code == 1  # relu1 alone is enough to fail


def test_a_report_of_a_fold_alone_skips_nothing(tmp_path: Path, call: Call) -> None:
    pytest.importorskip("cv2", reason="OpenCV is not installed")
    files, report = equalized(tmp_path, call)
    report["equalized"] = None
    (tmp_path / "report.json").write_text(json.dumps(report), "utf-8")
    assert call("verify", *files, "--report", tmp_path / "report.json").code == 1


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"equalized": 3}', '{"equalized": {"blobs": [1]}}']
)
def test_a_report_that_is_none(text: str, tmp_path: Path, call: Call) -> None:
    files, _ = equalized(tmp_path, call)
    path = tmp_path / "other.json"
    path.write_text(text, "utf-8")
    result = call("verify", *files, "--report", path)
    assert (result.code, result.out) == (2, "")
    assert re.fullmatch(r"error: .*other\.json: not the report of a fold.*\n", result.err)
    result = call("verify", *files, "--report", tmp_path / "none.json")
    assert (result.code, "cannot be read" in result.err) == (2, True)


def test_fold_verifies_and_says_what_it_skips(tmp_path: Path, call: Call) -> None:
    pytest.importorskip("cv2", reason="OpenCV is not installed")
    model, weights = small_net().write(tmp_path)
    result = call("--model", model, "--weights", weights, "--equalize", "--verify")
    assert result.code == 0, result.err
    assert re.search(r"verified: \d+ blobs? agrees?.*; skipped 3 of another scale", result.out)


def test_layers_whose_blobs_are_skipped_are_not_said_not_to_run(tmp_path: Path, call: Call) -> None:
    pytest.importorskip("cv2", reason="OpenCV is not installed")
    net = small_net()
    model, weights = net.write(tmp_path)
    report = caffe_fold.fold(model, weights, equalize=True, verify={})
    assert report.verified is not None
    assert report.equalized is not None
    assert report.verified.coverage.not_run == {}
    assert report.verified.coverage.skipped == {"Convolution": 2, "ReLU": 2}
    folded = report.output_model, report.output_weights
    page = tmp_path / "page.html"
    found = caffe_fold.verify(model, weights, *folded, skip=report.equalized.blobs, html=page)
    assert found.coverage == report.verified.coverage
    assert "not run" not in found.to_text()
    assert "as folding alone makes them" in page.read_text("utf-8")


def test_fold_verifies_in_parts_what_no_engine_runs_whole(tmp_path: Path) -> None:
    """A fold beside a pair is not run alone, where it would get another input."""
    pytest.importorskip("cv2", reason="OpenCV is not installed")
    net = small_net()
    net.layer("odd", "NoSuchLayer", "data", "odd")
    net.conv("a", "odd", C, MID)
    net.batch_norm("a/bn", "a", MID)
    net.relu("a/relu", "a")
    net.conv("b", "a", MID, MID).blobs[0] *= 20
    net.batch_norm("b/bn", "b", MID)
    files = net.write(tmp_path)
    report = caffe_fold.fold(*files, equalize=True, verify={"engine": "opencv"})
    assert report.equalized is not None
    assert ("a", "b") in [(pair.first, pair.second) for pair in report.equalized.pairs]
    assert report.verified is not None
    assert report.verified.how == "parts"


def test_a_net_of_which_nothing_can_be_compared(tmp_path: Path) -> None:
    """An engine could run the folds alone, and each lies in a pair; what makes the net's
    input is not there."""
    pytest.importorskip("cv2", reason="OpenCV is not installed")
    net = small_net()
    net.layers[-1].in_text = False
    net.conv("last", "relu2", MID, OUT)
    net.layer("odd", "NoSuchLayer", "last", "odd")
    net.layers[0].in_text = False
    files = net.write(tmp_path)
    there = set(tmp_path.iterdir())
    with pytest.raises(caffe_fold.CaffeFoldError, match="nothing of the folded net could be"):
        caffe_fold.fold(*files, equalize=True, verify={"engine": "opencv"})
    assert set(tmp_path.iterdir()) == there


# ---- The proof ----


def sabotaged(monkeypatch: pytest.MonkeyPatch, change: Any) -> None:
    """Change the weights between writing and proving."""
    prove = equalize._prove

    def changed(files: Any, plan: Any) -> Any:
        change(files.target)
        return prove(files, plan)

    monkeypatch.setattr(equalize, "_prove", changed)


@pytest.mark.parametrize("layer", ["conv1", "ip", "other"])
def test_the_proof_sees_a_wrong_number(
    layer: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    net = small_net()
    net.conv("other", "data", C, OUT)
    files = net.write(tmp_path)
    there = set(tmp_path.iterdir())

    def change(target: str) -> None:
        (entry,) = [entry for entry in read_weights(target) if entry.name == layer]
        number = np.float32(entry.blobs[0].array().ravel()[7]).tobytes()
        data = Path(target).read_bytes()
        assert data.count(number) == 1
        Path(target).write_bytes(data.replace(number, np.float32(0.123).tobytes()))

    sabotaged(monkeypatch, change)
    wanted = "equalising changed bytes of 'other'"
    if layer != "other":
        wanted = f"the written layer '{layer}' is wrong"
    with pytest.raises(caffe_fold.CheckError, match=wanted):
        caffe_fold.fold(*files, equalize=True)
    assert set(tmp_path.iterdir()) == there


def test_the_proof_sees_factors_that_do_not_meet(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each layer is as planned, and the plan is wrong: the chain tells."""
    folds = equalize._folds

    def wrong(*arguments: Any) -> Any:
        first, *others = folds(*arguments)
        scale = first.layers_behind[0]
        map = scale.map._replace(scale=scale.map.scale[::-1])
        constants = scale.constants._replace(blobs=(map.scale,))
        scale = scale._replace(map=map, constants=constants)
        return [first._replace(behind=map, layers_behind=(scale,)), *others]

    monkeypatch.setattr(equalize, "_folds", wrong)
    with pytest.raises(caffe_fold.CheckError, match="'conv1' to 'ip'"):
        caffe_fold.fold(*small_net().write(tmp_path), equalize=True)


def test_an_activation_that_is_not_homogeneous_would_be_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(check_equalized, "_activated", lambda x, slope: np.clip(x, 0, 0.05))
    with pytest.raises(caffe_fold.CheckError, match="'conv1' to 'ip'"):
        caffe_fold.fold(*small_net().write(tmp_path), equalize=True)


def test_an_interrupt_leaves_nothing(
    tmp_path: Path, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, weights = small_net().write(tmp_path)
    there = set(tmp_path.iterdir())

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Maxima, "of_inputs", interrupted)
    assert call("--model", model, "--weights", weights, "--equalize").code == 130
    assert set(tmp_path.iterdir()) == there
