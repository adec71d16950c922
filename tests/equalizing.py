"""Equalise a small net and judge the result by means independent of the package.

    >>> done = equalize_net(net, tmp_path)
    >>> done.pairs, done.left("conv2").code

``equalize_net`` folds a net without and with equalising, and then asserts:

- the prototxt is that of the fold alone, and so are all entries of the weights that are
  in no pair;
- each output of the net, and each blob that the report does not name, has its value, and
  each channel of a named one has it times one positive factor;
- the ranges on both sides of each pair are equal, channel by channel;
- equalising the result again changes no byte.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from folding import TOLERANCE, outputs, raw_layers
from support import netdef
from support.compare import differ
from support.evaluate import Evaluation, Evaluator
from support.netdef import Layer, NetDef
from support.nets import Net
from support.weights import read_weights

import caffe_fold
from caffe_fold.quantization.result import Equalized, LeftAlone
from caffe_fold.report import Report

Array = npt.NDArray[np.float64]


@dataclass
class Done:
    """A net, equalised: the report, both weights files, and the values of all blobs of the
    original net, the folded and the equalised one."""

    report: Report
    model: Path
    folded_weights: bytes
    weights: Path
    net: NetDef
    before: Evaluation = field(default_factory=Evaluation)
    folded: Evaluation = field(default_factory=Evaluation)
    after: Evaluation = field(default_factory=Evaluation)

    @property
    def equalized(self) -> Equalized:
        assert self.report.equalized is not None
        return self.report.equalized

    @property
    def pairs(self) -> list[tuple[str, str]]:
        """The names of the layers of each pair."""
        return [(pair.first, pair.second) for pair in self.equalized.pairs]

    def left(self, name: str) -> LeftAlone:
        """Why a layer's outputs keep their scale."""
        (found,) = [left for left in self.equalized.left if left.layer == name]
        return found

    def blobs(self, name: str) -> list[Array]:
        """The blobs of a layer in the equalised weights."""
        (entry,) = [entry for entry in read_weights(self.weights) if entry.name == name]
        return [np.asarray(blob.array(), np.float64) for blob in entry.blobs]


def equalize_net(
    net: Net,
    folder: Path,
    text: str | None = None,
    balance: float = 1.03,
    tolerance: float = TOLERANCE,
    runs: bool = True,
    stages: Sequence[str] = (),
    **options: Any,
) -> Done:
    """Equalise a net and judge the result; see the module.

    ``balance`` is how far apart the two ranges of a channel may be, ``tolerance`` how far
    the outputs from the original's, ``runs`` is false where the evaluator knows no such net.
    """
    model, weights = net.write(folder)
    if text is not None:
        model.write_text(text, "utf-8")
    alone = folder / "folded.prototxt", folder / "folded.caffemodel"
    made = folder / "equal.prototxt", folder / "equal.caffemodel"
    caffe_fold.fold(model, weights, *alone, stages=stages, **options)
    report = caffe_fold.fold(model, weights, *made, stages=stages, equalize=True, **options)
    done = Done(report, made[0], alone[1].read_bytes(), made[1], netdef.read_net(made[0], stages))
    assert made[0].read_bytes() == alone[0].read_bytes()
    if runs:
        files = ((model, weights), alone, made)
        done.before, done.folded, done.after = (
            Evaluator(*pair, stages).run(net.inputs()) for pair in files
        )
        assert_values(done, netdef.read_net(model, stages), tolerance)
    assert_weights(done)
    for first, second in done.pairs:
        assert_balanced(done, first, second, balance)
    again = folder / "again.prototxt", folder / "again.caffemodel"
    once_more = caffe_fold.fold(*made, *again, stages=stages, equalize=True, **options)
    assert once_more.equalized is not None
    assert once_more.equalized.pairs == ()
    assert again[1].read_bytes() == made[1].read_bytes()
    return done


def assert_values(done: Done, original: NetDef, tolerance: float) -> None:
    """Outputs and blobs outside pairs keep their values, and the others get one factor a
    channel."""
    names = set(done.equalized.blobs)
    assert names.isdisjoint(outputs(original))
    for name in outputs(original):
        difference = differ(name, done.before.blobs[name], done.after.blobs[name])
        assert difference.relative <= tolerance, difference
    for name, value in done.folded.blobs.items():
        if name not in names:
            difference = differ(name, value, done.after.blobs[name])
            assert difference.relative <= TOLERANCE, difference
            continue
        one, other = (
            np.moveaxis(values, 1, 0).reshape(values.shape[1], -1)
            for values in (value, done.after.blobs[name])
        )
        for channel, (left, right) in enumerate(zip(one, other)):
            at = int(np.argmax(np.abs(left)))
            factor = right[at] / left[at] if left[at] else 1.0
            assert factor > 0, (name, channel)
            difference = differ(name, left * factor, right)
            assert difference.relative <= TOLERANCE, (difference, channel)


def assert_weights(done: Done) -> None:
    """Only entries of layers in a pair differ from those of the fold alone."""
    concerned = {name for pair in done.pairs for name in pair}
    old, new = raw_layers(done.folded_weights), raw_layers(done.weights.read_bytes())
    assert [name for name, _ in old] == [name for name, _ in new]
    for (name, before), (_, after) in zip(old, new):
        assert (before == after) == (name not in concerned), name


def assert_balanced(done: Done, first: str, second: str, balance: float) -> None:
    """The largest weights of each channel are the same on both sides."""
    layers = {layer.name: layer for layer in done.net.layers}
    r1 = sizes(layers[first], done.blobs(first)[0], None).max(axis=1)
    r2 = sizes(layers[second], done.blobs(second)[0], r1.size).max(axis=0)
    alive = (r1 > 0) & (r2 > 0)
    np.testing.assert_array_less(r1[alive] / r2[alive], balance)
    np.testing.assert_array_less(r2[alive] / r1[alive], balance)


def sizes(layer: Layer, weight: Array, channels: int | None) -> Array:
    """The largest |w| between each output channel and each input channel, (N, C); of an
    InnerProduct each input channel is a run of columns."""
    weight = np.abs(weight)
    if layer.type == "InnerProduct":
        matrix: Array = weight.reshape(weight.shape[-2], weight.shape[-1])
        if layer.params("inner_product_param").flag("transpose"):
            matrix = matrix.T
        shape = matrix.shape[0], channels or matrix.shape[1], -1
        columns: Array = matrix.reshape(shape).max(axis=2)
        return columns
    weight = weight.reshape(*weight.shape[:2], -1).max(axis=2)
    group = layer.params("convolution_param").integer("group", 1)
    if "Depthwise" in layer.type:
        group = weight.shape[0]
    count, width = weight.shape[0] // group, weight.shape[1]
    full = np.zeros((weight.shape[0], width * group))
    for g in range(group):
        place = slice(g * count, (g + 1) * count)
        full[place, g * width : (g + 1) * width] = weight[place]
    return full.T if layer.type == "Deconvolution" else full
