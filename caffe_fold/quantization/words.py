"""Why int8 hurts a layer, in words."""

from __future__ import annotations

import math

import numpy as np

from caffe_fold.quantization.readiness import Array, LayerReadiness, Weights

__all__ = ["why_hurt"]

# A gain has a part in a range if it is this many times away from the median gain, to the same
# side, and is all of its cause if the range without it is no further from its median.
_FAR = 2.0
_FEW_BITS = 4


def why_hurt(layer: LayerReadiness) -> str:
    """One or two sentences on how int8 with one step for the layer treats its channels."""
    last = layer.last
    live = np.flatnonzero(last.alive)
    if not live.size:
        return "All of its weights are zero."
    top = int(last.ranges.argmax())
    least = int(live[last.ranges[live].argmin()])
    few = int((last.bits[live] < _FEW_BITS).sum())
    text = (
        f"{_dead(layer)}Channel {top} has {_times(last.spread)} the median range"
        f"{_by_gain(layer, top, True)}, and sets the step for all"
    )
    if few:
        text += f": {few} of {live.size} channels keep fewer than {_FEW_BITS} of 8 bits"
    share = last.ranges[least] / last.largest
    text += (
        f". Channel {least} has {_percent(share)} of the largest range"
        f"{_by_gain(layer, least, False)} and keeps {last.bits[least]:.1f} bits"
    )
    return f"{text}. {_cost(layer)}"


def _dead(layer: LayerReadiness) -> str:
    if not layer.dead:
        return ""
    count = layer.last.ranges.size
    zero = f", {layer.zero_gains} of zero gain" if layer.zero_gains else ""
    return f"{layer.dead} of {count} channels are dead{zero}. "


def _cost(layer: LayerReadiness) -> str:
    """The noise now, and what it was."""
    before, after = layer.before, layer.after
    noise = f"Rounding noise is {_percent(_share(layer.last))} of the weights' signal"
    if layer.equalized is not None:
        return (
            f"{noise}; before equalising it was {_percent(_share(after))}, and before folding "
            f"{_percent(_share(before))}."
        )
    if before.sqnr == after.sqnr or abs(before.sqnr - after.sqnr) < 1:
        return f"{noise}, as it was before folding."
    better = ", so folding made it better" if after.sqnr > before.sqnr else ""
    return f"{noise}; before folding it was {_percent(_share(before))}{better}."


def _share(weights: Weights) -> float:
    return 0.0 if math.isinf(weights.sqnr) else float(10 ** (-weights.sqnr / 10))


def _by_gain(layer: LayerReadiness, channel: int, is_large: bool) -> str:
    """The gain that made a channel's range large or small, if it did, or its part in that.
    Equalising divides by factors of its own, so that gains explain its ranges no more."""
    if layer.gains is None or layer.equalized is not None:
        return ""
    sizes = np.abs(layer.gains)
    median = float(np.median(sizes[sizes > 0])) if (sizes > 0).any() else 0.0
    gain = float(sizes[channel])
    if not (gain > _FAR * median if is_large else gain * _FAR < median):
        return ""
    of_gain = f"its gain of {gain:.3g} (median {median:.3g})"
    own = _range_without_gain(layer, sizes, channel)
    if own > _FAR if is_large else own * _FAR < 1:
        return f", {_times(own)} the median without {of_gain}"
    return f", by {of_gain}"


def _range_without_gain(layer: LayerReadiness, gains: Array, channel: int) -> float:
    """A channel's range as a multiple of the median, had no channel a gain."""
    live = layer.after.alive
    ranges = layer.after.ranges[live] / gains[live]
    return float(layer.after.ranges[channel] / gains[channel] / np.median(ranges))


def _times(ratio: float) -> str:
    return f"{ratio:,.0f} times" if ratio >= 100 else f"{ratio:.2g} times"


def _percent(share: float) -> str:
    percent = 100 * share
    if percent >= 10:
        return f"{percent:.0f}%"
    return f"{percent:.2g}%" if percent >= 0.001 else "under 0.001%"
