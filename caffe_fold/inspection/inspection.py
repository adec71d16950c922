"""The result of ``inspect``, as data and as JSON; its table is table.py's."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from caffe_fold.errors import show
from caffe_fold.inspection.layers import LayerFacts, Totals, totals

if TYPE_CHECKING:
    from caffe_fold.quantization.readiness import Readiness

__all__ = ["Inspection"]

SCHEMA = 1


@dataclass(frozen=True)
class Inspection:
    """What a net is and what folding would do to it. ``weights`` is None where there is the
    prototxt alone, ``readiness`` where it was not asked for."""

    model: str
    weights: str | None
    layers: tuple[LayerFacts, ...]
    readiness: Readiness | None = None

    @property
    def totals(self) -> tuple[Totals, ...]:
        """The linear and affine layers by type."""
        return totals(self.layers)

    @property
    def before(self) -> int:
        """How many layers the net has."""
        return len(self.layers)

    @property
    def after(self) -> int:
        """How many layers the folded net would have."""
        return sum(la.fate.kind not in ("folds", "merges", "removed") for la in self.layers)

    def to_text(self) -> str:
        """The table for a person or for grep, a line a layer."""
        from caffe_fold.inspection.table import plain_table

        return plain_table(self)

    def to_dict(self) -> dict[str, Any]:
        """The result as plain data for JSON; every name is printable text, and what is not
        known or not finite is null."""
        from caffe_fold import __version__

        data: dict[str, Any] = {
            "schema": SCHEMA,
            "version": __version__,
            "model": _name(self.model),
            "weights": None if self.weights is None else _name(self.weights),
            "layers": [_layer(layer) for layer in self.layers],
            "totals": {
                "before": self.before,
                "after": self.after,
                "types": [
                    {
                        "type": _name(total.type),
                        "before": total.before,
                        "after": total.after,
                        "parameters": total.parameters,
                        "fates": dict(total.fates),
                    }
                    for total in self.totals
                ],
            },
        }
        if self.readiness is not None:
            data["int8"] = self.readiness.to_dict()
        return data


def _name(text: str) -> str:
    return show(text, limit=10**9)


def _layer(layer: LayerFacts) -> dict[str, Any]:
    gain = layer.gain
    return {
        "name": _name(layer.name),
        "type": _name(layer.type),
        "line": layer.line,
        "role": layer.role,
        "bottoms": [_name(name) for name in layer.bottoms],
        "tops": [_name(name) for name in layer.tops],
        "shapes": None if layer.shapes is None else [list(shape) for shape in layer.shapes],
        "parameters": layer.parameters,
        "gain": [number if math.isfinite(number) else None for number in gain] if gain else None,
        "fate": layer.fate.kind,
        "names": [_name(name) for name in layer.fate.names],
        "reason": layer.fate.reason,
        "codes": list(layer.fate.codes),
    }
