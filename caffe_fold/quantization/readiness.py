"""What int8 with one step for a whole layer does to its weights, before a fold, after it
and, where they were equalised, in the file that was written.

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
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from caffe_fold.errors import show
from caffe_fold.layers.linear import LINEAR, Layout
from caffe_fold.planning.facts import Facts, LinearLayer
from caffe_fold.planning.plan import Fold, Plan
from caffe_fold.weights.caffemodel import Caffemodel
from caffe_fold.writing.arithmetic import Folding
from caffe_fold.writing.folded_values import weight_blocks

__all__ = ["HURT", "LayerReadiness", "Readiness", "Weights", "keep_largest", "readiness"]

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
    """One folded or equalised layer. ``gains`` are those of its output channels, (N,), or None
    where nothing was folded in from behind; ``equalized`` are the weights as they were written,
    or None where nothing was equalised."""

    layer: str
    type: str
    at: int
    names_before: tuple[str, ...]
    names_behind: tuple[str, ...]
    before: Weights
    after: Weights
    gains: Array | None
    equalized: Weights | None = None

    @property
    def last(self) -> Weights:
        """The weights at the end of all that was done."""
        return self.after if self.equalized is None else self.equalized

    @property
    def states(self) -> tuple[tuple[str, Weights], ...]:
        """The states of the weights in order, by name."""
        found = (("before", self.before), ("after", self.after))
        return found if self.equalized is None else (*found, ("equalized", self.equalized))

    @property
    def zero_gains(self) -> int:
        """How many output channels have a gain of 0."""
        return 0 if self.gains is None else int((self.gains == 0).sum())

    @property
    def dead(self) -> int:
        """How many channels are dead in the end."""
        return int((~self.last.alive).sum())

    @property
    def is_hurt(self) -> bool:
        """Whether int8 leaves more than a hundredth of noise in the last weights."""
        return self.last.sqnr < HURT

    def to_dict(self) -> dict[str, Any]:
        from caffe_fold.quantization.words import why_hurt

        return {
            "layer": show(self.layer, limit=10**9),
            "type": show(self.type, limit=10**9),
            "hurt": self.is_hurt,
            "reason": why_hurt(self),
            "zero_gains": self.zero_gains,
            "dead_channels": self.dead,
            **{name: _state(weights) for name, weights in self.states},
        }


@dataclass(frozen=True)
class Readiness:
    """The layers whose weights change, in the order of the net. ``unread`` are those
    whose weights hold numbers that are not finite."""

    layers: tuple[LayerReadiness, ...]
    unread: tuple[str, ...]

    @property
    def hurt(self) -> tuple[LayerReadiness, ...]:
        """The layers that int8 hurts, worst first."""
        return tuple(sorted((la for la in self.layers if la.is_hurt), key=lambda la: la.last.sqnr))

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON: what is not finite is null."""
        return {
            "layers": [layer.to_dict() for layer in self.layers],
            "unread": [show(name, limit=10**9) for name in self.unread],
        }


def readiness(
    facts: Facts, plan: Plan, written: Facts | None = None, equalized: Sequence[str] = ()
) -> Readiness:
    """Measure each fold that changes its layer's weights. Reads them; memory does not grow
    with the model but by a few numbers a channel.

    :param written: the equalised net, of which the weights are read as they lie there.
    :param equalized: the names of the layers that equalising changed, folded or not.
    """
    folds = {fold.at: fold for fold in plan.folds}
    names = frozenset(equalized)
    places = [
        at
        for at, layer in enumerate(facts.graph.layers)
        if at in folds or (layer.type in LINEAR and layer.name in names)
    ]
    found, unread = [], []
    for at in places:
        layer = _layer(facts, at, folds.get(at), written)
        if all(np.isfinite(weights.ranges).all() for _, weights in layer.states):
            found.append(layer)
        else:
            unread.append(layer.layer)
    return Readiness(tuple(found), tuple(unread))


def _layer(facts: Facts, at: int, fold: Fold | None, written: Facts | None) -> LayerReadiness:
    """Measure one layer in all of its states; ``fold`` is None where none changes it."""
    linear = facts.linear(at) if fold is None else fold.linear
    as_it_is = Folding(linear.layout, None, None)
    if fold is None:
        (before,) = _measured(facts.model, linear, (as_it_is,))
        after = before
    else:
        folded = Folding(linear.layout, fold.before, fold.behind)
        before, after = _measured(facts.model, linear, (as_it_is, folded))
    return LayerReadiness(
        linear.layer.name,
        linear.layer.type,
        at,
        () if fold is None else tuple(a.layer.name for a in fold.layers_before),
        () if fold is None else tuple(a.layer.name for a in fold.layers_behind),
        before,
        after,
        None if fold is None else _gains(fold),
        None if written is None else _as_written(written, linear.layer.name),
    )


def _as_written(written: Facts, name: str) -> Weights:
    """A layer's weights as they lie in the written file. A folded layer has a name of its own:
    of two of one name none is folded or equalised."""
    (at,) = (at for at, layer in enumerate(written.graph.layers) if layer.name == name)
    linear = written.linear(at)
    (found,) = _measured(written.model, linear, (Folding(linear.layout, None, None),))
    return found


def _gains(fold: Fold) -> Array | None:
    if fold.behind is None:
        return None
    return np.broadcast_to(fold.behind.scale, (fold.linear.layout.outputs,))


def _measured(model: Caffemodel, linear: LinearLayer, states: Sequence[Folding]) -> list[Weights]:
    """The layer's weights in some states, in the time that it takes to read them twice. Only
    the last may change them, since it computes in the block's place."""
    sums = [_Sums(folding) for folding in states]
    for block, row, col in weight_blocks(model, linear):
        for one in sums:
            one.add_ranges(block, row, col)
    for block, row, col in weight_blocks(model, linear):
        for one in sums:
            one.add_errors(block, row, col)
    bias = None if linear.bias is None else model.vector(linear.bias)
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


def keep_largest(ranges: Array, layout: Layout, sizes: Array, row: int, col: int) -> None:
    """Raise ranges (N,) to the sizes of a block, which begins at a row and column."""
    if layout.kind == "transposed":
        place = ranges[col : col + sizes.shape[1]]
        np.maximum(place, sizes.max(axis=0), out=place)
    else:
        outputs = layout.output_of(np.arange(row, row + sizes.shape[0]))
        np.maximum.at(ranges, outputs, sizes.max(axis=1))
