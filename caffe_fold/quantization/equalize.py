"""Cross-layer equalisation of a folded net: a second pass, from weights to weights.

The prototxt stays as it is. Each pair's factors s are maps like those that are folded,
1/s behind the first layer and s before the second, so that they go through the same
rewriting and the same proof as a fold.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from caffe_fold.choices import Choices
from caffe_fold.errors import CheckError, InputError
from caffe_fold.layers.affine import AFFINE, AffineMap, Constants, Refused
from caffe_fold.named import NamedTuple
from caffe_fold.nets.graph import Graph
from caffe_fold.planning.facts import AffineLayer, Facts, LinearLayer
from caffe_fold.planning.plan import Fold, Plan
from caffe_fold.planning.surgery import Surgery
from caffe_fold.quantization.check_equalized import check_equalized
from caffe_fold.quantization.factors import Balance, balance, balancing_factors
from caffe_fold.quantization.maxima import Maxima
from caffe_fold.quantization.pairs import Left, Pair, Pairs, chains
from caffe_fold.quantization.result import Equalized, EqualizedPair, LayerRange, LeftAlone
from caffe_fold.report import Checked
from caffe_fold.weights.caffemodel import Caffemodel
from caffe_fold.weights_files import WeightsFile, opened_weights
from caffe_fold.writing.folded_values import Blocked, until_unblocked
from caffe_fold.writing.rewrite_caffemodel import rewrite_caffemodel

__all__ = ["equalize_weights"]

Array = NDArray[np.float64]

_CHOICES = Choices()
# In bytes, what is remembered of a chain's weights; balancing asks for them many times.
_MEMORY = 1 << 24
# Ranges that differ by less are told to be the same.
_SHOWN_FACTOR = 1.005


def equalize_weights(
    graph: Graph,
    weights: str,
    kind: str,
    folder: str,
    keep: Sequence[str],
    check: bool,
    threads: int | None,
) -> Equalized:
    """Equalise the weights of a net, in their place.

    :param graph: the net, whose prototxt stays as it is.
    :param weights: its weights, a file of this package's own making.
    :param kind: "binary" or "hdf5".
    :param folder: where scratch files go, on the file system of the weights.
    :param keep: names of blobs that must keep their values.
    :param check: re-read what was written and compare it with what was there.
    :param threads: how many threads compute; None for one a core.
    :raises CheckError: if what was written is not what was planned; the weights are then
        as they were.
    """
    kept = [graph.last[name] for name in keep]
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        target = os.path.join(scratch, "equalized")
        with opened_weights(weights, kind, graph, scratch) as file, file.open() as model:
            files = _Files(graph, model, file, target, threads)
            equalizing, checked = _written(files, kept, check)
        if equalizing.chains:
            os.replace(target, weights)
    return equalizing.result._replace(checked=checked)


class _Files(NamedTuple):
    """What is rewritten, ``model`` of ``file``, and where the new weights go."""

    graph: Graph
    model: Caffemodel
    file: WeightsFile
    target: str
    threads: int | None


class _Equalizing(NamedTuple):
    """What is to be done: chains of pairs that change, as folds, and as a report."""

    chains: tuple[tuple[Pair, ...], ...]
    plan: Plan
    result: Equalized


def _written(files: _Files, kept: Sequence[int], check: bool) -> tuple[_Equalizing, Checked | None]:
    """Plan, write and prove; where computing shows that a layer's new weights do not fit their
    number type, plan anew without it."""
    graph, model, file, target, threads = files

    def attempt(blocked: dict[int, Refused]) -> tuple[_Equalizing, Checked | None]:
        equalizing = _planned(graph, model, kept, blocked)
        if equalizing.chains:
            parts = list(rewrite_caffemodel(model, graph, equalizing.plan, _CHOICES))
            file.write(model, parts, target, graph, threads)
        return equalizing, _prove(files, equalizing) if check and equalizing.chains else None

    return until_unblocked("equalising", attempt)


def _prove(files: _Files, equalizing: _Equalizing) -> Checked:
    graph, model, file, target, threads = files
    try:
        with file.reopen(target, graph) as written:
            facts = Facts(graph, written)
            return check_equalized(equalizing.plan, equalizing.chains, model, facts, threads)
    except (InputError, Refused) as error:
        raise CheckError(f"what was written cannot be read again: {error}") from error


# ---- Planning ----


def _planned(
    graph: Graph, model: Caffemodel, kept: Sequence[int], blocked: dict[int, Refused]
) -> _Equalizing:
    """Find pairs and factors; raises Blocked for a layer whose weights are not finite."""
    pairs, left = Pairs(Facts(graph, model, _CHOICES, blocked), kept).find()
    found: list[tuple[Pair, ...]] = []
    folds: list[Fold] = []
    done: list[EqualizedPair] = []
    ranges: list[LayerRange] = []
    for chain in chains(pairs):
        maxima = _maxima(model, chain)
        factors = balancing_factors(maxima)
        if not all(_is_one(scale) for scale in factors):
            found.append(chain)
            folds += _folds(chain, factors)
            ranges += _ranges(maxima, factors)
        for at, (pair, scale) in enumerate(zip(chain, factors)):
            if _is_one(scale):
                left.append(_in_balance(pair, _balance(maxima, factors, at)))
            else:
                done.append(_reported(pair, scale))
    alone = [
        LeftAlone(la.layer.name, la.layer.type, la.code, la.sentence)
        for la in sorted(left, key=lambda la: la.layer.index)
    ]
    plan = Plan(Surgery(graph, ()), tuple(folds), (), (), (), ())
    return _Equalizing(tuple(found), plan, Equalized(tuple(done), tuple(alone), tuple(ranges)))


def _maxima(model: Caffemodel, chain: Sequence[Pair]) -> list[Maxima]:
    layers = [chain[0].first, *(pair.second for pair in chain)]
    channels = [chain[0].first.layout.inputs, *(pair.channels for pair in chain)]
    found: list[Maxima] = []
    left = _MEMORY
    for layer, count in zip(layers, channels):
        maxima = Maxima(model, layer, count, left)
        left -= maxima.size if maxima.is_remembered else 0
        found.append(maxima)
        if not np.isfinite(maxima.of_outputs(np.ones(maxima.channels))).all():
            raise Blocked(layer.layer, "not-finite", "its weights hold numbers that are not finite")
    return found


def _folds(chain: Sequence[Pair], factors: Sequence[Array]) -> list[Fold]:
    """The layers of a chain with the factors around them, those that change."""
    layers = [(chain[0].at, chain[0].first), *((pair.to, pair.second) for pair in chain)]
    found = []
    for index, (at, linear) in enumerate(layers):
        before = _scaling(linear, factors[index - 1]) if index else None
        behind = _scaling(linear, 1 / factors[index]) if index < len(factors) else None
        fold = Fold(
            at,
            linear,
            before.map if before else None,
            behind.map if behind else None,
            (before,) if before else (),
            (behind,) if behind else (),
        )
        if fold.changes_weights:
            found.append(fold)
    return found


def _scaling(linear: LinearLayer, factors: Array) -> AffineLayer:
    """A Scale beside a layer that multiplies each channel by a factor."""
    constants = Constants(None, (factors,), (factors.shape,), None, "TEST", (), _CHOICES)
    scale = AffineMap(factors, np.zeros(1), factors.size)
    return AffineLayer(linear.layer, AFFINE["Scale"], scale, constants, ())


# ---- Reporting ----


def _ranges(maxima: Sequence[Maxima], factors: Sequence[Array]) -> list[LayerRange]:
    """The ranges of output channels of the layers of a chain with factors beside them: all
    of them, since the factors on its two sides may leave a layer's ranges as they were."""
    found = []
    for index, layer in enumerate(maxima):
        if all(_is_one(scale) for scale in factors[max(index - 1, 0) : index + 1]):
            continue
        before = layer.of_outputs(np.ones(layer.channels))
        scale = factors[index - 1] if index else np.ones(layer.channels)
        after = layer.of_outputs(scale)
        if index < len(factors):
            after /= factors[index]
        numbers = [float(f(values)) for values in (before, after) for f in (np.max, np.median)]
        found.append(LayerRange(layer.layer.layer.name, layer.layer.layer.type, *numbers))
    return found


def _is_one(factors: Array) -> bool:
    return bool((factors == 1).all())


def _reported(pair: Pair, factors: Array) -> EqualizedPair:
    return EqualizedPair(
        pair.first.layer.name,
        pair.second.layer.name,
        float(factors.min()),
        float(factors.max()),
        pair.blobs,
    )


def _balance(maxima: Sequence[Maxima], factors: Sequence[Array], at: int) -> Balance:
    """That of a pair of a chain, with the factors of the pairs beside it."""
    first, second = maxima[at : at + 2]
    before = factors[at - 1] if at else np.ones(first.channels)
    is_last = at + 1 == len(factors)
    behind = np.ones(second.layer.layout.outputs) if is_last else factors[at + 1]
    return balance(first.of_outputs(before), second.of_inputs(1 / behind))


def _in_balance(pair: Pair, found: Balance) -> Left:
    """Why a pair gets no factors."""
    layer, other = pair.first.layer, pair.second.layer
    described = f"layer {other.described}"
    if found.zero == found.channels:
        return Left(
            layer,
            "zero-weights",
            f"no channel has weights other than 0 both in it and in {described}, which reads it",
        )
    factor = f" to a factor of {found.apart:.3g}" if found.apart >= _SHOWN_FACTOR else ""
    but = [f"{found.zero} with only zeros on one side"] if found.zero else []
    but += [f"{found.lost} that int8 would round to zero"] if found.lost else []
    return Left(
        layer,
        "in-balance",
        f"its channels and those that {described} reads have the same range{factor}"
        + (f", but for {' and '.join(but)}" if but else ""),
    )
