"""Small charts of channel ranges, as points of SVG paths.

A chart has the channels along x, the widest first, and along y the logarithm of their
range as a part of the layer's largest: 1 at the top, and at the bottom 1/512, which int8
with one step rounds to zero as it does all below 1/254.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from caffe_fold.quantization.readiness import LEVELS, Weights

__all__ = ["Chart", "Curve", "Mark", "chart"]

_MOST = 64
_DEPTH = 9.0  # halvings from top to bottom


@dataclass(frozen=True)
class Curve:
    """One state of a layer: what it is called, and the path that shows it."""

    name: str
    path: str


@dataclass(frozen=True)
class Mark:
    """A line of the scale: its height and what stands beside it."""

    y: float
    text: str


@dataclass(frozen=True)
class Chart:
    """``zero`` is the height below which weights are rounded to zero."""

    width: int
    height: int
    curves: tuple[Curve, ...]
    marks: tuple[Mark, ...]
    zero: float


def chart(states: Sequence[tuple[str, Weights]], width: int, height: int) -> Chart:
    """The ranges of some states of a layer, by name: before, after, and what may come."""
    return Chart(
        width,
        height,
        tuple(Curve(name, _path(weights, width, height)) for name, weights in states),
        tuple(
            Mark(_y(1 / part, height), "1" if part == 1 else f"1/{part}")
            for part in (1, 4, 16, 64, 256)
        ),
        _y(1 / (2 * LEVELS), height),
    )


def _path(weights: Weights, width: int, height: int) -> str:
    """A step for each channel, or for as many of them as can be seen."""
    ordered = np.sort(weights.ranges)[::-1]
    if not ordered.size or not weights.largest:
        return ""
    count = min(ordered.size, _MOST)
    picked = np.linspace(0, ordered.size - 1, count).round().astype(int)
    parts: list[str] = []
    for index, share in enumerate(ordered[picked] / weights.largest):
        left, right = (round(width * (index + more) / count, 1) for more in (0, 1))
        y = _y(float(share), height)
        parts.append(f"{'L' if parts else 'M'}{left:g} {y:g}H{right:g}")
    return "".join(parts)


def _y(share: float, height: int) -> float:
    halvings = min(-math.log2(share), _DEPTH) if share > 0 else _DEPTH
    return round(height * halvings / _DEPTH, 1)
