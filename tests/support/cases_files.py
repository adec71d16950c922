"""Small nets, one for each rule and each format of the two files."""

from __future__ import annotations

from .case_registry import case, small
from .nets import Net
from .wire import BlobFormat


@case
def shared_params() -> Net:
    net = small()
    net.conv("conv1", "data", 4, 4, 1, extra='param { name: "w" } param { name: "b" }')
    net.conv("conv2", "conv1", 4, 4, 1, extra='param { name: "w" } param { name: "b" }')
    return net  # the two have their own values in the file: the last one wins


@case
def rules() -> Net:
    net = small()
    net.conv("conv", "data", 4, 4, extra="include { phase: TEST }")
    net.conv("off", "data", 4, 4, extra="include { phase: TRAIN }", top="conv")
    net.conv("staged", "conv", 4, 4, extra='include { stage: "deploy" }')
    net.conv("not_staged", "conv", 4, 4, extra='exclude { stage: "deploy" }')
    net.conv("level", "conv", 4, 4, extra="include { min_level: 1 }")
    net.layers[-1].in_weights = False
    return net


@case
def twins() -> Net:
    """A TRAIN and a TEST layer of one name; the weights hold one of them."""
    net = small()
    net.conv("conv", "data", 4, 4)
    net.batch_norm("bn", "conv", 4, extra="include { phase: TRAIN }", params="")
    net.layers[-1].in_weights = False
    net.batch_norm("bn", "conv", 4, extra="include { phase: TEST }")
    return net


@case
def net_level_input() -> Net:
    net = Net()
    net.input("data", (2, 3, 5, 5), net_level="input_dim")
    net.conv("conv", "data", 3, 4)
    net.conv("only_in_weights", "conv", 4, 4).in_text = False
    return net


@case
def v1_layers() -> Net:
    net = Net(v1=True)
    net.input("data", (2, 3, 6, 6))
    net.conv("conv", "data", 3, 4, extra="blobs_lr: 1 blobs_lr: 2").format.legacy = True
    net.power("power", "conv", 0.5, 0.25)
    net.relu("relu", "conv")
    net.inner_product("ip", "conv", 64, 5).format.legacy = True
    return net


@case
def v1_shared_params() -> Net:
    net = Net(v1=True)
    net.input("data", (2, 3, 6, 6))
    net.conv("conv1", "data", 3, 3, 1, extra='param: "w" param: "b"')
    net.conv("conv2", "conv1", 3, 3, 1, extra='param: "w" param: "b"')
    return net


@case
def legacy_blobs() -> Net:
    net = small()
    net.conv("conv", "data", 4, 6).format = BlobFormat(legacy=True)
    net.layer("flat", "Flatten", "conv", "flat")
    net.inner_product("ip", "flat", 216, 5).format = BlobFormat(legacy=True, runs=3)
    net.batch_norm("bn", "ip", 5).format = BlobFormat(unpacked=True)
    return net


@case
def double_blobs() -> Net:
    net = small()
    net.conv("conv", "data", 4, 6).format = BlobFormat("double")
    return net


@case
def filled() -> Net:
    """Layers without weights keep their constant fillers."""
    net = small()
    net.conv("conv", "data", 4, 6)
    net.batch_norm("bn", "conv", 6).in_weights = False
    net.scale("scale", "conv", 6, params="filler { value: 0.5 } bias_filler { value: 2 }")
    net.layers[-1].in_weights = False
    return net
