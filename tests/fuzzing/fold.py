"""The target ``fold``: a whole fold of a mutated pair, from files to files.

Whatever comes in: the inputs stay as they are, and nothing lies beside them but the two
outputs, or no output at all after a refusal. What was written is read by protobuf, folds
no further, and computes what the original does, by the evaluator of the tests.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import struct
import tempfile
from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

import numpy as np
from google.protobuf.message import DecodeError
from support import compare
from support.evaluate import Evaluation, Evaluator
from support.judge import fold_points
from support.netdef import NetError
from support.nets import Array
from support.prototext import ProtoTextError

import caffe_fold
from caffe_fold import Report, caffe_pb2
from caffe_fold.errors import CheckError

from . import mutate_text, mutate_wire
from .outcome import Finding, require_line
from .seeds import Seed, made

__all__ = ["Case", "again", "case", "check", "corpus", "from_bytes", "seeds"]

TOLERANCE = 1e-4


class Case(NamedTuple):
    """A pair of files, values for the net's inputs, and options."""

    text: bytes
    weights: bytes
    inputs: dict[str, Array]
    options: dict[str, Any]


@functools.cache
def seeds() -> tuple[Seed, ...]:
    """The nets that are mutated."""
    return made()


def case(rng: Random, pool: Sequence[bytes] = ()) -> Case:
    """A pair of which the text, the weights or both are mutated."""
    seed = rng.choice(seeds())
    text, weights = seed.text, seed.weights
    what = rng.randrange(5)
    if what < 3:
        text = mutate_text.mutated(text, rng, _texts())
    if what > 1:
        weights = mutate_wire.mutated(weights, rng, _weights())
    return Case(text, weights, seed.inputs, _options(rng, seed))


@functools.cache
def _texts() -> tuple[bytes, ...]:
    return tuple(seed.text for seed in seeds())


@functools.cache
def _weights() -> tuple[bytes, ...]:
    return tuple(seed.weights for seed in seeds())


def _options(rng: Random, seed: Seed) -> dict[str, Any]:
    """None, mostly."""
    if rng.random() < 0.7:
        return {}
    return rng.choice(
        (
            {"keep": [rng.choice(sorted(seed.inputs))]},
            {"engine_caffe": True},
            {"allow_extra_weights": True},
            {"check": False},
            {"dry_run": True},
            {"weights_dtype": rng.choice(("float16", "float32", "float64"))},
            {"deploy": True},
            {"stages": ["x"]},
        )
    )


# ---- The check ----


def check(one: Case) -> str:
    """Fold a case.

    :raises Finding: for whatever must not be.
    :raises caffe_fold.CaffeFoldError: where the fold refuses, as it may.
    """
    with tempfile.TemporaryDirectory(dir=_memory()) as name:
        folder = Path(name)
        model, weights = folder / "net.prototxt", folder / "net.caffemodel"
        model.write_bytes(one.text)
        weights.write_bytes(one.weights)
        written = 0
        try:
            report = caffe_fold.fold(model, weights, threads=1, **one.options)
            written = 2 * report.written
            _require_readable(report)
        except CheckError as error:  # the plan or the writing is wrong, whatever the input is
            raise Finding(f"CheckError: {error}") from error
        finally:
            _require_files(folder, one, written)
        if not written:
            return "planned"
        return _compare(one, folder, report)


@functools.cache
def _memory() -> str | None:
    """A folder in memory, where there is one: a million files need no disk."""
    return "/dev/shm" if os.path.isdir("/dev/shm") else None


def _require_files(folder: Path, one: Case, written: int) -> None:
    """The inputs are as they were, and there is nothing but the outputs beside them."""
    names = sorted(path.name for path in folder.iterdir())
    wanted = ["net.caffemodel", "net.prototxt"]
    if written:
        wanted += ["net_inference.caffemodel", "net_inference.prototxt"]
    if names != wanted:
        raise Finding(f"the folder holds {names}; expected {wanted}")
    if (folder / "net.prototxt").read_bytes() != one.text:
        raise Finding("the input prototxt changed")
    if (folder / "net.caffemodel").read_bytes() != one.weights:
        raise Finding("the input weights changed")


def _require_readable(report: Report) -> None:
    """The report is printable lines, and JSON."""
    for line in report.to_text().splitlines():
        require_line(line)
    for note in report.warnings:
        require_line(note.message)
    json.dumps(report.to_dict(), allow_nan=False).encode()


# ---- The values ----


def _compare(one: Case, folder: Path, report: Report) -> str:
    old = Pair(folder / "net.prototxt", folder / "net.caffemodel")
    new = Pair(folder / "net_inference.prototxt", folder / "net_inference.caffemodel")
    _require_parsed(old, new)
    if one.options.get("deploy"):
        return "deployed"
    stages = one.options.get("stages", ())
    before = _evaluated(old, one, stages)
    if before is None:
        return "folded, not evaluated"
    after = _evaluated(new, one, stages)
    if after is None:
        raise Finding("the evaluator reads the original and not what was written")
    worst = _worst(before, after, report)
    if worst is None:
        return "folded"
    if not _is_rounding(worst, old, one, before):
        raise Finding(f"computes something else: {worst}")
    return "folded, by rounding"


class Pair(NamedTuple):
    """A prototxt and its weights."""

    model: Path
    weights: Path


def _require_parsed(old: Pair, new: Pair) -> None:
    """What protobuf reads before it reads afterwards."""
    if _parses(old.weights) and not _parses(new.weights):
        raise Finding("protobuf parses the original weights and not the folded ones")


def _parses(path: Path) -> bool:
    try:
        caffe_pb2.NetParameter.FromString(path.read_bytes())
    except DecodeError:
        return False
    return True


def _evaluated(pair: Pair, one: Case, stages: Sequence[str]) -> Evaluation | None:
    """The values of a net, as far as they can be had; None where Caffe would abort."""
    try:
        with np.errstate(all="ignore"):
            return Evaluator(pair.model, pair.weights, stages).run(one.inputs, lenient=True)
    except (NetError, ProtoTextError, ArithmeticError, ValueError, TypeError, LookupError):
        return None
    # The evaluator's own reader recurses, and it fills blobs of any size.
    except (RecursionError, MemoryError, DecodeError):
        return None


def _worst(before: Evaluation, after: Evaluation, report: Report) -> compare.Difference | None:
    """The largest difference, if it is too large."""
    found = compare.compare_pair(before, after, fold_points(report))
    for name in _outputs(before) & before.blobs.keys():
        if name not in after.blobs:
            raise Finding(f"the output {name!r} is gone")
        found.append(compare.differ(name, before.blobs[name], after.blobs[name]))
    bad = [one for one in found if not one.relative <= TOLERANCE]
    return max(bad, key=lambda one: one.relative, default=None)


def _outputs(result: Evaluation) -> set[str]:
    unread: set[str] = set()
    for layer in result.net.layers if result.net else ():
        unread.difference_update(layer.bottoms)
        unread.update(layer.tops)
    return unread


def _is_rounding(worst: compare.Difference, old: Pair, one: Case, before: Evaluation) -> bool:
    """Whether a difference is no larger than what rounding the weights makes of it: then
    the net itself multiplies errors, as one with huge values that cancel does."""
    rng = np.random.default_rng(0)
    net = caffe_pb2.NetParameter.FromString(one.weights)
    half = one.options.get("weights_dtype") == "float16" or any(
        blob.raw_data_type == caffe_pb2.BlobProto.FLOAT16 for blob in _blobs(net)
    )
    path = old.weights.with_name("shaken.caffemodel")
    largest = 0.0
    for _ in range(3):
        path.write_bytes(_shaken(one.weights, rng, 5e-4 if half else 6e-8))
        other = _evaluated(Pair(old.model, path), one, one.options.get("stages", ()))
        if other is None:
            return False
        found = [item.relative for item in compare.compare_pair(before, other)]
        largest = max([largest, *found])
    return not np.isfinite(largest) or worst.relative <= 100 * largest


def _shaken(data: bytes, rng: np.random.Generator, by: float) -> bytes:
    """Weights of which each differs a little."""

    def shaken(values: Any) -> Array:
        with np.errstate(all="ignore"):
            array = np.asarray(values, np.float64)
            return array * (1 + by * rng.uniform(-1, 1, array.size))

    net = caffe_pb2.NetParameter.FromString(data)
    for blob in _blobs(net):
        dtype = {0: "<f8", 1: "<f4", 2: "<f2"}.get(blob.raw_data_type)
        if blob.raw_data and dtype and len(blob.raw_data) % int(dtype[2]) == 0:
            blob.double_data[:] = shaken(np.frombuffer(blob.raw_data, dtype)).tolist()
            blob.ClearField("raw_data")
        else:
            blob.double_data[:] = shaken(blob.double_data).tolist()
        with np.errstate(all="ignore"):
            blob.data[:] = shaken(blob.data).astype(np.float32).tolist()
    return net.SerializeToString()


def _blobs(net: Any) -> list[Any]:
    return [blob for layers in (net.layer, net.layers) for layer in layers for blob in layer.blobs]


# ---- For a fuzzer that keeps cases as bytes ----


def again(data: bytes, rng: Random) -> bytes:
    """A case mutated further, in its text or in its weights."""
    one = from_bytes(data)
    text, weights = one.text, one.weights
    if rng.random() < 0.5:
        text = mutate_text.mutated(text, rng, _texts())
    else:
        with contextlib.suppress(ValueError, IndexError):  # it is no whole file any more
            weights = mutate_wire.mutated(weights, rng, _weights())
    return _to_bytes(text, weights)


def from_bytes(data: bytes) -> Case:
    """The case that bytes stand for, without options."""
    (size,) = struct.unpack("<I", data[:4].ljust(4, b"\0"))
    inputs: dict[str, Array] = {}
    for seed in seeds():
        inputs.update(seed.inputs)
    return Case(data[4 : 4 + size], data[4 + size :], inputs, {})


def _to_bytes(text: bytes, weights: bytes) -> bytes:
    return struct.pack("<I", len(text)) + text + weights


def corpus() -> list[bytes]:
    """What to start from."""
    return [_to_bytes(seed.text, seed.weights) for seed in seeds()]
