"""A manifest's pairs: CSV with a head, or JSON lines; a row a net.

``model`` and ``weights`` are needed; ``output_model``, ``output_weights`` and the options of
``fold`` by their names (``bn-layout`` or ``bn_layout``) may be there. An option of a row goes
before that of the command.
"""

from __future__ import annotations

import csv
import io
import json
import os
import posixpath
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

from caffe_fold.batch import storage
from caffe_fold.batch.folders import Pair
from caffe_fold.errors import InputError, show
from caffe_fold.hints import closest

__all__ = ["SUFFIXES", "is_manifest", "pairs_of"]

SUFFIXES = (".csv", ".jsonl", ".ndjson")

# It is read whole, like a prototxt: room for a million pairs.
_LIMIT = 1 << 28
_FILES = ("model", "weights", "output-model", "output-weights")

Options = Mapping[str, Callable[[Any], tuple[str, Any]]]
"""By an option's name: what makes a parameter's name and value of a cell, which is text or
JSON's; it raises ValueError with a sentence."""


def is_manifest(address: str) -> bool:
    """Whether an address is a manifest's by its name."""
    return storage.basename(address).lower().endswith(SUFFIXES)


@dataclass(frozen=True)
class _Row:
    """A row's cells by column, and where it is."""

    origin: str
    cells: dict[str, Any]


def pairs_of(manifest: str, options: Options) -> Iterator[Pair]:
    """The pairs of a manifest.

    :raises InputError: with the line and the column, for what is not understood.
    """
    is_local = not storage.is_url(manifest)
    if is_local and not os.path.isfile(manifest):  # a pipe would be waited for
        raise InputError(f"{show(manifest, 1000)} is a pipe or device; expected a file")
    size = os.path.getsize(manifest) if is_local else 0
    with storage.opened(manifest) as file:
        data = file.read(_LIMIT + 1) if size <= _LIMIT else b""
    if max(size, len(data)) > _LIMIT:
        raise InputError(f"{show(manifest, 1000)} has over 256 MiB, which no manifest has")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise InputError(f"{show(manifest, 1000)}:{line}: expected UTF-8") from None
    is_csv = storage.basename(manifest).lower().endswith(".csv")
    rows = _csv_rows(text, manifest, options) if is_csv else _json_rows(text, manifest)
    for row in rows:
        _require_known(row.cells, row.origin, options)
        yield _pair(row, manifest, options)


# ---- Rows ----


def _csv_rows(text: str, manifest: str, options: Options) -> Iterator[_Row]:
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    head: list[str] = []
    try:
        for cells in reader:
            origin = f"{show(manifest, 1000)}:{reader.line_num}"
            if not any(cell.strip() for cell in cells):
                continue
            if not head:
                head = [_column(cell.strip()) for cell in cells]
                if not {*_FILES, *options}.intersection(head):
                    found = show(",".join(cells))
                    raise InputError(
                        f"{origin}: found '{found}'; expected a head first, as 'model,weights'"
                    )
                _require_known(head, origin, options)
                continue
            if len(cells) != len(head):
                raise InputError(
                    f"{origin}: expected as many cells as the head has, {len(head)}; found "
                    f"{len(cells)}"
                )
            yield _Row(origin, {n: c.strip() for n, c in zip(head, cells) if c.strip()})
    except csv.Error as error:
        raise InputError(f"{show(manifest, 1000)}:{reader.line_num}: {error}") from None


def _json_rows(text: str, manifest: str) -> Iterator[_Row]:
    # Not splitlines: JSON may hold other line ends in a string.
    for number, line in enumerate(text.split("\n"), 1):
        origin = f"{show(manifest, 1000)}:{number}"
        if not line.strip():
            continue
        try:
            cells = json.loads(line, object_pairs_hook=_unique)
        except json.JSONDecodeError as error:
            message = f"{origin}:{error.colno}: {error.msg}; expected a JSON object"
            raise InputError(message) from None
        except (ValueError, RecursionError) as error:
            raise InputError(f"{origin}: {show(str(error))}") from None
        if not isinstance(cells, dict):
            raise InputError(f'{origin}: expected a JSON object a line, as {{"model": ...}}')
        yield _Row(origin, {name: cell for name, cell in cells.items() if cell is not None})


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in pairs:
        if _column(name) in found:
            raise ValueError(f"'{name}' is there twice")
        found[_column(name)] = value
    return found


def _require_known(names: Collection[str], origin: str, options: Options) -> None:
    """Check the names of columns; that of a column of a CSV's head is once there."""
    known = [*_FILES, *options]
    seen = set()
    for name in names:
        if name not in known:
            hint = closest(name, known)
            raise InputError(f"{origin}: unknown column '{show(name)}'{hint}")
        if name in seen:
            raise InputError(f"{origin}: the column '{show(name)}' is there twice")
        seen.add(name)


def _column(name: str) -> str:
    return name.replace("_", "-")


# ---- A row's pair ----


def _pair(row: _Row, manifest: str, options: Options) -> Pair:
    found: dict[str, Any] = {}
    for name, cell in row.cells.items():
        if name in options:
            try:
                key, value = options[name](cell)
            except (ValueError, TypeError, AttributeError) as error:
                raise InputError(f"{row.origin}: column '{show(name)}': {error}") from None
            found[key] = value
    model, weights = (_file(row, name, manifest) for name in ("model", "weights"))
    return Pair(
        model=model,
        weights=weights,
        place=_place(row.cells["weights"]),
        origin=row.origin,
        output_model=_text(row, "output-model"),
        output_weights=_text(row, "output-weights"),
        options={key: _beside(key, value, row, manifest) for key, value in found.items()},
    )


def _text(row: _Row, name: str) -> str | None:
    cell = row.cells.get(name)
    if cell is None:
        return None
    if not isinstance(cell, str) or not cell or "\0" in cell:
        _refuse(row, name, "expected a path")
    try:
        os.fsencode(cell)
    except UnicodeEncodeError:
        _refuse(row, name, f"'{show(ascii(cell)[1:-1])}' cannot be a file's name")
    return cell


def _file(row: _Row, name: str, manifest: str) -> str:
    cell = _text(row, name)
    if cell is None:
        _refuse(row, name, "it is missing")
    cell = _local(cell, row, name)
    if storage.is_url(manifest) and not storage.is_url(cell) and os.path.isabs(cell):
        _refuse(row, name, "a path of this machine in a manifest from elsewhere; expected a URL")
    return _resolved(cell, manifest)


def _local(cell: str, row: _Row, name: str) -> str:
    try:
        return storage.local(cell)
    except InputError as error:
        _refuse(row, name, str(error))


def _refuse(row: _Row, name: str, message: str) -> NoReturn:
    raise InputError(f"{row.origin}: column '{name}': {message}")


def _resolved(name: str, manifest: str) -> str:
    """The address of what a manifest names, which is relative to it."""
    if storage.is_url(name):
        return name
    folder = storage.folder_of(manifest)
    if storage.is_url(folder):
        scheme, _, rest = folder.partition("://")
        return f"{scheme}://{posixpath.normpath(f'{rest}/{name}')}"
    return os.path.join(folder, name)


def _beside(key: str, value: Any, row: _Row, manifest: str) -> Any:
    """An option that names a file beside the manifest."""
    is_file = key == "verify_input" and value
    return _resolved(_local(value, row, "verify-input"), manifest) if is_file else value


def _place(weights: str) -> str:
    """The folder of the outputs: that of the weights, where they are below the manifest."""
    slashed = weights.replace(os.sep, "/")
    if storage.is_url(weights) or os.path.isabs(weights) or ".." in slashed.split("/"):
        return ""
    return posixpath.dirname(posixpath.normpath(slashed))
