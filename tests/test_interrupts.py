"""Ctrl-C and SIGTERM at the ends of a run: while modules are imported, and after the work.

In between they are in test_cli_interrupts and test_faults_kills.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from support.command import HANGS
from support.nets import Net

import caffe_fold

pytestmark = pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")

STOPPING = [signal.SIGINT, signal.SIGTERM]
LINE = "error: interrupted; nothing was written\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    net = Net()
    net.input("data", (1, 2, 3, 3))
    net.conv("conv", "data", 2, 2, 3)
    net.batch_norm("bn", "conv", 2)
    net.write(tmp_path)
    return tmp_path


def run(code: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Fold in a process in which ``code`` runs first."""
    end = "runpy.run_module('caffe_fold', run_name='__main__')"
    whole = f"import os, runpy, signal, sys\n{code}\n{end}"
    files = ["--model", "net.prototxt", "--weights", "net.caffemodel"]
    return subprocess.run(
        [sys.executable, "-c", whole, *files],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(Path(caffe_fold.__file__).parents[1])},
        capture_output=True,
        text=True,
        timeout=HANGS,
    )


# Sends a signal when a module is looked for. From within its import, as C code calls it, an
# exception may become another.
IMPORTING = """
class Finder:
    def find_spec(self, name, *_):
        if name == {name!r}:
            sys.meta_path.remove(self)
            try:
                os.kill(os.getpid(), {number})
            except KeyboardInterrupt:
                {then}
sys.meta_path.insert(0, Finder())
"""


@pytest.mark.parametrize("number", STOPPING)
@pytest.mark.parametrize(
    "name",
    ["caffe_fold.interrupts", "caffe_fold.cli", "click", "caffe_fold.commands.fold", "numpy"],
)
def test_an_interrupt_while_modules_are_imported(name: str, number: int, folder: Path) -> None:
    if name == "caffe_fold.interrupts" and number != signal.SIGINT:
        pytest.skip("before our code runs, the system ends the process")
    done = run(IMPORTING.format(name=name, number=int(number), then="raise"), folder)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", LINE)


def test_an_interrupt_of_which_an_import_makes_another_error(folder: Path) -> None:
    done = run(IMPORTING.format(name="numpy", number=2, then="raise TypeError('x')"), folder)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", LINE)


def test_an_interrupt_in_a_destructor_comes_again(folder: Path) -> None:
    code = """
from caffe_fold import convert

class Dying:
    def __del__(self):
        os.kill(os.getpid(), signal.SIGINT)

def resolve(*_):
    Dying()
    signal.pause()

convert.resolve_outputs = resolve
"""
    done = run(code, folder)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", LINE)


def test_an_interrupt_in_text_that_is_run_is_no_death_by_signal(folder: Path) -> None:
    """Python remembers one that left ``exec``, and would end by the signal at the end."""
    code = """
from caffe_fold import convert
convert.resolve_outputs = lambda *_: exec("os.kill(os.getpid(), signal.SIGINT)")
"""
    done = run(code, folder)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", LINE)


@pytest.mark.parametrize("number", STOPPING)
def test_an_interrupt_when_all_is_done_comes_too_late(number: int, folder: Path) -> None:
    code = f"import atexit\natexit.register(os.kill, os.getpid(), {int(number)})"
    done = run(code, folder)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("folded   conv")


def test_a_second_interrupt_does_not_break_off_the_cleaning_up(folder: Path) -> None:
    code = """
from caffe_fold import weights_files
right = os.unlink

def unlink(path):
    os.kill(os.getpid(), signal.SIGTERM)
    right(path)

def interrupt(*_):
    os.unlink = unlink
    os.kill(os.getpid(), signal.SIGINT)

weights_files.write_parts = interrupt
"""
    done = run(code, folder)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", LINE)
    assert sorted(os.listdir(folder)) == ["net.caffemodel", "net.prototxt"]


def test_a_signal_that_is_ignored_stays_so(folder: Path) -> None:
    code = """
signal.signal(signal.SIGINT, signal.SIG_IGN)
from caffe_fold import convert, weights_files
right = weights_files.write_parts

def interrupt(*arguments):
    os.kill(os.getpid(), signal.SIGINT)
    right(*arguments)

weights_files.write_parts = interrupt
"""
    done = run(code, folder)
    assert (done.returncode, done.stderr) == (0, "")
