"""The straightforward way to fold, which bench.py compares with: protobuf and NumPy alone.

    python -m scripts.bench_straightforward WEIGHTS OUTPUT

The weights are parsed as a whole, each BatchNorm and the Scale behind it are folded into the
Convolution before them in the file, and the rest is serialised. It is right for the nets of
bench.py, which have their layers in this order and the default eps; it does no prototxt and
checks nothing.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from caffe_fold import caffe_pb2

Array = npt.NDArray[np.float32]

_EPS = 1e-5


def values(blob: caffe_pb2.BlobProto) -> Array:
    return np.array(blob.data, dtype=np.float32)


def affine(behind: Sequence[caffe_pb2.LayerParameter]) -> tuple[Array, Array] | None:
    """The BatchNorm and Scale that these layers begin with, as a gain and a shift."""
    if not behind or behind[0].type != "BatchNorm":
        return None
    mean, variance, factor = map(values, behind[0].blobs)
    gain = 1 / np.sqrt(variance / factor + np.float32(_EPS))
    shift = -mean / factor * gain
    if behind[1].type == "Scale":
        gamma, beta = map(values, behind[1].blobs)
        gain, shift = gain * gamma, shift * gamma + beta
    return gain, shift


def change(layer: caffe_pb2.LayerParameter, gain: Array, shift: Array) -> None:
    """Each channel of the layer's outputs, times ``gain`` and plus ``shift``."""
    weight = layer.blobs[0]
    folded = values(weight).reshape(len(gain), -1) * gain[:, None]
    weight.data[:] = folded.ravel().tolist()
    if len(layer.blobs) == 1:
        layer.blobs.add().shape.dim.append(len(gain))
    elif len(layer.blobs) == 2:
        shift = values(layer.blobs[1]) * gain + shift
    layer.blobs[1].data[:] = shift.tolist()


def fold(net: caffe_pb2.NetParameter) -> None:
    removed = set()
    for index, layer in enumerate(net.layer):
        found = affine(net.layer[index + 1 : index + 3])
        if layer.type == "Convolution" and found is not None:
            change(layer, *found)
            removed |= {index + 1, index + 2}
    for index in sorted(removed, reverse=True):
        if net.layer[index].type in ("BatchNorm", "Scale"):
            del net.layer[index]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("weights", type=Path)
    parser.add_argument("output", type=Path)
    given = parser.parse_args()
    net = caffe_pb2.NetParameter()
    net.ParseFromString(given.weights.read_bytes())
    fold(net)
    given.output.write_bytes(net.SerializeToString())


if __name__ == "__main__":
    main()
