"""Which pairs of linear layers can be equalised, and why the others cannot.

A pair is a linear layer and the one that reads what it makes, with nothing between them
but layers through which a positive factor of each channel passes::

    f(s * x) = s * f(x)    for s > 0

That holds for ReLU and PReLU with any slopes, and for Dropout, which does nothing in
phase TEST. What lies between must be seen by nothing else, since it changes its scale
(Nagel et al. 2019, "Data-Free Quantization Through Weight Equalization and Bias
Correction", section 4.1).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from caffe_fold.errors import show
from caffe_fold.layers.affine_map import Refused
from caffe_fold.layers.linear import LINEAR
from caffe_fold.named import NamedTuple
from caffe_fold.nets.fields import Fields, fields_of
from caffe_fold.nets.graph import Graph
from caffe_fold.nets.net import Layer
from caffe_fold.planning.facts import LAYER_FIELDS, Facts, LinearLayer

__all__ = ["Left", "Pair", "Pairs", "chains"]

Array = NDArray[np.float64]

# Types through which a positive factor passes, with the message of their parameters and
# those of its fields that do not change that.
_HOMOGENEOUS = {
    "ReLU": ("relu_param", frozenset(("negative_slope", "engine"))),
    "PReLU": ("prelu_param", frozenset(("filler", "channel_shared"))),
    "Dropout": ("dropout_param", frozenset(("dropout_ratio", "scale_train"))),
}


class Pair(NamedTuple):
    """Two linear layers, their places in the graph, and what is between them.

    ``channels`` is the number of output channels of the first, each of which is an input
    channel of the second. ``slopes`` has one entry a ReLU or PReLU: what it multiplies
    negative numbers by, of shape (channels,) or (1,). ``blobs`` are the names of all blobs
    in between.
    """

    at: int
    to: int
    first: LinearLayer
    second: LinearLayer
    slopes: tuple[Array, ...]
    blobs: tuple[str, ...]

    @property
    def channels(self) -> int:
        return self.first.layout.outputs


class Left(NamedTuple):
    """A linear layer whose outputs keep their scale, and why."""

    layer: Layer
    code: str
    sentence: str


def chains(pairs: Sequence[Pair]) -> list[tuple[Pair, ...]]:
    """The pairs joined where the second layer of one is the first of another."""
    by_first = {pair.at: pair for pair in pairs}
    inner = {pair.to for pair in pairs}
    found = []
    for pair in pairs:
        if pair.at not in inner:
            chain = [pair]
            while chain[-1].to in by_first:
                chain.append(by_first[chain[-1].to])
            found.append(tuple(chain))
    return found


class Pairs:
    """Finds the pairs of a net. ``kept`` are values that keep their scale."""

    def __init__(self, facts: Facts, kept: Iterable[int]) -> None:
        self.facts, self.graph = facts, facts.graph
        self.kept = frozenset(kept)
        self.outside = _Outside(self.graph)
        self.writes = Counter(value.blob for value in self.graph.values)

    def find(self) -> tuple[list[Pair], list[Left]]:
        """The pairs, and each linear layer that begins none."""
        pairs, left = [], []
        for at, layer in enumerate(self.graph.layers):
            if layer.type in LINEAR:
                try:
                    pairs.append(self._pair(at))
                except Refused as refusal:
                    left.append(Left(layer, refusal.code, refusal.sentence))
        return pairs, left

    def _pair(self, at: int) -> Pair:
        """The pair that a linear layer begins; raises Refused where it begins none."""
        first = self._linear(at)
        values, slopes = list(self.graph.tops[at]), []
        while True:
            reader = self._only_reader(values[-1])
            layer = self.graph.layers[reader]
            if layer.type in LINEAR:
                break
            slopes += self._slopes(reader, first.layout.outputs)
            values += self.graph.tops[reader]
        second = self._linear(reader)
        if not second.layout.takes(first.layout.outputs):
            raise Refused(
                "channels",
                f"it has {first.layout.outputs} outputs and layer {self._described(reader)} "
                f"takes {second.layout.inputs} inputs",
            )
        names = tuple(dict.fromkeys(self.graph.values[value].blob for value in values))
        self._require_own_names(values, names)
        return Pair(at, reader, first, second, tuple(slopes), names)

    # ---- Layers ----

    def _linear(self, at: int) -> LinearLayer:
        """A linear layer whose weights may change."""
        linear, layer = self.facts.linear(at), self.graph.layers[at]
        described = f"layer {self._described(at)}"
        unknown = self.facts.unknown[layer.index]
        if unknown:
            raise Refused(
                "unknown-field",
                f"{described} has the field '{show(unknown[0], 60)}', which is not known",
            )
        if self.graph.shared_params(at):
            raise Refused("shared", f"{described} shares its parameters")
        if layer.name in self.outside.names or not self.outside.params.isdisjoint(layer.params):
            raise Refused(
                "other-states", f"a layer outside the selected state has the weights of {described}"
            )
        return linear

    def _slopes(self, at: int, channels: int) -> list[Array]:
        """What a layer between a pair multiplies negative numbers by; raises Refused for one
        through which no factor passes, or of which that is not sure."""
        layer, described = self.graph.layers[at], self._described(at)
        if layer.type not in _HOMOGENEOUS:
            raise Refused(
                "not-homogeneous",
                f"what it makes is read by layer {described}, which is not linear, and no ReLU or "
                "PReLU",
            )
        if len(layer.bottoms) != 1 or len(layer.tops) != 1:
            raise Refused("tops-and-bottoms", f"layer {described} has not one bottom and one top")
        fields = self._fields(layer, described)
        if layer.type == "PReLU":
            return [self._stored_slopes(at, channels)]
        if layer.type == "Dropout":
            return []
        slopes = fields.numbers("negative_slope") or [0.0]
        if not np.isfinite(slopes).all():
            raise Refused("not-finite", f"the slope of layer {described} is no finite number")
        return [np.array(slopes[-1:])]

    def _fields(self, layer: Layer, described: str) -> Fields:
        """The parameters of a layer between a pair, of which none may be unknown."""
        name, known = _HOMOGENEOUS[layer.type]
        fields = fields_of(self.graph.net.document, layer)
        own = fields.message(name)
        unknown = [f.name for f in fields.fields if f.name not in LAYER_FIELDS and f.name != name]
        unknown += [f"{name}.{f.name}" for f in own.fields if f.name not in known]
        if unknown:
            raise Refused(
                "unknown-field",
                f"what it makes is read by layer {described}, whose field "
                f"'{show(unknown[0], 60)}' is not known",
            )
        return own

    def _stored_slopes(self, at: int, channels: int) -> Array:
        """The slopes of a PReLU, one a channel or one for all (prelu_layer.cpp)."""
        entries = self.facts.model.by_name.get(self.graph.layers[at].name, ())
        blobs = entries[0].blobs if entries else ()
        if len(blobs) != 1 or blobs[0].problem or not blobs[0].count:
            raise Refused(
                "no-weights", f"the weights hold no slopes for layer {self._described(at)}"
            )
        if blobs[0].count not in (1, channels):
            raise Refused(
                "channels",
                f"layer {self._described(at)} has {blobs[0].count} slopes for {channels} channels",
            )
        slopes = self.facts.model.vector(blobs[0])
        if not np.isfinite(slopes).all():
            raise Refused(
                "not-finite", f"a slope of layer {self._described(at)} is no finite number"
            )
        return slopes

    # ---- Values ----

    def _only_reader(self, value: int) -> int:
        """The layer that reads a value, if nothing else sees it. With one reader each, and
        none that passes on its bottom's memory, what lies between a pair is in memory that
        no other layer knows."""
        name, readers = show(self.graph.values[value].blob), self.graph.readers[value]
        producer = self.graph.values[value].producer
        if value in self.kept:
            raise Refused("kept", f"blob '{name}' is to keep its values")
        if not readers:
            raise Refused("net-output", f"blob '{name}' is an output of the net")
        if len(readers) > 1:
            others = " and ".join(self._described(at) for at, _ in readers[:2])
            raise Refused(
                "second-reader", f"blob '{name}' has {len(readers)} readers, {others} among them"
            )
        if producer is not None and self.graph.layers[producer].has_loss_weight:
            raise Refused("loss-weight", f"a 'loss_weight' reads blob '{name}'")
        if self.graph.values[value].blob in self.outside.reads:
            raise Refused("other-states", f"a layer outside the selected state reads blob '{name}'")
        return readers[0][0]

    def _require_own_names(self, values: Sequence[int], names: Iterable[str]) -> None:
        """No other value of the net has the name of one that changes its scale."""
        own = Counter(self.graph.values[value].blob for value in values)
        for name in names:
            if own[name] != self.writes[name]:
                raise Refused("blob-name", f"another blob has the name '{show(name)}', too")

    def _described(self, at: int) -> str:
        return self.graph.layers[at].described


class _Outside:
    """What layers outside the selected state use: blobs, parameters and names."""

    def __init__(self, graph: Graph) -> None:
        inside = {layer.index for layer in graph.layers}
        layers = [layer for layer in graph.net.layers if layer.index not in inside]
        self.names = frozenset(layer.name for layer in layers)
        self.reads = frozenset(blob for layer in layers for blob in layer.bottoms)
        self.params = frozenset(name for layer in layers for name in layer.params if name)
