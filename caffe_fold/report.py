"""What a fold did, as data, as text and as JSON."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from caffe_fold.errors import show
from caffe_fold.named import NamedTuple

if TYPE_CHECKING:
    from collections.abc import Mapping

    from caffe_fold.quantization.result import Equalized
    from caffe_fold.verification.result import Verification

__all__ = ["Absorbed", "Checked", "Counts", "Merged", "Note", "Report", "Stayed", "count_norms"]
__all__ += ["size_text"]

SCHEMA = 1


class Absorbed(NamedTuple):
    """A linear layer and the names of the layers that went into it, by side."""

    layer: str
    type: str
    before: tuple[str, ...]
    behind: tuple[str, ...]


class Merged(NamedTuple):
    """A Scale that stands for a run of layers."""

    layer: str
    layers: tuple[str, ...]


class Stayed(NamedTuple):
    """A layer that stays, with a stable code and one sentence. ``codes`` has one for each
    reason in it: the way back, which is ``code``, and the way on."""

    layer: str
    type: str
    code: str
    codes: tuple[str, ...]
    reason: str


class Note(NamedTuple):
    """A warning or a note, with a stable code and one sentence."""

    code: str
    message: str


class Counts(NamedTuple):
    """Layers of the selected state, and bytes of both files."""

    layers: int
    by_type: dict[str, int]
    model_bytes: int
    weights_bytes: int


def count_norms(by_type: Mapping[str, int]) -> int:
    """How many layers normalise, of counts by type."""
    from caffe_fold.layers.affine import AFFINE

    return sum(by_type.get(name, 0) for name, kind in AFFINE.items() if kind.normalises)


class Checked(NamedTuple):
    """What the proof compared: how many layers, and the largest difference found, as a
    part of what rounding allows."""

    layers: int
    worst: float


class Report(NamedTuple):
    """The result of ``fold``. ``checked`` is None where the proof was left out,
    ``equalized`` where that was not asked for, ``verified`` where no engine was asked."""

    model: str
    weights: str
    output_model: str
    output_weights: str
    written: bool
    folded: tuple[Absorbed, ...]
    merged: tuple[Merged, ...]
    removed: tuple[str, ...]
    stayed: tuple[Stayed, ...]
    warnings: tuple[Note, ...]
    notes: tuple[Note, ...]
    before: Counts
    after: Counts
    checked: Checked | None
    equalized: Equalized | None = None
    verified: Verification | None = None

    @property
    def explained_types(self) -> tuple[str, ...]:
        """The types whose layers are counted and explained."""
        from caffe_fold.planning.plan import EXPLAINED

        return EXPLAINED

    @property
    def left(self) -> int:
        """How many normalising layers are left."""
        return count_norms(self.after.by_type)

    def to_dict(self) -> dict[str, Any]:
        """The report as plain data for JSON; every name is printable text."""
        from caffe_fold import __version__

        data = _plain(self._replace(verified=None))
        del data["verified"]
        if self.equalized is not None:
            data["equalized"]["blobs"] = _plain(list(self.equalized.blobs))
        if self.verified is not None:
            data["verified"] = self.verified.to_dict()
        return {"schema": SCHEMA, "version": __version__, **data}

    def to_text(self) -> str:
        """The report for a person, a line each; its warnings are ``warnings``."""
        lines = _folded_lines(self)
        for stay in self.stayed:
            lines.append(f"stays    {show(stay.layer)} ({show(stay.type)}): {stay.reason}")
        lines += [f"note     {note.message}" for note in self.notes]
        lines += self.equalized.lines() if self.equalized is not None else ()
        return "\n".join([*lines, *_summary(self)])


def _folded_lines(report: Report) -> list[str]:
    lines = []
    for fold in report.folded:
        parts = []
        if fold.before:
            parts.append(f"{_names(fold.before)} before it")
        if fold.behind:
            parts.append(_names(fold.behind))
        lines.append(f"folded   {show(fold.layer)} ({show(fold.type)}) <- {', '.join(parts)}")
    for merge in report.merged:
        others = [name for name in merge.layers if name != merge.layer]
        lines.append(f"merged   {show(merge.layer)} (Scale) <- {_names(tuple(others))}")
    if report.removed:
        lines.append(f"removed  {_names(report.removed)}: they change nothing")
    return lines


def _names(names: tuple[str, ...]) -> str:
    return " + ".join(show(name) for name in names)


def _summary(report: Report) -> list[str]:
    lines = []
    rows = [("layers", report.before.layers, report.after.layers)]
    for kind in report.explained_types:
        before, after = (c.by_type.get(kind, 0) for c in (report.before, report.after))
        if before or after:
            rows.append((kind, before, after))
    lines.append("; ".join(f"{name} {before} -> {after}" for name, before, after in rows))
    sizes = f"{size_text(report.before.weights_bytes)} -> {size_text(report.after.weights_bytes)}"
    lines.append(f"weights {sizes}")
    lines += _proofs(report)
    if report.verified is not None:
        skipped = report.equalized.blobs if report.equalized is not None else ()
        more = f"; skipped {len(skipped)} of another scale" if skipped else ""
        lines.append(f"verified: {report.verified.verdict}{more}")
    if report.written:
        lines.append(f"wrote {show(report.output_model)}")
        lines.append(f"wrote {show(report.output_weights)}")
    return lines


def _proofs(report: Report) -> list[str]:
    """What was proven: the fold, and the equalising behind it; one of no layer is told alone."""
    equalized = report.equalized.checked if report.equalized is not None else None
    proofs = (("changed", report.checked), ("equalized", equalized))
    done = [(what, checked) for what, checked in proofs if checked is not None]
    return [
        f"checked: {checked.layers} {what} layers re-read and compared, largest difference "
        f"{checked.worst:.2f} of what rounding allows"
        for what, checked in [proof for proof in done if proof[1].layers] or done[:1]
    ]


def size_text(count: int) -> str:
    """A number of bytes for a person."""
    for unit, size in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count} B"


def _plain(value: Any) -> Any:
    """Records as dicts by field, and every name as printable text."""
    if hasattr(value, "_asdict"):
        return {name: _plain(v) for name, v in value._asdict().items()}
    if isinstance(value, str):
        return show(value, limit=10**9)
    if isinstance(value, dict):
        return {show(str(k)): _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    return value
