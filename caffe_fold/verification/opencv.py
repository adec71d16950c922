"""OpenCV's Caffe importer, in this process: its own folding is off where values are compared,
since it leaves blobs without them, and on where time is taken, as it is for users."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from caffe_fold.errors import EngineMissing, show
from caffe_fold.verification.engine import EngineError, Inputs, Job, Values

__all__ = ["OpenCV", "quiet"]

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
        try:
            import cv2
        except ImportError as error:
            raise EngineMissing(f"OpenCV is not there ({error}): {_INSTALL}") from None
        if not hasattr(cv2.dnn, "readNetFromCaffe"):
            raise EngineMissing(
                f"OpenCV {cv2.__version__} has no Caffe importer, which 5 dropped: {_INSTALL}"
            )
        self.cv2: Any = cv2

    @property
    def version(self) -> str:
        return f"OpenCV {self.cv2.__version__}"

    def known(self) -> frozenset[str]:
        return _KNOWN

    def reads(self, has_doubles: bool) -> bool:
        return not has_doubles

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
        """OpenCV's complaints as errors on one line, and not on standard error, too."""
        try:
            with quiet(self.cv2):
                yield
        except (self.cv2.error, UnicodeError) as error:
            raise EngineError(_said(error)) from None


@contextlib.contextmanager
def quiet(cv2: Any) -> Iterator[None]:
    """While it lasts, OpenCV writes no complaints of its own to standard error."""
    # Newer releases have it in a module, older ones at the top.
    logging = getattr(cv2.utils, "logging", cv2)
    level = logging.getLogLevel()
    logging.setLogLevel(_SILENT)
    try:
        yield
    finally:
        logging.setLogLevel(level)


_SILENT = 0  # LOG_LEVEL_SILENT of opencv2/core/utils/logger.defines.hpp


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
