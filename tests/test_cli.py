"""The command line: what it prints where, with which exit code, and what its options do."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from calling import (
    INPUTS,
    OUTPUTS,
    Patch,
    assert_refused,
    environment,
    files,
    names,
    net_that_keeps_a_batch_norm,
    run,
    small_net,
)
from click.testing import CliRunner
from support.command import HANGS, Call
from support.nets import Net

from caffe_fold import __version__, cli, convert


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    small_net().write(tmp_path)
    return tmp_path


# ---- Commands and help ----


@pytest.mark.parametrize("command", [[], ["fold"]], ids=["default", "fold"])
def test_it_folds(command: Sequence[str], folder: Path, call: Call) -> None:
    done = call(*command, *files(folder))
    assert (done.code, done.err) == (0, "")
    assert names(folder) == INPUTS | OUTPUTS
    assert "folded   conv (Convolution) <- bn + scale" in done.out
    assert "BatchNorm 1 -> 0" in done.out
    assert f"wrote {folder / 'net_inference.prototxt'}" in done.out
    assert f"wrote {folder / 'net_inference.caffemodel'}" in done.out


def test_it_folds_in_a_process_of_its_own(folder: Path) -> None:
    done = run("--model", "net.prototxt", "--weights", "net.caffemodel", folder=folder)
    assert (done.returncode, done.stderr) == (0, "")
    assert "wrote net_inference.prototxt\n" in done.stdout
    assert names(folder) == INPUTS | OUTPUTS


@pytest.mark.parametrize(
    "options",
    [("--output-model", "--output-weights"), ("--output_model", "--output_weights")],
    ids=["dashes", "underscores"],
)
def test_outputs_may_be_named(options: tuple[str, str], folder: Path, call: Call) -> None:
    (folder / "sub").mkdir()
    model, weights = folder / "sub" / "a", folder / "b.bin"
    assert call(*files(folder), options[0], model, options[1], weights).code == 0
    assert names(folder) == INPUTS | {"sub", "b.bin"}
    assert names(folder / "sub") == {"a"}
    assert model.read_bytes().startswith(b"name:")


@pytest.mark.parametrize("arguments", [["--help"], ["fold", "--help"], ["--quiet", "--help"]])
def test_help_has_every_option_examples_and_exit_codes(arguments: list[str], call: Call) -> None:
    done = call(*arguments)
    assert (done.code, done.err) == (0, "")
    for option in (
        "--model --weights --output-model --output_model --output-weights --output_weights "
        "--stage --level --keep --assume-global-stats --allow-extra-weights --engine-caffe "
        "--dry-run --strict --no-check --json --quiet"
    ).split():
        assert re.search(rf"{option}\b", done.out), option
    assert "caffe-fold --model deploy.prototxt --weights net.caffemodel" in done.out
    for code in ("0", "1", "2", "3", "4", "130"):
        assert re.search(rf"^ *{code} +\S", done.out, re.MULTILINE)


def test_help_names_the_commands(call: Call) -> None:
    out = call("--help").out
    assert re.search(r"^  demo ", out, re.MULTILINE)
    assert re.search(r"^  fold ", out, re.MULTILINE)
    assert "DIR" in call("demo", "--help").out


def test_version(call: Call) -> None:
    done = call("--version")
    assert (done.code, done.out, done.err) == (0, f"caffe-fold {__version__}\n", "")


@pytest.mark.parametrize("option", ["--help", "--version"])
def test_help_and_version_import_nothing_heavy(option: str) -> None:
    code = (
        "import sys; from caffe_fold import cli\n"
        f"sys.argv = ['caffe-fold', {option!r}]\n"
        "try: cli.main()\n"
        "except SystemExit: pass\n"
        "print([m for m in ('numpy', 'google.protobuf', 'h5py') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=HANGS,
    )
    assert done.stdout.splitlines()[-1] == "[]", done.stderr


def test_importing_the_package_imports_nothing_heavy() -> None:
    code = "import sys, caffe_fold; print('numpy' in sys.modules, 'click' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=HANGS,
    )
    assert done.stdout == "False False\n"


@pytest.mark.parametrize(
    "arguments",
    [
        ["--model", "x"],
        ["--weights", "x"],
        ["--model"],
        ["unknown"],
        ["--unknown"],
        ["--model", "x", "--weights", "y", "extra"],
        ["--model", "x", "--weights", "y", "--level", "high"],
        ["demo", "a", "b"],
    ],
    ids=" ".join,
)
def test_bad_usage_is_exit_2_on_standard_error(arguments: list[str], call: Call) -> None:
    done = call(*arguments)
    assert done.code == 2
    assert done.out == ""
    assert "Usage: caffe-fold" in done.err or done.err.startswith("Error: ")
    assert "Traceback" not in done.err


def test_a_file_where_a_command_may_stand(folder: Path, call: Call) -> None:
    done = call(folder / "deploy.prototxt", folder / "net.caffemodel")
    assert done.code == 2
    assert done.err.endswith("is no command; a file is named by --model or --weights\n")
    assert call("fodl").err.endswith("No such command 'fodl'.\n")


def test_no_arguments_at_all_give_the_help(call: Call) -> None:
    done = call()  # with exit code 0 up to click 8.1, and 2 on standard error since 8.2
    assert "Usage: caffe-fold" in done.out + done.err
    assert "Examples:" in done.out + done.err


# ---- Reports ----


COUNTS = {"layers": int, "by_type": dict, "model_bytes": int, "weights_bytes": int}

SCHEMA: dict[str, Any] = {
    "schema": int,
    "version": str,
    "model": str,
    "weights": str,
    "output_model": str,
    "output_weights": str,
    "written": bool,
    "folded": [{"layer": str, "type": str, "before": list, "behind": list}],
    "merged": [{"layer": str, "layers": list}],
    "removed": [str],
    "stayed": [{"layer": str, "type": str, "code": str, "codes": [str], "reason": str}],
    "warnings": [{"code": str, "message": str}],
    "notes": [{"code": str, "message": str}],
    "before": COUNTS,
    "after": COUNTS,
    "checked": {"layers": int, "worst": float},
    "equalized": type(None),
}


def assert_schema(value: Any, schema: Any, where: str = "report") -> None:
    if isinstance(schema, dict):
        assert set(value) == set(schema), where
        for key, part in schema.items():
            assert_schema(value[key], part, f"{where}.{key}")
    elif isinstance(schema, list):
        assert isinstance(value, list), where
        for part in value:
            assert_schema(part, schema[0], where)
    else:
        assert isinstance(value, schema), where


def test_json_is_the_report_and_nothing_else(tmp_path: Path, call: Call) -> None:
    net = net_that_keeps_a_batch_norm()
    net.batch_norm("bn3", "bn2", 4, params="moving_average_fraction: 0.9 odd: 1", top="bn3")
    net.scale("scale3", "bn3", 4)
    net.relu("relu3", "bn3")
    net.layer("extra", "Embed", ["bn3"], ["e"], blobs=[[1.0]], in_text=False)
    net.write(tmp_path)
    done = call(*files(tmp_path), "--json")
    assert (done.code, done.err) == (0, "")
    report = json.loads(done.out)
    assert_schema(report, SCHEMA)
    assert (report["schema"], report["version"], report["written"]) == (1, __version__, True)
    assert report["folded"] == [
        {"layer": "conv", "type": "Convolution", "before": [], "behind": ["bn", "scale"]}
    ]
    assert [merge["layers"] for merge in report["merged"]] == [["bn3", "scale3"]]
    assert [stay["layer"] for stay in report["stayed"]] == ["bn2", "scale3"]
    assert {w["code"] for w in report["warnings"]} == {"unknown-field", "extra-weights"}
    assert report["before"]["by_type"]["BatchNorm"] == 3
    assert report["after"]["by_type"]["BatchNorm"] == 1
    sizes = report["after"]["model_bytes"], report["after"]["weights_bytes"]
    assert sizes == tuple(os.path.getsize(report[k]) for k in ("output_model", "output_weights"))


def test_warnings_go_to_standard_error(folder: Path, call: Call) -> None:
    model = folder / "net.prototxt"
    model.write_text(model.read_text().replace("num_output", "odd_field: 1 num_output"))
    done = call(*files(folder))
    assert done.code == 0
    assert done.err.startswith("warning: the field 'convolution_param.odd_field'")
    assert "odd_field" not in done.out


def test_quiet_prints_warnings_alone(folder: Path, call: Call) -> None:
    done = call(*files(folder), "--quiet")
    assert (done.code, done.out, done.err) == (0, "", "")
    model = folder / "net.prototxt"
    model.write_text(model.read_text().replace("num_output", "odd_field: 1 num_output"))
    done = call(*files(folder), "--quiet")
    assert (done.code, done.out) == (0, "")
    assert done.err.startswith("warning: ")


def test_dry_run_reports_and_writes_nothing(folder: Path, call: Call) -> None:
    old = (folder / "net_inference.prototxt").write_bytes(b"old")
    done = call(*files(folder), "--dry-run")
    assert (done.code, done.err) == (0, "")
    assert "folded   conv (Convolution) <- bn + scale" in done.out
    assert "wrote" not in done.out
    assert names(folder) == INPUTS | {"net_inference.prototxt"}
    assert os.path.getsize(folder / "net_inference.prototxt") == old
    report = json.loads(call(*files(folder), "--dry-run", "--json").out)
    assert (report["written"], report["checked"]) == (False, None)
    # What it foretells is what is written.
    told = report["after"]["model_bytes"], report["after"]["weights_bytes"]
    assert call(*files(folder)).code == 0
    assert told == tuple(os.path.getsize(report[k]) for k in ("output_model", "output_weights"))


def test_no_check_skips_the_proof(folder: Path, call: Call, monkeypatch: Patch) -> None:
    assert json.loads(call(*files(folder), "--json").out)["checked"]["layers"] == 1
    monkeypatch.setattr(convert, "check_values", None)
    done = call(*files(folder), "--no-check", "--json")
    assert json.loads(done.out)["checked"] is None


def test_strict_writes_and_exits_with_3(tmp_path: Path, call: Call) -> None:
    net_that_keeps_a_batch_norm().write(tmp_path)
    assert call(*files(tmp_path)).code == 0
    for name in OUTPUTS:
        (tmp_path / name).unlink()
    done = call(*files(tmp_path), "--strict")
    assert done.code == 3
    assert "stays    bn2 (BatchNorm): " in done.out
    assert done.err.startswith("error: --strict: 1 BatchNorm")
    assert names(tmp_path) == INPUTS | OUTPUTS


def test_strict_is_content_where_no_batch_norm_is_left(folder: Path, call: Call) -> None:
    assert call(*files(folder), "--strict").code == 0


def test_where_nothing_folds_both_files_are_the_inputs(tmp_path: Path, call: Call) -> None:
    net = Net("plain")
    net.input("data", (1, 3, 6, 6))
    net.conv("conv", "data", 3, 4)
    net.write(tmp_path)
    done = call(*files(tmp_path))
    assert done.code == 0
    assert "nothing folds" in done.out
    for kind in ("prototxt", "caffemodel"):
        old, new = tmp_path / f"net.{kind}", tmp_path / f"net_inference.{kind}"
        assert old.read_bytes() == new.read_bytes()


# ---- Interruptions ----


def test_an_internal_error_is_one_line(folder: Path, call: Call, monkeypatch: Patch) -> None:
    monkeypatch.delenv("CAFFE_FOLD_DEBUG", raising=False)
    monkeypatch.setattr(convert, "build", None)
    done = call(*files(folder))
    assert done.code == 1
    assert done.err.startswith("error: internal error (TypeError: ")
    assert done.err.count("\n") == 1
    assert "written" not in done.err  # it may have been, and nobody can tell
    monkeypatch.setenv("CAFFE_FOLD_DEBUG", "1")
    monkeypatch.setattr(sys, "argv", ["caffe-fold", *files(folder)])
    with pytest.raises(TypeError):
        cli._run()


def test_a_net_nested_deep_is_no_internal_error(folder: Path, call: Call) -> None:
    model = folder / "net.prototxt"
    model.write_bytes(model.read_bytes() + b"a {" * 50_000 + b"}" * 50_000)
    assert call(*files(folder)).code == 0


# ---- States and the other options, as they come through ----


def test_stage_level_and_keep_reach_the_fold(folder: Path, call: Call) -> None:
    model = folder / "net.prototxt"
    rule = 'name: "bn" include { stage: "a" stage: "b" min_level: 2 }'
    model.write_text(model.read_text().replace('name: "bn"', rule))
    options = ["--stage", "a", "--stage", "b", "--level", "2"]
    report = json.loads(call(*files(folder), *options, "--json").out)
    assert report["folded"][0]["behind"] == ["bn", "scale"]
    report = json.loads(call(*files(folder), "--json").out)
    assert report["folded"][0]["behind"] == ["scale"]


def test_a_folded_prototxt_with_unfolded_weights(folder: Path, call: Call) -> None:
    net = small_net()
    del net.layers[2:4]
    (folder / "net.prototxt").write_text(net.prototxt())
    assert_refused(call(*files(folder)), "the prototxt is folded already", "--allow-extra-weights")
    assert names(folder) == INPUTS
    assert call(*files(folder), "--allow-extra-weights").code == 0


def test_a_kept_blob_keeps_its_values(tmp_path: Path, call: Call) -> None:
    net = Net("kept")
    net.input("data", (1, 3, 6, 6))
    net.conv("conv", "data", 3, 4)
    net.batch_norm("bn", "conv", 4, top="bn")
    net.relu("relu", "bn")
    net.write(tmp_path)
    report = json.loads(call(*files(tmp_path), "--keep", "conv", "--json").out)
    assert [stay["code"] for stay in report["stayed"]] == ["kept"]


def test_engine_caffe_and_assume_global_stats(tmp_path: Path, call: Call) -> None:
    net = Net("options")
    net.input("data", (1, 3, 6, 6))
    net.conv("conv", "data", 3, 4, 1)
    net.batch_norm("bn", "conv", 4, params="use_global_stats: false")
    net.write(tmp_path)
    report = json.loads(call(*files(tmp_path), "--json").out)
    assert [stay["code"] for stay in report["stayed"]] == ["batch-statistics"]
    report = json.loads(
        call(*files(tmp_path), "--assume-global-stats", "--engine-caffe", "--json").out
    )
    assert report["stayed"] == []
    assert "engine: CAFFE }" in (tmp_path / "net_inference.prototxt").read_text()


# ---- The demo ----


def test_the_demo_makes_folds_and_reports(tmp_path: Path, call: Call) -> None:
    done = call("demo", tmp_path / "new" / "demo")
    assert (done.code, done.err) == (0, "")
    assert names(tmp_path / "new" / "demo") == {
        "mobilenet_ssd.prototxt",
        "mobilenet_ssd.caffemodel",
        "mobilenet_ssd_inference.prototxt",
        "mobilenet_ssd_inference.caffemodel",
    }
    assert "BatchNorm 35 -> 0; Scale 35 -> 0" in done.out
    assert "$ caffe-fold --model " in done.out


def test_a_demo_that_cannot_be_written(tmp_path: Path, call: Call) -> None:
    (tmp_path / "file").write_bytes(b"")
    assert_refused(call("demo", tmp_path / "file"), "cannot be written: ")


def test_the_runner_of_click_sees_the_same(folder: Path) -> None:
    result = CliRunner().invoke(cli.cli, [*files(folder), "--json"])
    assert result.exit_code == 0
    assert json.loads(result.stdout)["written"] is True
