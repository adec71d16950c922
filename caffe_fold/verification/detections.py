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


def is_detections(type: str, shape: tuple[int, ...]) -> bool:
    """Whether a layer's top holds detections."""
    return type.endswith("DetectionOutput") and len(shape) > 1 and shape[-1] == _COLUMNS


def differ_in_rows(original: NDArray[Any], folded: NDArray[Any], tolerance: float) -> Difference:
    """Compare two lists of detections, shape (..., N, 7).

    Each row goes with the closest one of its image and label; the difference is the
    largest in score and box. A row that is alone counts as missing, unless its score is
    within the tolerance of the lowest, where rows are cut off.
    """
    a, b = (_rows(values) for values in (original, folded))
    shape = original.shape
    both = np.concatenate([a, b])
    if not np.isfinite(both).all():
        return Difference(shape, math.inf, 0.0, "it holds numbers that are not finite")
    largest = float(np.abs(both[:, 2:]).max(initial=0.0))
    gap, alone = _matched(a, b)
    lowest = float(both[:, 2].min(initial=math.inf))
    missing = [row for row in alone if row[2] > lowest + tolerance * max(largest, 1.0)]
    if missing:
        row = missing[0]
        problem = (
            f"{len(missing)} of {max(len(a), len(b))} detections are in one net alone, as label "
            f"{row[1]:.0f} with score {row[2]:.4f}"
        )
        return Difference(shape, math.inf, largest, problem)
    return Difference(shape, gap, largest)


def _rows(values: NDArray[Any]) -> NDArray[Any]:
    """The rows of a value, up to the one without an image that ends them in some engines."""
    rows = np.asarray(values, np.float64).reshape(-1, _COLUMNS)
    ends = np.flatnonzero(rows[:, 0] < 0)
    return rows[: ends[0]] if ends.size else rows


def _matched(a: NDArray[Any], b: NDArray[Any]) -> tuple[float, list[NDArray[Any]]]:
    """The largest difference of rows that go together, and the rows that are alone."""
    gap, alone, free = 0.0, list[NDArray[Any]](), np.ones(len(b), bool)
    for row in a:
        same = np.flatnonzero(free & (b[:, 0] == row[0]) & (b[:, 1] == row[1]))
        if not same.size:
            alone.append(row)
            continue
        gaps = np.abs(b[same, 2:] - row[2:]).max(axis=1)
        closest = int(gaps.argmin())
        free[same[closest]] = False
        gap = max(gap, float(gaps[closest]))
    return gap, [*alone, *b[free]]
