"""What a deploy net needs of a net for training and testing.

Losses and accuracies go, and with them what only they need. That is told by the weights,
not by names: a value in which a layer with weights has a part is *learned*; a top of a
data layer that no such layer reads, not even through others, is a *label*. What a loss
or accuracy reads is cut where the learned values meet the labels, and what is left of it
are the deploy net's outputs.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from typing import Callable

from caffe_fold.deploying.data_shapes import DataTop
from caffe_fold.errors import InputError, show
from caffe_fold.named import NamedTuple
from caffe_fold.nets.data_layers import data_layers, is_source
from caffe_fold.nets.graph import Graph
from caffe_fold.nets.net import Layer
from caffe_fold.weights.caffemodel import Caffemodel

__all__ = ["Needed", "Needs", "is_loss"]


# ---- Kinds of layers ----


def is_loss(layer: Layer) -> bool:
    """Whether a layer measures the net: by its type, or by a ``loss_weight`` on a layer
    that compares (as Python losses and those of forks have it) or sums up."""
    compares = len(layer.bottoms) > 1 or layer.type == "Reduction"
    return _is_loss_by_type(layer) or (layer.has_loss_weight and compares)


def _is_loss_by_type(layer: Layer) -> bool:
    """Losses, accuracies, the like of forks, and HDF5Output, which writes predictions to a
    file beside their labels (HDF5OutputLayer::Forward_cpu, hdf5_output_layer.cpp)."""
    return (
        layer.type.endswith("Loss")
        or "Accuracy" in layer.type
        or layer.type in ("DetectionEvaluate", "EvalDetection", "HDF5Output")
    )


# ---- What is needed ----


class Needed(NamedTuple):
    """What a deploy net keeps: layers of the graph by place, among them those losses that
    become a Softmax; the data layers' tops that become inputs; and the values that it has.
    """

    layers: frozenset[int]
    softmaxes: tuple[int, ...]
    inputs: tuple[DataTop, ...]
    values: frozenset[int]


class Needs:
    """Finds what the deploy net of a graph needs."""

    def __init__(self, graph: Graph, model: Caffemodel) -> None:
        self.graph = graph
        self.model = model
        self.places = range(len(graph.layers))
        data = {layer.index for layer in data_layers(graph)}
        self.sources = self._having(lambda layer: layer.index in data)
        self.silences = self._having(lambda layer: layer.type == "Silence")
        self.losses = {at for at in self.places if self._is_loss(at)}
        self.heads = self.losses & self._having(lambda layer: layer.type == "SoftmaxWithLoss")
        self.data = tuple(self._data_tops())
        self.measures = {v for at in self.losses for v in graph.tops[at]}
        # SoftmaxWithLossLayer::Forward_cpu (softmax_loss_layer.cpp): top 1 is the Softmax.
        self.measures -= {v for at in self.heads for v in graph.tops[at][1:]}
        self.weighted = self._having(self._has_weights) - self.losses - self.sources
        self.weighted -= self._layers_on(self.measures)
        self.learned = self._forward(v for at in self.weighted for v in graph.tops[at])

    def needed(self) -> Needed:
        """What the deploy net keeps.

        :raises InputError: where no layer has weights, so that nothing is told.
        """
        roots = self._outputs()
        cut = self._forward(self._labels(roots) | self.measures)
        roots |= set(self._predictions(cut))
        softmaxes = self._softmaxes(self._upstream(roots), cut)
        layers = self._upstream(roots | softmaxes)
        if not layers:
            raise InputError(
                f"{show(os.fspath(self.graph.net.document.path))}: the weights have none of this "
                "net's layers, and without weights nothing tells its predictions from labels; "
                "are the two files of one net?"
            )
        read = self._read_by(layers)
        inputs = tuple(top for top in self.data if top.value in read)
        gone = {v for at in self.places if at not in layers for v in self.graph.tops[at]}
        gone |= {top.value for top in self.data if top.value not in read}
        values = frozenset(range(len(self.graph.values))) - gone
        layers |= {at for at in self.silences if self._silences_kept(at, values, layers)}
        return Needed(frozenset(layers), tuple(sorted(softmaxes)), inputs, values)

    def _silences_kept(self, at: int, values: frozenset[int], layers: set[int]) -> bool:
        """A Silence stays for a value of the net, unless a loss or accuracy was what used that
        value: then it is a prediction, and the net's output."""
        for value in values & set(self.graph.bottoms[at]):
            readers = {reader for reader, _ in self.graph.readers[value]} - self.silences
            if not readers or readers & layers:
                return True
        return False

    # ---- Seeing the net ----

    def _having(self, condition: Callable[[Layer], bool]) -> set[int]:
        return {at for at in self.places if condition(self.graph.layers[at])}

    def _has_weights(self, layer: Layer) -> bool:
        return any(entry.blobs for entry in self.model.by_name.get(layer.name, ()))

    def _is_loss(self, at: int) -> bool:
        """A layer is no loss by its ``loss_weight`` if others compute with its top."""
        layer, graph = self.graph.layers[at], self.graph
        if not is_loss(layer) or _is_loss_by_type(layer) or layer.type == "Reduction":
            return is_loss(layer)
        readers = {reader for v in graph.tops[at] for reader, _ in graph.readers[v]}
        return all(is_loss(graph.layers[reader]) for reader in readers - self.silences)

    def _data_tops(self) -> Iterator[DataTop]:
        """The data layers' tops; for blobs that nothing makes in this state, those of the
        data layers outside of it, since some files are for training alone."""
        graph = self.graph
        for at in sorted(self.sources):
            for slot, value in enumerate(graph.tops[at]):
                yield DataTop(graph.layers[at], graph.values[value].blob, slot, value)
        missing = {v.blob: i for i, v in enumerate(graph.values) if v.producer is None}
        for name, _ in graph.net.inputs:
            del missing[name]
        inside = {layer.index for layer in graph.layers}
        for layer in graph.net.layers:
            if layer.index not in inside and is_source(layer):
                for slot, blob in enumerate(layer.tops):
                    if blob in missing:
                        yield DataTop(layer, blob, slot, missing.pop(blob))

    def _bottoms(self, at: int) -> tuple[int, ...]:
        """What a layer computes with; a SoftmaxWithLoss is taken for the Softmax in it."""
        return self.graph.bottoms[at][:1] if at in self.heads else self.graph.bottoms[at]

    def _forward(self, values: Iterable[int]) -> set[int]:
        """These values and all that are computed from them."""
        found = set(values)
        for at in self.places:
            if not found.isdisjoint(self._bottoms(at)):
                found.update(self.graph.tops[at])
        return found

    def _layers_on(self, values: Iterable[int]) -> set[int]:
        """The layers that compute with these values or with what is computed from them."""
        found = self._forward(values)
        return {at for at in self.places if not found.isdisjoint(self._bottoms(at))}

    def _upstream(self, layers: Iterable[int]) -> set[int]:
        """These layers and all that they need."""
        found: set[int] = set()
        pending = list(layers)
        while pending:
            at = pending.pop()
            if at not in found:
                found.add(at)
                producers = (self.graph.values[v].producer for v in self._bottoms(at))
                pending += [producer for producer in producers if producer is not None]
        return found

    def _read_by(self, layers: Iterable[int]) -> set[int]:
        return {v for at in layers for v in self._bottoms(at)}

    # ---- Telling what is needed ----

    def _outputs(self) -> set[int]:
        """Layers with weights, and those that make the net's outputs. One that does so from
        a label alone, such as a slice of it that nobody reads, is none."""
        others = set(self.places) - self.losses - self.silences - self.sources
        ends = {at for at in others - self._layers_on(self.measures) if self._is_end(at)}
        found = self.weighted | (ends & self._layers_on(self.learned))
        if not found:
            return ends
        read = self._read_by(self._upstream(found))
        return found | (ends - self._layers_on({top.value for top in self.data} - read))

    def _is_end(self, at: int) -> bool:
        tops = self.graph.tops[at]
        return not tops or any(not self.graph.readers[v] for v in tops)

    def _labels(self, outputs: set[int]) -> set[int]:
        """The tops of data layers, and the inputs, that no output is computed from."""
        inputs = self._having(lambda layer: layer.type == "Input")
        fed = {top.value for top in self.data} | {v for at in inputs for v in self.graph.tops[at]}
        fed |= set(range(len(self.graph.net.inputs)))
        return fed - self._read_by(self._upstream(outputs))

    def _predictions(self, cut: set[int]) -> Iterator[int]:
        """The layers whose tops losses, accuracies and Silences read, or would read if what
        only compares them with labels were not between."""
        pending = [v for at in self.losses | self.silences for v in self.graph.bottoms[at]]
        seen: set[int] = set()
        while pending:
            value = pending.pop()
            producer = self.graph.values[value].producer
            if value in seen or producer is None or value not in self.learned:
                continue
            seen.add(value)
            if value not in cut:
                yield producer
            elif producer not in self.losses:
                pending += self.graph.bottoms[producer]

    def _scores(self, layers: Iterable[int]) -> set[int]:
        """The values that Softmax layers and their losses make probabilities of."""
        return {value for at in layers for value in self.graph.bottoms[at][:1]}

    def _softmaxes(self, layers: set[int], cut: set[int]) -> set[int]:
        """The losses that become a Softmax: those whose Softmax is read, and one more for
        each prediction that has none."""
        found = self.heads & layers
        softmaxes = found | (layers & self._having(lambda layer: layer.type == "Softmax"))
        covered = self._scores(softmaxes)
        for at in sorted(self.heads - found, reverse=True):
            scores = self._scores((at,))  # none in a loss that was written down without bottoms
            if scores and scores <= self.learned - cut - covered:
                covered |= scores
                found.add(at)
        return found
