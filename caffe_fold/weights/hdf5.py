"""HDF5 weights (``.caffemodel.h5``): made a caffemodel, and written from a folded one.

The fold works on a caffemodel; these two functions stand before it and behind it. The
layout of the files is described in hdf5_layers.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from caffe_fold.errors import InputError, OutputError, Path
from caffe_fold.weights import wire
from caffe_fold.weights.blob import Storage
from caffe_fold.weights.caffemodel import Caffemodel
from caffe_fold.weights.hdf5_file import errors, library, opened
from caffe_fold.weights.hdf5_layers import Stored, layers, values
from caffe_fold.weights.hdf5_rewrite import Rewrite

__all__ = ["Owners", "from_caffemodel", "to_caffemodel"]

Owners = Mapping["tuple[str, int]", "tuple[str, int]"]
"""The owner of a shared blob, as layer and blob index, by those of each sharer."""

# What stands before the values in a BlobProto: the type of raw_data; and their field.
_FIELDS = {
    Storage.HALF: (wire.tag_bytes(10, wire.VARINT) + b"\2", 12),
    Storage.FLOAT: (b"", 5),
    Storage.DOUBLE: (b"", 8),
}


def to_caffemodel(source: Path, target: Path, owners: Owners | None = None) -> None:
    """Write the layers of an HDF5 file as a binary caffemodel, in the order of the file:
    names and blobs, without types, bottoms and tops.

    A float16 dataset, which Caffe reads (HDF5 converts), becomes NVIDIA's raw half data.
    A shared blob that the file holds for its owner alone is repeated for each sharer in
    ``owners``, as a caffemodel has it; without an owner it is a blob without shape and
    values, which no fold takes.

    :raises InputError: if the file is no Caffe model in HDF5, is damaged or reaches into
        other files, or if h5py is not installed.
    """
    with open(target, "wb") as file:
        for data in _caffemodel(source, owners or {}):
            file.write(data)


def from_caffemodel(
    original: Path,
    old: Caffemodel,
    new: Caffemodel,
    target: Path,
    promoted: Collection[tuple[str, int]] = (),
) -> None:
    """Write ``original`` with the blobs of ``new`` in the place of those of ``old``, which
    :func:`to_caffemodel` made of it.

    Datasets of blobs that are the same in both are copied as they are stored, with their
    links to each other; the others are written plain, as Caffe does, in the type that they
    have in ``new``. Removed layers go, and with them the gradients of removed and changed
    layers. Soft links below ``data`` and ``diff`` become hard ones, since what is at their
    target's place may be another blob now. ``promoted`` are sharers' blobs, as layer and
    index, whose owner is gone, so that they are to be stored under their own name.

    :raises InputError: if the original is not what it has to be.
    :raises OutputError: if the target cannot be written.
    """
    h5py = library()
    with opened(original) as source, errors(target, OutputError, "cannot be written"):
        settings = h5py.h5p.create(h5py.h5p.FILE_CREATE)
        settings.set_link_creation_order(source.id.get_create_plist().get_link_creation_order())
        settings.set_obj_track_times(False)
        access = h5py.h5p.create(h5py.h5p.FILE_ACCESS)
        access.set_fclose_degree(h5py.h5f.CLOSE_STRONG)
        name = os.fsencode(target)
        with h5py.File(h5py.h5f.create(name, h5py.h5f.ACC_TRUNC, settings, access)) as file:
            Rewrite(old, new, promoted).root(source.id, file.id)


# ---- To a caffemodel ----


def _caffemodel(source: Path, owners: Owners) -> Iterator[bytes]:
    with opened(source) as file:
        found = layers(file, source)
        for (layer, index), (owner, at) in owners.items():
            if layer in found and at in found.get(owner, {}):
                found[layer].setdefault(index, found[owner][at])
        with errors(source, InputError, "cannot be read, so it may be damaged"):
            for name, blobs in found.items():
                yield from _entry(file, name, blobs)


def _entry(file: Any, name: str, blobs: dict[int, Stored]) -> Iterator[bytes]:
    """A LayerParameter of NetParameter: name and blobs."""
    text = wire.length_field(1, name.encode("utf-8", "surrogateescape"))
    row = [blobs.get(index) for index in range(max(blobs, default=-1) + 1)]
    heads = [_blob_head(blob) for blob in row]
    size = len(text) + sum(map(len, heads)) + sum(blob.size for blob in row if blob)
    yield _head(100, size) + text
    for head, blob in zip(heads, row):
        yield head
        if blob is not None:
            yield from values(file, blob)


def _blob_head(blob: Stored | None) -> bytes:
    """What stands before the values of a blob."""
    if blob is None:
        return _head(7, 0)
    dims = b"".join(map(wire.varint_bytes, blob.shape))
    shape = wire.length_field(7, wire.length_field(1, dims) if dims else b"")
    raw_type, number = _FIELDS[blob.storage]
    before = shape + raw_type + _head(number, blob.size)
    return _head(7, len(before) + blob.size) + before


def _head(number: int, size: int) -> bytes:
    return wire.tag_bytes(number, wire.LENGTH) + wire.varint_bytes(size)
