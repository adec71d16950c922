"""Fixtures of all tests."""

from __future__ import annotations

import pytest
from support.command import Call, caller


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Call:
    """Run the command line in this process."""
    return caller(monkeypatch, capsys)
