"""Taking layers out of a graph and moving their reads and writes. No arithmetic.

A blob name is a variable that is written again and again, so a read or write may
move only where it does not pass another use of that name. Each operation checks
this first, raises Refused with the name that stands in the way, and else does all
of its work. Costs are those of the layers that it touches.
"""

from __future__ import annotations

import bisect
from collections import defaultdict
from collections.abc import Iterable, Sequence

from caffe_fold.errors import show
from caffe_fold.layers.affine import Refused
from caffe_fold.nets.graph import Graph

__all__ = ["Surgery"]


class Surgery:
    """A graph under the knife: the names and values of the layers still in it.

    Layers are places in ``graph.layers``, values are those of the graph.
    """

    def __init__(self, graph: Graph, kept: Iterable[int]) -> None:
        self.graph = graph
        self.kept = set(kept)
        self.alive = [True] * len(graph.layers)
        self.bottoms = [list(values) for values in graph.bottoms]
        self.tops = [list(values) for values in graph.tops]
        self.bottom_names = [list(layer.bottoms) for layer in graph.layers]
        self.top_names = [list(layer.tops) for layer in graph.layers]
        self.producer = [(v.producer, v.slot) for v in graph.values]
        self.readers = [set(pairs) for pairs in graph.readers]
        self.reads: dict[str, list[int]] = defaultdict(list)
        self.writes: dict[str, list[int]] = defaultdict(list)
        for at, layer in enumerate(graph.layers):
            for name in layer.bottoms:
                self.reads[name].append(at)
            for name in layer.tops:
                self.writes[name].append(at)

    # ---- What is there ----

    def name(self, value: int) -> str:
        """The blob name under which a value stands."""
        producer, slot = self.producer[value]
        return self.graph.values[value].blob if producer is None else self.top_names[producer][slot]

    def is_output(self, value: int) -> bool:
        """Whether nothing reads a value, which makes it an output of the net."""
        return not self.readers[value]

    def only_reader(self, value: int) -> int | None:
        """The layer that reads a value, if one does and no other."""
        readers = self.readers[value]
        return next(iter(readers))[0] if len(readers) == 1 else None

    def another_reader(self, value: int, reader: int) -> int:
        """A layer that reads a value beside another one, the first that always did."""
        readers = self.readers[value]
        others = (p[0] for p in self.graph.readers[value] if p[0] != reader and p in readers)
        found = next(others, None)
        return min(at for at, _ in readers if at != reader) if found is None else found

    def describe(self, layer: int) -> str:
        """A layer for a sentence: ``'conv1' (Convolution)``."""
        return self.graph.layers[layer].described

    # ---- Operations ----

    def absorb_back(self, producer: int, run: Sequence[int]) -> None:
        """Take a run out; the layer that feeds it writes the run's last top.

        The layer's top must have the run as its only reader.
        """
        self.require_absorb_back(producer, run)
        first, last = self.bottoms[run[0]][0], self.tops[run[-1]][0]
        slot = self.producer[first][1]
        name = self.name(last)
        self._remove(run)
        self._rename_top(producer, slot, name)
        self._give_top(producer, slot, last)

    def require_absorb_back(self, producer: int, run: Sequence[int]) -> None:
        """Raise Refused where ``absorb_back`` would move a write past another use."""
        name = self.name(self.tops[run[-1]][0])
        self._require_no_use(name, producer, run[-1], run)
        slot = self.producer[self.bottoms[run[0]][0]][1]
        others = [t for i, t in enumerate(self.top_names[producer]) if i != slot]
        if name in self.bottom_names[producer] or name in others:
            raise Refused(
                "blob-name",
                f"layer {self.describe(producer)} itself reads or writes a blob named "
                f"'{show(name)}'",
            )

    def absorb_forward(self, run: Sequence[int]) -> None:
        """Take a run out; its readers read the run's bottom."""
        self.require_absorb_forward(run)
        self._move_readers(run)

    def require_absorb_forward(self, run: Sequence[int]) -> None:
        """Raise Refused where ``absorb_forward`` would move a read past a write."""
        first, last = self.bottoms[run[0]][0], self.tops[run[-1]][0]
        name = self.name(first)
        for reader, _ in self.readers[last]:
            self._require_same_value(first, reader, run)
            if name in self.top_names[reader] and name != self.name(last):
                raise Refused(
                    "blob-name",
                    f"layer {self.describe(reader)} writes another blob named '{show(name)}'",
                )

    def merge(self, run: Sequence[int], keeper: int) -> None:
        """Take a run out but for one layer, which reads its bottom and writes its last
        top."""
        first, last = self.bottoms[run[0]][0], self.tops[run[-1]][0]
        self._require_same_value(first, keeper, run)
        self._require_no_use(self.name(last), keeper, run[-1], run)
        name = self.name(last)
        if self.name(first) == name and len(self.readers[first]) > 1:
            raise Refused(
                "blob-name", f"blob '{show(name)}' would be changed in place while others read it"
            )
        self._remove([layer for layer in run if layer != keeper])
        self._rename_bottom(keeper, 0, first)
        self._rename_top(keeper, 0, name)
        self._give_top(keeper, 0, last)

    def dissolve(self, run: Sequence[int]) -> None:
        """Take a run out that changes nothing: its bottom stands for its last top, under
        the one name or the other."""
        first, last = self.bottoms[run[0]][0], self.tops[run[-1]][0]
        if self.name(first) != self.name(last):
            refusal = self._why_no_new_top(first, run)
            if refusal is None:
                producer = self.producer[first][0]
                assert producer is not None, "only a layer's top can be renamed"
                self.absorb_back(producer, run)
                return
            if last in self.kept or self.is_output(last):
                raise Refused(
                    "both-names",
                    f"it changes nothing, but both blob names '{show(self.name(first))}' and "
                    f"'{show(self.name(last))}' are needed",
                )
        self.absorb_forward(run)

    def _move_readers(self, run: Sequence[int]) -> None:
        first, last = self.bottoms[run[0]][0], self.tops[run[-1]][0]
        readers = sorted(self.readers[last])
        self._remove(run)
        for reader, slot in readers:
            self._rename_bottom(reader, slot, first)
        if last in self.kept:
            self.kept.add(first)

    def _why_no_new_top(self, first: int, run: Sequence[int]) -> Refused | None:
        """Why the producer of a run's bottom cannot write the run's last top instead."""
        producer, _ = self.producer[first]
        if producer is None or not self.bottoms[producer]:
            return Refused("blob-name", "an input of the net keeps its name")
        if first in self.kept or len(self.readers[first]) > 1:
            return Refused("blob-name", "the name is needed")
        if self.name(first) in self.bottom_names[producer]:
            return Refused("blob-name", "its producer works in place")
        try:
            self.require_absorb_back(producer, run)
        except Refused as refusal:
            return refusal
        return None

    # ---- Names ----

    def _require_no_use(self, name: str, after: int, before: int, run: Sequence[int]) -> None:
        """No layer between two places, but for the run's own, reads or writes a name."""
        members = frozenset(run)
        for uses in (self.reads[name], self.writes[name]):
            for at in uses[bisect.bisect_right(uses, after) : bisect.bisect_left(uses, before)]:
                if at not in members:
                    raise Refused(
                        "blob-name",
                        f"layer {self.describe(at)} uses the blob name '{show(name)}' in between",
                    )

    def _require_same_value(self, value: int, at: int, run: Sequence[int]) -> None:
        """At a place, the name of a value must still stand for that value."""
        producer = self.producer[value][0]
        start = -1 if producer is None else producer
        members = frozenset(run)
        writes = self.writes[self.name(value)]
        for other in writes[bisect.bisect_right(writes, start) : bisect.bisect_left(writes, at)]:
            if other not in members:
                raise Refused(
                    "blob-name",
                    f"layer {self.describe(other)} writes blob '{show(self.name(value))}' anew "
                    "in between",
                )

    def _remove(self, run: Iterable[int]) -> None:
        for layer in run:
            self.alive[layer] = False
            for slot, value in enumerate(self.bottoms[layer]):
                self.readers[value].discard((layer, slot))
            for name in self.bottom_names[layer]:
                _drop(self.reads[name], layer)
            for name in self.top_names[layer]:
                _drop(self.writes[name], layer)

    def _rename_top(self, layer: int, slot: int, name: str) -> None:
        _drop(self.writes[self.top_names[layer][slot]], layer)
        bisect.insort(self.writes[name], layer)
        self.top_names[layer][slot] = name

    def _give_top(self, layer: int, slot: int, value: int) -> None:
        self.tops[layer][slot] = value
        self.producer[value] = (layer, slot)

    def _rename_bottom(self, layer: int, slot: int, value: int) -> None:
        """A layer's bottom becomes another value, under that value's name."""
        self.readers[self.bottoms[layer][slot]].discard((layer, slot))
        self.readers[value].add((layer, slot))
        self.bottoms[layer][slot] = value
        _drop(self.reads[self.bottom_names[layer][slot]], layer)
        name = self.name(value)
        bisect.insort(self.reads[name], layer)
        self.bottom_names[layer][slot] = name


def _drop(places: list[int], layer: int) -> None:
    del places[bisect.bisect_left(places, layer)]
