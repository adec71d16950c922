"""One run at a time for each output."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Callable, Iterator

from caffe_fold.errors import OutputError, show

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

__all__ = ["hidden", "locked", "require_own"]

_NAME_LIMIT = 255
# What a file system says that has no locks; some that are mounted over a network have none.
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EINVAL)


@contextlib.contextmanager
def locked(path: str, shown: str | None = None) -> Iterator[bool]:
    """Hold the lock of an output, a file beside it that is there meanwhile. ``shown`` is what
    an error names in its place.

    The lock ends with the process, however that ends; a file that is left means nothing.
    Gives whether there is a lock: false where the file system has none.

    :raises OutputError: if another process has it.
    """
    name, shown = hidden(path, "lock"), shown or path
    require_own(name, shown, stat.S_ISREG)
    descriptor = _taken(name, shown)
    try:
        yield descriptor is not None
    finally:
        if descriptor is not None:
            # First the name: who opens it from now on makes a file of their own.
            with contextlib.suppress(OSError):
                os.unlink(name)
            with contextlib.suppress(OSError):
                os.close(descriptor)


def hidden(path: str, suffix: str) -> str:
    """The path of a hidden file beside an output, of its name and a suffix."""
    folder, name = os.path.split(path)
    if len(os.fsencode(f".{name}.{suffix}")) > _NAME_LIMIT:
        import zlib  # at hand for the few that need it

        # Cut, and told from others that end alike.
        name = f"{zlib.crc32(os.fsencode(name)):08x}{name[-40:]}"
    return os.path.join(folder, f".{name}.{suffix}")


def require_own(name: str, shown: str, *kinds: Callable[[int], bool]) -> None:
    """Check that what has the name of a hidden file is, by its kind, one that a run left.

    :raises OutputError: if it is not.
    """
    with contextlib.suppress(FileNotFoundError):
        mode = os.lstat(name).st_mode
        if not any(is_kind(mode) for is_kind in kinds):
            raise OutputError(
                f"{show(shown, 1000)} cannot be written: {show(name, 1000)}, {_kind(mode)}, has "
                "the name of what is made and removed meanwhile; move it away"
            )


def _kind(mode: int) -> str:
    if stat.S_ISLNK(mode):
        return "a link"
    if stat.S_ISDIR(mode):
        return "a folder"
    return "a file" if stat.S_ISREG(mode) else "a device or pipe"


def _taken(name: str, shown: str) -> int | None:
    """The descriptor of the locked file, or None where there are no locks."""
    while True:
        try:
            descriptor = _locked(name)
        except (BlockingIOError, FileExistsError):
            raise OutputError(
                f"{show(shown, 1000)} is being written by another run; wait for it, or give "
                "another output"
            ) from None
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
            with contextlib.suppress(OSError):
                os.unlink(name)
            return None
        # Between the two calls its holder may have removed it, and a third may hold a new one.
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(descriptor), os.stat(name)):
                return descriptor
        os.close(descriptor)


def _locked(name: str) -> int:
    if fcntl is None:
        # There, a file goes with its last descriptor, and so with the process.
        only = os.O_EXCL | getattr(os, "O_TEMPORARY", 0)
        return os.open(name, os.O_CREAT | os.O_RDWR | only)
    try:
        descriptor = os.open(name, os.O_CREAT | os.O_RDWR | os.O_NOFOLLOW, 0o666)
    except PermissionError:
        if not os.path.lexists(name):
            raise
        # One that another user left; to lock it, reading is enough.
        descriptor = os.open(name, os.O_RDONLY | os.O_NOFOLLOW)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor
