"""What equalising did, as data and as lines of the report."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence

from caffe_fold.errors import show
from caffe_fold.named import NamedTuple
from caffe_fold.report import Checked

__all__ = ["Equalized", "EqualizedPair", "LayerRange", "LeftAlone"]

_SHOWN = 3


class EqualizedPair(NamedTuple):
    """Two linear layers: the weights of the first are divided by a factor for each output
    channel, and those of the second multiplied by it. ``blobs`` lie in between, divided by
    it, too; ``smallest`` and ``largest`` are of the factors."""

    first: str
    second: str
    smallest: float
    largest: float
    blobs: tuple[str, ...]


class LeftAlone(NamedTuple):
    """A linear layer whose outputs keep their scale, with a stable code and one sentence."""

    layer: str
    type: str
    code: str
    reason: str


class LayerRange(NamedTuple):
    """The ranges (the largest |w|) of the output channels of a layer of a pair: the largest
    of them and the median, before and after."""

    layer: str
    type: str
    largest_before: float
    median_before: float
    largest_after: float
    median_after: float

    @property
    def ratios(self) -> tuple[float, float]:
        """The largest range by the median one, before and after; infinite where more than
        half of the channels have no weights."""
        pairs = (
            (self.largest_before, self.median_before),
            (self.largest_after, self.median_after),
        )
        before, after = (big / middle if middle else float("inf") for big, middle in pairs)
        return before, after


class Equalized(NamedTuple):
    """The result of equalising. ``blobs`` are all that changed their scale; ``checked`` is
    None where the proof was left out."""

    pairs: tuple[EqualizedPair, ...]
    left: tuple[LeftAlone, ...]
    ranges: tuple[LayerRange, ...]
    checked: Checked | None = None

    @property
    def blobs(self) -> tuple[str, ...]:
        """The names of all blobs whose scale changed."""
        return tuple(blob for pair in self.pairs for blob in pair.blobs)

    def lines(self) -> Iterator[str]:
        """Each pair and each layer that was left alone, and then a summary."""
        ranges = {found.layer: found for found in self.ranges}
        for pair in self.pairs:
            before, after = ranges[pair.first].ratios
            yield (
                f"balanced {show(pair.first)} -> {show(pair.second)} by {pair.smallest:.3g} to "
                f"{pair.largest:.3g}; largest/median range {before:.3g} -> {after:.3g}"
            )
        for layer in self.left:
            yield f"left     {show(layer.layer)} ({show(layer.type)}): {layer.reason}"
        yield self._summary()

    def _summary(self) -> str:
        if not self.pairs:
            return "equalized no pair of layers"
        before, after = (
            statistics.median(ratios) for ratios in zip(*(r.ratios for r in self.ranges))
        )
        names = self.blobs
        shown = ", ".join(show(name) for name in names[:_SHOWN])
        more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
        return (
            f"equalized {len(self.pairs)} pair{_s(self.pairs)}: largest/median range {before:.3g} "
            f"-> {after:.3g} (the median of {len(self.ranges)} layers); other scale in "
            f"{len(names)} blob{_s(names)}: {shown}{more}"
        )


def _s(things: Sequence[object]) -> str:
    """The end of a plural."""
    return "" if len(things) == 1 else "s"
