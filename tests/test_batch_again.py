"""A batch that is run again: what is done is not done again, and what changed is."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from batching import LEDGER, Run, again, lines, tiny, write_pairs

from caffe_fold.batch import ledger
from caffe_fold.batch import worker as work

POSIX = pytest.mark.skipif(os.name != "posix", reason="needs POSIX files and signals")


def test_what_is_done_is_not_done_again(zoo: Path, tmp_path: Path, run: Run) -> None:
    assert again(run, zoo) == "2 done, 0 unchanged"
    first = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("net*")}
    run(zoo, "--report", tmp_path / "r")
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("net*")} == first
    assert [line["status"] for line in lines(tmp_path / "r")] == ["unchanged"] * 2
    assert all(line["report"]["folded"] for line in lines(tmp_path / "r"))


@dataclass(frozen=True)
class Changed:
    """What is done between two runs, and the arguments of the second."""

    change: Callable[[Path, Path], object]
    expected: str
    arguments: tuple[str, ...] = ()


def edit_ledger(out: Path, edit: Callable[[list[dict[str, Any]]], object]) -> None:
    entries = lines(out / LEDGER)
    edit(entries)
    (out / LEDGER).write_text("".join(json.dumps(entry) + "\n" for entry in entries))


CHANGES = {
    "new weights": Changed(lambda zoo, out: tiny(9).write(zoo, "net0"), "1 done, 1 unchanged"),
    "a prototxt of the same size": Changed(
        lambda zoo, out: rewritten(zoo / "net0.prototxt", "dim: 4", "dim: 5"),
        "1 done, 1 unchanged",
    ),
    "an output is gone": Changed(
        lambda zoo, out: (out / "net1_inference.prototxt").unlink(), "1 done, 1 unchanged"
    ),
    "an output changed": Changed(
        lambda zoo, out: (out / "net1_inference.caffemodel").write_bytes(b"x"),
        "1 done, 1 unchanged",
    ),
    "another option": Changed(lambda zoo, out: None, "2 done, 0 unchanged", ("--no-check",)),
    "a new pair": Changed(lambda zoo, out: tiny(3).write(zoo, "net3"), "1 done, 2 unchanged"),
    "another version": Changed(
        lambda zoo, out: edit_ledger(out, lambda entries: entries[-1].update(version="0")),
        "1 done, 1 unchanged",
    ),
    "no checksum was recorded": Changed(
        lambda zoo, out: None, "2 done, 0 unchanged", ("--checksum",)
    ),
    "the ledger is gone": Changed(lambda zoo, out: (out / LEDGER).unlink(), "2 done, 0 unchanged"),
    "the ledger is garbage": Changed(
        lambda zoo, out: (out / LEDGER).write_bytes(b"\0\xff\n[1]\n{}\n"), "2 done, 0 unchanged"
    ),
}


def rewritten(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


@pytest.mark.parametrize("changed", CHANGES.values(), ids=CHANGES.keys())
def test_what_changed_is_done_again(changed: Changed, zoo: Path, tmp_path: Path, run: Run) -> None:
    run(zoo)
    changed.change(zoo, tmp_path / "out")
    assert again(run, zoo, *changed.arguments) == changed.expected
    assert again(run, zoo, *changed.arguments).startswith("0 done")


def test_a_torn_last_line_is_not_read(zoo: Path, tmp_path: Path, run: Run) -> None:
    run(zoo)
    path = tmp_path / "out" / LEDGER
    path.write_bytes(path.read_bytes()[:-20])
    assert again(run, zoo) == "1 done, 1 unchanged"
    assert again(run, zoo) == "0 done, 2 unchanged"


@pytest.mark.parametrize(
    "line",
    [
        '{"name":"net0_inference.caffemodel","report":{}}',
        '{"name":"net0_inference.caffemodel","started":null}',
        '{"name":"net0_inference.caffemodel","started":[1,"\\ud800","a\\u0000b"]}',
        '{"name":"net0_inference.caffemodel","report":{},"inputs":[1],"outputs":{"":1}}',
        "[" * 100_000,
        "7",
    ],
)
def test_a_line_that_is_no_entry_is_not_read(
    line: str, zoo: Path, tmp_path: Path, run: Run
) -> None:
    run(zoo)
    with (tmp_path / "out" / LEDGER).open("a") as file:
        file.write(f"{line}\n")
    assert again(run, zoo) == "0 done, 2 unchanged"


def test_with_checksum_the_content_counts_and_not_place_and_time(
    zoo: Path, tmp_path: Path, run: Run
) -> None:
    run(zoo, "--checksum")
    moved = tmp_path / "moved"
    shutil.copytree(zoo, moved, copy_function=shutil.copyfile)
    assert again(run, moved, "--checksum") == "0 done, 2 unchanged"
    status = (moved / "net0.prototxt").stat()
    rewritten(moved / "net0.prototxt", "dim: 4", "dim: 5")
    os.utime(moved / "net0.prototxt", ns=(status.st_atime_ns, status.st_mtime_ns))
    assert again(run, moved, "--checksum") == "1 done, 1 unchanged"
    assert again(run, moved) == "1 done, 1 unchanged"  # the other has another place now


def test_with_checksum_the_output_folder_may_move(zoo: Path, tmp_path: Path, run: Run) -> None:
    run(zoo, "--checksum")
    moved, out = tmp_path / "moved", tmp_path / "out"
    zoo.rename(moved)
    out.rename(tmp_path / "old")
    shutil.copytree(tmp_path / "old", out)  # with the times
    arguments = ("--output-dir", str(tmp_path / "old"), "--checksum")
    assert again(run, moved, *arguments, "--report", str(tmp_path / "r")) == "0 done, 2 unchanged"
    for line in lines(tmp_path / "r"):
        assert line["report"]["weights"] == line["weights"]
        assert line["report"]["weights"].startswith(str(moved))
        assert line["report"]["output_model"].startswith(str(tmp_path / "old"))


def test_with_checksum_the_outputs_count_by_their_content(
    zoo: Path, tmp_path: Path, run: Run
) -> None:
    """As after a build server brought its cache back, and after a file was edited in place."""
    run(zoo, "--checksum")
    for path in (tmp_path / "out").iterdir():
        os.utime(path, (1, 1))
    assert again(run, zoo, "--checksum") == "0 done, 2 unchanged"
    path = tmp_path / "out/net0_inference.prototxt"
    path.write_bytes(path.read_bytes().replace(b"dim: 4", b"dim: 5"))
    os.utime(path, (1, 1))
    assert again(run, zoo, "--checksum") == "1 done, 1 unchanged"


def test_what_was_made_of_another_source_is_not_replaced_in_silence(
    zoo: Path, tmp_path: Path, run: Run
) -> None:
    run(zoo)
    tiny(7).write(tmp_path / "zoo", "net0")
    assert "warning" not in run(zoo).err
    write_pairs(tmp_path / "other", 1)
    done = run(tmp_path / "other")
    output = tmp_path / "out/net0_inference.caffemodel"
    source = zoo / "net0.caffemodel"
    assert (done.code, done.err.count("warning: ")) == (0, 1)
    assert f"warning: {output} replaces what was made of {source}; " in done.err


@POSIX
def test_the_ledger_follows_no_link(zoo: Path, tmp_path: Path, run: Run) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "mine").write_text("precious")
    (tmp_path / "out" / f"{LEDGER}.tmp").symlink_to(tmp_path / "mine")
    assert run(zoo).code == 0
    assert (tmp_path / "mine").read_text() == "precious"


def test_the_ledger_does_not_grow(zoo: Path, tmp_path: Path, run: Run) -> None:
    for index in range(3):
        tiny(index).write(zoo, "net0")
        run(zoo)
    run(zoo)
    names = [entry["name"] for entry in lines(tmp_path / "out" / LEDGER)]
    assert sorted(names) == ["net0_inference.caffemodel", "net1_inference.caffemodel"]


def test_two_batches_in_one_folder_are_refused(zoo: Path, tmp_path: Path, run: Run) -> None:
    with ledger.locked(str(tmp_path / "out")):
        done = run(zoo)
    assert (done.code, done.out) == (2, "")
    assert done.err.startswith(f"error: {tmp_path / 'out'} is being written by another run")
    assert run(zoo).code == 0


def test_what_a_killed_fold_left_goes_and_nothing_else(zoo: Path, tmp_path: Path, run: Run) -> None:
    run(zoo)
    out = tmp_path / "out"
    name = ".net0_inference.prototxt.tmp"
    started = {
        "name": "net0_inference.caffemodel",
        "started": ["net0_inference.prototxt", "net0_inference.caffemodel", "../zoo/net0.prototxt"],
    }
    with (out / LEDGER).open("a") as file:
        file.write(json.dumps(started) + "\n")
    (out / name).touch()
    scratch = out / ".net0_inference.caffemodel.scratch"
    others = [  # of runs that may be alive
        out / ".caffe-fold-abcd1234",
        out / ".net1_inference.caffemodel.scratch",
    ]
    for path in (scratch, *others):
        path.mkdir()
    kept = [out / ".net1_inference.prototxt.tmp", zoo / ".net0.prototxt.tmp", *others]
    for path in kept[:2]:
        path.touch()
    assert again(run, zoo) == "1 done, 1 unchanged"
    assert not (out / name).exists()
    assert not scratch.exists()
    assert all(path.exists() for path in kept)


@POSIX
@pytest.mark.parametrize("kind", ["--equalize", "hdf5"])
@pytest.mark.parametrize("name", ["net", "n" * 220])
def test_a_killed_fold_leaves_scratch_that_the_next_run_removes(
    kind: str, name: str, tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "zoo").mkdir()
    weights = tiny().write(tmp_path / "zoo", name)[1]
    options = [kind]
    if kind == "hdf5":
        pytest.importorskip("h5py", reason="the hdf5 extra is not installed")
        from test_hdf5_fold import write_hdf5

        write_hdf5(weights, Path(f"{weights}.h5"))
        weights.unlink()
        options = []
    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr(tempfile.TemporaryDirectory, "cleanup", lambda self: None)
        patch.setattr(shutil, "rmtree", lambda *_, **__: None)
        patch.setattr(work, "entry_of", lambda *_: None)  # killed before it was done
        assert run(tmp_path / "zoo", *options).code == 0
    assert [path.suffix for path in out.iterdir() if path.is_dir()] == [".scratch"]
    assert run(tmp_path / "zoo", *options).code == 0
    assert not any(path.is_dir() for path in out.iterdir())
