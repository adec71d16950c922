"""Work on many items by several threads, for code that spends its time in NumPy and in the
kernel, which both let other threads run.

``concurrent.futures`` would do it, too; to import it costs a tenth of a small fold.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from typing import Callable, TypeVar

__all__ = ["cores", "each"]

Item = TypeVar("Item")

# Each has blocks of its own in memory.
_MOST = 8
# In bytes. Threads that meet for each small step in NumPy wait for each other longer than it
# takes: a net of small layers took twice the time with two of them.
_WORTH = 1 << 20


def each(
    function: Callable[[Item], None],
    items: Sequence[Item],
    size: Callable[[Item], int],
    threads: int | None,
) -> None:
    """Call ``function`` with each item: first with the large ones, by ``size`` in bytes, by up
    to ``threads`` threads (None: one a core), and then with the others by this thread alone.

    Either are taken in order. After an error no further one is taken, and what is raised
    is the error of the first item that failed, whichever thread came to its end first.
    """
    large = [item for item in items if size(item) >= _WORTH]
    _each(function, large, min(threads or cores(), _MOST, len(large)))
    for item in items:
        if size(item) < _WORTH:
            function(item)


def _each(function: Callable[[Item], None], items: Sequence[Item], count: int) -> None:
    numbered = enumerate(items)
    lock = threading.Lock()
    failures: list[tuple[bool, int, BaseException]] = []

    def work() -> None:
        while not failures:
            with lock:
                taken = next(numbered, None)
            if taken is None:
                return
            index, item = taken
            try:
                function(item)
            except BaseException as error:
                # An interrupt counts before the errors that it may have caused.
                failures.append((isinstance(error, Exception), index, error))

    others: list[threading.Thread] = []
    try:
        for _ in range(count - 1):
            thread = threading.Thread(target=work)
            others.append(thread)
            thread.start()
        work()
    except BaseException as error:  # an interrupt between two items
        failures.append((isinstance(error, Exception), -1, error))
    _join(others, failures)
    if failures:
        raise min(failures, key=lambda failure: failure[:2])[2]


def _join(threads: list[threading.Thread], failures: list[tuple[bool, int, BaseException]]) -> None:
    """Wait until none works any more, whatever comes: what they write to is closed next."""
    while True:
        try:
            for thread in threads:
                if thread.ident is not None:
                    thread.join()
            return
        except BaseException as error:
            failures.append((isinstance(error, Exception), -1, error))


def cores() -> int:
    """The cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
