"""What is printed: colours, names in any encoding, and readers that are gone."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from calling import INPUTS, OUTPUTS, POSIX, environment, files, names, run, small_net
from support.command import HANGS, Call, all_shown
from support.nets import Net


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    small_net().write(tmp_path)
    return tmp_path


# ---- Reports ----


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


# ---- Interruptions ----


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


# ---- The demo ----


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
