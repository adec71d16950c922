"""The process that runs OpenCV: what ends it ends no more."""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from support.command import HANGS
from support.nets import Net

from caffe_fold.verification import opencv
from caffe_fold.verification.engine import EngineError, Job
from caffe_fold.verification.opencv import OpenCV

pytest.importorskip("cv2", reason="OpenCV is not installed")
posix = pytest.mark.skipif(os.name != "posix", reason="needs POSIX signals")

INPUTS = {"in": np.ones((1, 2, 4, 4), np.float32)}


@pytest.fixture
def job(tmp_path: Path) -> Job:
    net = Net()
    net.input("data", (1, 2, 4, 4))
    net.conv("conv", "data", 2, 3)
    model, weights = net.write(tmp_path)
    return Job(str(model), str(weights), {"in": "data"}, {0: ("conv", "conv", 0)})


def run(job: Job) -> tuple[int, ...]:
    (found,) = OpenCV().run([job], INPUTS)
    return found[0].shape


def process() -> int:
    assert opencv._Running.process is not None
    return opencv._Running.process.popen.pid


def stopped_until(act: Callable[[], object]) -> threading.Timer:
    """Keep the process from answering until something happens to it."""
    os.kill(process(), signal.SIGSTOP)
    timer = threading.Timer(0.3, act)
    timer.start()
    return timer


def test_one_process_runs_all(job: Job) -> None:
    assert run(job) == (1, 3, 2, 2)
    first = process()
    assert run(job) == (1, 3, 2, 2)
    assert process() == first != os.getpid()


def test_a_refusal_does_not_end_it(job: Job, tmp_path: Path) -> None:
    run(job)
    first = process()
    (tmp_path / "bad.prototxt").write_text("layer { type: 'None' }")
    with pytest.raises(EngineError):
        run(Job(str(tmp_path / "bad.prototxt"), job.weights, job.inputs, job.outputs))
    assert run(job) == (1, 3, 2, 2)
    assert process() == first


@posix
def test_one_that_was_killed_is_replaced(job: Job) -> None:
    run(job)
    first = process()
    os.kill(first, signal.SIGKILL)
    assert opencv._Running.process is not None
    opencv._Running.process.popen.wait(HANGS)
    assert run(job) == (1, 3, 2, 2)
    assert process() != first


@posix
def test_a_net_that_ends_it_is_one_line(job: Job) -> None:
    run(job)
    timer = stopped_until(lambda: os.kill(process(), signal.SIGKILL))
    with pytest.raises(EngineError, match=r"^it ended its process \(SIGKILL\)$"):
        run(job)
    timer.join()
    assert run(job) == (1, 3, 2, 2)


def test_a_net_that_opencv_cannot_bear(job: Job) -> None:
    """OpenCV 4.14 divides by the groups; another release may say so."""
    model = Path(job.model)
    model.write_text(model.read_text().replace("num_output: 3", "num_output: 3 group: 0"))
    with pytest.raises(EngineError):
        run(job)
    model.write_text(model.read_text().replace("group: 0", "group: 1"))
    assert run(job) == (1, 3, 2, 2)


@posix
def test_an_interrupt_ends_it(job: Job) -> None:
    run(job)
    first = process()
    timer = stopped_until(lambda: os.kill(os.getpid(), signal.SIGINT))
    with pytest.raises(KeyboardInterrupt):
        run(job)
    timer.join()
    with pytest.raises(ProcessLookupError):
        os.kill(first, 0)
    assert run(job) == (1, 3, 2, 2)


@posix
def test_an_answer_to_what_was_broken_off_is_not_taken(
    job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second Ctrl-C comes before the process is ended for the first."""
    run(job)
    first = opencv._Running.process
    assert first is not None

    def interrupt() -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(first, "end", interrupt)
        timer = stopped_until(lambda: os.kill(os.getpid(), signal.SIGINT))
        with pytest.raises(KeyboardInterrupt):
            opencv._asked("about")
        timer.join()
    os.kill(first.popen.pid, signal.SIGCONT)
    assert run(job) == (1, 3, 2, 2)
    assert process() != first.popen.pid


def test_it_ends_amid_a_net_with_the_one_that_asks(job: Job) -> None:
    asked = opencv._Process()
    assert asked.popen.stdin is not None
    pickle.dump(("time", ([job], INPUTS, 10**9)), asked.popen.stdin)
    try:
        asked.popen.stdin.close()
        assert asked.popen.wait(HANGS) == 0
    finally:
        asked.end()


def test_what_else_may_be_in_the_path(
    job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The working folder may have modules of any name, and entries may be no text."""
    opencv._end()
    (tmp_path / "pickle.py").write_text("raise SystemExit")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", ["", None, 3, *sys.path])
    assert run(job) == (1, 3, 2, 2)


def test_what_the_start_of_python_prints_is_no_answer(
    job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opencv._end()
    (tmp_path / "sitecustomize.py").write_text(
        "print('Loading...'); print('done', end='', flush=True)"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert run(job) == (1, 3, 2, 2)


def test_a_path_that_no_file_has_is_one_line(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    opencv._end()
    monkeypatch.setattr(sys, "path", [*sys.path, "a\0b"])
    with pytest.raises(EngineError, match="no process can be started for it"):
        opencv._asked("about")


def test_paths_are_those_of_this_process(
    job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(job)
    monkeypatch.chdir(tmp_path)
    model, weights = os.path.basename(job.model), os.path.basename(job.weights)
    assert run(Job(model, weights, job.inputs, job.outputs)) == (1, 3, 2, 2)


@posix
def test_a_fork_has_one_of_its_own(job: Job) -> None:
    run(job)
    first = process()
    lock = opencv._Running.lock
    lock.acquire()  # as by another thread, which is not in the fork
    child = os.fork()
    if child == 0:
        ended = 1
        try:
            signal.alarm(HANGS)
            ended = 0 if run(job) == (1, 3, 2, 2) and process() != first else 1
            opencv._end()
        finally:
            os._exit(ended)
    lock.release()
    assert os.waitpid(child, 0)[1] == 0
    assert run(job) == (1, 3, 2, 2)
    assert process() == first


PROGRAM = """
import sys
from caffe_fold.verification import opencv
from caffe_fold.verification.engine import Job
import numpy as np
job = Job(sys.argv[1], sys.argv[2], {"in": "data"}, {0: ("conv", "conv", 0)})
opencv.OpenCV().run([job], {"in": np.ones((1, 2, 4, 4), np.float32)})
print(opencv._Running.process.popen.pid)
"""


@posix
def test_it_ends_with_its_parent_and_leaves_no_warning(job: Job) -> None:
    command = [sys.executable, "-W", "error::ResourceWarning", "-c", PROGRAM]
    done = subprocess.run(
        [*command, job.model, job.weights], capture_output=True, text=True, timeout=HANGS
    )
    assert (done.returncode, done.stderr) == (0, "")
    with pytest.raises(ProcessLookupError):
        os.kill(int(done.stdout), 0)


@posix
def test_a_fold_waits_for_its_end(tmp_path: Path) -> None:
    """Where process 1 is no init, as in many containers, nobody else would."""
    net = Net()
    net.input("data", (1, 2, 4, 4))
    net.conv("conv", "data", 2, 3)
    net.batch_norm("bn", "conv", 3)
    model, weights = net.write(tmp_path)
    program = (
        "import sys; from caffe_fold.verification import opencv\n"
        "end = opencv._end\n"
        "opencv._end = lambda: (end(), opencv._Running.process and print('ended'))\n"
        "sys.argv = sys.argv[1:]; from caffe_fold.__main__ import main; main()"
    )
    arguments = ["caffe-fold", "--model", str(model), "--weights", str(weights), "--quiet"]
    arguments += ["--verify", "--verify-engine", "opencv"]
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments], capture_output=True, text=True, timeout=HANGS
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "ended\n", "")
