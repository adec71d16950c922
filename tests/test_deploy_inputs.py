"""Deploy nets: which layers give data, and the shapes of the inputs in their place."""

from __future__ import annotations

from pathlib import Path
from typing import Callable

import pytest
from deploying import CROP, classifier, data, data_names, deploy, inputs, loss, outputs, types
from support.nets import Net

from caffe_fold.errors import InputError


@pytest.mark.parametrize(
    ("kind", "params", "size"),
    [
        ("Data", CROP, (8, 8)),
        ("Data", "data_param { crop_size: 8 }", (8, 8)),
        ("ImageData", "image_data_param { new_height: 6 new_width: 9 }", (6, 9)),
        ("ImageData", "image_data_param { new_height: 9 new_width: 9 } " + CROP, (8, 8)),
        ("WindowData", CROP, (8, 8)),
        ("AnnotatedData", "transform_param { resize_param { height: 6 width: 7 } }", (6, 7)),
        ("VideoData", "transform_param { crop_h: 6 crop_w: 7 }", (6, 7)),
        ("MemoryData", "memory_data_param { channels: 3 height: 6 width: 7 }", (6, 7)),
        ("DummyData", "dummy_data_param { shape { dim: [9, 3, 6, 7] } }", (6, 7)),
        (
            "DummyData",
            "dummy_data_param { num: 9 num: 9 channels: 3 channels: 1 height: 6 height: 1 "
            'width: 7 width: 1 data_filler { type: "gaussian" } }',
            (6, 7),
        ),
        ("LaneData", CROP, (8, 8)),
        ("Python", "python_param { module: 'm' layer: 'L' } " + CROP, (8, 8)),
    ],
)
def test_height_and_width_come_from_the_data_layer(
    tmp_path: Path, kind: str, params: str, size: tuple[int, int]
) -> None:
    net = Net()
    data(net, params, kind=kind)
    net.conv("conv1", "data", 3, 4)
    loss(net, "conv1", "EuclideanLoss")
    text = deploy(net, tmp_path)
    assert inputs(text) == {"data": (1, 3, *size)}
    assert data_names(net.prototxt()) == ["data"]
    assert data_names(text) == []


@pytest.mark.parametrize(
    "params",
    [
        "transform_param { mirror: false crop_size: 0 }",
        "",
        "transform_param { resize_param { height: 6 width: 7 resize_mode: FIT_SMALL_SIZE } }",
        "image_data_param { new_height: 6 }",
        "memory_data_param { channels: 3 }",
        "dummy_data_param { }",
    ],
)
def test_an_unknown_size_is_asked_for(tmp_path: Path, params: str) -> None:
    net = classifier(params=params)
    with pytest.raises(InputError) as caught:
        deploy(net, tmp_path)
    message = str(caught.value)
    assert message.startswith(f"{tmp_path / 'net.prototxt'}:2:1: ")
    assert "'data' from layer 'data' (Data), which layer 'conv1' (Convolution) reads" in message
    assert message.endswith("height and width; give it, such as --input-shape data=1,3,224,224")
    assert inputs(deploy(net, tmp_path, shapes={"data": (4, 3, 8, 8)})) == {"data": (4, 3, 8, 8)}


def test_the_crop_of_the_twin_for_training_does_not_count(tmp_path: Path) -> None:
    net = classifier(params="include { phase: TEST }")
    train = f'layer {{ name: "data" type: "Data" top: "data" include {{ phase: TRAIN }} {CROP} }}\n'
    with pytest.raises(InputError, match=":3:1: the shape of 'data'"):
        deploy(net, tmp_path, net.header + train + net.prototxt()[len(net.header) :])


def first_conv(net: Net) -> None:
    net.conv("c", "data", 6, 4)


def first_grouped(net: Net) -> None:
    net.conv("c", "data", 6, 4, group=2)


def first_depthwise(net: Net) -> None:
    net.conv("c", "data", 6, 6, group=6, type="DepthwiseConvolution")


def first_deconv(net: Net) -> None:
    net.deconv("c", "data", 6, 4)


def first_batch_norm(net: Net) -> None:
    net.batch_norm("bn", "data", 6, top="c")


def first_scale(net: Net) -> None:
    net.power("power", "data", 0.5, top="p")
    net.scale("scale", "p", 6, top="c")


def first_bias(net: Net) -> None:
    net.bias("bias", "data", 6, top="c")


def first_inner_product(net: Net) -> None:
    net.inner_product("c", "data", 6 * 8 * 8, 4)


def first_transposed(net: Net) -> None:
    net.inner_product("c", "data", 6 * 8 * 8, 4, transpose=True)


def first_flat(net: Net) -> None:
    net.layer("flat", "Flatten", "data", "flat")
    net.layer("drop", "Dropout", "flat", "flat")
    net.inner_product("c", "flat", 6 * 8 * 8, 4)


def first_pooled(net: Net) -> None:
    net.layer("pool", "Pooling", "data", "pool", "pooling_param { kernel_size: 2 stride: 2 }")
    net.inner_product("skipped", "pool", 6 * 4 * 4, 4)
    net.conv("c", "pool", 6, 4)


def first_scalar(net: Net) -> None:
    net.scale("scalar", "data", 1, params="num_axes: 0", top="s", bias=False)
    net.conv("c", "s", 6, 4)


@pytest.mark.parametrize(
    "first",
    [
        first_conv, first_grouped, first_depthwise, first_deconv, first_batch_norm, first_scale,
        first_bias, first_inner_product, first_transposed, first_flat, first_pooled, first_scalar,
    ],
)  # fmt: skip
def test_channels_come_from_the_weights(tmp_path: Path, first: Callable[[Net], None]) -> None:
    net = Net()
    data(net)
    first(net)
    loss(net, "c", "EuclideanLoss")
    assert inputs(deploy(net, tmp_path)) == {"data": (1, 6, 8, 8)}
    fits = {"data": (2, 6, 8, 8)}
    assert inputs(deploy(net, tmp_path, shapes=fits)) == fits
    with pytest.raises(InputError, match="the shape 1,5,8,8, and the weights of layer '"):
        deploy(net, tmp_path, shapes={"data": (1, 5, 8, 8)})


def test_a_size_that_does_not_divide_the_first_weights_is_said(tmp_path: Path) -> None:
    net = Net()
    data(net)
    net.inner_product("ip", "data", 100, 4)
    loss(net, "ip", "EuclideanLoss")
    with pytest.raises(InputError, match=r"'ip' are for 100 values, which 8x8 does not divide"):
        deploy(net, tmp_path)


def test_channels_that_no_weights_tell_are_asked_for(tmp_path: Path) -> None:
    net = Net()
    data(net)
    net.layer("odd", "Odd", "data", "odd")
    net.conv("conv1", "odd", 3, 4)
    loss(net, "conv1", "EuclideanLoss")
    with pytest.raises(InputError, match=r"no weights tell .*--input-shape data=1,3,8,8$"):
        deploy(net, tmp_path)


@pytest.mark.parametrize("shape", [(0, 3, 8, 8), (1, 3, -1, 8)])
def test_impossible_shapes_are_refused(tmp_path: Path, shape: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match="every dimension is at least 1"):
        deploy(classifier(), tmp_path, shapes={"data": shape})


@pytest.mark.parametrize(
    ("name", "hint"), [("dat", "closest is 'data'"), ("zzz", "needs 'data'"), ("label", "needs")]
)
def test_a_shape_for_no_input_is_refused(tmp_path: Path, name: str, hint: str) -> None:
    net = classifier()
    loss(net)
    with pytest.raises(InputError, match=f"names '{name}', .*{hint}"):
        deploy(net, tmp_path, shapes={name: (1,)})
    net = Net()
    net.input("data", (1, 3, 8, 8))
    net.conv("conv1", "data", 3, 4)
    with pytest.raises(InputError, match="needs none"):
        deploy(net, tmp_path, shapes={"data": (1, 3, 8, 8)})


def test_a_number_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"net.prototxt:7:\d+: found 'eight'; 'crop_size' takes"):
        deploy(classifier(params="transform_param { crop_size: eight }"), tmp_path)


def test_several_tops_become_inputs_of_one_layer(tmp_path: Path) -> None:
    net = Net()
    data(net, 'hdf5_data_param { source: "x" }', ("left", "label", "right"), kind="HDF5Data")
    net.conv("conv1", "left", 3, 4)
    net.conv("conv2", "right", 2, 4)
    net.eltwise("sum", ["conv1", "conv2"])
    loss(net, "sum", "EuclideanLoss")
    shapes = {"left": (1, 3, 8, 8), "right": (1, 2, 8, 8)}
    text = deploy(net, tmp_path, shapes=shapes)
    assert inputs(text) == shapes
    assert types(text) == ["Input", "Convolution", "Convolution", "Eltwise"]
    with pytest.raises(InputError, match="'left' from"):
        deploy(net, tmp_path)


def test_a_file_for_training_alone_gets_its_input(tmp_path: Path) -> None:
    net = Net()
    data(net, extra="include { phase: TRAIN }")
    net.conv("conv1", "data", 3, 4)
    loss(net, "conv1", extra="include { phase: TRAIN }")
    text = deploy(net, tmp_path)
    assert inputs(text) == {"data": (1, 3, 8, 8)}
    assert types(text) == ["Input", "Convolution"]
    assert data_names(net.prototxt()) == []


def test_constants_stay_and_random_data_does_not(tmp_path: Path) -> None:
    net = classifier()
    net.layer(
        "ones", "DummyData", (), "ones",
        "dummy_data_param { shape { dim: 1 dim: 5 } data_filler { value: 1 } }",
    )  # fmt: skip
    net.eltwise("sum", ["fc", "ones"])
    net.inner_product("fc2", "sum", 5, 2)
    loss(net, "fc2")
    text = deploy(net, tmp_path)
    assert data_names(net.prototxt()) == ["data"]
    assert types(text)[3:] == ["InnerProduct", "DummyData", "Eltwise", "InnerProduct", "Softmax"]
    noise = net.prototxt().replace("value: 1", 'type: "uniform"')
    assert data_names(noise) == ["data", "ones"]
    assert inputs(deploy(net, tmp_path, noise)) == {"data": (1, 3, 8, 8), "ones": (1, 5)}


def test_an_image_slice_leaves_the_shape_to_the_user(tmp_path: Path) -> None:
    net = Net()
    data(net, tops=("pair", "label"))
    net.layer("slice", "Slice", "pair", ["one", "two"])
    net.conv("conv1", "one", 1, 4, extra='param { name: "w" } param { name: "b" }')
    net.conv("conv2", "two", 1, 4, extra='param { name: "w" } param { name: "b" }')
    net.layer("loss", "ContrastiveLoss", ["conv1", "conv2", "label"], "loss")
    text = deploy(net, tmp_path, shapes={"pair": (1, 2, 8, 8)})
    assert types(text) == ["Input", "Slice", "Convolution", "Convolution"]
    assert outputs(text) == {"conv1", "conv2"}


def test_the_shape_that_is_advised_is_one_that_the_weights_take(tmp_path: Path) -> None:
    """For numbers beside the images, as for a label that a layer with weights reads."""
    net = Net()
    net.layer("source", "HDF5Data", [], ["data", "speed", "label"])
    net.conv("conv", "data", 3, 4)
    net.inner_product("speed1", "speed", 6, 4)
    net.layer("margin", "MarginInnerProduct", ["speed1", "label"], "out", blobs=[[[0.5] * 4] * 2])
    given: dict[str, tuple[int, ...]] = {}
    for blob in ("data", "speed", "label"):
        with pytest.raises(InputError) as caught:
            deploy(net, tmp_path, shapes=given)
        name, _, dims = str(caught.value).rpartition("--input-shape ")[2].partition("=")
        assert name == blob
        given[name] = tuple(map(int, dims.split(",")))
    assert given == {"data": (1, 3, 224, 224), "speed": (1, 6), "label": (1,)}
    assert inputs(deploy(net, tmp_path, shapes=given)) == given
