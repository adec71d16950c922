"""Do the two files belong together? The net in the weights against the prototxt.

A prototxt that is folded already, with weights that are not, loads in Caffe without
a word (a layer that only the weights have is ignored) and computes nonsense. It is
the most reported mistake with folded nets.
"""

from __future__ import annotations

from caffe_fold.errors import InputError, show
from caffe_fold.layers.affine import AFFINE
from caffe_fold.layers.linear import LINEAR
from caffe_fold.nets.graph import Graph
from caffe_fold.weights.caffemodel import Caffemodel, Entry

__all__ = ["extra_layers", "require_unfolded_pair"]

_NORMALISING = frozenset(name for name, kind in AFFINE.items() if kind.normalises)


def require_unfolded_pair(graph: Graph, model: Caffemodel) -> None:
    """Raise InputError where the weights have a BatchNorm right behind a linear layer of
    the prototxt, and the prototxt has none there."""
    names = {layer.name for layer in graph.net.layers}
    linear = {layer.name: at for at, layer in enumerate(graph.layers) if layer.type in LINEAR}
    for entry, before in _normalising_entries(model):
        if entry.name in names or before is None or before.name not in linear:
            continue
        if not _is_normalised(graph, linear[before.name]):
            raise InputError(
                f"the weights have a BatchNorm '{show(entry.name)}' behind layer "
                f"'{show(before.name)}' and the prototxt has none: the prototxt is folded already "
                "and the weights are not; give the unfolded prototxt of these weights "
                "(--allow-extra-weights goes on regardless)"
            )


def extra_layers(graph: Graph, model: Caffemodel) -> list[str]:
    """The names of layers with blobs that only the weights have."""
    names = {layer.name for layer in graph.net.layers}
    return [entry.name for entry in model.entries if entry.blobs and entry.name not in names]


def _normalising_entries(model: Caffemodel) -> list[tuple[Entry, Entry | None]]:
    """Each BatchNorm of the weights with the entry that feeds it."""
    found = []
    writers: dict[str, Entry] = {}
    previous: Entry | None = None
    for entry in model.entries:
        if _is_normalising(entry):
            feeding = writers.get(entry.bottoms[0]) if entry.bottoms else previous
            found.append((entry, feeding))
        # A Split passes its bottom on, so what reads it reads the layer before.
        source = entry
        if entry.type == "Split" and entry.bottoms:
            source = writers.get(entry.bottoms[0], entry)
        for top in entry.tops:
            writers[top] = source
        previous = entry
    return found


def _is_normalising(entry: Entry) -> bool:
    """Whether an entry is a BatchNorm's; HDF5 weights have no types, and then it is told
    by its three blobs: mean, variance and a factor."""
    if entry.type or not entry.blobs:
        return bool(entry.blobs) and entry.type in _NORMALISING
    shapes = [blob.shape for blob in entry.blobs]
    return len(shapes) == 3 and shapes[0] == shapes[1] and shapes[2] == (1,) and len(shapes[0]) == 1


def _is_normalised(graph: Graph, at: int) -> bool:
    """Whether a BatchNorm of the prototxt reads a layer, under whatever name."""
    return any(
        graph.layers[reader].type in _NORMALISING
        for value in graph.tops[at]
        for reader, _ in graph.readers[value]
    )
