"""One fold from files to files: read, plan, write beside, prove, rename."""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from caffe_fold.arguments import require_names, require_paths, require_shapes
from caffe_fold.choices import Choices
from caffe_fold.errors import CheckError, InputError, Path, show, writing
from caffe_fold.hints import closest
from caffe_fold.inputs import open_prototxt, require_inputs
from caffe_fold.layers.affine import Refused
from caffe_fold.named import NamedTuple
from caffe_fold.nets.graph import Graph, build
from caffe_fold.nets.net import State, read_net
from caffe_fold.nets.prototxt import parse
from caffe_fold.planning.facts import Facts
from caffe_fold.planning.pairing import require_unfolded_pair
from caffe_fold.planning.plan import Plan
from caffe_fold.planning.planner import Planner
from caffe_fold.report import Checked, Note, Report
from caffe_fold.summary import Files, summary
from caffe_fold.weights.caffemodel import Caffemodel
from caffe_fold.weights_files import WeightsFile, opened_weights
from caffe_fold.writing.check import check_graph, check_values
from caffe_fold.writing.entries import size_of
from caffe_fold.writing.folded_values import until_unblocked
from caffe_fold.writing.outputs import Outputs, require_ending, resolve_outputs
from caffe_fold.writing.pair import TemporaryPair, temporary_pair
from caffe_fold.writing.rewrite_caffemodel import rewrite_caffemodel
from caffe_fold.writing.rewrite_prototxt import rewrite_prototxt
from caffe_fold.writing.write import write_parts

if TYPE_CHECKING:
    from caffe_fold.page.target import PageTarget
    from caffe_fold.quantization.result import Equalized
    from caffe_fold.verification.result import Verification

__all__ = ["fold", "kept_values", "read_graph", "until_computable"]

T = TypeVar("T")


class _Job(NamedTuple):
    """One fold: the open inputs, what was asked for, and where the results go. ``original``
    is the prototxt as it was given, which ``graph`` is not with ``deploy``. ``equalize`` is
    None, or the names of the blobs that keep their values. Without a ``pair`` nothing is
    written."""

    graph: Graph
    original: bytes
    model: Caffemodel
    file: WeightsFile
    choices: Choices
    engine_caffe: bool
    equalize: Sequence[str] | None
    check: bool
    verify: Mapping[str, Any] | None
    threads: int | None
    outputs: Outputs
    pair: TemporaryPair | None
    dry_run: bool
    page: PageTarget | None


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
    bn_layout: str | None = None,
    bn_variance: str = "var",
    weights_dtype: str | None = None,
    drop_quantization: bool = False,
    allow_extra_weights: bool = False,
    deploy: bool = False,
    input_shapes: Mapping[str, Sequence[int]] | None = None,
    engine_caffe: bool = False,
    equalize: bool = False,
    dry_run: bool = False,
    check: bool = True,
    verify: Mapping[str, Any] | None = None,
    threads: int | None = None,
    html: Path | None = None,
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
    :param bn_layout: the layout of BatchNorm layers of four or five blobs whose files do
        not tell it: "nvidia", "digits" or "intel".
    :param bn_variance: what the fourth blob of a "BN" layer holds: "var", the variance,
        or "invstd", the inverse standard deviation.
    :param weights_dtype: the number type of folded blobs, "float16", "float32" or
        "float64"; None for the widest among the blobs that go into a fold.
    :param drop_quantization: fold layers with quantization parameters, and drop those.
    :param allow_extra_weights: go on where the weights have a BatchNorm behind a layer
        for which the prototxt has none.
    :param deploy: make a deploy net of one for training and testing: data layers become
        Input layers, losses and accuracies go.
    :param input_shapes: with ``deploy``, shapes of data layers' tops by their names.
    :param engine_caffe: set ``engine: CAFFE`` on 1x1 convolutions.
    :param equalize: balance the weights of linear layers that follow each other, for
        int8: outputs stay, and blobs between such layers change their scale.
    :param dry_run: plan and compute, and write nothing.
    :param check: re-read what was written and compare it with the original before it
        gets its name.
    :param verify: where it is given, even if empty, both nets are run in an engine and
        compared before the result gets its name; it holds the options of ``verify``.
    :param threads: how many threads compute; None for one a core.
    :param html: where a page goes that shows the net and what was done; it gets its name
        after the pair, and with ``dry_run``, too.
    :returns: what was folded, what stayed and why.
    :raises InputError: if an input is not what it has to be; the file and the place are
        named. PrototxtError and CaffemodelError are kinds of it.
    :raises OutputError: if the outputs cannot be written.
    :raises CheckError: if what was written is not what was planned.
    :raises VerifyError: if the folded net computes something else.
    :raises EngineMissing: if it was to be verified, and no engine is there.
    :raises ExtraMissing: if a page was asked for and what makes it is not installed.

    Whatever is raised, the inputs are untouched and no output is left half done.
    """
    optional = {"output_model": output_model, "output_weights": output_weights, "html": html}
    require_paths(model=model, weights=weights, optional=optional)
    require_names(stages=stages, keep=keep)
    require_shapes(input_shapes)
    if not (verify is None or isinstance(verify, Mapping)):
        raise InputError(f"verify is {verify!r:.100}; expected its options by name, as {{}}")
    if input_shapes and not deploy:
        raise InputError("input shapes are for --deploy alone, which is not given")
    choices = Choices(
        assume_global_stats, bn_layout, bn_variance, weights_dtype, drop_quantization
    ).known()
    if verify is not None and dry_run:
        raise InputError("a dry run writes nothing that could be verified; leave one of them out")
    kind = require_inputs(model, weights)
    outputs = resolve_outputs(model, weights, output_model, output_weights)
    require_ending(kind, weights, outputs.weights)
    graph = read_graph(model, stages, level)
    original = graph.net.document.text.encode("latin-1")
    with contextlib.ExitStack() as stack:
        page = None
        if html is not None:
            from caffe_fold.page.target import page_target

            files = (model, weights, outputs.model, outputs.weights)
            page = stack.enter_context(page_target(html, files))
        # Equalising works on files, in a dry run, too.
        pair = stack.enter_context(temporary_pair(outputs)) if equalize or not dry_run else None
        folder = pair.scratch if pair is not None and kind == "hdf5" else None
        shown = outputs.weights if folder is not None else ""
        opened = opened_weights(weights, kind, graph, folder, shown)
        with opened as file, file.open() as caffemodel:
            if deploy:
                graph = _deployed(graph, caffemodel, input_shapes or {})
            if not allow_extra_weights:
                require_unfolded_pair(graph, caffemodel)
            kept = kept_values(graph, keep)
            job = _Job(
                graph=graph,
                original=original,
                model=caffemodel,
                file=file,
                choices=choices,
                engine_caffe=engine_caffe,
                equalize=keep if equalize else None,
                check=check,
                verify=verify,
                threads=threads,
                outputs=outputs,
                pair=pair,
                dry_run=dry_run,
                page=page,
            )
            report = until_computable(
                graph, caffemodel, choices, kept, functools.partial(_carry_out, job)
            )
        # All that may fail is done before any file gets its name.
        if pair is not None and not dry_run:
            pair.commit(page.place if page is not None else None)
        elif page is not None:
            page.commit()
    return report


def read_graph(model: Path, stages: Sequence[str], level: int | None) -> Graph:
    """The graph of a prototxt in phase TEST, with more stages and maybe another level."""
    net = read_net(open_prototxt(model))
    state = State(
        "TEST",
        net.state.level if level is None else level,
        net.state.stages | frozenset(stages),
    )
    return build(net, state)


def _deployed(graph: Graph, model: Caffemodel, shapes: Mapping[str, Sequence[int]]) -> Graph:
    """The graph of the deploy net of a net."""
    from caffe_fold.deploying.deploy import deployed

    document = graph.net.document
    text = deployed(graph, model, {name: tuple(shape) for name, shape in shapes.items()})
    return build(read_net(parse(text, document.path)), graph.state)


def kept_values(graph: Graph, names: Sequence[str]) -> frozenset[int]:
    """The values that are to be kept, by the names of their blobs."""
    return frozenset(_kept(graph, name) for name in names)


def _kept(graph: Graph, name: str) -> int:
    """The final value of a blob name."""
    if name not in graph.last:
        path = show(os.fspath(graph.net.document.path))
        hint = closest(name, graph.last)
        raise InputError(f"{path}: no blob is named '{show(name)}'{hint}")
    return graph.last[name]


def until_computable(
    graph: Graph,
    model: Caffemodel,
    choices: Choices,
    kept: frozenset[int],
    carry_out: Callable[[Facts, Plan], T],
) -> T:
    """Plan and carry out; where computing shows that a fold does not fit its number type,
    plan anew without it."""

    def attempt(blocked: dict[int, Refused]) -> T:
        facts = Facts(graph, model, choices, blocked)
        return carry_out(facts, Planner(facts, kept).plan())

    return until_unblocked("planning", attempt)


def _carry_out(job: _Job, facts: Facts, plan: Plan) -> Report:
    """Write what is planned to the temporary files, if there are any, and prove it."""
    outputs, pair = job.outputs, job.pair
    text = rewrite_prototxt(job.graph, plan, job.engine_caffe)
    parts = list(rewrite_caffemodel(job.model, job.graph, plan, job.choices))
    report = summary(facts, plan, outputs, Files(job.original, text, job.file.path, size_of(parts)))
    if pair is None:
        write_parts(job.model, parts, None, job.threads)
        if job.page is not None:
            _write_page(job, job.page, facts, plan, report)
        return report
    with writing(outputs.model), open(pair.model, "wb") as prototxt:
        prototxt.write(text)
    graph = _written_graph(job, plan, pair)
    job.file.write(job.model, parts, pair.weights, graph, job.threads)
    checked = _prove(job, plan, pair, graph) if job.check else None
    equalized = None if job.equalize is None else _equalize(job, job.equalize, pair, graph)
    verified = _verify(job, pair, equalized) if job.verify is not None else None
    after = report.after._replace(weights_bytes=os.path.getsize(pair.weights))
    report = report._replace(checked=checked, after=after, equalized=equalized, verified=verified)
    report = report._replace(written=not job.dry_run, notes=_still_true(report))
    if job.page is not None:
        _write_page(job, job.page, facts, plan, report, (pair, graph))
    return report


def _write_page(
    job: _Job,
    page: PageTarget,
    facts: Facts,
    plan: Plan,
    report: Report,
    written: tuple[TemporaryPair, Graph] | None = None,
) -> None:
    """Write the page; int8 is told of the weights that were written, if they were equalised."""
    from caffe_fold.inspection.inspect import inspected
    from caffe_fold.page.page import page_of

    with contextlib.ExitStack() as stack:
        last: Facts | None = None
        names: list[str] = []
        if written is not None and report.equalized is not None and report.equalized.pairs:
            pair, graph = written
            opened = opened_weights(pair.weights, job.file.kind, graph, pair.scratch)
            model = stack.enter_context(stack.enter_context(opened).open())
            last = Facts(graph, model, job.choices)
            names = [name for found in report.equalized.pairs for name in found[:2]]
        inspection = inspected(facts, plan, report.weights, True, last, names)
        page.write(page_of(facts, plan, inspection, report, report.verified))


def _equalize(job: _Job, keep: Sequence[str], pair: TemporaryPair, graph: Graph) -> Equalized:
    """Equalise the folded weights, in their place."""
    from caffe_fold.quantization.equalize import equalize_weights

    file = (pair.weights, job.file.kind, pair.scratch)
    return equalize_weights(graph, *file, keep, job.check, job.threads)


def _still_true(report: Report) -> tuple[Note, ...]:
    """The notes without the one that nothing changes, where equalising changes something."""
    changes = report.equalized is not None and report.equalized.pairs
    return tuple(n for n in report.notes if not (changes and n.code == "nothing-to-fold"))


def _verify(job: _Job, pair: TemporaryPair, equalized: Equalized | None) -> Verification:
    """Run the pair that is written, and has no name yet, against the original: with
    ``deploy``, against the deploy net of the original. Blobs of another scale are left
    out."""
    from caffe_fold.verification.hook import require_verified

    document = job.graph.net.document
    text = document.text.encode("latin-1")
    given = None if text == job.original else text
    files = (document.path, job.file.path)
    options = dict(job.verify or {})
    if equalized is not None:
        options["skip"] = [*options.get("skip", ()), *equalized.blobs]
    return require_verified(files, given, pair, job.graph.state, job.choices, options)


def _written_graph(job: _Job, plan: Plan, pair: TemporaryPair) -> Graph:
    """The written prototxt, read anew and compared with what was planned."""
    try:
        graph = build(read_net(open_prototxt(pair.model)), job.graph.state)
    except InputError as error:
        raise CheckError(f"what was written cannot be read again: {error}") from error
    if job.check:
        check_graph(plan, job.graph, graph)
    return graph


def _prove(job: _Job, plan: Plan, pair: TemporaryPair, graph: Graph) -> Checked:
    """Read the written weights anew and compare what they compute with the original."""
    try:
        with job.file.reopen(pair.weights, graph) as caffemodel:
            return check_values(plan, job.model, Facts(graph, caffemodel, job.choices), job.threads)
    except (InputError, Refused) as error:
        raise CheckError(f"what was written cannot be read again: {error}") from error
