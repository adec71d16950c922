"""The factors that balance the layers of a chain, as powers of two.

With factors s between two layers, one a channel, the first becomes W1 / s and the second
W2 * s. The ranges of channel i are largest when they are equal, so (Nagel et al. 2019,
equation 11)::

    s = sqrt(r1 * r2) / r2

where r1 is the largest |w| of output channel i of the first, and r2 that of input
channel i of the second. In a chain one pair's factors change the ranges of the next, so
that it is gone through again until nothing changes.

Here s is the power of two that is nearest. Multiplying by it is exact, so that the
equalised net computes the same numbers bit by bit, and equalising it again changes
nothing; what it costs is that r1 and r2 are equal to a factor of two.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from caffe_fold.quantization.maxima import Maxima

__all__ = ["Exponents", "exponents"]

Array = NDArray[np.float64]
Exponents = NDArray[np.int64]

# Real nets settle in less than ten.
_ROUNDS = 50


def exponents(chain: Sequence[Maxima]) -> list[Exponents]:
    """The exponent of each channel's factor for each two layers that follow each other.

    ``chain`` holds the maxima of two or more layers.
    """
    found = [np.zeros(layer.layer.layout.outputs, np.int64) for layer in chain[:-1]]
    first = chain[0].of_outputs(np.ones(chain[0].channels))
    last = chain[-1].of_inputs(np.ones(chain[-1].layer.layout.outputs))
    for _ in range(_ROUNDS):
        has_settled = True
        for at, exponent in enumerate(found):
            r1 = chain[at].of_outputs(_power(found[at - 1])) if at else first
            is_last = at + 1 == len(found)
            r2 = last if is_last else chain[at + 1].of_inputs(_power(-found[at + 1]))
            step = _step(r1 * _power(-exponent), r2 * _power(exponent))
            exponent += step
            has_settled = has_settled and not step.any()
        if has_settled:
            break
    return found


def _power(exponent: Exponents) -> Array:
    """2 to a power, which is exact."""
    return np.ldexp(1.0, exponent)


def _step(r1: Array, r2: Array) -> Exponents:
    """By how much a factor's exponent is to grow; a channel without weights on one side
    keeps its own."""
    alive = (r1 > 0) & (r2 > 0)
    one, other = (np.log2(np.where(alive, ranges, 1.0)) for ranges in (r1, r2))
    step: Exponents = np.rint((one - other) / 2).astype(np.int64)
    return step
