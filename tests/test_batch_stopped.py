"""A batch that cannot go on says how far it came."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import batching
import pytest
from batching import LEDGER, files, folded, write_pairs
from support.command import Call

from caffe_fold.batch.ledger import Ledger, read
from caffe_fold.errors import writing


@pytest.fixture
def second_is_full(monkeypatch: pytest.MonkeyPatch) -> None:
    """The disk is full when the second model is to be recorded."""
    real = Ledger.done

    def done(self: Ledger, entry: dict[str, object]) -> None:
        if any("report" in earlier for earlier in read(self.folder).values()):
            with writing(self.address):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(self, entry)

    monkeypatch.setattr(Ledger, "done", done)


def test_a_ledger_that_cannot_be_written_says_what_is_done(
    second_is_full: None, tmp_path: Path, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    batching.fold_in_threads(monkeypatch)
    write_pairs(tmp_path / "zoo", 3)
    out = tmp_path / "out"
    arguments = ("batch", tmp_path / "zoo", "--output-dir", out, "--jobs", "1")
    done = call(*arguments)
    assert done.code == 2
    assert done.err.splitlines()[-1] == (
        f"error: {out / LEDGER} cannot be written: No space left on device; 1 of 3 models are "
        "done, and the same command goes on from there"
    )
    monkeypatch.undo()
    batching.fold_in_threads(monkeypatch)
    assert "2 done, 1 unchanged" in call(*arguments).out
    assert files(out) == folded("net0", "net1", "net2")


def test_an_interrupt_while_the_ledger_is_closed_says_what_is_done(
    tmp_path: Path, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    batching.fold_in_threads(monkeypatch)
    write_pairs(tmp_path / "zoo", 2)

    def close(self: Ledger) -> None:
        os.close(self._descriptor)
        raise KeyboardInterrupt

    monkeypatch.setattr(Ledger, "close", close)
    done = call("batch", tmp_path / "zoo", "--output-dir", tmp_path / "out")
    assert done.code == 130
    assert "error: interrupted; 2 of 2 models are done" in done.err


def test_an_interrupt_of_the_table_does_not_say_that_nothing_was_written(
    tmp_path: Path, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    batching.fold_in_threads(monkeypatch)
    write_pairs(tmp_path / "zoo", 1)

    def as_table(_: object) -> str:
        raise KeyboardInterrupt

    monkeypatch.setattr("caffe_fold.batch.table.as_table", as_table)
    done = call("batch", tmp_path / "zoo", "--output-dir", tmp_path / "out")
    assert done.code == 130
    assert done.err.endswith("error: interrupted; the batch is done, but for its table\n")


def test_an_interrupt_while_the_ledger_is_begun_leaves_no_half(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def replace(*_: str) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", replace)
    with pytest.raises(KeyboardInterrupt):
        Ledger(str(tmp_path))
    assert list(tmp_path.iterdir()) == []


def test_an_interrupt_of_the_look_at_what_is_done_does_not_say_that_nothing_is(
    tmp_path: Path, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_pairs(tmp_path / "zoo", 1)

    def split(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("caffe_fold.batch.run.split", split)
    done = call("batch", tmp_path / "zoo", "--output-dir", tmp_path / "out")
    assert (done.code, done.err) == (130, "error: interrupted; nothing was folded by this run\n")
