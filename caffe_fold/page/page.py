"""What the page shows, as data: everything that the template and the script are given."""

from __future__ import annotations

from dataclasses import dataclass

from caffe_fold.choices import Choices
from caffe_fold.inspection.inspect import computable_plan, inspected
from caffe_fold.inspection.inspection import Inspection
from caffe_fold.page.picture import Picture, after, before, picture
from caffe_fold.planning.facts import Facts
from caffe_fold.planning.plan import Plan
from caffe_fold.report import Report
from caffe_fold.verification.result import Verification
from caffe_fold.verification.session import Session

__all__ = ["Page", "page_of", "verification_page"]


@dataclass(frozen=True)
class Page:
    """A net before and after. ``inputs`` are the names of its values; ``report`` is None
    where nothing was folded, ``verification`` where no engine was asked. ``note`` is a
    sentence on the picture, or empty."""

    inspection: Inspection
    inputs: tuple[str, ...]
    before: Picture
    after: Picture
    report: Report | None
    verification: Verification | None
    note: str = ""


def page_of(
    facts: Facts,
    plan: Plan,
    inspection: Inspection,
    report: Report | None = None,
    verification: Verification | None = None,
    note: str = "",
) -> Page:
    """A plan and what became of it, as a page."""
    noted = frozenset(
        layer.at
        for layer in inspection.layers
        if layer.fate.reason or layer.fate.kind in ("becomes", "merges")
    )
    graph = facts.graph
    return Page(
        inspection,
        tuple(value.blob for value in graph.values),
        picture(graph, before(graph), noted),
        picture(graph, after(plan.surgery), noted),
        report,
        verification,
        note,
    )


def verification_page(session: Session, choices: Choices, result: Verification) -> Page:
    """A verified pair as a page. How it was folded is not on record, so that the picture is
    of what this fold does; where that is not the folded net, a note says so."""
    original, folded = session.a, session.b
    facts, plan = computable_plan(original.graph, original.caffemodel, choices)
    left = {la.name for la, alive in zip(facts.graph.layers, plan.surgery.alive) if alive}
    note = ""
    if left != {layer.name for layer in folded.graph.layers}:
        note = (
            "The folded net has other layers than the picture, which shows what folding does by "
            "the options given here: it was made with others, or by another tool."
        )
    if session.skip:
        note += (
            f"{' ' if note else ''}Blobs were skipped, as those are that equalising gives another "
            "scale: what is said of int8 is of the weights as folding alone makes them, and not of "
            "those in the folded file."
        )
    inspection = inspected(facts, plan, original.files.weights, int8=True)
    return page_of(facts, plan, inspection, verification=result, note=note)
