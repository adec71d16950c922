"""A batch: what it writes, what it says, what it does again, and that no model stops another."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import batching
import pytest
from batching import LEDGER, begin, files, folded, lines, tiny, write_pairs
from support.command import HANGS, Call, Outcome, all_shown

import caffe_fold
from caffe_fold.batch import execute as execution
from caffe_fold.batch import ledger
from caffe_fold.batch import worker as work
from caffe_fold.batch.execute import Processes, execute
from caffe_fold.batch.tasks import Task
from caffe_fold.errors import OutputError

POSIX = pytest.mark.skipif(os.name != "posix", reason="needs POSIX files and signals")


@pytest.fixture
def zoo(tmp_path: Path) -> Path:
    write_pairs(tmp_path / "zoo", 2)
    return tmp_path / "zoo"


@pytest.fixture
def run(call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Outcome]:
    """Run a batch into ``out``, in this process."""
    batching.fold_in_threads(monkeypatch)

    def run_batch(source: Path, *arguments: str | Path) -> Outcome:
        return call("batch", source, "--output-dir", tmp_path / "out", "--jobs", "1", *arguments)

    return run_batch


Run = Callable[..., Outcome]


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


# ---- What is done is not done again ----


def again(run: Run, zoo: Path, *arguments: str) -> str:
    done = run(zoo, *arguments)
    assert done.code == 0, done.err
    match = re.search(r"(\d+) done, (\d+) unchanged", done.out)
    assert match is not None
    return f"{match[1]} done, {match[2]} unchanged"


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


# ---- Processes ----


def task_of(folder: Path, name: str) -> Task:
    model, weights = tiny().write(folder, name)
    return Task(
        name=name,
        model=str(model),
        weights=str(weights),
        output=str(folder),
        output_model=str(folder / f"{name}_f.prototxt"),
        output_weights=str(folder / f"{name}_f.caffemodel"),
        options={},
        strict=False,
        checksum=False,
    )


def test_what_a_cluster_runs_twice_is_done(tmp_path: Path) -> None:
    """It runs a task again whose worker died before it heard that nobody waits for it."""
    task = task_of(tmp_path, "a")
    entry = work.fold_on_cluster(task).entry
    for name in (task.output_model, task.output_weights):
        os.utime(name, (1, 1))
    assert work.fold_on_cluster(task).entry != entry  # the times are others
    assert ledger.is_done(task, entry)
    output = Path(task.output_weights)
    output.write_bytes(output.read_bytes()[::-1])
    assert not ledger.is_done(task, entry)


def fold_or_die(task: Task) -> work.Outcome:
    """Fold, but where the name is a bad one, die as of a lack of memory; where it is a
    weak one, only if others are near."""
    seen = Path(task.output, "seen")
    if task.name == "bad" or (task.name == "weak" and not seen.exists()):
        seen.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return work.fold_and_end(task)


@dataclass(frozen=True)
class Mortal(Processes):
    run = staticmethod(fold_or_die)


@POSIX
@pytest.mark.parametrize("name", ["bad", "weak"])
def test_a_process_that_dies_fails_its_own_model_alone(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(execution, "Processes", Mortal)
    tasks = [task_of(tmp_path, each) for each in ("a", "b", name, "c", "d", "e", "f", "g")]
    started: list[str] = []
    found = list(execute(tasks, Mortal(2), lambda task: started.append(task.name)))
    assert sorted(started) == sorted(task.name for task in tasks)
    assert sorted(outcome.task.name for outcome in found) == sorted(started)
    errors = {outcome.task.name: outcome.error for outcome in found if outcome.error}
    assert list(errors) == (["bad"] if name == "bad" else [])
    assert all("was killed, twice" in error for error in errors.values())
    done = {path.name for path in tmp_path.glob("*_f.caffemodel")}
    assert done == {f"{o.task.name}_f.caffemodel" for o in found if not o.error}


@POSIX
@pytest.mark.parametrize("executable", ["/bin/false", "/nowhere/python"])
def test_processes_that_do_not_start_are_one_line(executable: str, tmp_path: Path) -> None:
    write_pairs(tmp_path / "zoo", 2)
    code = (
        "import multiprocessing, sys\nfrom caffe_fold import cli\n"
        f"multiprocessing.set_executable({executable!r})\n"
        "sys.argv = ['caffe-fold', 'batch', 'zoo', '--output-dir', 'out']; cli.main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=batching.environment(),
        capture_output=True,
        text=True,
        timeout=HANGS,
    )
    assert (done.returncode, done.stdout) == (2, "")
    # The interpreter's own resource tracker did not start, either, and it says so.
    errors = [line for line in done.stderr.splitlines() if line.startswith("error:")]
    assert [line[:42] for line in errors] == ["error: worker processes cannot be started:"]
    assert "memory" not in done.stderr


def test_an_executor_that_fails_is_in_the_outcome(tmp_path: Path) -> None:
    task = replace(task_of(tmp_path, "a"), options={"no": "such option"})
    (found,) = execute([task], Processes(1), lambda task: None)
    assert found.error.startswith("internal error (TypeError: ")


def test_another_version_is_refused(tmp_path: Path) -> None:
    found = work.fold_task(replace(task_of(tmp_path, "a"), version="0.0"))
    assert "install one version everywhere" in found.error
    assert found.exit_code == 2


def pid_and_threads(_: int) -> tuple[int, str]:
    return os.getpid(), os.environ["OMP_NUM_THREADS"]


@POSIX
def test_workers_end_with_the_process_that_started_them() -> None:
    with Processes(1).pool() as pool:
        assert isinstance(pool.executor, ProcessPoolExecutor)
        pid, threads = pool.executor.submit(pid_and_threads, 0).result()
    assert threads == "1"
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


# ---- Signals, to real runs ----


def settle(out: Path) -> None:
    """Wait until no process writes to a folder any more: temporary files go, or stay."""
    end = time.monotonic() + HANGS
    while time.monotonic() < end and list(out.rglob("*.tmp")):
        time.sleep(0.1)


# However late the signal comes, it finds a run that still has models to fold.
NEVER_DONE = """
import signal
from caffe_fold import __main__
from caffe_fold.batch import progress
tell = progress._Lines.tell

def tell_or_wait(self, row):
    tell(self, row)
    if self.count == 30:
        signal.pause()

progress._Lines.tell = tell_or_wait
if __name__ == "__main__":  # and not in a worker
    __main__.main()
"""


@POSIX
@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "to_all", "code"),
    [
        (signal.SIGINT, True, 130),
        (signal.SIGTERM, False, 130),
        (signal.SIGKILL, False, -9),
        (signal.SIGKILL, True, -9),
    ],
    ids=["ctrl-c", "term", "kill", "kill-all"],
)
def test_a_signal_leaves_whole_files_and_the_next_run_goes_on(
    number: int, to_all: bool, code: int, tmp_path: Path, run: Run
) -> None:
    zoo, out = tmp_path / "zoo", tmp_path / "out"
    models = write_pairs(zoo, 1)
    count = 60
    for index in range(1, count):
        for end in (".prototxt", ".caffemodel"):
            shutil.copyfile(models[0].with_suffix(end), zoo / f"net{index}{end}")
    process = begin(zoo, "--output-dir", out, "--jobs", "2", code=NEVER_DONE)
    batching.wait_for_line(process, "[3/")
    (os.killpg if to_all else os.kill)(process.pid, number)
    _, err = process.communicate(timeout=HANGS)
    assert process.returncode == code
    if code == 130:
        last = err.splitlines()[-1]
        assert re.fullmatch(
            rf"error: interrupted; \d+ of {count} models are done, and the same command goes on "
            "from there",
            last,
        )
        assert "Traceback" not in err
    if not (number == signal.SIGKILL and to_all):
        settle(out)
        assert list(out.rglob("*.tmp")) == []
    recorded = {
        name for entry in lines(out / LEDGER) if "report" in entry for name in entry["outputs"]
    }
    assert 2 * count > len(recorded) >= 6
    single = tmp_path / "single"
    single.mkdir()
    caffe_fold.fold(models[0], models[0].with_suffix(".caffemodel"), single / "m", single / "w")
    for path in out.glob("net*"):
        expected = single / ("m" if path.suffix == ".prototxt" else "w")
        assert path.read_bytes() == expected.read_bytes()
    assert again(run, zoo) == f"{count - len(recorded) // 2} done, {len(recorded) // 2} unchanged"
    assert files(out) == folded(*(f"net{index}" for index in range(count)))
    assert list(out.rglob(".net*")) == []


@POSIX
@pytest.mark.slow
def test_a_terminal_gets_a_bar(zoo: Path, tmp_path: Path) -> None:
    pytest.importorskip("rich", reason="the batch extra is not installed")
    import pty

    (zoo / "net1.prototxt").write_text("layer {")
    main, other = pty.openpty()
    with subprocess.Popen(
        [sys.executable, "-m", "caffe_fold", "batch", zoo, "--output-dir", tmp_path / "out"],
        env=batching.environment(TERM="xterm", COLUMNS="100"),
        stdout=subprocess.DEVNULL,
        stderr=other,
    ) as process:
        os.close(other)
        shown = all_shown(main)
    assert process.returncode == 1
    assert b"2/2" in shown
    assert b"1 failed" in shown
    assert b"failed  net1_inference.caffemodel: " in shown
