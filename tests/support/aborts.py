"""Small nets on which Caffe aborts, each for a reason of its own."""

from __future__ import annotations

import numpy as np

from .case_registry import Build, small
from .nets import Net
from .wire import BlobFormat

ABORTS: dict[str, Build] = {}
"""Nets on which Caffe aborts, and the evaluator has to raise NetError."""


def abort(build: Build) -> Build:
    """Take a function that builds a net on which Caffe aborts."""
    ABORTS[build.__name__] = build
    return build


@abort
def too_many_blobs() -> Net:
    net = small()
    net.conv("conv", "data", 4, 4, params="bias_term: false")
    return net


@abort
def another_shape() -> Net:
    net = small()
    net.conv("conv", "data", 4, 4).blobs[1] = np.zeros((1, 4))
    return net


@abort
def another_group() -> Net:
    net = small()
    net.conv("conv", "data", 4, 4, params="group: 2")
    return net


@abort
def unknown_bottom() -> Net:
    net = small()
    net.conv("conv", "nothing", 4, 4)
    return net


@abort
def bottom_made_later() -> Net:
    net = small()
    net.relu("relu", "conv", "relu")
    net.conv("conv", "data", 4, 4)
    return net


@abort
def top_made_twice() -> Net:
    net = small()
    net.conv("conv", "data", 4, 4)
    net.conv("again", "data", 4, 4, top="conv")
    return net


@abort
def in_place_on_a_shared_value() -> Net:
    net = small()
    net.conv("conv", "data", 4, 4)
    net.relu("reader", "conv", "read")
    net.relu("in_place", "conv")
    return net


@abort
def in_place_on_a_loss() -> Net:
    net = small()
    net.conv("conv", "data", 4, 4, extra="loss_weight: 1")
    net.relu("in_place", "conv")
    return net


@abort
def too_many_params() -> Net:
    net = small()
    net.conv("conv", "data", 4, 4, bias=False, extra="param { lr_mult: 0 } param { lr_mult: 0 }")
    return net


@abort
def sharers_of_other_shapes() -> Net:
    net = small()
    net.conv("conv1", "data", 4, 4, 1, bias=False, extra='param { name: "w" }')
    net.conv("conv2", "conv1", 4, 3, 1, bias=False, extra='param { name: "w" }')
    return net


@abort
def include_and_exclude() -> Net:
    net = small()
    both = 'include { phase: TEST } exclude { stage: "x" }'
    net.conv("conv", "data", 4, 4, extra=both)
    return net


@abort
def sum_of_other_shapes() -> Net:
    net = small()
    net.conv("conv", "data", 4, 4, 3)
    net.eltwise("sum", ["data", "conv"])
    return net


@abort
def legacy_shape_of_a_scale_with_two_axes() -> Net:
    """A legacy shape aligns to the right: (4, 1, 1, 1) is no (4)."""
    net = small()
    net.scale("scale", "data", 4, bias=False)
    net.layers[-1].blobs[0] = net.layers[-1].blobs[0].reshape(4, 1, 1, 1)
    net.layers[-1].format = BlobFormat(legacy=True)
    return net


@abort
def scale_of_too_many_axes() -> Net:
    net = small()
    params = "scale_param { axis: 2 num_axes: 3 }"
    net.layer("scale", "Scale", "data", "scale", params, [np.ones((8, 8))])
    return net


@abort
def scalar_given_twice() -> Net:
    net = small()
    net.conv("conv", "data", 4, 4, params="num_output: 4")
    return net
