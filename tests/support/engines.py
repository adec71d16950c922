"""Real engines: OpenCV's importer in this process, real Caffe in another.

Both are optional. Where one is not there, :class:`Unavailable` says why in a
sentence, so that a test can skip and pass it on.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Union

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float32]
Source = Union[str, Path, bytes]

PYCAFFE = ("kendryte-caffe==1.0.0.20210829", "numpy<2", "protobuf<3.21")


class Unavailable(Exception):
    """The engine is not there; the message is a sentence to skip a test with."""


class EngineError(Exception):
    """The engine refused the net; the message is what it said."""


# ---- OpenCV ----


def opencv_forward(
    prototxt: Source, caffemodel: Source, inputs: Mapping[str, npt.ArrayLike]
) -> dict[str, Array]:
    """Run a net in OpenCV, without its own fusing; return each output by LAYER name.

    A layer with several outputs has them as 'name', 'name.1', 'name.2' and so on.
    """
    cv2 = _opencv()
    try:
        net = cv2.dnn.readNetFromCaffe(_bytes(prototxt), _bytes(caffemodel))
        net.enableFusion(False)
        for name, value in inputs.items():
            net.setInput(np.ascontiguousarray(value, dtype=np.float32), name)
        wanted = list(net.getLayerNames())
        outputs = net.forwardAndRetrieve(wanted)
    except cv2.error as error:
        raise EngineError(f"OpenCV: {error}") from None
    found: dict[str, Array] = {}
    for name, tops in zip(wanted, outputs):
        for index, top in enumerate(tops):
            found[name if index == 0 else f"{name}.{index}"] = np.array(top)
    return found


def _opencv() -> Any:
    try:
        import cv2
    except ImportError:
        raise Unavailable("OpenCV is not installed (opencv-python-headless>=4.8,<5).") from None
    if not hasattr(cv2.dnn, "readNetFromCaffe"):
        raise Unavailable(f"OpenCV {cv2.__version__} has no Caffe importer (5 dropped it).")
    return cv2


def _bytes(source: Source) -> npt.NDArray[np.uint8]:
    data = source if isinstance(source, bytes) else Path(source).read_bytes()
    return np.frombuffer(data, np.uint8)


# ---- Real Caffe ----


@dataclass(frozen=True)
class Job:
    """One forward pass to be run in real Caffe."""

    prototxt: str | Path
    caffemodel: str | Path
    inputs: Mapping[str, npt.ArrayLike]
    stages: Sequence[str] = ()
    level: int = 0


def caffe_forward(
    prototxt: str | Path,
    caffemodel: str | Path,
    inputs: Mapping[str, npt.ArrayLike],
    stages: Sequence[str] = (),
    level: int = 0,
) -> dict[str, Array]:
    """Run a net in real Caffe; return its blobs by name, and each top by 'layer@top'.

    Raises EngineError with Caffe's own words where it aborts.
    """
    result = caffe_forward_many([Job(prototxt, caffemodel, inputs, stages, level)])[0]
    if isinstance(result, EngineError):
        raise result
    return result


def caffe_forward_many(jobs: Sequence[Job]) -> list[dict[str, Array] | EngineError]:
    """Run several nets in one call of the interpreter (its start takes a second)."""
    python = pycaffe_python()
    with tempfile.TemporaryDirectory() as folder:
        entries = [_entry(job, Path(folder) / str(index)) for index, job in enumerate(jobs)]
        listing = Path(folder) / "jobs.json"
        listing.write_text(json.dumps(entries))
        script = Path(__file__).with_name("pycaffe_forward.py")
        done = subprocess.run([str(python), str(script), str(listing)], capture_output=True)
        if done.returncode:
            words = done.stderr.decode(errors="replace")[-2000:]
            raise Unavailable(f"{python} cannot run pycaffe: {words}")
        return [_collect(Path(entry["outputs"])) for entry in entries]


def _entry(job: Job, stem: Path) -> dict[str, Any]:
    given = {name: np.asarray(value, np.float32) for name, value in job.inputs.items()}
    _save(Path(f"{stem}.in.npz"), given)
    return {
        "prototxt": str(job.prototxt),
        "caffemodel": str(job.caffemodel),
        "inputs": f"{stem}.in.npz",
        "outputs": f"{stem}.out.npz",
        "stages": list(job.stages),
        "level": job.level,
    }


def _save(path: Path, arrays: dict[str, Array]) -> None:
    np.savez(path, **arrays)  # type: ignore[arg-type, unused-ignore]


def _collect(path: Path) -> dict[str, Array] | EngineError:
    error = Path(f"{path}.error")
    if error.exists():
        lines = [line for line in error.read_text(errors="replace").splitlines() if line.strip()]
        said = [line for line in lines if "***" not in line and not line.startswith("    @")]
        return EngineError("Caffe: " + " ".join(said or lines or ["died without a word"]))
    with np.load(path) as arrays:
        return {name: arrays[name] for name in arrays.files}


@cache
def pycaffe_python() -> Path:
    """Return an interpreter that has pycaffe, or raise Unavailable.

    It is the one that CAFFE_FOLD_CAFFE_PYTHON names, or that of the cached
    environment, which is made only where CAFFE_FOLD_MAKE_PYCAFFE=1 asks for it.
    """
    named = os.environ.get("CAFFE_FOLD_CAFFE_PYTHON")
    if named:
        if not os.access(named, os.X_OK):
            raise Unavailable(f"CAFFE_FOLD_CAFFE_PYTHON names {named}, which cannot be run.")
        return Path(named)
    python = _cached_python()
    if python.exists():
        return python
    if os.environ.get("CAFFE_FOLD_MAKE_PYCAFFE") == "1":
        return ensure_pycaffe()
    raise Unavailable(
        "No real Caffe: set CAFFE_FOLD_CAFFE_PYTHON to a Python that has pycaffe, "
        "or CAFFE_FOLD_MAKE_PYCAFFE=1 to have one installed into the cache once."
    )


def _cached_python() -> Path:
    cache = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(cache) / "caffe-fold" / "pycaffe" / "bin" / "python"


def ensure_pycaffe() -> Path:
    """Make the cached environment with pycaffe, if it is not there yet; return its Python."""
    python = _cached_python()
    if python.exists():
        return python
    folder = python.parent.parent
    folder.parent.mkdir(parents=True, exist_ok=True)
    # Installed beside its place and then renamed, so that a broken or a
    # simultaneous installation is never taken for a finished one. Only the
    # scripts in bin/ name the old place, and none of them is used.
    made = Path(tempfile.mkdtemp(prefix="pycaffe.", dir=folder.parent))
    try:
        _call(str(python39()), "-m", "venv", str(made))
        _call(str(made / "bin" / "python"), "-m", "pip", "install", "-q", *PYCAFFE)
        _call(str(made / "bin" / "python"), "-c", "import caffe")
        if not folder.exists():
            made.rename(folder)
    finally:
        shutil.rmtree(made, ignore_errors=True)
    return python


def _call(*command: str) -> None:
    done = subprocess.run(command, capture_output=True)
    if done.returncode:
        words = (done.stdout + done.stderr).decode(errors="replace")[-1000:]
        raise Unavailable(f"No real Caffe: '{' '.join(command)}' failed: {words}")


def python39() -> Path:
    """Return a Python 3.9 from PATH or from pyenv, or raise Unavailable."""
    for candidate in _pythons39():
        done = subprocess.run(
            [candidate, "-c", "import sys; print(sys.version_info[:2])"], capture_output=True
        )
        if done.returncode == 0 and done.stdout.strip() == b"(3, 9)":
            return Path(candidate)
    raise Unavailable("No real Caffe: its package needs Python 3.9, and none was found.")


def _pythons39() -> list[str]:
    found = [path for path in (shutil.which("python3.9"),) if path]
    roots = [os.environ.get("PYENV_ROOT", ""), str(Path.home() / ".pyenv")]
    for root in filter(None, roots):
        versions = sorted(Path(root, "versions").glob("3.9*"))
        found += [str(version / "bin" / "python3.9") for version in versions]
    return [path for path in found if os.path.exists(path)]
