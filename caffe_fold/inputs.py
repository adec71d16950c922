"""Opening the two inputs, and saying what a file really is where it is something else."""

from __future__ import annotations

import contextlib
import itertools
import os
import stat

from caffe_fold.errors import CaffemodelError, InputError, Path, reading, show
from caffe_fold.nets.prototxt import Document, parse
from caffe_fold.weights import wire

__all__ = ["open_prototxt", "require_inputs", "require_prototxt"]

_HEAD = 4096
# A prototxt is read whole; the largest seen has 0.4 MB.
_TEXT_LIMIT = 1 << 28

_MAGIC = (
    (b"version https://git-lfs", "git-lfs"),
    (b"\x89HDF\r\n\x1a\n", "hdf5"),
    (b"\x1f\x8b", "gzip"),
    (b"PK\x03\x04", "zip"),
    (b"\xff\xfe", "utf-16"),
    (b"\xfe\xff", "utf-16"),
)
_SAYS = {
    "git-lfs": "a Git LFS pointer, not the file itself; run 'git lfs pull' where it came from",
    "html": "a saved web page (HTML), not a model; download the file itself",
    "json": "JSON, as the page of a code host is, not a model; download the file itself",
    "hdf5": "an HDF5 file; expected {expected}",
    "gzip": "a gzip archive; unpack it first",
    "zip": "a zip archive; unpack it first",
    "utf-16": "text in UTF-16; save it as UTF-8",
    "empty": "an empty file; expected {expected}",
    "binary": "a binary file; expected {expected}",
    "text": "a text file; expected {expected}",
}
_CONTROLS = bytes(byte for byte in range(32) if byte not in b"\t\n\r\f\v")
_PROTOTXT = "a prototxt (text)"
_CAFFEMODEL = "a caffemodel (a binary NetParameter)"


def require_inputs(model: Path, weights: Path) -> str:
    """Check that the two paths are files of the right kinds, in the right order; gives the
    kind of the weights, "binary" or "hdf5".

    :raises InputError: with what the file really is, and what to do.
    """
    kinds = _kind(model, "--model"), _kind(weights, "--weights")
    if kinds[0] in ("binary", "hdf5") and kinds[1] == "text":
        raise InputError(
            f"{_shown(model)} holds weights and {_shown(weights)} is text: the two arguments "
            "are swapped; give the prototxt as --model and the caffemodel as --weights"
        )
    _require_text(model, kinds[0])
    if kinds[1] not in ("binary", "hdf5"):
        raise InputError(f"{_shown(weights)} is {_SAYS[kinds[1]].format(expected=_CAFFEMODEL)}")
    return kinds[1]


def require_prototxt(model: Path) -> None:
    """Check that a path is a text file, as a prototxt is.

    :raises InputError: with what the file really is, and what to do.
    """
    _require_text(model, _kind(model, "--model"))


def _require_text(model: Path, kind: str) -> None:
    if kind != "text":
        raise InputError(f"{_shown(model)} is {_SAYS[kind].format(expected=_PROTOTXT)}")


def open_prototxt(path: Path) -> Document:
    """Read and parse a prototxt.

    :raises PrototxtError: with line and column.
    """
    with reading(path):
        if os.path.getsize(path) > _TEXT_LIMIT:
            raise InputError(f"{_shown(path)} has over 256 MiB, which no prototxt has")
        with open(path, "rb") as file:
            data = file.read()
    return parse(data, path)


def _shown(path: Path) -> str:
    return show(os.fspath(path), 1000)


def _kind(path: Path, option: str) -> str:
    """What a file holds, by its first bytes."""
    if not os.fspath(path):
        raise InputError(f"{option} is an empty path; expected a file")
    try:
        status = os.stat(path)
        if stat.S_ISDIR(status.st_mode):
            raise InputError(f"{_shown(path)} is a folder; {option} takes a file")
        if not stat.S_ISREG(status.st_mode):
            raise InputError(f"{_shown(path)} is a pipe or device; {option} takes a file")
        with open(path, "rb") as file:
            head = file.read(_HEAD)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise InputError(f"{_shown(path)} cannot be read: {reason}") from None
    kind = _kind_of(head)
    is_net = kind == "text" and option == "--weights" and _begins_as_net(path)
    return "binary" if is_net else kind


# NetParameter's fields: its name, inputs and state; layers of both formats.
_NET_FIELDS, _LAYER_FIELDS = frozenset((1, 3, 4, 5, 6, 7, 8)), frozenset((2, 100))
_FIELDS = 64


def _begins_as_net(path: Path) -> bool:
    """Whether a file's fields up to its first layer are those of a NetParameter. A long name
    may make its first bytes look like text; a layer's tag is in no text."""
    with contextlib.suppress(CaffemodelError), contextlib.closing(wire.Source.open(path)) as source:
        for record in itertools.islice(wire.Walk(source, 0, source.size), _FIELDS):
            if record.number not in _NET_FIELDS:
                return record.number in _LAYER_FIELDS and record.wire_type == wire.LENGTH
    return False


def _kind_of(head: bytes) -> str:
    for magic, kind in _MAGIC:
        if head.startswith(magic):
            return kind
    start = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if start.startswith((b"<!doctype", b"<html", b"<?xml")):
        return "html"
    if start.startswith(b"{"):
        return "json"
    if not head:
        return "empty"
    # A serialized net has tags and lengths, which are control characters; a text has none but
    # blanks, or a stray one.
    controls = len(head) - len(head.translate(None, _CONTROLS))
    return "binary" if controls * 50 > len(head) else "text"
