"""Runs: longest chains of affine layers in which each is the only reader of the last."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

from caffe_fold.layers.affine import AffineMap
from caffe_fold.named import NamedTuple
from caffe_fold.planning.facts import AffineLayer
from caffe_fold.planning.surgery import Surgery
from caffe_fold.weights.blob import Storage

__all__ = ["Run", "Runs", "composed"]


class Run(NamedTuple):
    """A chain of affine layers: their places in the graph, what they are, and the map
    that they make together."""

    places: tuple[int, ...]
    layers: tuple[AffineLayer, ...]
    map: AffineMap

    @property
    def storage(self) -> Storage | None:
        """The widest number type among the run's blobs, None where it has none."""
        stored = (blob.storage for layer in self.layers for blob in layer.blobs)
        return max(stored, default=None)


def composed(layers: Iterable[AffineLayer]) -> AffineMap | None:
    """The map of layers one after another, None for none."""
    total: AffineMap | None = None
    for layer in layers:
        total = layer.map if total is None else total.then(layer.map)
    return total


class Runs:
    """Finds the runs of a graph as it is now. ``affine`` holds the affine layers by place."""

    def __init__(self, surgery: Surgery, affine: dict[int, AffineLayer]) -> None:
        self.surgery, self.affine = surgery, affine

    def all(self) -> list[Run]:
        """Every run, in the order of their first layers."""
        found: list[Run] = []
        seen: set[int] = set()
        for at in self.affine:
            if self.surgery.alive[at] and at not in seen:
                found.append(self.through(at))
                seen.update(found[-1].places)
        return found

    def through(self, at: int) -> Run:
        """The longest run through an affine layer."""
        places = deque([at])
        while (first := self.writer(places[0])) is not None and self._joined(first, places[0]):
            places.appendleft(first)
        while (last := self.only_reader(places[-1])) is not None and self._joined(places[-1], last):
            places.append(last)
        layers = tuple(self.affine[place] for place in places)
        total = composed(layers)
        assert total is not None, "a run has at least one layer"
        return Run(tuple(places), layers, total)

    def writer(self, at: int) -> int | None:
        """The layer that writes a layer's bottom."""
        return self.surgery.producer[self.surgery.bottoms[at][0]][0]

    def only_reader(self, at: int) -> int | None:
        """The layer that reads a layer's top, if it is one."""
        return self.surgery.only_reader(self.surgery.tops[at][0])

    def _joined(self, first: int, second: int) -> bool:
        """Whether two layers, one reading the other, belong to one run."""
        if first not in self.affine or second not in self.affine:
            return False
        value = self.surgery.tops[first][0]
        counts = {self.affine[at].map.channels for at in (first, second)} - {None}
        return (
            self.surgery.bottoms[second][0] == value
            and len(self.surgery.readers[value]) == 1
            and value not in self.surgery.kept
            and len(counts) < 2
        )
