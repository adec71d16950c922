"""What int8 weights cost a net: as it is, folded, and folded with its layers equalised.

    python scripts/quantize_error.py MODELS [--output docs/quantization.md]
    python scripts/quantize_error.py --pair deploy.prototxt net.caffemodel --json

MODELS holds a folder for each net, with its prototxt and caffemodel. The weights of linear
layers are rounded to 255 levels about zero, one step a layer (per-tensor, symmetric);
biases, BatchNorm layers and everything between layers stay in float. OpenCV runs each
variant on the same random pixels, and its outputs are compared with those of the net in
float: the power of the signal by that of the error, in dB, for the output where that is
least. A layer that makes probabilities or boxes of its bottoms is left out, since it hides
what is before it; so is one that OpenCV does not know, with what reads it.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

import caffe_fold
from caffe_fold.choices import Choices
from caffe_fold.layers.linear import LINEAR
from caffe_fold.verification.engine import EngineError
from caffe_fold.verification.inputs import Wanted, input_shapes, make_inputs
from caffe_fold.verification.opencv import OpenCV
from caffe_fold.verification.shapes import Shape
from caffe_fold.verification.sides import Files, Side, open_side
from caffe_fold.verification.standard import standard_type
from caffe_fold.verification.text import Draft, write_draft
from caffe_fold.weights.blob import Blob
from caffe_fold.weights.caffemodel import Caffemodel

Array = NDArray[np.float32]

LEVELS = 127
"""On either side of zero."""

STRETCH = 0.1
"""How much the step grows from the first sample to the last. What one rounding does to a net
is luck, worth several dB; so each sample has weights of a rounding of its own."""

VARIANTS = ("unfolded", "folded", "equalized")

# They squash or select, so that an error before them does not show.
READOUTS = frozenset(("Softmax", "Sigmoid", "DetectionOutput"))

# Inputs of nets whose prototxt does not tell their shape.
SHAPES: dict[str, dict[str, Shape]] = {"resnet20_nhzlx": {"Data1": (1, 3, 28, 28)}}


@dataclass(frozen=True)
class Row:
    """One net: the signal-to-noise ratio in dB of each variant's worst output, or why there
    is none; how many pairs were equalised."""

    net: str
    snr: dict[str, float]
    outputs: dict[str, str]
    pairs: int
    problem: str = ""


def quantize(model: Path, weights: Path, target: Path, stretch: float = 1.0) -> None:
    """Copy weights, those of linear layers rounded to int8 and back; ``stretch`` is by how
    much the step is larger than it had to be."""
    shutil.copyfile(weights, target)
    with open_side(Files(model, weights), (), None, Choices(), target.parent) as side:
        names = {layer.name for layer in side.graph.layers if layer.type in LINEAR}
        places = np.memmap(target, np.uint8, "r+")
        for entry in side.caffemodel.entries:
            if entry.name in names and entry.blobs:
                _round(side.caffemodel, entry.blobs[0], places, stretch)
        places.flush()


def _round(model: Caffemodel, blob: Blob, places: np.memmap, stretch: float) -> None:
    """Round one blob in a copy of its file."""
    values = model.vector(blob)
    step = float(np.abs(values).max(initial=0.0)) / LEVELS * stretch
    if step > 0:
        values = np.clip(np.rint(values / step), -LEVELS, LEVELS) * step
    for run in blob.runs:
        target = np.ndarray((run.count,), blob.storage.dtype, places, run.offset, (run.stride,))
        target[:], values = values[: run.count], values[run.count :]


def snr(wanted: Sequence[Array], found: Sequence[Array]) -> float:
    """The signal-to-noise ratio in dB over all samples of one output."""
    signal = sum(float(np.square(a, dtype=np.float64).sum()) for a in wanted)
    noise = sum(float(np.square(a.astype(np.float64) - b).sum()) for a, b in zip(wanted, found))
    if noise == 0:
        return math.inf
    return 10 * math.log10(signal / noise) if signal else -math.inf


# ---- Running ----


def run(side: Side, samples: Sequence[Mapping[str, Array]], folder: Path) -> dict[str, list[Array]]:
    """The outputs of a net by blob name, one value a sample.

    :raises EngineError: where OpenCV does not run it.
    """
    engine = OpenCV()
    shapes = {name: values.shape for name, values in samples[0].items()}
    inputs = {v: side.graph.values[v].blob for v in side.graph.sources()}
    inputs = {v: f"in{v}" for v, blob in inputs.items() if blob in shapes}
    keys = {key: shapes[side.graph.values[v].blob] for v, key in inputs.items()}
    layers = tuple(_runnable(side, set(inputs), engine.known() - READOUTS))
    job = write_draft(side, Draft(layers, inputs), keys, folder / "draft")
    read = {value for at in layers for value in side.graph.bottoms[at]}
    found: dict[str, list[Array]] = {}
    for sample in samples:
        given = {key: sample[side.graph.values[v].blob] for v, key in inputs.items()}
        (values,) = engine.run([job], given)
        for value, array in values.items():
            if value not in read:
                found.setdefault(side.graph.values[value].blob, []).append(array)
    return found


def _runnable(side: Side, there: set[int], known: frozenset[str]) -> Iterator[int]:
    """The layers that the engine knows and whose bottoms are there."""
    for at, layer in enumerate(side.graph.layers):
        if (
            layer.bottoms
            and standard_type(layer) in known
            and there.issuperset(side.graph.bottoms[at])
        ):
            there.update(side.graph.tops[at])
            yield at


def outputs(
    model: Path, weights: Path, samples: Sequence[Mapping[str, Array]], folder: Path
) -> dict[str, list[Array]]:
    """The outputs of a pair of files."""
    with open_side(Files(model, weights), (), None, Choices(), folder) as side:
        return run(side, samples, folder)


def random_samples(
    model: Path, weights: Path, shapes: Mapping[str, Shape], wanted: Wanted, folder: Path
) -> list[dict[str, Array]]:
    """Random pixels for the inputs of a net, labels being zeros."""
    with open_side(Files(model, weights), (), None, Choices(), folder) as side:
        sizes = {side.graph.values[v].blob: s for v, s in input_shapes(side, shapes).items()}
    labels = [blob for blob, shape in sizes.items() if len(shape) == 1]
    return [make_inputs(sizes, labels, wanted, sample) for sample in range(wanted.samples)]


def row(name: str, model: Path, weights: Path, wanted: Wanted) -> Row:
    """Measure one net."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        try:
            return _measured(name, model, weights, wanted, folder)
        except (caffe_fold.CaffeFoldError, EngineError) as error:
            return Row(name, {}, {}, 0, str(error))


def _measured(name: str, model: Path, weights: Path, wanted: Wanted, folder: Path) -> Row:
    variants = {"unfolded": (model, weights)}
    pairs = 0
    for variant in VARIANTS[1:]:
        target = folder / f"{variant}.prototxt", folder / f"{variant}.caffemodel"
        report = caffe_fold.fold(model, weights, *target, equalize=variant == "equalized")
        pairs = len(report.equalized.pairs) if report.equalized else 0
        variants[variant] = target
    samples = random_samples(model, weights, SHAPES.get(name, {}), wanted, folder)
    reference = outputs(model, weights, samples, folder)
    found, worst = {}, {}
    for variant, (text, values) in variants.items():
        made: dict[str, list[Array]] = {}
        for index, sample in enumerate(samples):
            rounded = folder / "int8.caffemodel"
            quantize(text, values, rounded, 1 + STRETCH * index / len(samples))
            for blob, (array,) in outputs(text, rounded, [sample], folder).items():
                made.setdefault(blob, []).append(array)
        each = {blob: snr(reference[blob], made[blob]) for blob in reference if blob in made}
        worst[variant] = min(each, key=each.__getitem__)
        found[variant] = each[worst[variant]]
    return Row(name, found, worst, pairs)


# ---- The command ----


def table(rows: Sequence[Row]) -> str:
    """The rows in Markdown."""
    lines = ["| net | pairs | unfolded | folded | equalized |", "|---|--:|--:|--:|--:|"]
    for each in rows:
        cells = [f"{each.snr[variant]:.1f}" for variant in VARIANTS if variant in each.snr]
        if each.problem:
            cells = [each.problem.replace("|", "/"), "", ""]
        lines.append(f"| {each.net} | {each.pairs} | {' | '.join(cells)} |")
    return "\n".join(lines)


def nets(
    folders: Sequence[Path], pairs: Sequence[Sequence[Path]]
) -> Iterator[tuple[str, Path, Path]]:
    """A name, the prototxt and the weights of each net."""
    for models in folders:
        for folder in sorted(path for path in models.iterdir() if path.is_dir()):
            texts = sorted(p for p in folder.glob("*.prototxt") if not p.stem.endswith("_train"))
            weights = sorted(folder.glob("*.caffemodel"))
            if texts and weights:
                yield folder.name, texts[0], weights[0]
    for model, weights_path in pairs:
        yield model.stem, model, weights_path


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("models", type=Path, nargs="*")
    parser.add_argument("--pair", type=Path, nargs=2, action="append", default=[])
    parser.add_argument("--samples", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true", help="print JSON, not a table")
    given = parser.parse_args()
    wanted = Wanted(samples=given.samples, seed=given.seed)
    rows = [row(*net, wanted) for net in nets(given.models, given.pair)]
    if not rows:
        parser.error("no net is given, or none is there")
    print(json.dumps([asdict(each) for each in rows], indent=2) if given.json else table(rows))


if __name__ == "__main__":
    main()
