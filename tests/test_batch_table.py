"""A batch's table and its last line, as text."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import batching
import pytest
from batching import tiny, write_pairs
from support.command import Call

from caffe_fold.batch.table import Row, as_table


def row(name: str, error: str = "", **by_type: int) -> Row:
    counts: dict[str, Any] = {"layers": 1, "by_type": by_type}
    report = None if error else {"warnings": [], "before": counts, "after": counts}
    status = "failed" if error else "done"
    return Row(name, status, "m", "w", error=error, seconds=0.25, report=report)


def test_an_error_stands_beside_its_name() -> None:
    assert as_table([row("bad", "no net"), row("a", BatchNorm=2)]).splitlines() == [
        "done    a    layers 1 -> 1  BatchNorm 2 -> 2  0.25 s",
        "failed  bad  no net",
    ]


def test_of_thousands_of_reports_the_table_alone_is_kept() -> None:
    one = row("a", BatchNorm=2)
    assert one.report is not None
    full = replace(one, report={**one.report, "folded": [{"layer": "conv"}] * 1000})
    assert full.brief() == one
    assert as_table([full.brief()]) == as_table([full])
    assert row("bad", "no net").brief().report is None


def test_snapshots_are_in_the_order_of_their_numbers() -> None:
    names = ["a_iter_10000", "a_iter_9000", "a", "9", "b_iter_1"]
    shown = [line.split()[1] for line in as_table([row(name) for name in names]).splitlines()]
    assert shown == ["9", "a", "a_iter_9000", "a_iter_10000", "b_iter_1"]


def test_norms_of_all_types_are_counted() -> None:
    shown = as_table([row("a", BatchNorm=1, BN=2, CuDNNBatchNorm=4, Scale=8)])
    assert "BatchNorm 7 -> 7" in shown


def test_one_is_no_plural(tmp_path: Path, call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    batching.fold_in_threads(monkeypatch)
    write_pairs(tmp_path / "zoo", 1)
    (tmp_path / "zoo" / "alone.caffemodel").write_bytes(tiny().caffemodel())
    done = call("batch", tmp_path / "zoo", "--output-dir", tmp_path / "out")
    assert "\n1 model: 1 done, 0 unchanged, 0 failed; 1 file skipped; " in done.out
