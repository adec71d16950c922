"""A type is what its entry says: under a name that nothing else knows it is the same type."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from deploying import CROP, data, deploy
from support.nets import Net

import caffe_fold
from caffe_fold.layers.affine import AFFINE
from caffe_fold.layers.linear import LINEAR

C = 4
CONVOLUTION = f"convolution_param {{ num_output: {C} kernel_size: 3 pad: 1 }}"
PARAMETERS = {
    "Convolution": CONVOLUTION,
    "ConvolutionDepthwise": CONVOLUTION,
    "DepthwiseConvolution": CONVOLUTION,
    "Deconvolution": f"convolution_param {{ num_output: {C} kernel_size: 2 stride: 2 }}",
    "InnerProduct": f"inner_product_param {{ num_output: {C} }}",
    "BN": "bn_param { bn_mode: INFERENCE }",
    "Scale": "scale_param { bias_term: true }",
}


def net_of(kind: str, name: str, shapes: Mapping[str, Sequence[Any]] | None = None) -> Net:
    """A layer of a type, which goes by a name; a Scale on an axis that counts from the end; and
    a classifier. With the shapes of their blobs they have weights, and their images come from
    a data layer, which does not tell the channels."""
    net = Net()
    if shapes is None:
        net.input("data", (1, C, 8, 8))
    else:
        data(net, CROP, ("data",))
    axis = -1 if kind == "InnerProduct" else -3
    for layer, type, bottom, params in (
        ("first", name, "data", PARAMETERS.get(kind, "")),
        ("scale", "Scale", "first", f"scale_param {{ axis: {axis} }}"),
        ("last", "InnerProduct", "scale", "inner_product_param { num_output: 5 }"),
    ):
        blobs = [net.rng.uniform(0.5, 2, shape) for shape in (shapes or {}).get(layer, ())]
        net.layer(layer, type, bottom, layer, params, blobs)
    return net


def inspected(net: Net, folder: Path) -> dict[str, Any]:
    """What ``inspect`` says of a prototxt alone, without the names of the types."""
    layers = caffe_fold.inspect(net.write(folder)[0]).layers
    return {la.name: (la.role, la.shapes, la.gain, la.fate.kind, la.fate.names) for la in layers}


@pytest.mark.parametrize("kind", [*LINEAR, *AFFINE])
def test_a_type_under_another_name_is_known_by_its_entry(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    entries: dict[str, Any] = LINEAR if kind in LINEAR else AFFINE
    monkeypatch.setitem(entries, "New", entries[kind])
    known, new = (inspected(net_of(kind, name), tmp_path) for name in (kind, "New"))
    assert new == known
    assert known["scale"][3] in ("folds", "merges", "becomes")
    shapes = {name: found[1] for name, found in known.items() if name != "data"}
    assert None not in [dim for blobs in shapes.values() for shape in blobs for dim in shape]
    for name in (kind, "New"):
        assert f"dim: 1 dim: {C} dim: 8 dim: 8" in deploy(net_of(kind, name, shapes), tmp_path)
