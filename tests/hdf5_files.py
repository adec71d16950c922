"""Weights in HDF5: files of nets, written and read by h5py."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray
from support.nets import Net
from support.weights import read_weights

import caffe_fold
from caffe_fold.weights.caffemodel import Caffemodel
from caffe_fold.weights.hdf5 import Owners, from_caffemodel, to_caffemodel

Array = NDArray[Any]

Blobs = dict[str, dict[int, Array]]


def f4(*values: float) -> Array:
    return np.array(values, np.float32)


def slashed(bias: bool = False) -> Net:
    """Names with slashes, a layer below another's name, an unconcerned InnerProduct."""
    net = Net("slashed", seed=5)
    net.input("data", (2, 3, 6, 6))
    net.conv("conv1", "data", 3, 4, bias=bias)
    net.batch_norm("conv1/bn", "conv1", 4)
    net.scale("conv1/bn/scale", "conv1", 4)
    net.relu("conv1/relu", "conv1")
    net.conv("block/a/conv", "conv1", 4, 5, 1, bias=bias)
    net.batch_norm("block/a/bn", "block/a/conv", 5)
    net.inner_product("fc", "block/a/conv", 80, 3)
    return net


def write_h5(net: Net, path: Path, dtype: str = "<f4", diff: bool = False) -> Path:
    """Write a net's weights as Net::ToHDF5 does: a group a layer, with blobs or not."""
    with h5py.File(path, "w") as file:
        for tree in ("data", "diff") if diff else ("data",):
            for layer in net.layers:
                group = file.require_group(tree).require_group(layer.name)
                for index, blob in enumerate(layer.blobs):
                    group.create_dataset(str(index), data=blob.astype(dtype))
    return path


def read_h5(path: Path, tree: str = "data") -> Blobs:
    """All layers with blobs of an HDF5 file."""
    found: Blobs = {}

    def visit(name: str, item: Any) -> None:
        if isinstance(item, h5py.Dataset):
            layer, _, index = name.rpartition("/")
            found.setdefault(layer, {})[int(index)] = item[()]

    with h5py.File(path, "r") as file:
        if tree in file:
            file[tree].visititems(visit)
    return found


def fold_h5(
    model: Path, weights: Path, owners: Owners | None = None, **options: Any
) -> tuple[Path, Path, Path]:
    """Fold a prototxt with weights in HDF5; give the new prototxt, HDF5 and caffemodel."""
    folder = weights.parent
    old, new, written = (folder / name for name in ("old.caffemodel", "new.caffemodel", "new.h5"))
    to_caffemodel(weights, old, owners)
    caffe_fold.fold(model, old, folder / "new.prototxt", new, **options)
    with Caffemodel.open(old) as before, Caffemodel.open(new) as after:
        from_caffemodel(weights, before, after, written)
    return folder / "new.prototxt", written, new


def assert_same_weights(written: Path, caffemodel: Path) -> None:
    """The HDF5 file holds what the caffemodel does."""
    entries = [entry for entry in read_weights(caffemodel.read_bytes()) if entry.blobs]
    found = read_h5(written)
    assert set(found) == {entry.name for entry in entries}
    for entry in entries:
        assert set(found[entry.name]) == set(range(len(entry.blobs)))
        for index, blob in enumerate(entry.blobs):
            np.testing.assert_array_equal(found[entry.name][index], blob.array())


# ---- Folding ----


def read_layout(path: Path) -> list[tuple[str, bytes | None]]:
    """Everything of a file that Caffe sees, in order."""
    found: list[tuple[str, bytes | None]] = []
    with h5py.File(path, "r") as file:
        file.visititems(
            lambda name, item: found.append(
                (name, item[()].tobytes() if isinstance(item, h5py.Dataset) else None)
            )
        )
    return found


# ---- Sharing ----


def siamese() -> tuple[Net, Owners]:
    """Two branches that share everything, as Net::ToHDF5 stores them."""
    net = Net("siamese", seed=2)
    owners: dict[tuple[str, int], tuple[str, int]] = {}
    for branch in ("left", "right"):
        net.input(f"data_{branch}", (1, 3, 6, 6))
        extra = 'param { name: "w" } param { name: "b" }'
        net.conv(f"{branch}/conv", f"data_{branch}", 3, 4, extra=extra)
        extra = 'param { name: "m" } param { name: "v" } param { name: "f" }'
        net.batch_norm(f"{branch}/bn", f"{branch}/conv", 4, extra=extra)
    for name in ("conv", "bn"):
        layers = [layer for layer in net.layers if layer.name.endswith(name)]
        layers[1].blobs = layers[0].blobs
        owners |= {(layers[1].name, i): (layers[0].name, i) for i in range(len(layers[0].blobs))}
    return net, owners
