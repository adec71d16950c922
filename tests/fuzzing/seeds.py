"""The nets that are mutated: random ones, odd ones, and excerpts of real ones."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from hypothesis import HealthCheck, Phase, given, seed, settings
from random_nets import RandomNet, nets
from support.nets import Array, Net
from support.wire import BlobFormat

from .mutate_wire import records

__all__ = ["Seed", "excerpts", "made", "pieces_of_text", "pieces_of_weights"]


class Seed(NamedTuple):
    """A prototxt, its caffemodel, and values for the net's inputs."""

    text: bytes
    weights: bytes
    inputs: dict[str, Array]


@functools.cache
def made(count: int = 60) -> tuple[Seed, ...]:
    """``count`` random nets and the odd ones; always the same."""
    found: list[Seed] = [_seed(net) for net in _odd()]

    def keep(one: RandomNet) -> None:
        found.append(_seed(one.net))

    for number, kind in enumerate(("double", "data", "raw_double")):
        draws = settings(
            max_examples=count // 3,
            deadline=None,
            database=None,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        seed(number)(draws(given(nets(kind))(keep)))()
    return tuple(found)


def _seed(net: Net) -> Seed:
    inputs = {name: value.astype(np.float64) for name, value in net.inputs().items()}
    return Seed(net.prototxt().encode(), net.caffemodel(), inputs)


def _odd() -> Iterator[Net]:
    yield _chain(Net("v1", v1=True))
    for form in (
        BlobFormat("data", legacy=True),
        BlobFormat("double", unpacked=True),
        BlobFormat("half"),
        BlobFormat("data", runs=3),
    ):
        net = _chain(Net("chain"))
        for layer in net.layers:
            layer.format = form
        yield net
    yield _phases()
    yield _shared()
    yield _forks()


def _chain(net: Net) -> Net:
    net.input("data", (1, 2, 4, 4))
    net.conv("conv1", "data", 2, 4, 3, pad=1, bias=False)
    if net.v1:
        net.power("pow1", "conv1", 0.5, 1.5)
    else:
        net.batch_norm("bn1", "conv1", 4)
        net.scale("scale1", "conv1", 4)
    net.relu("relu1", "conv1")
    net.power("pow2", "conv1", -2.0, 0.25, top="pow2")
    net.inner_product("ip", "pow2", 64, 3)
    return net


def _phases() -> Net:
    """A net with TRAIN twins and stages."""
    net = Net("phases")
    net.input("data", (2, 2, 4, 4), "input_shape")
    net.conv("conv1", "data", 2, 4, 1)
    train, test = "include { phase: TRAIN }", "include { phase: TEST not_stage: 'x' }"
    net.batch_norm("bn1", "conv1", 4, extra=train, params="use_global_stats: false")
    net.layers[-1].in_weights = False
    net.batch_norm("bn1", "conv1", 4, extra=test)
    net.scale("scale1", "conv1", 4, extra="exclude { stage: 'x' }")
    net.scale("late", "conv1", 4, top="late", extra="include { stage: 'x' }")
    net.deconv("up", "conv1", 4, 4, 2, group=2, stride=2)
    net.batch_norm("bn2", "up", 4, top="bn2")
    return net


def _shared() -> Net:
    """Two branches with the same weights, one of them with names of forks' fields."""
    net = Net("shared")
    net.input("left", (1, 2, 3, 3), "input_dim")
    net.input("right", (1, 2, 3, 3), "input_dim")
    for side in ("left", "right"):
        share = "param { name: 'w' lr_mult: 1 } param { name: 'b' }"
        net.conv(f"conv_{side}", side, 2, 2, 1, extra=share)
        share = "param { name: 'm' } param { name: 'v' } param { name: 'f' }"
        net.batch_norm(f"bn_{side}", f"conv_{side}", 2, extra=share)
    for left, right in zip(net.layers[:2], net.layers[2:]):
        right.blobs = left.blobs
    net.eltwise("sum", ["conv_left", "conv_right"])
    return net


def _forks() -> Net:
    """Layers and fields that only forks have."""
    net = Net("forks")
    net.input("data", (1, 2, 3, 3))
    net.conv("conv1", "data", 2, 2, 1, params="engine: MKL2017 new_field: 'x'", extra="x { y: 1 }")
    blobs = [np.ones(2), np.zeros(2), np.full(2, 0.1), np.full(2, 0.9)]
    rows = [blob.reshape(1, 2, 1, 1) for blob in blobs]
    net.layer("bn", "BN", "conv1", "bn", "bn_param { frozen: true }", rows)
    net.conv("dw", "bn", 2, 2, 1, group=2, type="DepthwiseConvolution")
    net.layer("cudnn", "CuDNNBatchNorm", "dw", "dw", "", [*blobs[:2], blobs[3], blobs[0]])
    net.bias("bias", "dw", 2)
    return net


def excerpts(folder: Path, suffix: str, limit: int = 1500) -> Iterator[bytes]:
    """Pieces of the real nets below a folder, some layers in a row of each file, of at most
    ``limit`` bytes; ``suffix`` is ".prototxt" or ".caffemodel"."""
    if suffix == ".prototxt":
        for path in sorted(folder.rglob("*.prototxt")):
            yield from pieces_of_text(path.read_bytes(), limit)
        return
    for path in sorted(folder.rglob("*.caffemodel")):
        with contextlib.suppress(ValueError, IndexError):  # not a whole caffemodel
            yield from pieces_of_weights(path.read_bytes(), limit)


def pieces_of_text(data: bytes, limit: int) -> Iterator[bytes]:
    """Layers in a row, of a text in which each starts a line."""
    parts = data.replace(b"\nlayer", b"\n\0layer").split(b"\0")
    return _pieces([part for part in parts if part], limit)


def pieces_of_weights(data: bytes, limit: int) -> Iterator[bytes]:
    """Layers in a row, of a whole caffemodel."""
    return _pieces([one.bytes() for one in records(data)], limit)


def _pieces(parts: Sequence[bytes], limit: int, most: int = 12) -> Iterator[bytes]:
    piece, count = b"", 0
    for part in parts:
        if piece and len(piece) + len(part) > limit:
            yield piece
            piece, count = b"", count + 1
        if count == most:
            return
        if len(part) <= limit:
            piece += part
    if piece:
        yield piece
