"""A batch on a real Dask cluster of two worker processes on this machine."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import batching
import pytest
from batching import begin, files, folded, lines, write_pairs
from support.command import HANGS, Call

pytest.importorskip("distributed", reason="the dask extra is not installed")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(os.name != "posix", reason="needs POSIX signals"),
]


@dataclass(frozen=True)
class Cluster:
    address: str
    scheduler: subprocess.Popen[bytes]
    workers: list[subprocess.Popen[bytes]]


def _start(*arguments: str) -> subprocess.Popen[bytes]:
    # No nanny, so that a worker that is killed stays dead.
    return subprocess.Popen(
        [sys.executable, "-m", "distributed.cli." + arguments[0], *arguments[1:]],
        env=batching.environment(DASK_DISTRIBUTED__SCHEDULER__ALLOWED_FAILURES="1"),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


@contextlib.contextmanager
def cluster(folder: Path, count: int) -> Iterator[Cluster]:
    """A scheduler at a port of its own choice, and so many workers."""
    place, told = ("--host", "127.0.0.1", "--no-dashboard"), folder / "scheduler.json"
    processes = [_start("dask_scheduler", *place, "--port", "0", "--scheduler-file", str(told))]
    try:
        address = _address(told)
        scratch = ("--local-directory", str(folder / "dask"))
        worker = ("dask_worker", address, *place, "--nthreads", "1", "--no-nanny", *scratch)
        processes += [_start(*worker) for _ in range(count)]
        yield Cluster(address, processes[0], processes[1:])
    finally:
        for process in reversed(processes):
            process.kill()
            process.wait()


def _address(told: Path) -> str:
    """What a scheduler writes into its file once it listens."""
    end = time.monotonic() + HANGS
    while time.monotonic() < end:
        with contextlib.suppress(OSError, ValueError):  # not there yet, or half
            return str(json.loads(told.read_text())["address"])
        time.sleep(0.1)
    raise AssertionError("the scheduler does not start")


@pytest.fixture
def two_workers(tmp_path: Path) -> Iterator[Cluster]:
    with cluster(tmp_path, 2) as found:
        yield found


def test_a_worker_that_is_killed_loses_nothing(two_workers: Cluster, tmp_path: Path) -> None:
    zoo, out, report = tmp_path / "zoo", tmp_path / "out", tmp_path / "report.jsonl"
    models = write_pairs(zoo, 1)
    count = 80
    for index in range(1, count):
        for end in (".prototxt", ".caffemodel"):
            shutil.copyfile(models[0].with_suffix(end), zoo / f"net{index}{end}")
    arguments = ("--output-dir", out, "--scheduler", two_workers.address, "--report", report)
    batch = begin(zoo, *arguments)
    batching.wait_for_line(batch, "[5/")
    two_workers.workers[0].send_signal(signal.SIGKILL)
    _, err = batch.communicate(timeout=HANGS)
    assert batch.returncode == 0, err
    told = [line["output"] for line in lines(report)]
    assert len(told) == len(set(told)) == count
    assert files(out) == folded(*(f"net{index}" for index in range(count)))
    for end in ("prototxt", "caffemodel"):
        assert len({path.read_bytes() for path in out.glob(f"*.{end}")}) == 1
    again = begin(zoo, *arguments)
    printed, err = again.communicate(timeout=HANGS)
    assert (again.returncode, err) == (0, "")
    assert f"0 done, {count} unchanged" in printed


def test_a_scheduler_that_is_killed_fails_what_is_left(tmp_path: Path) -> None:
    zoo, out = tmp_path / "zoo", tmp_path / "out"
    write_pairs(zoo, 3)
    with cluster(tmp_path, 0) as lonely:
        batch = begin(zoo, "--output-dir", out, "--scheduler", lonely.address)
        time.sleep(3)  # until it has handed all over, or not; it is to end in any case
    printed, err = batch.communicate(timeout=HANGS)
    assert batch.returncode in (1, 2), err
    assert "Traceback" not in err
    if batch.returncode == 1:
        assert "3 models: 0 done, 0 unchanged, 3 failed" in printed
        assert "is its scheduler still there?" in printed


def test_no_scheduler_is_one_line(
    tmp_path: Path, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("caffe_fold.batch.execute._SECONDS", 1)
    write_pairs(tmp_path / "zoo", 1)
    with socket.socket() as taken:  # by one who does not listen
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        arguments = ("--output-dir", tmp_path / "out", "--scheduler", f"tcp://127.0.0.1:{port}")
        done = call("batch", tmp_path / "zoo", *arguments)
    assert (done.code, done.out) == (2, "")
    assert done.err.startswith(f"error: no Dask scheduler answers at tcp://127.0.0.1:{port}: ")
    assert done.err.count("\n") == 1


def test_a_scheduler_and_jobs_do_not_go_together(tmp_path: Path, call: Call) -> None:
    done = call("batch", tmp_path, "--output-dir", "o", "--scheduler", "tcp://h:1", "--jobs", "2")
    assert done.code == 2
    assert "leave it out with --scheduler" in done.err
