"""Makes the nets that bench.py measures: real topologies, made weights.

    python -m scripts.bench_nets NAME FOLDER [--tiny]

leaves ``NAME.prototxt`` and ``NAME.caffemodel`` in FOLDER. The nets are those that real Caffe
loads. The weights are one random block over and over, scaled as training leaves them, and are
never in memory as a whole. mobilenet_ssd is the net of ``caffe-fold demo``.
"""

from __future__ import annotations

import argparse
import math
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

# NumPy and caffe_fold are imported where a net is written: bench.py imports this module for the
# nets' names and sizes, and must stay small.

__all__ = ["FIT_SIZES", "MADE", "fit_net", "layers_of", "size_of"]

FIT_SIZES = (1, 4, 16, 64, 250, 500, 1000, 2000)
"""The nets of the fit, by MB of weights."""

_BLOCK = 262_139  # floats; a prime, so that no two filters of a blob begin alike
_FACTOR = 999.98236  # nearly 1000, the limit of a moving average with 0.999


@dataclass(frozen=True)
class Blob:
    """A blob that is still to be drawn: random values around ``middle``.

    ``positive`` ones lie between half and one and a half of ``middle``.
    """

    shape: tuple[int, ...]
    middle: float = 0.0
    spread: float = 0.0
    positive: bool = False


@dataclass(frozen=True)
class Layer:
    """One layer: ``text`` is what stands behind its tops in the prototxt."""

    name: str
    type: str
    bottoms: tuple[str, ...]
    tops: tuple[str, ...]
    text: str = ""
    blobs: tuple[Blob, ...] = ()


# ---- The layers of Caffe ----


def _input(channels: int, pixels: int) -> Layer:
    shape = f"dim: 1 dim: {channels} dim: {pixels} dim: {pixels}"
    return Layer("data", "Input", (), ("data",), f"input_param {{ shape {{ {shape} }} }}")


def _linear(shape: tuple[int, ...]) -> Blob:
    """He et al., arXiv:1502.01852: variance 2 / fan-in keeps the signal through a ReLU."""
    return Blob(shape, spread=math.sqrt(2.0 / math.prod(shape[1:])))


def _conv_bn(
    name: str, bottom: str, channels: tuple[int, int], kernel: int, stride: int = 1
) -> Iterator[Layer]:
    """A Convolution from ``channels[0]`` to ``channels[1]``, BatchNorm and Scale in place."""
    count = channels[1]
    parts = [f"num_output: {count}", "bias_term: false", f"kernel_size: {kernel}"]
    parts += [f"pad: {kernel // 2}"] * (kernel > 1) + [f"stride: {stride}"] * (stride > 1)
    text = f"convolution_param {{ {' '.join(parts)} }}"
    weight = _linear((count, channels[0], kernel, kernel))
    yield Layer(name, "Convolution", (bottom,), (name,), text, (weight,))
    mean = Blob((count,), spread=0.3 * _FACTOR)
    # About what these weights bring about behind a ReLU.
    variance = Blob((count,), 2.0 * _FACTOR, positive=True)
    statistics = (mean, variance, Blob((1,), _FACTOR))
    yield Layer(f"{name}_bn", "BatchNorm", (name,), (name,), blobs=statistics)
    gain = (Blob((count,), 1.0, positive=True), Blob((count,), spread=0.2))
    bias = "scale_param { bias_term: true }"
    yield Layer(f"{name}_scale", "Scale", (name,), (name,), bias, gain)


def _relu(blob: str) -> Layer:
    return Layer(f"{blob}_relu", "ReLU", (blob,), (blob,))


def _pool(name: str, bottom: str, text: str) -> Layer:
    return Layer(name, "Pooling", (bottom,), (name,), f"pooling_param {{ {text} }}")


def _inner_product(name: str, bottom: str, inputs: int, outputs: int) -> Layer:
    text = f"inner_product_param {{ num_output: {outputs} }}"
    blobs = (_linear((outputs, inputs)), Blob((outputs,), spread=0.1))
    return Layer(name, "InnerProduct", (bottom,), (name,), text, blobs)


def _softmax(bottom: str) -> Layer:
    return Layer("prob", "Softmax", (bottom,), ("prob",))


# ---- The nets ----


def _resnet50(part: int) -> Iterator[Layer]:
    """He et al., arXiv:1512.03385, table 1, of ``1 / part`` of its width: 53 convolutions."""
    yield _input(3, 224)
    channels = 64 // part
    yield from _conv_bn("conv1", "data", (3, channels), 7, 2)
    yield _relu("conv1")
    yield _pool("pool1", "conv1", "pool: MAX kernel_size: 3 stride: 2")
    bottom = "pool1"
    for stage, (blocks, narrow) in enumerate(((3, 64), (4, 128), (6, 256), (3, 512)), start=2):
        for block in range(blocks):
            stride = 2 if stage > 2 and block == 0 else 1
            sizes = (channels, narrow // part, 4 * narrow // part)
            name = f"res{stage}{chr(ord('a') + block)}"
            yield from _bottleneck(name, bottom, sizes, stride, project=block == 0)
            bottom, channels = name, sizes[2]
    yield _pool("pool5", bottom, "pool: AVE global_pooling: true")
    yield _inner_product("fc1000", "pool5", channels, 1000 // part)
    yield _softmax("fc1000")


def _bottleneck(
    name: str, bottom: str, sizes: tuple[int, int, int], stride: int, project: bool
) -> Iterator[Layer]:
    """Three convolutions, and the sum with what came in."""
    inputs, narrow, outputs = sizes
    shortcut = bottom
    if project:
        shortcut = f"{name}_branch1"
        yield from _conv_bn(shortcut, bottom, (inputs, outputs), 1, stride)
    a, b, c = (f"{name}_branch2{letter}" for letter in "abc")
    yield from _conv_bn(a, bottom, (inputs, narrow), 1, stride)
    yield _relu(a)
    yield from _conv_bn(b, a, (narrow, narrow), 3)
    yield _relu(b)
    yield from _conv_bn(c, b, (narrow, outputs), 1)
    yield Layer(name, "Eltwise", (shortcut, c), (name,))
    yield _relu(name)


def _vgg16_bn(part: int, hidden: tuple[int, int] = (4096, 4096)) -> Iterator[Layer]:
    """Simonyan and Zisserman, arXiv:1409.1556, column D, a BatchNorm behind each convolution."""
    yield _input(3, 224)
    bottom, channels = "data", 3
    for stage, (convs, full) in enumerate(((2, 64), (2, 128), (3, 256), (3, 512), (3, 512)), 1):
        for index in range(1, convs + 1):
            name = f"conv{stage}_{index}"
            yield from _conv_bn(name, bottom, (channels, full // part), 3)
            yield _relu(name)
            bottom, channels = name, full // part
        yield _pool(f"pool{stage}", bottom, "pool: MAX kernel_size: 2 stride: 2")
        bottom = f"pool{stage}"
    inputs = channels * 7 * 7
    for name, outputs in (("fc6", hidden[0] // part), ("fc7", hidden[1] // part)):
        yield _inner_product(name, bottom, inputs, outputs)
        yield _relu(name)
        bottom, inputs = name, outputs
    yield _inner_product("fc8", bottom, inputs, 1000 // part)
    yield _softmax("fc8")


def _wide(part: int) -> Iterator[Layer]:
    """VGG-16 BN with InnerProducts of 2.5 GB, beyond the 2 GiB that protobuf reads."""
    yield from _vgg16_bn(part, (13312, 20000))


def _chain(channels: int) -> Iterator[Layer]:
    """16 convolutions of one width, each with its BatchNorm and Scale: nothing is only copied."""
    yield _input(3, 32)
    bottom, inputs = "data", 3
    for index in range(16):
        yield from _conv_bn(f"conv{index}", bottom, (inputs, channels), 3)
        yield _relu(f"conv{index}")
        bottom, inputs = f"conv{index}", channels


MADE: dict[str, Callable[[int], Iterator[Layer]]] = {
    "resnet50": _resnet50,
    "vgg16_bn": _vgg16_bn,
    "wide_2500mb": _wide,
}
"""The nets by name, as their layers for one part of the width of all their blobs."""


def fit_net(megabytes: int) -> str:
    """The name of the fit's net of a size."""
    return f"fit_{megabytes}mb"


def layers_of(name: str, tiny: bool = False) -> list[Layer]:
    """The layers of a net; ``tiny`` for one of a sixteenth of the width."""
    part = 16 if tiny else 1
    for megabytes in FIT_SIZES:
        if name == fit_net(megabytes):
            return list(_chain(round(math.sqrt(megabytes * 1e6 / (4 * 9 * 15)) / part)))
    return list(MADE[name](part))


def size_of(name: str, tiny: bool = False) -> int:
    """Bytes of the weights of a net, its names not counted."""
    return sum(4 * math.prod(b.shape) for layer in layers_of(name, tiny) for b in layer.blobs)


# ---- The files ----


def _layer_text(layer: Layer) -> str:
    lines = [f'name: "{layer.name}"', f'type: "{layer.type}"']
    lines += [f'bottom: "{bottom}"' for bottom in layer.bottoms]
    lines += [f'top: "{top}"' for top in layer.tops]
    lines += [layer.text] if layer.text else []
    return "layer {\n" + "".join(f"  {line}\n" for line in lines) + "}\n"


def _write_layer(target: IO[bytes], layer: Layer, block: Any) -> None:
    """The field ``layer`` of a NetParameter, whose lengths stand before what is yet to come."""
    from caffe_fold import caffe_pb2
    from caffe_fold.weights.wire import LENGTH, tag_bytes, varint_bytes

    net, param, proto = caffe_pb2.NetParameter, caffe_pb2.LayerParameter, caffe_pb2.BlobProto
    head = param(name=layer.name, type=layer.type, bottom=layer.bottoms, top=layer.tops)
    start = head.SerializeToString()
    heads = []
    for blob in layer.blobs:
        size = 4 * math.prod(blob.shape)
        shape = proto(shape=caffe_pb2.BlobShape(dim=blob.shape)).SerializeToString()
        data = shape + tag_bytes(proto.DATA_FIELD_NUMBER, LENGTH) + varint_bytes(size)
        field = tag_bytes(param.BLOBS_FIELD_NUMBER, LENGTH) + varint_bytes(len(data) + size)
        heads.append(field + data)
    length = len(start) + sum(map(len, heads))
    length += sum(4 * math.prod(blob.shape) for blob in layer.blobs)
    target.write(tag_bytes(net.LAYER_FIELD_NUMBER, LENGTH) + varint_bytes(length) + start)
    for blob, blob_head in zip(layer.blobs, heads):
        target.write(blob_head)
        _write_values(target, blob, block)


def _write_values(target: IO[bytes], blob: Blob, block: Any) -> None:
    import numpy as np

    values = np.tanh(block) * (blob.middle / 2) if blob.positive else block * blob.spread
    data = memoryview((values + blob.middle).astype("<f4")).cast("B")
    left = 4 * math.prod(blob.shape)
    while left:
        left -= target.write(data[:left])


def write(name: str, folder: Path, tiny: bool) -> None:
    """A net's two files."""
    import numpy as np

    layers = layers_of(name, tiny)
    block = np.random.default_rng(0).standard_normal(_BLOCK, np.float32)
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / f"{name}.caffemodel").open("wb") as target:
        for layer in layers:
            _write_layer(target, layer, block)
        target.flush()
        # The disk would be busy with it later, while something is measured.
        os.fsync(target.fileno())
    text = f'name: "{name}"\n' + "".join(map(_layer_text, layers))
    (folder / f"{name}.prototxt").write_text(text, "utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("name")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--tiny", action="store_true", help="a sixteenth of the width")
    given = parser.parse_args()
    if given.name == "mobilenet_ssd":
        from caffe_fold.demo import write_demo

        write_demo(given.folder)
    else:
        write(given.name, given.folder, given.tiny)


if __name__ == "__main__":
    main()
