"""Peak memory does not grow with the model."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from support.nets import Net
from support.wire import number, run, varint

from caffe_fold import fold

pytestmark = pytest.mark.slow

MB = 1 << 20


def many_layers(floats: int) -> Net:
    """Layers of 0.5 MB each, folded behind and before, and others that are copied."""
    net = Net("many")
    net.input("data", (1, 64, 4, 4))
    bottom = "data"
    for index in range(max(1, floats // (3 * 131_072))):
        net.batch_norm(f"bn{index}", bottom, 256, top=f"bn{index}")
        net.conv(f"a{index}", f"bn{index}", 256, 512, 1, bias=False)
        net.batch_norm(f"bna{index}", f"a{index}", 512)
        net.relu(f"relu{index}", f"a{index}")
        net.conv(f"b{index}", f"a{index}", 512, 256, 1)
        net.relu(f"relub{index}", f"b{index}")
        blob = np.zeros(131_072)
        net.layer(f"c{index}", "Embed", [f"b{index}"], [f"c{index}"], blobs=[blob])
        bottom = f"c{index}"
    return net


def one_big_layer(floats: int) -> Net:
    net = Net("big")
    net.input("data", (1, 64, 4, 4))
    count = 512
    width = floats // count
    net.inner_product("ip", "data", width, count, bias=False)
    net.batch_norm("bn", "ip", count)
    net.scale("scale", "ip", count)
    return net


def one_big_transposed_layer(floats: int) -> Net:
    net = Net("transposed")
    net.input("data", (1, 64, 4, 4))
    net.batch_norm("bn", "data", 64, top="bn")
    net.inner_product("ip", "bn", floats // 512, 512, transpose=True)
    return net


def one_big_deconvolution(floats: int) -> Net:
    net = Net("deconvolution")
    net.input("data", (1, 256, 4, 4))
    net.deconv("up", "data", 256, floats // 256 // 16, 4, group=1)
    net.batch_norm("bn", "up", floats // 256 // 16)
    return net


def copied_values(floats: int) -> Net:
    net = one_big_layer(MB // 4)
    net.layer("copied", "Embed", ["ip"], ["e"], blobs=[np.zeros(floats)])
    return net


def peak_of(net: Net, folder: Path, more: bytes = b"") -> tuple[int, int]:
    """The weights' size, and the most that was allocated at once to fold them.

    ``more`` goes behind the net's own weights.
    """
    folder.mkdir()
    files = net.write(folder)
    with files[1].open("ab") as weights:
        weights.write(more)
    net.layers.clear()
    tracemalloc.start()
    report = fold(*files)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert report.checked is not None
    assert report.folded
    return report.before.weights_bytes, peak


@pytest.mark.parametrize(
    ("build", "megabytes"),
    [
        (many_layers, (8, 32)),
        (one_big_layer, (8, 32)),
        (one_big_transposed_layer, (8, 24)),
        (one_big_deconvolution, (8, 24)),
        (copied_values, (8, 32)),
    ],
)
def test_a_net_many_times_as_big_takes_no_more(
    build: Callable[[int], Net], megabytes: tuple[int, int], tmp_path: Path
) -> None:
    peak_of(build(MB // 4), tmp_path / "warm")  # what is imported or built once
    nets = [build(size * MB // 4) for size in megabytes]
    layers = [len(net.layers) for net in nets]
    small_size, small = peak_of(nets[0], tmp_path / "small")
    big_size, big = peak_of(nets[1], tmp_path / "big")
    assert (small_size > 7 * MB, big_size > 0.9 * megabytes[1] * MB) == (True, True)
    assert big < 16 * MB
    # What is known of a layer, with its vectors, does count, at some kB each.
    more_layers = layers[1] - layers[0]
    assert big < small + 2 * MB + 16_000 * more_layers


def unpacked_entry(name: str, rows: int, columns: int) -> bytes:
    """A layer's entry whose one blob has a tag before each value."""
    values = np.zeros(rows * columns, [("tag", "u1"), ("value", "<f4")])
    values["tag"] = 5 << 3 | 5
    values["value"] = np.arange(values.size) % 7
    shape = run(7, run(1, varint(rows) + varint(columns)))
    return run(100, run(1, name.encode()) + run(7, shape + values.tobytes() + number(14, 1)))


def test_values_that_are_not_packed_take_no_more(tmp_path: Path) -> None:
    peaks: list[int] = []
    for megas in (2, 2, 8):
        net = one_big_layer(MB // 4)
        net.layers[1].in_weights = False
        folder = tmp_path / str(len(peaks))
        more = unpacked_entry("ip", 512, megas * MB // 512)
        peaks.append(peak_of(net, folder, more)[1])
    assert peaks[2] < peaks[1] + 2 * MB
