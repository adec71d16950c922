"""The proof: what was written, read again and compared with what it replaces.

Each folded layer is computed from the written files, and the layers that it stands
for from the original ones, one after another as Caffe computes them, on random
input of its receptive field. Nothing of the fold's algebra or layouts is used here:
weights are laid out by their definition, and affine layers run forward.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from caffe_fold.errors import CheckError, show
from caffe_fold.layers.affine import Refused
from caffe_fold.nets.graph import Graph
from caffe_fold.nets.net import Layer
from caffe_fold.planning.facts import AffineLayer, Facts, LinearLayer
from caffe_fold.planning.plan import Fold, Merge, Plan
from caffe_fold.report import Checked
from caffe_fold.weights.caffemodel import Blob, Caffemodel, Storage

__all__ = ["check_graph", "check_values", "parameters"]

Array = NDArray[np.float64]

# A weight and a bias are each rounded once, by half a unit; the rest is headroom for
# float64 sums over long rows.
_ROUNDINGS = 1.0
_STEP = 1 << 18


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


def check_values(plan: Plan, old: Caffemodel, new: Facts) -> Checked:
    """Compare each folded, merged or removed run with what stands in its place.

    :raises CheckError: where a channel differs by more than rounding.
    """
    places = {layer.name: at for at, layer in enumerate(new.graph.layers)}
    rng = np.random.default_rng(0)
    worst, count = 0.0, 0
    for fold in plan.folds:
        if fold.changes_weights:
            at = places[fold.linear.layer.name]
            written = new.linear(at)
            _check_shared(new, at)
            has_border = _has_border(new, written)
            worst = max(worst, _check_fold(fold, old, written, new.model, rng, has_border))
            count += 1
    for merge in plan.merges:
        written_scale = new.affine(places[merge.keeper.layer.name])
        worst = max(worst, _check_merge(merge, written_scale, rng))
        count += 1
    for removal in plan.removals:
        x = rng.uniform(-1, 1, (_channels(removal.layers), 4))
        if not np.array_equal(_forward(removal.layers, x), x):
            raise CheckError(f"layer '{show(removal.layers[0].layer.name)}' does change its input")
    return Checked(count, worst)


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


def _check_merge(merge: Merge, written: AffineLayer, rng: np.random.Generator) -> float:
    x = rng.uniform(-1, 1, (_channels(merge.layers), 4))
    wanted = _forward(merge.layers, x)
    found = _forward((written,), x)
    blobs = [blob for entry in written.entries for blob in entry.blobs]
    storage = blobs[0].storage
    scale, shift = (np.abs(values)[:, None] for values in written.constants.blobs)
    size = scale * np.abs(x) + shift
    return _compare(wanted, found, size, storage, 1.0, merge.keeper.layer.name)


def _check_fold(
    fold: Fold,
    old: Caffemodel,
    written: LinearLayer,
    new: Caffemodel,
    rng: np.random.Generator,
    has_border: bool,
) -> float:
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
    x = rng.uniform(-1, 1, (channels, taps))
    # At a border some taps fall outside the input, which counts as zeros there.
    masks = [np.ones(taps)]
    if fold.layers_before and has_border:
        masks.append((np.arange(taps) % 2).astype(np.float64))
    worst = 0.0
    for mask in masks:
        wanted = _linear(fold.linear, old, _forward(fold.layers_before, x) * mask)[0]
        wanted = _forward(fold.layers_behind, wanted[:, None])[:, 0]
        found, size = _linear(written, new, x * mask)
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
    headroom = 64 * np.finfo(np.float64).eps
    allowed = _ROUNDINGS * float(info.eps) * size + float(info.tiny) * float(info.eps) * (terms + 1)
    allowed = allowed + headroom * (size + np.abs(wanted))
    difference = np.abs(wanted - found)
    if not (difference <= allowed).all():
        index = int(np.argmax(np.where(difference <= allowed, 0, 1)))
        raise CheckError(
            f"the written layer '{show(name)}' is wrong: it gives {found.flat[index]:.9g} where "
            f"the original gives {wanted.flat[index]:.9g}; nothing was written. Please report this"
        )
    return float((difference / allowed).max(initial=0.0))


# ---- Linear layers by their definition ----


class _Weights(NamedTuple):
    """The weights of one file, a piece at a time, along the first axis of ``shape``."""

    model: Caffemodel
    blob: Blob

    def part(self, first: int, last: int, row: int) -> Array:
        """Rows ``first:last`` of ``row`` values each."""
        values = self.model.values(self.blob, first * row, last * row)
        return values.astype(np.float64).reshape(last - first, row)


def _linear(layer: LinearLayer, model: Caffemodel, x: Array) -> tuple[Array, Array]:
    """One output of each channel, for an input ``x`` of shape (channels, taps), and the
    sum of |w| |x| and |b|."""
    weights = _Weights(model, layer.weight)
    layout = layer.layout
    total = np.zeros((2, layout.outputs))
    compute = {
        "convolution": _convolution,
        "deconvolution": _deconvolution,
        "inner": _inner_product,
        "transposed": _transposed,
    }[layout.kind]
    compute(weights, layer, x, total)
    if layer.bias is not None:
        bias = model.vector(layer.bias)
        total += np.stack([bias, np.abs(bias)])
    return total[0], total[1]


def _both(total: Array, place: slice, part: Array, x: Array) -> None:
    """Add W x and |W| |x| to the outputs at a place, for W (rows, columns) and x (columns)."""
    total[0, place] += part @ x
    total[1, place] += np.abs(part) @ np.abs(x)


def _convolution(weights: _Weights, layer: LinearLayer, x: Array, total: Array) -> None:
    """Output n of group g is W[n] times the input channels of g (weights N, C/g, k)."""
    layout = layer.layout
    outputs, inputs = layout.outputs // layout.group, layout.inputs // layout.group
    row = inputs * layout.taps
    vectors = x.reshape(layout.group, row)
    if outputs * row > _STEP:
        step = max(1, _STEP // row)
        for g in range(layout.group):
            for n in range(g * outputs, (g + 1) * outputs, step):
                last = min(n + step, (g + 1) * outputs)
                _both(total, slice(n, last), weights.part(n, last, row), vectors[g])
        return
    step = max(1, _STEP // (outputs * row))
    for g in range(0, layout.group, step):
        last = min(g + step, layout.group)
        part = weights.part(g * outputs, last * outputs, row).reshape(last - g, outputs, row)
        place = slice(g * outputs, last * outputs)
        total[0, place] += np.einsum("gnr,gr->gn", part, vectors[g:last]).ravel()
        total[1, place] += np.einsum("gnr,gr->gn", np.abs(part), np.abs(vectors[g:last])).ravel()


def _deconvolution(weights: _Weights, layer: LinearLayer, x: Array, total: Array) -> None:
    """Each input channel c of group g adds to all outputs of g (weights C, N/g, k)."""
    layout = layer.layout
    outputs, inputs = layout.outputs // layout.group, layout.inputs // layout.group
    row = outputs * layout.taps
    step = max(1, min(_STEP // row, inputs))
    for g in range(layout.group):
        place = slice(g * outputs, (g + 1) * outputs)
        for c in range(g * inputs, (g + 1) * inputs, step):
            last = min(c + step, (g + 1) * inputs)
            part = weights.part(c, last, row).reshape(last - c, outputs, layout.taps)
            total[0, place] += np.einsum("cnt,ct->n", part, x[c:last])
            total[1, place] += np.einsum("cnt,ct->n", np.abs(part), np.abs(x[c:last]))


def _inner_product(weights: _Weights, layer: LinearLayer, x: Array, total: Array) -> None:
    """Output n is W[n] times all inputs (weights N, K)."""
    layout = layer.layout
    step = max(1, _STEP // layout.inputs)
    for n in range(0, layout.outputs, step):
        last = min(n + step, layout.outputs)
        _both(total, slice(n, last), weights.part(n, last, layout.inputs), x.ravel())


def _transposed(weights: _Weights, layer: LinearLayer, x: Array, total: Array) -> None:
    """Input k adds W[k] times itself to all outputs (weights K, N)."""
    layout, flat = layer.layout, x.ravel()
    step = max(1, _STEP // layout.outputs)
    for k in range(0, layout.inputs, step):
        last = min(k + step, layout.inputs)
        part = weights.part(k, last, layout.outputs)
        total[0] += flat[k:last] @ part
        total[1] += np.abs(flat[k:last]) @ np.abs(part)
