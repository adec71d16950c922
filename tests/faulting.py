"""A net's files and the pairs that folds make of them, for tests of what goes wrong between."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from support.nets import Net

import caffe_fold

NAMES = ("out.prototxt", "out.caffemodel")


def written_net(folder: Path) -> Path:
    """Write a net that folds, with an InnerProduct that is copied; give its folder."""
    net = Net()
    net.input("data", (1, 8, 4, 4))
    net.conv("conv", "data", 8, 64, 3)
    net.batch_norm("bn", "conv", 64, top="bn")
    net.relu("relu", "bn", top="relu")
    net.inner_product("fc", "relu", 256, 4000)
    net.write(folder)
    return folder


def outputs(folder: Path) -> tuple[bytes | None, bytes | None]:
    """The bytes of both outputs, None for one that is not there."""
    model, weights = (folder / name for name in NAMES)
    return tuple(p.read_bytes() if p.exists() else None for p in (model, weights))  # type: ignore[return-value]


def folded(folder: Path, **options: Any) -> tuple[bytes | None, bytes | None]:
    files = [folder / name for name in ("net.prototxt", "net.caffemodel", *NAMES)]
    caffe_fold.fold(*files, **options)
    return outputs(folder)


def both_ways(folder: Path) -> list[tuple[bytes | None, bytes | None]]:
    """What two runs with different options write; neither file is alike."""
    pairs = [folded(folder, keep=["conv"]), folded(folder)]
    assert pairs[0][0] != pairs[1][0]
    assert pairs[0][1] != pairs[1][1]
    return pairs


def start(code: str, folder: Path, *arguments: str) -> subprocess.Popen[str]:
    files = [str(folder / name) for name in ("net.prototxt", "net.caffemodel", *NAMES)]
    root = str(Path(caffe_fold.__file__).parents[1])
    return subprocess.Popen(
        [sys.executable, "-c", code, *files, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": root},
    )


def check(folder: Path, pairs: list[tuple[bytes | None, bytes | None]]) -> None:
    found = outputs(folder)
    weights_alone = [(None, pair[1]) for pair in pairs]
    # While the prototxt is away, the weights may be those of before, too.
    assert found in pairs or found in weights_alone, "files of two runs side by side"
