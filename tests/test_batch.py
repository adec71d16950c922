"""A batch: what it writes, what it says, and that no model stops another."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import batching
import pytest
from batching import Run, files, folded, lines, write_pairs
from support.command import Call

import caffe_fold
from caffe_fold.batch import ledger
from caffe_fold.batch.tasks import Task
from caffe_fold.errors import OutputError

POSIX = pytest.mark.skipif(os.name != "posix", reason="needs POSIX files and signals")


# ---- What it writes and says ----


def test_the_files_are_those_of_single_folds(zoo: Path, tmp_path: Path, run: Run) -> None:
    report = tmp_path / "report.jsonl"
    done = run(zoo, "--report", report)
    assert done.code == 0, done.err
    out = tmp_path / "out"
    assert files(out) == folded("net0", "net1")
    for line in lines(report):
        single = caffe_fold.fold(line["model"], line["weights"], tmp_path / "m", tmp_path / "w")
        stem = line["output"][: -len(".caffemodel")]
        assert (out / f"{stem}.prototxt").read_bytes() == (tmp_path / "m").read_bytes()
        assert (out / f"{stem}.caffemodel").read_bytes() == (tmp_path / "w").read_bytes()
        expected = single.to_dict()
        expected["output_model"] = str(out / f"{stem}.prototxt")
        expected["output_weights"] = str(out / f"{stem}.caffemodel")
        assert line["report"] == expected
        assert (line["status"], line["error"], line["exit_code"]) == ("done", None, 0)


def test_progress_is_on_standard_error_and_the_table_on_standard_output(
    zoo: Path, run: Run
) -> None:
    done = run(zoo)
    progress = done.err.splitlines()
    assert sorted(line[6:] for line in progress) == [
        f"done  net{i}_inference.caffemodel" for i in (0, 1)
    ]
    assert [line[:5] for line in progress] == ["[1/2]", "[2/2]"]
    *rows, last = done.out.splitlines()
    assert [re.sub(r" +\d+\.\d\d s$", "", row) for row in rows] == [
        f"done  net{i}_inference.caffemodel  layers 4 -> 2  BatchNorm 1 -> 0" for i in (0, 1)
    ]
    assert last.startswith("2 models: 2 done, 0 unchanged, 0 failed; 0 files skipped; ")


def test_quiet_prints_failures_alone(zoo: Path, run: Run) -> None:
    (zoo / "net1.caffemodel").write_bytes(b"")
    done = run(zoo, "--quiet")
    assert (done.code, done.out) == (1, "")
    assert done.err.count("\n") == 1
    assert "failed  net1_inference.caffemodel: " in done.err


def test_a_bad_model_does_not_stop_the_others(zoo: Path, tmp_path: Path, call: Call) -> None:
    write_pairs(zoo / "b", 1)
    (zoo / "net0.caffemodel").write_bytes((zoo / "net0.caffemodel").read_bytes()[:-5])
    (zoo / "net1.prototxt").write_text("layer {")
    done = call("batch", zoo, "--output-dir", tmp_path / "out", "--report", tmp_path / "r")
    assert done.code == 1
    assert files(tmp_path / "out") == {f"b/{name}" for name in folded("net0")}
    errors = {line["output"]: line["error"] for line in lines(tmp_path / "r")}
    assert f"{zoo / 'net0.caffemodel'}" in errors["net0_inference.caffemodel"]
    assert f"{zoo / 'net1.prototxt'}:1:" in errors["net1_inference.caffemodel"]
    assert errors["b/net0_inference.caffemodel"] is None
    *_, first, second, last = done.out.splitlines()
    assert (first.startswith("failed"), second.startswith("failed")) == (True, True)
    assert "3 models: 1 done, 0 unchanged, 2 failed" in last


def test_strict_fails_the_model_that_keeps_a_batch_norm(
    zoo: Path, tmp_path: Path, run: Run
) -> None:
    batching.with_left().write(zoo, "left")
    done = run(zoo, "--strict", "--report", tmp_path / "r")
    assert done.code == 1
    by_name = {line["output"]: line for line in lines(tmp_path / "r")}
    left = by_name["left_inference.caffemodel"]
    assert (left["exit_code"], left["error"]) == (3, "--strict: 1 BatchNorm layer is left")
    assert left["report"]["written"]
    assert files(tmp_path / "out") == folded("net0", "net1", "left")
    again = run(zoo, "--strict")
    assert "3 models: 0 done, 2 unchanged, 1 failed" in again.out
    assert run(zoo).code == 0


@pytest.mark.parametrize("checksum", [False, True])
def test_an_input_of_verify_is_told_by_its_stamp(checksum: bool, tmp_path: Path, zoo: Path) -> None:
    """With a checksum by its content, wherever it lies; an input that is new is seen, too."""
    one, other = tmp_path / "one.npy", tmp_path / "other.npy"
    for path in (one, other):
        path.write_bytes(b"input")

    def task(given: Path | None) -> Task:
        model, weights = str(zoo / "net0.prototxt"), str(zoo / "net0.caffemodel")
        options = {"verify": {"input": given and str(given)}}
        files = (model, weights, str(tmp_path), model, weights)
        return Task("net0", *files, options=options, strict=False, checksum=checksum)

    entry = ledger.entry_of(task(one), ledger.inputs_of(task(one)), {}, has_digests=False)
    assert ledger.is_done(task(one), entry)
    assert ledger.is_done(task(other), entry) == checksum
    assert not ledger.is_done(task(None), entry)
    one.write_bytes(b"another")
    assert not ledger.is_done(task(one), entry)


def test_verify_reaches_each_fold(zoo: Path, tmp_path: Path, run: Run) -> None:
    pytest.importorskip("cv2", reason="the verify extra is not installed")
    done = run(zoo, "--verify", "--verify-tolerance", "0.001", "--report", tmp_path / "r")
    assert done.code == 0, done.err
    assert all(line["report"]["verified"]["passed"] for line in lines(tmp_path / "r"))


def test_dry_run_prints_the_plan_and_writes_nothing(zoo: Path, tmp_path: Path, run: Run) -> None:
    done = run(zoo, "--dry-run")
    pairs = [f"fold  {zoo}/net{i}.prototxt + {zoo}/net{i}.caffemodel" for i in (0, 1)]
    assert (done.code, done.err) == (0, "")
    assert done.out.splitlines() == [
        *(f"{pair} -> net{i}_inference.caffemodel" for i, pair in enumerate(pairs)),
        "2 to fold, 0 unchanged, 0 skipped; nothing was written",
    ]
    assert not (tmp_path / "out").exists()


def test_a_source_may_be_its_own_output_folder(zoo: Path, call: Call) -> None:
    for expected in ("2 done, 0 unchanged", "0 done, 2 unchanged"):
        done = call("batch", zoo, "--output-dir", zoo, "--jobs", "1")
        assert (done.code, expected in done.out) == (0, True)
    assert files(zoo) == {f"net{i}.{e}" for i in (0, 1) for e in ("prototxt", "caffemodel")} | (
        folded("net0", "net1")
    )


# ---- Nobody reads it ----


REDIRECTED = {
    "a reader who is gone": "2>&1 | head -c1 >/dev/null; exit ${PIPESTATUS[0]}",
    "no standard error": "2>&-",
    "no standard output": ">&-",
    "neither": ">&- 2>&-",
    "a full disk for standard error": "2>/dev/full",
    "a full disk for standard output": ">/dev/full",
}


@pytest.mark.skipif(
    shutil.which("bash") is None or not os.path.exists("/dev/full"),
    reason="needs bash and /dev/full",
)
@pytest.mark.parametrize("redirected", REDIRECTED.values(), ids=REDIRECTED.keys())
def test_what_nobody_reads_stops_no_fold(redirected: str, tmp_path: Path) -> None:
    write_pairs(tmp_path / "zoo", 3)
    batching.tiny().write(tmp_path / "zoo", "bad")[1].write_bytes(b"")
    command = [sys.executable, "-m", "caffe_fold", "batch", "zoo", "--output-dir", "out"]
    done = subprocess.run(
        ["bash", "-c", f"{shlex.join([*command, '--jobs', '1'])} {redirected}"],
        cwd=tmp_path,
        env=batching.environment(),
        capture_output=True,
        text=True,
    )
    assert (done.returncode, files(tmp_path / "out")) == (1, folded("net0", "net1", "net2"))
    assert "internal" not in done.stderr


# ---- Folders that cannot be written to ----


def test_an_output_folder_that_is_a_file(zoo: Path, tmp_path: Path, run: Run) -> None:
    (tmp_path / "out").touch()
    done = run(zoo)
    assert (done.code, done.out) == (2, "")
    assert done.err == f"error: {tmp_path / 'out'} cannot be written: File exists\n"


def test_a_report_that_cannot_be_written(zoo: Path, tmp_path: Path, run: Run) -> None:
    done = run(zoo, "--report", tmp_path / "no/report")
    assert done.code == 2
    assert done.err.startswith(f"error: {tmp_path / 'no/report'} cannot be written: ")
    assert files(tmp_path / "out") == set()


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_report_on_a_full_disk_stops_no_fold(zoo: Path, tmp_path: Path, run: Run) -> None:
    done = run(zoo, "--report", "/dev/full")
    assert (done.code, files(tmp_path / "out")) == (1, folded("net0", "net1"))
    assert "2 models: 2 done" in done.out
    assert done.err.endswith("error: /dev/full is not whole: No space left on device\n")


def test_a_full_disk_tears_no_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    book = ledger.Ledger(str(tmp_path))
    one = batching.entry("a")
    book.done(one)
    write = os.write
    monkeypatch.setattr(os, "write", lambda descriptor, data: write(descriptor, data[:9]))
    with pytest.raises(OutputError, match="cannot be written: No space left on device"):
        book.done({**one, "name": "b"})
    monkeypatch.undo()
    book.done({**one, "name": "c"})
    book.close()
    assert list(ledger.read(str(tmp_path))) == ["a", "c"]
