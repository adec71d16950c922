"""The proof of equalising: what was written, read again and compared with what was there.

Each changed layer is compared as after a fold. Then each chain of them runs whole, by the
definition of its layers and without any factor, and must give what it gave before. And
all other bytes must be the same.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from caffe_fold.errors import CheckError, show
from caffe_fold.planning.facts import Facts, LinearLayer
from caffe_fold.planning.plan import Plan
from caffe_fold.quantization.pairs import Pair
from caffe_fold.report import Checked
from caffe_fold.weights import wire
from caffe_fold.weights.caffemodel import Caffemodel
from caffe_fold.writing.check import check_values
from caffe_fold.writing.extremes import linear_has_extremes, unprovable
from caffe_fold.writing.linear_forward import linear_forward

__all__ = ["check_equalized"]

Array = NDArray[np.float64]

_CHUNK = 1 << 20


def check_equalized(
    plan: Plan,
    chains: Sequence[Sequence[Pair]],
    old: Caffemodel,
    new: Facts,
    threads: int | None,
) -> Checked:
    """Compare the written weights with the old ones.

    :raises CheckError: where a layer, a chain or a byte is wrong.
    :raises Blocked: where it may seem so since float64 has no room for a layer's numbers.
    """
    checked = check_values(plan, old, new, threads)
    places = {layer.name: at for at, layer in enumerate(new.graph.layers)}
    for chain in chains:
        before = [chain[0].first, *(pair.second for pair in chain)]
        after = [new.linear(places[layer.layer.name]) for layer in before]
        slopes = [pair.slopes for pair in chain]
        _check_chain(before, after, old, new.model, slopes)
    _check_rest({fold.linear.layer.name for fold in plan.folds}, old, new.model)
    return checked


def _check_chain(
    before: Sequence[LinearLayer],
    after: Sequence[LinearLayer],
    old: Caffemodel,
    new: Caffemodel,
    slopes: Sequence[tuple[Array, ...]],
) -> None:
    """A chain gives what it gave. Each of its layers was compared to rounding before; what
    rounding adds up to is far below the root of a unit."""
    size = np.zeros(before[-1].layout.outputs)
    with np.errstate(all="ignore"):  # numbers that overflow here differ, and are named
        wanted = _run(before, old, slopes, size)
        found = _run(after, new, slopes)
        difference = np.abs(wanted - found)
    unit = max(float(np.finfo(layer.weight.storage.dtype).eps) for layer in after)
    allowed = np.sqrt(unit) * size
    agrees = (difference <= allowed) & np.isfinite(allowed)
    if not agrees.all():
        for layer in before:
            if linear_has_extremes(layer, old):
                raise unprovable(layer.layer)
        at = int(np.argmin(agrees))
        names = f"'{show(before[0].layer.name)}' to '{show(before[-1].layer.name)}'"
        raise CheckError(
            f"the equalised layers {names} are wrong: they give {found[at]:.9g} where the original "
            f"ones give {wanted[at]:.9g}; nothing was written. Please report this"
        )


def _run(
    layers: Sequence[LinearLayer],
    model: Caffemodel,
    slopes: Sequence[tuple[Array, ...]],
    size: Array | None = None,
) -> Array:
    """One output of each channel of a chain's last layer, for a random input; to ``size`` the
    sum of |w| |x| and |b| in it is added. Each tap of a layer gets the same channels, times a
    random number of either sign."""
    rng = np.random.default_rng(0)
    y: Array = rng.uniform(-1, 1, layers[0].layout.inputs)
    for index, layer in enumerate(layers):
        taps = layer.layout.taps * (layer.layout.inputs // y.size)
        x = y[:, None] * rng.uniform(-1, 1, taps)
        for slope in slopes[index - 1] if index else ():
            x = _activated(x, slope[:, None])
        y = linear_forward(layer, model, x, size if index == len(layers) - 1 else None)
    return y


def _activated(x: Array, slope: Array) -> Array:
    """A ReLU or PReLU."""
    return np.where(x < 0, x * slope, x)


def _check_rest(changed: set[str], old: Caffemodel, new: Caffemodel) -> None:
    """Entries of other layers, and what is between entries, are the same byte for byte."""
    if [e.name for e in old.entries] != [e.name for e in new.entries]:
        raise CheckError("the equalised weights have other layers; nothing was written")
    ends = [0, 0]
    for one, other in zip(old.entries, new.entries):
        is_changed = one.name in changed
        stops = (one.start, other.start) if is_changed else (one.end, other.end)
        _require_same(old.source, new.source, ends, stops, one.name)
        ends = [one.end, other.end]
    _require_same(old.source, new.source, ends, (old.source.size, new.source.size), "the end")


def _require_same(
    one: wire.Source, other: wire.Source, starts: Sequence[int], stops: Sequence[int], name: str
) -> None:
    (a, b), (c, d) = starts, stops
    is_same = c - a == d - b and all(
        one.read(a + at, min(a + at + _CHUNK, c)) == other.read(b + at, min(b + at + _CHUNK, d))
        for at in range(0, c - a, _CHUNK)
    )
    if not is_same:
        raise CheckError(
            f"equalising changed bytes of '{show(name)}' or before it that are not its own; "
            "nothing was written. Please report this"
        )
