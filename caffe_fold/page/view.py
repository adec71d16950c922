"""A page in the words and numbers that the template prints and the script draws."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from caffe_fold.errors import show
from caffe_fold.inspection.inspection import Inspection
from caffe_fold.inspection.layers import LayerFacts
from caffe_fold.inspection.table import gain_text, outcome, shape_text, without_weights
from caffe_fold.page.charts import Chart, chart
from caffe_fold.page.page import Page
from caffe_fold.page.picture import Picture
from caffe_fold.quantization.readiness import LayerReadiness, Weights
from caffe_fold.quantization.result import Equalized
from caffe_fold.quantization.words import why_hurt
from caffe_fold.report import size_text
from caffe_fold.verification.result import Verification, coverage_lines

__all__ = ["Fact", "Int8Row", "View", "drawing", "view_of"]

_MOST_HURT = 20
# Beyond this many boxes each chain is drawn as one.
_MANY = 100


@dataclass(frozen=True)
class Fact:
    """One number of the summary; ``sign`` is "good", "bad" or ""."""

    label: str
    value: str
    sign: str = ""


@dataclass(frozen=True)
class Int8Row:
    """One layer under int8. ``cells`` are numbers in each of its states."""

    at: int
    layer: str
    type: str
    is_hurt: bool
    why: str
    channels: int
    cells: tuple[tuple[str, ...], ...]
    least_bits: str
    dead: int
    small: Chart
    large: Chart


@dataclass(frozen=True)
class Balanced:
    """An equalised pair; ``before`` and ``after`` are the largest output range of its first
    layer by the median one, ``factors`` from the smallest to the largest."""

    first: str
    second: str
    factors: str
    before: str
    after: str


@dataclass(frozen=True)
class View:
    """All that the template prints."""

    title: str
    files: tuple[tuple[str, str], ...]
    facts: tuple[Fact, ...]
    warnings: tuple[str, ...]
    page: Page
    takes: tuple[LayerFacts, ...]
    others: tuple[LayerFacts, ...]
    stays: tuple[LayerFacts, ...]
    shown: tuple[LayerFacts, ...]
    int8: tuple[Int8Row, ...]
    hurt: tuple[Int8Row, ...]
    unread: tuple[str, ...]
    verification: Verification | None
    covered: tuple[str, ...]
    equalized: Equalized | None
    balanced: tuple[Balanced, ...]


def view_of(page: Page) -> View:
    """Put a page in words."""
    inspection = page.inspection
    found = inspection.readiness
    rows = [] if found is None else [_int8(layer) for layer in _worst_first(found.layers)]
    layers = inspection.layers
    equalized = None if page.report is None else page.report.equalized
    return View(
        _title(inspection),
        tuple(_files(page)),
        tuple(_facts(page)),
        tuple(_warnings(page)),
        page,
        tuple(la for la in layers if la.fate.kind == "takes"),
        tuple(la for la in layers if la.fate.kind in ("becomes", "removed")),
        tuple(la for la in layers if la.fate.reason),
        tuple(la for la in layers if la.role != "other"),
        tuple(rows),
        tuple(row for row in rows if row.is_hurt)[:_MOST_HURT],
        () if found is None else found.unread,
        page.verification,
        () if page.verification is None else tuple(coverage_lines(page.verification)),
        equalized,
        () if equalized is None else tuple(_balanced(equalized)),
    )


def _title(inspection: Inspection) -> str:
    name = show(os.path.basename(inspection.model), 60)
    return f"What folding does to {name}"


def _files(page: Page) -> list[tuple[str, str]]:
    found = [("prototxt", show(page.inspection.model, 500))]
    if page.inspection.weights is not None:
        found.append(("weights", show(page.inspection.weights, 500)))
    if page.report is not None and page.report.written:
        found.append(("folded prototxt", show(page.report.output_model, 500)))
        found.append(("folded weights", show(page.report.output_weights, 500)))
    elif page.verification is not None:
        found.append(("folded prototxt", show(page.verification.folded_model, 500)))
        found.append(("folded weights", show(page.verification.folded_weights, 500)))
    return found


def _facts(page: Page) -> list[Fact]:
    inspection, report = page.inspection, page.report
    facts = [Fact("layers", f"{inspection.before} → {inspection.after}")]
    for total in inspection.totals:
        if total.before != total.after:
            facts.append(Fact(show(total.type, 40), f"{total.before} → {total.after}"))
    stays = sum(bool(layer.fate.reason) for layer in inspection.layers)
    facts.append(Fact("stay, with a reason", str(stays), "bad" if stays else "good"))
    if report is not None:
        sizes = (size_text(report.before.weights_bytes), size_text(report.after.weights_bytes))
        facts.append(Fact("weights", " → ".join(sizes)))
        if report.equalized is not None:
            facts.append(Fact("pairs equalised", str(len(report.equalized.pairs))))
        if report.checked is not None:
            facts.append(Fact("layers re-read and compared", str(report.checked.layers), "good"))
        elif not report.written:
            facts.append(Fact("written", "nothing: a dry run"))
    if page.verification is not None:
        passed = page.verification.passed
        facts.append(
            Fact("verification", "pass" if passed else "fail", "good" if passed else "bad")
        )
    if inspection.readiness is not None and inspection.readiness.layers:
        hurt, count = len(inspection.readiness.hurt), len(inspection.readiness.layers)
        is_equalized = any(la.equalized is not None for la in inspection.readiness.layers)
        label = "layers int8 hurts, once equalised" if is_equalized else "layers int8 hurts"
        facts.append(Fact(label, f"{hurt} of {count}", "bad" if hurt else "good"))
    return facts


def _warnings(page: Page) -> list[str]:
    found = [page.note] if page.note else []
    if page.inspection.weights is None:
        found.append(without_weights())
    if page.report is not None:
        found += [note.message for note in (*page.report.warnings, *page.report.notes)]
    return found


# ---- int8 ----


def _worst_first(layers: Sequence[LayerReadiness]) -> list[LayerReadiness]:
    return sorted(layers, key=lambda layer: layer.last.sqnr)


def _int8(layer: LayerReadiness) -> Int8Row:
    states, last = layer.states, layer.last
    live = last.bits[last.alive]
    weights = [weights for _, weights in states]
    return Int8Row(
        layer.at,
        show(layer.layer),
        show(layer.type, 40),
        layer.is_hurt,
        why_hurt(layer),
        int(last.ranges.size),
        (
            tuple(map(_decibels, weights)),
            tuple(_ratio(state.spread) for state in weights),
            tuple(f"{state.largest_bias:.3g}" for state in weights),
            tuple(_ratio(state.bias_to_weights) for state in weights),
        ),
        f"{live.min():.1f}" if live.size else "–",
        layer.dead,
        chart(states, 120, 36),
        chart(states, 420, 150),
    )


def _decibels(weights: Weights) -> str:
    return "exact" if math.isinf(weights.sqnr) else f"{weights.sqnr:.1f}"


def _ratio(value: float) -> str:
    if not math.isfinite(value):
        return "–"
    return f"{value:,.0f}" if value >= 100 else f"{value:.2g}"


def _balanced(equalized: Equalized) -> Iterator[Balanced]:
    ranges = {found.layer: found.ratios for found in equalized.ranges}
    for pair in equalized.pairs:
        before, after = map(_ratio, ranges[pair.first])
        factors = f"{pair.smallest:.3g} to {pair.largest:.3g}"
        yield Balanced(show(pair.first), show(pair.second), factors, before, after)


# ---- What the script draws ----


def drawing(page: Page) -> dict[str, Any]:
    """The pictures and the layers in them, as plain data."""
    layers = page.inspection.layers
    found = page.inspection.readiness
    numbers = {la.at: la for la in found.layers} if found is not None else {}
    used = {at for picture in (page.before, page.after) for box in picture.boxes for at in box}
    inputs = {
        at: {"name": show(page.inputs[at - len(layers)]), "type": "input", "kind": "input"}
        for at in used
        if at >= len(layers)
    }
    return {
        "layers": [_drawn(layer, numbers.get(layer.at)) for layer in layers],
        "inputs": inputs,
        "before": _picture(page.before),
        "after": _picture(page.after),
    }


def _drawn(layer: LayerFacts, numbers: LayerReadiness | None) -> dict[str, Any]:
    facts = [["line of the prototxt", str(layer.line)]]
    facts.append(["reads", ", ".join(map(show, layer.bottoms)) or "–"])
    facts.append(["writes", ", ".join(map(show, layer.tops)) or "–"])
    if layer.shapes:
        facts.append(["blobs", ", ".join(map(shape_text, layer.shapes))])
    if layer.shapes and layer.parameters is not None:
        facts.append(["parameters", f"{layer.parameters:,}"])
    if layer.gain is not None:
        facts.append(["gain", gain_text(layer.gain)])
    if numbers is not None:
        decibels = " → ".join(_decibels(weights) for _, weights in numbers.states)
        facts.append(["int8 SQNR", f"{decibels} dB"])
    kind = "plain" if layer.fate.kind == "stays" and not layer.fate.reason else layer.fate.kind
    return {
        "name": show(layer.name),
        "type": show(layer.type, 40),
        "kind": kind,
        "role": layer.role,
        "says": "" if layer.fate.kind == "same" else outcome(layer.fate),
        "facts": facts,
    }


def _picture(picture: Picture) -> dict[str, Any]:
    return {
        "boxes": picture.boxes,
        "arrows": picture.arrows,
        "chains": picture.chains,
        "closed": len(picture.boxes) > _MANY,
    }
