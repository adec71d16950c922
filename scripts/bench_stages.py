"""Where the time of a fold goes, stage by stage, in milliseconds of whole processes.

    python scripts/bench_stages.py --model deploy.prototxt --weights net.caffemodel

Each process notes the time at the end of each stage; the table has the medians of the stages.
What a stage imports for itself is in it.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

CHILD = """
import os, time
from caffe_fold import __main__ as entry
marks = [("Python itself", time.monotonic())]
def mark(stage):
    marks.append((stage, time.monotonic()))
def marked(stage, module, name):
    function = getattr(module, name)
    def call(*arguments, **named):
        result = function(*arguments, **named)
        mark(stage)
        return result
    setattr(module, name, call)
import gc
gc.disable()  # as the entry does
os.environ["OPENBLAS_NUM_THREADS"] = "1"
from caffe_fold import cli
import caffe_fold.commands.fold
mark("import: click and the command")
import numpy
mark("import: NumPy")
import google.protobuf.text_format, google.protobuf.descriptor_pool
mark("import: protobuf")
from caffe_fold import convert, weights_files
mark("import: the rest of caffe-fold")
marked("read the prototxt", convert, "read_graph")
marked("index the weights", convert, "require_unfolded_pair")
marked("plan", convert, "rewrite_prototxt")
marked("new files as pieces, report", convert, "summary")
marked("read the new prototxt, compare", convert, "_written_graph")
marked("compute and write the weights", weights_files, "write_parts")
marked("read the new weights, prove", convert, "_prove")
exit_at_once = os._exit
def leave(code):
    mark("names, end of the command")
    import json
    with open(os.environ["CAFFE_FOLD_MARKS"], "w") as file:
        json.dump(marks, file)
    exit_at_once(code)
os._exit = leave
entry.main()
"""


def stages(model: Path, weights: Path, folder: Path) -> dict[str, float]:
    """The seconds of each stage of one process."""
    marks, out = folder / "marks.json", folder / "out"
    command = [sys.executable, "-c", CHILD, "--model", str(model), "--weights", str(weights)]
    command += ["--output-model", f"{out}.prototxt", "--output-weights", f"{out}.caffemodel"]
    environment = {**os.environ, "CAFFE_FOLD_MARKS": str(marks), "PYTHONPATH": str(ROOT)}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    last = time.monotonic()
    subprocess.run([*command, "--quiet"], env=environment, cwd=folder, check=True)
    ended = time.monotonic()
    found = {}
    for stage, at in [*json.loads(marks.read_text()), ["exit", ended]]:
        found[stage], last = at - last, at
    for file in (f"{out}.prototxt", f"{out}.caffemodel"):
        os.unlink(file)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=15)
    given = parser.parse_args()
    files = given.model.resolve(), given.weights.resolve()
    with tempfile.TemporaryDirectory(prefix="caffe-fold-stages-") as folder:
        stages(*files, Path(folder))  # warms the caches up
        runs = [stages(*files, Path(folder)) for _ in range(given.rounds)]
    medians = {stage: statistics.median(run[stage] for run in runs) for stage in runs[0]}
    for stage, seconds in medians.items():
        print(f"{stage:34}{seconds * 1e3:8.1f}")
    whole = statistics.median(sum(run.values()) for run in runs)
    print(f"{'all':34}{whole * 1e3:8.1f}")


if __name__ == "__main__":
    main()
