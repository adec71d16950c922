"""A plan as edits of the prototxt: splices, and nothing else changes."""

from __future__ import annotations

import re

from caffe_fold import caffe_pb2
from caffe_fold.layers.linear import LINEAR
from caffe_fold.nets.edits import Edit, apply_edits, removals
from caffe_fold.nets.graph import Graph
from caffe_fold.nets.net import Layer
from caffe_fold.nets.prototxt import Document, Field
from caffe_fold.planning.plan import Merge, Plan

__all__ = ["rewrite_prototxt", "twins"]


def rewrite_prototxt(graph: Graph, plan: Plan, engine_caffe: bool = False) -> bytes:
    """The new prototxt's bytes."""
    writer = _Writer(graph.net.document)
    for layer in twins(graph, plan):
        writer.removed.append(layer.field)
    for at, layer in enumerate(graph.layers):
        if not plan.surgery.alive[at]:
            writer.removed.append(layer.field)
            continue
        writer.names(layer.all("bottom"), layer.bottoms, plan.surgery.bottom_names[at])
        writer.names(layer.all("top"), layer.tops, plan.surgery.top_names[at])
        if engine_caffe and _is_one_by_one(graph, layer):
            writer.set(layer, "convolution_param", "engine", "CAFFE")
    for fold in plan.folds:
        layer = fold.linear.layer
        if fold.needs_bias and not fold.linear.bias_term:
            writer.set(layer, LINEAR[layer.type].parameter, "bias_term", "true")
        writer.drop(layer, "quantization_param")
    for repair in plan.repairs:
        writer.set(repair.layer, repair.parameter, "bias_term", "false")
        writer.removed += repair.layer.all("param")[1:]
    for merge in plan.merges:
        writer.merge(merge)
    return apply_edits(writer.document, [*writer.edits, *removals(writer.document, writer.removed)])


def twins(graph: Graph, plan: Plan) -> list[Layer]:
    """Layers outside the state that go with a removed one of their name and type."""
    inside = {layer.index for layer in graph.layers}
    gone = {
        (layer.name, layer.type)
        for at, layer in enumerate(graph.layers)
        if not plan.surgery.alive[at]
    }
    return [
        layer
        for layer in graph.net.layers
        if layer.index not in inside and (layer.name, layer.type) in gone
    ]


def _is_one_by_one(graph: Graph, layer: Layer) -> bool:
    if layer.type != "Convolution":
        return False
    message = graph.net.parsed(layer, "convolution_param", caffe_pb2.ConvolutionParameter).message
    sizes = [*message.kernel_size, message.kernel_h or 0, message.kernel_w or 0]
    return bool(message.kernel_size or message.kernel_h) and set(sizes) <= {0, 1}


def _quoted(name: str, quote: str) -> str:
    """A name as a string literal, in the document's bytes."""
    text = name.encode("utf-8", "surrogateescape").decode("latin-1")
    special = re.compile(f"[\\\\{quote}\\x00-\\x1f\\x7f]")
    body = special.sub(lambda m: f"\\{m[0]}" if m[0] in "\\\"'" else f"\\{ord(m[0]):03o}", text)
    return f"{quote}{body}{quote}"


class _Writer:
    """Collects the edits of one document."""

    def __init__(self, document: Document) -> None:
        self.document = document
        self.edits: list[Edit] = []
        self.removed: list[Field] = []

    def names(self, fields: list[Field], old: tuple[str, ...], new: list[str]) -> None:
        """Rename those of the tops or bottoms that changed."""
        for field, before, after in zip(fields, old, new):
            if before != after:
                quote = self.document.text[field.value_start]
                self._replace(field, _quoted(after, quote))

    def set(self, layer: Layer, parameter: str, name: str, value: str) -> None:
        """Give a scalar of a layer's parameter message a value, in place if it is there."""
        message = next(iter(layer.all(parameter)), None)
        if message is None:
            self._insert(layer.field, f"{parameter} {{ {name}: {value} }}")
            return
        field = next((f for f in message.fields or () if f.name == name), None)
        if field is None:
            self._insert(message, f"{name}: {value}")
        elif self.document.value(field) != value:
            self._replace(field, value)

    def drop(self, layer: Layer, name: str) -> None:
        """Remove a field wherever it stands in a layer or in one of its messages."""
        for field in layer.fields:
            if field.name == name:
                self.removed.append(field)
            else:
                self._remove([field], name)

    def merge(self, merge: Merge) -> None:
        """Make the kept layer of a run a Scale with bias."""
        layer, kind = merge.keeper.layer, merge.keeper.kind
        self.drop(layer, "quantization_param")
        if layer.type == "Scale":
            if merge.keeper.map.channels is None and merge.map.channels is not None:
                self._remove(layer.all(kind.parameter), "axis", "num_axes")
            self.set(layer, kind.parameter, "bias_term", "true")
            return
        scalar = "num_axes: 0 " if merge.map.channels is None else ""
        parameter = f"scale_param {{ {scalar}bias_term: true }}"
        self._replace(layer.all("type")[0], '"Scale"')
        # A scale_param meant nothing in it so far.
        self.removed += [*layer.all("param"), *layer.all("scale_param")]
        old = layer.all(kind.parameter)
        if old:
            self.edits.append(Edit(old[0].start, old[0].end, parameter))
        else:
            self._insert(layer.field, parameter)

    def _remove(self, messages: list[Field], *names: str) -> None:
        for message in messages:
            self.removed += [f for f in message.fields or () if f.name in names]

    def _replace(self, field: Field, value: str) -> None:
        self.edits.append(Edit(field.value_start, field.value_end, value))

    def _insert(self, message: Field, text: str) -> None:
        """A new last field of a message, on a line of its own where the closing brace
        has one."""
        brace = message.value_end - 1
        line = self.document.text.rfind("\n", 0, brace) + 1
        before = self.document.text[line:brace]
        if before.strip(" \t"):
            space = "" if before[-1] in " \t" else " "
            self.edits.append(Edit(brace, brace, f"{space}{text} "))
            return
        indent = self._indent(message) or before + "  "
        self.edits.append(Edit(line, line, f"{indent}{text}{self.document.newline}"))

    def _indent(self, message: Field) -> str:
        """The indentation of the message's last field, if it starts its line."""
        if not message.fields:
            return ""
        start = message.fields[-1].start
        line = self.document.text.rfind("\n", 0, start) + 1
        indent = self.document.text[line:start]
        return "" if indent.strip(" \t") else indent
