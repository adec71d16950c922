"""Small nets, one for each kind of layer that the evaluator runs."""

from __future__ import annotations

import numpy as np

from .case_registry import CASES, Build, case, small
from .nets import Net


def single(type: str, params: str = "") -> Build:
    """Build a net of one layer without weights, behind a convolution."""

    def build() -> Net:
        net = small()
        net.conv("conv", "data", 4, 6)
        net.layer("tested", type, "conv", "tested", params)
        return net

    return build


CASES.update(
    relu=single("ReLU"),
    leaky=single("ReLU", "relu_param { negative_slope: 0.1 }"),
    sigmoid=single("Sigmoid"),
    tanh=single("TanH"),
    absval=single("AbsVal"),
    elu=single("ELU", "elu_param { alpha: 0.5 }"),
    bnll=single("BNLL"),
    exp=single("Exp", "exp_param { base: 2 scale: 0.5 shift: 0.1 }"),
    power=single("Power", "power_param { scale: 0.5 shift: 9 power: 2 }"),
    affine_power=single("Power", "power_param { scale: -0.5 shift: 9 }"),
    log=single("Log", "log_param { shift: 30 base: 2 }"),
    log_of_negatives=single("Log"),
    dropout=single("Dropout"),
    softmax=single("Softmax"),
    softmax_axis=single("Softmax", "softmax_param { axis: -1 }"),
    flatten=single("Flatten"),
    flatten_part=single("Flatten", "flatten_param { axis: 2 end_axis: 3 }"),
    reshape=single("Reshape", "reshape_param { shape { dim: 0 dim: -1 dim: 2 } }"),
    reshape_part=single("Reshape", "reshape_param { shape { dim: 36 } axis: 2 num_axes: 2 }"),
    permute=single("Permute", "permute_param { order: 0 order: 2 order: 3 order: 1 }"),
    max_pool=single("Pooling", "pooling_param { kernel_size: 3 stride: 2 }"),
    max_pool_padded=single("Pooling", "pooling_param { kernel_size: 3 stride: 2 pad: 1 }"),
    ave_pool=single("Pooling", "pooling_param { pool: AVE kernel_size: 3 stride: 2 pad: 1 }"),
    ave_pool_odd=single(
        "Pooling", "pooling_param { pool: AVE kernel_h: 3 kernel_w: 2 stride_h: 2 stride_w: 3 }"
    ),
    global_pool=single("Pooling", "pooling_param { pool: AVE global_pooling: true }"),
    lrn=single("LRN", "lrn_param { local_size: 3 alpha: 0.1 beta: 0.75 }"),
    reduction=single("Reduction", "reduction_param { operation: MEAN axis: 1 coeff: 2 }"),
    clipped_pool=single("Pooling", "pooling_param { kernel_size: 2 stride: 3 pad: 1 }"),
    empty_windows=single("Pooling", "pooling_param { kernel_size: 1 stride: 4 }"),
)


@case
def conv_group() -> Net:
    net = small(6)
    net.conv("conv", "data", 6, 9, 3, group=3, pad=1, stride=2)
    return net


@case
def conv_odd_window() -> Net:
    net = small()
    net.layer(
        "conv", "Convolution", "data", "conv",
        "convolution_param { num_output: 5 kernel_h: 1 kernel_w: 3 pad_h: 1 pad_w: 2 "
        "stride_h: 2 stride_w: 1 bias_term: false dilation: 2 }",
        [net.weight((5, 4, 1, 3))],
    )  # fmt: skip
    return net


@case
def conv_dilated() -> Net:
    net = small()
    net.conv("conv", "data", 4, 5, 3, pad=2, params="dilation: 2")
    return net


@case
def conv_two_bottoms() -> Net:
    net = small()
    net.relu("relu", "data", "relu")
    net.conv("conv", ["data", "relu"], 4, 5, 3, ["a", "b"])
    return net


@case
def conv_1d() -> Net:
    net = Net()
    net.input("data", (2, 4, 9))
    net.conv("conv", "data", 4, 6, 3, spatial=1, pad=1)
    net.batch_norm("bn", "conv", 6)
    net.scale("scale", "conv", 6)
    return net


@case
def conv_3d() -> Net:
    net = Net()
    net.input("data", (1, 2, 5, 6, 7))
    net.conv("conv", "data", 2, 3, 3, spatial=3, pad=1, stride=2)
    net.batch_norm("bn", "conv", 3)
    net.scale("scale", "conv", 3)
    return net


@case
def conv_3d_each_axis() -> Net:
    net = Net()
    net.input("data", (1, 2, 5, 6, 7))
    params = "pad: [1, 0, 1] stride: [2, 1, 3] dilation: [1, 1, 2]"
    net.conv("conv", "data", 2, 3, [3, 2, 3], params=params)
    return net


@case
def conv_axis_2() -> Net:
    net = Net()
    net.input("data", (2, 3, 4, 6, 6))
    net.conv("conv", "data", 4, 5, 3, params="axis: 2")
    return net


@case
def deconv() -> Net:
    net = small()
    net.deconv("deconv", "data", 4, 5, 4, pad=1, stride=2)
    return net


@case
def deconv_group() -> Net:
    net = small(6)
    net.deconv("deconv", "data", 6, 4, 3, group=2, stride=2, bias=False)
    return net


@case
def inner_product() -> Net:
    net = small(2, 3)
    net.inner_product("ip", "data", 18, 5)
    net.batch_norm("bn", "ip", 5)
    net.scale("scale", "ip", 5)
    net.inner_product("ip2", "ip", 5, 7)
    return net


@case
def inner_product_transposed() -> Net:
    net = small(2, 3)
    net.inner_product("ip", "data", 18, 5, transpose=True)
    return net


@case
def inner_product_axis() -> Net:
    net = small(2, 3)
    net.inner_product("ip", "data", 3, 5, params="axis: -1", bias=False)
    return net


@case
def batch_norm_chain() -> Net:
    net = small()
    net.conv("conv", "data", 4, 6)
    net.batch_norm("bn", "conv", 6, params="use_global_stats: true eps: 0.001")
    net.scale("scale", "conv", 6)
    net.relu("relu", "conv")
    return net


@case
def batch_norm_bare() -> Net:
    net = small()
    net.batch_norm("bn", "data", 4, "bn", params="", factor=0.5)
    return net


@case
def batch_norm_untrained() -> Net:
    net = small()
    net.batch_norm("bn", "data", 4, "bn", factor=0)
    return net


@case
def scale_axes() -> Net:
    net = small(4, 3)
    net.scale("axis1", "data", 4, "a", bias=False)
    net.layer("axis2", "Scale", "a", "b", "scale_param { axis: 2 num_axes: -1 bias_term: true }",
              [net.rng.normal(size=(3, 3)), net.rng.normal(size=(3, 3))])  # fmt: skip
    net.layer("all", "Scale", "b", "c", "scale_param { axis: 1 num_axes: 3 }",
              [net.rng.normal(size=(4, 3, 3))])  # fmt: skip
    return net


@case
def scalar_scale() -> Net:
    net = small(4, 3)
    net.layer("scalar", "Scale", "data", "a", "scale_param { num_axes: 0 bias_term: true }",
              [np.array(1.5), np.array(0.5)])  # fmt: skip
    return net


@case
def biases() -> Net:
    net = small(4, 3)
    net.bias("bias", "data", 4, "a")
    net.layer("axis", "Bias", "a", "b", "bias_param { axis: -1 }", [net.rng.normal(size=3)])
    return net


@case
def two_bottom_scale() -> Net:
    net = small()
    net.layer("pool", "Pooling", "data", "pool", "pooling_param { pool: AVE global_pooling: true }")
    net.layer("flat", "Flatten", "pool", "flat")
    net.layer("scale", "Scale", ["data", "flat"], "scaled", "scale_param { axis: 0 }")
    return net


@case
def two_bottom_bias() -> Net:
    net = small()
    net.layer("pool", "Pooling", "data", "pool", "pooling_param { pool: AVE global_pooling: true }")
    net.layer("flat", "Flatten", "pool", "flat")
    net.layer("bias", "Bias", ["data", "flat"], "biased", "bias_param { axis: 0 }")
    return net


@case
def two_bottom_scale_with_bias() -> Net:
    net = small()
    net.layer("pool", "Pooling", "data", "pool", "pooling_param { pool: AVE global_pooling: true }")
    net.layer("flat", "Flatten", "pool", "flat")
    params = "scale_param { axis: 0 bias_term: true }"
    net.layer("scale", "Scale", ["data", "flat"], "out", params, [net.rng.normal(size=(2, 4))])
    return net


@case
def prelu() -> Net:
    net = small()
    net.layer("a", "PReLU", "data", "a", "", [[0.1, 0.2, 0.3, -0.4]])
    return net


@case
def prelu_shared() -> Net:
    net = small()
    net.layer("b", "PReLU", "data", "b", "prelu_param { channel_shared: true }", [np.array(0.3)])
    return net


@case
def joins() -> Net:
    net = small(4, 4)
    net.conv("x", "data", 4, 4, 1)
    net.conv("y", "data", 4, 4, 1)
    net.eltwise("sum", ["x", "y"])
    net.layer("coeff", "Eltwise", ["x", "y"], "coeff", "eltwise_param { coeff: 1 coeff: -0.5 }")
    net.layer("prod", "Eltwise", ["x", "y"], "prod", "eltwise_param { operation: PROD }")
    net.layer("max", "Eltwise", ["x", "y", "sum"], "max", "eltwise_param { operation: MAX }")
    net.layer("concat", "Concat", ["max", "prod"], "concat")
    net.layer("concat2", "Concat", ["x", "y"], "concat2", "concat_param { axis: 2 }")
    net.layer("slice", "Slice", "concat", ["s1", "s2"], "slice_param { slice_point: 3 }")
    net.layer("cut", "Slice", "concat2", ["c1", "c2", "c3"],
              "slice_param { axis: 2 slice_point: 1 slice_point: 4 }")  # fmt: skip
    net.layer("split", "Split", "s1", ["t1", "t2"])
    return net


@case
def even_slice() -> Net:
    net = small(6)
    net.layer("slice", "Slice", "data", ["a", "b", "c"])
    net.layer("silence", "Silence", ["a", "c"])
    return net
