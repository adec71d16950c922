"""Work grows with the net, not with its square: calls are counted, since time is the machine's."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import pytest
from support.nets import Net
from support.wire import run

import caffe_fold
from caffe_fold.planning import runs
from caffe_fold.weights import wire
from caffe_fold.weights.caffemodel import Caffemodel

pytestmark = pytest.mark.slow

C = 2
WEIGHT, ONES = np.ones((C, C, 1, 1)), np.ones(C)
STATISTICS = [ONES, ONES, np.ones(1)]
CONVOLUTION = f"convolution_param {{ num_output: {C} kernel_size: 1 bias_term: false }}"
SHARED = 'param { name: "w" }'


def conv(net: Net, name: str, bottom: str, top: str, extra: str = "") -> None:
    net.layer(name, "Convolution", bottom, top, CONVOLUTION, [WEIGHT], extra)


def bn(net: Net, name: str, bottom: str, top: str) -> None:
    net.layer(name, "BatchNorm", bottom, top, "", STATISTICS)


def start() -> Net:
    net = Net()
    net.input("data", (1, C, 2, 2))
    net.relu("relu", "data", "x")
    return net


def fan(count: int, first: str = "relu") -> Net:
    """One blob that many BatchNorms read, each before a convolution of its own."""
    net = start()
    if first == "conv":
        conv(net, "first", "x", "y")
    for i in range(count):
        bn(net, f"bn{i}", "y" if first == "conv" else "x", f"b{i}")
        conv(net, f"c{i}", f"b{i}", f"c{i}") if first == "relu" else net.relu(f"r{i}", f"b{i}")
    return net


def fan_behind_a_convolution(count: int) -> Net:
    """None of them folds, and each says who else reads its bottom."""
    return fan(count, "conv")


def one_run_many_readers(count: int) -> Net:
    net = start()
    bn(net, "bn", "x", "b")
    for i in range(count):
        conv(net, f"c{i}", "b", f"c{i}")
    return net


def siamese(count: int, alike: bool = True) -> Net:
    """Branches that share weights, and all fold or, for the last of them, none."""
    net = start()
    for i in range(count):
        conv(net, f"c{i}", "x", f"c{i}", SHARED)
        if alike or i < count - 1:
            bn(net, f"bn{i}", f"c{i}", f"b{i}")
    return net


def siamese_refused(count: int) -> Net:
    return siamese(count, alike=False)


def chain(count: int) -> Net:
    """Convolution, BatchNorm, ReLU, again and again."""
    net, bottom = start(), "x"
    for i in range(count // 3):
        conv(net, f"c{i}", bottom, f"c{i}")
        bn(net, f"bn{i}", f"c{i}", f"c{i}")
        net.relu(f"r{i}", f"c{i}")
        bottom = f"c{i}"
    return net


def affine_chain(count: int) -> Net:
    """One run of many layers, in place."""
    net = start()
    for i in range(count):
        bn(net, f"bn{i}", "x", "x")
    net.relu("end", "x", "y")
    return net


def identities(count: int) -> Net:
    """Runs that disappear, one after another, each by itself."""
    net, bottom = start(), "x"
    for i in range(count):
        net.power(f"p{i}", bottom, top=f"p{i}")
        net.relu(f"r{i}", f"p{i}", f"r{i}")
        bottom = f"r{i}"
    return net


NETS: dict[str, Callable[[int], Net]] = {
    "a fan": fan,
    "a fan behind a convolution": fan_behind_a_convolution,
    "one run with many readers": one_run_many_readers,
    "siamese branches": siamese,
    "siamese branches that are refused": siamese_refused,
    "a chain": chain,
    "a run": affine_chain,
    "identities": identities,
}


def counted(patch: pytest.MonkeyPatch, owner: Any, name: str) -> list[None]:
    """Count the calls of a function: the list grows by one with each."""
    right, calls = getattr(owner, name), list[None]()

    def counting(*arguments: Any, **options: Any) -> Any:
        calls.append(None)
        return right(*arguments, **options)

    patch.setattr(owner, name, counting)
    return calls


PACKAGE = str(Path(caffe_fold.__file__).parent)


def steps_of_a_fold(net: Net, folder: Path) -> int:
    """How many lines of the package run, those of loops once a turn, to fold a net."""
    steps = 0

    def trace(frame: FrameType, event: str, argument: object) -> Any:
        nonlocal steps
        if not frame.f_code.co_filename.startswith(PACKAGE):
            return None
        steps += event == "line"
        return trace

    files, old = net.write(folder), sys.gettrace()
    sys.settrace(trace)
    try:
        caffe_fold.fold(*files, threads=1)
    finally:
        sys.settrace(old)
    return steps


@pytest.mark.parametrize("case", NETS)
def test_as_many_more_layers_take_as_many_more_steps(case: str, tmp_path: Path) -> None:
    """A loop over all layers for each of them, however short, takes 1.017 times as many."""
    steps_of_a_fold(NETS[case](5), tmp_path)  # what is done once for all folds
    one, two, three = (steps_of_a_fold(NETS[case](n), tmp_path) for n in (18, 36, 54))
    assert two - one > 18 * 20
    assert three - two < 1.012 * (two - one)


BIG: dict[str, tuple[Callable[[int], Net], int]] = {
    "a fan": (fan, 500),
    "siamese branches": (siamese, 100),
    "siamese branches that are refused": (siamese_refused, 100),
    "a chain": (chain, 900),
}


@pytest.mark.parametrize("case", BIG)
def test_a_big_net_looks_at_each_run_a_few_times(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build, count = BIG[case]
    files = build(count).write(tmp_path)
    looks = counted(monkeypatch, runs.Runs, "through")
    reads = counted(monkeypatch, wire, "_pread")
    report = caffe_fold.fold(*files, dry_run=True)
    assert len(looks) <= 4 * count + 4
    # A run's own blobs, its linear layer's, and those of the layers' heads.
    assert len(reads) <= 20 * count + 20
    if "refused" not in case:
        assert report.left == 0


def test_a_chain_of_a_thousand_affine_layers_folds(tmp_path: Path) -> None:
    net = Net()
    net.input("data", (1, C, 4, 4))
    net.conv("c", "data", C, C)
    for i in range(1000):
        net.batch_norm(f"bn{i}", "c", C)
    report = caffe_fold.fold(*net.write(tmp_path))
    assert report.left == 0
    assert [len(fold.behind) for fold in report.folded] == [1000]
    assert report.checked
    assert report.checked.layers == 1
    report = caffe_fold.fold(*affine_chain(1000).write(tmp_path))
    assert [len(merge.layers) for merge in report.merged] == [1000]


@pytest.mark.parametrize("name", ["", "again"])
def test_repeated_names_of_entries_are_read_once_each(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some files hold thousands of Splits without a name."""
    net = start()
    conv(net, "c", "x", "c")
    bn(net, "bn", "c", "y")
    reads = counted(monkeypatch, wire, "_pread")
    found = []
    for count in (2_000, 8_000):
        model, weights = net.write(tmp_path)
        with weights.open("ab") as file:
            file.write(run(100, run(1, name.encode()) + run(2, b"Split")) * count)
        before = len(reads)
        report = caffe_fold.fold(model, weights)
        assert report.left == 0
        found.append(len(reads) - before)
    assert found[1] < 5 * found[0] + 20
    assert found[1] < 1000


def test_entries_of_one_name_are_compared_once_each(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Equal copies of a layer that folds."""
    compared = counted(monkeypatch, Caffemodel, "same_values")
    for count in (10, 100):
        net = start()
        for _ in range(count):
            conv(net, "c", "x", "c")
            net.layers[-1].in_text = len(net.layers) == 3
        bn(net, "bn", "c", "y")
        before = len(compared)
        assert caffe_fold.fold(*net.write(tmp_path)).left == 0
        assert len(compared) - before <= 4 * count


def test_copies_of_a_shared_blob_are_compared_once_each(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compared = counted(monkeypatch, Caffemodel, "same_values")
    caffe_fold.fold(*siamese(100).write(tmp_path))
    assert len(compared) <= 2 * 100
