"""Judges a folded net: every engine's values of the original against those of the folded one.

    >>> points = fold_points(report)
    >>> before, after = by_caffe(original, inputs), by_caffe(folded, inputs)
    >>> judge(before, after, points)  # the largest difference, if none is too large

An engine that does not know a layer of a net gets a copy of the text, in which
the layer is replaced by its standard equal, or cut off with all that hangs on it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from caffe_fold import Report

from . import engines
from .compare import FoldPoint, assert_same, compare_pair
from .evaluate import Evaluation, Evaluator
from .geometry import DEPTHWISE
from .netdef import Layer, NetDef, read_net
from .prototext import Ident, Message, Value

Inputs = Mapping[str, npt.NDArray[np.float32]]

CAFFE = frozenset(
    "Accuracy BatchNorm Bias Concat Convolution Deconvolution Dropout Eltwise Flatten "
    "InnerProduct Input LRN PReLU Permute Pooling Power ReLU Reshape Scale Sigmoid Silence Slice "
    "Softmax SoftmaxWithLoss Split TanH".split()
)
"""The types, of those met in real nets, that the wheel with real Caffe knows."""

OPENCV = frozenset(
    "BatchNorm Concat Convolution Deconvolution DetectionOutput Dropout Eltwise Flatten "
    "InnerProduct Input LRN Normalize PReLU Permute Pooling Power PriorBox PriorBoxClustered ReLU "
    "Reshape Scale Sigmoid Slice Softmax Split TanH".split()
)
"""The types, of those met in real nets, that OpenCV's importer knows and runs as Caffe does."""


@dataclass(frozen=True)
class Net:
    """A prototxt with its weights."""

    prototxt: Path
    caffemodel: Path


def fold_points(report: Report) -> list[FoldPoint]:
    """Return each changed layer with the layer whose values its top now has."""
    points = [(fold.layer, fold.behind[-1]) for fold in report.folded if fold.behind]
    return points + [(merge.layer, merge.layers[-1]) for merge in report.merged]


# ---- The engines ----


def by_evaluator(net: Net, inputs: Inputs, lenient: bool = False) -> Evaluation:
    """Run a net in the evaluator; with ``lenient``, as far as it knows the layers."""
    return Evaluator(net.prototxt, net.caffemodel).run(inputs, lenient)


def by_caffe(nets: Sequence[Net], inputs: Inputs) -> list[Evaluation]:
    """Run nets in real Caffe."""
    jobs = [engines.Job(net.prototxt, net.caffemodel, inputs) for net in nets]
    found = []
    for net, result in zip(nets, engines.caffe_forward_many(jobs)):
        if isinstance(result, engines.EngineError):
            raise result
        tops = {}
        for layer in (definition := read_net(net.prototxt)).layers:
            tops.update({(layer.name, top): result[f"{layer.name}@{top}"] for top in layer.tops})
        found.append(_evaluation(definition, tops))
    return found


def by_opencv(net: Net, inputs: Inputs) -> Evaluation:
    """Run a net in OpenCV."""
    result = engines.opencv_forward(net.prototxt, net.caffemodel, inputs)
    tops = {}
    for layer in (definition := read_net(net.prototxt)).layers:
        for place, top in enumerate(layer.tops):
            key = f"{layer.name}.{place}" if place else layer.name
            if key in result:
                tops[layer.name, top] = result[key]
    return _evaluation(definition, tops)


def _evaluation(net: NetDef, tops: Mapping[tuple[str, str], npt.NDArray[np.float32]]) -> Evaluation:
    found = Evaluation(net=net)
    for (layer, top), value in tops.items():
        found.tops[layer, top] = value.astype(np.float64)
        found.blobs[top] = found.tops[layer, top]
        found.writers[top] = layer
    return found


# ---- The judgement ----


def judge(
    original: Evaluation,
    folded: Evaluation,
    points: Iterable[FoldPoint],
    tolerance: float = 1e-4,
    cut: frozenset[str] = frozenset(),
) -> float:
    """Assert that all values agree; return the largest relative difference.

    Every top of the folded net that is not in ``cut``, by its layer's name, must
    have been compared, and be something else than zeros all over in most.
    """
    points = [point for point in points if point[0] not in cut]
    differences = compare_pair(original, folded, points)
    assert_same(original, folded, points, tolerance)
    compared = {item.blob.split("@")[0] for item in differences if "@" in item.blob}
    layers = folded.net.layers if folded.net else ()
    missing = [
        layer.name
        for layer in layers
        if layer.tops and layer.bottoms and layer.name not in compared | cut
    ]
    if missing:
        raise AssertionError(f"{len(missing)} layers were not compared: {missing[:10]}")
    alive = [item for item in differences if item.largest > 1e-6]
    if len(alive) * 2 < len(differences):
        raise AssertionError(f"{len(alive)} of {len(differences)} values are not zero")
    return max(item.relative for item in differences)


# ---- Copies of a text for an engine ----


def adapted(net: Net, known: frozenset[str], inputs: Inputs, folder: Path) -> tuple[Net, set[str]]:
    """Return the net as an engine that knows these types can run it, and the layers cut off.

    It is the net itself where the engine knows all of its layers, or a copy of its text
    where each given blob has an Input layer, where a depthwise convolution is a grouped
    one, and where layers of other types are cut off with all that hangs on them.
    """
    definition = read_net(net.prototxt)
    made = {top for layer in definition.layers for top in layer.tops}
    if made >= set(inputs) and all(layer.type in known for layer in definition.layers):
        return net, set()
    parts = [_input(name, value.shape) for name, value in inputs.items()]
    there, cut = set(inputs), set()
    for layer in definition.layers:
        if not layer.bottoms and set(layer.tops) & set(inputs):
            continue
        standard = _standard(layer)
        if standard.type in known and set(layer.bottoms) <= there:
            parts.append(_text(standard))
            there.update(layer.tops)
        else:
            cut.add(layer.name)
            there.difference_update(layer.tops)
    folder.mkdir(parents=True, exist_ok=True)
    copy = folder / net.prototxt.name
    copy.write_bytes("".join(parts).encode("utf-8", "surrogateescape"))
    return Net(copy, net.caffemodel), cut


def _input(name: str, shape: Sequence[int]) -> str:
    dims = " ".join(f"dim: {dim}" for dim in shape)
    return (
        f'layer {{ name: "input {name}" type: "Input" top: "{name}" '
        f"input_param {{ shape {{ {dims} }} }} }}\n"
    )


def _standard(layer: Layer) -> Layer:
    """Replace a depthwise convolution by a grouped one."""
    if layer.type not in DEPTHWISE:
        return layer
    params = layer.params("convolution_param")
    grouped = Message(params)
    if not params.has("group"):
        grouped.append(("group", params.integer("num_output")))
    others = [field for field in layer.text if field[0] != "convolution_param"]
    text = Message([*others, ("convolution_param", grouped)])
    return Layer(layer.name, "Convolution", layer.bottoms, layer.tops, text)


_REPLACED = frozenset("name type bottom top include exclude blobs_lr weight_decay".split())


def _text(layer: Layer) -> str:
    fields: list[tuple[str, Value]] = [("name", layer.name), ("type", layer.type)]
    fields += [("bottom", bottom) for bottom in layer.bottoms]
    fields += [("top", top) for top in layer.tops]
    fields += [field for field in layer.text if field[0] not in _REPLACED]
    return f"layer {{\n{_fields(Message(fields))}}}\n"


def _fields(message: Message) -> str:
    lines = []
    for name, value in message:
        if isinstance(value, Message):
            lines.append(f"{name} {{\n{_fields(value)}}}\n")
        else:
            lines.append(f"{name}: {_scalar(value)}\n")
    return "".join(lines)


def _scalar(value: Value) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str) and not isinstance(value, Ident):
        escaped = value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
        return f'"{escaped}"'
    return str(value)
