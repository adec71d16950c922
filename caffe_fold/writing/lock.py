"""One run at a time for each output."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator

from caffe_fold.errors import OutputError, show

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

__all__ = ["hidden", "locked", "scratch_prefix"]

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
    name = hidden(path, "lock")
    descriptor = _taken(name, shown or path)
    try:
        yield descriptor is not None
    finally:
        if descriptor is not None:
            # First the name: who opens it from now on makes a file of their own.
            with contextlib.suppress(OSError):
                os.unlink(name)
            os.close(descriptor)


def hidden(path: str, suffix: str) -> str:
    """The path of a hidden file beside an output, of its name and a suffix."""
    folder, name = os.path.split(path)
    if len(os.fsencode(f".{name}.{suffix}")) > _NAME_LIMIT:
        import zlib  # at hand for the few that need it

        # Cut, and told from others that end alike.
        name = f"{zlib.crc32(os.fsencode(name)):08x}{name[-40:]}"
    return os.path.join(folder, f".{name}.{suffix}")


def scratch_prefix(temporary: str) -> str:
    """How the names of an output's scratch folders begin, which end in eight characters: with
    that of its temporary file, so that it is known whose they are."""
    name = os.path.basename(temporary)
    while len(os.fsencode(name)) + len("-12345678") > _NAME_LIMIT:
        name = f".{name[2:]}"
    return f"{name}-"


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
