"""What a verification found, as data, as text and as JSON."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from caffe_fold.errors import show

__all__ = ["BlobResult", "Coverage", "Skipped", "Timing", "Verification"]
__all__ += ["coverage_lines"]

SCHEMA = 1
_ROWS = 20


@dataclass(frozen=True)
class BlobResult:
    """One value of the folded net against the original's.

    ``layer`` wrote it in the folded net; ``stands_for`` are the layers of the original
    that went into that layer, on either side. ``absolute`` is the largest difference,
    ``largest`` the largest value, ``relative`` the one divided by the other. ``section``
    is "net", "parts" or "fold"; ``problem`` says why there is nothing to compare.
    """

    blob: str
    layer: str
    type: str
    stands_for: tuple[str, ...]
    section: str
    shape: tuple[int, ...]
    absolute: float
    relative: float
    largest: float
    passed: bool
    problem: str = ""


@dataclass(frozen=True)
class Skipped:
    """A blob that was not compared, and why."""

    blob: str
    reason: str


@dataclass(frozen=True)
class Coverage:
    """How much of the folded net was compared. ``by_folds`` and ``by_parts`` count its
    layers by the way they were; ``not_run`` are those that no engine ran, by type, and
    ``skipped`` those that ran and were not compared, as was asked for."""

    layers: int
    compared: int
    folds: int
    folds_alone: int
    by_parts: int
    not_run: dict[str, int]
    skipped: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Timing:
    """Median forward times of both nets in seconds, and their layers."""

    rounds: int
    original: float
    folded: float
    original_layers: int
    folded_layers: int

    @property
    def ratio(self) -> float:
        """How many times as fast the folded net is."""
        return self.original / self.folded if self.folded else math.nan


@dataclass(frozen=True)
class Verification:
    """The result of ``verify``. ``how`` is "whole", "rewritten" (whole, with layers of
    forks and data layers replaced by their equals) or "parts". ``differences`` says what is
    not the same beside what folding changes, a sentence each; each is a failure."""

    model: str
    weights: str
    folded_model: str
    folded_weights: str
    engine: str
    how: str
    tolerance: float
    samples: int
    passed: bool
    differences: tuple[str, ...]
    blobs: tuple[BlobResult, ...]
    incomparable: tuple[Skipped, ...]
    coverage: Coverage
    timing: Timing | None
    notes: tuple[str, ...]

    @property
    def worst(self) -> BlobResult | None:
        """The blob that differs most, as a part of its largest value."""
        return self.blobs[0] if self.blobs else None

    @property
    def verdict(self) -> str:
        """What was found in one line."""
        failed = sum(not blob.passed for blob in self.blobs)
        count, worst = len(self.blobs), self.worst
        found = f"{failed} of {count} blobs fail" if failed else f"{count} blobs agree"
        if worst is not None and worst.problem:
            found += f", {show(worst.blob)}: {worst.problem}"
        elif worst is not None:
            found += f", {show(worst.blob)} most, by {worst.relative:.1e}"
        if self.differences:
            found += f"; {self.differences[0]}"
        how = {"whole": "whole", "rewritten": "whole, rewritten", "parts": "in parts"}[self.how]
        samples = f"{self.samples} sample{'s' if self.samples > 1 else ''}"
        return f"{found} (tolerance {self.tolerance:g}; {self.engine}, {how}, {samples})"

    def to_dict(self) -> dict[str, Any]:
        """The result as plain data for JSON: names are printable text, and a number that
        is not finite is null."""
        from caffe_fold import __version__

        data = _plain(asdict(self))
        if self.timing is not None:
            data["timing"]["ratio"] = _plain(self.timing.ratio)
        return {"schema": SCHEMA, "version": __version__, **data}

    def to_text(self, rows: int | None = _ROWS) -> str:
        """The result for a person: a table of blobs, worst first, and what was covered.

        :param rows: how many blobs that passed are shown; None for all.
        """
        return "\n".join([*_table(self, rows), *_summary(self)])


def _plain(value: Any) -> Any:
    if isinstance(value, str):
        return show(value, limit=10**9)
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {show(str(k)): _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    return value


# ---- Text ----


def _table(result: Verification, rows: int | None) -> list[str]:
    failed = [blob for blob in result.blobs if not blob.passed]
    passed = [blob for blob in result.blobs if blob.passed]
    shown = passed if rows is None else passed[: max(rows - len(failed), 0)]
    lines = [f"{'':4}  {'difference':>10}  {'relative':>8}  {'largest':>8}  blob"]
    lines += [_row(blob) for blob in (*failed, *shown)]
    if len(passed) > len(shown):
        lines.append(f"...   and {len(passed) - len(shown)} more blobs that differ less")
    for skipped in result.incomparable:
        lines.append(f"not comparable: {show(skipped.blob)}: {skipped.reason}")
    return lines


def _row(blob: BlobResult) -> str:
    verdict = "PASS" if blob.passed else "FAIL"
    if blob.problem:
        numbers = f"{'-':>10}  {'-':>8}  {'-':>8}"
    else:
        numbers = f"{blob.absolute:10.3g}  {blob.relative:8.1e}  {blob.largest:8.3g}"
    shape = "x".join(map(str, blob.shape))
    name = (
        show(blob.blob) if blob.blob == blob.layer else f"{show(blob.blob)} of {show(blob.layer)}"
    )
    went = f" <- {' + '.join(map(show, blob.stands_for))}" if blob.stands_for else ""
    alone = " (alone)" if blob.section == "fold" else ""
    problem = f": {blob.problem}" if blob.problem else ""
    return f"{verdict}  {numbers}  {name} {shape}{went}{alone}{problem}"


def _summary(result: Verification) -> list[str]:
    lines = [f"FAIL  {sentence}" for sentence in result.differences]
    lines += [f"note  {note}" for note in result.notes]
    lines += coverage_lines(result)
    return [*lines, f"{'PASS' if result.passed else 'FAIL'}: {result.verdict}"]


def _counts(types: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {show(name)}" for name, count in types.items())


def coverage_lines(result: Verification) -> list[str]:
    """How much was compared, what was skipped or not run, and the times."""
    cover, lines = result.coverage, []
    if result.how == "parts":
        lines.append(
            f"covered {cover.compared} of {cover.layers} layers of the folded net: "
            f"{cover.folds_alone} of {cover.folds} folds alone, {cover.by_parts} layers in parts"
        )
    elif cover.compared < cover.layers:
        lines.append(f"compared {cover.compared} of {cover.layers} layers of the folded net")
    if cover.skipped:
        lines.append(f"not compared, since their blobs are skipped: {_counts(cover.skipped)}")
    if cover.not_run:
        lines.append(f"not run: {_counts(cover.not_run)}")
    timing = result.timing
    if timing is not None:
        lines.append(
            f"time {1000 * timing.original:.1f} -> {1000 * timing.folded:.1f} ms "
            f"({timing.ratio:.2f}x), median of {timing.rounds}; layers "
            f"{timing.original_layers} -> {timing.folded_layers}"
        )
    return lines
