"""The public function: which engine runs what, and what is made of its values."""

from __future__ import annotations

import contextlib
import math
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path as FilePath

from caffe_fold.arguments import require_names, require_paths, require_shapes
from caffe_fold.choices import Choices
from caffe_fold.errors import EngineMissing, InputError, Path, show
from caffe_fold.verification.cut import whole
from caffe_fold.verification.engine import SPECIAL, Engine, EngineError
from caffe_fold.verification.engines import engines_for
from caffe_fold.verification.inputs import Wanted, input_shapes
from caffe_fold.verification.match import Matching, match
from caffe_fold.verification.result import Coverage, Skipped, Verification
from caffe_fold.verification.run_parts import in_parts
from caffe_fold.verification.session import Outcome, Session, measure, run_section
from caffe_fold.verification.sides import Files, Side, open_side
from caffe_fold.verification.standard import kind_to_run, may_be_misread, standard_type
from caffe_fold.verification.structure import differences

__all__ = ["verify"]

# How an engine's refusal begins where it lacks a layer, and no input would help.
_UNKNOWN = "it does not know"


def verify(
    model: Path,
    weights: Path,
    folded_model: Path,
    folded_weights: Path,
    *,
    engine: str = "auto",
    caffe_python: str | None = None,
    input: Path | None = None,
    mean: Sequence[float] | None = None,
    scale: float | None = None,
    channel_order: str = "bgr",
    samples: int = 1,
    input_shapes: Mapping[str, Sequence[int]] | None = None,
    tolerance: float = 1e-4,
    skip: Sequence[str] = (),
    seed: int = 0,
    rounds: int = 0,
    stages: Sequence[str] = (),
    level: int | None = None,
    assume_global_stats: bool = False,
    bn_layout: str | None = None,
    bn_variance: str = "var",
    html: Path | None = None,
) -> Verification:
    """Run a net and the net folded from it in an engine, and compare their blobs.

    Each blob of the folded net is compared with the one of the original that it stands
    for: where a layer took others in, with what the last of them made. A net that no
    engine runs whole is cut: every fold is run alone, and the largest runnable part of
    the net.

    :param model: the original prototxt.
    :param weights: the original caffemodel.
    :param folded_model: the folded prototxt.
    :param folded_weights: the folded caffemodel.
    :param engine: "opencv", "caffe", or "auto" for the first that runs the net.
    :param caffe_python: the interpreter that has pycaffe; by default the one that
        CAFFE_FOLD_CAFFE_PYTHON names.
    :param input: an image, an .npy or an .npz (arrays by blob name); by default random
        pixels of 0 to 255 about their middle.
    :param mean: what is subtracted from the input: one number, or one a channel.
    :param scale: what it is multiplied by then.
    :param channel_order: "bgr" as Caffe's, or "rgb", for an image.
    :param samples: how many random inputs are tried.
    :param input_shapes: shapes (N, C, H, W) by blob name, where the net has none or has
        data layers, or to try another.
    :param tolerance: the largest difference that passes, as a part of the blob's largest
        value.
    :param skip: names of blobs that are not compared, as those whose scale ``equalize``
        changed; the linear layers beside them may have other weights.
    :param seed: of the random inputs.
    :param rounds: how many forward passes of each net are timed; 0 for none.
    :param stages: the stages of the nets' state, beside phase TEST.
    :param level: the level of the nets' state.
    :param assume_global_stats: as for ``fold``.
    :param bn_layout: as for ``fold``.
    :param bn_variance: as for ``fold``.
    :param html: where a page goes that shows the net, the blobs, and what folding does.
    :returns: each blob's difference, worst first, what else is not the same, and whether
        the folded net passes.
    :raises InputError: if a file is not what it has to be, or an input does not fit.
    :raises EngineMissing: if no engine is there; the message says what to install.
    :raises OutputError: if the page cannot be written.
    :raises ExtraMissing: if a page was asked for and what makes it is not installed.
    """
    require_paths(
        model=model,
        weights=weights,
        folded_model=folded_model,
        folded_weights=folded_weights,
        optional={"caffe_python": caffe_python, "input": input, "html": html},
    )
    require_names(stages=stages, skip=skip)
    require_shapes(input_shapes)
    shapes = {name: tuple(shape) for name, shape in (input_shapes or {}).items()}
    means = None if mean is None else tuple(mean)
    wanted = Wanted(input, means, scale, channel_order, samples, seed, shapes)
    if not 0 <= tolerance < math.inf:
        raise InputError(f"tolerance is {tolerance}; expected a number of 0 or more")
    if rounds < 0:
        raise InputError(f"rounds is {rounds}; expected 0 or more")
    choices = Choices(assume_global_stats, bn_layout, bn_variance).known()
    engines = engines_for(engine, caffe_python)
    pairs = (Files(model, weights), Files(folded_model, folded_weights))
    with contextlib.ExitStack() as stack:
        page = None
        if html is not None:
            from caffe_fold.page.target import page_target

            files = (model, weights, folded_model, folded_weights, input)
            page = stack.enter_context(page_target(html, files))
        folder = stack.enter_context(_folder())
        original, folded = (
            stack.enter_context(open_side(files, stages, level, choices, folder)) for files in pairs
        )
        _require_blobs(folded, skip)
        session = Session(original, folded, wanted, tolerance, tuple(skip), folder)
        result = _verify(session, engines, rounds)
        if page is not None:
            from caffe_fold.page.page import verification_page

            page.write(verification_page(session, choices, result))
            page.commit()
        return result


@contextlib.contextmanager
def _folder() -> Iterator[FilePath]:
    with tempfile.TemporaryDirectory(prefix="caffe-fold.") as name:
        yield FilePath(name)


def _require_blobs(side: Side, names: Sequence[str]) -> None:
    from caffe_fold.hints import closest

    for name in names:
        if name not in side.graph.last:
            hint = closest(name, side.graph.last)
            raise InputError(f"in what to skip, no blob is named '{show(name)}'{hint}")


def _verify(session: Session, engines: Sequence[Engine], rounds: int) -> Verification:
    matching = match(session.a, session.b)
    shapes = input_shapes(session.a, session.wanted.shapes)
    reasons: list[str] = []
    orphans = session.a.orphans()
    if orphans:
        names = ", ".join(f"'{show(session.a.graph.values[v].blob)}'" for v in orphans[:3])
        reasons.append(f"no engine runs it whole: nothing produces {names}")
    else:
        for engine in engines:
            try:
                outcome = _run_whole(session, engine, matching, shapes)
            except EngineError as error:
                reasons.append(f"{engine.name} does not run it whole: {error}")
                continue
            except EngineMissing as error:
                # Where others are there, one that is named and has no pycaffe is not missed.
                if len(engines) == 1:
                    raise
                reasons.append(str(error))
                continue
            return _result(session, matching, outcome, rounds, [])
    if (session.wanted.source or session.wanted.shapes) and not orphans:
        misfits = [reason for reason in reasons if _UNKNOWN not in reason]
        if misfits:
            raise InputError(f"the net does not run with the input given: {misfits[0]}")
    outcome = in_parts(session, engines, matching, shapes, reasons)
    return _result(session, matching, outcome, rounds, reasons)


def _run_whole(
    session: Session, engine: Engine, matching: Matching, shapes: Mapping[int, tuple[int, ...]]
) -> Outcome:
    section = whole(session.a, session.b, matching, shapes)
    complaint = None
    sides = (session.a, session.b)
    types = {
        kind_to_run(side, at)
        for side in sides
        for at, layer in enumerate(side.graph.layers)
        if layer.bottoms
    }
    is_misread = not SPECIAL.isdisjoint(types - engine.known())
    if not is_misread and _can_run_as_is(session, engine):
        try:
            return run_section(session, engine, section, "net", as_is=True)
        except EngineError as error:
            complaint = error
    unknown = sorted(types - engine.known())
    if unknown:
        raise EngineError(f"{_UNKNOWN} {', '.join(map(show, unknown[:5]))}")
    if complaint is not None and all(map(_is_standard, sides)):
        raise complaint
    return run_section(session, engine, section, "net", as_is=False)


def _can_run_as_is(session: Session, engine: Engine) -> bool:
    """Whether an engine may be given the two nets' own files."""
    for side in (session.a, session.b):
        if not (side.is_selected_whole() and engine.reads(side.has_doubles)):
            return False
        layers = side.graph.layers
        if any(not layer.bottoms and layer.type != "Input" for layer in layers):
            return False
        if any(may_be_misread(side, at) for at in range(len(layers))):
            return False
    return True


def _is_standard(side: Side) -> bool:
    """Whether writing a net anew would give the engine nothing that it had not got."""
    blobs = (blob for entry in side.caffemodel.entries for blob in entry.blobs)
    return all(standard_type(layer) == layer.type for layer in side.graph.layers) and not any(
        blob.form.name != "DATA" for blob in blobs
    )


def _result(
    session: Session, matching: Matching, outcome: Outcome, rounds: int, reasons: list[str]
) -> Verification:
    a, b = session.a, session.b
    blobs = outcome.finished(session, matching)
    notes = [*reasons, *outcome.notes]
    timing = None
    if rounds:
        if outcome.how == "parts":
            notes.append("no time was taken, since no engine runs the net whole")
        else:
            timing = measure(session, outcome, rounds)
    wrong = differences(a, b, matching, session.skip)
    dead = sum(blob.largest == 0 and not blob.problem for blob in blobs)
    if dead:
        be = "blob is" if dead == 1 else "blobs are"
        notes.append(f"{dead} {be} zero all over with this input, which proves little")
    return Verification(
        model=a.model,
        weights=os.fspath(a.files.weights),
        folded_model=b.model,
        folded_weights=os.fspath(b.files.weights),
        engine=outcome.engine.version,
        how=outcome.how,
        tolerance=session.tolerance,
        samples=session.wanted.samples,
        passed=bool(blobs) and all(blob.passed for blob in blobs) and not wrong,
        differences=wrong,
        blobs=tuple(blobs),
        incomparable=tuple(Skipped(i.blob, i.reason) for i in matching.incomparable),
        coverage=_coverage(session, matching, outcome),
        timing=timing,
        notes=tuple(notes),
    )


def _coverage(session: Session, matching: Matching, outcome: Outcome) -> Coverage:
    layers = [layer for layer in session.b.graph.layers if layer.bottoms]
    found = {blob.layer for blob in outcome.blobs if not blob.problem}
    parts = {blob.layer for blob in outcome.blobs if blob.section != "fold" and not blob.problem}
    alone = {blob.layer for blob in outcome.blobs if blob.section == "fold"}
    left: dict[str, int] = {}
    skipped: dict[str, int] = {}
    for layer in layers:
        if layer.name in found:
            continue
        if layer.name in outcome.skipped:
            skipped[layer.type] = skipped.get(layer.type, 0) + 1
        else:
            left[layer.type] = left.get(layer.type, 0) + 1
    folds = {pair.layer for pair in matching.pairs if pair.is_fold}
    compared = sum(layer.name in found for layer in layers)
    return Coverage(len(layers), compared, len(folds), len(alone), len(parts), left, skipped)
