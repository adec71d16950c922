"""Made weights for any prototxt, so that a net without weights can be folded.

    >>> make_weights("deploy.prototxt", "made.caffemodel", seed=1)

Values are random but realistic: weights scaled by their fan-in, moving-average
factors that are not all one, some gammas negative.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from .blobspecs import BlobSpec, Dims, blob_specs
from .netdef import Layer, NetError, read_net
from .prototext import Ident, Message
from .shapes import infer
from .wire import BlobFormat, layer_bytes, run

Array = npt.NDArray[Any]

FACTORS = (1.0, 999.982, 0.5)


def make_weights(
    prototxt: str | Path,
    out_path: str | Path,
    seed: int = 0,
    stages: tuple[str, ...] = (),
    level: int = 0,
    gain: float = 1.0,
) -> None:
    """Write a caffemodel with made weights for the TEST phase of a prototxt.

    A dimension that cannot be inferred (an InnerProduct behind a layer that is
    not known) counts as 1, and a template's placeholder for num_output as 6. All gammas
    are multiplied by ``gain``: a deep sum of branches grows less with a small one.
    """
    net = read_net(prototxt, stages, level)
    for layer in net.layers:
        _fill_placeholders(layer.text)
    rng = np.random.default_rng(seed)
    bottoms, _ = infer(net)
    shared: dict[str, Array] = {}
    with Path(out_path).open("wb") as out:
        out.write(run(1, net.name.encode()))
        for layer, shapes in zip(net.layers, bottoms):
            blobs = made_blobs(layer, shapes, rng, shared)
            if layer.type == "Scale" and blobs and gain != 1:
                blobs[0] = blobs[0] * gain
            out.write(
                layer_bytes(layer.name, layer.type, layer.bottoms, layer.tops, blobs, BlobFormat())
            )


def _fill_placeholders(message: Message) -> None:
    for index, (name, value) in enumerate(message):
        if isinstance(value, Message):
            _fill_placeholders(value)
        elif name == "num_output" and isinstance(value, Ident):
            message[index] = (name, 6)


def made_blobs(
    layer: Layer, bottoms: list[Dims], rng: np.random.Generator, shared: dict[str, Array]
) -> list[Array]:
    """Return values for a layer's blobs; sharers of a param get the same values."""
    try:
        specs = blob_specs(layer, bottoms) if bottoms else []
    except (NetError, IndexError):
        return []
    factor = float(rng.choice(FACTORS)) if layer.type == "BatchNorm" else 1.0
    if any(spec.role == "one" for spec in specs):
        factor = 1.0
    blobs = []
    for spec, name in zip(specs, [*layer.param_names, *([""] * len(specs))]):
        blob = _values(spec, rng, factor)
        blobs.append(shared.setdefault(name, blob) if name else blob)
    return blobs


def _values(spec: BlobSpec, rng: np.random.Generator, factor: float) -> Array:
    shape = tuple(1 if dim is None else dim for dim in spec.shape)
    if spec.role == "weight":
        fan_in = max(1, int(np.prod(shape[1:])))
        # float32 from the start: a big net has a hundred million of these.
        return rng.standard_normal(shape, np.float32) * np.float32(np.sqrt(2.0 / fan_in))
    if spec.role == "mean":
        return rng.normal(0.0, 0.2, shape) * factor
    if spec.role == "variance":
        return rng.uniform(0.3, 2.0, shape) * factor
    if spec.role in ("factor", "one"):
        return np.full(shape, factor)
    if spec.role == "gamma":
        signs = rng.choice(np.array([1.0, 1.0, 1.0, -1.0]), shape)
        return np.asarray(rng.uniform(0.5, 1.5, shape) * signs)
    if spec.role == "slope":
        return rng.uniform(0.05, 0.4, shape)
    if spec.role == "norm":
        return rng.uniform(5.0, 20.0, shape)
    return rng.normal(0.0, 0.15, shape)  # biases
