"""One of the two nets: its files, its graph, and what its layers are."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path as FilePath

from caffe_fold.choices import Choices
from caffe_fold.convert import read_graph
from caffe_fold.errors import Path
from caffe_fold.inputs import require_inputs
from caffe_fold.nets.graph import Graph
from caffe_fold.nets.net import Layer
from caffe_fold.planning.facts import Facts
from caffe_fold.weights.blob import Form
from caffe_fold.weights.caffemodel import Caffemodel, Entry
from caffe_fold.weights_files import opened_weights

__all__ = ["Files", "Side", "open_side"]


@dataclass(frozen=True)
class Files:
    """A prototxt and its weights."""

    model: Path
    weights: Path


@dataclass(frozen=True)
class Side:
    """A net with its weights, ``weights`` being the file that an engine reads. ``facts``
    reads its affine layers."""

    files: Files
    model: str
    weights: str
    graph: Graph
    caffemodel: Caffemodel
    facts: Facts

    @property
    def places(self) -> dict[str, int]:
        """The place of each layer by name, for names that only one layer has."""
        counts = self.graph.name_counts
        return {
            layer.name: at for at, layer in enumerate(self.graph.layers) if counts[layer.name] == 1
        }

    def entry(self, layer: Layer) -> Entry | None:
        """The layer's weights; of several entries Caffe keeps the last."""
        entries = self.caffemodel.by_name.get(layer.name, ())
        return entries[-1] if entries else None

    def is_selected_whole(self) -> bool:
        """Whether the state leaves out no layer of the file."""
        return len(self.graph.layers) == len(self.graph.net.layers)

    def orphans(self) -> list[int]:
        """The values that nothing produces and that are no inputs of the net."""
        count = len(self.graph.net.inputs)
        return [
            i for i in self.graph.sources() if self.graph.values[i].producer is None and i >= count
        ]

    @property
    def has_doubles(self) -> bool:
        """Whether a blob lies in double_data, which OpenCV does not read."""
        blobs = (blob for entry in self.caffemodel.entries for blob in entry.blobs)
        return any(blob.form is Form.DOUBLE_DATA for blob in blobs)


@contextlib.contextmanager
def open_side(
    files: Files, stages: Sequence[str], level: int | None, choices: Choices, folder: FilePath
) -> Iterator[Side]:
    """Open one net. Weights in HDF5 become a caffemodel below ``folder``.

    :raises InputError: if a file is not what it has to be.
    """
    kind = require_inputs(files.model, files.weights)
    graph = read_graph(files.model, stages, level)
    with opened_weights(files.weights, kind, graph, folder) as file, file.open() as caffemodel:
        facts = Facts(graph, caffemodel, choices)
        weights = os.fspath(caffemodel.source.path)
        yield Side(files, os.fspath(files.model), weights, graph, caffemodel, facts)
