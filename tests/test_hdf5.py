"""Weights in HDF5, around folds: read as a caffemodel, written from a folded one.

What is read is judged by h5py and by a reader of caffemodels that is not the package's.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from numpy.typing import NDArray
from support.engines import Unavailable, pycaffe_python
from support.evaluate import evaluate
from support.nets import Net
from support.weights import read_weights

import caffe_fold
from caffe_fold.errors import InputError, OutputError
from caffe_fold.weights.caffemodel import Caffemodel
from caffe_fold.weights.hdf5 import Owners, from_caffemodel, to_caffemodel
from caffe_fold.weights.hdf5_layers import slabs

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


# ---- Folding ----


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


# ---- Real Caffe ----

SCRIPT = """
import json, os, sys
os.environ["GLOG_minloglevel"] = "2"
import numpy as np
import caffe

for job in json.load(open(sys.argv[1])):
    net = caffe.Net(job["model"], caffe.TEST)
    load = net.load_hdf5 if job["weights"].endswith(".h5") else net.copy_from
    load(job["weights"])
    if "save" in job:
        net.save_hdf5(job["save"])
    for name, blob in net.blobs.items():
        if name.startswith("data"):
            blob.data[...] = np.random.RandomState(1).normal(size=blob.data.shape)
    net.forward()
    np.savez(job["values"], **{name: blob.data for name, blob in net.blobs.items()})
"""


def run_caffe(folder: Path, jobs: list[dict[str, Path]]) -> list[dict[str, Any]]:
    """Load weights, save them as HDF5 where asked to, and run forward; give all blobs."""
    try:
        python = pycaffe_python()
    except Unavailable as reason:
        pytest.skip(str(reason))
    listed = [{key: str(path) for key, path in job.items()} for job in jobs]
    for index, job in enumerate(listed):
        job["values"] = str(folder / f"values{index}.npz")
    (folder / "jobs.json").write_text(json.dumps(listed))
    command = [str(python), "-c", SCRIPT, str(folder / "jobs.json")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    found = []
    for job in listed:
        with np.load(job["values"]) as values:
            found.append({name: values[name] for name in values.files})
    return found


def flat() -> Net:
    """A net without slashes in its names, of shapes of several ranks."""
    net = Net("flat", seed=7)
    net.input("data", (2, 3, 6, 6))
    net.conv("conv1", "data", 3, 4, bias=False)
    net.batch_norm("bn1", "conv1", 4)
    net.scale("scale1", "conv1", 4)
    net.relu("relu1", "conv1")
    net.batch_norm("bn2", "conv1", 4, top="x")
    net.scale("scale2", "x", 4)
    net.relu("relu2", "x")
    net.deconv("up", "x", 4, 6, 2, group=2)
    net.batch_norm("bn3", "up", 6)
    net.inner_product("fc", "up", 150, 3, bias=False)
    net.batch_norm("bn4", "fc", 3)
    return net


def below() -> Net:
    """Layers below another's name, as Caffe can write them and cannot read them."""
    net = Net("below", seed=8)
    net.input("data", (2, 3, 6, 6))
    net.conv("conv1", "data", 3, 4, bias=False)
    net.batch_norm("conv1/bn", "conv1", 4)
    net.scale("conv1/scale", "conv1", 4)
    net.inner_product("fc", "conv1", 64, 3)
    return net


@pytest.mark.oracle
@pytest.mark.parametrize("make", [flat, below])
def test_real_caffe_reads_what_was_made_of_what_it_wrote(
    make: Callable[[], Net], tmp_path: Path
) -> None:
    net = make()
    model, caffemodel = net.write(tmp_path)
    weights = tmp_path / "net.caffemodel.h5"
    (before,) = run_caffe(tmp_path, [{"model": model, "weights": caffemodel, "save": weights}])
    text, written, new = fold_h5(model, weights)
    assert_same_weights(written, new)
    (after,) = run_caffe(tmp_path, [{"model": text, "weights": written}])
    assert len(read_h5(written)) < len(read_h5(weights))
    np.testing.assert_allclose(after["fc"], before["fc"], rtol=1e-4, atol=1e-5)


@pytest.mark.oracle
def test_real_caffe_reads_half(tmp_path: Path) -> None:
    net = flat()
    model, _ = net.write(tmp_path)
    weights = write_h5(net, tmp_path / "net.caffemodel.h5", "<f2")
    text, written, _ = fold_h5(model, weights)
    values = read_h5(written)["conv1"]
    assert values[1].dtype == np.float16
    before, after = run_caffe(
        tmp_path, [{"model": model, "weights": weights}, {"model": text, "weights": written}]
    )
    np.testing.assert_allclose(after["fc"], before["fc"], rtol=0.02, atol=0.02)


@pytest.mark.oracle
def test_real_caffe_and_shared_blobs(tmp_path: Path) -> None:
    net, owners = siamese()
    for layer in net.layers:
        layer.text = layer.text.replace("left/", "left_").replace("right/", "right_")
        layer.name = layer.name.replace("/", "_")
    owners = {
        (a.replace("/", "_"), i): (b.replace("/", "_"), j) for (a, i), (b, j) in owners.items()
    }
    model, caffemodel = net.write(tmp_path)
    weights = tmp_path / "net.caffemodel.h5"
    (before,) = run_caffe(tmp_path, [{"model": model, "weights": caffemodel, "save": weights}])
    assert {(layer, i) for layer, i in owners} == {
        (layer.name, i) for layer in net.layers for i in range(len(layer.blobs))
    } - {(name, i) for name, blobs in read_h5(weights).items() for i in blobs}
    text, written, _ = fold_h5(model, weights, owners)
    (after,) = run_caffe(tmp_path, [{"model": text, "weights": written}])
    for name in ("left_conv", "right_conv"):
        np.testing.assert_allclose(after[name], before[name], rtol=1e-4, atol=1e-5)


# ---- What is no Caffe model, or a bad one ----


def keras(file: Any) -> None:
    file.attrs["keras_version"] = "2.3"
    file["model_weights/dense/kernel:0"] = f4(1)


def solver_state(file: Any) -> None:
    file["iter"] = 5
    file["learned_net"] = "x.caffemodel.h5"
    file["history/0"] = f4(1)


def loop(file: Any) -> None:
    file["data/a/0"] = f4(1)
    file["data/a/b"] = file["data"]


def soft_group(file: Any) -> None:
    file["data/a/0"] = f4(1)
    file["data/b"] = h5py.SoftLink("/data")


def loop_of_gradients(file: Any) -> None:
    file["data/a/0"] = f4(1)
    file["diff/a/0"] = f4(1)
    file["diff/b"] = file["diff"]


def bomb(file: Any) -> None:
    group = file.create_group("data")
    for _ in range(30):
        below = group.create_group("x")
        group["y"] = below
        group = below
    group["0"] = f4(1)


def deep(file: Any) -> None:
    file["data/" + "a/" * 500 + "0"] = f4(1)


def sparse(file: Any) -> None:
    file.create_dataset("data/a/0", (1 << 20, 1 << 20), "<f4", chunks=(1024, 1024))


def external(file: Any) -> None:
    file["data/a/0"] = f4(1)
    file["data/b"] = h5py.ExternalLink("/etc/other.h5", "/data/b")


def external_elsewhere(file: Any) -> None:
    file["data/a/0"] = f4(1)
    file["meta/b"] = h5py.ExternalLink("/etc/other.h5", "/data/b")


def external_storage(file: Any) -> None:
    file.create_dataset("data/a/0", (3,), "<f4", external=[("/etc/passwd", 0, 12)])


def virtual(file: Any) -> None:
    layout = h5py.VirtualLayout((3,), "<f4")
    layout[:] = h5py.VirtualSource("/etc/other.h5", "x", (3,))
    file.create_virtual_dataset("data/a/0", layout)


def item(name: str, value: Any) -> Callable[[Any], None]:
    def make(file: Any) -> None:
        file[name] = value

    return make


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (keras, "looks like a Keras model"),
        (solver_state, "is a solver's state"),
        (item("data", np.zeros((2, 3))), "HDF5Data layer"),
        (item("data/a/kernel", np.zeros(3)), "holds no dataset named '0'"),
        (item("weights/a/0", np.zeros(3)), "it holds 'weights'"),
        (lambda file: None, "it holds nothing"),
        (item("data/a/0", np.array([1], np.int32)), "'a/0' below 'data' does not hold floats"),
        (item("data/a/0", np.array([True])), "does not hold floats"),
        (item("data/a/0", "text"), "does not hold floats"),
        (item("data/a/0", np.array([1], np.longdouble)), "does not hold floats"),
        (item("data/a/0", np.array([1], np.complex64)), "does not hold floats"),
        (item("data/a/0", h5py.Empty("f4")), "does not hold floats"),
        (item("data/a/999999999", f4(1)), "layer 'a' has a blob 999999999"),
        (item("data/a/0", h5py.SoftLink("/nowhere")), "damaged"),
        (item("data/a", h5py.SoftLink("/data/a")), "damaged"),
        (soft_group, "'/data/b' is a soft link to a group"),
        (loop_of_gradients, "too many groups"),
        (loop, "too many groups"),
        (bomb, "too many groups"),
        (deep, "too many groups"),
        (sparse, "which it cannot hold"),
        (external, "'/data/b' lies in another file"),
        (external_elsewhere, "'/meta/b' lies in another file"),
        (external_storage, "'/data/a/0' lies in another file"),
        (virtual, "'/data/a/0' lies in another file"),
    ],
)
def test_refused(make: Callable[[Any], None], said: str, tmp_path: Path) -> None:
    with h5py.File(tmp_path / "x.h5", "w") as file:
        make(file)
    error = refusal(tmp_path / "x.h5", tmp_path)
    assert said in error
    assert str(tmp_path / "x.h5") in error


def refusal(path: Path, folder: Path) -> str:
    with pytest.raises(InputError) as caught:
        to_caffemodel(path, folder / "out.caffemodel")
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_not_hdf5(tmp_path: Path) -> None:
    (tmp_path / "x.h5").write_bytes(b"something else")
    assert "is not an HDF5 file" in refusal(tmp_path / "x.h5", tmp_path)
    assert "cannot be read" in refusal(tmp_path / "none.h5", tmp_path)


def test_large_chunks_are_refused(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file.create_dataset("data/a/0", (1 << 14, 1 << 14), "<f4", chunks=(1 << 14, 1 << 14))
    assert "in chunks of over 512 MiB" in refusal(tmp_path / "x.h5", tmp_path)


def test_truncated_anywhere(tmp_path: Path) -> None:
    data = write_h5(slashed(), tmp_path / "net.h5").read_bytes()
    for length in range(8, len(data), 997):
        (tmp_path / "x.h5").write_bytes(data[:length])
        refusal(tmp_path / "x.h5", tmp_path)


def test_a_damaged_chunk(tmp_path: Path) -> None:
    values = np.arange(10_000, dtype=np.float32)
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file.create_dataset("data/a/0", data=values, chunks=(10_000,), fletcher32=True)
        chunk = file["data/a/0"].id.get_chunk_info(0)
    data = bytearray((tmp_path / "x.h5").read_bytes())
    data[chunk.byte_offset + 100] ^= 1
    (tmp_path / "x.h5").write_bytes(data)
    assert "may be damaged" in refusal(tmp_path / "x.h5", tmp_path)


def test_without_h5py(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_h5(slashed(), tmp_path / "net.h5")
    monkeypatch.setitem(sys.modules, "h5py", None)
    assert "pip install 'caffe-fold[hdf5]'" in refusal(tmp_path / "net.h5", tmp_path)


def test_unwritable_target(tmp_path: Path) -> None:
    weights = write_h5(slashed(), tmp_path / "net.h5")
    to_caffemodel(weights, tmp_path / "x.caffemodel")
    refused = pytest.raises(OutputError, match="cannot be written")
    with Caffemodel.open(tmp_path / "x.caffemodel") as model, refused:
        from_caffemodel(weights, model, model, tmp_path / "none" / "y.h5")


FULL = """
import resource, sys
from caffe_fold.weights.caffemodel import Caffemodel
from caffe_fold.errors import OutputError
from caffe_fold.weights.hdf5 import from_caffemodel

weights, caffemodel, target = sys.argv[1:]
with Caffemodel.open(caffemodel) as model:
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 18, 1 << 18))
    try:
        from_caffemodel(weights, model, model, target)
    except OutputError as error:
        print(error)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="has no limit of file sizes")
def test_a_full_disk(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "x.h5", "w") as file:
        for index in range(4):
            file[f"data/layer{index}/0"] = np.zeros((200, 200), np.float32)
    to_caffemodel(tmp_path / "x.h5", tmp_path / "x.caffemodel")
    paths = [str(tmp_path / name) for name in ("x.h5", "x.caffemodel", "y.h5")]
    done = subprocess.run([sys.executable, "-c", FULL, *paths], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert "y.h5 cannot be written" in done.stdout
    assert done.stdout.count("\n") == 1
