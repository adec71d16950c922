"""What a fold costs, counted instead of timed: bytes read and written, passes over the text,
memory at its peak."""

from __future__ import annotations

import os
import tracemalloc
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from support.nets import Net

import caffe_fold
from caffe_fold import convert
from caffe_fold.nets import net, prototxt
from caffe_fold.weights import wire
from caffe_fold.weights.caffemodel import Caffemodel
from caffe_fold.writing import write

Patch = pytest.MonkeyPatch
MIB = 1 << 20
# Of eight layers in two files: what is small is read with what lies behind it, 16 KiB at once.
WINDOWS = 8 * 2 * 2 * (1 << 14)


class Sizes(NamedTuple):
    """Bytes of a net's weights: of those that folding computes anew, and of the others."""

    folded: int
    copied: int


def made(folder: Path, width: int, copied: int) -> tuple[Path, Path, Sizes]:
    """Two folds, a convolution of ``width`` squared 3x3 kernels in each, and an InnerProduct
    of ``copied`` rows that stays as it is."""
    chain = Net()
    chain.input("data", (1, width, 4, 4))
    for i, bottom in enumerate(("data", "relu0")):
        chain.conv(f"conv{i}", bottom, width, width, 3, pad=1, bias=False)
        chain.batch_norm(f"bn{i}", f"conv{i}", width)
        chain.relu(f"relu{i}", f"conv{i}", top=f"relu{i}")
    chain.inner_product("fc", "relu1", width * 16, copied)
    files = chain.write(folder)
    folded = 2 * width * width * 9 * 4
    return (*files, Sizes(folded, files[1].stat().st_size - folded))


class Traffic:
    """Counts the bytes that go through the functions that read and write weights."""

    def __init__(self, patch: Patch) -> None:
        self.read = self.written = self.copied = 0
        pread, into = wire._pread, wire._pread_into
        pwrite, copy = write._pwrite, os.copy_file_range

        def reading(descriptor: int, count: int, at: int) -> bytes:
            data = pread(descriptor, count, at)
            self.read += len(data)
            return data

        def reading_into(*arguments: Any) -> int:
            count = into(*arguments)
            self.read += count
            return count

        def writing(*arguments: Any) -> int:
            count = pwrite(*arguments)
            self.written += count
            return count

        def copying(*arguments: Any) -> int:
            count = copy(*arguments)
            self.copied += count
            return count

        patch.setattr(wire, "_pread", reading)
        patch.setattr(wire, "_pread_into", reading_into)
        patch.setattr(write, "_pwrite", writing)
        patch.setattr(os, "copy_file_range", copying)


needs_kernel_copies = pytest.mark.skipif(
    not hasattr(os, "copy_file_range"), reason="this system copies no file ranges"
)


@needs_kernel_copies
def test_each_byte_is_read_and_written_as_often_as_it_must(
    tmp_path: Path, monkeypatch: Patch
) -> None:
    model, weights, sizes = made(tmp_path, 128, 1000)
    traffic = Traffic(monkeypatch)
    report = caffe_fold.fold(model, weights)
    # Weights that fold are read to fold them, and to prove it once from either file.
    assert 3 * sizes.folded <= traffic.read <= 3 * sizes.folded + WINDOWS
    assert traffic.written + traffic.copied == report.after.weights_bytes
    # What does not change goes by the kernel.
    assert traffic.copied > 0.99 * sizes.copied


@needs_kernel_copies
def test_without_the_proof_weights_are_read_once(tmp_path: Path, monkeypatch: Patch) -> None:
    model, weights, sizes = made(tmp_path, 128, 1000)
    traffic = Traffic(monkeypatch)
    caffe_fold.fold(model, weights, check=False)
    assert sizes.folded <= traffic.read <= sizes.folded + WINDOWS


def test_the_text_is_parsed_once_and_once_more_to_prove_it(
    tmp_path: Path, monkeypatch: Patch
) -> None:
    model, weights, _ = made(tmp_path, 8, 10)
    parsed, read, right, right_read = list[int](), list[None](), prototxt.parse, net.read_net

    def parse(data: bytes, *path: Any) -> Any:
        parsed.append(len(data))
        return right(data, *path)

    def read_net(document: Any) -> Any:
        read.append(None)
        return right_read(document)

    for module in (prototxt, convert, caffe_fold.inputs):
        if hasattr(module, "parse"):
            monkeypatch.setattr(module, "parse", parse)
    monkeypatch.setattr(convert, "read_net", read_net)
    report = caffe_fold.fold(model, weights)
    assert parsed == [report.before.model_bytes, report.after.model_bytes]
    assert len(read) == 2


def peak(folder: Path, width: int, copied: int) -> tuple[int, int]:
    """The size of the weights and the most memory that Python and NumPy held at a time."""
    model, weights, _ = made(folder, width, copied)
    caffe_fold.fold(model, weights, threads=2)  # what is imported and kept for later folds
    tracemalloc.start()
    try:
        caffe_fold.fold(model, weights, threads=2)
        return weights.stat().st_size, tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_memory_does_not_grow_with_the_model(tmp_path: Path) -> None:
    small, at_first = peak(tmp_path, 128, 1000)
    big, then = peak(tmp_path, 512, 1000)
    assert big > 5 * small
    assert then < at_first + 2 * MIB
    assert then < 12 * MIB


def test_the_traffic_is_counted(tmp_path: Path, monkeypatch: Patch) -> None:
    """The guard of the guards: a reader that reads twice is seen."""
    model, weights, sizes = made(tmp_path, 128, 1000)
    traffic = Traffic(monkeypatch)
    right = Caffemodel.block

    def twice(self: Any, *arguments: Any) -> Any:
        right(self, *arguments)
        return right(self, *arguments)

    monkeypatch.setattr(Caffemodel, "block", twice)
    caffe_fold.fold(model, weights)
    assert traffic.read > 5 * sizes.folded
    assert np.isfinite(traffic.written)
