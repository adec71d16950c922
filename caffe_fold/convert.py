"""One fold from files to files: read, plan, write beside, prove, rename."""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain, repeat

from caffe_fold.affine import Refused
from caffe_fold.caffemodel import Caffemodel, Entry
from caffe_fold.check import check_graph, check_values
from caffe_fold.errors import CheckError, InputError, Path, show
from caffe_fold.facts import Facts
from caffe_fold.graph import Graph, build
from caffe_fold.inputs import open_prototxt, require_inputs
from caffe_fold.net import State, read_net
from caffe_fold.outputs import (
    Outputs,
    TemporaryPair,
    resolve_outputs,
    temporary_pair,
    write_pieces,
)
from caffe_fold.pairing import require_unfolded_pair
from caffe_fold.plan import Merge, Plan, Planner
from caffe_fold.report import Checked, Report
from caffe_fold.rewrite_caffemodel import (
    Blocked,
    Names,
    Piece,
    Span,
    rewritten_fold,
    rewritten_merge,
    rewritten_names,
)
from caffe_fold.rewrite_prototxt import rewrite_prototxt, twins
from caffe_fold.summary import summary

__all__ = ["fold"]


@dataclass(frozen=True)
class _Job:
    """One fold: the open inputs and what was asked for."""

    graph: Graph
    model: Caffemodel
    kept: frozenset[int]
    assume_global_stats: bool
    engine_caffe: bool
    check: bool


def fold(
    model: Path,
    weights: Path,
    output_model: Path | None = None,
    output_weights: Path | None = None,
    *,
    stages: Sequence[str] = (),
    level: int | None = None,
    keep: Sequence[str] = (),
    assume_global_stats: bool = False,
    allow_extra_weights: bool = False,
    engine_caffe: bool = False,
    dry_run: bool = False,
    check: bool = True,
) -> Report:
    """Fold a Caffe net and write the folded prototxt and caffemodel.

    :param model: the deploy prototxt; hyper-parameters are read from it alone.
    :param weights: the caffemodel.
    :param output_model: where the folded prototxt goes; by default beside ``model``,
        its stem plus ``_inference``.
    :param output_weights: where the folded caffemodel goes, likewise.
    :param stages: the stages of the net's state, beside phase TEST.
    :param level: the level of the net's state.
    :param keep: names of blobs that must keep their values.
    :param assume_global_stats: take BatchNorm layers as normalising by their stored
        statistics even where the prototxt says otherwise.
    :param allow_extra_weights: go on where the weights have a BatchNorm behind a layer
        for which the prototxt has none.
    :param engine_caffe: set ``engine: CAFFE`` on 1x1 convolutions.
    :param dry_run: plan and compute, and write nothing.
    :param check: re-read what was written and compare it with the original before it
        gets its name.
    :returns: what was folded, what stayed and why.
    :raises InputError: if an input is not what it has to be; the file and the place are
        named. PrototxtError and CaffemodelError are kinds of it.
    :raises OutputError: if the outputs cannot be written.
    :raises CheckError: if what was written is not what was planned.

    Whatever is raised, the inputs are untouched and no output is left half done.
    """
    require_inputs(model, weights)
    outputs = resolve_outputs(model, weights, output_model, output_weights)
    net = read_net(open_prototxt(model))
    state = State(
        "TEST",
        net.state.level if level is None else level,
        net.state.stages | frozenset(stages),
    )
    graph = build(net, state)
    with Caffemodel.open(weights) as caffemodel:
        if not allow_extra_weights:
            require_unfolded_pair(graph, caffemodel)
        kept = frozenset(_kept(graph, name) for name in keep)
        job = _Job(graph, caffemodel, kept, assume_global_stats, engine_caffe, check)
        return _until_computable(job, outputs, dry_run)


def _kept(graph: Graph, name: str) -> int:
    """The final value of a blob name."""
    if name not in graph.last:
        close = difflib.get_close_matches(name, graph.last, 1)
        hint = f"; the closest is '{show(close[0])}'" if close else ""
        raise InputError(
            f"{show(os.fspath(graph.net.document.path))}: no blob is named '{show(name)}'{hint}"
        )
    return graph.last[name]


def _until_computable(job: _Job, outputs: Outputs, dry_run: bool) -> Report:
    """Plan and write; where computing shows that a fold does not fit its number type,
    plan anew without it. Each turn refuses one layer more, so this ends."""
    blocked: dict[int, Refused] = {}
    while True:
        facts = Facts(job.graph, job.model, job.assume_global_stats, blocked)
        plan = Planner(facts, job.kept).plan()
        try:
            return _carry_out(job, facts, plan, outputs, dry_run)
        except Blocked as found:
            if found.layer_index in blocked:
                raise CheckError(f"planning does not settle: {found}") from found
            blocked = {**blocked, found.layer_index: found.refusal}


def _carry_out(job: _Job, facts: Facts, plan: Plan, outputs: Outputs, dry_run: bool) -> Report:
    text = rewrite_prototxt(job.graph, plan, job.engine_caffe)
    pieces = list(_pieces(job, plan))
    size = sum(piece.size for piece in pieces)
    report = summary(facts, plan, outputs, text, size)
    if dry_run:
        write_pieces(job.model, pieces, None)
        return report
    with temporary_pair(outputs) as pair:
        pair.model.write_bytes(text)
        write_pieces(job.model, pieces, pair.weights)
        checked = _prove(job, plan, pair, size) if job.check else None
        pair.commit()
    return replace(report, written=True, checked=checked)


def _pieces(job: _Job, plan: Plan) -> Iterator[Piece]:
    """The new caffemodel, from its first byte to its last."""
    model, places = job.model, _places(job.graph)
    folds = {fold.at: fold for fold in plan.folds}
    merges = {merge.at: merge for merge in plan.merges}
    gone = _gone(job.graph, plan)
    new_behind = _new_entries(model, plan)
    end = 0
    for entry in model.entries:
        yield Span(end, entry.start)
        end = entry.end
        at = next(places[entry.name]) if entry.name in places else None
        if entry.name in gone:
            pass
        elif at in folds:
            yield from rewritten_fold(model, entry, folds[at], _names(plan, job.graph, at))
        elif at in merges:
            yield from rewritten_merge(model, entry, merges[at], _names(plan, job.graph, at))
        elif at is not None and _is_renamed(plan, job.graph, at):
            yield from rewritten_names(model, entry, _names(plan, job.graph, at))
        else:
            yield Span(entry.start, entry.end)
        for merge in new_behind.get(entry.index, ()):
            yield from rewritten_merge(model, None, merge, _names(plan, job.graph, merge.at))
    yield Span(end, model.source.size)


def _places(graph: Graph) -> dict[str, Iterator[int]]:
    """The places of the layers of each name, one for each entry of that name. Layers
    without weights may share a name; the last place serves all further entries."""
    found: dict[str, list[int]] = {}
    for at, layer in enumerate(graph.layers):
        found.setdefault(layer.name, []).append(at)
    return {name: chain(ats, repeat(ats[-1])) for name, ats in found.items()}


def _gone(graph: Graph, plan: Plan) -> set[str]:
    """Names of layers that the new prototxt no longer has."""
    removed = {layer.index for layer in twins(graph, plan)}
    removed |= {layer.index for at, layer in enumerate(graph.layers) if not plan.surgery.alive[at]}
    left = {layer.name for layer in graph.net.layers if layer.index not in removed}
    return {layer.name for layer in graph.net.layers if layer.index in removed} - left


def _new_entries(model: Caffemodel, plan: Plan) -> dict[int, list[Merge]]:
    """Merged layers that had no entry, as some files have none for a Power, by the entry of
    their run behind which theirs goes."""
    found: dict[int, list[Merge]] = {}
    for merge in plan.merges:
        if merge.keeper.layer.name not in model.by_name:
            entries: list[Entry] = [e for layer in merge.layers for e in layer.entries]
            found.setdefault(max(e.index for e in entries), []).append(merge)
    return found


def _is_renamed(plan: Plan, graph: Graph, at: int) -> bool:
    names = _names(plan, graph, at)
    return any(name is not None for name in (*names.bottoms, *names.tops))


def _names(plan: Plan, graph: Graph, at: int) -> Names:
    """The names of a layer's bottoms and tops that changed."""
    layer, surgery = graph.layers[at], plan.surgery
    pairs = ((layer.bottoms, surgery.bottom_names[at]), (layer.tops, surgery.top_names[at]))
    bottoms, tops = (tuple(None if a == b else b for a, b in zip(old, new)) for old, new in pairs)
    return Names(bottoms, tops)


def _prove(job: _Job, plan: Plan, pair: TemporaryPair, size: int) -> Checked:
    """Read both written files anew and compare them with what was planned."""
    try:
        graph = build(read_net(open_prototxt(pair.model)), job.graph.state)
        check_graph(plan, job.graph, graph)
        written = os.path.getsize(pair.weights)
        if written != size:
            raise CheckError(f"{written} bytes of weights were written and {size} were planned")
        with Caffemodel.open(pair.weights) as caffemodel:
            return check_values(plan, job.model, Facts(graph, caffemodel, job.assume_global_stats))
    except (InputError, Refused) as error:
        raise CheckError(f"what was written cannot be read again: {error}") from error
