"""Addresses of files, each a path or an fsspec URL (``s3://bucket/net.prototxt``).

fsspec is imported for URLs alone.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import posixpath
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO, Any

from caffe_fold.errors import CaffeFoldError, CheckError, InputError, show

__all__ = [
    "Stamp",
    "absolute",
    "basename",
    "digest",
    "download",
    "exists",
    "folder_of",
    "is_url",
    "join",
    "local",
    "opened",
    "reading",
    "remove",
    "replace_text",
    "stamp",
    "tree",
    "upload",
]

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")
_WEB = re.compile(r"https?://", re.IGNORECASE)
_LOCAL = re.compile(r"(?:file|local)://", re.IGNORECASE)
_CHUNK = 1 << 20
# What the stores call that which changes with the content: S3 and HTTP, Google, Azure, files.
_TAGS = ("ETag", "etag", "generation", "md5Hash", "mtime", "LastModified", "last_modified")


def is_url(address: str) -> bool:
    """Whether an address is a URL and not a path, as that of a Windows drive is."""
    return _URL.match(address) is not None


def local(address: str) -> str:
    """An address with the path in place of a URL of this machine's own files, since what keeps
    inputs, links and locks safe looks at paths.

    :raises InputError: if such a URL has no absolute path.
    """
    found = _LOCAL.match(address)
    if found is None:
        return address
    path = address[found.end() :]
    if re.match(r"/[A-Za-z]:", path) and os.name == "nt":
        path = path[1:]
    if not os.path.isabs(path):
        raise InputError(
            f"{show(address, 1000)} has no absolute path; expected {found.group()}/folder/file, "
            "or a path without a scheme"
        )
    return os.path.normpath(path)


def absolute(address: str) -> str:
    """An address that means the same in another process, which may have another folder.

    :raises InputError: as ``local``.
    """
    address = local(address)
    return address if is_url(address) else os.path.abspath(address)


def join(folder: str, name: str) -> str:
    """The address of a name with ``/`` below a folder."""
    if not is_url(folder):
        return os.path.join(folder, *name.split("/"))
    # Not posixpath.join: an object's name may begin with a slash.
    return f"{folder.rstrip('/')}/{name}"


def basename(address: str) -> str:
    """The last part of an address, without a query."""
    if is_url(address):
        return posixpath.basename(_without_query(address))
    return os.path.basename(address)


def folder_of(address: str) -> str:
    """The address of the folder that something is in."""
    if is_url(address):
        return _without_query(address).rpartition("/")[0]
    return os.path.dirname(address) or os.curdir


def _without_query(url: str) -> str:
    """A URL without what comes behind the path; in a store it may be a part of the name."""
    return re.split(r"[?#]", url)[0] if _WEB.match(url) else url


# ---- What a file is, without its content ----


@dataclass(frozen=True)
class Stamp:
    """What changes when a file changes: its size in bytes, and its time of change in ns or
    its store's tag; "" where there is neither."""

    size: int
    tag: str


def stamp(address: str) -> Stamp:
    """The stamp of a file.

    :raises InputError: if it is not there.
    """
    with reading(address):
        if not is_url(address):
            status = os.stat(address)
            return Stamp(status.st_size, str(status.st_mtime_ns))
        info = _file_system(address).info(address)
    return Stamp(int(info.get("size") or 0), _tag(info))


def _tag(info: dict[str, Any]) -> str:
    return next((str(info[name]) for name in _TAGS if info.get(name)), "")


def exists(address: str) -> bool:
    """Whether there is something at an address."""
    if not is_url(address):
        return os.path.exists(address)
    with reading(address):
        return bool(_file_system(address).exists(address))


def digest(address: str) -> str:
    """The SHA-256 of a file's content, in hexadecimal."""
    found = hashlib.sha256()
    with opened(address) as file:
        while chunk := file.read(_CHUNK):
            found.update(chunk)
    return found.hexdigest()


# ---- Reading and writing ----


@contextlib.contextmanager
def opened(address: str) -> Iterator[IO[bytes]]:
    """A file, open to be read.

    :raises InputError: if it cannot be.
    """
    with reading(address):
        if is_url(address):
            with _file_system(address).open(address, "rb") as file:
                yield file
        else:
            with open(address, "rb") as file:
                yield file


def download(address: str, path: str) -> None:
    """Copy a URL's content to a path."""
    with reading(address):
        _file_system(address).get_file(address, path)


def upload(path: str, address: str) -> None:
    """Copy a file to a URL, where it appears whole.

    :raises CheckError: if the store has another size then.
    """
    system = _file_system(address)
    size = os.path.getsize(path)
    with reading(address, "written"):
        system.put_file(path, address)
        stored = system.info(address).get("size")
    if stored != size:
        raise CheckError(f"{show(address, 1000)} has {stored} bytes; {size} were written")


def replace_text(address: str, text: str) -> None:
    """Write a small file at a URL, whole or not at all."""
    with reading(address, "written"):
        _file_system(address).pipe_file(address, text.encode("utf-8"))


def remove(address: str) -> None:
    """Remove what a URL names, if it is there."""
    system = _file_system(address)
    with reading(address, "written"), contextlib.suppress(FileNotFoundError):
        system.rm_file(address)


def tree(folder: str) -> list[str]:
    """The names of all files below a URL, relative to it, with ``/``."""
    system = _file_system(folder)
    with reading(folder):
        root = system._strip_protocol(folder).rstrip("/")
        found = [system._strip_protocol(name) for name in system.find(folder)]
    return sorted(name[len(root) + 1 :] for name in found if name.startswith(root + "/"))


@contextlib.contextmanager
def reading(address: str, verb: str = "read") -> Iterator[None]:
    """Say in one line what a store has against it.

    :raises InputError: for whatever it says.
    """
    try:
        yield
    except CaffeFoldError:
        raise
    except FileNotFoundError:
        raise InputError(f"{show(address, 1000)} cannot be {verb}: it is not there") from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise InputError(f"{show(address, 1000)} cannot be {verb}: {show(reason)}") from None
    except Exception as error:
        if not is_url(address):
            raise
        # Stores have errors of their own: no credentials, no connection, a broken reply.
        reason = f"{type(error).__name__}: {error}"
        raise InputError(f"{show(address, 1000)} cannot be {verb}: {show(reason)}") from None


def _file_system(address: str) -> Any:
    """The file system of a URL.

    :raises InputError: where a package is missing, or the scheme is unknown.
    """
    try:
        import fsspec

        # Others write to a store, too: what was listed a moment ago may have changed.
        return fsspec.core.url_to_fs(address, use_listings_cache=False)[0]
    except ImportError as error:
        raise InputError(
            f"{show(address, 1000)} needs more packages ({show(str(error))}): "
            "pip install 'caffe-fold[remote]'"
        ) from None
    except ValueError as error:
        raise InputError(f"{show(address, 1000)} cannot be opened: {show(str(error))}") from None
