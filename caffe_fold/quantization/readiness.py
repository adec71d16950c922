"""What int8 with one step for a whole layer does to its weights, before a fold and after.

Per-tensor symmetric int8 rounds each weight to a multiple of ``step = max |w| / 127``. So
of its 255 levels a channel whose largest |w| is r keeps ``1 + 254 r / max |w|``, in bits
their logarithm to base 2: 8 for the largest channel, and fewer for the others. Folding
multiplies each output channel by a gain of its own, which spreads the ranges.

The noise of a channel is measured: the mean square of the rounding errors divided by that
of the weights. A layer's noise is the mean over its channels, so that a small one counts as
much as a large one, but for those that are as good as dead; in decibels, ``-10 log10``, it
is the layer's SQNR (Nagel et al. 2021, section 2; Krishnamoorthi 2018, section 3).

The weights are read in blocks, twice: a layer's step is known once all of it was seen.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from caffe_fold.errors import show
from caffe_fold.planning.facts import Facts
from caffe_fold.planning.plan import Fold, Plan
from caffe_fold.quantization.ranges import keep_largest
from caffe_fold.weights.caffemodel import Caffemodel
from caffe_fold.writing.arithmetic import Folding, blocks

__all__ = ["HURT", "LayerReadiness", "Readiness", "Weights", "readiness"]

Array = NDArray[np.float64]

LEVELS = 127
# A layer is hurt whose weights lose more than a hundredth of their signal.
HURT = 20.0
# Of this part of the layer's largest range and less, a channel is as good as dead.
DEAD = 1e-4


@dataclass(frozen=True)
class Weights:
    """A layer's weights in one state, per output channel, (N,) in float64: ``ranges`` are the
    largest |w|, ``noise`` what rounding to int8 adds, as a part of the channel's mean square
    (0 where that is 0), ``bias`` the biases, ``norms`` the Euclidean norms of the weights."""

    ranges: Array
    noise: Array
    bias: Array
    norms: Array

    @property
    def largest(self) -> float:
        """The range of the whole layer."""
        return float(self.ranges.max(initial=0.0))

    @property
    def alive(self) -> NDArray[np.bool_]:
        """Which channels are not dead: of zero weights, or as good as that."""
        return self.ranges > DEAD * self.largest

    @property
    def spread(self) -> float:
        """The largest channel range divided by the median of those that are alive."""
        live = self.ranges[self.alive]
        return float(self.largest / np.median(live)) if live.size else math.nan

    @property
    def bits(self) -> Array:
        """How many bits of int8 each channel keeps."""
        largest = self.largest or 1.0
        bits: Array = np.log2(1 + 2 * LEVELS * (self.ranges / largest))
        return bits

    @property
    def sqnr(self) -> float:
        """The layer's SQNR in decibels; infinite where nothing is lost."""
        live = self.noise[self.alive]
        noise = float(live.mean()) if live.size else 0.0
        return -10 * math.log10(noise) if noise else math.inf

    @property
    def largest_bias(self) -> float:
        return float(np.abs(self.bias).max(initial=0.0))

    @property
    def bias_to_weights(self) -> float:
        """The largest |bias| of a channel that is alive, as a multiple of what its weights make of
        independent inputs of size 1: their Euclidean norm."""
        live = self.alive & (self.norms > 0)
        ratios = np.abs(self.bias[live]) / self.norms[live]
        return float(ratios.max(initial=0.0))


@dataclass(frozen=True)
class LayerReadiness:
    """One folded layer. ``gains`` are those of its output channels, (N,), or None where
    nothing was folded in from behind."""

    layer: str
    type: str
    at: int
    names_before: tuple[str, ...]
    names_behind: tuple[str, ...]
    before: Weights
    after: Weights
    gains: Array | None

    @property
    def zero_gains(self) -> int:
        """How many output channels have a gain of 0."""
        return 0 if self.gains is None else int((self.gains == 0).sum())

    @property
    def dead(self) -> int:
        """How many channels are dead after folding."""
        return int((~self.after.alive).sum())

    @property
    def lost(self) -> float:
        """How many decibels folding costs; 0 where it costs none."""
        if math.isinf(self.after.sqnr):
            return 0.0
        return max(self.before.sqnr - self.after.sqnr, 0.0)

    @property
    def is_hurt(self) -> bool:
        """Whether int8 leaves more than a hundredth of noise in the folded weights."""
        return self.after.sqnr < HURT

    def to_dict(self) -> dict[str, Any]:
        from caffe_fold.quantization.words import why_hurt

        return {
            "layer": show(self.layer, limit=10**9),
            "type": show(self.type, limit=10**9),
            "hurt": self.is_hurt,
            "reason": why_hurt(self),
            "zero_gains": self.zero_gains,
            "dead_channels": self.dead,
            "before": _state(self.before),
            "after": _state(self.after),
        }


@dataclass(frozen=True)
class Readiness:
    """The folded layers whose weights change, in the order of the net. ``unread`` are those
    whose weights hold numbers that are not finite."""

    layers: tuple[LayerReadiness, ...]
    unread: tuple[str, ...]

    @property
    def hurt(self) -> tuple[LayerReadiness, ...]:
        """The layers that int8 hurts, worst first."""
        return tuple(sorted((la for la in self.layers if la.is_hurt), key=lambda la: la.after.sqnr))

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON: what is not finite is null."""
        return {
            "layers": [layer.to_dict() for layer in self.layers],
            "unread": [show(name, limit=10**9) for name in self.unread],
        }


def readiness(facts: Facts, plan: Plan) -> Readiness:
    """Measure each fold that changes its layer's weights. Reads them; memory does not grow
    with the model but by a few numbers a channel."""
    found, unread = [], []
    for fold in plan.folds:
        layout = fold.linear.layout
        states = (Folding(layout, None, None), Folding(layout, fold.before, fold.behind))
        before, after = _measured(facts.model, fold, states)
        name = fold.linear.layer.name
        if not (np.isfinite(before.ranges).all() and np.isfinite(after.ranges).all()):
            unread.append(name)
            continue
        found.append(
            LayerReadiness(
                name,
                fold.linear.layer.type,
                fold.at,
                tuple(a.layer.name for a in fold.layers_before),
                tuple(a.layer.name for a in fold.layers_behind),
                before,
                after,
                _gains(fold),
            )
        )
    return Readiness(tuple(found), tuple(unread))


def _gains(fold: Fold) -> Array | None:
    if fold.behind is None:
        return None
    return np.broadcast_to(fold.behind.scale, (fold.linear.layout.outputs,))


def _measured(model: Caffemodel, fold: Fold, states: Sequence[Folding]) -> list[Weights]:
    """The layer's weights in some states, in the time that it takes to read them twice."""
    sums = [_Sums(folding) for folding in states]
    for block, row, col in _blocks(model, fold):
        for one in sums:
            one.add_ranges(block, row, col)
    for block, row, col in _blocks(model, fold):
        for one in sums:
            one.add_errors(block, row, col)
    bias = None if fold.linear.bias is None else model.vector(fold.linear.bias)
    return [one.weights(bias) for one in sums]


class _Sums:
    """What is added up of a layer's weights in one state, block by block."""

    def __init__(self, folding: Folding) -> None:
        self.folding, outputs = folding, folding.layout.outputs
        self.ranges, self.shifts = np.zeros(outputs), np.zeros(outputs)
        self.squares, self.errors = np.zeros(outputs), np.zeros(outputs)

    @property
    def step(self) -> float:
        return float(self.ranges.max(initial=0.0)) / LEVELS

    def add_ranges(self, block: Array, row: int, col: int) -> None:
        self.folding.add_shift_sums(self.shifts, block, row, col)
        sizes = np.abs(self.folding.weights(block, row, col))
        keep_largest(self.ranges, self.folding.layout, sizes, row, col)

    def add_errors(self, block: Array, row: int, col: int) -> None:
        """Squares in steps, which are 127 at most, so that nothing overflows."""
        step = self.step
        if step > 0 and math.isfinite(step):
            steps = self.folding.weights(block, row, col) / step
            lost = steps - np.rint(steps)
            self.folding.layout.add_per_output(self.squares, steps * steps, row, col)
            self.folding.layout.add_per_output(self.errors, lost * lost, row, col)

    def weights(self, bias: Array | None) -> Weights:
        with np.errstate(invalid="ignore"):
            noise = np.where(self.squares > 0, self.errors / self.squares, 0.0)
        norms = np.sqrt(self.squares) * self.step
        return Weights(self.ranges, noise, self.folding.bias(bias, self.shifts), norms)


def _blocks(model: Caffemodel, fold: Fold) -> Iterator[tuple[Array, int, int]]:
    """The weights of a fold's layer, a block of rows and columns at a time, and its place."""
    layout = fold.linear.layout
    for row, rows, col, cols in blocks(layout):
        start = row * layout.cols + col
        values = model.values(fold.linear.weight, start, start + rows * cols)
        yield values.astype(np.float64).reshape(rows, cols), row, col


def _state(weights: Weights) -> dict[str, Any]:
    return {
        "range": _number(weights.largest),
        "range_to_median": _number(weights.spread),
        "sqnr_db": _number(weights.sqnr),
        "least_bits": _number(float(weights.bits[weights.alive].min(initial=math.inf))),
        "bias": _number(weights.largest_bias),
        "bias_to_weights": _number(weights.bias_to_weights),
    }


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None
