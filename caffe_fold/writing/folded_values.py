"""The values of folded blobs, streamed: read, fold, round, and refuse what does not fit."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Callable, TypeVar

import numpy as np
from numpy.typing import NDArray

from caffe_fold.errors import CheckError
from caffe_fold.layers.affine_map import Array, Refused
from caffe_fold.nets.net import Layer
from caffe_fold.planning.facts import LinearLayer
from caffe_fold.planning.plan import Fold
from caffe_fold.scratch import scratch
from caffe_fold.weights.blob import Storage
from caffe_fold.weights.caffemodel import Caffemodel
from caffe_fold.writing.arithmetic import Folding, blocks

__all__ = ["Blocked", "FoldedValues", "rounded_vector", "until_unblocked"]
__all__ += ["weight_blocks"]

Chunk = NDArray[Any]
T = TypeVar("T")

# Rounding to half loses this part of a number; what underflows loses more.
_HALF_ROUNDING = float(np.finfo(np.float16).eps) / 2 * (1 + 1e-9)


class Blocked(Exception):
    """Computing found what planning could not see: a layer whose fold is to be refused."""

    def __init__(self, layer: Layer, code: str, why: str) -> None:
        sentence = f"layer {layer.described} cannot get new weights: {why}"
        super().__init__(sentence)
        self.layer_index = layer.index
        self.refusal = Refused(code, sentence)


def until_unblocked(what: str, attempt: Callable[[dict[int, Refused]], T]) -> T:
    """Plan and compute, by ``attempt``; where that raises Blocked, do so anew with the layer
    refused. It gets all such refusals, by layer index in the file, one more at each turn, so
    this ends.

    :raises CheckError: if a layer is blocked that was refused already; it says ``what``.
    """
    blocked: dict[int, Refused] = {}
    while True:
        try:
            return attempt(blocked)
        except Blocked as found:
            if found.layer_index in blocked:
                raise CheckError(f"{what} does not settle: {found}") from found
            blocked = {**blocked, found.layer_index: found.refusal}


def weight_blocks(model: Caffemodel, layer: LinearLayer) -> Iterator[tuple[Array, int, int]]:
    """The weights of a layer in float64, a block (rows, cols) at a time, with the row and the
    column at which it begins; in memory that the next block takes."""
    for row, rows, col, cols in blocks(layer.layout):
        start = row * layer.layout.cols + col
        values = model.block(layer.weight, start, start + rows * cols)
        yield values.reshape(rows, cols), row, col


class FoldedValues:
    """The values of one fold, in the order in which they are written: the weights, and
    then the bias, which needs sums over them.

    :raises Blocked: while they are drawn, where they do not fit the number type.
    """

    def __init__(self, model: Caffemodel, fold: Fold, storage: Storage) -> None:
        self.model, self.fold, self.storage = model, fold, storage
        self.folding = Folding(fold.linear.layout, fold.before, fold.behind)
        self._start()

    def _start(self) -> None:
        outputs = self.folding.layout.outputs
        self.shift_sums = np.zeros(outputs)
        self.size, self.lost = np.zeros(outputs), np.zeros(outputs)

    def weights(self) -> Iterator[Chunk]:
        """W' in pieces, each 2-D, in the order of the file, and in memory that the next piece
        takes."""
        self._start()
        layout = self.folding.layout
        for block, row, col in weight_blocks(self.model, self.fold.linear):
            self.folding.add_shift_sums(self.shift_sums, block, row, col)
            folded = self.folding.weights(block, row, col)
            rounded = scratch("rounded", folded.size, self.storage.dtype).reshape(folded.shape)
            _round(folded, rounded, self.fold.linear.layer, "weights")
            if self.storage is Storage.HALF:
                layout.add_per_output(self.size, np.abs(folded), row, col)
                layout.add_per_output(self.lost, np.abs(folded - rounded), row, col)
            yield rounded
        # The weights alone first: a bias of ordinary size would hide that they are lost.
        self._require_little_loss()

    def bias(self) -> Iterator[Chunk]:
        """b' of shape (N,), once the weights are drawn."""
        bias = self.fold.linear.bias
        values = self.model.vector(bias) if bias else None
        folded = self.folding.bias(values, self.shift_sums)
        rounded = _rounded(folded, self.storage, self.fold.linear.layer, "bias")
        self.size += np.abs(folded)
        self.lost += np.abs(folded - rounded)
        self._require_little_loss()
        yield rounded

    def _require_little_loss(self) -> None:
        if self.storage is Storage.HALF:
            _require_little_loss(self.size, self.lost, self.fold.linear.layer)


def rounded_vector(values: Array, storage: Storage, layer: Layer) -> Chunk:
    """One number a channel, rounded; raises Blocked where one does not fit."""
    rounded = _rounded(values, storage, layer, "values")
    if storage is Storage.HALF:
        _require_little_loss(np.abs(values), np.abs(values - rounded), layer)
    return rounded


def _rounded(values: Array, storage: Storage, layer: Layer, name: str) -> Chunk:
    rounded = np.empty(values.shape, storage.dtype)
    _round(values, rounded, layer, name)
    return rounded


def _round(values: Array, rounded: Chunk, layer: Layer, name: str) -> None:
    """Fill ``rounded`` with the values in its number type."""
    with np.errstate(over="ignore", invalid="ignore"):
        rounded[...] = values
        # A finite sum of squares has finite terms alone, and is quicker than to ask each.
        flat = rounded.ravel()
        is_finite = np.isfinite(flat.dot(flat))
    if not is_finite and not np.isfinite(rounded).all():
        if np.isfinite(values).all():
            label = Storage(rounded.itemsize).label
            raise Blocked(layer, "overflow", f"its new {name} would not fit {label}")
        raise Blocked(layer, "not-finite", f"its new {name} would hold numbers that are not finite")


def _require_little_loss(size: Array, lost: Array, layer: Layer) -> None:
    """No channel may lose more than rounding to half costs, as numbers too small do."""
    bad = np.flatnonzero(lost > _HALF_ROUNDING * size)
    if bad.size:
        raise Blocked(
            layer,
            "precision",
            f"channel {int(bad[0])} of it would hold numbers too small for float16",
        )
