"""What folding buys at inference: how many times as fast a folded net is.

    python scripts/inference.py ../shared/models
    python scripts/inference.py --pair deploy.prototxt net.caffemodel --rounds 50

MODELS holds a folder for each net, with its prototxt and caffemodel; the net of `caffe-fold demo`
is measured in any case. OpenCV runs each net as it comes, its own folding on, and so does the
Caffe of the interpreter that CAFFE_FOLD_CAFFE_PYTHON names, where there is one; each on one
thread, since what else a machine does disturbs several more. A forward pass of the net and one of
the folded net take turns. The ratio is that of the medians; the whole is done several times over,
and the table has the median of the ratios, the least and the largest.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import statistics
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from quantize_error import SHAPES, nets

import caffe_fold
from caffe_fold.demo import write_demo

ENGINES = {"opencv": "OpenCV", "caffe": "Caffe"}
DEMO = "MobileNet-SSD of `caffe-fold demo`"


@dataclass(frozen=True)
class Pairs:
    """A net and the net folded from it."""

    name: str
    original: tuple[Path, Path]
    folded: tuple[Path, Path]
    layers: str


def fold(name: str, model: Path, weights: Path, folder: Path) -> Pairs:
    """Fold a net into a folder."""
    folder.mkdir()
    target = folder / "folded.prototxt", folder / "folded.caffemodel"
    report = caffe_fold.fold(model, weights, *target)
    return Pairs(name, (model, weights), target, f"{report.before.layers} -> {report.after.layers}")


def ratio(pairs: Pairs, engine: str, rounds: int) -> float | str:
    """How many times as fast the folded net is, or why that is not known."""
    files = (*pairs.original, *pairs.folded)
    shapes = SHAPES.get(pairs.name)
    try:
        result = caffe_fold.verify(*files, engine=engine, input_shapes=shapes, rounds=rounds)
    except caffe_fold.EngineMissing:
        return "not there"
    if not result.passed:
        return "**wrong**"
    return "does not run it whole" if result.timing is None else result.timing.ratio


def cell(found: Sequence[float | str]) -> str:
    """The median of the ratios with the least and the largest."""
    ratios = [each for each in found if isinstance(each, float)]
    if len(ratios) < len(found):
        return next(each for each in found if isinstance(each, str))
    return f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"


def row(pairs: Pairs, rounds: int, repeats: int) -> str:
    """The table's row for a net; the engines take turns."""
    found: dict[str, list[float | str]] = {engine: [] for engine in ENGINES}
    for _ in range(repeats):
        for engine, ratios in found.items():
            if not (ratios and isinstance(ratios[-1], str)):  # that would be said again
                ratios.append(ratio(pairs, engine, rounds))
    return f"| {pairs.name} | {pairs.layers} | {' | '.join(map(cell, found.values()))} |"


def use_one_thread() -> None:
    """OpenCV in this process, and the BLAS of a Caffe in another."""
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[name] = "1"
    with contextlib.suppress(ImportError):
        import cv2

        cv2.setNumThreads(1)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("models", type=Path, nargs="*", metavar="MODELS")
    parser.add_argument("--pair", type=Path, nargs=2, action="append", default=[])
    parser.add_argument("--rounds", type=int, default=15, help="forward passes of each net; 15")
    parser.add_argument("--repeats", type=int, default=3, help="ratios of each net; 3")
    given = parser.parse_args()
    if min(given.rounds, given.repeats) < 1:
        parser.error("--rounds and --repeats have to be 1 at least")
    use_one_thread()
    print(f"| net | layers | {' | '.join(ENGINES.values())} |")
    print(f"|---|---|{'---|' * len(ENGINES)}", flush=True)
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        asked = [(DEMO, *write_demo(scratch)), *nets(given.models, given.pair)]
        for index, (title, model, weights) in enumerate(asked):
            try:
                pairs = fold(title, model, weights, scratch / str(index))
                print(row(pairs, given.rounds, given.repeats), flush=True)
            except caffe_fold.CaffeFoldError as error:
                print(f"{title}: {error}", file=sys.stderr)


if __name__ == "__main__":
    main()
