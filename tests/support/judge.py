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
from functools import lru_cache
from pathlib import Path

import numpy as np
import numpy.typing as npt

from caffe_fold import Report

from . import engines
from .blobspecs import Dims
from .compare import FoldPoint, assert_same, compare_pair
from .evaluate import Evaluation, Evaluator
from .geometry import DEPTHWISE
from .netdef import Layer, NetDef, read_net
from .prototext import Ident, Message, Value, parse
from .shapes import infer

Inputs = Mapping[str, npt.NDArray[np.float32]]

CAFFE = frozenset(
    "Accuracy BatchNorm Bias Concat Convolution Deconvolution Dropout Eltwise Flatten "
    "InnerProduct Input LRN PReLU Permute Pooling Power ReLU Reduction Reshape Scale Sigmoid "
    "Silence Slice Softmax SoftmaxWithLoss Split TanH".split()
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


def definition_of(net: Net) -> NetDef:
    """Return what the independent reader makes of a net's text, for reading only."""
    return _definition(net.prototxt.read_bytes().decode("utf-8", "surrogateescape"))


@lru_cache(maxsize=8)
def _definition(text: str) -> NetDef:
    return read_net(text)


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
    jobs = [engines.Job(net.prototxt, net.caffemodel, _wanted(net, inputs)) for net in nets]
    found = []
    for net, result in zip(nets, engines.caffe_forward_many(jobs)):
        if isinstance(result, engines.EngineError):
            raise result
        tops = {}
        for layer in (definition := definition_of(net)).layers:
            tops.update({(layer.name, top): result[f"{layer.name}@{top}"] for top in layer.tops})
        found.append(_evaluation(definition, tops))
    return found


def by_opencv(net: Net, inputs: Inputs) -> Evaluation:
    """Run a net in OpenCV."""
    result = engines.opencv_forward(net.prototxt, net.caffemodel, _wanted(net, inputs))
    definition = definition_of(net)
    names = {layer.name for layer in definition.layers}
    tops = {}
    for layer in definition.layers:
        for place, top in enumerate(layer.tops):
            # OpenCV calls a layer that is not in place by its top.
            stem = layer.name if layer.name in result or top in names else top
            key = f"{stem}.{place}" if place else stem
            if key in result:
                tops[layer.name, top] = result[key]
    return _evaluation(definition, tops)


def _wanted(net: Net, inputs: Inputs) -> Inputs:
    """Return the inputs that a net has; a copy may lack some."""
    made = {top for layer in definition_of(net).layers for top in layer.tops}
    return {name: value for name, value in inputs.items() if name in made}


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


@dataclass(frozen=True)
class Adapted:
    """A net as an engine can run it; ``cut`` are the names of the layers cut off, and
    ``unknown`` the types for which they were."""

    net: Net
    cut: frozenset[str] = frozenset()
    unknown: frozenset[str] = frozenset()


def adapted(
    net: Net,
    known: frozenset[str],
    inputs: Inputs,
    folder: Path,
    with_fillers: bool = False,
    small: bool = False,
) -> Adapted:
    """Return the net as an engine that knows these types can run it.

    It is the net itself where the engine knows all of its layers, or a copy of its text
    where each given blob that is read has an Input layer, where a depthwise convolution is
    a grouped one, and where layers of other types are cut off with all that hangs on them.
    ``with_fillers``: the engine fills weights that the file lacks, as real Caffe does.
    ``small``: the inputs are smaller than the text says, and a pooling to one value a
    channel becomes one of the whole.
    """
    definition = definition_of(net)
    made = {top for layer in definition.layers for top in layer.tops}
    if (
        not small
        and made >= set(inputs)
        and all(layer.type in known for layer in definition.layers)
    ):
        return Adapted(net)
    parts: list[str] = []
    there, read, cut = set(inputs), set[str](), set[str]()
    unknown: set[str] = set()
    for layer, bottoms, tops in zip(definition.layers, *infer(definition)):
        if not layer.bottoms and set(layer.tops) & set(inputs):
            continue
        standard = _standard(layer, bottoms, with_fillers)
        if small and layer.type == "Pooling" and tops[0] and tops[0][2:] == (1, 1):
            standard = _pooling_of_all(layer)
        if standard.type in known and set(layer.bottoms) <= there:
            parts.append(_text(standard))
            read.update(layer.bottoms)
            there.update(layer.tops)
        else:
            cut.add(layer.name)
            unknown.update({standard.type} - known)
            there.difference_update(layer.tops)
    parts = [_input(name, inputs[name].shape) for name in inputs if name in read] + parts
    folder.mkdir(parents=True, exist_ok=True)
    copy = folder / net.prototxt.name
    copy.write_bytes("".join(parts).encode("utf-8", "surrogateescape"))
    return Adapted(Net(copy, net.caffemodel), frozenset(cut), frozenset(unknown))


def _input(name: str, shape: Sequence[int]) -> str:
    dims = " ".join(f"dim: {dim}" for dim in shape)
    return (
        f'layer {{ name: "input {name}" type: "Input" top: "{name}" '
        f"input_param {{ shape {{ {dims} }} }} }}\n"
    )


def _standard(layer: Layer, bottoms: Sequence[Dims], with_fillers: bool) -> Layer:
    """Replace a fork's layer by its equal of standard Caffe, where there is one."""
    if layer.type in DEPTHWISE:
        params = Message(layer.params("convolution_param"))
        if not params.has("group"):
            params.append(("group", params.integer("num_output")))
        others = [pair for pair in layer.text if pair[0] != "convolution_param"]
        text = Message([*others, ("convolution_param", params)])
        return Layer(layer.name, "Convolution", layer.bottoms, layer.tops, text)
    scale = layer.params("upsample_param").integer("scale")
    if layer.type == "Upsample" and len(bottoms) == 1 and scale and with_fillers:
        # Each value repeated: a kernel of ones. Under another name it keeps its filler.
        count = bottoms[0][1]
        words = f"num_output: {count} group: {count} kernel_size: {scale} stride: {scale} "
        words += "bias_term: false weight_filler { type: 'constant' value: 1 }"
        text = parse(f"convolution_param {{ {words} }}")
        name = f"{layer.name} repeated"
        return Layer(name, "Deconvolution", layer.bottoms, layer.tops, text)
    return layer


def _pooling_of_all(layer: Layer) -> Layer:
    kept = [pair for pair in layer.params("pooling_param") if pair[0] == "pool"]
    params = Message([*kept, ("global_pooling", True)])
    text = Message([("pooling_param", params)])
    return Layer(layer.name, layer.type, layer.bottoms, layer.tops, text)


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
