"""A folder's pairs: every folder below it is looked through, and what is no pair is told."""

from __future__ import annotations

import os
import stat
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from typing import Any, Union

from caffe_fold.batch import storage
from caffe_fold.batch.ledger import LEDGER, outputs_of
from caffe_fold.batch.pairing import FOLDED, is_prototxt, is_weights, pair_up, stem
from caffe_fold.errors import CaffeFoldError, InputError, show
from caffe_fold.writing.outputs import is_same

__all__ = ["Item", "Pair", "Skipped", "Unpaired", "pairs_in"]


@dataclass(frozen=True)
class Pair:
    """A net to fold.

    :param model: the address of its prototxt.
    :param weights: the address of its weights.
    :param place: the folder of the outputs below the output folder, with ``/``, or "".
    :param origin: where the pair comes from, for messages.
    :param output_model: the prototxt's name below the output folder, where it is given.
    :param output_weights: the weights' name, likewise.
    :param options: options of its own, by the names of their parameters.
    """

    model: str
    weights: str
    place: str
    origin: str
    output_model: str | None = None
    output_weights: str | None = None
    options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Skipped:
    """What is no pair, and one sentence why."""

    path: str
    reason: str


@dataclass(frozen=True)
class Unpaired:
    """A prototxt of no pair, which is not to be replaced for that."""

    path: str


Item = Union[Pair, Skipped, Unpaired]


def pairs_in(source: str, output: str) -> Iterator[Item]:
    """The pairs of a folder and of all folders below it, in the order of their names.

    Hidden files and folders, folded nets, and the folder ``output`` are passed over; links to
    folders are told and not followed.

    :raises InputError: if the folder cannot be read.
    """
    if storage.is_url(source):
        yield from _below_url(source, output)
    else:
        yield from _below(source, output)


def _below(source: str, output: str) -> Iterator[Item]:
    if not os.access(source, os.R_OK | os.X_OK):
        raise InputError(f"{show(source, 1000)} cannot be read: Permission denied")
    made: set[str] = set()  # what earlier runs wrote, by real path
    errors: list[OSError] = []
    for folder, folders, names in os.walk(source, onerror=errors.append):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in list(folders):
            path = os.path.join(folder, name)
            if os.path.islink(path):
                folders.remove(name)
                yield Skipped(path, "it is a link to a folder; name its target as a source")
            elif is_same(path, output):
                folders.remove(name)
        if LEDGER in names:
            made.update(os.path.realpath(path) for path in outputs_of(folder))
        place = os.path.relpath(folder, source).replace(os.sep, "/")
        wanted = []
        for name in sorted(filter(_is_wanted, names)):
            path = os.path.join(folder, name)
            reason = _unreadable(path)
            if reason:
                yield Skipped(path, reason)
            elif not made or os.path.realpath(path) not in made:
                wanted.append(name)
        yield from _paired(folder, "" if place == "." else place, wanted)
    for error in errors:
        yield Skipped(str(error.filename), f"it cannot be read: {error.strerror}")


def _below_url(source: str, output: str) -> Iterator[Item]:
    """The same in a store, which has no links and no folders of its own."""
    by_folder: dict[str, list[str]] = {}
    source, own = source.rstrip("/"), output.rstrip("/")
    names = storage.tree(source)
    folders = [name.rpartition("/")[0] for name in names if storage.basename(name) == LEDGER]
    made = {path for place in folders for path in outputs_of(_folder_below(source, place))}
    for name in names:
        path = storage.join(source, name)
        is_hidden = any(part.startswith(".") for part in name.split("/"))
        if is_hidden or path in made or (own != source and path.startswith(f"{own}/")):
            continue
        place, _, last = name.rpartition("/")
        if _is_wanted(last):
            by_folder.setdefault(place, []).append(last)
    for place in sorted(by_folder):
        yield from _paired(_folder_below(source, place), place, by_folder[place])


def _folder_below(source: str, place: str) -> str:
    return storage.join(source, place) if place else source


def _paired(folder: str, place: str, names: Collection[str]) -> Iterator[Item]:
    """Pair the files of one folder."""
    stems = {(stem(name), is_weights(name)) for name in names}
    sources = []
    apart = 0
    for name in names:
        bare = stem(name)
        if not bare.endswith(FOLDED):
            sources.append(name)
        elif not is_weights(name):
            if not _is_folded(bare, stems):
                sources.append(name)
        elif (bare[: -len(FOLDED)], True) not in stems:
            apart += 1
            yield Skipped(
                storage.join(folder, name),
                f"its name ends in {FOLDED}, as that of a folded net; if it is none, name the "
                "pair in a manifest",
            )
    models = [name for name in sources if is_prototxt(name)]
    weights = [name for name in sources if is_weights(name)]
    left = set(models)

    def kind_of(name: str) -> str:
        return _kind(storage.join(folder, name))

    for found in pair_up(models, weights, kind_of, apart):
        path = storage.join(folder, found.weights)
        if found.model is None:
            yield Skipped(path, f"{found.reason}; name the pair in a manifest")
        else:
            left.discard(found.model)
            yield Pair(storage.join(folder, found.model), path, place, show(folder, 1000))
    for name in sorted(left):
        yield Unpaired(storage.join(folder, name))


def _is_folded(bare: str, stems: Collection[tuple[str, bool]]) -> bool:
    """Whether a prototxt whose stem ends in ``_inference`` is a folded net's: it has weights of
    its own name, or what it was made of is there, beside some folded weights."""
    source = bare[: -len(FOLDED)]
    is_beside_source = (source, True) in stems or (source, False) in stems
    has_weights = any(is_ours and other.endswith(FOLDED) for other, is_ours in stems)
    return (bare, True) in stems or (is_beside_source and has_weights)


def _is_wanted(name: str) -> bool:
    return not name.startswith(".") and (is_prototxt(name) or is_weights(name))


def _unreadable(path: str) -> str:
    """Why a path is no file to read; "" if it is one."""
    try:
        mode = os.stat(path).st_mode
    except OSError as error:
        if os.path.islink(path):
            return "it is a link that leads to nothing"
        return f"it cannot be read: {error.strerror}"
    return "" if stat.S_ISREG(mode) else "it is no regular file"


def _kind(address: str) -> str:
    """What a prototxt holds: a net to deploy, a net of training, no net, or what cannot be
    read."""
    from caffe_fold.deploying.needs import is_loss
    from caffe_fold.nets.data_layers import is_source
    from caffe_fold.nets.net import read_net
    from caffe_fold.nets.prototxt import parse

    try:
        with storage.opened(address) as file:
            document = parse(file.read(_LIMIT), address)
        if not any(f.name in ("layer", "layers") for f in document.fields):
            return "other"
        layers = read_net(document).layers
    except CaffeFoldError:
        return "unreadable"
    makes_data = any(is_source(layer) and layer.type != "DummyData" for layer in layers)
    return "training" if makes_data or any(map(is_loss, layers)) else "deploy"


# Larger than any prototxt seen, by a factor of a hundred.
_LIMIT = 1 << 26
