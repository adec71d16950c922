"""Folds one small net many times in one process, and shows that nothing is left behind.

    python scripts/soak.py --folds 10000

Prints resident memory and open files as it goes. Exits with 1 if memory grew by more than
a megabyte from a tenth of the way on, or if a file stayed open. Needs Linux's /proc.
"""

from __future__ import annotations

import argparse
import math
import os
import sys
import tempfile
from pathlib import Path

import caffe_fold
from caffe_fold import caffe_pb2

MIB = 1 << 20


def resident() -> int:
    """Resident memory of this process, in bytes."""
    pages = Path("/proc/self/statm").read_text().split()[1]
    return int(pages) * os.sysconf("SC_PAGE_SIZE")


def open_files() -> int:
    """How many descriptors are open."""
    return len(os.listdir("/proc/self/fd"))


TEXT = """
input: "data"
input_shape { dim: 1 dim: 16 dim: 8 dim: 8 }
layer {
  name: "conv" type: "Convolution" bottom: "data" top: "conv"
  convolution_param { num_output: 16 kernel_size: 3 bias_term: false }
}
layer { name: "bn" type: "BatchNorm" bottom: "conv" top: "conv" }
layer { name: "scale" type: "Scale" bottom: "conv" top: "conv" scale_param { bias_term: true } }
"""
BLOBS = {
    "conv": ([16, 16, 3, 3],),
    "bn": ([16], [16], [1]),
    "scale": ([16], [16]),
}


def write_net(folder: Path) -> tuple[Path, Path]:
    """A convolution with a BatchNorm and a Scale, all of whose numbers are 1."""
    model, weights = folder / "net.prototxt", folder / "net.caffemodel"
    model.write_text(TEXT)
    net = caffe_pb2.NetParameter()
    for name, shapes in BLOBS.items():
        layer = net.layer.add(name=name)
        for shape in shapes:
            blob = layer.blobs.add(data=[1.0] * math.prod(shape))
            blob.shape.dim.extend(shape)
    weights.write_bytes(net.SerializeToString())
    return model, weights


def soak(folds: int, folder: Path) -> int:
    """Fold so many times, each tenth time a file that is refused; gives the exit code."""
    model, weights = write_net(folder)
    broken = folder / "broken.caffemodel"
    broken.write_bytes(weights.read_bytes()[:-100])
    start = (resident(), open_files())
    print("   folds    MiB  files")
    for count in range(1, folds + 1):
        caffe_fold.fold(model, weights)
        if count % 10 == 0:
            try:
                caffe_fold.fold(model, broken)
            except caffe_fold.CaffemodelError:
                pass
            else:
                raise AssertionError("a truncated file was folded")
        if count == max(folds // 10, 1):
            start = (resident(), open_files())
        if count % max(folds // 20, 1) == 0:
            print(f"{count:8} {resident() / MIB:6.1f} {open_files():6}", flush=True)
    grown, left = resident() - start[0], open_files() - start[1]
    print(f"memory grew by {grown / MIB:.2f} MiB over the last nine tenths; {left} files stay open")
    return 1 if grown > MIB or left else 0


def main() -> int:
    """Read the arguments and run."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--folds", type=int, default=10_000)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        return soak(arguments.folds, Path(folder))


if __name__ == "__main__":
    sys.exit(main())
