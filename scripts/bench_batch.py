"""Times batches on this machine: what they cost beside single folds and beside ``cp``.

    python scripts/bench_batch.py [--small] [--rounds 3] [--json FILE]

Snapshots of MobileNet-SSD (23 MB each, from ``caffe-fold demo``'s generator) are folded one by
one in one process, whose CPU time gives the ideal of two cores: that of all folds over two,
plus one start. A batch in two processes is measured beside it, and two ``cp`` processes that
copy the same files. Rounds interleave the three, so that what else the machine does hits all;
the ratios are of the best rounds. Then small nets (100 kB) are folded for a rate, and one
process folds as many for its memory.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

PROCESSES = 2
ROOT = Path(__file__).resolve().parents[1]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT)}

SINGLE_FOLDS = """
import sys, time
from pathlib import Path
from caffe_fold import fold
source, out = map(Path, sys.argv[1:])
weights = sorted(source.glob("*.caffemodel"))
def run(path):
    fold(source / "deploy.prototxt", path, out / f"{path.stem}.prototxt", out / path.name)
run(weights[0])
start = time.process_time()
for path in weights:
    run(path)
print((time.process_time() - start) / len(weights))
"""

MEMORY = """
import resource, sys
from pathlib import Path
from caffe_fold.batch.tasks import Task
from caffe_fold.batch.worker import fold_task
source, out = sys.argv[1:]
models = sorted(Path(source).glob("*.prototxt"))
peaks = []
for index, model in enumerate(models):
    name = f"{out}/{model.stem}"
    weights = str(model.with_suffix(".caffemodel"))
    options = {}
    task = Task(model.stem, str(model), weights, out, name + ".prototxt", name + ".caffemodel",
                options, False, False)
    assert not fold_task(task).error
    if index + 1 in (len(models) // 10, len(models)):
        peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
print(*peaks)
"""


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--small", action="store_true", help="a tenth of the nets, one round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path, metavar="FILE")
    given = parser.parse_args()
    part, rounds = (10, 1) if given.small else (1, given.rounds)
    with tempfile.TemporaryDirectory(prefix="caffe-fold-bench-") as folder:
        found = batches(Path(folder), part, rounds)
    print(table(found))
    if given.json:
        given.json.write_text(json.dumps(found, indent=2) + "\n")


def batches(work: Path, part: int, rounds: int) -> dict[str, float]:
    """All that is measured, on one ``part`` of 100 snapshots and of 1,000 small nets."""
    sys.path[:0] = [str(ROOT), str(ROOT / "tests")]  # the generators of nets
    return {**snapshots(work, 100 // part, rounds), **small_nets(work, 1000 // part, rounds)}


def table(found: dict[str, float]) -> str:
    """The numbers, with their targets."""
    lines = []
    for name, value in found.items():
        met = next((is_met(value) for end, is_met in _TARGETS.items() if name.endswith(end)), None)
        lines.append(f"{name:46}{value:10.3f}{_SAYS[met]}")
    return "\n".join(lines)


_TARGETS: dict[str, Callable[[float], bool]] = {
    "batch / ideal, best": lambda value: value <= 1.2,
    "1000 small nets a second": lambda value: value >= 100,
}
_SAYS = {None: "", True: "  met", False: "  missed"}


def snapshots(work: Path, count: int, rounds: int) -> dict[str, float]:
    """A batch of one training's snapshots, against the ideal and against ``cp``."""
    source, out = work / "snapshots", work / "out"
    make_snapshots(source, count)
    cpu, start, batch, copies, used = [], [], [], [], []
    for _ in range(rounds):
        cpu.append(float(python(SINGLE_FOLDS, source, fresh(out))))
        start.append(timed(lambda: command("--version")))
        before = cpu_of_children()
        batch.append(timed(lambda: fold_all(source, out), fresh(out)))
        used.append(cpu_of_children() - before)
        copies.append(timed(lambda: copy_all(source, out), fresh(out)))
    ideals = [one * count / PROCESSES + begin for one, begin in zip(cpu, start)]
    ratios = sorted(took / ideal for took, ideal in zip(batch, ideals))
    shutil.rmtree(source)
    shutil.rmtree(out)
    return {
        f"{count} snapshots: one fold's CPU, s": min(cpu),
        f"{count} snapshots: batch, s": min(batch),
        f"{count} snapshots: ideal of two cores, s": min(ideals),
        f"{count} snapshots: two cp, s": min(copies),
        "batch / ideal, best": min(batch) / min(ideals),
        "batch / ideal, median of the rounds": ratios[len(ratios) // 2],
        "batch / two cp, best": min(batch) / min(copies),
        # Where others use the cores, too, these two are what there is to go by.
        "part of two cores that batch had": max(
            cpu / took / PROCESSES for cpu, took in zip(used, batch)
        ),
        "CPU of batch / CPU of single folds": min(used) / (min(cpu) * count),
    }


def small_nets(work: Path, count: int, rounds: int) -> dict[str, float]:
    """The rate of small nets, and what memory one process takes for a tenth and for all."""
    source, out = work / "small", work / "out"
    make_small(source, count)
    took = [timed(lambda: fold_all(source, out), fresh(out)) for _ in range(rounds)]
    again = timed(lambda: fold_all(source, out))
    tenth, whole = map(int, python(MEMORY, source, fresh(out)).split())
    return {
        f"{count} small nets a second": count / min(took),
        f"{count} small nets, nothing to do, s": again,
        f"memory after {count // 10}, MB": tenth / 1024,
        f"memory after {count}, MB": whole / 1024,
    }


# ---- What is run ----


def cpu_of_children() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def fold_all(source: Path, out: Path) -> None:
    command("batch", str(source), "--output-dir", str(out), "--jobs", str(PROCESSES), "--quiet")


def copy_all(source: Path, out: Path) -> None:
    files = sorted(map(str, source.iterdir()))
    copies = [subprocess.Popen(["cp", *files[n::PROCESSES], str(out)]) for n in range(PROCESSES)]
    if any(process.wait() for process in copies):
        sys.exit("cp failed")


def command(*arguments: str) -> None:
    subprocess.run(
        [sys.executable, "-m", "caffe_fold", *arguments],
        env=ENVIRONMENT,
        stdout=subprocess.DEVNULL,
        check=True,
    )


def python(program: str, *paths: Path) -> str:
    done = subprocess.run(
        [sys.executable, "-c", program, *map(str, paths)],
        env={**ENVIRONMENT, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout


def fresh(folder: Path) -> Path:
    """The folder, empty, with all that was written before on the disk."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    os.sync()
    return folder


def timed(run: Callable[[], None], _: object = None) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


# ---- Nets ----


def make_snapshots(folder: Path, count: int) -> None:
    from caffe_fold.demo import write_demo

    model, weights = write_demo(folder)
    model.rename(folder / "deploy.prototxt")
    for number in range(1, count + 1):
        shutil.copyfile(weights, folder / f"ssd_iter_{number * 1000}.caffemodel")
    weights.unlink()


def make_small(folder: Path, count: int) -> None:
    """Nets of four convolutions, each with BatchNorm and Scale."""
    from support.nets import Net

    folder.mkdir()
    for seed in range(count):
        net = Net("small", seed=seed)
        net.input("data", (1, 3, 32, 32))
        bottom, channels = "data", 3
        for index, outputs in enumerate((16, 32, 32, 32)):
            name = f"conv{index}"
            net.conv(name, bottom, channels, outputs, 3, pad=1, bias=False)
            net.batch_norm(f"bn{index}", name, outputs)
            net.scale(f"scale{index}", name, outputs)
            net.relu(f"relu{index}", name)
            bottom, channels = name, outputs
        net.write(folder, f"net{seed:04d}")


if __name__ == "__main__":
    main()
