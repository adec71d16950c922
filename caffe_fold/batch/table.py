"""What became of each model, as a row, and all of them as a table."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest
from typing import Any

from caffe_fold.batch.worker import Outcome
from caffe_fold.errors import show
from caffe_fold.report import count_norms

__all__ = ["Row", "as_table", "counted", "row_of"]


@dataclass(frozen=True)
class Row:
    """One model: its outputs' name, what became of it, and what is to say.

    :param status: "done", "unchanged" (done by an earlier run) or "failed".
    """

    name: str
    status: str
    model: str
    weights: str
    error: str = ""
    exit_code: int = 0
    seconds: float = 0.0
    report: dict[str, Any] | None = None

    @property
    def said(self) -> str:
        """What there is to say of it: the error, or how many warnings its report has."""
        count = len(self.report["warnings"]) if self.report and not self.error else 0
        return self.error or (counted(count, "warning") if count else "")

    def brief(self) -> Row:
        """The row with as much of its report as the table needs: there may be thousands."""
        if self.report is None:
            return self
        return replace(self, report={name: self.report[name] for name in _IN_TABLE})


_IN_TABLE = ("before", "after", "warnings")


def row_of(outcome: Outcome) -> Row:
    """The row of a task that ran."""
    task = outcome.task
    return Row(
        name=task.name,
        status="failed" if outcome.error else "done",
        model=task.model,
        weights=task.weights,
        error=outcome.error,
        exit_code=outcome.exit_code,
        seconds=outcome.seconds,
        report=outcome.report,
    )


def as_table(rows: Sequence[Row]) -> str:
    """A line a model, the failed ones last, with columns below each other."""
    ordered = sorted(rows, key=lambda row: (row.status == "failed", _with_numbers(row.name)))
    cells = [(row.status, show(row.name, 1000), *_counts(row)) for row in ordered]
    widths = [max(map(len, column)) for column in zip_longest(*cells, fillvalue="")]
    lines = []
    for row, line in zip(ordered, cells):
        text = "  ".join(cell.ljust(width) for cell, width in zip(line, widths))
        lines.append(f"{text}  {row.said}".rstrip())
    return "\n".join(lines)


def counted(count: int, noun: str) -> str:
    """So many of something."""
    return f"{count} {noun}{'s' * (count != 1)}"


def _with_numbers(name: str) -> list[str | int]:
    """What sorts a snapshot's ``_iter_9000`` before ``_iter_10000``."""
    parts: list[str | int] = list(re.split(r"(\d+)", name))
    parts[1::2] = map(int, parts[1::2])
    return parts


def _counts(row: Row) -> tuple[str, ...]:
    """Layers and BatchNorms before and after, and the seconds; nothing without a report, so
    that an error stands beside its name."""
    if row.report is None:
        return ()
    before, after = row.report["before"], row.report["after"]
    norms = [count_norms(counts["by_type"]) for counts in (before, after)]
    seconds = f"{row.seconds:.2f} s" if row.status != "unchanged" else ""
    layers = f"layers {before['layers']} -> {after['layers']}"
    return layers, f"BatchNorm {norms[0]} -> {norms[1]}", seconds
