"""The command line of the verification: verify, and fold --verify."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from support.nets import Net

from caffe_fold import cli

pytestmark = pytest.mark.oracle

Patch = pytest.MonkeyPatch
Output = pytest.CaptureFixture[str]
Run = Callable[..., "tuple[int, str, str]"]

NAMES = ("net.prototxt", "net.caffemodel", "f.prototxt", "f.caffemodel")


def made(folder: Path, unknown: bool = False) -> Net:
    pytest.importorskip("cv2", reason="OpenCV is not installed (opencv-python-headless>=4.8,<5).")
    net = Net(seed=5)
    net.input("data", (1, 3, 8, 8))
    net.conv("conv", "data", 3, 4)
    net.batch_norm("bn", "conv", 4)
    net.scale("scale", "conv", 4)
    net.relu("relu", "conv")
    net.conv("last", "conv", 4, 2)
    if unknown:
        net.layer("odd", "Odd", "last", "odd")
    net.write(folder)
    return net


def files(folder: Path) -> list[str]:
    options = ("--model", "--weights", "--folded-model", "--folded-weights")
    return [word for pair in zip(options, NAMES) for word in (pair[0], str(folder / pair[1]))]


def fold(folder: Path) -> list[str]:
    paths = [str(folder / name) for name in NAMES]
    options = ("--model", "--weights", "--output-model", "--output-weights")
    return ["fold", *[word for pair in zip(options, paths) for word in pair]]


@pytest.fixture
def run(monkeypatch: Patch, capfd: Output) -> Run:
    """Call the command line; gives the exit code and both outputs."""

    def call(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["caffe-fold", *arguments])
        with pytest.raises(SystemExit) as exit:
            cli.main()
        out, err = capfd.readouterr()
        code = exit.value.code
        return code if isinstance(code, int) else 0, out, err

    return call


def broken(folder: Path) -> None:
    """The folded weights of a net with another eps."""
    other = folder / "other"
    other.mkdir()
    net = made(other)
    for layer in net.layers:
        layer.text = layer.text.replace("use_global_stats: true", "use_global_stats: true eps: 0.1")
    net.write(other)
    from caffe_fold import fold as fold_files

    fold_files(*(other / NAMES[0], other / NAMES[1]), *(folder / NAMES[2], folder / NAMES[3]))


# ---- verify ----


def test_a_right_net_exits_with_0_and_a_table(tmp_path: Path, run: Run) -> None:
    made(tmp_path)
    assert run(*fold(tmp_path))[0] == 0
    code, out, err = run("verify", *files(tmp_path))
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert lines[0].split() == ["difference", "relative", "largest", "blob"]
    assert sum(line.startswith("PASS  ") for line in lines) == 3
    assert lines[-1].startswith("PASS: 3 blobs agree, ")
    assert any("conv 1x4x6x6 <- bn + scale" in line for line in lines)


def test_a_wrong_net_exits_with_1_and_the_worst_blob_first(tmp_path: Path, run: Run) -> None:
    made(tmp_path)
    broken(tmp_path)
    code, out, err = run("verify", *files(tmp_path))
    assert (code, err) == (1, "")
    assert out.splitlines()[1].startswith("FAIL  ")
    assert out.splitlines()[-1].startswith("FAIL: 3 of 3 blobs fail, ")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_full_disk_for_the_table_is_one_line(
    tmp_path: Path, run: Run, monkeypatch: Patch
) -> None:
    made(tmp_path)
    run(*fold(tmp_path))
    with open("/dev/full", "w") as full, monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", full)
        code, _, err = run("verify", *files(tmp_path))
    assert (code, err) == (
        2,
        "error: standard output cannot be written to: No space left on device\n",
    )


def test_quiet_prints_what_differs_alone(tmp_path: Path, run: Run) -> None:
    made(tmp_path)
    run(*fold(tmp_path))
    assert run("verify", *files(tmp_path), "--quiet") == (0, "", "")
    broken(tmp_path)
    code, out, _ = run("verify", *files(tmp_path), "--quiet")
    assert code == 1
    assert "FAIL" in out
    assert "PASS" not in out


def test_json_is_the_result_and_nothing_else(tmp_path: Path, run: Run) -> None:
    made(tmp_path)
    run(*fold(tmp_path))
    code, out, err = run("verify", *files(tmp_path), "--json", "--time", "--samples", "2")
    data = json.loads(out)
    assert (code, err) == (0, "")
    assert data["passed"] is True
    assert data["samples"] == 2
    assert data["how"] == "whole"
    assert {blob["layer"] for blob in data["blobs"]} == {"conv", "relu", "last"}
    fields = {"blob", "layer", "type", "stands_for", "section", "shape", "absolute", "relative"}
    assert set(data["blobs"][0]) == fields | {"largest", "passed", "problem"}
    assert data["timing"]["original"] > 0
    assert (data["timing"]["original_layers"], data["timing"]["folded_layers"]) == (6, 4)


def test_the_time_of_both_nets_is_printed(tmp_path: Path, run: Run) -> None:
    made(tmp_path)
    run(*fold(tmp_path))
    out = run("verify", *files(tmp_path), "--time")[1]
    (line,) = (line for line in out.splitlines() if line.startswith("time "))
    assert line.endswith("median of 15; layers 6 -> 4")


def test_a_blob_may_be_skipped(tmp_path: Path, run: Run) -> None:
    made(tmp_path)
    broken(tmp_path)
    code, out, _ = run("verify", *files(tmp_path), "--skip", "conv")
    assert code == 1
    assert " conv " not in out
    code, _, err = run("verify", *files(tmp_path), "--skip", "con")
    assert code == 2
    assert "in what to skip, no blob is named 'con'; the closest is 'conv'" in err


@pytest.mark.parametrize("text", ["[" * 100_000, "[]"])
def test_what_is_no_report_is_told(tmp_path: Path, run: Run, text: str) -> None:
    (tmp_path / "report.json").write_text(text)
    code, _, err = run("verify", *files(tmp_path), "--report", str(tmp_path / "report.json"))
    assert code == 2
    assert err.endswith("report.json: not the report of a fold, as --json prints it\n")


@pytest.mark.skipif(os.name != "posix", reason="pipes have no names")
def test_a_report_that_is_a_pipe_is_not_waited_for(tmp_path: Path, run: Run) -> None:
    os.mkfifo(tmp_path / "report.json")
    code, _, err = run("verify", *files(tmp_path), "--report", str(tmp_path / "report.json"))
    assert code == 2
    assert err.endswith("report.json: not the report of a fold, as --json prints it\n")


def test_the_tolerance_decides(tmp_path: Path, run: Run) -> None:
    made(tmp_path)
    broken(tmp_path)
    assert run("verify", *files(tmp_path), "--tolerance", "10")[0] == 0
    assert run("verify", *files(tmp_path), "--tolerance", "-1")[0] == 2


def test_the_input_may_have_another_shape(tmp_path: Path, run: Run) -> None:
    made(tmp_path)
    run(*fold(tmp_path))
    code, out, _ = run("verify", *files(tmp_path), "--input-shape", "data=2,3,10,12")
    assert code == 0
    assert "conv 2x4x8x10" in out
    for bad in ("data", "data=", "data=1,x", "data=0,3,8,8", "=1,3", "data=" + 5000 * "9"):
        code, _, err = run("verify", *files(tmp_path), "--input-shape", bad)
        assert code == 2
        assert "expected BLOB=N,C,H,W" in err


@pytest.mark.parametrize("dims", ["1,3,99999,99999", "9" * 19 + ",3,1,1"])
def test_an_input_that_no_blob_holds_is_told(tmp_path: Path, run: Run, dims: str) -> None:
    made(tmp_path)
    run(*fold(tmp_path))
    code, _, err = run("verify", *files(tmp_path), "--input-shape", f"data={dims}")
    assert code == 2
    assert "is no blob of Caffe" in err
    assert err.count("\n") == 1


def test_a_layer_that_spans_more_than_a_blob_holds_is_not_proved(tmp_path: Path, run: Run) -> None:
    made(tmp_path)
    prototxt = tmp_path / "net.prototxt"
    odd = prototxt.read_text().replace("kernel_size: 3", "kernel_size: 3 dilation: 4294967295", 1)
    prototxt.write_text(odd)
    code, _, err = run(*fold(tmp_path), "--verify", "--verify-engine", "opencv")
    assert code == 1
    assert "no engine ran this fold" in err
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    "kind",
    [
        "Deconvolution without weights",
        "Deconvolution with 'group: 0'",
        "Convolution with 'group: 0'",
        "ShuffleChannel with 'group: 0'",
    ],
)
def test_what_ends_opencvs_process_is_cut_out(tmp_path: Path, kind: str) -> None:
    net, name = made(tmp_path), kind.split()[0]
    group = " group: 0" if "group" in kind else ""
    params = {"ShuffleChannel": f"shuffle_channel_param {{{group} }}"}
    shared = f"convolution_param {{ num_output: 2 kernel_size: 1{group} }}"
    blobs = [] if "without" in kind else [np.ones((2, 2, 1, 1)), np.ones(2)]
    net.layer("odd", name, "last", "odd", params.get(name, shared), blobs)
    net.write(tmp_path)
    command = [sys.executable, "-m", "caffe_fold", *fold(tmp_path), "--json", "--verify"]
    done = subprocess.run([*command, "--verify-engine", "opencv"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert f"cut out for opencv: 1 {kind}" in json.loads(done.stdout)["verified"]["notes"]


@pytest.mark.skipif(sys.platform != "linux", reason="other systems refuse such names")
def test_names_that_are_no_utf8_are_run(tmp_path: Path) -> None:
    # In a process of its own, which OpenCV's bindings would end.
    made(tmp_path)
    odd = tmp_path / os.fsdecode(b"odd\xe9.prototxt")
    text = (tmp_path / "net.prototxt").read_bytes().replace(b'"data"', b'"dat\xe9"')
    odd.write_bytes(text)
    command = [sys.executable, "-m", "caffe_fold", "--model", str(odd), "--verify"]
    done = subprocess.run([*command, "--weights", str(tmp_path / NAMES[1])], capture_output=True)
    assert (done.returncode, done.stderr) == (0, b"")
    assert b"verified" in done.stdout


def test_a_level_of_zero_goes_before_that_of_the_net(tmp_path: Path, run: Run) -> None:
    net = made(tmp_path, unknown=True)
    text = net.prototxt().replace('type: "Odd"', 'type: "Odd" include { min_level: 1 }')
    (tmp_path / "net.prototxt").write_text(f"state {{ level: 5 }} {text}")
    options = ("--level", "0", "--verify", "--json")
    code, out, _ = run(*fold(tmp_path), *options)
    assert (code, json.loads(out)["verified"]["how"]) == (0, "rewritten")


def test_an_image_goes_in(tmp_path: Path, run: Run) -> None:
    made(tmp_path)
    run(*fold(tmp_path))
    import cv2
    import numpy as np

    cv2.imwrite(str(tmp_path / "in.png"), np.full((20, 20, 3), 200, np.uint8))
    options = ("--input", str(tmp_path / "in.png"), "--mean", "104,117,123", "--scale", "0.017")
    code, out, _ = run("verify", *files(tmp_path), *options, "--channel-order", "rgb")
    assert code == 0
    assert "PASS: 3 blobs agree" in out
    code, _, err = run("verify", *files(tmp_path), "--mean", "1,2")
    assert (code, err) == (2, "error: --mean has 2 numbers and the input 3 channels\n")


@pytest.mark.parametrize("engine", ["auto", "opencv"])
def test_a_missing_opencv_is_one_line(
    tmp_path: Path, run: Run, monkeypatch: Patch, engine: str
) -> None:
    made(tmp_path)
    run(*fold(tmp_path))
    monkeypatch.setitem(sys.modules, "cv2", None)
    monkeypatch.delenv("CAFFE_FOLD_CAFFE_PYTHON", raising=False)
    code, out, err = run("verify", *files(tmp_path), "--engine", engine)
    assert (code, out) == (2, "")
    assert err.count("\n") == 1
    assert "pip install 'caffe-fold[verify]'" in err
    assert ("CAFFE_FOLD_CAFFE_PYTHON" in err) == (engine == "auto")


def test_a_missing_caffe_is_one_line(tmp_path: Path, run: Run, monkeypatch: Patch) -> None:
    made(tmp_path)
    run(*fold(tmp_path))
    monkeypatch.delenv("CAFFE_FOLD_CAFFE_PYTHON", raising=False)
    code, _, err = run("verify", *files(tmp_path), "--engine", "caffe")
    assert code == 2
    assert "--caffe-python or CAFFE_FOLD_CAFFE_PYTHON" in err
    for python, says in ((sys.executable, "has no pycaffe"), ("/nowhere/python", "cannot be run")):
        options = ("--engine", "caffe", "--caffe-python", python)
        code, _, err = run("verify", *files(tmp_path), *options)
        assert code == 2
        assert err.count("\n") == 1
        assert says in err


@pytest.mark.usefixtures("real_caffe")
def test_real_caffe_runs_by_the_environment(tmp_path: Path, run: Run) -> None:
    made(tmp_path)
    run(*fold(tmp_path))
    code, out, _ = run("verify", *files(tmp_path), "--engine", "caffe", "--time")
    assert code == 0
    assert "; Caffe " in out
    assert "time " in out


def test_two_files_that_are_no_pair_are_named(tmp_path: Path, run: Run) -> None:
    made(tmp_path)
    run(*fold(tmp_path))
    swapped = [str(tmp_path / NAMES[i]) for i in (2, 3, 0, 1)]
    options = ("--model", "--weights", "--folded-model", "--folded-weights")
    words = [word for pair in zip(options, swapped) for word in pair]
    code, _, err = run("verify", *words)
    assert code == 2
    assert "layer 'bn'" in err
    assert "give the net that it was folded from" in err


# ---- fold --verify ----


def test_a_fold_is_verified_before_it_is_written(tmp_path: Path, run: Run) -> None:
    made(tmp_path)
    code, out, _ = run(*fold(tmp_path), "--verify")
    assert code == 0
    assert "verified: 3 blobs agree" in out
    assert (tmp_path / "f.prototxt").exists()
    data = json.loads(run(*fold(tmp_path), "--verify", "--json")[1])
    assert data["verified"]["passed"] is True
    assert data["verified"]["folded_model"] == str(tmp_path / "f.prototxt")


def test_a_fold_that_does_not_verify_leaves_nothing(tmp_path: Path, run: Run) -> None:
    made(tmp_path)
    code, out, err = run(*fold(tmp_path), "--verify", "--verify-tolerance", "0")
    assert (code, out) == (1, "")
    assert "does not compute what the original does" in err
    assert "nothing was written" in err
    assert err.count("\n") == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(NAMES[:2])


def test_a_fold_without_an_engine_leaves_nothing(
    tmp_path: Path, run: Run, monkeypatch: Patch
) -> None:
    made(tmp_path)
    monkeypatch.setitem(sys.modules, "cv2", None)
    monkeypatch.delenv("CAFFE_FOLD_CAFFE_PYTHON", raising=False)
    code, _, err = run(*fold(tmp_path), "--verify")
    assert code == 2
    assert "pip install 'caffe-fold[verify]'" in err
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(NAMES[:2])


def test_a_net_that_is_cut_is_verified_in_parts(tmp_path: Path, run: Run) -> None:
    made(tmp_path, unknown=True)
    options = ("--verify", "--verify-engine", "opencv")
    code, out, err = run(*fold(tmp_path), *options)
    assert (code, err) == (0, "")
    assert "in parts" in out
    out = run("verify", *files(tmp_path), "--engine", "opencv")[1]
    assert "covered 3 of 4 layers of the folded net: 1 of 1 folds alone, 3 layers in parts" in out
    assert "not run: 1 Odd" in out


@pytest.mark.parametrize("option", [("--verify-engine", "opencv"), ("--verify-skip", "conv")])
def test_options_of_the_verification_need_it(
    tmp_path: Path, run: Run, option: tuple[str, str]
) -> None:
    made(tmp_path)
    code, _, err = run(*fold(tmp_path), *option)
    assert (code, err) == (2, f"error: {option[0]} needs --verify\n")
    assert run(*fold(tmp_path), "--verify", "--dry-run")[0] == 2


def transposed(folder: Path, has_norm: bool) -> None:
    net = Net(seed=3)
    net.input("data", (1, 6))
    net.inner_product("first", "data", 6, 5)
    net.batch_norm("bn", "first", 5)
    net.relu("relu", "first")
    net.inner_product("second", "first", 5, 5, transpose=True)
    if has_norm:
        net.batch_norm("bn2", "second", 5)
    net.relu("relu2", "second", "end")
    net.write(folder)


def test_a_transposed_layer_is_not_run_by_an_engine_that_ignores_it(
    tmp_path: Path, run: Run
) -> None:
    transposed(tmp_path, has_norm=False)
    code, out, err = run(*fold(tmp_path), "--verify", "--verify-engine", "opencv")
    assert (code, err) == (0, "")
    code, out, err = run("verify", *files(tmp_path), "--engine", "opencv")
    assert (code, err) == (0, "")
    assert "opencv does not run it whole: it does not know InnerProduct with transpose" in out
    assert "cut out for opencv: 1 InnerProduct with transpose" in out
    assert "not run: 1 InnerProduct" in out


def test_a_fold_into_a_transposed_layer_is_not_run_alone_either(tmp_path: Path, run: Run) -> None:
    transposed(tmp_path, has_norm=True)
    code, _, err = run(*fold(tmp_path), "--verify", "--verify-engine", "opencv")
    assert code == 1
    assert err.startswith("error: the folded net could not be verified: ")
    assert "second: no engine ran this fold, so nothing proves it" in err
    assert "it does not know InnerProduct with transpose" in err
