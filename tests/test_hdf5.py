"""Weights in HDF5, read as a caffemodel: layers, blobs and what they share.

What is read is judged by h5py and by a reader of caffemodels that is not the package's.
"""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest
from hdf5_files import (
    assert_same_weights,
    f4,
    fold_h5,
    read_h5,
    read_layout,
    siamese,
    slashed,
    write_h5,
)
from support.weights import read_weights

from caffe_fold.weights.caffemodel import Caffemodel
from caffe_fold.weights.hdf5 import Owners, from_caffemodel, to_caffemodel
from caffe_fold.weights.hdf5_layers import slabs

# ---- Reading ----


@pytest.mark.parametrize("dtype", ["<f2", "<f4", "<f8", ">f4", ">f8"])
def test_layers_and_blobs_become_a_caffemodel(dtype: str, tmp_path: Path) -> None:
    net = slashed(bias=True)
    weights = write_h5(net, tmp_path / "net.h5", dtype)
    to_caffemodel(weights, tmp_path / "net.caffemodel")
    found = {
        entry.name: entry for entry in read_weights((tmp_path / "net.caffemodel").read_bytes())
    }
    assert {name for name, entry in found.items() if entry.blobs} == {
        layer.name for layer in net.layers if layer.blobs
    }
    for layer in net.layers:
        for index, blob in enumerate(layer.blobs):
            stored = found[layer.name].blobs[index]
            assert stored.shape == blob.shape
            np.testing.assert_array_equal(stored.array(), blob.astype(dtype))
    with Caffemodel.open(tmp_path / "net.caffemodel") as model:
        storages = {blob.storage.value for entry in model.entries for blob in entry.blobs}
    assert storages == {int(dtype[2])}


def test_layers_come_in_the_order_of_creation_where_the_file_tells_it(tmp_path: Path) -> None:
    for tracked, wanted in ((True, ["b", "b/z", "b/a", "a"]), (False, ["a", "b", "b/a", "b/z"])):
        with h5py.File(tmp_path / "x.h5", "w", track_order=tracked) as file:
            data = file.create_group("data", track_order=tracked)
            data.create_group("b", track_order=tracked)
            for name in ("b", "b/z", "b/a", "a"):
                data.require_group(name).create_dataset("0", data=f4(1, 2))
        to_caffemodel(tmp_path / "x.h5", tmp_path / "x.caffemodel")
        entries = read_weights((tmp_path / "x.caffemodel").read_bytes())
        assert [entry.name for entry in entries] == wanted


@pytest.mark.parametrize("shape", [(), (0,), (3, 0, 2), (1,), (2, 1, 3, 1, 2), (1,) * 32])
def test_any_rank(shape: tuple[int, ...], tmp_path: Path) -> None:
    values = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file["data/a/0"] = values
        file["data/b/0"] = f4(1)
    to_caffemodel(tmp_path / "x.h5", tmp_path / "x.caffemodel")
    with Caffemodel.open(tmp_path / "x.caffemodel") as model:
        (blob,) = model.entries[0].blobs
        assert (blob.shape, blob.problem) == (shape, "")
        np.testing.assert_array_equal(model.values(blob), values.ravel())
        from_caffemodel(tmp_path / "x.h5", model, model, tmp_path / "y.h5")
    assert read_h5(tmp_path / "y.h5")["a"][0].shape == shape


@pytest.mark.parametrize(
    "shape", [(300_001,), (2, 300_001), (700, 1000), (3, 262_144), (3, 262_145), (5, 7, 11, 13)]
)
def test_slabs_cover_an_array_in_order(shape: tuple[int, ...]) -> None:
    array = np.arange(np.prod(shape)).reshape(shape)
    pieces = list(slabs(shape, 4))
    for place, size in pieces:
        assert array[place].shape == size
        assert np.prod(size) * 4 <= 1 << 20
    np.testing.assert_array_equal(
        np.concatenate([array[place].ravel() for place, _ in pieces]), array.ravel()
    )


def test_names_that_are_not_utf8(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "x.h5", "w") as file:
        for layer in (b"\xff\xfe/bn", "卷积".encode(), b"caf\xe9"):
            group = file.create_group(b"data/" + layer)
            group.create_dataset("0", data=f4(1, 2))
    to_caffemodel(tmp_path / "x.h5", tmp_path / "x.caffemodel")
    with Caffemodel.open(tmp_path / "x.caffemodel") as model:
        assert {entry.name for entry in model.entries} == {"\udcff\udcfe/bn", "卷积", "caf\udce9"}
        from_caffemodel(tmp_path / "x.h5", model, model, tmp_path / "y.h5")
    for name in ("x.h5", "y.h5"):
        with h5py.File(tmp_path / name, "r") as file:
            names: list[bytes] = []
            group = file["data"]  # links do not keep their group open
            group.id.links.visit(names.append)
        assert b"\xff\xfe/bn/0" in names
        assert b"caf\xe9/0" in names


def test_chunked_and_compressed(tmp_path: Path) -> None:
    values = np.random.default_rng(1).normal(size=(700, 900)).astype(np.float32)
    with h5py.File(tmp_path / "x.h5", "w") as file:
        data = file.create_group("data/a")
        data.create_dataset("0", data=values, chunks=(300, 7), compression="gzip", shuffle=True)
        data.create_dataset("1", data=values[0], chunks=(900,), fletcher32=True)
    to_caffemodel(tmp_path / "x.h5", tmp_path / "x.caffemodel")
    with Caffemodel.open(tmp_path / "x.caffemodel") as model:
        np.testing.assert_array_equal(model.values(model.entries[0].blobs[0]), values.ravel())
        from_caffemodel(tmp_path / "x.h5", model, model, tmp_path / "y.h5")
    with h5py.File(tmp_path / "y.h5", "r") as file:
        kept = file["data/a/0"]
        assert (kept.chunks, kept.compression, kept.shuffle) == ((300, 7), "gzip", True)
        np.testing.assert_array_equal(kept[()], values)
        assert file["data/a/1"].fletcher32


# ---- Sharing ----


def drop_sharers(weights: Path, owners: Owners) -> None:
    with h5py.File(weights, "a") as file:
        for layer, index in owners:
            del file[f"data/{layer}/{index}"]


def test_owners_stand_for_sharers(tmp_path: Path) -> None:
    net, owners = siamese()
    model, _ = net.write(tmp_path)
    weights = write_h5(net, tmp_path / "net.h5")
    drop_sharers(weights, owners)
    _, written, new = fold_h5(model, weights, owners)
    assert set(read_h5(written)) == {"left/conv", "right/conv"}
    assert_same_weights(written, new)


def test_sharers_without_owners_are_left_alone(tmp_path: Path) -> None:
    net, owners = siamese()
    model, _ = net.write(tmp_path)
    weights = write_h5(net, tmp_path / "net.h5")
    drop_sharers(weights, owners)
    written = fold_h5(model, weights)[1]
    assert read_layout(written) == read_layout(weights)


def test_a_missing_blob_stays_missing(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file["data/a/0"] = f4(1, 2)
        file["data/b/1"] = f4(3)
        file.create_group("data/c")
    for owners, filled in ((None, ""), ({("b", 0): ("a", 0)}, "b")):
        to_caffemodel(tmp_path / "x.h5", tmp_path / "x.caffemodel", owners)
        with Caffemodel.open(tmp_path / "x.caffemodel") as model:
            blobs = {entry.name: entry.blobs for entry in model.entries}
            assert [len(blobs[name]) for name in "abc"] == [1, 2, 0]
            assert bool(blobs["b"][0].problem) == (not filled)
            assert model.values(blobs["b"][1]).tolist() == [3]
            from_caffemodel(tmp_path / "x.h5", model, model, tmp_path / "y.h5")
        assert read_layout(tmp_path / "y.h5") == read_layout(tmp_path / "x.h5")


@pytest.mark.parametrize("soft", [False, True])
def test_linked_datasets(soft: bool, tmp_path: Path) -> None:
    """A link to a blob that is folded keeps the old values; one to another stays a link."""
    net = slashed()
    model, _ = net.write(tmp_path)
    weights = write_h5(net, tmp_path / "net.h5")
    with h5py.File(weights, "a") as file:
        for name, target in (("to_conv", "/data/conv1/0"), ("to_fc", "/data/fc/0")):
            file.create_group(f"data/{name}")
            file[f"data/{name}/0"] = h5py.SoftLink(target) if soft else file[target]
    written = fold_h5(model, weights)[1]
    old, new = read_h5(weights), read_h5(written)
    np.testing.assert_array_equal(new["to_conv"][0], old["conv1"][0])
    assert not np.array_equal(new["to_conv"][0], new["conv1"][0])
    with h5py.File(written, "r") as file:
        assert file["data/to_fc/0"] == file["data/fc/0"]
