"""The factors that balance the layers of a chain.

With factors s between two layers, one a channel, the first becomes W1 / s and the second
W2 * s. The ranges of channel i are largest when they are equal, so (Nagel et al. 2019,
equation 11)::

    s = sqrt(r1 * r2) / r2

where r1 is the largest |w| of output channel i of the first layer, and r2 that of input
channel i of the second. In a chain the factors of one pair change the ranges of the next,
so that it is gone through again until nothing changes.

A channel whose r1 * r2 is so small that int8 would round all of its weights to zero, equal
or not, gains nothing. BatchNorm layers leave such channels, with ranges of 1e-20 and a
bias of ordinary size, which s would make enormous. Those get only what keeps them from
being the largest channel of a layer.

Weights are rounded once more, as in a fold. To float16 that would show, and there factors
are powers of two, which round nothing. Everywhere else that would cost more than it gives
(docs/quantization.md).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from caffe_fold.named import NamedTuple
from caffe_fold.planning.facts import LinearLayer
from caffe_fold.quantization.maxima import Maxima
from caffe_fold.weights.blob import Storage

__all__ = ["Balance", "balance", "balancing_factors"]

Array = NDArray[np.float64]

# Three layers settle in 8 rounds, the twelve of a MobileNet in 100.
_ROUNDS = 200
# In octaves: what changes less than this has settled, and is not worth a change at all.
_SETTLED, _WORTHWHILE = 1e-4, 1e-2
# A range below that part of the largest is less than half a step of int8, in octaves.
_LOST = 8


class Balance(NamedTuple):
    """The channels between two layers: how many there are, how many have only zeros on one
    side, how many others int8 would round to zero, and by which factor the two ranges of a
    channel of the rest differ at most."""

    channels: int
    zero: int
    lost: int
    apart: float


def balancing_factors(chain: Sequence[Maxima]) -> list[Array]:
    """The factor of each channel, (C,), between each two layers that follow each other; all
    are exactly 1 where a pair is in balance.

    ``chain`` holds the maxima of two or more layers.
    """
    found = [np.zeros(layer.layer.layout.outputs) for layer in chain[:-1]]  # in octaves
    is_whole = any(_is_half(layer.layer) for layer in chain)
    first = chain[0].of_outputs(np.ones(chain[0].channels))
    last = chain[-1].of_inputs(np.ones(chain[-1].layer.layout.outputs))
    for _ in range(_ROUNDS):
        largest = 0.0
        for at, octaves in enumerate(found):
            r1 = chain[at].of_outputs(np.exp2(found[at - 1])) if at else first
            is_last = at + 1 == len(found)
            r2 = last if is_last else chain[at + 1].of_inputs(np.exp2(-found[at + 1]))
            step = _step(r1 * np.exp2(-octaves), r2 * np.exp2(octaves))
            if is_whole:
                step = np.rint(step)
            octaves += step
            largest = max(largest, float(np.abs(step).max()))
        if largest < _SETTLED:
            break
    return [np.exp2(o if np.abs(o).max() > _WORTHWHILE else np.zeros_like(o)) for o in found]


def _is_half(layer: LinearLayer) -> bool:
    """Whether a layer's new weights are rounded to float16."""
    blobs = [layer.weight, *([layer.bias] if layer.bias else [])]
    return all(blob.storage is Storage.HALF for blob in blobs)


def _step(r1: Array, r2: Array) -> Array:
    """By how many octaves factors are to grow, for ranges as they are now; none where a
    channel has no weights on one side."""
    one, other, alive = _octaves(r1, r2)
    sizes = (one + other) / 2  # each range, once they are equal
    top = sizes.max(where=alive, initial=-np.inf)
    least = np.where(one > top, one - top, np.where(other > top, top - other, 0.0))
    step: Array = np.where(_are_lost(sizes, top), least, (one - other) / 2)
    return step


def balance(r1: Array, r2: Array) -> Balance:
    """How the ranges of the channels between two layers compare."""
    one, other, alive = _octaves(r1, r2)
    sizes = (one + other) / 2
    lost = alive & _are_lost(sizes, sizes.max(where=alive, initial=-np.inf))
    apart = np.abs(one - other).max(where=alive & ~lost, initial=0.0)
    return Balance(alive.size, int((~alive).sum()), int(lost.sum()), float(np.exp2(apart)))


def _octaves(r1: Array, r2: Array) -> tuple[Array, Array, NDArray[np.bool_]]:
    """Ranges in octaves, 0 where a channel has no weights on one side; and where it has."""
    alive = (r1 > 0) & (r2 > 0)
    one, other = (np.log2(ranges, where=alive, out=np.zeros_like(ranges)) for ranges in (r1, r2))
    return one, other, alive


def _are_lost(sizes: Array, top: float) -> NDArray[np.bool_]:
    """Which channels int8 would round to zero; sizes and the largest of them in octaves."""
    return sizes < top - _LOST
