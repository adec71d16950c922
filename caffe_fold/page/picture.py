"""A net as a picture: layers gathered in boxes, arrows between them, and straight chains.

A box is a layer with what follows it alone and does no more than an affine map or an
activation; so a Convolution stands with its BatchNorm, Scale and ReLU. A chain is a row of
boxes without a branch, which the page may draw as one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from caffe_fold.layers.affine import AFFINE
from caffe_fold.layers.linear import LINEAR
from caffe_fold.layers.other import ELEMENTWISE
from caffe_fold.nets.graph import Graph
from caffe_fold.planning.surgery import Surgery

__all__ = ["Picture", "Wiring", "after", "before", "picture"]

_FOLLOWING = ELEMENTWISE | frozenset(AFFINE)

# Layers between two readers of an input from which on it is drawn again.
_FAR = 30


@dataclass(frozen=True)
class Wiring:
    """Which layer feeds which, in order. ``places`` are the layers that are there; a number
    of ``len(layers)`` and more is an input of the net. ``reads`` has, for each of the places,
    what feeds it."""

    places: tuple[int, ...]
    reads: dict[int, tuple[int, ...]]


@dataclass(frozen=True)
class Picture:
    """``boxes`` are the layers in each box, in order; ``arrows`` pairs of boxes; ``chains``
    the boxes of each chain of two and more."""

    boxes: tuple[tuple[int, ...], ...]
    arrows: tuple[tuple[int, int], ...]
    chains: tuple[tuple[int, ...], ...]


def before(graph: Graph) -> Wiring:
    """The net as it is."""
    producers = [value.producer for value in graph.values]
    return _wiring(graph, range(len(graph.layers)), graph.bottoms, producers)


def after(surgery: Surgery) -> Wiring:
    """The net as it will be."""
    places = [at for at, alive in enumerate(surgery.alive) if alive]
    producers = [producer for producer, _ in surgery.producer]
    return _wiring(surgery.graph, places, surgery.bottoms, producers)


def _wiring(
    graph: Graph,
    places: Sequence[int],
    bottoms: Sequence[Sequence[int]],
    producers: Sequence[int | None],
) -> Wiring:
    """An input comes right before the first layer that reads it."""
    order: list[int] = []
    reads: dict[int, tuple[int, ...]] = {}
    for at in places:
        sources = []
        for value in bottoms[at]:
            producer = producers[value]
            source = len(graph.layers) + value if producer is None else producer
            if source not in reads:
                order.append(source)
                reads[source] = ()
            sources.append(source)
        order.append(at)
        reads[at] = tuple(dict.fromkeys(sources))
    return Wiring(tuple(order), reads)


def picture(graph: Graph, wiring: Wiring, noted: frozenset[int]) -> Picture:
    """Gather layers in boxes. ``noted`` are layers that a chain must not hide."""
    types = [layer.type for layer in graph.layers]
    order = {at: index for index, at in enumerate(wiring.places)}
    readers: dict[int, list[int]] = {at: [] for at in wiring.places}
    for at in wiring.places:
        for source in wiring.reads[at]:
            readers[source].append(at)
    box_of: dict[int, int] = {}
    boxes: list[list[int]] = []
    arrows: dict[tuple[int, int], None] = {}
    for at in wiring.places:
        home = _home(at, wiring, readers, types, boxes, box_of)
        if home is None:
            sources = [
                source
                for source in wiring.reads[at]
                if not wiring.reads[source] and order[at] > order[readers[source][0]] + _FAR
            ]
            # An input that is also read far below is drawn there again, without a long arrow.
            for source in sources:
                box_of[source] = len(boxes)
                boxes.append([source])
            home = len(boxes)
            boxes.append([])
        boxes[home].append(at)
        box_of[at] = home
        arrows.update(
            ((box_of[source], home), None) for source in wiring.reads[at] if box_of[source] != home
        )
    plain = [not noted.intersection(box) and max(box) < len(types) for box in boxes]
    return Picture(tuple(map(tuple, boxes)), tuple(arrows), _chains(len(boxes), arrows, plain))


def _home(
    at: int,
    wiring: Wiring,
    readers: dict[int, list[int]],
    types: list[str],
    boxes: list[list[int]],
    box_of: dict[int, int],
) -> int | None:
    """The box that a layer joins: that of the only layer it reads, if nothing else reads
    that one, and it is no input."""
    sources = wiring.reads[at]
    if len(sources) != 1 or len(readers[sources[0]]) != 1 or sources[0] >= len(types):
        return None
    home = box_of[sources[0]]
    if not wiring.reads[boxes[home][0]]:  # a data layer stands alone
        return None
    if types[at] in _FOLLOWING:
        return home
    # A linear layer joins what was made ready for it: BatchNorm, Scale, ReLU, Convolution.
    if types[at] in LINEAR and all(types[member] in _FOLLOWING for member in boxes[home]):
        return home
    return None


def _chains(
    count: int, arrows: dict[tuple[int, int], None], plain: list[bool]
) -> tuple[tuple[int, ...], ...]:
    outs, ins = [0] * count, [0] * count
    for source, target in arrows:
        outs[source] += 1
        ins[target] += 1
    following = {
        source: target
        for source, target in arrows
        if outs[source] == 1 == ins[target] and plain[source] and plain[target]
    }
    starts = following.keys() - set(following.values())
    chains = []
    for box in sorted(starts):
        chain = [box]
        while chain[-1] in following:
            chain.append(following[chain[-1]])
        chains.append(tuple(chain))
    return tuple(chains)
