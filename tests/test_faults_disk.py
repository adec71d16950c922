"""A disk or a file that fails: the old pair stays, and one line names the output."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from faulting import NAMES, both_ways, folded, outputs, written_net
from support.command import unwatched

import caffe_fold
from caffe_fold import OutputError, weights_files
from caffe_fold.writing import write
from caffe_fold.writing.lock import locked

pytestmark = pytest.mark.skipif(os.name != "posix", reason="signals and limits of POSIX")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return written_net(tmp_path)


def test_file_systems_without_locks_are_written_to(folder: Path, monkeypatch: Any) -> None:
    fcntl = pytest.importorskip("fcntl")

    def refuse(*_: object) -> None:
        raise OSError(37, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    assert None not in folded(folder)
    assert [path.name for path in folder.glob(".*")] == []


def test_a_disk_that_is_full(folder: Path) -> None:
    """By a limit on the size of files, at which the system refuses to write as it does where
    no room is left."""
    pairs = both_ways(folder)
    size = (folder / NAMES[1]).stat().st_size
    for limit in (0, 1000, size // 2, size - 1):
        code = (
            "import resource, sys; from caffe_fold import cli; "
            f"resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit})); cli.main()"
        )
        options = ["--model", "net.prototxt", "--weights", "net.caffemodel"]
        options += ["--output-model", NAMES[0], "--output-weights", NAMES[1]]
        root = str(Path(caffe_fold.__file__).parents[1])
        run = subprocess.run(
            [sys.executable, "-c", code, *options],
            cwd=folder,
            capture_output=True,
            text=True,
            env={**unwatched(), "PYTHONPATH": root, "PYTHONDONTWRITEBYTECODE": "1"},
            check=False,
        )
        assert run.returncode == 2, run.stderr
        assert run.stderr.startswith("error: ")
        assert "cannot be written: File too large" in run.stderr
        assert run.stderr.count("\n") == 1
        assert outputs(folder) == pairs[1]
        assert not list(folder.glob(".*"))


def test_a_full_disk_for_scratch_names_the_output(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("h5py", reason="the hdf5 extra is not installed")
    from test_hdf5_fold import write_hdf5

    from caffe_fold.weights import hdf5

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    weights = folder / "net.caffemodel.h5"
    write_hdf5(folder / "net.caffemodel", weights)
    monkeypatch.setattr(hdf5, "to_caffemodel", fail)
    out = folder / "out.h5"
    with pytest.raises(OutputError, match=f"^{out} cannot be written: No space left"):
        caffe_fold.fold(folder / "net.prototxt", weights, folder / NAMES[0], out)
    with pytest.raises(OutputError, match="cannot be written: No space left"):
        caffe_fold.fold(folder / "net.prototxt", weights, dry_run=True)
    assert not list(folder.glob(".*"))


def test_a_file_system_that_takes_nothing(folder: Path) -> None:
    if not os.path.isdir("/proc/self"):
        pytest.skip("this system has no /proc")
    with pytest.raises(OutputError, match=r"/proc/.*out.prototxt.* cannot be written"):
        caffe_fold.fold(
            folder / "net.prototxt", folder / "net.caffemodel", "/proc/out.prototxt", folder / "x"
        )
    assert sorted(os.listdir(folder)) == ["net.caffemodel", "net.prototxt"]


@pytest.mark.parametrize("left", [0.0, 0.3, 0.999])
def test_weights_that_shrink_while_they_are_read(
    left: float, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    right, weights = write.write_parts, folder / "net.caffemodel"

    def shrink(*arguments: Any) -> None:
        os.truncate(weights, int(weights.stat().st_size * left))
        right(*arguments)

    monkeypatch.setattr(weights_files, "write_parts", shrink)
    with pytest.raises(caffe_fold.CaffeFoldError, match=r"net.caffemodel: .* became shorter"):
        folded(folder)
    assert outputs(folder) == (None, None)
    assert not list(folder.glob(".*"))


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="this system has no /proc")
def test_no_descriptor_is_left_open(folder: Path) -> None:
    both_ways(folder)
    gc.collect()  # files of other tests that nobody closed
    before = open_files()
    for _ in range(20):
        folded(folder)
        with pytest.raises(caffe_fold.CaffeFoldError):
            caffe_fold.fold(folder / "net.caffemodel", folder / "net.prototxt")
        with locked(str(folder / NAMES[0])), pytest.raises(OutputError):
            folded(folder)
    assert open_files() <= before


@pytest.mark.parametrize("error", [OSError(5, "Input/output error"), KeyboardInterrupt()])
def test_weights_that_cannot_be_renamed_leave_the_old_pair(
    error: BaseException, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pairs, right = both_ways(folder), os.replace

    def fail(source: str, target: str) -> None:
        if target.endswith(NAMES[1]):
            raise error
        right(source, target)

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises((OutputError, KeyboardInterrupt)):
        folded(folder, keep=["conv"])
    assert outputs(folder) == pairs[1]
    assert not list(folder.glob(".*"))


@pytest.mark.parametrize("failing", ["out.prototxt", "page.html"])
def test_a_last_rename_that_fails_leaves_the_old_pair(
    failing: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("jinja2")
    pairs, right = both_ways(folder), os.replace

    def fail(source: str, target: str) -> None:
        if target.endswith(failing) and source.endswith(".tmp"):
            raise PermissionError(1, "Operation not permitted", source)
        right(source, target)

    monkeypatch.setattr(os, "replace", fail)
    said = f"^{folder / failing} cannot be written: Operation not permitted"
    with pytest.raises(OutputError, match=said):
        folded(folder, keep=["conv"], html=folder / "page.html")
    assert outputs(folder) == pairs[1]
    assert not list(folder.glob(".*"))
    assert not (folder / "page.html").exists()


def test_without_hard_links_a_failure_leaves_the_old_pair(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pairs, right = both_ways(folder), os.replace

    def fail(source: str, target: str) -> None:
        if target.endswith(NAMES[0]) and source.endswith(".tmp"):
            raise PermissionError(1, "Operation not permitted", source)
        right(source, target)

    def refuse(*_: Any, **__: Any) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    assert folded(folder, keep=["conv"]) == pairs[0]
    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OutputError, match=r"out\.prototxt cannot be written"):
        folded(folder)
    assert outputs(folder) == pairs[0]
    assert not list(folder.glob(".*"))


def test_an_old_pair_that_cannot_be_put_back_is_kept_and_named(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pairs, right = both_ways(folder), os.replace

    def fail(source: str, target: str) -> None:
        is_new_model = target.endswith(NAMES[0]) and source.endswith(".tmp")
        if is_new_model or source.endswith(".old"):
            raise OSError(5, "Input/output error", source)
        right(source, target)

    assert folded(folder, keep=["conv"]) == pairs[0]
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", fail)
        with pytest.raises(OutputError, match=r"is kept as .*\.out\.prototxt\.old"):
            folded(folder)
    assert (folder / ".out.prototxt.old").read_bytes() == pairs[0][0]
    assert outputs(folder)[0] is None
    assert folded(folder) == pairs[1]
    assert not list(folder.glob(".*"))
