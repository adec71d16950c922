"""HDF5 weights through the whole fold."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from support.command import Call
from support.compare import assert_same
from support.evaluate import evaluate
from support.nets import Net

from caffe_fold import OutputError, caffe_pb2, fold, inspect

h5py = pytest.importorskip("h5py", reason="h5py is not installed")


def small_net() -> Net:
    """A chain with a name that holds "/"."""
    net = Net()
    net.input("data", (1, 3, 6, 6))
    net.conv("conv", "data", 3, 4)
    net.batch_norm("conv/bn", "conv", 4)
    net.scale("conv/scale", "conv", 4)
    net.relu("relu", "conv")
    net.inner_product("ip", "conv", 64, 5)
    return net


def write_hdf5(caffemodel: Path, target: Path) -> None:
    """The weights as Caffe writes them to HDF5."""
    net = caffe_pb2.NetParameter.FromString(caffemodel.read_bytes())
    with h5py.File(target, "w") as file:
        for layer in net.layer:
            group = file.require_group(f"data/{layer.name}")
            for index, blob in enumerate(layer.blobs):
                values = list(blob.data)
                group.create_dataset(
                    str(index), data=values, shape=tuple(blob.shape.dim), dtype="<f4"
                )


def test_hdf5_weights_fold_to_hdf5_weights(tmp_path: Path, call: Call) -> None:
    net = small_net()
    model, caffemodel = net.write(tmp_path)
    weights = tmp_path / "net.caffemodel.h5"
    write_hdf5(caffemodel, weights)
    result = call("--model", str(model), "--weights", str(weights), "--json")
    assert result.code == 0, result.err
    report = json.loads(result.out)
    assert report["output_weights"] == str(tmp_path / "net_inference.caffemodel.h5")
    assert report["after"]["by_type"] == {
        "Input": 1, "Convolution": 1, "ReLU": 1, "InnerProduct": 1
    }  # fmt: skip
    assert report["checked"]["layers"] == 1
    assert report["before"]["weights_bytes"] == weights.stat().st_size
    written = Path(report["output_weights"])
    assert report["after"]["weights_bytes"] == written.stat().st_size
    with h5py.File(written) as file:
        assert sorted(file["data"]) == sorted(set(file["data"]) - {"conv/bn"})
        assert "bn" not in file["data/conv"]
        assert file["data/conv/1"].shape == (4,)
    from caffe_fold.weights.hdf5 import to_caffemodel

    again = tmp_path / "again.caffemodel"
    to_caffemodel(written, again)
    inputs = net.inputs()
    folded = evaluate(report["output_model"], again, inputs)
    assert_same(evaluate(model, caffemodel, inputs), folded, [("conv", "conv/scale")])
    assert not list(tmp_path.glob(".*"))


def test_nothing_to_fold_copies_the_file(tmp_path: Path) -> None:
    net = Net()
    net.input("data", (1, 3, 6, 6))
    net.conv("conv", "data", 3, 4)
    model, caffemodel = net.write(tmp_path)
    weights = tmp_path / "net.h5"
    write_hdf5(caffemodel, weights)
    report = fold(model, weights)
    assert (tmp_path / "net_inference.h5").read_bytes() == weights.read_bytes()
    assert [note.code for note in report.notes] == ["nothing-to-fold"]


def test_a_folded_prototxt_with_unfolded_weights_is_an_error(tmp_path: Path, call: Call) -> None:
    net = small_net()
    model, caffemodel = net.write(tmp_path)
    weights = tmp_path / "net.h5"
    write_hdf5(caffemodel, weights)
    text = model.read_text()
    for name in ("conv/bn", "conv/scale"):
        start = text.index(f'name: "{name}"')
        start = text.rindex("layer {", 0, start)
        text = text[:start] + text[text.index("\n}\n", start) + 3 :]
    model.write_text(text)
    result = call("--model", str(model), "--weights", str(weights))
    assert result.code == 2
    assert "folded already" in result.err


def test_a_dry_run_leaves_nothing(tmp_path: Path) -> None:
    model, caffemodel = small_net().write(tmp_path)
    weights = tmp_path / "net.h5"
    write_hdf5(caffemodel, weights)
    before = sorted(tmp_path.iterdir())
    assert len(fold(model, weights, dry_run=True).folded) == 1
    assert sorted(tmp_path.iterdir()) == before


def test_inspecting_writes_nothing_beside_the_weights(tmp_path: Path) -> None:
    model, weights = small_net().write(tmp_path)
    write_hdf5(weights, tmp_path / "net.caffemodel.h5")
    names = {path.name for path in tmp_path.iterdir()}
    found = inspect(model, tmp_path / "net.caffemodel.h5", int8=True)
    assert {path.name for path in tmp_path.iterdir()} == names
    assert found.layers == inspect(model, weights).layers
    assert found.readiness is not None
    assert found.readiness.layers


def test_a_sharer_keeps_its_blobs_when_the_owner_goes(tmp_path: Path) -> None:
    """Caffe stores a shared blob under its owner's name alone."""
    net = Net()
    net.input("data", (1, 3, 4, 4))
    net.conv("conv", "data", 3, 4)
    first = net.scale("first", "conv", 4, bias=False, extra='param { name: "g" }')
    net.relu("relu", "conv")
    net.scale("second", "conv", 4, bias=False, extra='param { name: "g" }').blobs = first.blobs
    net.relu("last", "conv")
    model, caffemodel = net.write(tmp_path)
    weights = tmp_path / "net.h5"
    write_hdf5(caffemodel, weights)
    with h5py.File(weights, "a") as file:
        del file["data/second/0"]
    report = fold(model, weights)
    assert [stay.layer for stay in report.stayed] == ["second"]
    with h5py.File(tmp_path / "net_inference.h5") as file:
        assert "first" not in file["data"]
        assert list(file["data/second/0"][()]) == list(first.blobs[0].astype("<f4"))


def test_a_name_by_which_caffe_takes_it_for_the_other_kind_is_refused(tmp_path: Path) -> None:
    model, weights = small_net().write(tmp_path)
    hdf5 = tmp_path / "net.h5"
    write_hdf5(weights, hdf5)
    for source, output, said in ((weights, "a.h5", "without"), (hdf5, "a.bin", "ending in")):
        with pytest.raises(OutputError, match=rf"/{output}: .* give one {said} \.h5$"):
            fold(model, source, output_weights=tmp_path / output)
        assert not (tmp_path / output).exists()
        # Where an input has such a name, it is no matter.
        odd = tmp_path / f"odd{Path(output).suffix}"
        source.rename(odd)
        fold(model, odd, output_weights=tmp_path / output)
        assert (tmp_path / output).exists()
