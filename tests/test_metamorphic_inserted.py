"""Layers that change nothing, put into random small nets, change nothing of what comes out."""

from __future__ import annotations

import copy
import re
import tempfile
from pathlib import Path

import numpy as np
import pytest
from folding import fold_net, outputs
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from random_nets import RandomNet, nets
from support.compare import differ
from support.evaluate import Evaluator
from support.nets import Net, NetLayer

import caffe_fold

pytestmark = pytest.mark.any_version

QUICK = settings(
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
IDENTITIES = ("Power", "Scale", "Dropout", "Split", "Power in place", "Dropout in place")


def inserted(net: Net, at: int, kind: str) -> Net:
    """A copy of a net with an identity layer behind a layer with one top: in place, or with
    a top ``above`` that stands for the layer's own in all that follows."""
    made = copy.deepcopy(net)
    below = made.layers[at].tops[0]
    above = below if kind.endswith("in place") else "above"
    for layer in made.layers[at + 1 :]:
        layer.text = layer.text.replace(f': "{below}"\n', f': "{above}"\n')
        layer.bottoms = [above if name == below else name for name in layer.bottoms]
        layer.tops = [above if name == below else name for name in layer.tops]
    identity = _identity(made, kind.split()[0], below, above, net, at)
    made.layers.insert(at + 1, made.layers.pop(made.layers.index(identity)))
    return made


def _identity(made: Net, kind: str, below: str, above: str, net: Net, at: int) -> NetLayer:
    if kind == "Power":
        return made.power("identity", below, 1.0, 0.0, 1.0, above)
    if kind == "Scale":
        layer = made.scale("identity", below, _channels(net, at), above)
        layer.blobs = [np.ones_like(layer.blobs[0]), np.zeros_like(layer.blobs[1])]
        layer.format = copy.copy(net.layers[-1].format)
        return layer
    return made.layer("identity", kind, below, above)


def _channels(net: Net, at: int) -> int:
    """How many channels the first top of a layer has."""
    with tempfile.TemporaryDirectory() as folder:
        values = Evaluator(*net.write(Path(folder))).run(net.inputs())
    layer = net.layers[at]
    return int(values.tops[layer.name, layer.tops[0]].shape[1])


@pytest.mark.parametrize("kind", IDENTITIES)
@settings(QUICK, max_examples=8)
@given(nets(), st.data())
def test_an_identity_changes_nothing(kind: str, one: RandomNet, data: st.DataObject) -> None:
    """``fold_net`` judges the net with it; its values are those of the net without it."""
    net = one.net
    at = data.draw(st.integers(0, len(net.layers) - 1))
    changed = inserted(net, at, kind)
    with tempfile.TemporaryDirectory() as folder:
        done = fold_net(changed, Path(folder), tolerance=1e-9)
        plain = Evaluator(*net.write(Path(folder), "plain")).run(net.inputs())
    below = net.layers[at].tops[0]
    for name in outputs(done.new_net):
        wanted = plain.blobs[below if name == "above" else name]
        assert differ(name, wanted, done.after.blobs[name]).relative <= 1e-9
    if kind == "Power":
        assert done.types["BatchNorm"] <= _folded_types(net)["BatchNorm"]


def _folded_types(net: Net) -> dict[str, int]:
    with tempfile.TemporaryDirectory() as folder:
        model, weights = net.write(Path(folder))
        report = caffe_fold.fold(model, weights, dry_run=True)
    return {"BatchNorm": report.after.by_type.get("BatchNorm", 0)}


# ---- Twins for training ----

TRAIN, TEST = "  include { phase: TRAIN }\n", "  include { phase: TEST }\n"


def with_twins(net: Net) -> Net:
    """A copy of a net in which each layer with a bottom has a twin for training."""
    made = copy.deepcopy(net)
    made.layers = [twin for layer in made.layers for twin in _twins(layer)]
    return made


def _twins(layer: NetLayer) -> list[NetLayer]:
    if not layer.bottoms:
        return [layer]
    train = copy.copy(layer)
    train.in_weights = False
    head, _, _ = layer.text.rpartition("}\n")
    train.text = f"{head.replace('use_global_stats: true', '')}{TRAIN}}}\n"
    layer.text = f"{head}{TEST}}}\n"
    return [train, layer]


@settings(QUICK, max_examples=25)
@given(nets())
def test_twins_for_training_make_no_difference(one: RandomNet) -> None:
    text, weights = _folded(one.net)
    twice, same_weights = _folded(with_twins(one.net))
    assert same_weights == weights
    assert _without_twins(twice) == text
    kept = set(re.findall(r'name: "(\w+)"', text))
    twins = [block for block in twice.split("layer {\n") if TRAIN in block]
    assert {re.findall(r'name: "(\w+)"', block)[0] for block in twins} <= kept


def _folded(net: Net) -> tuple[str, bytes]:
    with tempfile.TemporaryDirectory() as folder:
        model, weights = net.write(Path(folder))
        caffe_fold.fold(model, weights)
        new = Path(folder, "net_inference.prototxt")
        return new.read_text(), new.with_suffix(".caffemodel").read_bytes()


def _without_twins(text: str) -> str:
    blocks = text.split("layer {\n")
    return "layer {\n".join(block for block in blocks if TRAIN not in block).replace(TEST, "")
