"""What the tests of ``batch`` share: folders of small nets, and the real command."""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from support.command import Call, Outcome
from support.nets import Net

from caffe_fold import cli
from caffe_fold.batch.execute import Pool, Processes
from caffe_fold.batch.worker import fold_task

LEDGER = ".caffe-fold-batch.jsonl"
LOCK = ".caffe-fold-batch.lock"


def tiny(seed: int = 0) -> Net:
    """A net with one fold."""
    net = Net("tiny", seed=seed)
    net.input("data", (1, 2, 4, 4))
    net.conv("conv", "data", 2, 3)
    net.batch_norm("bn", "conv", 3, top="bn")
    net.scale("scale", "bn", 3)
    return net


def training() -> Net:
    """The same with a data layer and a loss."""
    net = Net("tiny")
    net.layer("data", "Data", [], ["data", "label"])
    net.conv("conv", "data", 2, 3)
    net.batch_norm("bn", "conv", 3)
    net.layer("loss", "SoftmaxWithLoss", ["conv", "label"], ["loss"])
    return net


def with_left() -> Net:
    """A net in which a BatchNorm is left."""
    net = tiny()
    net.relu("relu", "bn")
    net.batch_norm("bn2", "bn", 3, top="bn2")
    net.relu("relu2", "bn2")
    return net


def write_pairs(folder: Path, count: int = 2) -> list[Path]:
    """Pairs net0, net1, ... in a folder; gives the prototxts."""
    folder.mkdir(parents=True, exist_ok=True)
    return [tiny(seed).write(folder, f"net{seed}")[0] for seed in range(count)]


def files(folder: Path) -> set[str]:
    """The names of all files below a folder, without those of the batch itself."""
    return {
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*")
        if path.is_file() and path.name not in (LEDGER, LOCK)
    }


def folded(*names: str) -> set[str]:
    """The outputs of weights of some names."""
    return {f"{name}_inference{end}" for name in names for end in (".prototxt", ".caffemodel")}


def lines(path: Path) -> list[dict[str, Any]]:
    """A file of JSON lines."""
    return [json.loads(line) for line in path.read_text().splitlines()]


def write_manifest(folder: Path, text: str, name: str = "pairs.csv") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def entry(name: str, *others: str) -> dict[str, Any]:
    """The ledger's entry of some outputs."""
    outputs = {output: {"size": 0, "tag": "0"} for output in (name, *others)}
    report: dict[str, Any] = {"warnings": [], "before": {}, "after": {}}
    done = {"version": "0", "asked": "", "inputs": [], "outputs": outputs, "report": report}
    return {"name": name, **done}


def environment(**more: str) -> dict[str, str]:
    """The environment of a process that is to import this package, and these tests."""
    root = Path(cli.__file__).parents[1]
    return {**os.environ, "PYTHONPATH": f"{root}{os.pathsep}{root / 'tests'}", **more}


def fold_in_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have batches fold in this process, where there is no other to start: what processes do
    has tests of its own."""

    @contextlib.contextmanager
    def pool(self: Processes) -> Iterator[Pool]:
        with ThreadPoolExecutor(self.count) as executor:
            yield Pool(executor, lambda: False)

    monkeypatch.setattr(Processes, "pool", pool)
    monkeypatch.setattr(Processes, "run", staticmethod(fold_task))


Run = Callable[..., Outcome]


@pytest.fixture
def zoo(tmp_path: Path) -> Path:
    write_pairs(tmp_path / "zoo", 2)
    return tmp_path / "zoo"


@pytest.fixture
def run(call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Outcome]:
    """Run a batch into ``out``, in this process."""
    fold_in_threads(monkeypatch)

    def run_batch(source: Path, *arguments: str | Path) -> Outcome:
        return call("batch", source, "--output-dir", tmp_path / "out", "--jobs", "1", *arguments)

    return run_batch


def again(run: Run, zoo: Path, *arguments: str) -> str:
    done = run(zoo, *arguments)
    assert done.code == 0, done.err
    match = re.search(r"(\d+) done, (\d+) unchanged", done.out)
    assert match is not None
    return f"{match[1]} done, {match[2]} unchanged"


def begin(*arguments: str | Path, code: str = "", **more: str) -> subprocess.Popen[str]:
    """The real command in a process group of its own, or ``code`` in its place."""
    command = ["-c", code] if code else ["-m", "caffe_fold"]
    return subprocess.Popen(
        [sys.executable, *command, "batch", *map(str, arguments)],
        env=environment(**more),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def wait_for_line(process: subprocess.Popen[str], start: str) -> None:
    """Read a process's standard error until a line that starts so."""
    assert process.stderr is not None
    seen = []
    while line := process.stderr.readline():
        if line.startswith(start):
            return
        seen.append(line)
    raise AssertionError(f"it ended without a line {start!r}: {seen}")
