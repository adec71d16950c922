"""Verifies a net that no engine runs whole: every fold alone, and what part of it runs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from caffe_fold.errors import EngineMissing, show
from caffe_fold.verification.cut import Section, folds_alone, parts
from caffe_fold.verification.engine import SPECIAL, Engine, EngineError
from caffe_fold.verification.match import Matching, Pair
from caffe_fold.verification.result import BlobResult
from caffe_fold.verification.session import Outcome, Session, run_section
from caffe_fold.verification.shapes import Shape
from caffe_fold.verification.standard import kind_to_run

__all__ = ["in_parts"]


def in_parts(
    session: Session,
    engines: Sequence[Engine],
    matching: Matching,
    shapes: Mapping[int, Shape],
    reasons: list[str],
) -> Outcome:
    """Verify in parts, on the engine that knows most of the net's layers."""
    ranked = _ranked(session, engines, matching, shapes, reasons)
    outcome = Outcome(ranked[0][0], "parts")
    for engine, section in ranked:
        try:
            found = run_section(session, engine, section, "parts", as_is=False)
        except EngineError as error:
            outcome.notes.append(f"{engine.name} does not run the rest: {error}")
            continue
        outcome.engine = engine
        outcome.blobs += found.blobs
        outcome.skipped |= found.skipped
        outcome.notes += _left_out(session, engine, section)
        break
    for engine in dict.fromkeys(engine for engine, _ in ranked):
        proved = {blob.layer for blob in outcome.blobs if blob.section == "fold"}
        folds = [p for p in matching.pairs if p.is_fold and session.can_be_alone(p)]
        left = [p for p in folds if p.layer not in proved]
        outcome.blobs += _alone(session, engine, left, shapes)
    return outcome


def _ranked(
    session: Session,
    engines: Sequence[Engine],
    matching: Matching,
    shapes: Mapping[int, Shape],
    reasons: list[str],
) -> list[tuple[Engine, Section]]:
    """The engines, each with the part of the net that it may run, the largest first. A Python
    layer runs a module of the user's, so an engine may also run the net without those."""
    has_python = any(layer.type == "Python" for layer in session.a.graph.layers)
    found: list[tuple[Engine, Section]] = []
    for engine in engines:
        try:
            known = engine.known()
        except EngineMissing as error:
            if len(engines) == 1:
                raise
            if str(error) not in reasons:
                reasons.append(str(error))
            continue
        found.append((engine, parts(session.a, session.b, matching, shapes, known)))
        if has_python and "Python" in known:
            known -= {"Python"}
            found.append((engine, parts(session.a, session.b, matching, shapes, known)))
    return sorted(found, key=lambda pair: len(pair[1].cut))


def _left_out(session: Session, engine: Engine, section: Section) -> list[str]:
    """Which layers were cut out, by type, those first that the engine does not know."""
    if not section.cut:
        return []
    known, layers = engine.known(), session.a.graph.layers
    kinds = {at: kind_to_run(session.a, at) for at in section.cut}
    unknown = Counter(
        kind if kind in SPECIAL else layers[at].type
        for at, kind in kinds.items()
        if kind not in known
    )
    others = len(kinds) - sum(unknown.values())
    words = [f"{count} {show(name)}" for name, count in unknown.items()]
    words += [f"{others} that hang on them"] if others else []
    return [f"cut out for {engine.name}: {', '.join(words)}"]


def _alone(
    session: Session, engine: Engine, pairs: Sequence[Pair], shapes: Mapping[int, Shape]
) -> list[BlobResult]:
    """The folds alone, in one net of unconnected pieces; where the engine does not run
    that, in halves, down to the fold that it does not run."""
    if not pairs:
        return []
    section = folds_alone(session.a, session.b, pairs, shapes, engine.known())
    if not section.pairs:
        return []
    try:
        return run_section(session, engine, section, "fold", as_is=False).blobs
    except EngineError:
        if len(pairs) == 1:
            return []
    middle = len(pairs) // 2
    halves = (pairs[:middle], pairs[middle:])
    return [blob for half in halves for blob in _alone(session, engine, half, shapes)]
