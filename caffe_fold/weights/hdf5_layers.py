"""The layers in a Caffe model in HDF5, and the values of their datasets.

The layout is that of Net::ToHDF5 and Net::CopyTrainedLayersFromHDF5 (BVLC, net.cpp): in
the group ``data`` a group a layer, in it a dataset a blob, named "0", "1" and so on. A
layer's name is a path to HDF5, so that the group of "conv1/bn" lies in that of "conv1";
Caffe writes that and cannot read it (BVLC #5905). A layer without blobs has an empty
group. A shared blob is stored with its owner alone, so that a layer may have a blob 1 and
no blob 0. ``diff`` holds gradients in the same way, those of sharers too.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterator
from typing import Any

import numpy as np

from caffe_fold.errors import InputError, Path, show
from caffe_fold.named import NamedTuple
from caffe_fold.weights.blob import Storage
from caffe_fold.weights.caffemodel import name_text
from caffe_fold.weights.hdf5_file import Child, children, errors, library, links, shown

__all__ = ["Layers", "Stored", "blob_index", "layers", "slabs", "values"]

_BLOB_NAME = re.compile(rb"0|[1-9][0-9]*")
# A layer of Caffe has some ten blobs at most.
_BLOB_LIMIT = 1000
# Deflate makes at most 1032 bytes of one (zlib's technical details).
_RATIO_LIMIT = 1100
_SLAB = 1 << 20
# HDF5 unpacks a chunk as a whole, and again each time that it is not in the cache.
_CHUNK_LIMIT, _CACHE, _CACHE_SLOTS = 1 << 29, 1 << 26, 10007


class Stored(NamedTuple):
    """A blob's dataset. It is opened anew for reading, since an open one keeps its cache
    of ``cache`` bytes, which holds a row of its chunks."""

    path: bytes
    shape: tuple[int, ...]
    storage: Storage
    cache: int

    @property
    def size(self) -> int:
        return math.prod(self.shape) * self.storage.value


Layers = dict[str, dict[int, Stored]]
"""The datasets of each layer by blob index, in the order of the file."""


def layers(file: Any, path: Path) -> Layers:
    """The layers of an open file.

    :raises InputError: if it holds none, or something else than floats.
    """
    with errors(path, InputError, "cannot be read, so it may be damaged"):
        data = file.get("data")
        found: Layers = {}
        if isinstance(data, library().Group):
            _collect(data.id, (), found, path)
        if not any(found.values()):
            raise InputError(
                f"{shown(path)} is no Caffe model in HDF5, which has a group 'data' with a group "
                f"a layer: {_described(file, data)}"
            )
        _require_bounds(found, path)
        return found


def _collect(group: Any, above: tuple[bytes, ...], found: Layers, path: Path) -> None:
    """Add the layers below a group. A group with groups alone is only part of a name."""
    blobs, groups = {}, []
    for child in children(group):
        index = blob_index(child)
        if child.is_group:
            groups.append(child)
        elif index is not None:
            name = name_text(b"/".join((*above, child.name)))
            what = f"{shown(path)}: dataset '{show(name)}' below 'data'"
            place = b"/".join((b"data", *above, child.name))
            blobs[index] = _stored(library().Dataset(child.id), place, what)
    if above and (blobs or not groups):
        found[name_text(b"/".join(above))] = blobs
    for child in groups:
        _collect(child.id, (*above, child.name), found, path)


def blob_index(child: Child) -> int | None:
    """The index of the blob that a dataset holds; None for other objects."""
    is_blob = child.is_dataset and len(child.name) < 10 and _BLOB_NAME.fullmatch(child.name)
    return int(child.name) if is_blob else None


def _stored(dataset: Any, path: bytes, what: str) -> Stored:
    """A dataset's description, if it holds floats."""
    item = dataset.dtype.itemsize
    if dataset.shape is None or dataset.dtype.kind != "f" or item not in tuple(Storage):
        raise InputError(f"{what} does not hold floats of 16, 32 or 64 bits")
    if not dataset.chunks:
        return Stored(path, dataset.shape, Storage(item), 0)
    chunk = math.prod(dataset.chunks) * item
    if chunk > _CHUNK_LIMIT:
        raise InputError(f"{what} is stored in chunks of over 512 MiB")
    row = dataset.chunks[0] * item
    for size, step in zip(dataset.shape[1:], dataset.chunks[1:]):
        row *= -(-size // step) * step
    return Stored(path, dataset.shape, Storage(item), max(chunk, min(row, _CACHE)))


def values(file: Any, stored: Stored) -> Iterator[bytes]:
    """The values of a dataset, in pieces of up to 1 MiB."""
    h5py = library()
    access = h5py.h5p.create(h5py.h5p.DATASET_ACCESS)
    if stored.cache:
        access.set_chunk_cache(_CACHE_SLOTS, stored.cache, 1.0)
    dataset = h5py.Dataset(h5py.h5d.open(file.id, stored.path, access))
    for place, _ in slabs(stored.shape, stored.storage):
        yield np.asarray(dataset[place], stored.storage.dtype).tobytes()


def _require_bounds(found: Layers, path: Path) -> None:
    """Refuse what would become far larger than the file is."""
    total = 0
    for name, blobs in found.items():
        if max(blobs, default=0) >= _BLOB_LIMIT:
            raise InputError(f"{shown(path)}: layer '{show(name)}' has a blob {max(blobs)}")
        total += sum(blob.size for blob in blobs.values())
    if total > _RATIO_LIMIT * os.path.getsize(path):
        raise InputError(f"{shown(path)} claims {total} bytes of weights, which it cannot hold")


def _described(file: Any, data: Any) -> str:
    """What a file is that is no Caffe model."""
    names = [name_text(link.name) for link in links(file.id)]
    if "learned_net" in names or "history" in names:
        return "it is a solver's state; give the weights that were saved with it"
    marks = {"keras_version", "layer_names", "backend"} & set(file.attrs)
    if marks or {"model_weights", "_layer_checkpoint_dependencies"} & set(names):
        return "it looks like a Keras model"
    if data is not None and not isinstance(data, library().Group):
        return "its 'data' is a dataset, as in the files of an HDF5Data layer"
    if data is not None:
        return "its 'data' holds no dataset named '0'"
    listed = ", ".join(f"'{show(name, 40)}'" for name in names[:5])
    return f"it holds {listed or 'nothing'}" + (" and more" if len(names) > 5 else "")


def slabs(shape: tuple[int, ...], item: int) -> Iterator[tuple[Any, tuple[int, ...]]]:
    """The pieces of an array in the order of its values, up to 1 MiB each: place and shape."""
    if not shape:
        yield (), ()
    if not shape or 0 in shape:
        return
    limit = _SLAB // item
    axis = next(k for k in range(len(shape)) if math.prod(shape[k + 1 :]) <= limit)
    step = max(1, limit // math.prod(shape[axis + 1 :]))
    for lead in np.ndindex(shape[:axis]):
        for start in range(0, shape[axis], step):
            stop = min(start + step, shape[axis])
            yield (*lead, slice(start, stop)), (stop - start, *shape[axis + 1 :])
