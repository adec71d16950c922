"""A plan as pieces of the new caffemodel: which entry goes, changes or stays."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain, repeat

from caffe_fold.choices import Choices
from caffe_fold.nets.graph import Graph
from caffe_fold.planning.plan import Merge, Plan
from caffe_fold.weights.caffemodel import Caffemodel
from caffe_fold.writing.entries import (
    Names,
    Piece,
    Span,
    rewritten_fold,
    rewritten_merge,
    rewritten_names,
)
from caffe_fold.writing.rewrite_prototxt import twins

__all__ = ["rewrite_caffemodel"]


def rewrite_caffemodel(
    model: Caffemodel, graph: Graph, plan: Plan, choices: Choices
) -> Iterator[list[Piece]]:
    """The new caffemodel, from its first byte to its last, in parts: the pieces of a part
    are to be computed in their order."""
    places = _places(graph)
    folds = {fold.at: fold for fold in plan.folds}
    merges = {merge.at: merge for merge in plan.merges}
    gone = _gone(graph, plan)
    new_behind = _new_entries(model, plan)
    end = 0
    for entry in model.entries:
        yield [Span(end, entry.start)]
        end = entry.end
        at = next(places[entry.name]) if entry.name in places else None
        if entry.name in gone:
            pass
        elif at in folds:
            yield rewritten_fold(model, entry, folds[at], _names(plan, graph, at), choices)
        elif at in merges:
            yield rewritten_merge(model, entry, merges[at], _names(plan, graph, at), choices)
        elif at is not None and _is_renamed(plan, graph, at):
            yield rewritten_names(model, entry, _names(plan, graph, at))
        else:
            yield [Span(entry.start, entry.end)]
        for merge in new_behind.get(entry.index, ()):
            yield rewritten_merge(model, None, merge, _names(plan, graph, merge.at), choices)
    yield [Span(end, model.source.size)]


def _places(graph: Graph) -> dict[str, Iterator[int]]:
    """The places of the layers of each name, one for each entry of that name. Layers
    without weights may share a name; the last place serves all further entries."""
    found: dict[str, list[int]] = {}
    for at, layer in enumerate(graph.layers):
        found.setdefault(layer.name, []).append(at)
    return {name: chain(ats, repeat(ats[-1])) for name, ats in found.items()}


def _gone(graph: Graph, plan: Plan) -> set[str]:
    """Names of layers that the new prototxt no longer has."""
    removed = {layer.index for layer in twins(graph, plan)}
    removed |= {layer.index for at, layer in enumerate(graph.layers) if not plan.surgery.alive[at]}
    left = {layer.name for layer in graph.net.layers if layer.index not in removed}
    return {layer.name for layer in graph.net.layers if layer.index in removed} - left


def _new_entries(model: Caffemodel, plan: Plan) -> dict[int, list[Merge]]:
    """Merged layers that had no entry, as some files have none for a Power, by the entry of
    their run behind which theirs goes."""
    found: dict[int, list[Merge]] = {}
    for merge in plan.merges:
        if merge.keeper.layer.name not in model.by_name:
            entries = [e for layer in merge.layers for e in layer.entries]
            found.setdefault(max(e.index for e in entries), []).append(merge)
    return found


def _is_renamed(plan: Plan, graph: Graph, at: int) -> bool:
    names = _names(plan, graph, at)
    return any(name is not None for name in (*names.bottoms, *names.tops))


def _names(plan: Plan, graph: Graph, at: int) -> Names:
    """The names of a layer's bottoms and tops that changed."""
    layer, surgery = graph.layers[at], plan.surgery
    pairs = ((layer.bottoms, surgery.bottom_names[at]), (layer.tops, surgery.top_names[at]))
    bottoms, tops = (tuple(None if a == b else b for a, b in zip(old, new)) for old, new in pairs)
    return Names(bottoms, tops)
