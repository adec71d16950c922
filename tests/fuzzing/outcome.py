"""What may come of a case: something right, or one clear line, and both soon."""

from __future__ import annotations

import contextlib
import resource
import signal
import traceback
import warnings
from collections.abc import Iterator
from typing import Any, Callable

from caffe_fold import CaffeFoldError

__all__ = ["Finding", "Slow", "judged", "limited_memory", "require_line"]

SECONDS = 10
"""What one case may take of a processor; a good one takes milliseconds."""

_LONGEST = 10_100


class Finding(AssertionError):
    """What must not happen; the message says what did."""


class Slow(BaseException):
    """A case took too long. No code under test catches it."""


def require_line(message: str) -> None:
    """A message for a user is one line, printable, and not without end."""
    if not message or not message.isprintable() or len(message) > _LONGEST:
        raise Finding(f"not one printable line ({len(message)} characters): {message[:300]!r}")


def judged(check: Callable[[Any], str], case: Any) -> str:
    """The outcome of a case in a word.

    :raises Finding: for whatever is neither right nor one line.
    """
    try:
        with warnings.catch_warnings(), _limited_time(SECONDS):
            # NumPy's, which would reach the user's terminal.
            warnings.simplefilter("error", RuntimeWarning)
            # text_format's, on escapes that it should not take.
            warnings.simplefilter("ignore", DeprecationWarning)
            return check(case)
    except CaffeFoldError as error:
        require_line(str(error))
        return "refused"
    except Finding:
        raise
    except (Exception, Slow) as error:
        raise Finding(f"{type(error).__name__}: {traceback.format_exc(limit=-6)}") from error


@contextlib.contextmanager
def _limited_time(seconds: float) -> Iterator[None]:
    def stop(*_: object) -> None:
        raise Slow(f"over {seconds} s")

    before = signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


def limited_memory(more: int = 1 << 30) -> None:
    """Let this process grow by so many bytes of addresses and no further."""
    with open("/proc/self/statm") as file:
        now = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (now + more, now + more))
