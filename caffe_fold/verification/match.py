"""What stands for what: each value of the folded net, and the value of the original that
it must equal.

It is told by the files alone. A layer that only the original has was folded away; it is
affine, or the two files are no pair. A layer that took layers behind it in writes what
the last of them wrote. The same layers may have gone forward, into all that read them:
then the layer before them is as it was. Which of the two it was is told by what reads
them, by the name of the blob, and, where a run works in place, by whether the weights of
the layer before changed.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from caffe_fold.errors import InputError, show
from caffe_fold.layers.affine import AFFINE
from caffe_fold.layers.linear import LINEAR
from caffe_fold.nets.net import Layer
from caffe_fold.verification.sides import Side

__all__ = ["Incomparable", "Matching", "Pair", "match"]


@dataclass(frozen=True)
class Pair:
    """A value of the folded net, ``folded``, and the one of the original, ``original``.

    ``behind`` are the places in the original of the layers that went into the layer
    that writes it, ``before`` of those that it took in on its input side.
    """

    blob: str
    layer: str
    folded: int
    original: int
    behind: tuple[int, ...] = ()
    before: tuple[int, ...] = ()

    @property
    def is_fold(self) -> bool:
        return bool(self.behind or self.before)


@dataclass(frozen=True)
class Incomparable:
    """A blob name that both nets have for different values, and why."""

    blob: str
    reason: str


@dataclass(frozen=True)
class Matching:
    """All pairs, in the order of the folded net, and the names that are no pairs."""

    pairs: tuple[Pair, ...]
    incomparable: tuple[Incomparable, ...]


def match(original: Side, folded: Side) -> Matching:
    """Match two nets.

    :raises InputError: if the second cannot have been folded from the first.
    """
    found = _Matcher(original, folded)
    found.require_pair()
    pairs = found.pairs()
    return Matching(tuple(pairs), tuple(found.incomparable(pairs)))


class _Matcher:
    def __init__(self, original: Side, folded: Side) -> None:
        self.a, self.b = original, folded
        self.places = original.places
        self.kept = {layer.name for layer in folded.graph.layers}

    # ---- Are they a pair at all ----

    def require_pair(self) -> None:
        """Each layer of the folded net is one of the original, and what is gone is affine
        or read by nothing that is left."""
        known = self.a.graph.name_counts
        for layer in self.b.graph.layers:
            if layer.bottoms and self.b.graph.name_counts[layer.name] > max(known[layer.name], 1):
                raise InputError(
                    f"{show(self.b.model, 1000)}: several layers are named '{show(layer.name)}'"
                )
        for layer in self.b.graph.layers:
            if layer.name not in known and layer.bottoms and not self._is_added(layer):
                raise InputError(
                    f"{show(self.b.model, 1000)}: {self.b.graph.net.where(layer)} is not in "
                    f"{show(self.a.model, 1000)}; give the net that it was folded from"
                )
        for at, layer in enumerate(self.a.graph.layers):
            if layer.name not in self.kept and layer.bottoms and not self._may_be_gone(at):
                raise InputError(
                    f"{show(self.b.model, 1000)}: it lacks layer {layer.described} of "
                    f"{show(self.a.model, 1000)}, which no fold removes; give the net that was "
                    "folded from it"
                )

    def _is_added(self, layer: Layer) -> bool:
        """Whether a layer may be new: the Softmax of a deploy net, for that in a loss."""
        read = {name for other in self.b.graph.layers for name in other.bottoms}
        losses = {la.name for la in self.a.graph.layers if la.type == "SoftmaxWithLoss"}
        return layer.type == "Softmax" and read.isdisjoint(layer.tops) and not losses <= self.kept

    def _may_be_gone(self, at: int) -> bool:
        graph = self.a.graph
        if graph.layers[at].type in AFFINE:
            return True
        readers = [reader for value in graph.tops[at] for reader, _ in graph.readers[value]]
        return all(graph.layers[reader].name not in self.kept for reader in readers)

    # ---- Pairs ----

    def pairs(self) -> list[Pair]:
        """The pairs of all layers with bottoms; what a layer took in on both sides."""
        taken: set[int] = set()
        runs: dict[int, tuple[int, ...]] = {}
        graph = self.b.graph
        for at, layer in enumerate(graph.layers):
            place = self.places.get(layer.name)
            if layer.bottoms and place is not None and self._is_comparable(at, place):
                runs[at] = self._behind(at, place)
                taken.update(runs[at])
        found = []
        for at, behind in runs.items():
            place = self.places[graph.layers[at].name]
            before = self._before(place, taken)
            for slot, value in enumerate(graph.tops[at]):
                end = self.a.graph.tops[behind[-1]][0] if behind else None
                original = self.a.graph.tops[place][slot] if end is None else end
                blob = graph.values[value].blob
                found.append(Pair(blob, graph.layers[at].name, value, original, behind, before))
        return found

    def _is_comparable(self, at: int, place: int) -> bool:
        new, old = self.b.graph.layers[at], self.a.graph.layers[place]
        is_merged = new.type == "Scale" and old.type in AFFINE
        return (new.type == old.type or is_merged) and len(new.tops) == len(old.tops)

    def _behind(self, at: int, place: int) -> tuple[int, ...]:
        """The layers behind a layer of the original that it took in."""
        if self.a.graph.layers[place].type not in LINEAR and not self._is_affine(place):
            return ()
        run = self._missing_behind(place)
        if not run or not self._may_go_forward(run):
            return run
        old = self.a.graph.values[self.a.graph.tops[place][0]].blob
        end = self.a.graph.values[self.a.graph.tops[run[-1]][0]].blob
        new = self.b.graph.layers[at].tops[0]
        if old != end:
            return run if new == end else ()
        return () if self._has_old_weights(at, place) else run

    def _is_affine(self, place: int) -> bool:
        layer = self.a.graph.layers[place]
        return layer.type in AFFINE and len(layer.bottoms) == len(layer.tops) == 1

    def _missing_behind(self, place: int) -> tuple[int, ...]:
        graph, run = self.a.graph, list[int]()
        if len(graph.tops[place]) != 1:
            return ()
        value = graph.tops[place][0]
        while len(graph.readers[value]) == 1:
            reader = graph.readers[value][0][0]
            if graph.layers[reader].name in self.kept or not self._is_affine(reader):
                break
            run.append(reader)
            value = graph.tops[reader][0]
        return tuple(run)

    def _may_go_forward(self, run: tuple[int, ...]) -> bool:
        """Whether a run has readers, and only such as could have taken it in."""
        graph = self.a.graph
        readers = [graph.layers[at] for at, _ in graph.readers[graph.tops[run[-1]][0]]]
        return bool(readers) and all(r.type in LINEAR or r.type in AFFINE for r in readers)

    def _has_old_weights(self, at: int, place: int) -> bool:
        new = self.b.entry(self.b.graph.layers[at])
        old = self.a.entry(self.a.graph.layers[place])
        if new is None or old is None or len(new.blobs) != len(old.blobs):
            return new is old
        return all(
            x.count == y.count
            and np.array_equal(self.b.caffemodel.values(x), self.a.caffemodel.values(y))
            for x, y in zip(new.blobs, old.blobs)
        )

    def _before(self, place: int, taken: set[int]) -> tuple[int, ...]:
        """The layers of the original before a layer that went into it, and nowhere else."""
        graph, run = self.a.graph, list[int]()
        if len(graph.bottoms[place]) != 1:
            return ()
        producer = graph.values[graph.bottoms[place][0]].producer
        while producer is not None and producer not in taken and self._is_affine(producer):
            if graph.layers[producer].name in self.kept:
                break
            run.insert(0, producer)
            producer = graph.values[graph.bottoms[producer][0]].producer
        return tuple(run)

    # ---- Names ----

    def incomparable(self, pairs: list[Pair]) -> list[Incomparable]:
        """The blob names that stand for different values in the end."""
        originals = {pair.folded: pair.original for pair in pairs}
        found = []
        for blob, value in self.b.graph.last.items():
            old = self.a.graph.last.get(blob)
            at = self.b.graph.values[value].producer
            if old is None and at is not None and self.b.graph.layers[at].bottoms:
                if value not in originals:
                    name = show(self.b.graph.layers[at].name)
                    found.append(Incomparable(blob, f"only the folded net has layer '{name}'"))
                continue
            if old is None or originals.get(value) == old:
                continue
            producer = self.a.graph.values[old].producer
            if producer is None or not self.a.graph.layers[producer].bottoms:
                continue
            layer = self.a.graph.layers[producer]
            if layer.name in self.kept and value not in originals:
                reason = f"layer '{show(layer.name)}' is not the same in both nets"
            else:
                reason = (
                    f"in the original layer {layer.described} wrote it last, which went into the "
                    "layers that read it"
                )
            found.append(Incomparable(blob, reason))
        return found
