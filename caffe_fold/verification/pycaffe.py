"""Real Caffe, in the interpreter that has it, with files between.

Old pycaffes live on old Pythons and cannot share this environment, and Caffe ends its
process where it refuses a net; so it runs as a process of its own.
"""

from __future__ import annotations

import functools
import json
import os
import re
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from caffe_fold.errors import EngineMissing, show
from caffe_fold.verification.engine import TRANSPOSED, WEIGHTLESS, EngineError, Inputs, Job, Values

__all__ = ["SCRIPT", "VARIABLE", "PyCaffe"]

VARIABLE = "CAFFE_FOLD_CAFFE_PYTHON"
SCRIPT = Path(__file__).with_name("pycaffe_forward.py")
_NAME_IT = f"name an interpreter that has pycaffe by --caffe-python or {VARIABLE}"

# Where a pycaffe is too old to list them.
_KNOWN = frozenset(
    (
        "AbsVal BNLL BatchNorm Bias Concat Convolution Deconvolution Dropout ELU Eltwise Flatten "
        "InnerProduct Input LRN MVN PReLU Pooling Power ReLU Reshape Scale Sigmoid Slice Softmax "
        "Split TanH"
    ).split()
)


class PyCaffe:
    """The Caffe of an interpreter.

    :param python: the interpreter; None for the one that the environment names.
    :raises EngineMissing: where none is named, or it has no pycaffe.
    """

    name = "caffe"

    def __init__(self, python: str | None = None) -> None:
        found = python or os.environ.get(VARIABLE)
        if not found:
            raise EngineMissing(f"real Caffe is not there: {_NAME_IT}")
        self.python = found

    @property
    def version(self) -> str:
        return f"Caffe {_about(self.python)['version']}".strip()

    def known(self) -> frozenset[str]:
        types = frozenset(_about(self.python)["types"]) or _KNOWN
        more = {"InnerProduct": TRANSPOSED, "Deconvolution": WEIGHTLESS}
        return types | {more[name] for name in types & more.keys()}

    def reads(self, has_doubles: bool) -> bool:
        return True

    def run(self, jobs: Sequence[Job], inputs: Inputs) -> list[Values]:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            nets = [self._net(folder / str(i), job, inputs) for i, job in enumerate(jobs)]
            _call(self.python, folder, {"do": "run", "nets": nets})
            return [_values(folder / str(i), job) for i, job in enumerate(jobs)]

    def time(self, jobs: Sequence[Job], inputs: Inputs, rounds: int) -> list[list[float]]:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            nets = [self._net(folder / str(i), job, inputs) for i, job in enumerate(jobs)]
            answer = folder / "answer.json"
            request = {"do": "time", "nets": nets, "rounds": rounds, "answer": str(answer)}
            _call(self.python, folder, request)
            seconds: list[list[float]] = json.loads(answer.read_text("utf-8"))
            return seconds

    def _net(self, folder: Path, job: Job, inputs: Inputs) -> dict[str, Any]:
        folder.mkdir()
        paths = {}
        for index, (key, blob) in enumerate(job.inputs.items()):
            path = folder / f"in{index}.npy"
            np.save(path, np.ascontiguousarray(inputs[key], np.float32))
            paths[blob] = str(path)
        return {
            "model": os.path.abspath(job.model),
            "weights": os.path.abspath(job.weights),
            "inputs": paths,
            "outputs": [[layer, blob] for layer, blob, _ in job.outputs.values()],
            "folder": str(folder),
        }


@functools.lru_cache(maxsize=8)
def _about(python: str) -> Any:
    """What a Caffe knows of itself. It takes a second to ask, and is asked once."""
    with tempfile.TemporaryDirectory() as folder:
        answer = Path(folder) / "answer.json"
        try:
            _call(python, Path(folder), {"do": "about", "answer": str(answer)})
        except EngineError as error:
            raise EngineMissing(
                f"{show(python, 1000)} has no pycaffe ({error}); {_NAME_IT}"
            ) from None
        if not answer.exists():
            raise EngineMissing(f"{show(python, 1000)} is no Python interpreter; {_NAME_IT}")
        return json.loads(answer.read_text("utf-8"))


def _call(python: str, folder: Path, request: dict[str, Any]) -> None:
    path = folder / "request.json"
    path.write_text(json.dumps(request), "utf-8")
    command = [python, str(SCRIPT), str(path)]
    # This environment's own paths are not the other interpreter's.
    hidden = ("PYTHONHOME", "PYTHONSAFEPATH")
    environment = {k: v for k, v in os.environ.items() if k not in hidden}
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,  # whatever the interpreter turns out to be
            stderr=subprocess.PIPE,
            env=environment,
            cwd=folder,
        )
    except (OSError, ValueError) as error:  # the latter of a name that no file has
        reason = error.strerror if isinstance(error, OSError) else error
        raise EngineMissing(f"{show(python, 1000)} cannot be run ({reason}); {_NAME_IT}") from None
    if done.returncode:
        raise EngineError(_said(done.stderr.decode("utf-8", "replace"), done.returncode))


def _values(folder: Path, job: Job) -> Values:
    found: Values = {}
    for index, value in enumerate(job.outputs):
        path = folder / f"{index}.npy"
        if path.exists():
            found[value] = np.load(path)
    return found


_FATAL = re.compile(r"^F\d{4} [^\]]*\] (.*)$", re.MULTILINE)


def _said(stderr: str, code: int) -> str:
    """What Caffe died of: its last fatal line, or the last line of a Python error."""
    fatal = _FATAL.findall(stderr)
    lines = [line for line in stderr.splitlines() if line.strip() and "***" not in line]
    words = fatal[-1] if fatal else lines[-1].strip() if lines else f"exit code {code}"
    return show(words, 300)
