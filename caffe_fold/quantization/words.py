"""Why int8 hurts a layer, in words."""

from __future__ import annotations

import math

import numpy as np

from caffe_fold.quantization.readiness import LayerReadiness, Weights

__all__ = ["why_hurt"]

# A gain explains a range if it is at least this many times away from the median gain.
_FAR = 2.0
_FEW_BITS = 4


def why_hurt(layer: LayerReadiness) -> str:
    """One or two sentences on how int8 with one step for the layer treats its channels."""
    after = layer.after
    live = np.flatnonzero(after.alive)
    if not live.size:
        return "All of its weights are zero."
    top = int(after.ranges.argmax())
    least = int(live[after.ranges[live].argmin()])
    few = int((after.bits[live] < _FEW_BITS).sum())
    text = _dead(layer) + (
        f"Channel {top} has {_times(after.spread)} the median range{_by_gain(layer, top)}, and "
        "sets the step for all"
    )
    if few:
        text += f": {few} of {live.size} channels keep fewer than {_FEW_BITS} of 8 bits"
    share = after.ranges[least] / after.largest
    text += (
        f". Channel {least} has {_percent(share)} of the largest range"
        f"{_by_gain(layer, least)} and keeps {after.bits[least]:.1f} bits"
    )
    return f"{text}. {_cost(layer)}"


def _dead(layer: LayerReadiness) -> str:
    if not layer.dead:
        return ""
    count = layer.after.ranges.size
    zero = f", {layer.zero_gains} of zero gain" if layer.zero_gains else ""
    return f"{layer.dead} of {count} channels are dead{zero}. "


def _cost(layer: LayerReadiness) -> str:
    noise = f"Rounding noise is {_percent(_share(layer.after))} of the weights' signal"
    if layer.lost < 1:
        return f"{noise}, as it was before folding."
    return f"{noise}; before folding it was {_percent(_share(layer.before))}."


def _share(weights: Weights) -> float:
    return 0.0 if math.isinf(weights.sqnr) else float(10 ** (-weights.sqnr / 10))


def _by_gain(layer: LayerReadiness, channel: int) -> str:
    """The gain that made a channel's range, if it did."""
    if layer.gains is None:
        return ""
    sizes = np.abs(layer.gains)
    median = float(np.median(sizes[sizes > 0])) if (sizes > 0).any() else 0.0
    gain = float(sizes[channel])
    if median and (gain > _FAR * median or gain * _FAR < median):
        return f", by its gain of {gain:.3g} (median {median:.3g})"
    return ""


def _times(ratio: float) -> str:
    return f"{ratio:,.0f} times" if ratio >= 100 else f"{ratio:.2g} times"


def _percent(share: float) -> str:
    percent = 100 * share
    if percent >= 10:
        return f"{percent:.0f}%"
    return f"{percent:.2g}%" if percent >= 0.001 else "under 0.001%"
