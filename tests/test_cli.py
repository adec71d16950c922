"""The command line: what it prints where, with which exit code, and what it leaves behind."""

from __future__ import annotations

import gzip
import io
import json
import os
import re
import signal
import stat
import subprocess
import sys
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from support.command import HANGS, Call, Outcome, all_shown
from support.nets import Net

from caffe_fold import __version__, cli, convert, weights_files

Patch = pytest.MonkeyPatch

POSIX = pytest.mark.skipif(os.name != "posix", reason="needs POSIX files and signals")

INPUTS = {"net.prototxt", "net.caffemodel"}
OUTPUTS = {"net_inference.prototxt", "net_inference.caffemodel"}


def small_net() -> Net:
    net = Net("small")
    net.input("data", (1, 3, 6, 6))
    net.conv("conv", "data", 3, 4)
    net.batch_norm("bn", "conv", 4)
    net.scale("scale", "conv", 4)
    net.relu("relu", "conv")
    return net


def net_that_keeps_a_batch_norm() -> Net:
    net = small_net()
    net.batch_norm("bn2", "conv", 4, top="bn2")
    net.relu("relu2", "bn2")
    return net


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    small_net().write(tmp_path)
    return tmp_path


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def files(folder: Path) -> list[str]:
    return ["--model", str(folder / "net.prototxt"), "--weights", str(folder / "net.caffemodel")]


Result = subprocess.CompletedProcess


def run(
    *arguments: str | Path, folder: Path | None = None, env: dict[str, str] | None = None
) -> Result[str]:
    """Run the real command in a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "caffe_fold", *map(str, arguments)],
        cwd=folder,
        env={**environment(), **(env or {})},
        capture_output=True,
        text=True,
        timeout=HANGS,
    )


def environment() -> dict[str, str]:
    root = str(Path(cli.__file__).parents[1])
    rest = {k: v for k, v in os.environ.items() if k not in ("NO_COLOR", "FORCE_COLOR")}
    return {**rest, "PYTHONPATH": root, "PYTHONIOENCODING": "utf-8"}


def assert_refused(outcome: Outcome | Result[str], *parts: str, code: int = 2) -> None:
    """An exit code, nothing on standard output, and one line that says all parts.

    After Ctrl-C an empty line is before it, since the terminal has shown ``^C``.
    """
    if isinstance(outcome, subprocess.CompletedProcess):
        outcome = Outcome(outcome.returncode, outcome.stdout, outcome.stderr)
    assert outcome.code == code, outcome.err
    assert outcome.out == ""
    err = outcome.err.lstrip("\n") if code == 130 else outcome.err
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert "internal error" not in err
    for part in parts:
        assert part in err


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


@pytest.mark.parametrize("env", [{}, {"NO_COLOR": "1"}], ids=["piped", "NO_COLOR"])
def test_no_colours_where_they_are_not_wanted(env: dict[str, str], folder: Path) -> None:
    model = folder / "net.prototxt"
    model.write_text(model.read_text().replace("num_output", "odd_field: 1 num_output"))
    done = run(*files(folder), env=env)
    assert done.returncode == 0
    assert "\x1b" not in done.stdout + done.stderr
    failed = run("--model", "x", "--weights", "y", env=env)
    assert "\x1b" not in failed.stderr


@POSIX
@pytest.mark.parametrize("env", [{}, {"NO_COLOR": "1"}], ids=["plain", "NO_COLOR"])
def test_a_terminal_gets_colours_unless_it_does_not_want_them(
    env: dict[str, str], folder: Path
) -> None:
    pty = pytest.importorskip("pty")
    ours, theirs = pty.openpty()
    subprocess.run(
        [sys.executable, "-m", "caffe_fold", "--model", "x", "--weights", "y"],
        env={**environment(), **env, "TERM": "xterm"},
        stderr=theirs,
        stdout=subprocess.DEVNULL,
        timeout=HANGS,
        check=False,
    )
    os.close(theirs)
    shown = all_shown(ours)
    assert b"error: " in shown
    assert (b"\x1b[" in shown) is not bool(env)


# ---- Inputs that are something else ----


def hdf5() -> bytes:
    return b"\x89HDF\r\n\x1a\n" + b"\0" * 88


def zipped() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("net", "x")
    return file.getvalue()


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 132735700\n"
PAGE = b"\n\n  <!DOCTYPE html>\n<html><body>Not found</body></html>"
OTHER_FILES = {
    "git-lfs": (POINTER, "is a Git LFS pointer"),
    "html": (PAGE, "is a saved web page"),
    "empty": (b"", "is an empty file"),
    "gzip": (gzip.compress(b"net"), "is a gzip archive"),
    "zip": (zipped(), "is a zip archive"),
}


@pytest.mark.parametrize("kind", OTHER_FILES)
@pytest.mark.parametrize("which", ["net.prototxt", "net.caffemodel"])
def test_an_input_of_another_kind_is_named(kind: str, which: str, folder: Path, call: Call) -> None:
    data, message = OTHER_FILES[kind]
    (folder / which).write_bytes(data)
    assert_refused(call(*files(folder)), f"{folder / which} {message}")
    assert names(folder) == INPUTS


def test_a_prototxt_as_weights(folder: Path, call: Call) -> None:
    (folder / "net.caffemodel").write_bytes((folder / "net.prototxt").read_bytes())
    assert_refused(call(*files(folder)), "net.caffemodel is a text file; expected a caffemodel")


def test_a_caffemodel_as_prototxt(folder: Path, call: Call) -> None:
    (folder / "net.prototxt").write_bytes((folder / "net.caffemodel").read_bytes())
    assert_refused(call(*files(folder)), "net.prototxt is a binary file; expected a prototxt")


def test_an_hdf5_file_as_prototxt(folder: Path, call: Call) -> None:
    (folder / "net.prototxt").write_bytes(hdf5())
    assert_refused(call(*files(folder)), "net.prototxt is an HDF5 file; expected a prototxt")


def test_a_damaged_hdf5_file_as_weights(folder: Path, call: Call) -> None:
    (folder / "net.caffemodel").write_bytes(hdf5())
    assert_refused(call(*files(folder)), "net.caffemodel", "HDF5")
    assert names(folder) == INPUTS


def test_swapped_arguments(folder: Path, call: Call) -> None:
    model, weights = folder / "net.prototxt", folder / "net.caffemodel"
    assert_refused(call("--model", weights, "--weights", model), "the two arguments are swapped")


def test_a_solver_prototxt(folder: Path, call: Call) -> None:
    (folder / "net.prototxt").write_text('net: "train.prototxt"\nbase_lr: 0.1\n')
    assert_refused(call(*files(folder)), "this is a solver prototxt", '"train.prototxt"')


def test_a_truncated_caffemodel(folder: Path, call: Call) -> None:
    weights = folder / "net.caffemodel"
    weights.write_bytes(weights.read_bytes()[:-7])
    assert_refused(call(*files(folder)), "net.caffemodel: byte ", "the file is truncated")


def test_a_truncated_prototxt(folder: Path, call: Call) -> None:
    model = folder / "net.prototxt"
    model.write_bytes(model.read_bytes().rstrip()[:-1])
    assert_refused(call(*files(folder)), f"{model}:", "Is it complete?")


@pytest.mark.parametrize("which", ["net.prototxt", "net.caffemodel"])
def test_an_input_that_is_missing_or_a_folder(which: str, folder: Path, call: Call) -> None:
    (folder / which).unlink()
    assert_refused(call(*files(folder)), f"{folder / which} cannot be read: No such file")
    (folder / which).mkdir()
    assert_refused(call(*files(folder)), f"{folder / which} is a folder")
    assert names(folder) == INPUTS


@POSIX
@pytest.mark.parametrize("which", ["net.prototxt", "net.caffemodel"])
def test_an_input_that_is_a_pipe_is_not_waited_for(which: str, folder: Path, call: Call) -> None:
    (folder / which).unlink()
    os.mkfifo(folder / which)
    assert_refused(call(*files(folder)), f"{folder / which} is a pipe or device")


def test_an_empty_path(folder: Path, call: Call) -> None:
    assert_refused(call("--model", "", "--weights", folder / "net.caffemodel"), "No such file")


def test_a_keep_that_names_no_blob(folder: Path, call: Call) -> None:
    assert_refused(call(*files(folder), "--keep", "convv"), "no blob is named", "'conv'")


# ---- Outputs ----


def same_path(path: Path) -> Path:
    return path


def by_symlink(path: Path) -> Path:
    link = path.with_name("link")
    link.symlink_to(path)
    return link


def by_hardlink(path: Path) -> Path:
    link = path.with_name("link")
    os.link(path, link)
    return link


def by_way_round(path: Path) -> Path:
    (path.parent / "sub").mkdir()
    return path.parent / "sub" / ".." / path.name


@POSIX
@pytest.mark.parametrize("way", [same_path, by_symlink, by_hardlink, by_way_round])
@pytest.mark.parametrize("option", ["--output-model", "--output-weights"])
@pytest.mark.parametrize("which", ["net.prototxt", "net.caffemodel"])
def test_an_output_that_is_an_input_is_refused(
    which: str, option: str, way: Callable[[Path], Path], folder: Path, call: Call
) -> None:
    before = {name: (folder / name).read_bytes() for name in INPUTS}
    outcome = call(*files(folder), option, way(folder / which))
    assert_refused(outcome, "is an input")
    assert names(folder) - {"link", "sub"} == INPUTS
    assert all((folder / name).read_bytes() == data for name, data in before.items())


def test_both_outputs_in_one_file_are_refused(folder: Path, call: Call) -> None:
    (folder / "sub").mkdir()
    paths = ("--output-model", folder / "x", "--output-weights", folder / "sub" / ".." / "x")
    assert_refused(call(*files(folder), *paths), "is given for both outputs")
    assert names(folder) == INPUTS | {"sub"}


@pytest.mark.parametrize("option", ["--output-model", "--output-weights"])
def test_an_output_in_a_folder_that_is_not_there(option: str, folder: Path, call: Call) -> None:
    outcome = call(*files(folder), option, folder / "no" / "x")
    assert_refused(outcome, "cannot be written: there is no folder", str(folder / "no"))
    assert_refused(call(*files(folder), option, folder), "is a folder; give the output file's path")
    assert names(folder) == INPUTS


@POSIX
def test_an_output_that_is_a_device_is_not_replaced(folder: Path, call: Call) -> None:
    os.mkfifo(folder / "pipe")
    outcome = call(*files(folder), "--output-model", folder / "pipe")
    assert_refused(outcome, "is no regular file")
    assert stat.S_ISFIFO((folder / "pipe").stat().st_mode)


@pytest.mark.parametrize("failing", [1, 2])
def test_a_folder_that_cannot_be_written_to(
    failing: int, folder: Path, call: Call, monkeypatch: Patch
) -> None:
    """Of the two files the second may be the one that fails."""
    calls = 0
    right = os.open

    def refuse(path: Any, flags: int, *mode: int) -> int:
        nonlocal calls
        calls += flags & os.O_CREAT != 0
        if flags & os.O_CREAT and calls == failing:
            raise PermissionError(13, "Permission denied", str(folder / "x"))
        return right(path, flags, *mode)

    monkeypatch.setattr(os, "open", refuse)
    assert_refused(call(*files(folder)), "cannot be written: Permission denied")
    assert names(folder) == INPUTS


@POSIX
@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write")
def test_a_folder_that_really_cannot_be_written_to(folder: Path, call: Call) -> None:
    folder.chmod(0o500)
    try:
        assert_refused(call(*files(folder)), "cannot be written: Permission denied")
    finally:
        folder.chmod(0o700)


def test_a_full_disk(folder: Path, call: Call, monkeypatch: Patch) -> None:
    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(weights_files, "write_parts", fail)
    assert_refused(call(*files(folder)), "cannot be written: No space left on device")
    assert names(folder) == INPUTS


def test_existing_outputs_are_replaced(folder: Path, call: Call) -> None:
    for name in OUTPUTS:
        (folder / name).write_bytes(b"old" * 10_000)
    assert call(*files(folder)).code == 0
    first = {name: (folder / name).read_bytes() for name in OUTPUTS}
    assert all(b"oldold" not in data for data in first.values())
    assert call(*files(folder)).code == 0
    assert first == {name: (folder / name).read_bytes() for name in OUTPUTS}
    assert names(folder) == INPUTS | OUTPUTS


@POSIX
@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002])
def test_the_outputs_modes_follow_the_umask(umask: int, folder: Path, call: Call) -> None:
    old = os.umask(umask)
    try:
        assert call(*files(folder)).code == 0
    finally:
        os.umask(old)
    for name in OUTPUTS:
        assert stat.S_IMODE((folder / name).stat().st_mode) == 0o666 & ~umask


@POSIX
def test_a_link_as_output_is_replaced_and_not_followed(folder: Path, call: Call) -> None:
    (folder / "target").write_bytes(b"mine")
    (folder / "net_inference.prototxt").symlink_to(folder / "target")
    assert call(*files(folder)).code == 0
    assert (folder / "target").read_bytes() == b"mine"


def test_a_long_name_that_the_system_takes_is_taken(folder: Path, call: Call) -> None:
    name = "\u7db2" * 85  # 255 bytes
    done = call(*files(folder), "--output-model", folder / name)
    assert done.code == 0, done.err
    assert name in names(folder)


# ---- Interruptions ----


@pytest.mark.parametrize("step", ["rewrite_prototxt", "write_parts", "check_values"])
def test_ctrl_c_leaves_nothing(step: str, folder: Path, call: Call, monkeypatch: Patch) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    home = weights_files if step == "write_parts" else convert
    monkeypatch.setattr(home, step, interrupt)
    assert_refused(call(*files(folder)), "interrupted; nothing was written", code=130)
    assert names(folder) == INPUTS


@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(5, "Input/output error")])
def test_a_failure_between_the_two_renames_leaves_what_was_there(
    error: BaseException, old: bool, folder: Path, call: Call, monkeypatch: Patch
) -> None:
    right = os.replace
    for name in OUTPUTS if old else ():
        (folder / name).write_bytes(b"old")

    def fail(source: Any, target: Any) -> None:
        if str(target).endswith(".prototxt") and str(source).endswith(".tmp"):
            raise error
        right(source, target)

    monkeypatch.setattr(os, "replace", fail)
    outcome = call(*files(folder))
    is_interrupt = isinstance(error, KeyboardInterrupt)
    said = "nothing was written" if is_interrupt else "net_inference.prototxt cannot be written: "
    assert_refused(outcome, said, code=130 if is_interrupt else 2)
    assert names(folder) == INPUTS | (OUTPUTS if old else set())
    assert all((folder / name).read_bytes() == b"old" for name in OUTPUTS if old)


INTERRUPTED = """
import os, signal, sys
from caffe_fold import __main__, weights_files
number = int(sys.argv.pop())
write_parts = weights_files.write_parts

def write_and_wait(*arguments):
    write_parts(*arguments)
    os.kill(os.getpid(), number)
    signal.pause()

weights_files.write_parts = write_and_wait
__main__.main()
"""


def interrupted(folder: Path, number: int) -> Result[str]:
    """Fold in a process that sends itself a signal when both files are written."""
    return subprocess.run(
        [sys.executable, "-c", INTERRUPTED, *files(folder), str(int(number))],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=HANGS,
    )


@POSIX
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_leaves_nothing(number: int, folder: Path) -> None:
    assert_refused(interrupted(folder, number), "interrupted; nothing was written", code=130)
    assert names(folder) == INPUTS


@POSIX
def test_a_kill_leaves_no_prototxt(folder: Path) -> None:
    assert interrupted(folder, 9).returncode == -9
    assert not names(folder) & OUTPUTS


AFTERWARDS = """
import os, signal, sys
from caffe_fold import __main__
right = os.replace

def replace(source, target):
    right(source, target)
    if target.endswith(".prototxt"):
        os.kill(os.getpid(), signal.SIGINT)

os.replace = replace
__main__.main()
"""


@POSIX
def test_an_interrupt_after_the_pair_has_its_names_says_so(folder: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", AFTERWARDS, *files(folder)],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=HANGS,
    )
    there = " and ".join(str(folder / f"net_inference.{end}") for end in ("prototxt", "caffemodel"))
    assert_refused(done, f"interrupted; {there} are written", code=130)
    assert names(folder) == INPUTS | OUTPUTS


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
@pytest.mark.parametrize("option", [[], ["--json"], ["--strict"]])
def test_a_report_that_cannot_be_printed_is_exit_4_and_says_what_is_written(
    option: list[str], folder: Path
) -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "caffe_fold", *files(folder), *option],
            env=environment(),
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            timeout=HANGS,
        )
    assert done.returncode == 4
    assert "error: standard output cannot be written to: No space left" in done.stderr
    assert done.stderr.endswith("net_inference.caffemodel are written\n")
    assert done.stderr.count("\n") == 1
    assert names(folder) == INPUTS | OUTPUTS


@POSIX
def test_a_reader_that_goes_away_is_no_error(folder: Path) -> None:
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        [sys.executable, "-m", "caffe_fold", *files(folder)],
        env=environment(),
        stdout=write,
        stderr=subprocess.PIPE,
        timeout=HANGS,
        check=False,
    )
    os.close(write)
    assert (done.returncode, done.stderr) == (0, b"")
    assert names(folder) == INPUTS | OUTPUTS


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


def test_names_in_other_encodings_are_printed_safely(tmp_path: Path, call: Call) -> None:
    small_net().write(tmp_path)
    for kind, old, new in (
        ("prototxt", b'"conv"', b'"c\xb5\\033["'),
        ("caffemodel", b"\x04conv", b"\x04c\xb5\x1b["),
    ):
        path = tmp_path / f"net.{kind}"
        path.write_bytes(path.read_bytes().replace(old, new))
    done = call(*files(tmp_path))
    assert (done.code, done.err) == (0, "")
    assert "folded   c\\xb5\\x1b[ (Convolution)" in done.out
    assert json.loads(call(*files(tmp_path), "--json").out)["folded"][0]["layer"] == "c\\xb5\\x1b["
    assert b'"c\xb5\\033["' in (tmp_path / "net_inference.prototxt").read_bytes()


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


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252"])
def test_names_that_the_output_has_no_letters_for_are_printed(
    tmp_path: Path, encoding: str
) -> None:
    net = Net()
    net.input("data", (1, 3, 4, 4))
    net.conv("conv\u4e2d", "data", 3, 4)
    net.batch_norm("bn", "conv\u4e2d", 4)
    model, weights = map(str, net.write(tmp_path))
    done = subprocess.run(
        [sys.executable, "-m", "caffe_fold", "--model", model, "--weights", weights],
        env={**environment(), "PYTHONIOENCODING": encoding, "PYTHONUTF8": "0"},
        capture_output=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, b"")
    assert b"conv\\u4e2d" in done.stdout or encoding == "ascii"


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no /dev/full")
@pytest.mark.parametrize("command", [["inspect"], ["fold", "--dry-run"]])
def test_a_page_that_is_written_is_told_of_where_nothing_can_be_printed(
    folder: Path, command: list[str]
) -> None:
    pytest.importorskip("jinja2")
    page = str(folder / "page.html")
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "caffe_fold", *command, *files(folder), "--html", page],
            env=environment(),
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert done.returncode == 4
    assert "page.html is written" in done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no /dev/full")
def test_help_that_cannot_be_printed_is_one_line() -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "caffe_fold", "--help"],
            env=environment(),
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert done.returncode == 2
    assert done.stderr == "error: the system refuses: No space left on device\n"
