"""Inputs that are missing, damaged or something else: one line that says what they are."""

from __future__ import annotations

import gzip
import io
import os
import zipfile
from pathlib import Path

import pytest
from calling import INPUTS, POSIX, assert_refused, files, names, small_net
from support.command import Call


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    small_net().write(tmp_path)
    return tmp_path


def hdf5() -> bytes:
    return b"\x89HDF\r\n\x1a\n" + b"\0" * 88


def zipped() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("net", "x")
    return file.getvalue()


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 132735700\n"

PAGE = b"\n\n  <!DOCTYPE html>\n<html><body>Not found</body></html>"

OTHER_FILES = {
    "git-lfs": (POINTER, "is a Git LFS pointer"),
    "html": (PAGE, "is a saved web page"),
    "json": (b'{"payload":{"rawBlob":"name: \\"net\\""}}', "is JSON, as the page of a code host"),
    "empty": (b"", "is an empty file"),
    "gzip": (gzip.compress(b"net"), "is a gzip archive"),
    "zip": (zipped(), "is a zip archive"),
}


@pytest.mark.parametrize("kind", OTHER_FILES)
@pytest.mark.parametrize("which", ["net.prototxt", "net.caffemodel"])
def test_an_input_of_another_kind_is_named(kind: str, which: str, folder: Path, call: Call) -> None:
    data, message = OTHER_FILES[kind]
    (folder / which).write_bytes(data)
    assert_refused(call(*files(folder)), f"{folder / which} {message}")
    assert names(folder) == INPUTS


def test_a_prototxt_as_weights(folder: Path, call: Call) -> None:
    (folder / "net.caffemodel").write_bytes((folder / "net.prototxt").read_bytes())
    assert_refused(call(*files(folder)), "net.caffemodel is a text file; expected a caffemodel")


def test_a_caffemodel_as_prototxt(folder: Path, call: Call) -> None:
    (folder / "net.prototxt").write_bytes((folder / "net.caffemodel").read_bytes())
    assert_refused(call(*files(folder)), "net.prototxt is a binary file; expected a prototxt")


def test_an_hdf5_file_as_prototxt(folder: Path, call: Call) -> None:
    (folder / "net.prototxt").write_bytes(hdf5())
    assert_refused(call(*files(folder)), "net.prototxt is an HDF5 file; expected a prototxt")


def test_a_damaged_hdf5_file_as_weights(folder: Path, call: Call) -> None:
    (folder / "net.caffemodel").write_bytes(hdf5())
    assert_refused(call(*files(folder)), "net.caffemodel", "HDF5")
    assert names(folder) == INPUTS


def test_swapped_arguments(folder: Path, call: Call) -> None:
    model, weights = folder / "net.prototxt", folder / "net.caffemodel"
    assert_refused(call("--model", weights, "--weights", model), "the two arguments are swapped")


def test_a_solver_prototxt(folder: Path, call: Call) -> None:
    (folder / "net.prototxt").write_text('net: "train.prototxt"\nbase_lr: 0.1\n')
    assert_refused(call(*files(folder)), "this is a solver prototxt", '"train.prototxt"')


def test_a_truncated_caffemodel(folder: Path, call: Call) -> None:
    weights = folder / "net.caffemodel"
    weights.write_bytes(weights.read_bytes()[:-7])
    assert_refused(call(*files(folder)), "net.caffemodel: byte ", "the file is truncated")


def test_a_truncated_prototxt(folder: Path, call: Call) -> None:
    model = folder / "net.prototxt"
    model.write_bytes(model.read_bytes().rstrip()[:-1])
    assert_refused(call(*files(folder)), f"{model}:", "Is it complete?")


@pytest.mark.parametrize("which", ["net.prototxt", "net.caffemodel"])
def test_an_input_that_is_missing_or_a_folder(which: str, folder: Path, call: Call) -> None:
    (folder / which).unlink()
    assert_refused(call(*files(folder)), f"{folder / which} cannot be read: No such file")
    (folder / which).mkdir()
    assert_refused(call(*files(folder)), f"{folder / which} is a folder")
    assert names(folder) == INPUTS


@POSIX
@pytest.mark.parametrize("which", ["net.prototxt", "net.caffemodel"])
def test_an_input_that_is_a_pipe_is_not_waited_for(which: str, folder: Path, call: Call) -> None:
    (folder / which).unlink()
    os.mkfifo(folder / which)
    assert_refused(call(*files(folder)), f"{folder / which} is a pipe or device")


def test_an_empty_path(folder: Path, call: Call) -> None:
    said = "--model is an empty path; expected a file"
    assert_refused(call("--model", "", "--weights", folder / "net.caffemodel"), said)


def test_a_keep_that_names_no_blob(folder: Path, call: Call) -> None:
    assert_refused(call(*files(folder), "--keep", "convv"), "no blob is named", "'conv'")
