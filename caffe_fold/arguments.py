"""What callers from Python may give against the types, and the command line never does."""

from __future__ import annotations

import os
from collections.abc import Mapping

from caffe_fold.errors import InputError

__all__ = ["require_names", "require_paths", "require_shapes"]


def require_paths(*, optional: Mapping[str, object] | None = None, **paths: object) -> None:
    """Check that parameters are paths; the ``optional`` ones may be None.

    :raises InputError: if one is not. Paths in bytes are none, since reports hold text.
    """
    given = {name: path for name, path in (optional or {}).items() if path is not None}
    for name, path in {**paths, **given}.items():
        if not isinstance(path, (str, os.PathLike)) or not isinstance(os.fspath(path), str):
            raise InputError(f"{name} is {path!r:.100}; expected a path, as str or os.PathLike")


def require_names(**lists: object) -> None:
    """Check that parameters are lists of names. One name alone would be taken for its letters.

    :raises InputError: if one is not.
    """
    for parameter, names in lists.items():
        try:
            is_list = not isinstance(names, (str, bytes)) and all(
                isinstance(name, str)
                for name in names  # type: ignore[attr-defined]
            )
        except TypeError:
            is_list = False
        if not is_list:
            raise InputError(f"{parameter} is {names!r:.100}; expected a list of names")


def require_shapes(shapes: object) -> None:
    """Check that shapes of inputs are such, by blob name, if there are any.

    :raises InputError: if they are not.
    """
    if shapes is None:
        return
    if not isinstance(shapes, Mapping):
        raise InputError(f"input_shapes is {shapes!r:.100}; expected shapes by blob name")
    for name, shape in shapes.items():
        try:
            is_shape = isinstance(name, str) and min(shape, default=0) >= 1
            is_shape = is_shape and all(size == int(size) for size in shape)
        except (TypeError, ValueError):
            is_shape = False
        if not is_shape:
            raise InputError(f"the shape of {name!r:.100} is {shape!r:.100}; expected sizes from 1")
