"""The public function: plan a fold and say of each layer what becomes of it."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path as FilePath

from caffe_fold.arguments import require_names, require_paths
from caffe_fold.choices import Choices
from caffe_fold.convert import kept_values, read_graph, until_computable
from caffe_fold.errors import Path
from caffe_fold.inputs import require_inputs, require_prototxt
from caffe_fold.inspection.inspection import Inspection
from caffe_fold.inspection.layers import layer_facts
from caffe_fold.inspection.stand_in import stand_in
from caffe_fold.nets.graph import Graph
from caffe_fold.planning.facts import Facts
from caffe_fold.planning.pairing import require_unfolded_pair
from caffe_fold.planning.plan import Plan
from caffe_fold.quantization.readiness import readiness
from caffe_fold.weights.caffemodel import Caffemodel
from caffe_fold.weights_files import opened_weights
from caffe_fold.writing.rewrite_caffemodel import rewrite_caffemodel
from caffe_fold.writing.write import write_parts

__all__ = ["computable_plan", "inspect", "inspected"]


def inspect(
    model: Path,
    weights: Path | None = None,
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
    int8: bool = False,
    html: Path | None = None,
) -> Inspection:
    """Say of each layer of a net what it is and what folding would do to it, and why.

    Nothing is written but the page. Without weights the plan is that of weights whose
    values are of no special kind: it does not see a layer that changes nothing, shared
    copies that differ, or numbers that are not finite.

    :param model: the deploy prototxt.
    :param weights: the caffemodel; None for the prototxt alone.
    :param int8: with weights, say also what int8 with one step a layer does to each
        folded layer (``Inspection.readiness``).
    :param html: where a page with the net's picture goes; it says ``int8``, too.

    The other parameters are those of ``fold``.

    :returns: the layers in the order of the file.
    :raises InputError: if an input is not what it has to be.
    :raises OutputError: if the page cannot be written.
    :raises ExtraMissing: if a page is asked for and what makes it is not installed.
    """
    require_paths(model=model, optional={"weights": weights, "html": html})
    require_names(stages=stages, keep=keep)
    choices = Choices(
        assume_global_stats, bn_layout, bn_variance, weights_dtype, drop_quantization
    ).known()
    with contextlib.ExitStack() as stack:
        page = None
        if html is not None:
            from caffe_fold.page.target import page_target

            page = stack.enter_context(page_target(html, (model, weights)))
        graph, caffemodel = stack.enter_context(_opened(model, weights, stages, level))
        if weights is not None and not allow_extra_weights:
            require_unfolded_pair(graph, caffemodel)

        kept = kept_values(graph, keep)
        found = computable_plan(graph, caffemodel, choices, kept, weights is not None)
        result = inspected(*found, weights, int8=int8 or page is not None)
        if page is not None:
            from caffe_fold.page.page import page_of

            page.write(page_of(*found, result))
            page.commit()
    return result


def computable_plan(
    graph: Graph,
    model: Caffemodel,
    choices: Choices,
    kept: frozenset[int] = frozenset(),
    has_weights: bool = True,
) -> tuple[Facts, Plan]:
    """The plan that a fold carries out. Its values are computed, as only then it shows which
    do not fit their number type, and written nowhere."""

    def compute(facts: Facts, plan: Plan) -> tuple[Facts, Plan]:
        if has_weights:
            parts = list(rewrite_caffemodel(model, graph, plan, choices))
            write_parts(model, parts, None)
        return facts, plan

    return until_computable(graph, model, choices, kept, compute)


def inspected(
    facts: Facts,
    plan: Plan,
    weights: Path | None,
    int8: bool,
    written: Facts | None = None,
    equalized: Sequence[str] = (),
) -> Inspection:
    """A plan as the facts of each layer; ``written`` and ``equalized`` as for ``readiness``."""
    return Inspection(
        os.fspath(facts.graph.net.document.path),
        None if weights is None else os.fspath(weights),
        layer_facts(facts, plan),
        readiness(facts, plan, written, equalized) if int8 and weights is not None else None,
    )


@contextlib.contextmanager
def _opened(
    model: Path, weights: Path | None, stages: Sequence[str], level: int | None
) -> Iterator[tuple[Graph, Caffemodel]]:
    """The graph and its weights, or their stand-in. Weights in HDF5 are read by way of a
    scratch file, which does not lie beside them: nothing is to be written there."""
    if weights is None:
        require_prototxt(model)
        graph = read_graph(model, stages, level)
        yield graph, stand_in(graph)
        return
    kind = require_inputs(model, weights)
    graph = read_graph(model, stages, level)
    scratch = FilePath(tempfile.gettempdir())
    with opened_weights(weights, kind, graph, scratch) as file, file.open() as caffemodel:
        yield graph, caffemodel
