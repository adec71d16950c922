"""What the tests of deploy nets share: making one, and seeing what it is."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt
from support import netdef
from support.nets import Net

from caffe_fold.deploying.deploy import data_layers, deployed
from caffe_fold.nets.graph import build
from caffe_fold.nets.net import State, read_net
from caffe_fold.nets.prototxt import parse
from caffe_fold.weights.caffemodel import Caffemodel

Shapes = Mapping[str, tuple[int, ...]]


def deploy(
    net: Net,
    folder: Path,
    text: str = "",
    shapes: Shapes | None = None,
    stages: tuple[str, ...] = (),
) -> str:
    """The deploy prototxt of a net, or of another text for its weights."""
    model, weights = net.write(folder)
    if text:
        model.write_bytes(text.encode())
    return deploy_files(model, weights, shapes or {}, stages).decode()


def deploy_files(model: Path, weights: Path, shapes: Shapes, stages: tuple[str, ...] = ()) -> bytes:
    graph = build(read_net(parse(model.read_bytes(), model)), State("TEST", 0, frozenset(stages)))
    with Caffemodel.open(weights) as caffemodel:
        return deployed(graph, caffemodel, shapes)


def data_names(text: str) -> list[str]:
    """The names of the data layers of a text."""
    return [layer.name for layer in data_layers(build(read_net(parse(text.encode())), State()))]


def types(text: str) -> list[str]:
    return [layer.type for layer in netdef.read_net(text).layers]


def names(text: str) -> list[str]:
    return [layer.name for layer in netdef.read_net(text).layers]


def inputs(text: str) -> dict[str, tuple[int, ...]]:
    """The inputs of a net with their shapes."""
    layers = [layer for layer in netdef.read_net(text).layers if layer.type == "Input"]
    return {top: shape for la in layers for top, shape in zip(la.tops, netdef.input_shapes(la))}


def outputs(text: str) -> set[str]:
    """The blobs whose last value nothing reads."""
    unread: set[str] = set()
    for layer in netdef.read_net(text).layers:
        unread.difference_update(layer.bottoms)
        unread.update(layer.tops)
    return unread


CROP = "transform_param { crop_size: 8 }"


def data(
    net: Net,
    params: str = CROP,
    tops: tuple[str, ...] = ("data", "label"),
    kind: str = "Data",
    extra: str = "",
) -> None:
    """Add a data layer, by default one of images of 8x8 with labels."""
    net.layer("data", kind, (), tops, params, extra=extra)


def loss(net: Net, bottom: str = "fc", kind: str = "SoftmaxWithLoss", extra: str = "") -> None:
    net.layer("loss", kind, [bottom, "label"], "loss", extra=extra)


def classifier(channels: int = 3, params: str = CROP, seed: int = 0, v1: bool = False) -> Net:
    """A data layer, a convolution and a classifier ``fc``, without a loss."""
    net = Net("net", seed, v1)
    data(net, params)
    net.conv("conv1", "data", channels, 4, 3, pad=1)
    net.relu("relu1", "conv1")
    net.inner_product("fc", "conv1", 4 * 8 * 8, 5)
    return net


def images(shape: tuple[int, ...] = (1, 3, 8, 8), seed: int = 3) -> npt.NDArray[np.float32]:
    return np.random.default_rng(seed).normal(0, 1, shape).astype(np.float32)
