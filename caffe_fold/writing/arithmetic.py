"""The arithmetic of a fold, on arrays alone, in float64 and rounded once.

Weights come as blocks: rows ``row`` and on, columns ``col`` and on, of the matrix
that a Layout sees in them. So a fold of any size runs in bounded memory.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from caffe_fold.layers.affine import AffineMap
from caffe_fold.layers.linear import Layout
from caffe_fold.named import NamedTuple

__all__ = ["Folding", "blocks"]

Array = NDArray[np.float64]

# Larger ones leave a usual second-level cache, and for smaller ones threads wait for each other.
BLOCK = 1 << 17


# NumPy copies one number a row as often as there are columns, unless rows are longer than its
# buffer of so many numbers, and that takes longer than to multiply.
_BUFFER = 1 << 8


class Folding(NamedTuple):
    """One linear layer with the maps before and behind it, or None."""

    layout: Layout
    before: AffineMap | None
    behind: AffineMap | None

    def weights(self, block: Array, row: int, col: int) -> Array:
        """W' of a block of W, float64 of the same shape, in its place."""
        usual = np.setbufsize(_BUFFER)
        try:
            with np.errstate(all="ignore"):  # what is not finite is refused where it is rounded
                if self.before is not None:
                    block *= self._inputs(self.before.scale, block, row, col)
                if self.behind is not None:
                    block *= self._outputs(self.behind.scale, block, row, col)
        finally:
            np.setbufsize(usual)
        return block

    def add_shift_sums(self, sums: Array, block: Array, row: int, col: int) -> None:
        """Add to ``sums`` (N,) what a block of W adds to W c, for the shift c of the map
        before."""
        if self.before is not None and self.before.has_shift:
            with np.errstate(all="ignore"):
                products = block * self._inputs(self.before.shift, block, row, col)
                self.layout.add_per_output(sums, products, row, col)

    def bias(self, bias: Array | None, shift_sums: Array) -> Array:
        """b' of shape (N,) from b (N,) or None and the sums of W c over all blocks."""
        with np.errstate(all="ignore"):
            total = shift_sums if bias is None else bias + shift_sums
            if self.behind is None:
                return total
            return self.behind.scale * total + self.behind.shift

    def _inputs(self, channels: Array, block: Array, row: int, col: int) -> Array:
        """One number an input channel, laid out to meet a block."""
        spread = self.layout.spread(channels)
        if self.layout.kind == "transposed":
            return spread[row : row + block.shape[0]]
        columns = slice(col, col + block.shape[1])
        if spread.shape[0] == 1:
            return spread[:, columns]
        return spread[self.layout.input_of(np.arange(row, row + block.shape[0])), columns]

    def _outputs(self, channels: Array, block: Array, row: int, col: int) -> Array:
        """One number an output channel, laid out to meet a block."""
        values = np.broadcast_to(channels, (self.layout.outputs,))
        if self.layout.kind == "transposed":
            return values[None, col : col + block.shape[1]]
        return values[self.layout.output_of(np.arange(row, row + block.shape[0])), None]


def blocks(layout: Layout, size: int = BLOCK) -> Iterator[tuple[int, int, int, int]]:
    """Cut the matrix of a layout into (row, rows, col, cols) blocks of at most ``size``
    weights, each in one piece in the file: whole rows, or a part of one."""
    rows, cols = layout.rows, layout.cols
    if cols > size:
        for row in range(rows):
            for col in range(0, cols, size):
                yield row, 1, col, min(size, cols - col)
        return
    step = size // max(cols, 1)
    for row in range(0, rows, step):
        yield row, min(step, rows - row), 0, cols
