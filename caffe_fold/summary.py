"""A plan as a report: what was done, what stays, and what a user should know."""

from __future__ import annotations

import os
import re
from collections import Counter, defaultdict
from collections.abc import Iterator

from caffe_fold.errors import Path, reading, show
from caffe_fold.hints import closest
from caffe_fold.layers.affine import AFFINE
from caffe_fold.layers.linear import LINEAR
from caffe_fold.named import NamedTuple
from caffe_fold.nets.data_layers import data_layers
from caffe_fold.nets.net import Layer
from caffe_fold.planning.facts import AffineLayer, Facts
from caffe_fold.planning.pairing import extra_layers
from caffe_fold.planning.plan import Plan
from caffe_fold.report import Absorbed, Counts, Merged, Note, Report, Stayed
from caffe_fold.writing.outputs import Outputs
from caffe_fold.writing.rewrite_prototxt import twins

__all__ = ["Files", "summary"]

_SHOWN = 5
_HINTED = 8


class Files(NamedTuple):
    """The contents that the report counts: the old prototxt and the new one, the path of
    the old weights and the size of the new ones."""

    old_text: bytes
    new_text: bytes
    weights: Path
    weights_size: int


def summary(facts: Facts, plan: Plan, outputs: Outputs, files: Files) -> Report:
    """The report of a plan that is not yet carried out.

    :raises InputError: if the weights are there no more.
    """
    graph, surgery = facts.graph, plan.surgery
    document = graph.net.document
    merged = {merge.at for merge in plan.merges}
    types = [
        "Scale" if at in merged else layer.type
        for at, layer in enumerate(graph.layers)
        if surgery.alive[at]
    ]
    old_types = [layer.type for layer in graph.layers]
    with reading(files.weights):
        size = os.path.getsize(files.weights)
    return Report(
        model=os.fspath(document.path),
        weights=os.fspath(files.weights),
        output_model=outputs.model,
        output_weights=outputs.weights,
        written=False,
        folded=tuple(
            Absorbed(
                fold.linear.layer.name,
                fold.linear.layer.type,
                tuple(a.layer.name for a in fold.layers_before),
                tuple(a.layer.name for a in fold.layers_behind),
            )
            for fold in plan.folds
        ),
        merged=tuple(
            Merged(merge.keeper.layer.name, tuple(a.layer.name for a in merge.layers))
            for merge in plan.merges
        ),
        removed=tuple(a.layer.name for removal in plan.removals for a in removal.layers),
        stayed=tuple(
            Stayed(stay.layer.name, stay.type, stay.codes[0], stay.codes, stay.sentence)
            for stay in plan.stays
        ),
        warnings=tuple(_warnings(facts, plan)),
        notes=(*_notes(plan, files.old_text != files.new_text), *_unknown_types(facts)),
        before=Counts(
            len(old_types),
            _by_type(old_types),
            len(files.old_text),
            size,
        ),
        after=Counts(
            len(types),
            _by_type(types),
            len(files.new_text),
            files.weights_size,
        ),
        checked=None,
    )


def _by_type(types: list[str]) -> dict[str, int]:
    return dict(Counter(types).most_common())


def _notes(plan: Plan, changes_text: bool) -> Iterator[Note]:
    if plan.changes_nothing and not changes_text:
        yield Note("nothing-to-fold", "nothing folds; the outputs are the inputs byte for byte")
    taken = {a.layer.name: a for a in _taken(plan)}
    names = [
        name for name, a in taken.items() if a.layer.type == "BN" and len(a.constants.blobs) == 4
    ]
    if names:
        choices = taken[names[0]].constants.choices
        read = "variance" if choices.bn_variance == "var" else "inverse standard deviation"
        yield Note(
            "bn-variance",
            f"the fourth blob of {_list(names)} was taken as {read}; files from before the forks "
            "changed it hold the inverse standard deviation (--bn-variance)",
        )
    names = [name for name, a in taken.items() if a.layer.type == "CuDNNBatchNorm"]
    if names:
        yield Note(
            "cudnn-layout",
            f"the blobs of {_list(names)} were taken as mean, variance, scale and bias, as MNN "
            "reads a CuDNNBatchNorm",
        )


def _warnings(facts: Facts, plan: Plan) -> Iterator[Note]:
    yield from _untrained(plan)
    yield from _disagreements(facts)
    yield from _two_blobs(plan)
    yield from _unknown_fields(facts, plan)
    yield from _unmatched(facts)
    yield from _other_states(facts, plan)
    yield from _data_layers(facts)


def _list(names: list[str]) -> str:
    shown = ", ".join(f"'{show(name)}'" for name in names[:_SHOWN])
    more = len(names) - _SHOWN
    return f"{shown} and {more} more" if more > 0 else shown


def _unknown_types(facts: Facts) -> Iterator[Note]:
    """Layers of forks that look like a BatchNorm and are not known to be one."""
    layers = [la for la in facts.graph.layers if la.type not in AFFINE and _NORM.search(la.type)]
    if layers:
        types = ", ".join(sorted({f"'{show(layer.type)}'" for layer in layers}))
        yield Note(
            "unknown-type",
            f"{_list([layer.name for layer in layers])} stay: the type {types} is not known",
        )


_NORM = re.compile("Batch_?Re?[Nn]orm|Batch_?Norm|SyncBN|BN$")


def _taken(plan: Plan) -> list[AffineLayer]:
    """The affine layers that were folded or merged."""
    taken = [a for fold in plan.folds for a in (*fold.layers_before, *fold.layers_behind)]
    return taken + [a for merge in plan.merges for a in merge.layers]


def _untrained(plan: Plan) -> Iterator[Note]:
    """A factor of 0 is folded as Caffe computes it, and is hardly ever meant."""
    names = {
        a.layer.name: None for a in _taken(plan) if a.layer.type == "BatchNorm" and _factor(a) == 0
    }
    if names:
        yield Note(
            "untrained",
            f"the moving-average factor is 0 in {_list(list(names))}, as in a BatchNorm that was "
            "never trained: its mean and variance count as 0",
        )


def _factor(layer: AffineLayer) -> float:
    """The moving-average factor of a BatchNorm, 1 where it has none."""
    blobs = layer.constants.blobs
    return float(blobs[2][0]) if len(blobs) > 2 and blobs[2].size == 1 else 1.0


def _disagreements(facts: Facts) -> Iterator[Note]:
    names = [
        facts.graph.layers[at].name for at in range(len(facts.graph.layers)) if facts.lacks_bias(at)
    ]
    if names:
        yield Note(
            "no-bias-blob",
            f"the prototxt implies a bias and the weights hold none in {_list(names)}; the weights "
            "are followed",
        )


def _two_blobs(plan: Plan) -> Iterator[Note]:
    names = [
        a.layer.name
        for a in _taken(plan)
        if a.layer.type == "BatchNorm" and len(a.constants.blobs) == 2
    ]
    if names:
        yield Note(
            "no-factor",
            f"the weights hold no moving-average factor for {_list(names)}, which Caffe would not "
            "load; it was taken as 1",
        )


def _unknown_fields(facts: Facts, plan: Plan) -> Iterator[Note]:
    """Fields that the schema lacks in layers that take part, once for each field."""
    graph = facts.graph
    linear = {fold.linear.layer.index for fold in plan.folds}
    merged = {merge.at for merge in plan.merges}
    taking_part = linear | {
        layer.index
        for at, layer in enumerate(graph.layers)
        if layer.type in AFFINE and (not plan.surgery.alive[at] or at in merged)
    }
    by_field: dict[str, list[str]] = defaultdict(list)
    for layer in graph.layers:
        if layer.index in taking_part:
            for field in facts.unknown.get(layer.index, ()):
                by_field[field].append(layer.name)
    for field in [field for field in by_field if field.endswith("quantization_param")]:
        names = by_field.pop(field)
        yield Note(
            "quantization-dropped",
            f"the '{show(field)}' of {_list(names)} was dropped, since it was of the old weights",
        )
    for field, names in by_field.items():
        yield Note(
            "unknown-field",
            f"the field '{show(field)}', which is not known to change the result, was left out of "
            f"account in {_list(names)}",
        )


def _unmatched(facts: Facts) -> Iterator[Note]:
    """Layers that only one of the two files has."""
    graph, names = facts.graph, facts.model.by_name
    missing = [layer for layer in graph.layers if layer.name not in names and _has_blobs(layer)]
    for index, layer in enumerate(missing):
        hint = closest(layer.name, names) if index < _HINTED else ""
        yield Note(
            "no-weights",
            f"the weights have no layer {layer.described}, and Caffe would leave it at random "
            f"values{hint}",
        )
    extra = extra_layers(graph, facts.model)
    if extra:
        yield Note(
            "extra-weights",
            f"the weights have layers with blobs that the prototxt does not have: {_list(extra)}; "
            "they are kept",
        )


def _has_blobs(layer: Layer) -> bool:
    """Whether a layer of this type has blobs."""
    if layer.type in AFFINE:
        return max(AFFINE[layer.type].blobs) > 0 and len(layer.bottoms) == 1
    return layer.type in LINEAR or layer.type in ("PReLU", "Normalize", "Embed")


def _other_states(facts: Facts, plan: Plan) -> Iterator[Note]:
    """Layers of other states that read a value which the fold removed or changed."""
    graph = facts.graph
    inside = {layer.index: at for at, layer in enumerate(graph.layers)}
    gone = {layer.index for layer in twins(graph, plan)}
    last = {blob: value for value, (blob, _) in enumerate(graph.net.inputs)}
    changed = {fold.linear.layer.name for fold in plan.folds}
    shared = {name for fold in plan.folds for name in fold.linear.layer.params if name}
    names = []
    for layer in graph.net.layers:
        if layer.index in inside:
            last.update(zip(layer.tops, graph.tops[inside[layer.index]]))
        elif layer.index not in gone:
            read = [last[blob] for blob in layer.bottoms if blob in last]
            is_changed = layer.name in changed and layer.type in LINEAR
            is_changed = is_changed or not shared.isdisjoint(layer.params)
            if is_changed or not all(_is_left(plan, value) for value in read):
                names.append(layer.name)
    if names:
        yield Note(
            "other-states",
            "layers outside the selected state read blobs, or have weights, that folding removed "
            f"or changed ({_list(names)}): the result is right for the selected state only",
        )


def _data_layers(facts: Facts) -> Iterator[Note]:
    """A net that still reads a data set is no deploy net."""
    names = [layer.name for layer in data_layers(facts.graph)]
    if names:
        yield Note(
            "data-layers",
            f"the result still has data layers ({_list(names)}), and what runs a deploy net does "
            "not load those (--deploy replaces them)",
        )


def _is_left(plan: Plan, value: int) -> bool:
    """Whether a value still stands under its name."""
    surgery = plan.surgery
    producer, slot = surgery.producer[value]
    if producer is None:
        return True
    is_written = surgery.alive[producer] and surgery.tops[producer][slot] == value
    return is_written and surgery.name(value) == surgery.graph.values[value].blob
