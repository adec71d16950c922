"""Weights in HDF5 that real Caffe writes, and reads again once folded."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hdf5_files import assert_same_weights, fold_h5, read_h5, siamese, write_h5
from support.engines import Unavailable, pycaffe_python
from support.nets import Net

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
