"""What the net is made of: layers, with blobs that are still to be drawn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Callable, Union

import numpy as np
import numpy.typing as npt

__all__ = ["Blob", "Draw", "Fields", "FloatArray", "Layer", "Scalar", "Shape", "Word"]

FloatArray = npt.NDArray[np.float32]
Shape = tuple[int, ...]
Draw = Callable[[np.random.Generator, Shape], FloatArray]


class Word(str):
    """A value that a prototxt writes without quotes: the name of an enum's value."""

    __slots__ = ()


Scalar = Union[bool, int, float, str]
Fields = Sequence[tuple[str, Union[Scalar, "Fields"]]]


@dataclass(frozen=True)
class Blob:
    """A blob that is still to be drawn: its shape and the distribution of its values."""

    shape: Shape
    draw: Draw


@dataclass(frozen=True)
class Layer:
    """One layer; ``comment`` goes above it in the prototxt, ``blobs`` into the caffemodel."""

    name: str
    type: str
    bottoms: tuple[str, ...]
    tops: tuple[str, ...]
    fields: Fields = ()
    blobs: tuple[Blob, ...] = ()
    comment: str = ""
