"""What lies beside an output while it is written: hidden files of its name and a suffix.

``lock`` keeps other runs away, ``tmp`` becomes the output, ``old`` is what was there before
while it is replaced, and ``scratch`` is a folder. Files of these names are taken for those that
a killed run left, and removed.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterator

from caffe_fold.errors import OutputError, show, writing
from caffe_fold.named import NamedTuple
from caffe_fold.writing.lock import hidden, locked, require_own

__all__ = ["SUFFIXES", "Place", "clear", "taken"]

SUFFIXES = ("lock", "tmp", "old", "scratch")


class Place(NamedTuple):
    """An output that this run alone writes, and what is beside it.

    :param temporary: a file, empty at first.
    :param aside: where what was there before is while it is replaced.
    :param scratch: a folder that is there once it is made.
    """

    path: str
    temporary: str
    aside: str
    scratch: str

    def clear(self) -> None:
        """Remove all that a run left which was killed."""
        with contextlib.suppress(OSError):
            os.unlink(self.aside)
        self.remove()

    def remove(self) -> None:
        """Remove all that is of use during a run alone; not what was there before, which may
        be the only one."""
        with contextlib.suppress(OSError):
            os.unlink(self.temporary)
        if os.path.lexists(self.scratch):
            import shutil

            shutil.rmtree(self.scratch, ignore_errors=True)


@contextlib.contextmanager
def taken(path: str) -> Iterator[Place]:
    """Take the place of an output: lock it, and remove what a killed run left beside it.

    :raises OutputError: if another run has it, or the system says something against it.
    """
    with contextlib.ExitStack() as stack:
        with writing(path):
            is_locked = stack.enter_context(locked(path))
            # Without a lock, another run may write the same: it is to have other names.
            place = _place(path, "" if is_locked else f"{os.urandom(6).hex()}.")
            stack.callback(place.remove)
            place.clear()
            # Not by tempfile, whose files are private: this has the mode of any new file.
            try:
                os.close(os.open(place.temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
            except FileExistsError:
                raise OutputError(
                    f"{show(path, 1000)} cannot be written: {show(place.temporary, 1000)} was left "
                    "by a run of another user; have it removed"
                ) from None
        yield place


def clear(path: str) -> None:
    """Remove what a killed run left beside an output, unless a run writes it."""
    if any(os.path.lexists(hidden(path, suffix)) for suffix in SUFFIXES):
        with contextlib.suppress(OSError, OutputError), locked(path):
            _place(path, "").clear()


def _place(path: str, tag: str) -> Place:
    """A place whose hidden files are ours to remove.

    :raises OutputError: if one is of another kind.
    """
    place = Place(path, *(hidden(path, f"{tag}{suffix}") for suffix in SUFFIXES[1:]))
    require_own(place.temporary, path, stat.S_ISREG)
    require_own(place.aside, path, stat.S_ISREG, stat.S_ISLNK)  # an output may be a link
    require_own(place.scratch, path, stat.S_ISDIR)
    return place
