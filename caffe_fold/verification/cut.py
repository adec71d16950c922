"""Takes apart a net that no engine runs whole.

Two ways, and both are gone. Every fold alone: an input, the linear layer, and the affine
layers that went into it, against an input and the folded layer. And the largest part of
the net that an engine can run: layers that it does not know are cut out, and what they
make becomes an input, the same for both nets, if its shape is known; else what reads it
is cut out, too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from caffe_fold.layers.affine import Refused
from caffe_fold.layers.linear import LINEAR
from caffe_fold.nets.fields import fields_of
from caffe_fold.verification.engine import TRANSPOSED
from caffe_fold.verification.match import Matching, Pair
from caffe_fold.verification.shapes import Shape, infer
from caffe_fold.verification.sides import Side
from caffe_fold.verification.standard import can_be_written, kind_to_run
from caffe_fold.verification.text import Draft

__all__ = ["Section", "folds_alone", "parts", "whole"]

_SIZE = 4


@dataclass(frozen=True)
class Section:
    """Drafts of both nets with the same inputs, and the pairs to compare. ``cut`` are
    the places in the original of layers that are left out, in whole or in part."""

    original: Draft
    folded: Draft
    shapes: Mapping[str, Shape]
    pairs: tuple[Pair, ...]
    cut: tuple[int, ...] = ()


def whole(a: Side, b: Side, matching: Matching, shapes: Mapping[int, Shape]) -> Section:
    """Both nets with all of their layers. ``shapes`` are those of the original's inputs."""
    return _section(a, b, matching, shapes, frozenset(), {})


def parts(
    a: Side,
    b: Side,
    matching: Matching,
    shapes: Mapping[int, Shape],
    known: frozenset[str],
) -> Section:
    """Both nets without the layers whose type an engine does not know, and without what
    was folded into them."""
    inferred = infer(a.graph, shapes)
    graph = a.graph
    places = a.places
    folds = {places.get(pair.layer): pair for pair in matching.pairs if pair.is_fold}
    cut: set[int] = set()
    made: dict[int, Shape] = {}
    there = set(shapes)
    for at, layer in enumerate(graph.layers):
        if not layer.bottoms or at in cut:
            continue
        is_known = kind_to_run(a, at) in known and can_be_written(a, at)
        if is_known and there.issuperset(graph.bottoms[at]):
            there.update(graph.tops[at])
            continue
        cut.add(at)
        tops = graph.tops[at]
        if at in folds:  # what it took in goes with it: the folded net has no value between
            cut.update(folds[at].behind)
            tops = (folds[at].original,)
        for value in tops:
            if value in inferred and graph.readers[value]:
                made[value] = inferred[value]
                there.add(value)
    return _section(a, b, matching, shapes, frozenset(cut), made)


def _section(
    a: Side,
    b: Side,
    matching: Matching,
    shapes: Mapping[int, Shape],
    cut: frozenset[int],
    made: Mapping[int, Shape],
) -> Section:
    """``made`` are values of the original that the cut layers would make."""
    names = {a.graph.layers[at].name for at in cut}
    keys = {value: f"in{value}" for value in (*shapes, *made)}
    inputs_a = dict(keys)
    inputs_b = {
        pair.folded: keys[pair.original] for pair in matching.pairs if pair.original in made
    }
    blobs = {a.graph.values[value].blob: value for value in shapes}
    for value in b.graph.sources():
        blob = b.graph.values[value].blob
        if blob in blobs:
            inputs_b[value] = keys[blobs[blob]]
    kept = [
        tuple(
            at
            for at, layer in enumerate(side.graph.layers)
            if layer.bottoms and layer.name not in names
        )
        for side in (a, b)
    ]
    return Section(
        Draft(kept[0], inputs_a),
        Draft(kept[1], inputs_b),
        {keys[value]: shape for value, shape in {**shapes, **made}.items()},
        tuple(pair for pair in matching.pairs if pair.layer not in names),
        tuple(sorted(cut)),
    )


# ---- Folds alone ----


def folds_alone(
    a: Side,
    b: Side,
    folds: Sequence[Pair],
    shapes: Mapping[int, Shape],
    known: frozenset[str],
) -> Section:
    """Folds, each on an input of its own, but for those for which none could be made, and for
    an InnerProduct that the engine would take for another."""
    inferred = infer(a.graph, shapes)
    layers_a: dict[int, None] = {}
    inputs_a: dict[int, str] = {}
    inputs_b: dict[int, str] = {}
    found: dict[str, Shape] = {}
    pairs = []
    places_a, places_b = a.places, b.places
    for pair in folds:
        at, place = places_a[pair.layer], places_b[pair.layer]
        run = (*pair.before, at, *pair.behind)
        value = a.graph.bottoms[run[0]][0]
        if any(kind_to_run(a, each) == TRANSPOSED for each in run) and TRANSPOSED not in known:
            continue
        shape = _input_shape(a, run, at, inferred.get(value))
        if shape is None or not all(can_be_written(a, each) for each in run):
            continue
        key = f"in{value}"
        found[key] = _larger(found.get(key), shape)
        inputs_a[value] = inputs_b[b.graph.bottoms[place][0]] = key
        layers_a.update(dict.fromkeys(run))
        pairs.append(pair)
    layers_b = tuple(sorted({places_b[pair.layer] for pair in pairs}))
    drafts = Draft(tuple(sorted(layers_a)), inputs_a), Draft(layers_b, inputs_b)
    return Section(*drafts, found, tuple(pairs))


def _larger(old: Shape | None, new: Shape) -> Shape:
    if old is None or len(old) != len(new):
        return new
    return tuple(max(pair) for pair in zip(old, new))


def _input_shape(side: Side, run: tuple[int, ...], at: int, inferred: Shape | None) -> Shape | None:
    """A small shape for the input of a fold: the channels that its weights are for, and
    a few pixels more than its kernel covers."""
    channels = _channels(side, run, inferred)
    try:
        linear = side.facts.linear(at)
    except Refused:
        if inferred is not None:
            return (inferred[0], *inferred[1:2], *(min(d, _SIZE) for d in inferred[2:]))
        return None if channels is None else (2, channels, _SIZE, _SIZE)
    if linear.layout.kind in ("inner", "transposed"):
        if len(run) > 1 and run[0] != at and channels:
            return (2, channels, linear.layout.inputs // channels, 1)
        return (2, linear.layout.inputs)
    rank = len(linear.weight.shape)
    kernel = linear.weight.shape[2:]
    dilation = _dilation(side, at)
    sizes = (dilation * (size - 1) + 1 + _SIZE for size in kernel)
    return (1, linear.layout.inputs, *sizes) if rank > 2 else None


def _channels(side: Side, run: tuple[int, ...], inferred: Shape | None) -> int | None:
    """The channels of what a run of affine layers reads."""
    for at in run:
        try:
            channels = side.facts.affine(at).map.channels
        except Refused:
            break
        if channels is not None:
            return channels
    return inferred[1] if inferred is not None and len(inferred) > 1 else None


def _dilation(side: Side, at: int) -> int:
    layer = side.graph.layers[at]
    fields = fields_of(side.graph.net.document, layer)
    return max(fields.message(LINEAR[layer.type].parameter).integers("dilation"), default=1)
