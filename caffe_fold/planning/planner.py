"""Which runs of affine layers go where. Decides; computes and writes nothing.

In this order, until nothing changes:

1. the linear layer that feeds a run absorbs it (``behind``);
2. else all layers that read it do, where each is linear and it is exact (``before``);
3. else a run that changes nothing disappears, and a run of two or more becomes one
   Scale.

A run goes whole or not at all, where ``conditions`` lets it. What stays of the layers
that exist only to be affine stays for a reason, in one sentence.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from itertools import chain

from caffe_fold.layers.affine import AFFINE, Refused
from caffe_fold.layers.linear import LINEAR
from caffe_fold.planning.conditions import Conditions
from caffe_fold.planning.facts import AffineLayer, Facts
from caffe_fold.planning.plan import EXPLAINED, Fold, Merge, Plan, Removal, Repair, Stay
from caffe_fold.planning.runs import Run, Runs, composed
from caffe_fold.planning.surgery import Surgery

__all__ = ["Planner"]


class _Absorbed:
    """What a linear layer has absorbed so far, in the order of the data."""

    def __init__(self) -> None:
        self.before: list[AffineLayer] = []
        self.behind: list[AffineLayer] = []


class Planner:
    """Plans one net. A run is looked at again only when a neighbour has changed."""

    def __init__(self, facts: Facts, kept: Iterable[int] = ()) -> None:
        self.facts = facts
        self.graph = facts.graph
        self.surgery = Surgery(facts.graph, kept)
        self.conditions = Conditions(facts, self.surgery)
        self.refused: dict[int, Refused] = {}
        self.runs = Runs(self.surgery, dict(self._affine_layers()))
        # Of sharers, by the first of them: the one that stood in the way.
        self.stuck: dict[int, int] = {}
        self.absorbed: dict[int, _Absorbed] = {}
        self.merges: list[Merge] = []
        self.removals: list[Removal] = []

    def plan(self) -> Plan:
        """Find and decide everything."""
        self._fold_until_nothing_changes()
        for run in self.runs.all():
            self._merge(run)
        folds = tuple(self._fold(at) for at in sorted(self.absorbed))
        return Plan(
            self.surgery,
            folds,
            tuple(self.merges),
            tuple(self.removals),
            tuple(self._repairs(folds)),
            tuple(self._stays()),
        )

    def _affine_layers(self) -> Iterator[tuple[int, AffineLayer]]:
        for at, layer in enumerate(self.graph.layers):
            if layer.type in AFFINE:
                try:
                    yield at, self.facts.affine(at)
                except Refused as refusal:
                    self.refused[at] = refusal

    def _fold(self, at: int) -> Fold:
        before, behind = self.absorbed[at].before, self.absorbed[at].behind
        linear = self.facts.linear(at)
        return Fold(at, linear, composed(before), composed(behind), tuple(before), tuple(behind))

    def _repairs(self, folds: tuple[Fold, ...]) -> Iterator[Repair]:
        with_bias = {fold.at for fold in folds if fold.needs_bias}
        with_bias |= {merge.at for merge in self.merges}
        for at, layer in enumerate(self.graph.layers):
            if self.surgery.alive[at] and at not in with_bias and self.facts.lacks_bias(at):
                kind = LINEAR.get(layer.type) or AFFINE[layer.type]
                yield Repair(layer, kind.parameter)

    def _stays(self) -> Iterator[Stay]:
        merged = {merge.at for merge in self.merges}
        for at, why in sorted(self.refused.items()):
            layer = self.graph.layers[at]
            kind = "Scale" if at in merged else layer.type
            if self.surgery.alive[at] and kind in EXPLAINED:
                yield Stay(layer, kind, why.codes, why.sentence)

    # ---- Rules 1, 2 and the identity ----

    def _fold_until_nothing_changes(self) -> None:
        work = deque(run.places[0] for run in self.runs.all())
        queued = set(work)
        while work:
            at = work.popleft()
            queued.discard(at)
            if self.surgery.alive[at]:
                new = self._fold_run(self.runs.through(at)) - queued
                work.extend(sorted(new))
                queued |= new

    def _fold_run(self, run: Run) -> set[int]:
        """Fold one run if any rule applies; gives the affine layers to look at again."""
        bottom = self.surgery.bottoms[run.places[0]][0]
        top = self.surgery.tops[run.places[-1]][0]
        try:
            self.conditions.require_movable(run)
            try:
                self._absorb_behind(run)
            except Refused as behind:
                self._absorb_before_or_dissolve(run, behind)
        except Refused as refusal:
            self.refused.update(dict.fromkeys(run.places, refusal))
            return set()
        return self._neighbours(bottom, top)

    def _neighbours(self, bottom: int, top: int) -> set[int]:
        """Affine layers whose run may have changed when one between two values went: the
        one before, which has other readers now, and one that is an only reader now."""
        found = (
            self.surgery.producer[bottom][0],
            self.surgery.only_reader(bottom),
            self.surgery.only_reader(top),
        )
        return {at for at in found if at is not None and at in self.runs.affine}

    # ---- Rule 1 ----

    def _absorb_behind(self, run: Run) -> None:
        """Rule 1. Layers that share parameters go together, if all would fold alike."""
        first = self.conditions.require_foldable_behind(run)
        group = self.conditions.require_interchangeable(first)
        pairs = self._runs_alike(group, first, run)
        # Each checks its names again, and none has been moved before all have been looked
        # at: sharers write different blobs, so that one does not stand in another's way.
        for producer, other in pairs:
            self.surgery.absorb_back(producer, other.places)
            self.absorbed.setdefault(producer, _Absorbed()).behind.extend(other.layers)

    def _runs_alike(self, group: tuple[int, ...], first: int, run: Run) -> list[tuple[int, Run]]:
        """Each sharer with the run behind it. The one that stood in the way the last time is
        looked at first, so that sharers that all stay do not look at each other each time."""
        found = {first: run}
        stuck = self.stuck.get(group[0], first)
        for at in chain((stuck,), group):
            if at not in found:
                self.stuck[group[0]] = at
                found[at] = self._run_alike(at, run)
        return sorted(found.items(), key=lambda pair: pair[0])

    def _run_alike(self, at: int, run: Run) -> Run:
        """The run behind a sharer, if it can go there as another goes into the first."""
        described = f"layer {self.surgery.describe(at)}"
        reader = self.runs.only_reader(at)
        if reader is None or reader not in self.runs.affine:
            raise Refused(
                "shared", f"{described} shares the parameters and has no such run behind it"
            )
        found = self.runs.through(reader)
        try:
            self.conditions.require_movable(found)
            self.conditions.require_foldable_behind(found)
        except Refused as refusal:
            raise Refused(
                "shared",
                f"{described} shares the parameters, and layer "
                f"{self.surgery.describe(reader)} behind it stays: {refusal.sentence}",
            ) from None
        if not found.map.equals(run.map) or found.storage != run.storage:
            raise Refused(
                "shared",
                f"{described} shares parameters, and what is behind its sharers is not the same "
                "everywhere",
            )
        return found

    # ---- Rule 2 and the identity ----

    def _absorb_before_or_dissolve(self, run: Run, behind: Refused) -> None:
        """Rule 2, and else the end of a run that changes nothing; where neither applies the
        refusal tells both ways."""
        try:
            pairs = self._require_foldable_before(run)
        except Refused as before:
            self._dissolve(run, behind.and_also(before))
            return
        # Taking one out adds reads and removes writes, so it does not hinder the next.
        for other, readers in pairs:
            self.surgery.absorb_forward(other.places)
            for reader in readers:
                self.absorbed.setdefault(reader, _Absorbed()).before[:0] = other.layers

    def _require_foldable_before(self, run: Run) -> list[tuple[Run, list[int]]]:
        """The run with the layers that read it, if all are linear and it is exact for each;
        and where those share parameters, the equal runs before their sharers."""
        pairs = [(run, self.conditions.require_exact_readers(run))]
        taken = set(pairs[0][1])
        for _, readers in pairs:
            for at in readers:
                for sharer in self.conditions.require_interchangeable(at):
                    if sharer not in taken:
                        other = self._run_before(at, sharer, run)
                        pairs.append((other, self.conditions.require_exact_readers(other)))
                        taken.update(pairs[-1][1])
        return pairs

    def _run_before(self, at: int, sharer: int, run: Run) -> Run:
        """The run that feeds a sharer of a layer, if it is the equal of the layer's own."""
        writer = self.runs.writer(sharer)
        if writer is not None and writer in self.runs.affine:
            found = self.runs.through(writer)
            if found.map.equals(run.map) and found.storage == run.storage:
                self.conditions.require_movable(found)
                return found
        raise Refused(
            "shared",
            f"layer {self.surgery.describe(at)} shares its parameters with layer "
            f"{self.surgery.describe(sharer)}, which has no such run before it",
        )

    def _dissolve(self, run: Run, otherwise: Refused) -> None:
        """Take out a run that changes nothing; raises ``otherwise`` for one that does."""
        if not run.map.is_identity:
            raise otherwise
        self.conditions.require_removable(run)
        self.surgery.dissolve(run.places)
        self.removals.append(Removal(run.layers))

    # ---- Rule 3 ----

    def _merge(self, run: Run) -> None:
        """A run that nothing absorbs becomes one Scale."""
        types = [layer.layer.type for layer in run.layers]
        if len(run.places) < 2 or not any(name in EXPLAINED for name in types):
            return
        scales = [at for at, name in zip(run.places, types) if name == "Scale"]
        keeper = scales[-1] if scales else run.places[-1]
        try:
            self.conditions.require_movable(run)
            self.conditions.require_rewritable(keeper)
            self.surgery.merge(run.places, keeper)
        except Refused as refusal:
            for at in run.places:
                before = self.refused.get(at, refusal)
                self.refused[at] = before.and_also(refusal, "; nor can its run become one Scale: ")
            return
        self.merges.append(Merge(keeper, self.runs.affine[keeper], run.layers, run.map))
