"""Files in HDF5 that are no Caffe model, or a bad one, and places that cannot be written."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from hdf5_files import f4, slashed, write_h5

from caffe_fold.errors import InputError, OutputError
from caffe_fold.weights.caffemodel import Caffemodel
from caffe_fold.weights.hdf5 import from_caffemodel, to_caffemodel


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
