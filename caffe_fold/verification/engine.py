"""What an engine is: something that runs a prototxt with its weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

__all__ = ["SPECIAL", "TRANSPOSED", "WEIGHTLESS", "Array", "Engine", "EngineError", "Job", "Values"]
__all__ += ["ungrouped"]

# What an engine has to know, beside the type, or it computes something else, or its process ends:
# OpenCV reads the weights of a Deconvolution where there are none, and each divides by its groups.
TRANSPOSED = "InnerProduct with transpose"
WEIGHTLESS = "Deconvolution without weights"


def ungrouped(type: str) -> str:
    """The kind of a layer of a type with no groups."""
    return f"{type} with 'group: 0'"


SPECIAL = frozenset(
    (TRANSPOSED, WEIGHTLESS, *map(ungrouped, ("Convolution", "Deconvolution", "ShuffleChannel")))
)

Array = NDArray[Any]
Inputs = Mapping[str, NDArray[np.float32]]
Values = dict[int, Array]


class EngineError(Exception):
    """The engine did not run the net; the message is what it said, on one line."""


@dataclass(frozen=True)
class Job:
    """A net to run. ``inputs`` gives the blob name of each input key, ``outputs`` the
    layer, blob name and slot under which each value is found."""

    model: str
    weights: str
    inputs: Mapping[str, str]
    outputs: Mapping[int, tuple[str, str, int]]


class Engine(Protocol):
    """Runs nets. ``run`` gives the values of each job that could be retrieved."""

    name: str

    @property
    def version(self) -> str: ...

    def known(self) -> frozenset[str]:
        """The types of layers that it computes as Caffe does, as ``kind_to_run`` has them."""

    def reads(self, has_doubles: bool) -> bool:
        """Whether it reads a file's number types."""

    def run(self, jobs: Sequence[Job], inputs: Inputs) -> list[Values]:
        """Run nets on the same inputs; raises EngineError where it cannot."""

    def time(self, jobs: Sequence[Job], inputs: Inputs, rounds: int) -> list[list[float]]:
        """The seconds of each forward pass of each net, taken in turns."""
