"""A headless Chromium, from the PATH; none is downloaded."""

from __future__ import annotations

import shutil
from collections.abc import Iterator

import pytest

from .command import HANGS

NAMES = ("chromium", "chromium-browser", "google-chrome")
ARGUMENTS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-sync",
    "--disable-background-networking",
    "--disable-component-update",
    "--no-first-run",
)


@pytest.fixture(scope="session")
def browser() -> Iterator[object]:
    """One browser for all tests; skips where there is none."""
    path = next(filter(None, map(shutil.which, NAMES)), None)
    if path is None:
        pytest.skip("there is no Chromium on the PATH")
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as driver:
        found = driver.chromium.launch(
            executable_path=path, args=list(ARGUMENTS), timeout=HANGS * 1000
        )
        yield found
        found.close()
