"""Whether a run may go somewhere: each condition, and the sentence where it does not hold."""

from __future__ import annotations

from caffe_fold.errors import show
from caffe_fold.layers.affine import Refused
from caffe_fold.layers.linear import LINEAR
from caffe_fold.nets.memory import shares_memory, tangled_values
from caffe_fold.planning.facts import Facts
from caffe_fold.planning.runs import Run
from caffe_fold.planning.surgery import Surgery

__all__ = ["Conditions"]


class Conditions:
    """Those of one net, as ``surgery`` has it by now; nothing is changed.

    Each raises Refused where it does not hold, and else gives the layers that it found.
    """

    def __init__(self, facts: Facts, surgery: Surgery) -> None:
        self.facts, self.surgery = facts, surgery
        self.graph = facts.graph
        self.sharing = facts.sharing
        self.tangled = tangled_values(self.graph)
        # Of sharers, by the first of them: how they differ.
        self.unlike: dict[int, str] = {}

    def require_movable(self, run: Run) -> None:
        """Whether a run can go anywhere: its numbers, and the memory that it works in."""
        if not run.map.is_finite:
            raise Refused("not-finite", "the maps of its run compose to no finite numbers")
        values = {self.graph.bottoms[at][0] for at in run.places}
        values |= {self.graph.tops[at][0] for at in run.places}
        if values & self.tangled:
            name = show(self.graph.values[min(values & self.tangled)].blob)
            raise Refused(
                "shared-memory",
                f"blob '{name}' shares its memory with a blob that others read, and a layer "
                "writes there in place",
            )

    def require_foldable_behind(self, run: Run) -> int:
        """The linear layer that feeds a run, if nothing else reads it and the run fits."""
        surgery = self.surgery
        value = surgery.bottoms[run.places[0]][0]
        producer = self._require_linear_writer(value)
        linear = self.facts.linear(producer)
        name = show(surgery.name(value))
        if len(surgery.readers[value]) > 1:
            other = surgery.another_reader(value, run.places[0])
            raise Refused(
                "second-reader",
                f"its bottom '{name}' is also read by layer {surgery.describe(other)}",
            )
        if value in surgery.kept:
            raise Refused("kept", f"its bottom '{name}' is to keep its values")
        if linear.layer.has_loss_weight:
            raise Refused("loss-weight", f"the 'loss_weight' of its bottom '{name}' reads it")
        if run.map.channels not in (None, linear.layout.outputs):
            raise Refused(
                "channels",
                f"it has {run.map.channels} channels and layer {surgery.describe(producer)} "
                f"{linear.layout.outputs} outputs",
            )
        surgery.require_absorb_back(producer, run.places)
        return producer

    def _require_linear_writer(self, value: int) -> int:
        producer, name = self.surgery.producer[value][0], show(self.surgery.name(value))
        if producer is None:
            inputs = {blob for blob, _ in self.graph.net.inputs}
            is_input = self.graph.values[value].blob in inputs
            what = "an input of the net" if is_input else "written by no layer of the net"
            raise Refused("net-input", f"its bottom '{name}' is {what}")
        if self.graph.layers[producer].type not in LINEAR:
            raise Refused(
                "not-linear",
                f"its bottom '{name}' comes from layer {self.surgery.describe(producer)}, "
                "which is not linear",
            )
        return producer

    def require_exact_readers(self, run: Run) -> list[int]:
        """The layers that read a run, if all are linear and it is exact for each."""
        surgery = self.surgery
        top = surgery.tops[run.places[-1]][0]
        name = show(surgery.name(top))
        if surgery.is_output(top):
            raise Refused("net-output", f"its top '{name}' is an output of the net")
        if top in surgery.kept:
            raise Refused("kept", f"its top '{name}' is to keep its values")
        readers = sorted({at for at, _ in surgery.readers[top]})
        for at in readers:
            described = f"layer {surgery.describe(at)}, which reads its top '{name}',"
            if self.graph.layers[at].type not in LINEAR:
                raise Refused(
                    "not-linear",
                    f"its top '{name}' is read by layer {surgery.describe(at)}, which is not "
                    "linear",
                )
            self._require_exact_before(at, run, described)
        surgery.require_absorb_forward(run.places)
        return readers

    def _require_exact_before(self, at: int, run: Run, described: str) -> None:
        """Whether a linear layer can take a map on its inputs."""
        layout = self.facts.linear(at).layout
        if not layout.takes(run.map.channels):
            raise Refused(
                "channels",
                f"{described} takes {layout.inputs} inputs, not its {run.map.channels} channels",
            )
        if not run.map.has_shift:
            return
        if layout.shift:
            raise Refused(
                "shift", f"{described} cannot take its shift into its bias: {layout.shift}"
            )
        shared = {index for index, _ in self.graph.shared_params(at)}
        if shared and 0 not in shared:
            raise Refused("shared", f"{described} shares its bias and not its weights")

    def require_removable(self, run: Run) -> None:
        """Whether a run that changes nothing may go: not if it keeps two memories apart."""
        surgery = self.surgery
        bottom, top = surgery.bottoms[run.places[0]][0], surgery.tops[run.places[-1]][0]
        around = [surgery.producer[bottom][0], *(at for at, _ in surgery.readers[top])]
        sharing = [at for at in around if at is not None and shares_memory(self.graph, at)]
        if sharing and surgery.name(bottom) != surgery.name(top):
            raise Refused(
                "shared-memory",
                f"it changes nothing, but layer {surgery.describe(sharing[0])} beside it does "
                "not copy, and it keeps the two memories apart",
            )

    def require_rewritable(self, keeper: int) -> None:
        """Whether a layer can become the Scale of its run."""
        layer = self.graph.layers[keeper]
        if layer.index in self.facts.blocked:
            raise self.facts.blocked[layer.index]
        if self.graph.shared_params(keeper):
            raise Refused("shared", "it shares its parameters")
        if layer.version < 2:
            raise Refused("old-format", "its prototxt is of a format without Scale layers")

    def require_interchangeable(self, at: int) -> tuple[int, ...]:
        """The layers that share parameters with a linear layer, if they can stand for each
        other: the same blobs shared, the same layout, the same number types."""
        group = self.sharing.group(at)
        if len(group) > 1:
            self.sharing.require_alike(at)
            if group[0] not in self.unlike:
                self.unlike[group[0]] = self._difference(group)
            if self.unlike[group[0]]:
                raise Refused(
                    "shared",
                    f"layer {self.surgery.describe(at)} shares parameters{self.unlike[group[0]]}",
                )
        return group

    def _difference(self, group: tuple[int, ...]) -> str:
        """Why sharers cannot stand for each other, as the end of a sentence, or nothing."""
        try:
            forms = {self._form(other) for other in group}
        except Refused as refusal:
            return f", and {refusal.sentence}"
        return " with layers that use them in another way" if len(forms) > 1 else ""

    def _form(self, at: int) -> tuple[object, ...]:
        linear = self.facts.linear(at)
        bias = None if linear.bias is None else linear.bias.storage
        return (linear.layout._replace(shift=""), linear.weight.storage, bias)
