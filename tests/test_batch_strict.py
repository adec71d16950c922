"""``--strict`` where no pair is found."""

from __future__ import annotations

from pathlib import Path

from batching import tiny
from support.command import Call


def test_a_dry_run_ends_as_the_run_would(tmp_path: Path, call: Call) -> None:
    (tmp_path / "alone.caffemodel").write_bytes(tiny().caffemodel())
    arguments = ("batch", tmp_path, "--output-dir", tmp_path / "out", "--strict")
    dry, real = call(*arguments, "--dry-run"), call(*arguments)
    assert dry == real
    assert dry.code == 1
