"""What each layer is and what a plan does to it, as plain data."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from caffe_fold.inspection.stand_in import StandIn
from caffe_fold.layers.affine import AFFINE, Refused
from caffe_fold.layers.affine_map import Dims
from caffe_fold.layers.linear import LINEAR
from caffe_fold.planning.facts import Facts
from caffe_fold.planning.plan import Plan

__all__ = ["Fate", "LayerFacts", "Totals", "layer_facts", "totals"]


@dataclass(frozen=True)
class Fate:
    """What folding does to a layer.

    ``kind`` is "takes" (others into itself), "folds" (into others), "becomes" (the Scale of
    its run), "merges" (into that), "removed" (since it changes nothing), "stays" or "same"
    (not concerned). ``names`` are the others; ``reason`` is why it stays, in one sentence,
    and ``codes`` are the sentence's stable codes.
    """

    kind: str
    names: tuple[str, ...] = ()
    reason: str = ""
    codes: tuple[str, ...] = ()


@dataclass(frozen=True)
class LayerFacts:
    """One layer. ``role`` is "linear", "affine" or "other"; ``shapes`` are its blobs', with
    None for what the prototxt alone does not tell, all of them or a size; ``gain``
    are the least and the largest size of its multipliers, where they are known."""

    at: int
    name: str
    type: str
    line: int
    role: str
    bottoms: tuple[str, ...]
    tops: tuple[str, ...]
    shapes: tuple[Dims, ...] | None
    gain: tuple[float, float] | None
    fate: Fate

    @property
    def parameters(self) -> int | None:
        """How many numbers its blobs hold, if that is known."""
        if self.shapes is None:
            return None
        dims = [dim for shape in self.shapes for dim in shape]
        if any(dim is None for dim in dims):
            return None
        return sum(math.prod(dim or 0 for dim in shape) for shape in self.shapes)


@dataclass
class Totals:
    """The layers of one type: how many there are, are left, and have which fate."""

    type: str
    before: int = 0
    after: int = 0
    parameters: int | None = 0
    fates: Counter[str] = field(default_factory=Counter)


def layer_facts(facts: Facts, plan: Plan) -> tuple[LayerFacts, ...]:
    """All layers of the graph, in order."""
    fates = _fates(facts, plan)
    found = []
    for at, layer in enumerate(facts.graph.layers):
        role = "linear" if layer.type in LINEAR else "affine" if layer.type in AFFINE else "other"
        found.append(
            LayerFacts(
                at,
                layer.name,
                layer.type,
                facts.graph.net.document.line(layer.field),
                role,
                layer.bottoms,
                layer.tops,
                _shapes(facts, at),
                _gain(facts, at) if role == "affine" else None,
                fates.get(at, Fate("stays" if role == "affine" else "same")),
            )
        )
    return tuple(found)


def totals(layers: Sequence[LayerFacts]) -> tuple[Totals, ...]:
    """The linear and affine layers by type, in the order in which the types appear."""
    found: dict[str, Totals] = {}
    for layer in layers:
        if layer.role == "other":
            continue
        total = found.setdefault(layer.type, Totals(layer.type))
        total.before += 1
        total.after += layer.fate.kind not in ("folds", "merges", "removed", "becomes")
        total.fates[layer.fate.kind] += 1
        more = layer.parameters
        known = None in (total.parameters, more)
        total.parameters = None if known else (total.parameters or 0) + (more or 0)
    for layer in layers:
        if layer.fate.kind == "becomes":
            found.setdefault("Scale", Totals("Scale")).after += 1
    return tuple(found.values())


def _shapes(facts: Facts, at: int) -> tuple[Dims, ...] | None:
    if isinstance(facts.model, StandIn):
        return facts.model.implied[at]
    entries = facts.model.by_name.get(facts.graph.layers[at].name, ())
    return tuple(blob.shape for blob in entries[0].blobs) if entries else ()


def _gain(facts: Facts, at: int) -> tuple[float, float] | None:
    """The range of a layer's multipliers. Those of a type without blobs, a Power, stand in
    the prototxt."""
    if isinstance(facts.model, StandIn) and any(AFFINE[facts.graph.layers[at].type].blobs):
        return None
    try:
        sizes = np.abs(facts.affine(at).map.scale)
    except Refused:
        return None
    return float(sizes.min()), float(sizes.max())


def _fates(facts: Facts, plan: Plan) -> dict[int, Fate]:
    places = {layer.index: at for at, layer in enumerate(facts.graph.layers)}
    found: dict[int, Fate] = {}
    into: dict[int, list[str]] = {}
    for fold in plan.folds:
        gone = (*fold.layers_before, *fold.layers_behind)
        found[fold.at] = Fate("takes", tuple(a.layer.name for a in gone))
        for affine in gone:
            into.setdefault(places[affine.layer.index], []).append(fold.linear.layer.name)
    for at, names in into.items():
        found[at] = Fate("folds", tuple(names))
    for merge in plan.merges:
        keeper = merge.keeper.layer.name
        for affine in merge.layers:
            found[places[affine.layer.index]] = Fate("merges", (keeper,))
        others = tuple(a.layer.name for a in merge.layers if a is not merge.keeper)
        found[merge.at] = Fate("becomes", others)
    for removal in plan.removals:
        for affine in removal.layers:
            found[places[affine.layer.index]] = Fate("removed")
    for stay in plan.stays:
        at = places[stay.layer.index]
        if at in found:  # the Scale of a run, which stays for a reason of its own
            found[at] = Fate(found[at].kind, found[at].names, stay.sentence, stay.codes)
        else:
            found[at] = Fate("stays", (), stay.sentence, stay.codes)
    return found
