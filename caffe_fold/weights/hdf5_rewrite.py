"""A Caffe model in HDF5, written from another by what differs in two caffemodels."""

from __future__ import annotations

import math
from collections.abc import Collection
from typing import Any

import numpy as np

from caffe_fold.errors import InputError, show
from caffe_fold.weights.blob import Blob
from caffe_fold.weights.caffemodel import Caffemodel, Entry, name_text
from caffe_fold.weights.hdf5_file import Child, Link, child_at, children, library, links
from caffe_fold.weights.hdf5_layers import blob_index, slabs

__all__ = ["Rewrite"]

_TREES = (b"data", b"diff")


class Rewrite:
    """One file written from another by what is different in two caffemodels. ``promoted``
    are the blobs that the original holds under a sharer's name and the new file does not."""

    def __init__(
        self, old: Caffemodel, new: Caffemodel, promoted: Collection[tuple[str, int]]
    ) -> None:
        self.h5py, self.new = library(), new
        # Of several entries of one name the last counts (Net::CopyTrainedLayersFrom).
        self.old_entries = {name: entries[-1] for name, entries in old.by_name.items()}
        self.entries = {name: entries[-1] for name, entries in new.by_name.items()}
        self.changed = {name: self._changed(old, entry) for name, entry in self.entries.items()}
        for name, index in promoted:
            if name in self.changed:
                self.changed[name] |= {index}
        self.gone = self.old_entries.keys() - self.entries.keys()
        self.copied: dict[int, tuple[Any, bytes]] = {}

    def _changed(self, old: Caffemodel, entry: Entry) -> frozenset[int]:
        """The indexes of a layer's blobs that are new, different or gone."""
        before = self.old_entries[entry.name].blobs if entry.name in self.old_entries else ()
        after = entry.blobs
        kept = {
            at for at, (a, b) in enumerate(zip(before, after)) if old.same_values(a, b, self.new)
        }
        return frozenset(range(max(len(before), len(after)))) - kept

    def root(self, source: Any, target: Any) -> None:
        """Write the whole file."""
        self._attributes(source, target)
        for link in links(source):
            name = link.name
            if link.is_soft and name not in _TREES:
                target.links.create_soft(name, source.links.get_val(name), self._settings(link))
                continue
            child = child_at(source, link)
            if name in _TREES and child.is_group:
                self._group(child.id, self._new_group(child, target), "", name == b"diff")
            else:
                self._copy(source, child, target)
        data = self.h5py.h5o.open(target, b"data")
        for added in [name for name in self.entries if name not in self.old_entries]:
            self._blobs(added, self._path(added, data), {})

    def _group(self, source: Any, target: Any, name: str, is_diff: bool) -> None:
        """Write what a layer's group holds, and the groups of the layers below its name."""
        stored: dict[int, Child] = {}
        for child in children(source):
            index = blob_index(child) if name else None
            if child.is_group:
                below = _below(name, child)
                if self._stays(child.id, below):
                    self._group(child.id, self._new_group(child, target), below, is_diff)
            elif index is None or not self._concerned(name, index, is_diff):
                self._copy(source, child, target)
            else:
                stored[index] = child
        if not is_diff and name in self.entries:
            self._blobs(name, target, stored)

    def _stays(self, group: Any, name: str) -> bool:
        """Whether a group has a place in the new file: its layer, or one below it, stays."""
        groups = [child for child in children(group) if child.is_group]
        if name not in self.gone and (name in self.entries or not groups):
            return True
        return any(self._stays(child.id, _below(name, child)) for child in groups)

    def _concerned(self, name: str, index: int, is_diff: bool) -> bool:
        """Whether a dataset is not to be copied."""
        changed = self.changed.get(name, frozenset())
        return name in self.gone or index in changed or (is_diff and bool(changed))

    def _blobs(self, name: str, target: Any, stored: dict[int, Child]) -> None:
        """Write a layer's changed blobs."""
        for index, blob in enumerate(self.entries[name].blobs):
            if index not in self.changed[name]:
                continue
            if target.links.exists(b"%d" % index):
                raise InputError(
                    f"layer '{show(name)}' has to get a dataset '{index}', and in its place is "
                    f"the group of layer '{show(name)}/{index}'; rename that layer"
                )
            dataset = self._new_dataset(blob, target, b"%d" % index)
            if index in stored:
                self._attributes(stored[index].id, dataset.id)
            at = 0
            for place, shape in slabs(blob.shape, blob.storage):
                count = math.prod(shape)
                dataset[place] = self.new.values(blob, at, at + count).reshape(shape)
                at += count

    # ---- Objects ----

    def _settings(self, link: Link) -> Any:
        settings = self.h5py.h5p.create(self.h5py.h5p.LINK_CREATE)
        settings.set_char_encoding(link.cset)
        return settings

    def _copy(self, source: Any, child: Child, target: Any) -> None:
        """Copy an object, or link to its copy if it was copied before."""
        address = self.h5py.h5o.get_info(child.id).addr
        settings = self._settings(child.link)
        if address in self.copied:
            group, name = self.copied[address]
            target.links.create_hard(child.name, group, name, settings)
        else:
            self.h5py.h5o.copy(source, child.name, target, child.name, None, settings)
            self.copied[address] = target, child.name

    def _new_group(self, child: Child, target: Any) -> Any:
        # With the others of the source's settings, which describe its own table of links,
        # HDF5 fails to add links once the source has more than a few.
        settings = self.h5py.h5p.create(self.h5py.h5p.GROUP_CREATE)
        order = child.id.get_create_plist().get_link_creation_order()
        settings.set_link_creation_order(order)
        settings.set_obj_track_times(False)
        group = self.h5py.h5g.create(target, child.name, self._settings(child.link), settings)
        self._attributes(child.id, group)
        return group

    def _path(self, name: str, data: Any) -> Any:
        """The group of a layer that the original does not have."""
        group = data
        for part in filter(None, name.encode("utf-8", "surrogateescape").split(b"/")):
            is_there = group.links.exists(part)
            group = (self.h5py.h5o.open if is_there else self.h5py.h5g.create)(group, part)
        return group

    def _new_dataset(self, blob: Blob, target: Any, name: bytes) -> Any:
        h5 = self.h5py
        space = h5.h5s.create_simple(blob.shape) if blob.shape else h5.h5s.create(h5.h5s.SCALAR)
        settings = h5.h5p.create(h5.h5p.DATASET_CREATE)
        settings.set_obj_track_times(False)
        number = h5.h5t.py_create(blob.storage.dtype)
        return h5.Dataset(h5.h5d.create(target, name, number, space, settings))

    def _attributes(self, source: Any, target: Any) -> None:
        """Copy attributes in their own types."""
        h5a = self.h5py.h5a
        for index in range(h5a.get_num_attrs(source)):
            old = h5a.open(source, index=index)
            new = h5a.create(target, old.name, old.get_type(), old.get_space())
            if old.get_space().get_simple_extent_type() != self.h5py.h5s.NULL:
                memory = self.h5py.h5t.py_create(old.dtype)
                held = np.empty(old.shape, old.dtype)
                old.read(held, memory)
                new.write(held, memory)


def _below(name: str, child: Child) -> str:
    part = name_text(child.name)
    return f"{name}/{part}" if name else part
