"""OpenCV, by its Caffe importer: in a process of its own, since a net that it cannot bear ends the
process."""

from __future__ import annotations

import atexit
import contextlib
import functools
import importlib.util
import os
import pickle
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from caffe_fold.errors import EngineMissing
from caffe_fold.verification.engine import EngineError, Inputs, Job, Values
from caffe_fold.verification.opencv_forward import READY

__all__ = ["OpenCV"]

_INSTALL = "pip install 'caffe-fold[verify]'"

# The importer passes on any type; these its layers compute as Caffe does. An InnerProduct
# with ``transpose`` is none of them: the importer (dnn/src/caffe/caffe_importer.cpp, 4.x) does
# not read the parameter, and takes the weights as rows of outputs.
_KNOWN = frozenset(
    (
        "AbsVal BNLL BatchNorm Concat Convolution Crop Deconvolution DetectionOutput Dropout "
        "ELU Eltwise Flatten InnerProduct Input LRN MVN Normalize PReLU Permute Pooling Power "
        "PriorBox PriorBoxClustered ReLU ReLU6 Reshape Scale ShuffleChannel Sigmoid Slice Softmax "
        "Split TanH"
    ).split()
)


class OpenCV:
    """OpenCV 4, from 4.8 on.

    :raises EngineMissing: where it is not there, or has no Caffe importer.
    """

    name = "opencv"

    def __init__(self) -> None:
        if importlib.util.find_spec("cv2") is None:
            raise EngineMissing(f"OpenCV is not there: {_INSTALL}")
        version, has_importer = _about()
        if not has_importer:
            raise EngineMissing(
                f"OpenCV {version} has no Caffe importer, which 5 dropped: {_INSTALL}"
            )
        self.version = f"OpenCV {version}"

    def known(self) -> frozenset[str]:
        return _KNOWN

    def reads(self, has_doubles: bool) -> bool:
        return not has_doubles

    def run(self, jobs: Sequence[Job], inputs: Inputs) -> list[Values]:
        found: list[Values] = _asked("run", list(map(_absolute, jobs)), dict(inputs))
        return found

    def time(self, jobs: Sequence[Job], inputs: Inputs, rounds: int) -> list[list[float]]:
        seconds: list[list[float]] = _asked(
            "time", list(map(_absolute, jobs)), dict(inputs), rounds
        )
        return seconds


@functools.lru_cache(maxsize=1)
def _about() -> tuple[str, bool]:
    """OpenCV's version, and whether it has a Caffe importer."""
    try:
        about: tuple[str, bool] = _asked("about")
    except EngineError as error:
        raise EngineMissing(f"OpenCV cannot be used: {error}; it comes by {_INSTALL}") from None
    return about


def _absolute(job: Job) -> Job:
    """A job with paths that mean the same in a process of another working folder."""
    return replace(job, model=os.path.abspath(job.model), weights=os.path.abspath(job.weights))


# ---- The process ----

# The path of this process, since the package may have been found in any way.
_START = (
    "import sys; sys.path[:] = sys.argv[1:]; "
    "from caffe_fold.verification.opencv_forward import main; main()"
)
_HOME = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))


def _paths() -> list[str]:
    """Where modules are found, without the working folder, which may be another by now and have
    files of any name."""
    return [*(path for path in sys.path if isinstance(path, str) and path), _HOME]


class _Process:
    """A process that runs nets, one request after another. It ends with the one that asks."""

    def __init__(self) -> None:
        self.is_busy = self.is_started = False
        command = [sys.executable, "-W", "ignore", "-c", _START, *_paths()]
        try:
            self.popen = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
            )
        except (OSError, ValueError) as error:  # the latter of a path that no file has
            reason = error.strerror if isinstance(error, OSError) else error
            raise EngineError(f"no process can be started for it ({reason})") from None

    @property
    def is_ready(self) -> bool:
        """Whether its next answer will be to the next request, as far as is known."""
        return not self.is_busy and self.popen.poll() is None

    def ask(self, request: tuple[str, tuple[Any, ...]]) -> Any:
        """The answer to a request; raises EngineError where OpenCV refuses, or ends it."""
        requests, answers = self.popen.stdin, self.popen.stdout
        assert requests is not None
        assert answers is not None
        self.is_busy = True
        try:
            pickle.dump(request, requests, pickle.HIGHEST_PROTOCOL)
            requests.flush()
            while not self.is_started:
                line = answers.readline()
                self.is_started = line in (READY, b"")  # without a line the answer is missing, too
            is_done, found = pickle.load(answers)
        except (EOFError, OSError, pickle.UnpicklingError):
            raise EngineError(f"it ended its process ({self._how_it_ended()})") from None
        self.is_busy = False
        if not is_done:
            raise EngineError(found)
        return found

    def _how_it_ended(self) -> str:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.popen.wait(_PATIENCE)
        self.end()
        code = self.popen.returncode
        names = {int(number): number.name for number in signal.Signals}
        return names.get(-code, f"exit code {code}")

    def end(self) -> None:
        """End it at once."""
        self.popen.kill()
        self.popen.wait()
        for stream in (self.popen.stdin, self.popen.stdout):
            with contextlib.suppress(OSError):  # of what could not be sent
                stream.close()  # type: ignore[union-attr]

    def leave(self) -> None:
        """In a process that was forked from the one that asks: say nothing to it, and do not
        keep it from ending."""
        null = os.open(os.devnull, os.O_RDWR)
        for stream in (self.popen.stdin, self.popen.stdout):
            if stream is not None and not stream.closed:
                os.dup2(null, stream.fileno(), inheritable=False)
        os.close(null)
        self.popen.returncode = 0  # it is no child of this one, which cannot wait for it


# Seconds in which a process ends that has closed its pipes.
_PATIENCE = 5.0


class _Running:
    """The process that is asked: there is one, and another where it has ended."""

    lock = threading.Lock()
    process: _Process | None = None
    is_known = False  # to what ends and forks this process


def _asked(name: str, *arguments: Any) -> Any:
    """What a method of ``opencv_forward.Forward`` gives.

    :raises EngineError: where OpenCV refuses, or ends its process.
    """
    with _Running.lock:
        process = _Running.process
        if process is None or not process.is_ready:
            _end()
            process = _started()
        try:
            return process.ask((name, arguments))
        finally:
            if process.is_busy:  # with what nobody waits for any more
                process.end()


def _started() -> _Process:
    if not _Running.is_known:
        _Running.is_known = True
        atexit.register(_end)
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=_forked)
    process = _Running.process = _Process()
    return process


def _end() -> None:
    if _Running.process is not None:
        _Running.process.end()


def _forked() -> None:
    """Begin anew: the lock may be that of a thread that is not here, and the process is not one
    of this process."""
    process, _Running.process, _Running.lock = _Running.process, None, threading.Lock()
    if process is not None:
        process.leave()
