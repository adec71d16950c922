"""How far apart two values of one blob are."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from caffe_fold.verification.result import BlobResult

__all__ = ["SQUASHING", "Difference", "differ", "worst"]

Array = NDArray[Any]

# Below this all is noise: a blob of such numbers is compared with 1 and not with itself.
_TINY = 1e-30

# A difference of their bottom becomes at most as large a one of their top, however small
# their values are: the difference is judged by the largest value of the bottom, unless it is
# more than _SQUASHED, which no bottom excuses in a number between -1 and 1.
_SQUASHED = 1e-2
SQUASHING = frozenset(("Softmax", "Sigmoid", "TanH", "LogSoftmax"))


@dataclass(frozen=True)
class Difference:
    """The shape of a value, the largest absolute difference, and the largest value in
    either net; ``problem`` says why they cannot be compared at all. ``reference`` is
    what the difference is judged by where that is more than the largest value."""

    shape: tuple[int, ...]
    absolute: float
    largest: float
    problem: str = ""
    reference: float = 0.0

    @property
    def relative(self) -> float:
        """The difference as a part of the largest value, or of the reference."""
        by = self.largest if self.absolute > _SQUASHED else max(self.largest, self.reference)
        return self.absolute / by if by > _TINY else self.absolute


def differ(original: Array, folded: Array) -> Difference:
    """Compare two values. Another shape, or NaN or an infinity in one alone, is
    infinitely far; infinities and NaN in the same places are equal."""
    a, b = np.asarray(original, np.float64), np.asarray(folded, np.float64)
    if a.shape != b.shape:
        return Difference(a.shape, math.inf, 0.0, f"its shape is {b.shape} in the folded net")
    finite = np.isfinite(a) & np.isfinite(b)
    if not np.array_equal(a[~finite], b[~finite], equal_nan=True):
        return Difference(a.shape, math.inf, 0.0, "it holds numbers that are not finite")
    if not finite.any() and a.size:
        return Difference(a.shape, math.inf, 0.0, "it holds no finite number")
    if not a.size:
        return Difference(a.shape, 0.0, 0.0)
    gap = float(np.abs(a[finite] - b[finite]).max())
    return Difference(a.shape, gap, float(max(np.abs(a[finite]).max(), np.abs(b[finite]).max())))


def worst(results: Iterable[BlobResult]) -> list[BlobResult]:
    """Of several results for one value, as of several samples, the worst; worst first."""
    found: dict[tuple[str, str, str], BlobResult] = {}
    for result in results:
        key = (result.blob, result.layer, result.section)
        if key not in found or _badness(result) > _badness(found[key]):
            found[key] = result
    return sorted(found.values(), key=_badness, reverse=True)


def _badness(result: BlobResult) -> tuple[bool, float]:
    value = result.relative
    return not result.passed, math.inf if math.isnan(value) else value
