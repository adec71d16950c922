"""The processes of a batch: those that die, and signals to real runs."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import batching
import pytest
from batching import LEDGER, Run, again, begin, files, folded, lines, tiny, write_pairs
from support.command import HANGS, all_shown

import caffe_fold
from caffe_fold.batch import execute as execution
from caffe_fold.batch import ledger
from caffe_fold.batch import worker as work
from caffe_fold.batch.execute import Processes, execute
from caffe_fold.batch.tasks import Task

POSIX = pytest.mark.skipif(os.name != "posix", reason="needs POSIX files and signals")


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
