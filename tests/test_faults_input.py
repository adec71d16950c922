"""Faults of an input: an error of the disk, a name that makes it look like something else."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest
from support.nets import Net

from caffe_fold import InputError, convert, fold, inspect
from caffe_fold.weights import wire
from caffe_fold.writing.rewrite_prototxt import rewrite_prototxt


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    net = Net()
    net.input("data", (1, 3, 4, 4))
    net.conv("conv", "data", 3, 4)
    net.batch_norm("bn", "conv", 4)
    return net.write(tmp_path)


@pytest.mark.parametrize("dry_run", [False, True])
def test_an_error_of_the_disk_names_the_input(
    pair: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, dry_run: bool
) -> None:
    def failing(*_: Any) -> bytes:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(wire, "_pread", failing)
    with pytest.raises(InputError, match=r"net\.caffemodel cannot be read: Input/output error"):
        fold(*pair, dry_run=dry_run)


def test_weights_that_are_removed_meanwhile_are_named(
    pair: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def removed(*given: Any) -> bytes:
        pair[1].unlink()
        return rewrite_prototxt(*given)

    monkeypatch.setattr(convert, "rewrite_prototxt", removed)
    with pytest.raises(InputError, match=r"net\.caffemodel cannot be read: No such file"):
        fold(*pair)
    assert os.listdir(pair[0].parent) == [pair[0].name]


def test_weights_whose_first_name_is_long_are_weights(tmp_path: Path) -> None:
    net = Net("n" * 90)
    net.input("data", (1, 3, 4, 4))
    net.conv("x" * 5000, "data", 3, 4)
    net.batch_norm("bn", "x" * 5000, 4)
    report = fold(*net.write(tmp_path))
    assert [f.layer for f in report.folded] == ["x" * 5000]


def test_a_text_is_not_taken_for_weights(tmp_path: Path, pair: tuple[Path, Path]) -> None:
    text = tmp_path / "text.caffemodel"
    text.write_bytes(b"\n" + pair[0].read_bytes())  # a line feed is the tag of a net's name
    with pytest.raises(InputError, match="is a text file"):
        fold(pair[0], text)


def test_a_zero_byte_in_a_comment_makes_no_binary_file(pair: tuple[Path, Path]) -> None:
    pair[0].write_bytes(b"# \0\n" + pair[0].read_bytes())
    assert inspect(pair[0]).layers
