"""Fixtures of all tests."""

from __future__ import annotations

import signal

import pytest
from support import engines
from support.browser import browser
from support.command import Call, caller

__all__ = ["browser", "call", "real_caffe"]


def pytest_configure() -> None:
    """Have Ctrl-C again where it is ignored, as in what a script starts with ``&``: the tests'
    processes would ignore it, too."""
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Call:
    """Run the command line in this process."""
    return caller(monkeypatch, capsys)


@pytest.fixture
def real_caffe(monkeypatch: pytest.MonkeyPatch) -> None:
    """Name the interpreter that has pycaffe; skip where none is there."""
    try:
        python = engines.pycaffe_python()
    except engines.Unavailable as reason:
        pytest.skip(str(reason))
    monkeypatch.setenv("CAFFE_FOLD_CAFFE_PYTHON", str(python))
