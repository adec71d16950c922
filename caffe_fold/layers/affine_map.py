"""A per-channel affine map, and what a type of layer must tell to be one.

Maps compose::

    (a2, c2) after (a1, c1)  =  (a2 * a1, a2 * c1 + c2)
"""

from __future__ import annotations

from typing import Any, Callable, Optional

import numpy as np
from numpy.typing import NDArray

from caffe_fold.choices import Choices
from caffe_fold.named import NamedTuple

__all__ = [
    "AffineMap",
    "AffineType",
    "Array",
    "Constants",
    "Dims",
    "Refused",
    "Standard",
    "channels_of",
]

Array = NDArray[np.float64]
Dims = tuple[Optional[int], ...]
"""A shape as far as it is told: an axis that is not is None, all of it ()."""


def channels_of(shape: Dims) -> int | None:
    """The size of channel axis 1."""
    return shape[1] if len(shape) > 1 else None


class Refused(Exception):
    """What stands in the way of a fold: a stable code and one sentence; ``codes`` holds
    the code of each reason in it, the first of them being ``code``."""

    def __init__(self, code: str, sentence: str, *more: str) -> None:
        super().__init__(sentence)
        self.code = code
        self.codes = (code, *more)
        self.sentence = sentence

    def and_also(self, other: Refused, words: str = "; and ") -> Refused:
        """Both reasons in one sentence; one reason is not told twice."""
        if other.sentence in self.sentence:
            return self
        codes = [code for code in other.codes if code not in self.codes]
        return Refused(
            self.code, f"{self.sentence}{words}{other.sentence}", *self.codes[1:], *codes
        )


class AffineMap(NamedTuple):
    """``y = scale * x + shift`` per channel.

    ``scale`` and ``shift`` are float64 of shape (C,), or (1,) where one number
    serves all channels. ``channels`` is C, or None for a map that fits any number.
    """

    scale: Array
    shift: Array
    channels: int | None

    def then(self, later: AffineMap) -> AffineMap:
        """This map and then another, of as many channels or of any number."""
        with np.errstate(over="ignore", invalid="ignore"):  # see is_finite
            return AffineMap(
                later.scale * self.scale,
                later.scale * self.shift + later.shift,
                self.channels if later.channels is None else later.channels,
            )

    @property
    def is_identity(self) -> bool:
        return bool((self.scale == 1).all() and (self.shift == 0).all())

    @property
    def has_shift(self) -> bool:
        return bool((self.shift != 0).any())

    @property
    def is_finite(self) -> bool:
        return bool(np.isfinite(self.scale).all() and np.isfinite(self.shift).all())

    def equals(self, other: AffineMap) -> bool:
        """Whether both maps hold the same numbers."""
        return np.array_equal(self.scale, other.scale) and np.array_equal(self.shift, other.shift)


class Constants(NamedTuple):
    """What a layer's map is read from.

    ``message`` is its parsed hyper-parameters, ``blobs`` its values in float64, 1-D,
    ``shapes`` the blobs' shapes (legacy ones without their leading ones), ``rank`` the
    number of axes of its bottom, or None where that is not known. ``phase`` is the
    phase it runs in, ``engines`` the engines named for it, ``choices`` what the user
    decided where the files do not say.
    """

    message: Any
    blobs: tuple[Array, ...]
    shapes: tuple[tuple[int, ...], ...]
    rank: int | None
    phase: str
    engines: tuple[str, ...]
    choices: Choices

    def described(self) -> str:
        """The blobs for a message: how many, and their shapes."""
        shapes = ", ".join(str(shape) for shape in self.shapes)
        return f"{len(self.shapes)} blobs of the shapes {shapes}"


class Standard(NamedTuple):
    """A layer as a BatchNorm of BVLC Caffe and a Scale behind it: the blobs of each, none
    where there is nothing to normalise or to scale, and the BatchNorm's eps."""

    norm: tuple[Array, ...] = ()
    scale: tuple[Array, ...] = ()
    eps: float = 0.0


class AffineType(NamedTuple):
    """One type of affine layer.

    ``parameter`` and ``message`` are its hyper-parameters in the prototxt, ``blobs`` the
    numbers of blobs that it may have. ``read`` gives its map or raises Refused;
    ``forward`` computes the layer on ``x`` of shape (C, M) as Caffe does, for blobs that
    are scalars or have one value a channel; it is the proof's, and the fold does not use
    it. ``normalises`` marks what a net that is folded should be free of, ``explained``
    what is explained where it stays.

    ``implied`` gives the shapes of the blobs that the message and the shapes of the
    bottoms imply, or None where they do not; without it there are as many as there may
    be, of one number a channel. ``standard`` gives the layer in standard types, for an
    engine that lacks its own; without it it has no such equal, or is one.
    """

    parameter: str
    message: type[Any]
    blobs: tuple[int, ...]
    read: Callable[[Constants], AffineMap]
    forward: Callable[[Array, Constants], Array]
    normalises: bool = False
    explained: bool = True
    implied: Callable[[Any, tuple[Dims, ...]], tuple[Dims, ...] | None] | None = None
    standard: Callable[[Constants], Standard] | None = None

    def blob_shapes(self, message: Any, bottoms: tuple[Dims, ...]) -> tuple[Dims, ...] | None:
        """The shapes of a layer's blobs by its prototxt, for bottoms of these shapes."""
        if not bottoms:
            return None
        if self.implied is not None:
            return self.implied(message, bottoms)
        return ((channels_of(bottoms[0]),),) * max(self.blobs)
