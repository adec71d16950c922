"""The two kinds of weights files, under one face: a binary caffemodel, or HDF5.

The fold works on a caffemodel. HDF5 weights are made one in a scratch folder, folded
there, and written as HDF5 again.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import Union

from caffe_fold.errors import CheckError, Path, show, writing
from caffe_fold.named import NamedTuple
from caffe_fold.nets.graph import Graph
from caffe_fold.weights.caffemodel import Caffemodel
from caffe_fold.writing.entries import Parts, Span, size_of
from caffe_fold.writing.write import write_parts

__all__ = ["WeightsFile", "opened_weights"]


class BinaryWeights(NamedTuple):
    """A serialized NetParameter, read and written as it stands."""

    path: Path

    @property
    def kind(self) -> str:
        """What ``opened_weights`` takes it for."""
        return "binary"

    def open(self) -> Caffemodel:
        """The caffemodel."""
        return Caffemodel.open(self.path)

    def write(
        self, model: Caffemodel, parts: Parts, target: str, graph: Graph, threads: int | None
    ) -> None:
        """Write the folded weights; ``graph`` is that of the folded net."""
        write_parts(model, parts, target, threads)
        written, planned = os.path.getsize(target), size_of(parts)
        if written != planned:
            raise CheckError(f"{written} bytes of weights were written and {planned} were planned")

    def reopen(self, target: str, graph: Graph) -> Caffemodel:
        """What was written, read again."""
        return Caffemodel.open(target, may_be_empty=True)


class Hdf5Weights(NamedTuple):
    """Weights in HDF5; ``owners`` tells whose blob each sharer's is, since Caffe stores it
    once. Files in ``scratch`` stand for them as caffemodels; an error names ``shown``."""

    path: Path
    owners: dict[tuple[str, int], tuple[str, int]]
    scratch: str
    shown: str

    @property
    def kind(self) -> str:
        """What ``opened_weights`` takes it for."""
        return "hdf5"

    def open(self) -> Caffemodel:
        """The weights as a caffemodel."""
        return self._opened(self.path, "old.caffemodel", self.owners)

    def write(
        self, model: Caffemodel, parts: Parts, target: str, graph: Graph, threads: int | None
    ) -> None:
        """Write the folded weights as HDF5; unchanged ones byte for byte."""
        from caffe_fold.weights.hdf5 import from_caffemodel

        copied = sum(piece.size for part in parts for piece in part if isinstance(piece, Span))
        if copied == model.source.size == size_of(parts):
            import shutil

            shutil.copyfile(self.path, target)
            return
        new = os.path.join(self.scratch, "new.caffemodel")
        write_parts(model, parts, new, threads)
        with Caffemodel.open(new, may_be_empty=True) as folded:
            promoted = self.owners.keys() - _owners(graph).keys()
            from_caffemodel(self.path, model, folded, target, promoted)

    def reopen(self, target: str, graph: Graph) -> Caffemodel:
        """What was written, read again. All of it was written anew, so that here each blob
        must be the planned one.

        :raises CheckError: where one is not.
        """
        again = self._opened(target, "again.caffemodel", _owners(graph))
        new = os.path.join(self.scratch, "new.caffemodel")
        if os.path.exists(new):
            with Caffemodel.open(new, may_be_empty=True) as planned:
                _require_same(planned, again, graph)
        return again

    def _opened(
        self, source: Path, name: str, owners: dict[tuple[str, int], tuple[str, int]]
    ) -> Caffemodel:
        from caffe_fold.weights.hdf5 import to_caffemodel

        made = os.path.join(self.scratch, name)
        with writing(self.shown):
            to_caffemodel(source, made, owners)
        return Caffemodel.open(made)


WeightsFile = Union[BinaryWeights, Hdf5Weights]


def _require_same(planned: Caffemodel, found: Caffemodel, graph: Graph) -> None:
    """Each layer of the net has the blobs that were planned."""
    for layer in graph.layers:
        pair = [model.by_name.get(layer.name, ()) for model in (planned, found)]
        one, other = (entries[-1].blobs if entries else () for entries in pair)
        if not planned.same_blobs(one, other, found):
            raise CheckError(
                f"the written HDF5 file holds other blobs of layer '{show(layer.name)}' than "
                "planned; nothing was written. Please report this"
            )


@contextlib.contextmanager
def opened_weights(
    path: Path, kind: str, graph: Graph, folder: Path | None = None, shown: str = ""
) -> Iterator[WeightsFile]:
    """The weights file of a kind, "binary" or "hdf5". Scratch files of the latter go below
    ``folder``, by default that of the system, and an error names ``shown``, or the folder.

    :raises OutputError: if they cannot be written.
    """
    if kind != "hdf5":
        yield BinaryWeights(path)
        return
    import tempfile

    folder = folder or tempfile.gettempdir()
    shown = shown or os.fspath(folder)
    with contextlib.ExitStack() as stack:
        with writing(shown):
            scratch = stack.enter_context(tempfile.TemporaryDirectory(dir=folder))
        yield Hdf5Weights(path, _owners(graph), scratch, shown)


def _owners(graph: Graph) -> dict[tuple[str, int], tuple[str, int]]:
    """The owner of each sharer's blob: the first use of the parameter's name."""
    return {
        (graph.layers[at].name, index): (graph.layers[uses[0][0]].name, uses[0][1])
        for uses in graph.sharers.values()
        for at, index in uses[1:]
    }
