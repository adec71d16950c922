"""The table of layer types that the evaluator can run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Callable

import numpy as np
import numpy.typing as npt

from .netdef import Layer

Array = npt.NDArray[np.float64]


class Unsupported(Exception):
    """The evaluator cannot run the layer; this says nothing about Caffe."""


@dataclass(frozen=True)
class Call:
    """One layer about to run: its definition, its bottoms' values, its parameter blobs."""

    layer: Layer
    bottoms: list[Array]
    blobs: list[Array]


Forward = Callable[[Call], list[Array]]

FORWARD: dict[str, Forward] = {}
"""Maps a layer type to the function that gives its tops."""


def layer_type(*names: str) -> Callable[[Forward], Forward]:
    """Register a function as the forward pass of these layer types."""

    def register(function: Forward) -> Forward:
        for name in names:
            FORWARD[name] = function
        return function

    return register
