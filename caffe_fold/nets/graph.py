"""The graph of a net in one state: which layer reads what which layer wrote.

A bottom binds to the latest earlier top of its name, so a blob name stands for
several values where layers work in place (Net::AppendBottom and AppendTop in
BVLC's net.cpp). Here each write makes a value of its own.
"""

from __future__ import annotations

from collections import Counter

from caffe_fold.named import NamedTuple
from caffe_fold.nets.net import Layer, Net, State, selected

__all__ = ["Graph", "Value", "build"]


class Value(NamedTuple):
    """What one layer wrote to one blob. ``producer`` is the layer's place in
    ``Graph.layers``, or None for a net input and for what nothing produces."""

    blob: str
    producer: int | None
    slot: int


class Graph(NamedTuple):
    """The layers of a state, in order, with their values.

    ``bottoms`` and ``tops`` hold the values of each layer; ``readers`` the (layer, slot)
    pairs that read each value; ``last`` the final value of each blob name; ``sharers``
    the (layer, blob index) pairs of each param name.
    """

    net: Net
    state: State
    layers: tuple[Layer, ...]
    values: tuple[Value, ...]
    bottoms: tuple[tuple[int, ...], ...]
    tops: tuple[tuple[int, ...], ...]
    readers: tuple[tuple[tuple[int, int], ...], ...]
    last: dict[str, int]
    sharers: dict[str, tuple[tuple[int, int], ...]]
    name_counts: Counter[str]

    def sources(self) -> list[int]:
        """The values that come from outside: net-level inputs, tops of layers without
        bottoms, and what nothing produces."""
        return [
            index
            for index, value in enumerate(self.values)
            if value.producer is None or not self.layers[value.producer].bottoms
        ]

    def shared_params(self, layer: int) -> list[tuple[int, str]]:
        """The (blob index, param name) pairs of a layer that it shares with another
        use; a name that occurs once in the net is no sharing."""
        names = enumerate(self.layers[layer].params)
        return [(i, name) for i, name in names if name and len(self.sharers[name]) > 1]


def build(net: Net, state: State) -> Graph:
    """The graph of the layers that a state selects. Linear in the size of the net."""
    layers = selected(net, state)
    values = [Value(blob, None, 0) for blob, _ in net.inputs]
    last = {value.blob: i for i, value in enumerate(values)}
    readers: list[list[tuple[int, int]]] = [[] for _ in values]
    bottoms, tops = [], []

    def add(value: Value) -> int:
        last[value.blob] = len(values)
        values.append(value)
        readers.append([])
        return len(values) - 1

    for at, layer in enumerate(layers):
        read = [last[b] if b in last else add(Value(b, None, 0)) for b in layer.bottoms]
        for slot, value in enumerate(read):
            readers[value].append((at, slot))
        bottoms.append(tuple(read))
        tops.append(tuple(add(Value(top, at, slot)) for slot, top in enumerate(layer.tops)))
    return Graph(
        net,
        state,
        layers,
        tuple(values),
        tuple(bottoms),
        tuple(tops),
        tuple(map(tuple, readers)),
        last,
        _sharers(layers),
        Counter(layer.name for layer in layers),
    )


def _sharers(layers: tuple[Layer, ...]) -> dict[str, tuple[tuple[int, int], ...]]:
    found: dict[str, list[tuple[int, int]]] = {}
    for at, layer in enumerate(layers):
        for index, name in enumerate(layer.params):
            if name:
                found.setdefault(name, []).append((at, index))
    return {name: tuple(uses) for name, uses in found.items()}
