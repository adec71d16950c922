"""Memory that a thread uses again and again.

Fresh memory for each block of weights would cost as much as what is computed in it: the
system hands it out page by page, each by a fault, and takes it back at once.
"""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["scratch"]


class _Held(threading.local):
    def __init__(self) -> None:
        self.bytes: dict[str, NDArray[np.uint8]] = {}


_HELD = _Held()


def scratch(use: str, count: int, dtype: np.dtype[Any]) -> NDArray[Any]:
    """An array (count,) with anything in it, this thread's own. It is valid until the thread
    asks again for the same ``use``."""
    size = count * dtype.itemsize
    held = _HELD.bytes.get(use)
    if held is None or held.size < size:
        held = _HELD.bytes[use] = np.empty(size, np.uint8)
    return held[:size].view(dtype)
