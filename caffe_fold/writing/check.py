"""The proof: what was written, read again and compared with what it replaces.

Each folded layer is computed from the written files, and the layers that it stands
for from the original ones, one after another as Caffe computes them, on random
input of its receptive field. Nothing of the fold's algebra or layouts is used here:
weights are laid out by their definition, and affine layers run forward.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator, Sequence
from typing import Callable

import numpy as np
from numpy.typing import NDArray

from caffe_fold.errors import CheckError, show
from caffe_fold.layers.affine import Refused
from caffe_fold.nets.graph import Graph
from caffe_fold.nets.net import Layer
from caffe_fold.planning.facts import AffineLayer, Facts, LinearLayer
from caffe_fold.planning.plan import Fold, Merge, Plan, Removal
from caffe_fold.report import Checked
from caffe_fold.threads import each
from caffe_fold.weights.blob import Storage
from caffe_fold.weights.caffemodel import Caffemodel
from caffe_fold.writing.extremes import has_extremes, linear_has_extremes, unprovable
from caffe_fold.writing.linear_forward import linear_forward

__all__ = ["check_graph", "check_values", "parameters"]

Array = NDArray[np.float64]

# A weight and a bias are each rounded once, by half a unit; the rest is headroom for
# float64 sums over long rows.
_ROUNDINGS = 1.0
_HEADROOM = 64 * float(np.finfo(np.float64).eps)


def check_graph(plan: Plan, old: Graph, new: Graph) -> None:
    """Compare the graph of the written prototxt with the planned one.

    :raises CheckError: where a layer, a name or a binding differs.
    """
    surgery = plan.surgery
    alive = [at for at in range(len(old.layers)) if surgery.alive[at]]
    if len(alive) != len(new.layers):
        raise CheckError(
            f"the written prototxt has {len(new.layers)} layers and {len(alive)} were planned"
        )
    place = {at: index for index, at in enumerate(alive)}
    merged = {merge.at for merge in plan.merges}
    for at, layer in zip(alive, new.layers):
        before = old.layers[at]
        planned = (
            before.name,
            "Scale" if at in merged else before.type,
            tuple(surgery.bottom_names[at]),
            tuple(surgery.top_names[at]),
            tuple(_producer(surgery.producer[v], place) for v in surgery.bottoms[at]),
        )
        bound = [new.values[v] for v in new.bottoms[place[at]]]
        found = (
            layer.name,
            layer.type,
            layer.bottoms,
            layer.tops,
            tuple((v.producer, v.slot) for v in bound),
        )
        if planned != found:
            raise CheckError(
                f"layer '{show(before.name)}' of the written prototxt is {found}, not {planned}"
            )
        if at not in merged and parameters(old, before) != parameters(new, layer):
            raise CheckError(
                f"layer '{show(before.name)}' of the written prototxt has other parameters; "
                "nothing was written. Please report this"
            )


# What folding may change in a layer that it does not make a Scale.
_CHANGING = frozenset(("bottom", "top", "bias_term", "engine", "quantization_param", "param"))


def parameters(graph: Graph, layer: Layer) -> list[str]:
    """What a layer's text says beside what folding may change: names and values, level by
    level."""
    document, found, level = graph.net.document, [], list(layer.fields)
    while level:
        level = [field for field in level if field.name not in _CHANGING]
        found += [
            field.name if field.fields is not None else f"{field.name}: {document.value(field)}"
            for field in level
        ]
        level = [child for field in level for child in field.fields or ()]
    return found


def _producer(producer: tuple[int | None, int], place: dict[int, int]) -> tuple[int | None, int]:
    at, slot = producer
    return (None, 0) if at is None else (place[at], slot)


def check_values(plan: Plan, old: Caffemodel, new: Facts, threads: int | None = None) -> Checked:
    """Compare each folded, merged or removed run with what stands in its place.

    :raises CheckError: where a channel differs by more than rounding.
    :raises Blocked: where it may do so since float64 has no room for its numbers.
    """
    places = {layer.name: at for at, layer in enumerate(new.graph.layers)}
    changed = [fold for fold in plan.folds if fold.changes_weights]
    written = [new.linear(places[fold.linear.layer.name]) for fold in changed]
    found: list[float] = []

    def check(pair: tuple[Fold, LinearLayer]) -> None:
        fold = pair[0]
        layers = (*fold.layers_before, *fold.layers_behind)
        with _proving(fold.linear.layer, layers, lambda: linear_has_extremes(fold.linear, old)):
            found.append(_check_fold(*pair, old, new))

    for layer in written:
        _check_shared(new, places[layer.layer.name])
    each(check, list(zip(changed, written)), lambda pair: pair[1].weight.size, threads)
    for merge in plan.merges:
        with _proving(merge.keeper.layer, merge.layers):
            found.append(_check_merge(merge, new.affine(places[merge.keeper.layer.name])))
    for removal in plan.removals:
        with _proving(removal.layers[0].layer, removal.layers):
            _check_removal(removal)
    return Checked(len(found), max(found, default=0.0))


def _noise(rows: int, columns: int) -> Array:
    """Numbers in [-1, 1) that look random, and are the same in each run; not to be changed."""
    count = rows * columns
    return (_first_numbers()[:count] if count <= _FEW else _numbers(count)).reshape(rows, columns)


_FEW = 1 << 14


@functools.lru_cache(maxsize=1)
def _first_numbers() -> Array:
    numbers = _numbers(_FEW)
    numbers.flags.writeable = False
    return numbers


def _numbers(count: int) -> Array:
    """The first numbers of splitmix64 (Steele, Lea and Flood 2014). NumPy's generators take
    longer to import than all that is done here with their numbers."""
    mixed = np.arange(1, count + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        mixed = (mixed ^ (mixed >> np.uint64(shift))) * np.uint64(factor)
    mixed ^= mixed >> np.uint64(31)
    numbers: Array = (mixed >> np.uint64(11)).astype(np.float64) * 2.0**-52 - 1
    return numbers


def _has_border(new: Facts, written: LinearLayer) -> bool:
    """Whether some outputs of a layer see less than its whole kernel, by the written text."""
    if written.layout.kind != "convolution":
        return written.layout.kind == "deconvolution"
    document = new.graph.net.document
    fields = [f for p in written.layer.fields for f in p.fields or () if "pad" in f.name]
    return any(document.value(field) not in ("0", "0x0") for field in fields)


def _check_shared(new: Facts, at: int) -> None:
    """The copies of a folded layer's shared blobs must be equal, or loading picks one of them."""
    try:
        new.sharing.require_equal_copies(at)
    except Refused as difference:
        name = show(new.graph.layers[at].name)
        raise CheckError(f"the written layer '{name}' is wrong: {difference}") from None


def _channels(layers: Sequence[AffineLayer]) -> int:
    return max((layer.map.channels or 1 for layer in layers), default=1)


def _forward(layers: Sequence[AffineLayer], x: Array) -> Array:
    """Run affine layers on ``x`` (C, M), one after another."""
    for layer in layers:
        x = layer.kind.forward(x, layer.constants)
    return x


@contextlib.contextmanager
def _proving(
    layer: Layer, affine: Sequence[AffineLayer], more: Callable[[], bool] = lambda: False
) -> Iterator[None]:
    """Where one of the ``affine`` layers holds extreme numbers, or there are ``more``, a proof
    that fails is none of the fold's faults: ``layer`` is refused."""
    try:
        with np.errstate(all="ignore"):  # numbers that overflow here differ, and are named
            yield
    except CheckError:
        if any(map(has_extremes, affine)) or more():
            raise unprovable(layer) from None
        raise


def _check_removal(removal: Removal) -> None:
    """Layers that give what they get, but for float64's rounding of what is between them."""
    x = y = _noise(_channels(removal.layers), 4)
    largest = np.abs(x)
    for layer in removal.layers:
        y = layer.kind.forward(y, layer.constants)
        largest = np.maximum(largest, np.abs(y))
    if not (np.isfinite(largest) & (np.abs(y - x) <= _HEADROOM * largest)).all():
        raise CheckError(f"layer '{show(removal.layers[0].layer.name)}' does change its input")


def _check_merge(merge: Merge, written: AffineLayer) -> float:
    x = _noise(_channels(merge.layers), 4)
    wanted = _forward(merge.layers, x)
    found = _forward((written,), x)
    blobs = [blob for entry in written.entries for blob in entry.blobs]
    storage = blobs[0].storage
    scale, shift = (np.abs(values)[:, None] for values in written.constants.blobs)
    size = scale * np.abs(x) + shift
    return _compare(wanted, found, size, storage, 1.0, merge.keeper.layer.name)


def _check_fold(fold: Fold, written: LinearLayer, old: Caffemodel, new: Facts) -> float:
    """Compare one folded layer; gives the largest part of the allowance that was used."""
    layout = fold.linear.layout
    if written.layout != layout:
        raise CheckError(
            f"the written layer '{show(written.layer.name)}' is wrong: it is a {written.layout}, "
            f"not a {layout}; nothing was written. Please report this"
        )
    inner = layout.kind in ("inner", "transposed")
    channels = _channels(fold.layers_before) if inner else layout.inputs
    taps = layout.inputs // channels if inner else layout.taps
    x = _noise(channels, taps)
    # At a border some taps fall outside the input, which counts as zeros there.
    masks = [np.ones(taps)]
    if fold.layers_before and _has_border(new, written):
        masks.append((np.arange(taps) % 2).astype(np.float64))
    worst = 0.0
    for mask in masks:
        wanted = linear_forward(fold.linear, old, _forward(fold.layers_before, x) * mask)
        wanted = _forward(fold.layers_behind, wanted[:, None])[:, 0]
        size = np.zeros(layout.outputs)
        found = linear_forward(written, new.model, x * mask, size)
        storage = written.weight.storage
        worst = max(
            worst, _compare(wanted, found, size, storage, float(x.size), written.layer.name)
        )
    return worst


def _compare(
    wanted: Array, found: Array, size: Array, storage: Storage, terms: float, name: str
) -> float:
    """The largest difference as a part of what rounding to ``storage`` allows, where
    ``size`` is the sum of |w| |x| and |b|, and ``terms`` how many weights add to it."""
    info = np.finfo(storage.dtype)
    allowed = _ROUNDINGS * float(info.eps) * size + float(info.tiny) * float(info.eps) * (terms + 1)
    allowed = allowed + _HEADROOM * (size + np.abs(wanted))
    difference = np.abs(wanted - found)
    agrees = (difference <= allowed) & np.isfinite(allowed)
    if not agrees.all():
        index = int(np.argmin(agrees))
        raise CheckError(
            f"the written layer '{show(name)}' is wrong: it gives {found.flat[index]:.9g} where "
            f"the original gives {wanted.flat[index]:.9g}; nothing was written. Please report this"
        )
    return float((difference / allowed).max(initial=0.0))
