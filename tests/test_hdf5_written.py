"""Weights in HDF5, written from a folded caffemodel: what changes, and what is copied."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from hdf5_files import assert_same_weights, fold_h5, read_h5, read_layout, slashed, write_h5
from support.evaluate import evaluate
from support.nets import Net

from caffe_fold.errors import InputError


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("dtype", ["<f4", "<f8"])
def test_fold(bias: bool, dtype: str, tmp_path: Path) -> None:
    net = slashed(bias)
    model, caffemodel = net.write(tmp_path)
    weights = write_h5(net, tmp_path / "net.caffemodel.h5", dtype)
    before = weights.read_bytes()
    text, written, new = fold_h5(model, weights)
    assert weights.read_bytes() == before
    assert set(read_h5(written)) == {"conv1", "block/a/conv", "fc"}
    assert_same_weights(written, new)
    assert {blob.dtype for blobs in read_h5(written).values() for blob in blobs.values()} == {
        np.dtype(dtype)
    }
    wanted = evaluate(model, caffemodel, net.inputs())
    found = evaluate(text, new, net.inputs())
    np.testing.assert_allclose(found.blobs["fc"], wanted.blobs["fc"], rtol=1e-4, atol=1e-5)
    with h5py.File(written, "r") as file:
        assert list(file["data/conv1"]) == ["0", "1", "relu"]
        assert list(file["data/block/a"]) == ["conv"]


def test_folding_again_changes_nothing(tmp_path: Path) -> None:
    net = slashed()
    model, _ = net.write(tmp_path)
    text, written, _ = fold_h5(model, write_h5(net, tmp_path / "net.h5"))
    (tmp_path / "again").mkdir()
    again = tmp_path / "again" / "net.h5"
    again.write_bytes(written.read_bytes())
    assert read_layout(fold_h5(text, again)[1]) == read_layout(written)


def test_half_stays_half(tmp_path: Path) -> None:
    net = slashed(bias=True)
    model, _ = net.write(tmp_path)
    _, written, new = fold_h5(model, write_h5(net, tmp_path / "net.h5", "<f2"))
    assert_same_weights(written, new)
    assert {blob.dtype for blob in read_h5(written)["conv1"].values()} == {np.dtype("<f2")}


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"track_order": True},
        {"libver": "latest"},
        {"userblock_size": 512},
        {"fs_strategy": "page", "fs_persist": True},
    ],
    ids=str,
)
def test_the_same_bytes_each_time(options: dict[str, Any], tmp_path: Path) -> None:
    net = slashed()
    model, _ = net.write(tmp_path)
    weights = write_h5(net, tmp_path / "plain.h5", diff=True)
    with h5py.File(weights, "r") as file, h5py.File(tmp_path / "net.h5", "w", **options) as copy:
        for tree in file:
            group = copy.create_group(tree, track_order=options.get("track_order"))
            for name in file[tree]:
                file.copy(file[tree][name], group)
    first = fold_h5(model, tmp_path / "net.h5")[1].read_bytes()
    time.sleep(1.1)  # HDF5 counts times in seconds
    assert fold_h5(model, tmp_path / "net.h5")[1].read_bytes() == first


def test_all_else_is_copied(tmp_path: Path) -> None:
    net = slashed()
    model, _ = net.write(tmp_path)
    weights = write_h5(net, tmp_path / "net.h5")
    with h5py.File(weights, "a") as file:
        file.attrs["text"] = "grüße"
        file.attrs["bytes"] = np.bytes_(b"fixed")
        file.attrs["list"] = np.array([["a", "bc"]], dtype=h5py.string_dtype())
        file.attrs["empty"] = h5py.Empty("f4")
        file["data"].attrs["number"] = np.int16(3)
        file["data/conv1"].attrs["note"] = [1.5, 2.5]
        file["data/conv1/0"].attrs["unit"] = "m"
        file["data/fc/0"].attrs["unit"] = "s"
        file["data/fc/note"] = "text"
        file["meta/deep/0"] = np.arange(3)
        file["meta/soft"] = h5py.SoftLink("/data/fc/0")
        file["dangling"] = h5py.SoftLink("/nowhere")
        file["type"] = np.dtype("<i2")
        file.attrs.create("array", np.arange(6).reshape(2, 3), (2, 3), np.dtype(("f4", (3,))))
    written = fold_h5(model, weights)[1]
    with h5py.File(weights, "r") as old, h5py.File(written, "r") as file:
        assert (file.attrs["text"], file.attrs["bytes"]) == ("grüße", b"fixed")
        assert file.attrs["list"].tolist() == [["a", "bc"]]
        assert file.attrs["array"].tolist() == [[0, 1, 2], [3, 4, 5]]
        assert isinstance(file.attrs["empty"], h5py.Empty)
        for name in old.attrs:
            one, other = old.attrs.get_id(name), file.attrs.get_id(name)
            assert one.get_type().equal(other.get_type()), name
            assert one.shape == other.shape
        assert file["data"].attrs["number"].dtype == np.int16
        assert file["data/conv1"].attrs["note"].tolist() == [1.5, 2.5]
        assert file["data/conv1/0"].attrs["unit"] == "m"
        assert file["data/fc/0"].attrs["unit"] == "s"
        assert file["data/fc/note"][()] == b"text"
        assert file["meta/deep/0"][()].tolist() == [0, 1, 2]
        assert isinstance(file["type"], h5py.Datatype)
        assert file.get("meta/soft", getlink=True).path == "/data/fc/0"
        assert file.get("dangling", getlink=True).path == "/nowhere"


def test_gradients_of_changed_and_removed_layers_go(tmp_path: Path) -> None:
    net = slashed(bias=True)
    model, _ = net.write(tmp_path)
    written = fold_h5(model, write_h5(net, tmp_path / "net.h5", diff=True))[1]
    gradients = read_h5(written, "diff")
    assert set(gradients) == {"fc"}
    np.testing.assert_array_equal(gradients["fc"][0], net.layers[-1].blobs[0].astype("<f4"))


def test_a_layer_below_a_removed_one_stays(tmp_path: Path) -> None:
    net = Net("net")
    net.input("data", (1, 3, 6, 6))
    net.conv("conv", "data", 3, 4)
    net.batch_norm("bn", "conv", 4)
    net.conv("bn/next", "conv", 4, 2)
    model, _ = net.write(tmp_path)
    _, written, new = fold_h5(model, write_h5(net, tmp_path / "net.h5"))
    assert_same_weights(written, new)
    with h5py.File(written, "r") as file:
        assert list(file["data/bn"]) == ["next"]


def test_a_bias_in_the_place_of_a_layer(tmp_path: Path) -> None:
    net = Net("net")
    net.input("data", (1, 3, 6, 6))
    net.conv("conv", "data", 3, 4, bias=False)
    net.batch_norm("bn", "conv", 4)
    net.conv("conv/1", "conv", 4, 2)
    model, _ = net.write(tmp_path)
    with pytest.raises(InputError, match=r"'conv' .* dataset '1'.* layer 'conv/1'; rename"):
        fold_h5(model, write_h5(net, tmp_path / "net.h5"))


@pytest.mark.parametrize("has_group", [True, False])
@pytest.mark.parametrize("power", ["power", "other/power", "bn/power"])
def test_a_merged_run(power: str, has_group: bool, tmp_path: Path) -> None:
    net = Net("net")
    net.input("data", (1, 3, 6, 6))
    net.relu("relu", "data", "x")
    net.batch_norm("bn", "x", 3)
    net.power(power, "x", 2.0, 1.0)
    model, _ = net.write(tmp_path)
    weights = write_h5(net, tmp_path / "net.h5")
    if not has_group:
        with h5py.File(weights, "a") as file:
            del file[f"data/{power}"]
    _, written, new = fold_h5(model, weights)
    assert_same_weights(written, new)
    assert [set(blobs) for blobs in read_h5(written).values()] == [{0, 1}]
