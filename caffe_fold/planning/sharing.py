"""Layers that share parameters by ``param { name: ... }``.

The first layer of a net that names a parameter owns its blob (Net::AppendParam in
net.cpp); a saved file holds a copy for each sharer, and on loading the last copy in
the order of the file wins. So sharers can only change together, and alike.
"""

from __future__ import annotations

from caffe_fold.errors import show
from caffe_fold.layers.affine_map import Refused
from caffe_fold.nets.graph import Graph
from caffe_fold.weights.blob import Blob
from caffe_fold.weights.caffemodel import Caffemodel

__all__ = ["Sharing"]


class Sharing:
    """Which layers share parameters, and whether their stored copies are equal."""

    def __init__(self, graph: Graph, model: Caffemodel) -> None:
        self.graph, self.model = graph, model
        self._equal: dict[str, str] = {}
        self._groups: dict[int, tuple[int, ...]] = {}
        self._alike: dict[int, str] = {}

    def group(self, at: int) -> tuple[int, ...]:
        """All layers that share with a layer, with one of those, and so on; in order."""
        if at not in self._groups:
            found, work = {at}, [at]
            while work:
                for _, name in self.graph.shared_params(work.pop()):
                    new = {other for other, _ in self.graph.sharers[name]} - found
                    found |= new
                    work += new
            group = tuple(sorted(found))
            self._groups.update(dict.fromkeys(group, group))
        return self._groups[at]

    def require_equal_copies(self, at: int) -> None:
        """Raise Refused where the stored copies of a layer's shared blobs differ."""
        for _, name in self.graph.shared_params(at):
            if name not in self._equal:
                self._equal[name] = self._difference(name)
            if self._equal[name]:
                raise Refused("shared", self._equal[name])

    def require_alike(self, at: int) -> None:
        """Raise Refused unless all sharers share the same blobs in the same places."""
        group = self.group(at)
        first = group[0]
        if first not in self._alike:
            self._alike[first] = self._why_unlike(group)
        if self._alike[first]:
            raise Refused("shared", self._alike[first])

    def _why_unlike(self, group: tuple[int, ...]) -> str:
        own = self.graph.shared_params(group[0])
        for other in group:
            try:
                self.require_equal_copies(other)
            except Refused as refusal:
                return refusal.sentence
            if self.graph.shared_params(other) != own:
                first, name = (show(self.graph.layers[at].name) for at in (group[0], other))
                return f"layer '{first}' shares parameters otherwise than '{name}' does"
        return ""

    def _difference(self, name: str) -> str:
        """Why the copies of a parameter cannot stand for each other, or nothing."""
        copies = [self._copy(*use) for use in self.graph.sharers[name]]
        first = copies[0]
        for (at, index), copy in zip(self.graph.sharers[name], copies):
            layer = show(self.graph.layers[at].name)
            if first is None or copy is None:
                return f"the weights hold no blob {index} of layer '{layer}' for its shared " + (
                    f"parameter '{show(name)}'"
                )
            if not self.model.same_values(first, copy):
                return (
                    f"the stored copies of its shared parameter '{show(name)}' differ, that of "
                    f"layer '{layer}' from the first"
                )
        return ""

    def _copy(self, at: int, index: int) -> Blob | None:
        entries = self.model.by_name.get(self.graph.layers[at].name, ())
        # Repeated entries of one name are refused elsewhere unless they are equal.
        blobs = entries[0].blobs if entries else ()
        return blobs[index] if index < len(blobs) else None
