"""The table of small nets, by name, that the modules of cases fill."""

from __future__ import annotations

from typing import Callable

from .nets import Net

Build = Callable[[], Net]
CASES: dict[str, Build] = {}


def case(build: Build) -> Build:
    """Take a function that builds a net as a case for the engines."""
    CASES[build.__name__] = build
    return build


def small(channels: int = 4, size: int = 8, batch: int = 2) -> Net:
    """Return a net with an input 'data' (batch, channels, size, size)."""
    net = Net()
    net.input("data", (batch, channels, size, size))
    return net
