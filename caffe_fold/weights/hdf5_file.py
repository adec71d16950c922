"""An HDF5 file, opened for reading: its groups, links and objects.

h5py is optional, so it is imported where it is used. Names are bytes in Caffe and in
HDF5's own interface, which is why h5py's lower one is used for them.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import Any

from caffe_fold.errors import CaffeFoldError, InputError, Path, show
from caffe_fold.named import NamedTuple
from caffe_fold.weights.caffemodel import name_text

__all__ = ["Child", "Link", "child_at", "children", "errors", "library", "links", "opened"]
__all__ += ["shown"]

# What goes far beyond the layers and the slashes in the names of any net is made to exhaust
# memory.
_DEPTH_LIMIT, _GROUP_LIMIT = 64, 20_000


def library() -> Any:
    """h5py, or InputError with how to get it."""
    try:
        import h5py
    except ImportError:
        raise InputError(
            "weights in HDF5 need h5py, which is not installed: run pip install 'caffe-fold[hdf5]'"
        ) from None
    return h5py


def shown(path: Path) -> str:
    return show(os.fspath(path), 1000)


@contextlib.contextmanager
def errors(path: Path, kind: type[CaffeFoldError], what: str) -> Iterator[None]:
    """Say in one line what h5py raises, which can be nearly every kind of exception."""
    try:
        yield
    except (CaffeFoldError, MemoryError):
        raise
    except Exception as error:
        said = str(error.args[0] if isinstance(error, KeyError) else error)
        raise kind(f"{shown(path)} {what}: {show(said)}") from error


@contextlib.contextmanager
def opened(path: Path) -> Iterator[Any]:
    """An HDF5 file, opened for reading alone, all of which lies in this one file.

    :raises InputError: if it is not that.
    """
    h5py = library()
    with errors(path, InputError, "cannot be read"):
        open(path, "rb").close()
        if not h5py.is_hdf5(path):
            raise InputError(f"{shown(path)} is not an HDF5 file")
    with errors(path, InputError, "is a damaged or truncated HDF5 file"):
        file = h5py.File(path, "r")
    with file:
        with errors(path, InputError, "cannot be read, so it may be damaged"):
            _require_whole(file, path)
        yield file


class Link(NamedTuple):
    """A link of a group."""

    name: bytes
    is_soft: bool
    is_foreign: bool
    cset: int


class Child(NamedTuple):
    """What a link leads to: the id of a group, a dataset or a type."""

    link: Link
    id: Any

    @property
    def name(self) -> bytes:
        return self.link.name

    @property
    def is_group(self) -> bool:
        return bool(isinstance(self.id, library().h5g.GroupID))

    @property
    def is_dataset(self) -> bool:
        return bool(isinstance(self.id, library().h5d.DatasetID))


def links(group: Any) -> list[Link]:
    """The links of a group, in the order of creation where the file has it, else by name."""
    h5py, found = library(), list[Link]()
    hard, soft = h5py.h5l.TYPE_HARD, h5py.h5l.TYPE_SOFT

    def add(name: bytes, info: Any) -> None:  # info is one object, filled anew each time
        is_soft = info.type == soft
        found.append(Link(name, is_soft, not is_soft and info.type != hard, info.cset))

    tracked = group.get_create_plist().get_link_creation_order() & h5py.h5p.CRT_ORDER_TRACKED
    index = h5py.h5.INDEX_CRT_ORDER if tracked else h5py.h5.INDEX_NAME
    if group.get_num_objs():
        group.links.iterate(add, info=True, idx_type=index)
    return found


def child_at(group: Any, link: Link) -> Child:
    """What a link leads to; a soft link that leads nowhere is an error."""
    return Child(link, library().h5o.open(group, link.name))


def children(group: Any) -> Iterator[Child]:
    return (child_at(group, link) for link in links(group))


def _require_whole(file: Any, path: Path) -> None:
    """Refuse data of other files, which could be any that the user can read, and links that
    make the tree of groups endless."""
    waiting, count, soft = [(file.id, b"", 0)], 0, list[tuple[Any, Link, bytes]]()
    while waiting:
        group, name, depth = waiting.pop()
        count += 1
        if depth > _DEPTH_LIMIT or count > _GROUP_LIMIT:
            raise InputError(f"{shown(path)} holds too many groups for a Caffe model")
        for link in links(group):
            at = name + b"/" + link.name
            if link.is_soft:
                soft.append((group, link, at))
                continue
            child = None if link.is_foreign else child_at(group, link)
            if child is None or (child.is_dataset and _is_foreign(child.id)):
                raise InputError(
                    f"{shown(path)}: '{show(name_text(at))}' lies in another file; give a file "
                    "that holds all weights itself"
                )
            if child.is_group:
                waiting.append((child.id, at, depth + 1))
    # Followed last, since by now nothing leads to another file.
    for group, link, at in soft:
        if at.startswith((b"/data", b"/diff")) and child_at(group, link).is_group:
            raise InputError(f"{shown(path)}: '{show(name_text(at))}' is a soft link to a group")


def _is_foreign(dataset: Any) -> bool:
    settings = dataset.get_create_plist()
    return bool(settings.get_layout() == library().h5d.VIRTUAL or settings.get_external_count())
