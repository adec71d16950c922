"""Fixtures of all tests, and how they are run."""

from __future__ import annotations

import gc
import signal
from typing import Any

import pytest
from batching import run, zoo
from hypothesis import HealthCheck, settings
from support import engines
from support.browser import browser
from support.command import Call, caller

__all__ = ["browser", "call", "real_caffe", "run", "zoo"]


# The same examples each time and on each machine, however slow: scripts/fuzz.py looks for others.
settings.register_profile(
    "tests",
    database=None,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("tests")

# A shell has its background commands ignore Ctrl-C, and they theirs; the tests send it.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Give each worker a part as a whole, so that its fixtures of modules are made once, and let
    it take from the others' when it is done."""
    if config.getoption("dist") != "load":  # which is what -n alone stands for
        return None
    from xdist.scheduler import WorkStealingScheduling

    return WorkStealingScheduling(config, log)


def pytest_collection_finish() -> None:
    """Keep thousands of collected tests out of each search for garbage from now on."""
    gc.collect()
    gc.freeze()


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
