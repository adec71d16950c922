"""Outputs: what they may be, and what is never replaced."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from calling import INPUTS, OUTPUTS, POSIX, Patch, assert_refused, files, names, small_net
from support.command import Call

from caffe_fold import weights_files


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    small_net().write(tmp_path)
    return tmp_path


def same_path(path: Path) -> Path:
    return path


def by_symlink(path: Path) -> Path:
    link = path.with_name("link")
    link.symlink_to(path)
    return link


def by_hardlink(path: Path) -> Path:
    link = path.with_name("link")
    os.link(path, link)
    return link


def by_way_round(path: Path) -> Path:
    (path.parent / "sub").mkdir()
    return path.parent / "sub" / ".." / path.name


@POSIX
@pytest.mark.parametrize("way", [same_path, by_symlink, by_hardlink, by_way_round])
@pytest.mark.parametrize("option", ["--output-model", "--output-weights"])
@pytest.mark.parametrize("which", ["net.prototxt", "net.caffemodel"])
def test_an_output_that_is_an_input_is_refused(
    which: str, option: str, way: Callable[[Path], Path], folder: Path, call: Call
) -> None:
    before = {name: (folder / name).read_bytes() for name in INPUTS}
    outcome = call(*files(folder), option, way(folder / which))
    assert_refused(outcome, "is an input")
    assert names(folder) - {"link", "sub"} == INPUTS
    assert all((folder / name).read_bytes() == data for name, data in before.items())


def test_both_outputs_in_one_file_are_refused(folder: Path, call: Call) -> None:
    (folder / "sub").mkdir()
    paths = ("--output-model", folder / "x", "--output-weights", folder / "sub" / ".." / "x")
    assert_refused(call(*files(folder), *paths), "is given for both outputs")
    assert names(folder) == INPUTS | {"sub"}


@pytest.mark.parametrize("option", ["--output-model", "--output-weights"])
def test_an_output_in_a_folder_that_is_not_there(option: str, folder: Path, call: Call) -> None:
    outcome = call(*files(folder), option, folder / "no" / "x")
    assert_refused(outcome, "cannot be written: there is no folder", str(folder / "no"))
    assert_refused(call(*files(folder), option, folder), "is a folder; give the output file's path")
    assert names(folder) == INPUTS


@POSIX
def test_an_output_that_is_a_device_is_not_replaced(folder: Path, call: Call) -> None:
    os.mkfifo(folder / "pipe")
    outcome = call(*files(folder), "--output-model", folder / "pipe")
    assert_refused(outcome, "is no regular file")
    assert stat.S_ISFIFO((folder / "pipe").stat().st_mode)


@pytest.mark.parametrize("failing", [1, 2])
def test_a_folder_that_cannot_be_written_to(
    failing: int, folder: Path, call: Call, monkeypatch: Patch
) -> None:
    """Of the two files the second may be the one that fails."""
    calls = 0
    right = os.open

    def refuse(path: Any, flags: int, *mode: int) -> int:
        nonlocal calls
        calls += flags & os.O_CREAT != 0
        if flags & os.O_CREAT and calls == failing:
            raise PermissionError(13, "Permission denied", str(folder / "x"))
        return right(path, flags, *mode)

    monkeypatch.setattr(os, "open", refuse)
    assert_refused(call(*files(folder)), "cannot be written: Permission denied")
    assert names(folder) == INPUTS


@POSIX
@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write")
def test_a_folder_that_really_cannot_be_written_to(folder: Path, call: Call) -> None:
    folder.chmod(0o500)
    try:
        assert_refused(call(*files(folder)), "cannot be written: Permission denied")
    finally:
        folder.chmod(0o700)


def test_a_full_disk(folder: Path, call: Call, monkeypatch: Patch) -> None:
    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(weights_files, "write_parts", fail)
    assert_refused(call(*files(folder)), "cannot be written: No space left on device")
    assert names(folder) == INPUTS


def test_existing_outputs_are_replaced(folder: Path, call: Call) -> None:
    for name in OUTPUTS:
        (folder / name).write_bytes(b"old" * 10_000)
    assert call(*files(folder)).code == 0
    first = {name: (folder / name).read_bytes() for name in OUTPUTS}
    assert all(b"oldold" not in data for data in first.values())
    assert call(*files(folder)).code == 0
    assert first == {name: (folder / name).read_bytes() for name in OUTPUTS}
    assert names(folder) == INPUTS | OUTPUTS


@POSIX
@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002])
def test_the_outputs_modes_follow_the_umask(umask: int, folder: Path, call: Call) -> None:
    old = os.umask(umask)
    try:
        assert call(*files(folder)).code == 0
    finally:
        os.umask(old)
    for name in OUTPUTS:
        assert stat.S_IMODE((folder / name).stat().st_mode) == 0o666 & ~umask


@POSIX
def test_a_link_as_output_is_replaced_and_not_followed(folder: Path, call: Call) -> None:
    (folder / "target").write_bytes(b"mine")
    (folder / "net_inference.prototxt").symlink_to(folder / "target")
    assert call(*files(folder)).code == 0
    assert (folder / "target").read_bytes() == b"mine"


def test_a_long_name_that_the_system_takes_is_taken(folder: Path, call: Call) -> None:
    name = "\u7db2" * 85  # 255 bytes
    done = call(*files(folder), "--output-model", folder / name)
    assert done.code == 0, done.err
    assert name in names(folder)
