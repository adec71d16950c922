"""Values that share memory, and whether somebody writes into memory that others read.

Some layers do not copy: their tops are their bottom's memory (ShareData in
split_layer.cpp, flatten_layer.cpp, reshape_layer.cpp, concat_layer.cpp and
slice_layer.cpp of BVLC, permute_layer.cpp of SSD). An in-place layer behind a place
where such memory branches changes what the other branch reads, and what that is then
depends on the order of the layers, not on names. Nothing is moved there.
"""

from __future__ import annotations

from caffe_fold.nets.graph import Graph

__all__ = ["shares_memory", "tangled_values"]

_SHARING = frozenset(("Split", "Flatten", "Reshape", "Permute", "Python"))


def shares_memory(graph: Graph, at: int) -> bool:
    """Whether a layer's tops may be its bottom's memory. A Concat copies unless it has one
    bottom, a Slice unless it has one top."""
    kind = graph.layers[at].type
    if kind == "Concat":
        return len(graph.bottoms[at]) == 1
    if kind == "Slice":
        return len(graph.tops[at]) == 1
    return kind in _SHARING


def tangled_values(graph: Graph) -> frozenset[int]:
    """The values in whose memory an in-place layer writes behind a branch."""
    group = list(range(len(graph.values)))
    branched = [False] * len(graph.values)
    tangled: set[int] = set()
    for at, layer in enumerate(graph.layers):
        bottoms, tops = graph.bottoms[at], graph.tops[at]
        for slot, top in enumerate(tops):
            if slot < len(bottoms) and layer.tops[slot] == layer.bottoms[slot]:
                source = bottoms[slot]
                branched[top] = branched[source]
                if branched[top]:
                    tangled.add(top)
            elif bottoms and shares_memory(graph, at):
                source = bottoms[0]
                branches = len(graph.readers[source]) > 1 or len(tops) > 1
                branched[top] = branched[source] or branches
            else:
                continue
            _union(group, source, top)
    roots = {_root(group, value) for value in tangled}
    return frozenset(value for value in range(len(group)) if _root(group, value) in roots)


def _root(group: list[int], value: int) -> int:
    while group[value] != value:
        group[value] = group[group[value]]
        value = group[value]
    return value


def _union(group: list[int], one: int, other: int) -> None:
    group[_root(group, one)] = _root(group, other)
