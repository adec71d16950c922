"""What an engine cannot tell: whether two nets are the same beside what folding changes.

An engine runs what it knows, and a layer that it does not know, a bottom that nothing
writes or an output that is gone is never compared. So the texts and the weights are: a
layer that both nets have must have one type, the same parameters and, where no fold
concerns it, the same blobs, and must read what it read.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from caffe_fold.deploying.needs import is_loss
from caffe_fold.errors import show
from caffe_fold.layers.affine import AFFINE
from caffe_fold.layers.linear import LINEAR
from caffe_fold.nets.net import Layer
from caffe_fold.verification.match import Matching, Pair
from caffe_fold.verification.shapes import stated
from caffe_fold.verification.sides import Side
from caffe_fold.writing.check import parameters

__all__ = ["differences"]


def differences(
    original: Side, folded: Side, matching: Matching, skip: Sequence[str] = ()
) -> tuple[str, ...]:
    """What is not the same beside what folding changes, a sentence each. A linear layer that
    reads or writes a skipped blob may have other weights."""
    return tuple(_Comparison(original, folded, matching, skip).found())


def _by_name_and_type(side: Side) -> dict[tuple[str, str], list[int]]:
    """The places of layers with bottoms, in order."""
    found: dict[tuple[str, str], list[int]] = {}
    for at, layer in enumerate(side.graph.layers):
        if layer.bottoms:
            found.setdefault((layer.name, layer.type), []).append(at)
    return found


class _Comparison:
    def __init__(
        self, original: Side, folded: Side, matching: Matching, skip: Sequence[str]
    ) -> None:
        self.a, self.b, self.skip = original, folded, frozenset(skip)
        self.pairs = {pair.layer: pair for pair in matching.pairs}
        self.values = {pair.folded: pair.original for pair in matching.pairs}
        self.places = dict(self._places())
        self._add_namesakes()
        self.sources = dict(self._shared_sources())
        self.values.update(self.sources)

    def _places(self) -> Iterator[tuple[int, int]]:
        """Each layer of the folded net with bottoms, and the one of the original that it is.
        Those of one name are told by their types and their order, which no fold changes."""
        ordered = [_by_name_and_type(side) for side in (self.b, self.a)]
        for key, places in ordered[0].items():
            originals = ordered[1].get(key, [])
            if len(originals) == len(places):
                yield from zip(places, originals)
        for at, layer in enumerate(self.b.graph.layers):
            place = self.a.places.get(layer.name)
            if layer.bottoms and place is not None:
                yield at, place

    def _add_namesakes(self) -> None:
        """What layers of one name write, which no engine tells apart."""
        for at, place in self.places.items():
            if self.a.graph.name_counts[self.a.graph.layers[place].name] > 1:
                self.values.update(zip(self.b.graph.tops[at], self.a.graph.tops[place]))

    def _shared_sources(self) -> Iterator[tuple[int, int]]:
        """Each value from outside of the folded net, and the original's of the same name."""
        names = {self.a.graph.values[v].blob: v for v in self.a.graph.sources()}
        for value in self.b.graph.sources():
            blob = self.b.graph.values[value].blob
            if blob in names:
                yield value, names[blob]

    def found(self) -> Iterator[str]:
        for at, place in sorted(self.places.items()):
            yield from self._layer(at, place)
        yield from self._input_shapes()
        yield from self._outputs()

    def _input_shapes(self) -> Iterator[str]:
        """An input that both nets have must have one shape. Data layers have none."""
        for value, source in self.sources.items():
            old, new = stated(self.a.graph, source), stated(self.b.graph, value)
            if old is not None and new is not None and old != new:
                name = show(self.b.graph.values[value].blob)
                yield f"the input '{name}' has the shape {old} and in the folded net {new}"

    def _layer(self, at: int, place: int) -> Iterator[str]:
        new, old = self.b.graph.layers[at], self.a.graph.layers[place]
        if (old.type, new.type) == ("SoftmaxWithLoss", "Softmax"):  # of a deploy net
            return
        name, pair = show(new.name), self.pairs.get(new.name)
        is_merged = new.type == "Scale" and old.type in AFFINE and bool(pair and pair.is_fold)
        if new.type != old.type and not is_merged:
            yield f"layer '{name}' is a {show(old.type)} and a {show(new.type)} in the folded net"
            return
        if not is_merged and self._parameters(self.b, new) != self._parameters(self.a, old):
            yield f"layer '{name}' has other parameters in the folded net"
        if not self._reads_the_same(at, place, pair):
            yield f"layer '{name}' reads something else in the folded net"
        may_differ = bool(pair and pair.is_fold) or (
            new.type in LINEAR and not self.skip.isdisjoint((*new.bottoms, *new.tops))
        )
        if not may_differ and not self._has_the_same_blobs(new, old):
            yield f"layer '{name}' took in no layer and has other blobs in the folded net"

    def _parameters(self, side: Side, layer: Layer) -> list[str]:
        """What a layer's text says, in any order, without what a deploy net drops."""
        dropped = ("include", "exclude", "loss_weight", "phase:")
        return sorted(p for p in parameters(side.graph, layer) if not p.startswith(dropped))

    def _reads_the_same(self, at: int, place: int, pair: Pair | None) -> bool:
        first = pair.before[0] if pair and pair.before else place
        wanted = list(self.a.graph.bottoms[place])
        if first != place:
            wanted[:1] = self.a.graph.bottoms[first][:1]
        elif pair and pair.behind and pair.behind[0] < place:
            wanted[:1] = self.a.graph.bottoms[pair.behind[0]][:1]
        read = [self.values.get(value) for value in self.b.graph.bottoms[at]]
        return len(read) == len(wanted) and all(
            self._stands_for(one, other) for one, other in zip(read, wanted)
        )

    def _stands_for(self, read: int | None, wanted: int) -> bool:
        """Whether a value is the wanted one, or what it was before affine layers that only
        the original has: those went elsewhere, and a fold's own values prove where."""
        kept = self.b.graph.name_counts
        value: int = wanted
        while read != value:
            at = self.a.graph.values[value].producer
            if at is None or not self.a.graph.bottoms[at]:
                return False
            layer = self.a.graph.layers[at]
            if layer.type not in AFFINE or layer.name in kept:
                return False
            value = self.a.graph.bottoms[at][0]
        return True

    def _has_the_same_blobs(self, new: Layer, old: Layer) -> bool:
        one, other = self.b.entry(new), self.a.entry(old)
        if one is None or other is None:
            return one is other
        return self.b.caffemodel.same_blobs(one.blobs, other.blobs, self.a.caffemodel)

    def _outputs(self) -> Iterator[str]:
        """Each output of the original must be written under its name, but for those of
        losses and accuracies, which a deploy net does not have."""
        graph = self.a.graph
        for value, found in enumerate(graph.values):
            at = found.producer
            if graph.readers[value] or at is None or not graph.layers[at].bottoms:
                continue
            last = self.b.graph.last.get(found.blob)
            if last is not None and self._stands_for(self.values.get(last), value):
                continue
            if not is_loss(graph.layers[at]):
                yield f"the output '{show(found.blob)}' is not in the folded net"
