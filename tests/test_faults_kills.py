"""Kills and Ctrl-C at any moment.

Inputs stay as they are, and beside the outputs' names there is a whole pair, or weights alone.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import time
from pathlib import Path

import pytest
from faulting import NAMES, both_ways, check, folded, outputs, start, written_net

import caffe_fold

pytestmark = pytest.mark.skipif(os.name != "posix", reason="signals and limits of POSIX")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return written_net(tmp_path)


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
