"""Rows of detections, matched before they are compared.

A DetectionOutput gives rows of image, label, score and a box, sorted by score. Scores
that are close to each other may change places, and a score at the threshold may come or
go; neither is a difference of the nets.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from caffe_fold.verification.compare import Difference

__all__ = ["differ_in_rows", "is_detections"]

_COLUMNS = 7
Rows = NDArray[Any]


def is_detections(type: str, shape: tuple[int, ...]) -> bool:
    """Whether a layer's top holds detections."""
    return type.endswith("DetectionOutput") and len(shape) > 1 and shape[-1] == _COLUMNS


def differ_in_rows(original: Rows, folded: Rows, tolerance: float) -> Difference:
    """Compare two lists of detections, shape (..., N, 7).

    Each row goes with the closest one of its image and label; the difference is the
    largest in score and box. A row without one within the tolerance may be missing if its
    score is within the tolerance of the lowest, where rows are cut off.
    """
    a, b = (_rows(values) for values in (original, folded))
    shape = original.shape
    both = np.concatenate([a, b])
    if not np.isfinite(both).all():
        return Difference(shape, math.inf, 0.0, "it holds numbers that are not finite")
    largest = float(np.abs(both[:, 2:]).max(initial=0.0))
    allowed = tolerance * max(largest, 1.0)
    gap, a, b = _matched(a, b, allowed)
    # Of the others, those at the threshold need no partner.
    lowest = float(both[:, 2].min(initial=math.inf)) + allowed
    far, a, b = _matched(a[a[:, 2] > lowest], b[b[:, 2] > lowest], math.inf)
    alone = np.concatenate([a, b])
    if len(alone):
        problem = (
            f"{len(alone)} detections are in one net alone, as label {alone[0, 1]:.0f} with score "
            f"{alone[0, 2]:.4f}"
        )
        return Difference(shape, math.inf, largest, problem)
    return Difference(shape, max(gap, far), largest)


def _rows(values: Rows) -> Rows:
    """The rows of a value, up to the one without an image that ends them in some engines."""
    rows = np.asarray(values, np.float64).reshape(-1, _COLUMNS)
    ends = np.flatnonzero(rows[:, 0] < 0)
    return rows[: ends[0]] if ends.size else rows


def _matched(a: Rows, b: Rows, allowed: float) -> tuple[float, Rows, Rows]:
    """The largest difference of rows that go together, up to what is allowed, and the
    rows of both that are alone."""
    gap, alone, free = 0.0, np.ones(len(a), bool), np.ones(len(b), bool)
    for index, row in enumerate(a):
        same = np.flatnonzero(free & (b[:, 0] == row[0]) & (b[:, 1] == row[1]))
        gaps = np.abs(b[same, 2:] - row[2:]).max(axis=1)
        if not same.size or gaps.min() > allowed:
            continue
        alone[index] = free[same[gaps.argmin()]] = False
        gap = max(gap, float(gaps.min()))
    return gap, a[alone], b[free]
