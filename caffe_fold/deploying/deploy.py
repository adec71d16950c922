"""A deploy prototxt from one for training and testing, as edits of its text.

The TEST net's data layers become Input layers, losses and accuracies go, and with them
what only they need; a SoftmaxWithLoss becomes the Softmax in it. Layers outside of the
net's state go too, and so do the rules by which the others are in it.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping

from caffe_fold.deploying.data_shapes import DataTop, dummy_batch, shape_of
from caffe_fold.deploying.needs import Needed, Needs, is_loss
from caffe_fold.errors import InputError, show
from caffe_fold.hints import closest
from caffe_fold.nets.data_layers import data_layers, is_source
from caffe_fold.nets.edits import Edit, apply_edits, removals
from caffe_fold.nets.graph import Graph
from caffe_fold.nets.net import Layer
from caffe_fold.nets.prototxt import Document, Field, string_value
from caffe_fold.weights.caffemodel import Caffemodel

__all__ = ["data_layers", "deployed"]

Shape = tuple[int, ...]


def deployed(graph: Graph, model: Caffemodel, input_shapes: Mapping[str, Shape]) -> bytes:
    """The text of a graph's deploy net.

    :param input_shapes: shapes by the name of a data layer's top, for those that the files
        do not tell or that are to be another.
    :raises InputError: where the shape of an input is not known or does not fit the
        weights, or a name in ``input_shapes`` is no top of a data layer to replace.

    A file in which no layer is a data layer, a loss or an accuracy comes out byte for byte.
    """
    document = graph.net.document
    if not any(is_source(layer) or is_loss(layer) for layer in graph.net.layers):
        _require_known(document, input_shapes, [])
        return document.text.encode("latin-1")
    _require_writable(graph)
    needed = Needs(graph, model).needed()
    _require_known(document, input_shapes, [top.blob for top in needed.inputs])
    inputs: dict[int, list[tuple[DataTop, Shape]]] = {}
    for top in needed.inputs:
        shape = shape_of(graph, model, top, _reader(graph, needed, top), input_shapes)
        inputs.setdefault(top.layer.index, []).append((top, shape))
    _require_one_batch(graph, needed, [shape for made in inputs.values() for _, shape in made])
    names = _softmax_names(graph, model, needed)
    return apply_edits(document, _edits(graph, needed, inputs, names))


def _require_known(document: Document, given: Iterable[str], known: list[str]) -> None:
    for name in given:
        if name not in known:
            others = ", ".join(f"'{show(blob)}'" for blob in known)
            hint = f"; it needs {others}" if known else "; it needs none"
            hint = closest(name, known) or hint
            raise InputError(
                f"{show(os.fspath(document.path))}: --input-shape names '{show(name)}', which is "
                f"no top of a data layer that the deploy net needs{hint}"
            )


def _reader(graph: Graph, needed: Needed, top: DataTop) -> Layer:
    """The first layer of the deploy net that reads a data layer's top."""
    readers = ((at, slot) for at, slot in graph.readers[top.value] if at in needed.layers)
    return next(graph.layers[at] for at, slot in readers if slot == 0 or at not in needed.softmaxes)


def _require_one_batch(graph: Graph, needed: Needed, shapes: list[Shape]) -> None:
    """Constants of a DummyData that stays have the batch of the training net."""
    replaced = {top.layer.index for top in needed.inputs}
    for layer in (graph.layers[at] for at in sorted(needed.layers)):
        if layer.index in replaced:
            continue
        batch = dummy_batch(graph.net.document, layer)
        if batch not in (None, 1) and batch not in {shape[0] for shape in shapes if shape}:
            raise graph.net.document.error(
                layer.field.start,
                f"layer '{show(layer.name)}' (DummyData) has a batch of {batch}, and the inputs of "
                f"the deploy net do not; give them one of {batch} with --input-shape",
            )


def _require_writable(graph: Graph) -> None:
    for layer in graph.net.layers:
        if layer.version == 0 or (layer.version == 1 and layer.field.in_list):
            raise graph.net.document.error(
                layer.field.start,
                f"layer '{show(layer.name)}' is in a format too old to make a deploy net of; "
                "upgrade the file first (Caffe's upgrade_net_proto_text)",
            )


def _softmax_names(graph: Graph, model: Caffemodel, needed: Needed) -> dict[int, tuple[str, str]]:
    """Name and top of each new Softmax: both "prob" for the last, where that is free."""
    kept = [graph.layers[at] for at in needed.layers - set(needed.softmaxes)]
    # A layer whose name the weights have must have their blobs (Net::CopyTrainedLayersFrom,
    # net.cpp).
    names = {layer.name for layer in kept} | {e.name for e in model.entries if e.blobs}
    blobs = {blob for layer in kept for blob in (*layer.bottoms, *layer.tops)}
    blobs |= {name for name, _ in graph.net.inputs}
    found = {}
    for at in reversed(needed.softmaxes):
        layer = graph.layers[at]
        name = layer.name if "prob" in names else "prob"
        top = next((top for top in ("prob", *layer.tops) if top not in blobs), layer.name)
        top = layer.tops[1] if len(layer.tops) > 1 else top
        found[at] = name, top
        names.add(name)
        blobs.add(top)
    return found


# ---- Edits ----


def _edits(
    graph: Graph,
    needed: Needed,
    inputs: Mapping[int, list[tuple[DataTop, Shape]]],
    names: Mapping[int, tuple[str, str]],
) -> list[Edit]:
    document, edits = graph.net.document, []
    places = {layer.index: at for at, layer in enumerate(graph.layers)}
    gone: list[Field] = []
    for layer in graph.net.layers:
        at = places.get(layer.index, -1)
        if layer.index in inputs:
            edits.append(_input(document, layer, inputs[layer.index]))
        elif at in names:
            edits.append(_softmax(document, layer, *names[at]))
        elif at in needed.layers:
            gone += [f for f in layer.fields if f.name in ("include", "exclude", "loss_weight")]
            bottoms = zip(layer.all("bottom"), graph.bottoms[at])
            gone += [field for field, value in bottoms if value not in needed.values]
        else:
            gone.append(layer.field)
    return edits + removals(document, gone)


def _input(document: Document, layer: Layer, tops: list[tuple[DataTop, Shape]]) -> Edit:
    if layer.version == 1:
        return _net_level_input(document, layer, tops)
    shapes = " ".join(f"shape {{ {_dims('dim', shape)} }}" for _, shape in tops)
    names = [document.value(layer.all("top")[top.slot]) for top, _ in tops]
    fields = [f"name: {document.value(field)}" for field in layer.all("name")]
    fields += ['type: "Input"', *(f"top: {name}" for name in names)]
    return _body(document, layer, [*fields, f"input_param {{ {shapes} }}"])


def _net_level_input(document: Document, layer: Layer, tops: list[tuple[DataTop, Shape]]) -> Edit:
    """The format of ``layers`` has no Input layer. A file has ``input_dim`` or
    ``input_shape``, not both (UpgradeNetInput, upgrade_proto.cpp)."""
    by_dim = any(field.name == "input_dim" for field in document.fields)
    lines = []
    for top, shape in tops:
        lines.append(f"input: {document.value(layer.all('top')[top.slot])}")
        if by_dim and len(shape) != 4:
            raise document.error(
                layer.field.start,
                f"'{show(top.blob)}' has {len(shape)} dimensions and the file gives its other "
                "inputs by 'input_dim', which takes four; give those by 'input_shape'",
            )
        dims = _dims("input_dim", shape)
        lines.append(dims if by_dim else f"input_shape {{ {_dims('dim', shape)} }}")
    return Edit(layer.field.start, layer.field.end, document.newline.join(lines))


def _dims(name: str, shape: Shape) -> str:
    return " ".join(f"{name}: {dim}" for dim in shape)


def _softmax(document: Document, layer: Layer, name: str, top: str) -> Edit:
    """A SoftmaxWithLoss as the Softmax in it, which has its ``softmax_param``
    (SoftmaxWithLossLayer::LayerSetUp, softmax_loss_layer.cpp)."""
    literals = {"prob": '"prob"', "": '""'}
    for field in (*layer.all("name"), *layer.all("top")):
        literals[string_value(document, field)] = document.value(field)
    fields = [f"name: {literals[name]}"] if name else []
    fields.append("type: SOFTMAX" if layer.version == 1 else 'type: "Softmax"')
    fields.append(f"bottom: {document.value(layer.all('bottom')[0])}")
    fields.append(f"top: {literals[top]}")
    fields += [f"softmax_param {document.value(field)}" for field in layer.all("softmax_param")]
    return _body(document, layer, fields)


def _body(document: Document, layer: Layer, fields: list[str]) -> Edit:
    """Replace what stands between a layer's braces, in lines where it stood in lines."""
    text, start, end = document.text, layer.field.value_start + 1, layer.field.value_end - 1
    if "\n" not in text[start:end]:
        return Edit(start, end, f" {' '.join(fields)} ")
    outer = _indent(text, layer.field.start) or ""
    inner = next((i for i in (_indent(text, f.start) for f in layer.fields) if i), f"{outer}  ")
    lines = [f"{inner}{field}" for field in fields]
    return Edit(start, end, document.newline.join(["", *lines, outer]))


def _indent(text: str, at: int) -> str | None:
    """What stands before a place on its line, if that is blank."""
    before = text[text.rfind("\n", 0, at) + 1 : at]
    return None if before.strip(" \t") else before
