"""Comparing a net's evaluation with that of the net folded from it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from .evaluate import Evaluation

FoldPoint = tuple[str, str]
"""(layer it was folded into, layer folded away): their tops hold the same values."""


@dataclass(frozen=True)
class Difference:
    """How far apart two values of one blob are, and the largest value among them."""

    blob: str
    difference: float
    largest: float

    @property
    def relative(self) -> float:
        """The difference relative to the blob's largest value (to 1 where all are tiny)."""
        return self.difference / self.largest if self.largest > 1e-30 else self.difference


def differ(blob: str, left: npt.ArrayLike, right: npt.ArrayLike) -> Difference:
    """Compare two values; another shape, or NaN or infinity on one side only, is infinitely far."""
    a, b = np.asarray(left, np.float64), np.asarray(right, np.float64)
    if a.shape != b.shape:
        return Difference(blob, np.inf, 1.0)
    finite = np.isfinite(a) & np.isfinite(b)
    if not np.array_equal(a[~finite], b[~finite], equal_nan=True):
        return Difference(blob, np.inf, 1.0)
    if not finite.any():
        return Difference(blob, 0.0, 0.0)
    gap = float(np.abs(a[finite] - b[finite]).max())
    return Difference(blob, gap, float(np.abs(a[finite]).max()))


def compare_pair(
    original: Evaluation, folded: Evaluation, fold_points: Iterable[FoldPoint] = ()
) -> list[Difference]:
    """Compare every value that both nets compute.

    These are the tops of the layers that both nets have and whose meaning the
    fold left alone, and each fold point: (layer of the folded net, layer of the
    original that was folded into it). A layer that is the first of a fold point
    holds another value than before, and so does every in-place value between
    the two; a blob's final value is compared where both nets have the blob and
    its last writers are one layer or a fold point.
    """
    points = dict(fold_points)
    return _tops(original, folded, points) + _blobs(original, folded, points)


def _blobs(original: Evaluation, folded: Evaluation, points: Mapping[str, str]) -> list[Difference]:
    found = []
    for name, value in folded.blobs.items():
        if name not in original.blobs:
            continue
        writer = folded.writers.get(name, "")
        if original.writers.get(name, "") == points.get(writer, writer):
            found.append(differ(name, original.blobs[name], value))
    return found


def _tops(original: Evaluation, folded: Evaluation, points: Mapping[str, str]) -> list[Difference]:
    found = []
    tops_of = _by_layer(original)
    for layer, tops in _by_layer(folded).items():
        source = points.get(layer, layer)
        # By place, not by name: a fold may give the producer the name of the last top.
        for (name, value), (_, before) in zip(tops, tops_of.get(source, [])):
            label = f"{layer}@{name}" if source == layer else f"{layer}@{name} = {source}"
            found.append(differ(label, before, value))
    return found


def _by_layer(evaluation: Evaluation) -> dict[str, list[tuple[str, npt.NDArray[np.float64]]]]:
    grouped: dict[str, list[tuple[str, npt.NDArray[np.float64]]]] = {}
    for (layer, top), value in evaluation.tops.items():
        grouped.setdefault(layer, []).append((top, value))
    return grouped


def assert_same(
    original: Evaluation,
    folded: Evaluation,
    fold_points: Iterable[FoldPoint] = (),
    tolerance: float = 1e-4,
) -> None:
    """Assert that every shared value agrees, relative to its blob's largest value."""
    differences = compare_pair(original, folded, fold_points)
    if not differences:
        raise AssertionError("the two nets have no value in common")
    bad = [item for item in differences if not item.relative <= tolerance]
    if bad:
        lines = [f"{i.blob}: {i.difference:.3g} of {i.largest:.3g}" for i in bad[:10]]
        raise AssertionError(f"{len(bad)} of {len(differences)} values differ: " + "; ".join(lines))


def assert_engine(
    left: Mapping[str, npt.ArrayLike], right: Mapping[str, npt.ArrayLike], tolerance: float = 1e-4
) -> None:
    """Assert that two results, arrays by one kind of key, agree on every key they share."""
    shared = sorted(set(left) & set(right))
    if not shared:
        raise AssertionError("the two results have no key in common")
    for key in shared:
        item = differ(key, left[key], right[key])
        if not item.relative <= tolerance:
            raise AssertionError(f"{key}: {item.difference:.3g} of {item.largest:.3g}")
