"""Caffe's schema, for protobuf's own readers to read by.

The package's schema leaves hyper-parameters out of its layers, has a number for the type
of a V1 layer, and leaves out the layers of the format before it. Here all are as in Caffe,
in pools of their own.
"""

from __future__ import annotations

import functools
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from support.netdef import V1_TYPES

from caffe_fold import caffe_pb2

__all__ = ["PARAMETERS", "net_class", "weights_class"]

PARAMETERS = {
    "convolution_param": "ConvolutionParameter",
    "inner_product_param": "InnerProductParameter",
    "batch_norm_param": "BatchNormParameter",
    "bn_param": "BNParameter",
    "scale_param": "ScaleParameter",
    "bias_param": "BiasParameter",
    "power_param": "PowerParameter",
    "input_param": "InputParameter",
}


@functools.cache
def net_class() -> Any:
    """The class of a NetParameter with all fields of a prototxt that the fold reads."""
    file = _copy()
    for layer in (_message(file, "LayerParameter"), _message(file, "V1LayerParameter")):
        for number, (name, kind) in enumerate(PARAMETERS.items(), 5000):
            layer.field.add(
                name=name, number=number, label=1, type=11, type_name=f".fuzzing.{kind}"
            )
    _add_types(_message(file, "V1LayerParameter"))
    return _class(file)


@functools.cache
def weights_class() -> Any:
    """The class of a NetParameter with V0LayerParameter, of which the fold reads the name."""
    file = _copy()
    file.message_type.add(name="V0LayerParameter").field.add(name="name", number=1, label=1, type=9)
    _message(file, "V1LayerParameter").field.add(
        name="layer", number=1, label=1, type=11, type_name=".fuzzing.V0LayerParameter"
    )
    return _class(file)


def _copy() -> Any:
    file = descriptor_pb2.FileDescriptorProto()
    caffe_pb2.DESCRIPTOR.CopyToProto(file)
    file.name, file.package = "fuzzing/caffe.proto", "fuzzing"
    for message in file.message_type:
        for field in message.field:
            if field.type_name:
                field.type_name = field.type_name.replace(".caffe_fold.", ".fuzzing.")
    return file


def _message(file: Any, name: str) -> Any:
    (found,) = [message for message in file.message_type if message.name == name]
    return found


def _class(file: Any) -> Any:
    pool = descriptor_pool.DescriptorPool()
    pool.AddSerializedFile(file.SerializeToString())
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("fuzzing.NetParameter"))


def _add_types(layer: Any) -> None:
    """Make the type of a V1 layer the enum that it is; 39 and a few are of forks."""
    enum = layer.enum_type.add(name="LayerType")
    for number, (name, _) in sorted(V1_TYPES.items()):
        enum.value.add(name=name, number=number)
    (field,) = [field for field in layer.field if field.name == "type"]
    field.type, field.type_name = 14, ".fuzzing.V1LayerParameter.LayerType"
