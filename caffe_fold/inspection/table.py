"""The table of ``inspect``: in colour and boxes for a terminal, a line a layer elsewhere."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Literal

from caffe_fold.errors import show
from caffe_fold.inspection.inspection import Inspection
from caffe_fold.inspection.layers import Fate, LayerFacts, Totals
from caffe_fold.layers.affine_map import Dims

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["gain_text", "outcome", "plain_table", "print_rich", "shape_text", "without_weights"]

_HEADS = ("type", "weights", "parameters", "gain", "layer", "folding")
_NAME_WIDTH = 40


def plain_table(inspection: Inspection) -> str:
    """Columns apart by two blanks. What is too wide for its column moves the rest of its
    own line, and no line is cut."""
    rows = [_HEADS, *map(_cells, _shown(inspection))]
    widths = [min(max(len(row[i]) for row in rows), _NAME_WIDTH) for i in range(5)]
    lines = []
    for row in rows:
        cells = [
            cell.rjust(width) if at == 2 else cell.ljust(width)
            for at, (cell, width) in enumerate(zip(row, widths))
        ]
        lines.append("  ".join([*cells, row[5]]).rstrip())
    return "\n".join([*lines, *_summary(inspection)])


def print_rich(inspection: Inspection, console: Console) -> None:
    """The same on a terminal. Long names fold inside their column; where it is narrow, a
    layer's facts stand below its name."""
    from rich.table import Table
    from rich.text import Text

    table = Table(header_style="bold", box=None, pad_edge=False, show_edge=False)
    is_wide = console.width >= _WIDE
    for head in _HEADS if is_wide else _HEADS[4:]:
        justify: Literal["right", "left"] = "right" if head == "parameters" else "left"
        table.add_column(head, justify=justify, overflow="fold", ratio=None if is_wide else 1)
    for layer in _shown(inspection):
        *facts, name, says = _cells(layer)
        told = Text(says, style=_STYLES.get(layer.fate.kind, ""))
        if is_wide:
            table.add_row(*map(Text, facts), Text(name), told)
        else:
            kind, shape, count, gain = facts
            words = (kind, shape, f"{count} parameters", f"gain {gain}")
            below = ", ".join(word for word, fact in zip(words, facts) if fact != "-")
            table.add_row(Text.assemble(name, "\n", (below, "dim")), told)
    console.print(table)
    for line in _summary(inspection):
        console.print(Text(line), soft_wrap=True)


_WIDE = 110
_STYLES = {
    "takes": "green",
    "folds": "green",
    "removed": "green",
    "becomes": "cyan",
    "merges": "cyan",
    "stays": "yellow",
    "same": "dim",
}


def _shown(inspection: Inspection) -> list[LayerFacts]:
    return [layer for layer in inspection.layers if layer.role != "other"]


def _cells(layer: LayerFacts) -> tuple[str, ...]:
    return (
        show(layer.type, 40),
        shape_text(layer.shapes[0]) if layer.shapes else "-",
        "?" if layer.parameters is None else f"{layer.parameters}" if layer.shapes else "-",
        gain_text(layer.gain),
        show(layer.name),
        outcome(layer.fate),
    )


def shape_text(shape: Dims) -> str:
    """``64x3x7x7``, with a question mark for what is not known."""
    shown = "x".join("?" if dim is None else str(dim) for dim in shape[:8])
    return (shown or "1") if len(shape) <= 8 else f"{shown}x..."


def gain_text(gain: tuple[float, float] | None) -> str:
    """The least and the largest gain, or the one."""
    if gain is None:
        return "-"
    least, most = (f"{number:.0f}" if 100 <= number < 1e6 else f"{number:.2g}" for number in gain)
    return least if least == most else f"{least}..{most}"


def outcome(fate: Fate) -> str:
    """What becomes of a layer, in a few words or the sentence of its refusal."""
    names = _names(fate.names)
    stays = f"; stays: {fate.reason}" if fate.reason else ""
    return {
        "takes": f"takes {names}",
        "folds": f"folds into {names}",
        "becomes": f"becomes one Scale with {names}{stays}",
        "merges": f"merges into {names}",
        "removed": "goes, since it changes nothing",
        "stays": f"stays: {fate.reason}" if fate.reason else "stays",
        "same": "-",
    }[fate.kind]


def _names(names: Iterable[str]) -> str:
    return " + ".join(show(name) for name in names)


# ---- What stands below the table ----


def _summary(inspection: Inspection) -> list[str]:
    lines = [_total(total) for total in inspection.totals]
    lines.append(f"layers {inspection.before} -> {inspection.after}")
    if inspection.weights is None:
        lines.append(without_weights())
    return ["", *lines]


def without_weights() -> str:
    """What a plan without weights does not see."""
    return (
        "As far as the prototxt tells: only the weights show a layer that changes nothing, numbers "
        "that are not finite, or shared copies that differ (--weights)."
    )


def _total(total: Totals) -> str:
    parts = [f"{total.fates[kind]} {word}" for kind, word in _WORDS if total.fates[kind]]
    numbers = "" if total.parameters is None else f", {total.parameters} parameters"
    shown = f"{show(total.type, 40)} {total.before} -> {total.after}{numbers}"
    return f"{shown}: {', '.join(parts)}" if parts else shown


_WORDS = (
    ("takes", "take others"),
    ("folds", "fold"),
    ("becomes", "become a Scale"),
    ("merges", "merge"),
    ("removed", "change nothing"),
    ("stays", "stay"),
    ("same", "as they are"),
)
