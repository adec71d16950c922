"""Fixtures of all tests."""

from __future__ import annotations

import pytest
from support import engines
from support.browser import browser
from support.command import Call, caller

__all__ = ["browser", "call", "real_caffe"]


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
