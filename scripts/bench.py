"""Measures caffe-fold as whole processes, beside what it is to be compared with.

For each net, in turn and several times over, with a warm cache:

    fold             caffe-fold with its checks
    cp               a copy of the weights
    start            Python with numpy, protobuf and click, and nothing else
    straightforward  protobuf and NumPy, layer by layer (bench_straightforward.py)
    classic          two nets in pycaffe, as the old merge scripts (bench_pycaffe.py),
                     in the interpreter that CAFFE_FOLD_CAFFE_PYTHON names

The wall time, the CPU time (user and system) and the peak resident memory of each process
are printed as medians, with the ratios and their targets. How the cost grows with the size
is a straight line through nets of 1 MB to 2 GB, all of whose weights are folded. Batches are
measured by bench_batch.py, which ``--batch`` runs.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.metadata
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NoReturn, Union

# Nothing large may be imported here: the peak memory of a process counts that of the one that
# it was forked from.
import bench_batch
import bench_nets
from bench_report import Measured, Run, fit_table, fits, ratios, tables

ROOT = Path(__file__).resolve().parents[1]
OPEN_NSFW = ROOT.parent / "shared" / "models" / "open_nsfw_resnet50"
PYCAFFE = "CAFFE_FOLD_CAFFE_PYTHON"
START = "import numpy, click, google.protobuf.message, google.protobuf.descriptor_pool"
NETS = ("open_nsfw", "mobilenet_ssd", *bench_nets.MADE)
DEMO_BYTES = 23_300_000

EXAMPLES = """examples:
  python scripts/bench.py                          all nets, and the fit
  python scripts/bench.py --nets vgg16_bn resnet50 --rounds 9 --no-fit
  python scripts/bench.py --folder /var/tmp/nets --json bench.json
  CAFFE_FOLD_CAFFE_PYTHON=/opt/caffe/bin/python scripts/bench.py --nets open_nsfw --no-fit

disk: nets in the temporary folder are removed as soon as they are measured, so twice the largest
is needed, 5.2 GB; in a --folder they stay, and all of them with an output need 9.6 GB. Where cp
only shares blocks (Btrfs, XFS), its times say nothing.
"""

Command = list[Union[str, Path]]


class Problem(Exception):
    """One line for the user."""


@dataclass(frozen=True)
class Net:
    """A prototxt with its weights."""

    model: Path
    weights: Path

    @classmethod
    def within(cls, folder: Path, name: str) -> Net:
        return cls(folder / f"{name}.prototxt", folder / f"{name}.caffemodel")


def progress(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


# ---- Processes ----


def run(command: Command) -> Run:
    """One process, from its start to its end.

    :raises Problem: if it fails, with the last line that it left on standard error.
    """
    # Bytecode is to be cached, and the modules are to be those of the source tree.
    hidden = ("PYTHONDONTWRITEBYTECODE", "PYTHONSAFEPATH", "CAFFE_FOLD_DEBUG")
    environment = {name: value for name, value in os.environ.items() if name not in hidden}
    null = subprocess.DEVNULL
    with tempfile.TemporaryFile() as log:
        start = time.perf_counter()
        process = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdin=null, stdout=null, stderr=log
        )
        try:
            _, status, usage = os.wait4(process.pid, 0)
        except BaseException:
            process.kill()
            process.wait()
            raise
        wall = time.perf_counter() - start
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            log.seek(0)
            raise Problem(_said(log.read().decode("utf-8", "replace"), process.returncode))
    unit = 1 if sys.platform == "darwin" else 1 << 10  # of ru_maxrss
    return Run(wall, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * unit / (1 << 20))


def _said(text: str, code: int) -> str:
    """The last line that tells anything; Caffe ends with a trace of addresses."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    told = [line for line in lines if not line.startswith(("***", "@"))]
    return told[-1][:200] if told else f"exit code {code}"


def python(module: str, *arguments: str | Path) -> Command:
    """A module of the source tree, run by this interpreter."""
    return [sys.executable, "-m", module, *arguments]


def fold_command(net: Net, out: Net) -> Command:
    files: Command = ["--model", net.model, "--weights", net.weights]
    files += ["--output-model", out.model, "--output-weights", out.weights]
    return python("caffe_fold", *files, "--quiet")


def commands(net: Net, out: Net, folded: Path, peers: bool) -> dict[str, Command]:
    """What is measured on a net; ``folded`` is its folded prototxt."""
    found: dict[str, Command] = {
        "fold": fold_command(net, out),
        "cp": ["cp", net.weights, out.weights],
        "start": [sys.executable, "-c", START],
    }
    if peers:
        found["straightforward"] = python("scripts.bench_straightforward", net.weights, out.weights)
        if os.environ.get(PYCAFFE):
            script = Path(__file__).with_name("bench_pycaffe.py")
            files = (net.model, net.weights, folded, out.weights)
            found["classic"] = [os.environ[PYCAFFE], script, *files]
    return found


def measure(name: str, net: Net, scratch: Path, rounds: int, peers: bool) -> Measured:
    """Every command once a round, in turn; the first round warms up and is thrown away.

    :raises Problem: if caffe-fold, cp or Python fails; the ``peers`` may.
    """
    out, folded = Net.within(scratch, "out"), Net.within(scratch, "folded")
    run(fold_command(net, folded))
    folded.weights.unlink()
    todo = commands(net, out, folded.model, peers)
    measured = Measured(name, net.weights.stat().st_size, {command: [] for command in todo})
    for turn in range(rounds + 1):
        progress(f"{name}: round {turn} of {rounds}")
        for command in list(measured.runs):
            try:
                found = run(todo[command])
            except Problem as problem:
                if command in ("fold", "cp", "start"):
                    raise Problem(f"{name}: {command}: {problem}") from None
                measured.cannot[command] = str(problem)
                del measured.runs[command]
                continue
            finally:
                out.weights.unlink(missing_ok=True)
            if turn:
                measured.runs[command].append(found)
    return measured


# ---- Nets ----


def label(name: str, tiny: bool) -> str:
    """What a net is called in files and tables: tiny ones have no targets."""
    return f"{name}_tiny" if tiny and name in bench_nets.MADE else name


def size_of(name: str, tiny: bool) -> int:
    """About how many bytes of weights a net has that is yet to be made."""
    return DEMO_BYTES if name == "mobilenet_ssd" else bench_nets.size_of(name, tiny)


@contextlib.contextmanager
def net_of(name: str, given: argparse.Namespace, scratch: Path) -> Iterator[Net]:
    """A net's files: made where ``--folder`` lacks them; without one, removed at the end."""
    if name == "open_nsfw":
        models = given.open_nsfw
        yield Net(models / "deploy.prototxt", next(iter(sorted(models.glob("*.caffemodel")))))
        return
    net = Net.within((given.folder or scratch).resolve(), label(name, given.tiny))
    if not net.model.exists():
        progress(f"{name}: making it")
        run(python("scripts.bench_nets", name, scratch / "made", *(["--tiny"] * given.tiny)))
        made = Net.within(scratch / "made", name)
        # The prototxt last: where it is, the net is whole.
        made.weights.replace(net.weights)
        made.model.replace(net.model)
    yield net
    if not given.folder:
        net.model.unlink()
        net.weights.unlink()


def require_space(names: Sequence[str], given: argparse.Namespace, scratch: Path) -> None:
    """:raises Problem: if the disk has no room for the nets and an output."""
    made = [name for name in names if name != "open_nsfw"]
    sizes = [size_of(name, given.tiny) for name in made] or [0]
    need = max(sizes) + (sum(sizes) if given.folder else max(sizes)) + (100 << 20)
    free = shutil.disk_usage(scratch).free
    place = scratch.parent
    progress(f"{need / 1e9:.1f} GB are needed in {place}, {free / 1e9:.1f} GB are free")
    if free < need:
        raise Problem(f"{place}: too little room; name a --folder on another disk")


# ---- The whole ----


def machine() -> dict[str, Any]:
    """What the numbers depend on."""
    libraries = ("numpy", "protobuf", "click")
    return {
        "cores": os.cpu_count(),
        "system": platform.system(),
        "processor": platform.machine(),
        "python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in libraries},
    }


def bench(given: argparse.Namespace, scratch: Path) -> dict[str, Any]:
    """Measure, print, and return all of it for ``--json``."""
    about = machine()
    print(", ".join(f"{key} {value}" for key, value in about.items()), flush=True)
    names = list(given.nets)
    if "open_nsfw" in names and not any(given.open_nsfw.glob("*.caffemodel")):
        print(f"open_nsfw is skipped: it is not in {given.open_nsfw} (see --open-nsfw)")
        names.remove("open_nsfw")
    if not os.environ.get(PYCAFFE):
        print(f"the classic way is skipped: {PYCAFFE} names no interpreter that has pycaffe")
    fit_names = [] if given.no_fit else [bench_nets.fit_net(size) for size in bench_nets.FIT_SIZES]
    require_space([*names, *fit_names], given, scratch)
    nets: list[Measured] = []
    fitted: list[Measured] = []
    for name in [*names, *fit_names]:
        with net_of(name, given, scratch) as net:
            peers = name in names
            measured = measure(label(name, given.tiny), net, scratch, given.rounds, peers)
        (nets if peers else fitted).append(measured)
    if nets:
        print(tables(nets))
    lines = fits(fitted) if fitted else {}
    if fitted:
        print(fit_table(lines, fitted))
    batch = {}
    if given.batch:  # last, since it imports NumPy
        progress("batches")
        batch = bench_batch.batches(scratch, 1, given.rounds)
        print(bench_batch.table(batch))
    return {
        "machine": about,
        "rounds": given.rounds,
        "nets": [_json(net) for net in nets],
        "batch": batch,
        "fit": {
            "nets": [_json(net) for net in fitted],
            **{key: {name: asdict(line) for name, line in of.items()} for key, of in lines.items()},
        },
    }


def _json(net: Measured) -> dict[str, Any]:
    medians = {command: asdict(run) for command, run in net.medians.items()}
    found = {key: asdict(ratio) for key, ratio in ratios(net).items()}
    return {**asdict(net), "medians": medians, "ratios": found}


def parsed() -> argparse.Namespace:
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, epilog=EXAMPLES, formatter_class=form)
    add = parser.add_argument
    add("--nets", nargs="*", choices=NETS, default=NETS, metavar="NET", help=", ".join(NETS))
    add("--rounds", type=int, default=5, metavar="N", help="that count; 5 by default")
    add("--no-fit", action="store_true", help="without the nets of 1 MB to 2 GB")
    add("--batch", action="store_true", help="batches as well, as bench_batch.py does; 5 GB")
    add("--folder", type=Path, help="where the nets are made and kept; default: a temporary one")
    add("--json", type=Path, metavar="FILE", help="all runs, medians and ratios, for programs")
    add("--open-nsfw", type=Path, default=OPEN_NSFW, metavar="DIR", help="where open_nsfw is")
    add("--tiny", action="store_true", help="nets of a sixteenth of the width, to try this script")
    given = parser.parse_args()
    if given.rounds < 1:
        parser.error("--rounds has to be 1 at least")
    return given


def _terminated(*_: object) -> NoReturn:
    raise KeyboardInterrupt


def main() -> int:
    signal.signal(signal.SIGTERM, _terminated)
    given = parsed()
    try:
        if given.folder:
            given.folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix="caffe-fold-bench-", dir=given.folder) as name:
            result = bench(given, Path(name).resolve())
        if given.json:
            given.json.write_text(json.dumps(result, indent=1) + "\n", "utf-8")
    except KeyboardInterrupt:
        progress("interrupted")
        return 130
    except (Problem, OSError) as problem:
        progress(f"error: {problem}")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
