"""A small net and the command line, in this process and in one of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from support.command import HANGS, Outcome
from support.nets import Net

from caffe_fold import cli

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
