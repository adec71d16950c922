"""The command line, run in this process."""

from __future__ import annotations

import contextlib
import gc
import os
import signal
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import pytest

from caffe_fold import cli

HANGS = 600
"""Seconds, after which a process hangs for certain, however slow and loaded the machine is."""


@dataclass(frozen=True)
class Outcome:
    """What the command gave: exit code, standard output, standard error."""

    code: int
    out: str
    err: str


class Call(Protocol):
    """Runs the command with some arguments."""

    def __call__(self, *arguments: str | Path) -> Outcome:
        """Run it."""


def caller(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Call:
    """Return what runs ``main``, which ends in an exit code whatever happens."""

    def run_main(*arguments: str | Path) -> Outcome:
        monkeypatch.setattr(sys, "argv", ["caffe-fold", *map(str, arguments)])
        handler = signal.getsignal(signal.SIGTERM)
        try:
            with pytest.raises(SystemExit) as caught:
                cli.main()
        finally:
            signal.signal(signal.SIGTERM, handler)
            gc.enable()  # which a fold that has the process to itself does without
        assert isinstance(caught.value.code, int)
        return Outcome(caught.value.code, *capsys.readouterr())

    return run_main


def all_shown(terminal: int) -> bytes:
    """What was written to a terminal until its other end was closed; closes this one."""
    shown = b""
    with contextlib.suppress(OSError):  # its end, on Linux
        while data := os.read(terminal, 65536):
            shown += data
    os.close(terminal)
    return shown


def unwatched() -> dict[str, str]:
    """The environment of a process whose coverage is not measured: that writes files, too."""
    return {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE_")}
