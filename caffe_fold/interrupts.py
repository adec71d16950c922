"""Ctrl-C, and a polite kill: whenever they come, the command line ends in one line and 130.

Before the work begins the process ends at once. Work is broken off by KeyboardInterrupt, so that
it cleans up. After it they come too late: what is done is told by the exit code.
"""

from __future__ import annotations

import _thread
import contextlib
import math
import os
import signal
import sys
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, NoReturn

if TYPE_CHECKING:
    from sys import UnraisableHookArgs

__all__ = ["STOPPING", "handle", "record_done", "uninterrupted", "was_interrupted", "what_is_done"]
__all__ += ["working"]

STOPPING = (signal.SIGINT, signal.SIGTERM)
"""The signals that stop a run."""

# In seconds: one press of a key may arrive twice, by the terminal and by a program in between.
_TWICE = 1.0
_A_MOMENT = 0.02


class _State:
    """What this process is doing, for its signal handler."""

    handled: tuple[int, ...] = ()
    is_working = False
    done = ""
    last = -math.inf
    number = int(signal.SIGINT)


def handle() -> None:
    """Take over the signals that stop a run; not one that is ignored, as in a script's ``&``."""
    for number in STOPPING:
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, _interrupt)
            _State.handled += (number,)
    sys.unraisablehook = _swallowed


@contextlib.contextmanager
def working() -> Iterator[None]:
    """While it lasts, an interrupt is a KeyboardInterrupt; none comes later."""
    _State.is_working, _State.done = True, ""
    try:
        yield
    finally:
        for number in _State.handled:
            signal.signal(number, signal.SIG_IGN)


def record_done(what: str) -> None:
    """Say what this process has written: the text of an interrupt that comes from now on."""
    _State.done = what


def what_is_done() -> str:
    """What was recorded; "" where nothing is written yet."""
    return _State.done


def was_interrupted() -> bool:
    """Whether there was an interrupt since the work began."""
    return _State.last > -math.inf


def _leave() -> NoReturn:
    """End at once; there is nothing to clean up."""
    start = "\n" if os.isatty(2) else ""  # the terminal has shown ^C
    with contextlib.suppress(OSError):
        os.write(2, f"{start}error: interrupted; nothing was written\n".encode())
    os._exit(130)


def _interrupt(number: int, _: object) -> None:
    if not _State.is_working:
        _leave()
    _State.number = number
    now = time.monotonic()
    if now - _State.last >= _TWICE:
        _State.last = now
        raise KeyboardInterrupt(_State.done)


def _swallowed(told: UnraisableHookArgs) -> None:
    """Let an interrupt that came where nothing can be raised, as in a destructor, come again."""
    if not issubclass(told.exc_type, KeyboardInterrupt):
        sys.__unraisablehook__(told)
        return
    _State.last = -math.inf
    _thread.start_new_thread(_again, ())


def _again() -> None:
    time.sleep(_A_MOMENT)
    if os.name == "posix":
        os.kill(os.getpid(), _State.number)  # wakes the main thread, if it waits
    else:
        signal.raise_signal(_State.number)


@contextlib.contextmanager
def uninterrupted() -> Iterator[None]:
    """Hold back, until the end, what would break off a few calls that belong together."""
    held: list[int] = []
    handlers = {}
    try:
        for number in STOPPING if _is_main_thread() else ():  # it alone handles signals
            handler = signal.getsignal(number)
            if handler is not None:  # one that is not Python's cannot be put back
                handlers[number] = handler
                signal.signal(number, lambda number, _: held.append(number))
        yield
    finally:
        for number in reversed(handlers):
            signal.signal(number, handlers[number])
        if held:
            signal.raise_signal(held[0])


def _is_main_thread() -> bool:
    import threading

    return threading.current_thread() is threading.main_thread()
