"""Faults from outside: a kill at any moment, two runs at once, a disk or file that fails.

Inputs stay as they are, and beside the outputs' names there is a whole pair, or weights alone.
"""

from __future__ import annotations

import gc
import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from support.command import HANGS, unwatched
from support.nets import Net

import caffe_fold
from caffe_fold import OutputError, weights_files
from caffe_fold.writing import write
from caffe_fold.writing.lock import hidden, locked

pytestmark = pytest.mark.skipif(os.name != "posix", reason="signals and limits of POSIX")

NAMES = ("out.prototxt", "out.caffemodel")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    net = Net()
    net.input("data", (1, 8, 4, 4))
    net.conv("conv", "data", 8, 64, 3)
    net.batch_norm("bn", "conv", 64, top="bn")
    net.relu("relu", "bn", top="relu")
    net.inner_product("fc", "relu", 256, 4000)
    net.write(tmp_path)
    return tmp_path


def outputs(folder: Path) -> tuple[bytes | None, bytes | None]:
    """The bytes of both outputs, None for one that is not there."""
    model, weights = (folder / name for name in NAMES)
    return tuple(p.read_bytes() if p.exists() else None for p in (model, weights))  # type: ignore[return-value]


def folded(folder: Path, **options: Any) -> tuple[bytes | None, bytes | None]:
    files = [folder / name for name in ("net.prototxt", "net.caffemodel", *NAMES)]
    caffe_fold.fold(*files, **options)
    return outputs(folder)


def both_ways(folder: Path) -> list[tuple[bytes | None, bytes | None]]:
    """What two runs with different options write; neither file is alike."""
    pairs = [folded(folder, keep=["conv"]), folded(folder)]
    assert pairs[0][0] != pairs[1][0]
    assert pairs[0][1] != pairs[1][1]
    return pairs


# Folds again and again, by turns with either option, and lingers where files get their names.
FOLDING = """
import itertools, os, random, sys, time
import caffe_fold
files = sys.argv[1:]
replace = os.replace

def slowly(*paths):
    time.sleep(random.uniform(0, 0.01))
    replace(*paths)

os.replace = slowly
print("ready", flush=True)
for keep in itertools.cycle(([], ["conv"])):
    caffe_fold.fold(*files, keep=keep)
"""


def start_folding(folder: Path) -> subprocess.Popen[str]:
    run = start(FOLDING, folder)
    assert run.stdout is not None
    assert run.stdout.readline() == "ready\n"
    return run


def check(folder: Path, pairs: list[tuple[bytes | None, bytes | None]]) -> None:
    found = outputs(folder)
    weights_alone = [(None, pair[1]) for pair in pairs]
    # While the prototxt is away, the weights may be those of before, too.
    assert found in pairs or found in weights_alone, "files of two runs side by side"


@pytest.mark.slow
def test_a_kill_at_any_moment_leaves_a_pair_or_weights_alone(folder: Path) -> None:
    pairs = both_ways(folder)
    inputs = {name: (folder / name).read_bytes() for name in ("net.prototxt", "net.caffemodel")}
    wait = random.Random(7)
    for _ in range(12):
        run = start_folding(folder)
        time.sleep(wait.uniform(0.005, 0.06))
        run.kill()
        run.communicate()
        assert run.returncode == -signal.SIGKILL
        check(folder, pairs)
    assert {name: (folder / name).read_bytes() for name in inputs} == inputs
    # What the killed runs left stands in nobody's way, and goes.
    assert folded(folder) == pairs[1]
    assert sorted(os.listdir(folder)) == sorted((*inputs, *NAMES))


# Folds in forks of itself, each of which is killed before another call to the system.
KILLED = """
import os, signal, sys
import caffe_fold
files, left = sys.argv[1:], [0]

def guard(name):
    right = getattr(os, name)
    def guarded(*arguments, **options):
        left[0] -= 1
        if left[0] < 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return right(*arguments, **options)
    setattr(os, name, guarded)

for count in range(1000):
    caffe_fold.fold(*files, keep=["conv"])
    child = os.fork()
    if child == 0:
        for name in ("open", "close", "unlink", "link", "replace", "pread", "pwrite"):
            if hasattr(os, name):
                guard(name)
        left[0] = count
        caffe_fold.fold(*files, threads=1)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    print(count, flush=True)
    sys.stdin.readline()
    if status == 0:
        break
"""


def start(code: str, folder: Path, *arguments: str) -> subprocess.Popen[str]:
    files = [str(folder / name) for name in ("net.prototxt", "net.caffemodel", *NAMES)]
    root = str(Path(caffe_fold.__file__).parents[1])
    return subprocess.Popen(
        [sys.executable, "-c", code, *files, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": root},
    )


def test_a_kill_before_each_call_to_the_system(folder: Path) -> None:
    pairs = both_ways(folder)
    seen = set()
    with start(KILLED, folder) as run:
        assert run.stdin is not None
        assert run.stdout is not None
        for _ in run.stdout:
            check(folder, pairs)
            seen.add(outputs(folder)[0])
            run.stdin.write("\n")
            run.stdin.flush()
    assert run.returncode == 0
    # It went through all of the ends that there may be.
    assert seen == {pairs[0][0], None, pairs[1][0]}


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


@pytest.mark.parametrize("kind", ["--equalize", "hdf5"])
@pytest.mark.parametrize("name", ["out", "n" * 240])
def test_the_scratch_of_a_killed_fold_goes_with_the_next(
    kind: str, name: str, folder: Path
) -> None:
    files = ["net.prototxt", "net.caffemodel", f"{name}.prototxt", f"{name}.caffemodel"]
    if kind == "hdf5":
        pytest.importorskip("h5py", reason="the hdf5 extra is not installed")
        from test_hdf5_fold import write_hdf5

        write_hdf5(folder / "net.caffemodel", folder / "net.caffemodel.h5")
        files[1::2] = ["net.caffemodel.h5", f"{name}.h5"]
    code = (
        "import os, signal, sys; from caffe_fold import convert\nimport caffe_fold\n"
        "def kill(*_): os.kill(os.getpid(), signal.SIGKILL)\n"
        "from caffe_fold.quantization import equalize\n"
        f"{'equalize._prove' if kind == '--equalize' else 'convert.check_values'} = kill\n"
        f"caffe_fold.fold(*sys.argv[5:], equalize={kind == '--equalize'})"
    )
    paths = [folder / file for file in files]
    with start(code, folder, *map(str, paths)) as run:
        pass
    assert run.returncode == -signal.SIGKILL
    (left,) = [path for path in folder.glob(".*") if path.is_dir()]
    assert list(left.iterdir())
    caffe_fold.fold(*paths)
    assert not list(folder.glob(".*"))
    assert all(path.exists() for path in paths)


def test_ctrl_c_waits_until_the_pair_is_whole(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pairs, right = both_ways(folder), os.replace

    def interrupt(source: str, target: str) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        right(source, target)

    monkeypatch.setattr(os, "replace", interrupt)
    with pytest.raises(KeyboardInterrupt):
        folded(folder, keep=["conv"])
    assert outputs(folder) == pairs[0]
    assert not list(folder.glob(".*"))


def test_long_names_that_end_alike_have_hidden_files_of_their_own(tmp_path: Path) -> None:
    one, two = (str(tmp_path / f"{first}{'x' * 245}.caffe") for first in "ab")
    assert hidden(one, "lock") != hidden(two, "lock")
    assert len(os.path.basename(hidden(one, "lock"))) < 100
