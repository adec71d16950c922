"""Folds real nets, has the toolchains that users go on to convert them, and compares.

    python scripts/round_trip.py MODELS --mnn DIR --openvino DIR [--output docs/round_trip.md]

MODELS holds a folder for each net, with its prototxt and caffemodel. DIR is the bin folder
of an environment:

    pip install MNN                                (mnnconvert -f CAFFE, and its runtime)
    pip install 'openvino-dev[caffe]==2022.3.2'    (the last mo that reads Caffe; Python 3.10)

Each folded pair is compared with the unfolded one in OpenCV and in real Caffe by
caffe_fold.verify, and as each toolchain converts and runs it. A net that a toolchain does
not convert unfolded says nothing of the fold, and the table says so.
"""

from __future__ import annotations

import argparse
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

import caffe_fold
from caffe_fold.verification.compare import Difference, differ
from caffe_fold.verification.detections import differ_in_rows

RUNNER = Path(__file__).with_name("round_trip_run.py")
TOLERANCE = 1e-4
SECONDS = 600

# Inputs of nets whose prototxt has data layers.
SHAPES: dict[str, dict[str, tuple[int, ...]]] = {"resnet20_nhzlx": {"Data1": (2, 3, 28, 28)}}

HEAD = """# Round trip

Made by `scripts/round_trip.py`: real nets are folded, and each engine and toolchain computes
the folded net and the unfolded one. A cell names the worst blob (in OpenCV and Caffe of all
blobs, in the toolchains of the outputs) with its largest difference as a part of the blob's
largest value. Up to {tolerance:g} is right.

| net | layers | {engines} |
|---|---|{rules}|
"""

NOTES = """
A bold cell is above that. Where OpenCV and Caffe find the same folded net right, the difference is
the toolchain's own.
"""


@dataclass(frozen=True)
class Pair:
    """A prototxt with its weights."""

    model: Path
    weights: Path


@dataclass(frozen=True)
class Toolchain:
    """A converter and its runtime."""

    name: str
    bin: Path

    def convert(self, pair: Pair, target: Path) -> Path | None:
        """Convert a pair; None where the toolchain does not."""
        target.mkdir(parents=True)
        if self.name == "mnn":
            made = target / "net.mnn"
            command = ["mnnconvert", "-f", "CAFFE", "--modelFile", str(pair.weights)]
            command += ["--prototxt", str(pair.model), "--MNNModel", str(made)]
        else:
            made = target / "net.xml"
            command = ["mo", "--input_model", str(pair.weights), "--input_proto", str(pair.model)]
            command += ["-o", str(target), "--model_name", "net"]
        done = _run([str(self.bin / command[0]), *command[1:]])
        return made if done and made.exists() else None

    def compare(self, original: Pair, folded: Pair, folder: Path) -> str:
        """The table's cell."""
        a = self.convert(original, folder / "a")
        if a is None:
            return "does not convert it unfolded"
        b = self.convert(folded, folder / "b")
        if b is None:
            return "**does not convert it folded**"
        values = folder / "values.npz"
        python = str(self.bin / "python")
        if not _run([python, str(RUNNER), self.name, str(a), str(b), str(values)]):
            alone = _run([python, str(RUNNER), self.name, str(a), str(a), str(values)])
            return "**does not run it folded**" if alone else "does not run it unfolded"
        with np.load(values) as arrays:
            return _cell(_differences(dict(arrays)))


def _run(command: Sequence[str]) -> bool:
    try:
        return subprocess.run(command, capture_output=True, timeout=SECONDS).returncode == 0
    except subprocess.TimeoutExpired:
        return False


def _differences(arrays: dict[str, np.ndarray]) -> Iterator[tuple[str, Difference]]:
    """Each output of both nets, by name, or by place where a toolchain names them anew."""
    a, b = ({k[2:]: v for k, v in arrays.items() if k[0] == side} for side in "ab")
    names = list(zip(a, a if set(a) == set(b) else b))
    if len(a) != len(b):
        yield "outputs", Difference((), float("inf"), 0.0, f"{len(a)} and {len(b)} outputs")
    for old, new in names:
        left, right = (_detections(old, values) for values in (a[old], b[new]))
        if left is None or right is None:
            yield old, differ(a[old], b[new])
        else:
            yield old, differ_in_rows(left, right, TOLERANCE)


def _detections(name: str, values: np.ndarray) -> np.ndarray | None:
    """Rows of image, label, score and box, if these are; MNN's have no image."""
    if "detection" not in name or values.shape[-1:] not in ((6,), (7,)):
        return None
    rows = values.reshape(-1, values.shape[-1])
    if values.shape[-1] == 6:
        rows = np.concatenate([np.zeros((len(rows), 1), rows.dtype), rows], axis=1)
    return rows


def _cell(found: Iterator[tuple[str, Difference]]) -> str:
    compared = list(found)
    if not compared:
        return "converts it to a net without outputs"
    name, worst = max(compared, key=lambda item: item[1].relative)
    text = f"`{name}` {worst.problem or f'{worst.relative:.1e}'}"
    return text if worst.relative <= TOLERANCE else f"**{text}**"


def by_engine(engine: str, name: str, original: Pair, folded: Pair) -> str:
    """The cell of an engine of caffe_fold.verify."""
    files = (original.model, original.weights, folded.model, folded.weights)
    try:
        result = caffe_fold.verify(*files, engine=engine, input_shapes=SHAPES.get(name))
    except caffe_fold.EngineMissing:
        return "not there"
    except caffe_fold.CaffeFoldError as error:
        return str(error).replace("|", "/")
    worst = result.worst
    if worst is None:
        return "nothing compared"
    text = f"`{worst.blob}` {worst.problem or f'{worst.relative:.1e}'}"
    cover = result.coverage
    parts = f", in parts ({cover.compared} of {cover.layers} layers)"
    return (text if result.passed else f"**{text}**") + (parts if result.how == "parts" else "")


def row(folder: Path, toolchains: Sequence[Toolchain], scratch: Path) -> str:
    """The table's row for a net."""
    original = pair_in(folder)
    target = scratch / folder.name
    target.mkdir()
    folded = Pair(target / "folded.prototxt", target / "folded.caffemodel")
    report = caffe_fold.fold(original.model, original.weights, folded.model, folded.weights)
    cells = [f"{report.before.layers} -> {report.after.layers}"]
    cells += [by_engine(engine, folder.name, original, folded) for engine in ("opencv", "caffe")]
    cells += [tool.compare(original, folded, target / tool.name) for tool in toolchains]
    line = f"| {folder.name} | {' | '.join(cells)} |"
    print(line, flush=True)
    return line


def pair_in(folder: Path) -> Pair:
    """The deploy prototxt of a folder, and its weights."""
    models = sorted(p for p in folder.glob("*.prototxt") if not p.stem.endswith("_train"))
    return Pair(models[0], next(folder.glob("*.caffemodel")))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=_Formatter)
    parser.add_argument("models", type=Path)
    parser.add_argument("--mnn", type=Path)
    parser.add_argument("--openvino", type=Path)
    parser.add_argument("--output", type=Path, default=Path("docs/round_trip.md"))
    parser.add_argument("--jobs", type=int, default=2)
    given = parser.parse_args()
    named = (("mnn", given.mnn), ("openvino", given.openvino))
    toolchains = [Toolchain(name, path.absolute()) for name, path in named if path is not None]
    folders = sorted(path for path in given.models.iterdir() if any(path.glob("*.caffemodel")))
    with tempfile.TemporaryDirectory() as name, ThreadPoolExecutor(given.jobs) as pool:
        rows = list(pool.map(lambda folder: row(folder, toolchains, Path(name)), folders))
    titles = {"mnn": "MNN", "openvino": "OpenVINO"}
    engines = ["OpenCV", "Caffe", *(titles[tool.name] for tool in toolchains)]
    head = HEAD.format(
        tolerance=TOLERANCE, engines=" | ".join(engines), rules="|".join("---" for _ in engines)
    )
    given.output.parent.mkdir(parents=True, exist_ok=True)
    given.output.write_text(head + "\n".join(rows) + "\n" + NOTES, "utf-8")


class _Formatter(argparse.RawDescriptionHelpFormatter):
    """The docstring as it stands."""


if __name__ == "__main__":
    main()
