"""A CSV manifest's head."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.command import Call


@pytest.mark.parametrize("text", ["a.prototxt,a.caffemodel\n", "model;weights\na;b\n"])
def test_a_manifest_without_a_head_says_what_it_is(text: str, tmp_path: Path, call: Call) -> None:
    manifest = tmp_path / "pairs.csv"
    manifest.write_text(text)
    done = call("batch", manifest, "--output-dir", tmp_path / "out")
    first = text.splitlines()[0]
    message = f"{manifest}:1: found '{first}'; expected a head first, as 'model,weights'"
    assert (done.code, done.err) == (2, f"error: {message}\n")
