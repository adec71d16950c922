"""Runs sections of the two nets in an engine, and compares their values."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from caffe_fold.layers.affine import Refused
from caffe_fold.verification.compare import SQUASHING, differ, worst
from caffe_fold.verification.cut import Section
from caffe_fold.verification.detections import differ_in_rows, is_detections
from caffe_fold.verification.engine import Array, Engine, EngineError, Job, Values
from caffe_fold.verification.inputs import Wanted, make_inputs
from caffe_fold.verification.match import Matching, Pair
from caffe_fold.verification.result import BlobResult, Timing
from caffe_fold.verification.sides import Side
from caffe_fold.verification.text import as_it_is, write_draft

__all__ = ["UNPROVED", "Outcome", "Session", "measure", "run_section"]


# Blob::Reshape (BVLC, blob.cpp) counts in int.
_LARGEST_BLOB = (1 << 31) - 1

UNPROVED = "no engine ran this fold, so nothing proves it"


@dataclass(frozen=True)
class Session:
    """Both nets, what is asked for, and a folder to write in. ``skip`` are names of blobs
    of the folded net that hold something else, as with another scale."""

    a: Side
    b: Side
    wanted: Wanted
    tolerance: float
    skip: tuple[str, ...]
    folder: Path

    def can_be_alone(self, pair: Pair) -> bool:
        """Whether a fold computes the same on the same input: neither what it reads nor
        what it writes is skipped."""
        layer = self.b.graph.layers[self.b.places[pair.layer]]
        return pair.blob not in self.skip and set(self.skip).isdisjoint(layer.bottoms)


@dataclass
class Outcome:
    """What an engine found. ``skipped`` are layers that it ran and whose blobs are not
    compared; ``jobs`` and ``inputs`` are those of the whole nets."""

    engine: Engine
    how: str
    blobs: list[BlobResult] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    skipped: set[str] = field(default_factory=set)
    jobs: Sequence[Job] = ()
    inputs: Mapping[str, Array] = field(default_factory=dict)

    def finished(self, session: Session, matching: Matching) -> list[BlobResult]:
        """All results, worst first; a fold that nothing proved is a failure."""
        proved = {blob.layer for blob in self.blobs}
        for pair in matching.pairs:
            if pair.is_fold and pair.layer not in proved and session.can_be_alone(pair):
                self.blobs.append(_result(session, pair, "fold", (), problem=UNPROVED))
        return worst(self.blobs)


def run_section(
    session: Session, engine: Engine, section: Section, name: str, as_is: bool
) -> Outcome:
    """Run a section of both nets on all samples.

    :raises EngineError: where the engine does not run it.
    """
    jobs = _jobs(session, section, name, as_is)
    how = {"net": "whole" if as_is else "rewritten"}.get(name, "parts")
    outcome = Outcome(engine, how, jobs=jobs)
    for sample in range(session.wanted.samples):
        outcome.inputs = _inputs(session, section, name, sample)
        original, folded = engine.run(jobs, outcome.inputs)
        for pair in section.pairs:
            if not (pair.original in original and pair.folded in folded):
                continue
            if pair.blob in session.skip:
                outcome.skipped.add(pair.layer)
            else:
                outcome.blobs.append(_compared(session, pair, name, original, folded))
    return outcome


def _jobs(session: Session, section: Section, name: str, as_is: bool) -> list[Job]:
    if as_is:
        return [
            as_it_is(session.a, section.original.inputs),
            as_it_is(session.b, section.folded.inputs),
        ]
    try:
        return [
            write_draft(session.a, section.original, section.shapes, session.folder / f"{name}a"),
            write_draft(session.b, section.folded, section.shapes, session.folder / f"{name}b"),
        ]
    except Refused as refusal:
        raise EngineError(f"a layer has no standard equal: {refusal.sentence}") from None


def _inputs(session: Session, section: Section, name: str, sample: int) -> dict[str, Array]:
    """What goes into a section, by key. The nets' own inputs are the user's; what a cut
    made an input is random. Folds alone have none of the nets' own.

    :raises EngineError: where one is no blob of Caffe.
    """
    for key in section.original.inputs.values():
        shape = section.shapes[key]
        if min(shape, default=1) < 1 or math.prod(shape) > _LARGEST_BLOB:
            raise EngineError(f"an input of the shape {shape} is no blob of Caffe")
    graph = session.a.graph
    sources = set(session.a.graph.sources()) if name != "fold" else set()
    keys = section.original.inputs
    own = {graph.values[v].blob: k for v, k in keys.items() if v in sources}
    labels = [blob for blob, key in own.items() if len(section.shapes[key]) == 1]
    shapes = {blob: section.shapes[key] for blob, key in own.items()}
    made = make_inputs(shapes, labels, session.wanted, sample) if shapes else {}
    found: dict[str, Array] = {own[blob]: value for blob, value in made.items()}
    for value, key in keys.items():
        if key not in found:
            rng = np.random.default_rng((session.wanted.seed, sample, value, 1))
            found[key] = rng.standard_normal(section.shapes[key], np.float32)
    return found


def _compared(
    session: Session, pair: Pair, section: str, original: Values, folded: Values
) -> BlobResult:
    graph, at = session.b.graph, session.b.places[pair.layer]
    kind, bottoms = graph.layers[at].type, graph.bottoms[at]
    a, b = original[pair.original], folded[pair.folded]
    if is_detections(kind, a.shape) and is_detections(kind, b.shape):
        found = differ_in_rows(a, b, session.tolerance)
    else:
        found = differ(a, b)
        if kind in SQUASHING and bottoms[0] in folded:
            reference = float(np.abs(folded[bottoms[0]]).max(initial=0.0))
            found = replace(found, reference=reference if math.isfinite(reference) else 0.0)
    numbers = (found.absolute, found.relative, found.largest)
    return _result(session, pair, section, found.shape, numbers, found.problem)


def _result(
    session: Session,
    pair: Pair,
    section: str,
    shape: tuple[int, ...],
    numbers: tuple[float, float, float] = (math.inf, math.inf, 0.0),
    problem: str = "",
) -> BlobResult:
    layers = session.a.graph.layers
    return BlobResult(
        blob=pair.blob,
        layer=pair.layer,
        type=session.b.graph.layers[session.b.places[pair.layer]].type,
        stands_for=tuple(layers[at].name for at in (*pair.before, *pair.behind)),
        section=section,
        shape=shape,
        absolute=numbers[0],
        relative=numbers[1],
        largest=numbers[2],
        passed=not problem and numbers[1] <= session.tolerance,
        problem=problem,
    )


def measure(session: Session, outcome: Outcome, rounds: int) -> Timing:
    """The median time of a forward pass of each net, taken in turns."""
    seconds = outcome.engine.time(outcome.jobs, outcome.inputs, rounds)
    original, folded = (statistics.median(taken) for taken in seconds)
    counts = [len(side.graph.layers) for side in (session.a, session.b)]
    return Timing(rounds, original, folded, *counts)
