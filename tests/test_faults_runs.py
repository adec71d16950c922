"""Two runs at once, and files in the places of those that are made and removed meanwhile."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Any

import pytest
from faulting import NAMES, both_ways, folded, outputs, written_net
from support.command import HANGS

import caffe_fold
from caffe_fold import OutputError
from caffe_fold.writing.lock import hidden, locked

pytestmark = pytest.mark.skipif(os.name != "posix", reason="signals and limits of POSIX")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return written_net(tmp_path)


def test_a_second_run_waits_for_no_one_and_mixes_nothing(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It comes while the first has given one of its files a name, and not the other."""
    pairs = both_ways(folder)
    right, between, go_on = os.replace, threading.Event(), threading.Event()

    def slowly(source: str, target: str) -> None:
        if threading.current_thread() is first and target.endswith(NAMES[0]):
            between.set()
            assert go_on.wait(HANGS)
        right(source, target)

    monkeypatch.setattr(os, "replace", slowly)
    first = threading.Thread(target=folded, args=[folder], kwargs={"keep": ["conv"]})
    first.start()
    assert between.wait(HANGS)
    with pytest.raises(OutputError, match="is being written by another run"):
        folded(folder)
    go_on.set()
    first.join()
    assert outputs(folder) == pairs[0]
    assert not list(folder.glob(".*"))


def test_an_output_that_goes_while_it_is_looked_at_is_no_error(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another run sets it aside after one of the looks."""
    pairs, right = both_ways(folder), os.stat
    for look in range(1, 5):
        left = [look]

        def stat(path: Any, *arguments: Any, left: Any = left, **options: Any) -> os.stat_result:
            found = right(path, *arguments, **options)
            if str(path).endswith(NAMES[0]):
                left[0] -= 1
                if left[0] == 0:
                    os.replace(path, folder / "away")
            return found

        with monkeypatch.context() as patch:
            patch.setattr(os, "stat", stat)
            caffe_fold.fold(*(folder / n for n in ("net.prototxt", "net.caffemodel", *NAMES)))
        assert left[0] <= 0
        assert outputs(folder) == pairs[1]


@pytest.mark.parametrize("name", NAMES)
def test_a_run_is_refused_while_another_writes(name: str, folder: Path) -> None:
    before = both_ways(folder)[1]
    with locked(str(folder / name)), pytest.raises(OutputError, match=rf"{name} is being written"):
        folded(folder)
    assert outputs(folder) == before
    assert not list(folder.glob(".*"))
    folded(folder)


def test_a_lock_that_was_left_means_nothing(folder: Path) -> None:
    path = str(folder / NAMES[0])
    Path(hidden(path, "lock")).touch()
    Path(hidden(path, "tmp")).write_bytes(b"half")
    folded(folder)
    assert not list(folder.glob(".*"))


@pytest.mark.parametrize("kind", ["link", "folder", "pipe"])
@pytest.mark.parametrize("suffix", ["lock", "tmp", "old", "scratch"])
def test_what_is_not_ours_in_a_hidden_files_place_is_named_and_stays(
    suffix: str, kind: str, folder: Path
) -> None:
    if (suffix, kind) in (("old", "link"), ("scratch", "folder")):
        pytest.skip("a run that was killed may have left it")
    other = folder / "other"
    other.write_bytes(b"mine")
    before = both_ways(folder)[1]
    odd = Path(hidden(str(folder / NAMES[1]), suffix))
    make = {"link": lambda: odd.symlink_to(other), "folder": odd.mkdir}
    make.get(kind, lambda: os.mkfifo(odd))()
    said = rf"/out.caffemodel cannot be written: .*/\.out\.caffemodel\.{suffix}, a .*{kind}, has"
    with pytest.raises(OutputError, match=said):
        folded(folder)
    assert outputs(folder) == before
    assert other.read_bytes() == b"mine"
    assert list(folder.glob(".*")) == [odd]


def test_an_output_that_was_a_link_and_set_aside_is_no_hindrance(folder: Path) -> None:
    Path(hidden(str(folder / NAMES[0]), "old")).symlink_to(folder / "other")
    folded(folder)
    assert not list(folder.glob(".*"))


@pytest.mark.parametrize("name", NAMES)
def test_a_hidden_file_that_cannot_be_made_names_the_output(
    name: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = os.open

    for suffix in ("lock", "tmp"):
        odd = hidden(str(folder / name), suffix)

        def refuse(path: Any, *arguments: Any, odd: str = odd) -> int:
            if path == odd:
                raise OSError(28, "No space left on device", path)
            return right(path, *arguments)

        monkeypatch.setattr(os, "open", refuse)
        with pytest.raises(OutputError, match=f"^{folder / name} cannot be written: No space left"):
            folded(folder)
    assert not list(folder.glob(".*"))


@pytest.mark.parametrize("suffix", ["tmp", "lock", "old", "scratch"])
@pytest.mark.parametrize("which", [0, 1])
def test_an_input_that_has_a_hidden_files_name_is_not_taken_away(
    suffix: str, which: int, folder: Path
) -> None:
    inputs = [folder / "net.prototxt", folder / "net.caffemodel"]
    odd = Path(hidden(str(folder / NAMES[1]), suffix))
    data = inputs[which].read_bytes()
    inputs[which].rename(odd)
    inputs[which] = odd
    with pytest.raises(OutputError, match="has the name of a file that is made and removed"):
        caffe_fold.fold(inputs[0], inputs[1], folder / NAMES[0], folder / NAMES[1])
    assert odd.read_bytes() == data
    other = Path(hidden(str(folder / NAMES[0]), suffix))
    odd.rename(folder / "in")
    inputs[which] = folder / "in"
    with pytest.raises(OutputError, match="has the name of a file that is made and removed"):
        caffe_fold.fold(inputs[0], inputs[1], folder / NAMES[0], other)
    assert not other.exists()


def test_long_names_that_end_alike_have_hidden_files_of_their_own(tmp_path: Path) -> None:
    one, two = (str(tmp_path / f"{first}{'x' * 245}.caffe") for first in "ab")
    assert hidden(one, "lock") != hidden(two, "lock")
    assert len(os.path.basename(hidden(one, "lock"))) < 100
