"""Runs nets in OpenCV's Caffe importer, in a process of its own.

Its own folding is off where values are compared, since it leaves blobs without them, and on
where time is taken, as it is for users. Requests come by standard input, and answers go to
standard output, pickled: the name of a method of ``Forward`` with its arguments; and whether it
came to an end, with what it gave, or what was said.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import queue
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any, BinaryIO, NoReturn

import numpy as np

from caffe_fold.errors import show
from caffe_fold.interrupts import STOPPING
from caffe_fold.verification.engine import EngineError, Inputs, Job, Values

__all__ = ["READY", "Forward", "main"]

READY = b"caffe-fold runs OpenCV\n"
"""The line before the first answer; what a user's own start of Python prints is before it."""


def main() -> None:
    """Answer until nobody asks any more. Signals are for the process that does."""
    for number in STOPPING:
        signal.signal(number, signal.SIG_IGN)
    requests, answers = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    null = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1):  # what OpenCV may print is no answer
        os.dup2(null, stream)
    answers.write(b"\n" + READY)
    asked: queue.SimpleQueue[tuple[str, tuple[Any, ...]]] = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(requests, asked), daemon=True).start()
    try:
        _answer(asked, answers)
    finally:
        os._exit(1)  # not by Python's own way, which would wait for the thread's file


def _listen(requests: BinaryIO, asked: queue.SimpleQueue[tuple[str, tuple[Any, ...]]]) -> None:
    """Take requests, and end with the process that asks, amid a net, too."""
    code = 1
    try:
        while True:
            asked.put(pickle.load(requests))
    except EOFError:
        code = 0
    finally:
        os._exit(code)


def _answer(asked: queue.SimpleQueue[tuple[str, tuple[Any, ...]]], answers: BinaryIO) -> NoReturn:
    forward = None
    while True:
        name, arguments = asked.get()
        try:
            forward = forward or Forward()
            answer = (True, getattr(forward, name)(*arguments))
        except MemoryError:
            answer = (False, "there is not enough memory for it")
        except Exception as error:
            said = (
                str(error)
                if isinstance(error, (EngineError, ImportError))
                else show(repr(error), 300)
            )
            answer = (False, said)
        pickle.dump(answer, answers, pickle.HIGHEST_PROTOCOL)
        answers.flush()


class Forward:
    """Runs nets."""

    def __init__(self) -> None:
        import cv2

        self.cv2: Any = cv2

    def about(self) -> tuple[str, bool]:
        """OpenCV's version, and whether it has a Caffe importer."""
        return self.cv2.__version__, hasattr(self.cv2.dnn, "readNetFromCaffe")

    def run(self, jobs: Sequence[Job], inputs: Inputs) -> list[Values]:
        return [self._run(job, inputs) for job in jobs]

    def _run(self, job: Job, inputs: Inputs) -> Values:
        with self._errors():
            net = self._net(job, inputs, fuses=False)
            names = list(net.getLayerNames())
            known = set(names)
            # A top's name is no other layer's.
            tops_alone = known - {layer for layer, _, _ in job.outputs.values()}
            places = {
                value: _found_as(output, known, tops_alone) for value, output in job.outputs.items()
            }
            asked = [name for name in dict.fromkeys(places.values()) if name]
            tops = dict(zip(asked, net.forwardAndRetrieve(asked) if asked else ()))
        found: Values = {}
        for value, output in job.outputs.items():
            arrays = tops.get(places[value], ())
            if output[2] < len(arrays):
                found[value] = np.array(arrays[output[2]])
        return found

    def time(self, jobs: Sequence[Job], inputs: Inputs, rounds: int) -> list[list[float]]:
        with self._errors():
            nets = [self._net(job, inputs, fuses=True) for job in jobs]
            for net in nets:
                net.forward()
            seconds: list[list[float]] = [[] for _ in nets]
            for _ in range(rounds):
                for net, job, taken in zip(nets, jobs, seconds):
                    # Without new inputs OpenCV gives its last result.
                    self._feed(net, job, inputs)
                    start = time.perf_counter()
                    net.forward()
                    taken.append(time.perf_counter() - start)
        return seconds

    def _net(self, job: Job, inputs: Inputs, fuses: bool) -> Any:
        # A name that is no UTF-8 ends the process in the bindings.
        if not all(map(_is_utf8, job.inputs.values())):
            raise EngineError("OpenCV takes names in UTF-8 alone")
        files: list[Any] = [job.model, job.weights]
        if not all(map(_is_utf8, files)):
            files = [np.fromfile(path, np.uint8) for path in files]
        net = self.cv2.dnn.readNetFromCaffe(*files)
        net.enableFusion(fuses)
        self._feed(net, job, inputs)
        return net

    def _feed(self, net: Any, job: Job, inputs: Inputs) -> None:
        for key, blob in job.inputs.items():
            net.setInput(np.ascontiguousarray(inputs[key], np.float32), blob)

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        """OpenCV's complaints as errors on one line."""
        try:
            yield
        except (self.cv2.error, UnicodeError) as error:
            raise EngineError(_said(error)) from None


def _is_utf8(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _found_as(output: tuple[str, str, int], known: set[str], tops: set[str]) -> str:
    """OpenCV calls a layer by its name, and some by their top."""
    layer, top, _ = output
    return layer if layer in known else top if top in tops else ""


def _said(error: Exception) -> str:
    text = " ".join(str(getattr(error, "err", "") or error).split())
    return show(text, 300)
