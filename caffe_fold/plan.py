"""Which runs of affine layers go where. Decides; computes and writes nothing.

A run is a longest chain of affine layers in which each is the only reader of the
one before. In this order, until nothing changes:

1. the linear layer that feeds a run absorbs it (``behind``);
2. else all layers that read it do, where each is linear and it is exact (``before``);
3. else a run that changes nothing disappears, and a run of two or more becomes one
   Scale.

A run goes whole or not at all. What stays of the BatchNorm, Scale and Bias layers
stays for a reason, in one sentence.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from caffe_fold.affine import AFFINE, AffineMap, Refused
from caffe_fold.errors import show
from caffe_fold.facts import AffineLayer, Facts, LinearLayer
from caffe_fold.linear import LINEAR
from caffe_fold.net import Layer
from caffe_fold.surgery import Surgery

__all__ = ["COUNTED", "Fold", "Merge", "Plan", "Planner", "Removal", "Repair", "Stay"]

# The types that exist only to be affine, and of which each that stays is explained.
COUNTED = ("BatchNorm", "Scale", "Bias")

# Normalising layers that only forks of Caffe have, each with blobs of its own meaning.
DIALECTS = ("BN", "CuDNNBatchNorm")


@dataclass(frozen=True)
class Fold:
    """A linear layer and the affine layers that it absorbs, in the order of the data.

    ``before`` and ``behind`` are their composed maps, or None.
    """

    at: int
    linear: LinearLayer
    before: AffineMap | None
    behind: AffineMap | None
    layers_before: tuple[AffineLayer, ...]
    layers_behind: tuple[AffineLayer, ...]

    @property
    def changes_weights(self) -> bool:
        maps = (self.before, self.behind)
        return any(m is not None and not m.is_identity for m in maps)

    @property
    def needs_bias(self) -> bool:
        """Whether the folded layer has a bias: its own, or a shift that is not zero."""
        maps = (self.before, self.behind)
        return self.linear.bias is not None or any(m is not None and m.has_shift for m in maps)


@dataclass(frozen=True)
class Merge:
    """A run that becomes one Scale: ``keeper`` is the layer that is kept or rewritten."""

    at: int
    keeper: AffineLayer
    layers: tuple[AffineLayer, ...]
    map: AffineMap


@dataclass(frozen=True)
class Removal:
    """A run that changes nothing and disappears."""

    layers: tuple[AffineLayer, ...]


@dataclass(frozen=True)
class Stay:
    """A BatchNorm, Scale or Bias that stays, and why. ``type`` is what it is then."""

    layer: Layer
    type: str
    code: str
    sentence: str


@dataclass(frozen=True)
class Repair:
    """A layer whose prototxt implies a bias that the weights do not have, and that gets
    none: ``bias_term: false`` makes the pair load."""

    layer: Layer
    parameter: str


@dataclass(frozen=True)
class Plan:
    """All that is to be done to a net. ``surgery`` holds the graph as it will be."""

    surgery: Surgery
    folds: tuple[Fold, ...]
    merges: tuple[Merge, ...]
    removals: tuple[Removal, ...]
    repairs: tuple[Repair, ...]
    stays: tuple[Stay, ...]

    @property
    def changes_nothing(self) -> bool:
        return not (self.folds or self.merges or self.removals or self.repairs)


@dataclass
class _LinearState:
    """What a linear layer has absorbed so far."""

    before: list[AffineLayer] = field(default_factory=list)
    behind: list[AffineLayer] = field(default_factory=list)


class Planner:
    """Plans one net. The work is linear in its size: a run is looked at again only
    when a neighbour has changed."""

    def __init__(self, facts: Facts, kept: Iterable[int] = ()) -> None:
        self.facts = facts
        self.graph = facts.graph
        self.surgery = Surgery(facts.graph, kept)
        self.affine: dict[int, AffineLayer] = {}
        self.refused: dict[int, Refused] = {}
        self.absorbed: dict[int, _LinearState] = {}
        self.merges: list[Merge] = []
        self.removals: list[Removal] = []

    def plan(self) -> Plan:
        """Find and decide everything."""
        for at, layer in enumerate(self.graph.layers):
            if layer.type in AFFINE:
                try:
                    self.affine[at] = self.facts.affine(at)
                except Refused as refusal:
                    self.refused[at] = refusal
            elif layer.type in DIALECTS:
                self.refused[at] = Refused(
                    "dialect",
                    f"a '{layer.type}' is a layer of some forks of Caffe alone, and is not folded",
                )
        self._fold_until_nothing_changes()
        for run in self._runs():
            self._merge(run)
        folds = tuple(self._fold(at) for at in sorted(self.absorbed))
        merged = {merge.at for merge in self.merges}
        stays = []
        for at, why in sorted(self.refused.items()):
            layer = self.graph.layers[at]
            kind = "Scale" if at in merged else layer.type
            if self.surgery.alive[at] and kind in COUNTED + DIALECTS:
                stays.append(Stay(layer, kind, why.code, why.sentence))
        repairs = tuple(self._repairs(folds))
        merges, removals = tuple(self.merges), tuple(self.removals)
        return Plan(self.surgery, folds, merges, removals, repairs, tuple(stays))

    def _repairs(self, folds: tuple[Fold, ...]) -> Iterator[Repair]:
        with_bias = {fold.at for fold in folds if fold.needs_bias}
        with_bias |= {merge.at for merge in self.merges}
        for at, layer in enumerate(self.graph.layers):
            if self.surgery.alive[at] and at not in with_bias and self.facts.lacks_bias(at):
                kind = LINEAR.get(layer.type) or AFFINE[layer.type]
                yield Repair(layer, kind.parameter)

    # ---- Runs ----

    def _run(self, at: int) -> tuple[int, ...]:
        """The longest run through an affine layer."""
        run = deque([at])
        while (before := self._writer(run[0])) is not None and self._joined(before, run[0]):
            run.appendleft(before)
        while (behind := self._only_reader(run[-1])) is not None and self._joined(run[-1], behind):
            run.append(behind)
        return tuple(run)

    def _runs(self) -> list[tuple[int, ...]]:
        runs: list[tuple[int, ...]] = []
        seen: set[int] = set()
        for at in self.affine:
            if self.surgery.alive[at] and at not in seen:
                runs.append(self._run(at))
                seen.update(runs[-1])
        return runs

    def _writer(self, at: int) -> int | None:
        return self.surgery.producer[self.surgery.bottoms[at][0]][0]

    def _only_reader(self, at: int) -> int | None:
        readers = self.surgery.readers[self.surgery.tops[at][0]]
        return next(iter(readers))[0] if len(readers) == 1 else None

    def _joined(self, first: int, second: int) -> bool:
        """Whether two layers, one reading the other, belong to one run."""
        surgery = self.surgery
        if first not in self.affine or second not in self.affine:
            return False
        value = surgery.tops[first][0]
        fits = {self.affine[at].map.channels for at in (first, second)} - {None}
        return (
            surgery.bottoms[second][0] == value
            and len(surgery.readers[value]) == 1
            and value not in surgery.kept
            and len(fits) < 2
        )

    def _map(self, run: Sequence[int]) -> AffineMap:
        total = self.affine[run[0]].map
        for at in run[1:]:
            total = total.then(self.affine[at].map)
        return total

    # ---- Rules 1, 2 and the identity ----

    def _fold_until_nothing_changes(self) -> None:
        work = deque(run[0] for run in self._runs())
        queued = set(work)
        while work:
            at = work.popleft()
            queued.discard(at)
            if not self.surgery.alive[at]:
                continue
            for again in self._fold_run(self._run(at)):
                if again not in queued:
                    queued.add(again)
                    work.append(again)

    def _fold_run(self, run: tuple[int, ...]) -> list[int]:
        """Fold one run if any rule applies; gives the affine layers to look at again."""
        surgery = self.surgery
        bottom, top = surgery.bottoms[run[0]][0], surgery.tops[run[-1]][0]
        layers = tuple(self.affine[at] for at in run)
        composed = self._map(run)
        try:
            if not composed.is_finite:
                raise Refused("not-finite", "the maps of its run compose to no finite numbers")
            try:
                self._absorb_behind(run, composed, layers)
            except Refused as behind:
                self._absorb_before(run, composed, layers, behind)
        except Refused as refusal:
            for at in run:
                self.refused[at] = refusal
            if not composed.is_identity:
                return []
            try:
                surgery.dissolve(run)
            except Refused as identity:
                for at in run:
                    self.refused[at] = identity
                return []
            self.removals.append(Removal(layers))
        return self._neighbours(bottom, top)

    def _neighbours(self, bottom: int, top: int) -> list[int]:
        """Affine layers whose run may have changed when one between two values went."""
        found = []
        for value in {bottom, top}:
            writer = self.surgery.producer[value][0]
            around = [writer, *(reader for reader, _ in self.surgery.readers[value])]
            found += [at for at in around if at in self.affine]
        return [at for at in found if at is not None]

    def _absorb_behind(
        self, run: tuple[int, ...], composed: AffineMap, layers: tuple[AffineLayer, ...]
    ) -> None:
        """Rule 1. Layers that share parameters go together, if all would fold alike."""
        runs = self._runs_of_sharers(run)
        for other in runs:
            producer = self._require_foldable_behind(other)
            channels = composed.channels
            outputs = self.facts.linear(producer).layout.outputs
            if channels is not None and channels != outputs:
                raise Refused(
                    "channels",
                    f"it has {channels} channels and layer {self.surgery.describe(producer)} "
                    f"{outputs} outputs",
                )
            if not self._map(other).equals(composed):
                raise Refused(
                    "shared",
                    f"layer {self.surgery.describe(producer)} shares parameters, and what is "
                    "behind its sharers is not the same everywhere",
                )
            self.surgery.require_absorb_back(producer, other)
        for other in runs:
            feeding = self._require_foldable_behind(other)
            self.surgery.absorb_back(feeding, other)
            state = self.absorbed.setdefault(feeding, _LinearState())
            state.behind += [self.affine[at] for at in other]

    def _require_foldable_behind(self, run: Sequence[int]) -> int:
        """The linear layer that feeds a run, if nothing else reads it."""
        surgery = self.surgery
        value = surgery.bottoms[run[0]][0]
        producer = self._writer(run[0])
        name = show(surgery.name(value))
        if producer is None:
            inputs = {blob for blob, _ in self.graph.net.inputs}
            what = "an input of the net" if name in inputs else "written by no layer of the net"
            raise Refused("net-input", f"its bottom '{name}' is {what}")
        if self.graph.layers[producer].type not in LINEAR:
            raise Refused(
                "not-linear",
                f"its bottom '{name}' comes from layer {surgery.describe(producer)}, "
                "which is not linear",
            )
        self.facts.linear(producer)
        if len(surgery.readers[value]) > 1:
            others = sorted(at for at, _ in surgery.readers[value] if at != run[0])
            raise Refused(
                "second-reader",
                f"its bottom '{name}' is also read by layer {surgery.describe(others[0])}",
            )
        if value in surgery.kept:
            raise Refused("kept", f"its bottom '{name}' is to keep its values")
        if self.graph.layers[producer].has_loss_weight:
            raise Refused("loss-weight", f"the 'loss_weight' of its bottom '{name}' reads it")
        return producer

    def _runs_of_sharers(self, run: tuple[int, ...]) -> list[tuple[int, ...]]:
        """The run, and those behind the layers that share parameters with the layer that
        feeds it."""
        producer = self._require_foldable_behind(run)
        sharers = self._sharers(producer)
        runs = [run]
        for other in sharers:
            value = self.surgery.tops[other][0]
            reader = self._only_reader(other)
            if reader is None or reader not in self.affine or value in self.surgery.kept:
                raise Refused(
                    "shared",
                    f"layer {self.surgery.describe(producer)} shares its parameters with "
                    f"{self.surgery.describe(other)}, which has no such run behind it",
                )
            runs.append(self._run(reader))
        return runs

    def _sharers(self, at: int) -> list[int]:
        """The other layers that share parameters with a linear layer, if all are alike."""
        found = set()
        for index, name in self.graph.shared_params(at):
            own = self.facts.copy_of(at, index)
            for other, other_index in self.graph.sharers[name]:
                if (other, other_index) == (at, index):
                    continue
                copy = self.facts.copy_of(other, other_index)
                what = f"parameter '{show(name)}' with layer {self.surgery.describe(other)}"
                if other == at or other_index != index:
                    raise Refused("shared", f"it shares {what} at another place")
                if own is None or copy is None or not self.facts.model.same_values(own, copy):
                    raise Refused("shared", f"it shares {what}, and the stored copies differ")
                self.facts.linear(other)
                found.add(other)
        return sorted(found)

    def _absorb_before(
        self,
        run: tuple[int, ...],
        composed: AffineMap,
        layers: tuple[AffineLayer, ...],
        behind: Refused,
    ) -> None:
        """Rule 2; where it does not apply the refusal tells both ways."""
        try:
            readers = self._require_foldable_before(run, composed)
            self.surgery.absorb_forward(run)
        except Refused as before:
            if before.sentence == behind.sentence:
                raise behind from None
            raise Refused(behind.code, f"{behind.sentence}; and {before.sentence}") from None
        for reader in readers:
            state = self.absorbed.setdefault(reader, _LinearState())
            state.before[:0] = layers

    def _require_foldable_before(self, run: Sequence[int], composed: AffineMap) -> list[int]:
        """The layers that read a run, if all are linear and it is exact for each."""
        surgery = self.surgery
        top = surgery.tops[run[-1]][0]
        name = show(surgery.name(top))
        if surgery.is_output(top):
            raise Refused("net-output", f"its top '{name}' is an output of the net")
        if top in surgery.kept:
            raise Refused("kept", f"its top '{name}' is to keep its values")
        readers = sorted({at for at, _ in surgery.readers[top]})
        for at in readers:
            if self.graph.layers[at].type not in LINEAR:
                raise Refused(
                    "not-linear",
                    f"its top '{name}' is read by layer {surgery.describe(at)}, which is not "
                    "linear",
                )
            layout = self.facts.linear(at).layout
            described = f"layer {surgery.describe(at)}, which reads its top '{name}',"
            if not layout.takes(composed.channels):
                raise Refused(
                    "channels",
                    f"{described} takes {layout.inputs} inputs, not its {composed.channels} "
                    "channels",
                )
            if composed.has_shift and layout.shift:
                raise Refused(
                    "shift", f"{described} cannot take its shift into its bias: {layout.shift}"
                )
            if any(other not in readers for other in self._sharers(at)):
                raise Refused("shared", f"{described} shares its parameters with others")
        surgery.require_absorb_forward(run)
        return readers

    # ---- Rule 3 ----

    def _merge(self, run: tuple[int, ...]) -> None:
        """A run that nothing absorbs becomes one Scale."""
        types = [self.graph.layers[at].type for at in run]
        if len(run) < 2 or not any(t in COUNTED for t in types):
            return
        composed = self._map(run)
        scales = [at for at in run if self.graph.layers[at].type == "Scale"]
        keeper = scales[-1] if scales else run[-1]
        try:
            blocked = self.facts.blocked.get(self.graph.layers[keeper].index)
            if blocked is not None:
                raise blocked
            if not composed.is_finite:
                raise Refused("not-finite", "the maps of its run compose to no finite numbers")
            if self.graph.shared_params(keeper):
                raise Refused("shared", "it shares its parameters")
            if self.graph.layers[keeper].version < 2:
                raise Refused("old-format", "its prototxt is of a format without Scale layers")
            self.surgery.merge(run, keeper)
        except Refused as refusal:
            for at in run:
                before = self.refused[at]
                self.refused[at] = Refused(
                    before.code,
                    f"{before.sentence}; nor can its run become one Scale: {refusal.sentence}",
                )
            return
        layers = tuple(self.affine[at] for at in run)
        self.merges.append(Merge(keeper, self.affine[keeper], layers, composed))

    def _fold(self, at: int) -> Fold:
        state = self.absorbed[at]
        return Fold(
            at,
            self.facts.linear(at),
            _composed(state.before),
            _composed(state.behind),
            tuple(state.before),
            tuple(state.behind),
        )


def _composed(layers: Sequence[AffineLayer]) -> AffineMap | None:
    if not layers:
        return None
    total = layers[0].map
    for layer in layers[1:]:
        total = total.then(layer.map)
    return total
