"""Which engines there are."""

from __future__ import annotations

from collections.abc import Sequence

from caffe_fold.choices import ENGINES
from caffe_fold.errors import EngineMissing, InputError
from caffe_fold.verification.engine import Engine
from caffe_fold.verification.opencv import OpenCV
from caffe_fold.verification.pycaffe import PyCaffe

__all__ = ["engines_for"]


def engines_for(name: str, caffe_python: str | None) -> Sequence[Engine]:
    """The engines to try, in order.

    :raises EngineMissing: if the one asked for, or for "auto" each, is not there.
    """
    if name not in ENGINES:
        raise InputError(f"engine is {name!r}; expected 'auto', 'opencv' or 'caffe'")
    if name == "opencv":
        return [OpenCV()]
    if name == "caffe":
        engine = PyCaffe(caffe_python)
        engine.known()
        return [engine]
    found: list[Engine] = []
    missing: list[str] = []
    for make in (OpenCV, lambda: PyCaffe(caffe_python)):
        try:
            found.append(make())
        except EngineMissing as error:
            missing.append(str(error))
    if not found:
        raise EngineMissing("no engine to verify with: " + "; or ".join(missing))
    return found
