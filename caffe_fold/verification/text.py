"""Writes the text of a net that an engine is to run, from layers of a net.

Layers are copied as they stand, but for what ties them to their place: their bottoms and
tops get a name for each value, so that nothing works in place and any part of a net is a
net; what comes from outside becomes a net-level input, which every Caffe knows. Types of
forks become what ``standard`` says.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from caffe_fold.layers.linear import LINEAR
from caffe_fold.nets.edits import Edit, edited
from caffe_fold.nets.net import Layer
from caffe_fold.nets.prototxt import Field
from caffe_fold.verification.engine import Job
from caffe_fold.verification.shapes import Shape
from caffe_fold.verification.sides import Side
from caffe_fold.verification.standard import is_retyped, standard_type
from caffe_fold.verification.weights import Stored, stored, write_weights

__all__ = ["Draft", "as_it_is", "write_draft"]


@dataclass(frozen=True)
class Draft:
    """A part of a net: the places of its layers, in order, and its inputs by value."""

    layers: tuple[int, ...]
    inputs: Mapping[int, str]


def as_it_is(side: Side, inputs: Mapping[int, str]) -> Job:
    """The net's own two files as they are."""
    graph = side.graph
    outputs = {
        value: (layer.name, layer.tops[slot], slot)
        for layer, tops in zip(graph.layers, graph.tops)
        for slot, value in enumerate(tops)
    }
    names = {key: graph.values[value].blob for value, key in inputs.items()}
    return Job(side.model, side.weights, names, outputs)


def write_draft(side: Side, draft: Draft, shapes: Mapping[str, Shape], stem: Path) -> Job:
    """Write a part of a net as a prototxt and a caffemodel.

    :param shapes: the shapes of the inputs, by key.
    :raises Refused: where a fork's layer has no standard equal.
    """
    writer = _Writer(side, draft)
    for at in draft.layers:
        writer.add(at)
    used = {key: shapes[key] for key in draft.inputs.values() if key in writer.read}
    heads = [
        f'input: "{key}"\ninput_shape {{ {" ".join(f"dim: {d}" for d in shape)} }}\n'
        for key, shape in used.items()
    ]
    model, weights = stem.with_suffix(".prototxt"), stem.with_suffix(".caffemodel")
    model.write_bytes("".join([*heads, *writer.text]).encode("latin-1"))
    write_weights(weights, ((n, t, list(blobs)) for n, t, blobs in writer.blobs))
    return Job(str(model), str(weights), {key: key for key in used}, writer.outputs)


@dataclass
class _Writer:
    """Collects the layers of one text, their weights, and where each value is found."""

    side: Side
    draft: Draft
    text: list[str] = field(default_factory=list)
    blobs: list[tuple[str, str, Iterable[Stored]]] = field(default_factory=list)
    outputs: dict[int, tuple[str, str, int]] = field(default_factory=dict)
    read: set[str] = field(default_factory=set)

    def add(self, at: int) -> None:
        graph = self.side.graph
        layer = graph.layers[at]
        bottoms = [self.draft.inputs.get(v, f"v{v}") for v in graph.bottoms[at]]
        tops = [f"v{value}" for value in graph.tops[at]]
        self.read.update(bottoms)
        if is_retyped(self.side, at):
            self._normalisation(at, layer, bottoms[0], tops[0])
            return
        self.text.append(_copy(self.side, layer, bottoms, tops))
        entry = self.side.entry(layer)
        if entry is not None:
            model = self.side.caffemodel
            blobs = (stored(model, blob) for blob in entry.blobs)
            self.blobs.append((layer.name, standard_type(layer), blobs))
        for slot, (value, top) in enumerate(zip(graph.tops[at], tops)):
            self.outputs[value] = (layer.name, top, slot)

    def _normalisation(self, at: int, layer: Layer, bottom: str, top: str) -> None:
        """An affine layer as a BatchNorm and a Scale."""
        affine = self.side.facts.affine(at)
        assert affine.kind.standard is not None, "see is_retyped"
        norm, scale, eps = affine.kind.standard(affine.constants)
        graph = self.side.graph
        quoted = graph.net.document.value(layer.all("name")[0])
        steps = [
            ("BatchNorm", f"batch_norm_param {{ use_global_stats: true eps: {eps!r} }}", norm),
            ("Scale", "scale_param { bias_term: true }", scale),
        ]
        steps = [step for step in steps if step[2]]
        for index, (kind, parameter, arrays) in enumerate(steps):
            is_last = index == len(steps) - 1
            suffix = "" if is_last else " (normalised)"
            written = top if is_last else f"{top}n"
            name = quoted[:-1] + suffix + quoted[-1]
            self.text.append(
                f'layer {{ name: {name} type: "{kind}" bottom: "{bottom}" top: "{written}" '
                f"{parameter} }}\n"
            )
            blobs = [Stored((a.size,), False, a.astype(np.float32)) for a in arrays]
            self.blobs.append((layer.name + suffix, kind, blobs))
            bottom = written
        self.outputs[graph.tops[at][0]] = (layer.name, top, 0)


# Fields of a V1LayerParameter that a LayerParameter lacks, or has as messages.
_V1_ONLY = ("blobs_lr", "weight_decay", "blob_share_mode", "param")


def _copy(side: Side, layer: Layer, bottoms: list[str], tops: list[str]) -> str:
    """A layer's own text with other bottoms and tops, and no rules of a state; one of V1 in
    today's format, since that has more types."""
    edits = [
        Edit(field.value_start, field.value_end, f'"{name}"')
        for kind, names in (("bottom", bottoms), ("top", tops))
        for field, name in zip(layer.all(kind), names)
    ]
    dropped = ("include", "exclude", *(_V1_ONLY if layer.version == 1 else ()))
    for name in dropped:
        edits += [Edit(found.start, found.end) for found in layer.all(name)]
    edits += _retyping(side, layer)
    edits += _bias_term(side, layer)
    keyword = "layer" if layer.version else "layers"
    text, span = side.graph.net.document.text, layer.field
    return f"{keyword} {edited(text, edits, span.value_start, span.value_end)}\n"


def _retyping(side: Side, layer: Layer) -> list[Edit]:
    """A linear type of a fork as its standard equal, and one of V1 by its name of today."""
    kind = LINEAR.get(layer.type)
    standard = kind.standard if kind is not None else ""
    name = standard or (layer.type if layer.version == 1 else "")
    edits = [Edit(f.value_start, f.value_end, f'"{name}"') for f in layer.all("type") if name]
    if kind is None or not standard:
        return edits
    parsed = side.graph.net.parsed(layer, kind.parameter, kind.message)
    added = kind.added(parsed.message)
    return edits + [_appended(message, added) for message in layer.all(kind.parameter) if added]


def _bias_term(side: Side, layer: Layer) -> list[Edit]:
    """No bias where the weights have none, whatever the text implies."""
    kind, entry = LINEAR.get(layer.type), side.entry(layer)
    if kind is None or entry is None or len(entry.blobs) != 1:
        return []
    for message in layer.all(kind.parameter):
        given = [f for f in message.fields or () if f.name == "bias_term"]
        if given:
            return [Edit(given[0].value_start, given[0].value_end, "false")]
        return [_appended(message, "bias_term: false")]
    return []


def _appended(message: Field, text: str) -> Edit:
    return Edit(message.value_end - 1, message.value_end - 1, f" {text} ")
