"""Ctrl-C, SIGTERM and kills while the command works, and what it leaves behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from calling import (
    INPUTS,
    OUTPUTS,
    POSIX,
    Patch,
    Result,
    assert_refused,
    environment,
    files,
    names,
    small_net,
)
from support.command import HANGS, Call

from caffe_fold import convert, weights_files


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    small_net().write(tmp_path)
    return tmp_path


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
