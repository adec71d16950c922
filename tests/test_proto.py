"""The compiled schema: up to date, alone in its names, and careful with what it does not know."""

from __future__ import annotations

import importlib.util
import struct
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

from caffe_fold import caffe_pb2

ROOT = Path(__file__).resolve().parent.parent

Field = descriptor_pb2.FieldDescriptorProto


# ---- Wire format by hand, so that nothing here rests on the schema under test ----


def varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def integer(number: int, value: int) -> bytes:
    return varint(number << 3) + varint(value)


def fixed64(number: int, value: float) -> bytes:
    return varint(number << 3 | 1) + struct.pack("<d", value)


def delimited(number: int, content: bytes) -> bytes:
    return varint(number << 3 | 2) + varint(len(content)) + content


def group(number: int, content: bytes) -> bytes:
    return varint(number << 3 | 3) + content + varint(number << 3 | 4)


def fixed32(number: int, value: float) -> bytes:
    return varint(number << 3 | 5) + struct.pack("<f", value)


HEAD = delimited(1, b"conv1") + delimited(2, b"Convolution")


# ---- Up to date ----


def unify(messages: Iterable[descriptor_pb2.DescriptorProto]) -> None:
    """Takes out what protoc writes differently into a descriptor set and into generated code.

    A descriptor set has JSON names, and (protoc 25) the default 1e-5 of a float as "1e-05",
    where the generated code has it as "9.99999975e-06".
    """
    for message in messages:
        for field in message.field:
            field.ClearField("json_name")
            if field.type == Field.TYPE_FLOAT and field.default_value:
                field.default_value = repr(struct.pack("<f", float(field.default_value)))
        unify(message.nested_type)


def comparable(serialized: bytes) -> list[str]:
    """A serialized FileDescriptorProto as lines of text."""
    file = descriptor_pb2.FileDescriptorProto.FromString(serialized)
    unify(file.message_type)
    return str(file).splitlines()


def test_the_compiled_module_is_what_protoc_makes_of_the_proto(tmp_path: Path) -> None:
    if importlib.util.find_spec("grpc_tools") is None:
        pytest.skip("grpcio-tools, which carries protoc, is not installed")
    made = tmp_path / "caffe.desc"
    command = [sys.executable, "-m", "grpc_tools.protoc", "--proto_path=caffe_fold=proto"]
    command += [f"--descriptor_set_out={made}", "caffe_fold/caffe.proto"]
    subprocess.run(command, cwd=ROOT, check=True)
    (file,) = descriptor_pb2.FileDescriptorSet.FromString(made.read_bytes()).file
    expected = comparable(file.SerializeToString())
    assert comparable(caffe_pb2.DESCRIPTOR.serialized_pb) == expected, (
        "caffe_pb2.py is stale: run scripts/compile_proto.sh"
    )


# ---- Beside Caffe's own schema ----


def add_field(
    message: descriptor_pb2.DescriptorProto,
    name: str,
    number: int,
    kind: Field.Type.ValueType,
    *,
    repeated: bool = False,
    type_name: str | None = None,
) -> None:
    label = Field.LABEL_REPEATED if repeated else Field.LABEL_OPTIONAL
    message.field.add(name=name, number=number, type=kind, label=label, type_name=type_name)


def foreign_file() -> descriptor_pb2.FileDescriptorProto:
    """A part of the ``caffe.proto`` that every Caffe installs, in its own package and path.

    ``ConvolutionParameter`` is yjxiong's: field 16 is a repeated ``dilation``, where BVLC's is
    a single ``axis``.
    """
    file = descriptor_pb2.FileDescriptorProto(name="caffe.proto", package="caffe", syntax="proto2")
    convolution = file.message_type.add(name="ConvolutionParameter")
    add_field(convolution, "num_output", 1, Field.TYPE_UINT32)
    add_field(convolution, "dilation", 16, Field.TYPE_UINT32, repeated=True)
    batch_norm = file.message_type.add(name="BatchNormParameter")
    add_field(batch_norm, "eps", 3, Field.TYPE_FLOAT)
    layer = file.message_type.add(name="LayerParameter")
    add_field(layer, "name", 1, Field.TYPE_STRING)
    add_field(layer, "type", 2, Field.TYPE_STRING)
    parameters = (
        ("convolution_param", 106, "ConvolutionParameter"),
        ("batch_norm_param", 139, "BatchNormParameter"),
    )
    for name, number, kind in parameters:
        add_field(layer, name, number, Field.TYPE_MESSAGE, type_name=f".caffe.{kind}")
    net = file.message_type.add(name="NetParameter")
    add_field(net, "name", 1, Field.TYPE_STRING)
    add_field(
        net, "layer", 100, Field.TYPE_MESSAGE, repeated=True, type_name=".caffe.LayerParameter"
    )
    return file


@pytest.fixture(scope="module")
def foreign_net() -> Any:
    """The class ``caffe.NetParameter``, from the pool that ``caffe_pb2`` is in too."""
    pool = descriptor_pool.Default()
    pool.AddSerializedFile(foreign_file().SerializeToString())
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("caffe.NetParameter"))


def test_the_module_lives_beside_caffes_own_schema(foreign_net: Any) -> None:
    theirs = foreign_net(name="net")
    theirs.layer.add(name="conv1", type="Convolution").convolution_param.num_output = 8
    ours = caffe_pb2.NetParameter.FromString(theirs.SerializeToString())
    assert (ours.name, ours.layer[0].name, ours.layer[0].type) == ("net", "conv1", "Convolution")
    assert foreign_net.DESCRIPTOR.full_name == "caffe.NetParameter"
    assert caffe_pb2.NetParameter.DESCRIPTOR.full_name == "caffe_fold.NetParameter"


def test_what_only_caffes_schema_knows_goes_through_this_one(foreign_net: Any) -> None:
    theirs = foreign_net(name="net")
    conv = theirs.layer.add(name="conv1", type="Convolution")
    conv.convolution_param.num_output = 8
    conv.convolution_param.dilation.extend([2, 4])
    theirs.layer.add(name="bn1", type="BatchNorm").batch_norm_param.eps = 1e-3
    ours = caffe_pb2.NetParameter.FromString(theirs.SerializeToString())
    ours.layer[0].blobs.add().data.extend([1.0, 2.0])
    back = foreign_net.FromString(ours.SerializeToString())
    assert list(back.layer[0].convolution_param.dilation) == [2, 4]
    assert back.layer[1] == theirs.layer[1]


# ---- Unknown fields ----


@pytest.mark.parametrize(
    "field",
    [
        pytest.param(delimited(106, integer(1, 64) + integer(2, 0)), id="convolution_param"),
        pytest.param(delimited(139, fixed32(3, 1e-3)), id="batch_norm_param"),
        pytest.param(integer(139, 1), id="139 as a number"),
        pytest.param(delimited(142, integer(4, 1)), id="scale_param"),
        pytest.param(delimited(149, b"MKLDNN:CPU"), id="149 as a string (Intel)"),
        pytest.param(integer(149, 1), id="149 as a bool (NVIDIA)"),
        pytest.param(
            delimited(149, integer(1, 8) + delimited(3, b"\0")), id="149 as a message (Ristretto)"
        ),
        pytest.param(integer(150, 2**64 - 1), id="150 as a negative int"),
        pytest.param(delimited(203, integer(1, 21)), id="an SSD message"),
        pytest.param(integer(1000, 1) + integer(1000, 2), id="a field given twice"),
        pytest.param(fixed64(10000, 0.1), id="64 bits"),
        pytest.param(fixed32(10001, 0.1), id="32 bits"),
        pytest.param(group(2000, integer(1, 5)), id="a group"),
        pytest.param(delimited(142, b"\xff\xff"), id="bytes that are no message"),
        pytest.param(
            delimited(106, b"\x08\x40") + integer(149, 1) + delimited(107, b"") + integer(106, 3),
            id="numbers out of order",
        ),
    ],
)
def test_a_layers_unknown_field_survives_byte_for_byte(field: bytes) -> None:
    wire = HEAD + field
    layer = caffe_pb2.LayerParameter.FromString(wire)
    assert (layer.name, layer.type) == ("conv1", "Convolution")
    assert layer.SerializeToString() == wire


@pytest.mark.parametrize(
    "known",
    [
        pytest.param(delimited(5, struct.pack("<2f", 1.5, -2.5)), id="data"),
        pytest.param(delimited(6, struct.pack("<2f", 1.5, -2.5)), id="diff"),
        pytest.param(integer(1, 1) + integer(2, 1) + integer(3, 1) + integer(4, 2), id="legacy"),
        pytest.param(delimited(7, delimited(1, b"\x02\x00")), id="shape"),
        pytest.param(delimited(8, struct.pack("<2d", 1.5, -2.5)), id="double_data"),
        pytest.param(
            integer(10, 2) + integer(11, 2) + delimited(12, b"\x00\x3c") + delimited(13, b"\0\0"),
            id="raw_data (NVIDIA)",
        ),
    ],
)
def test_a_blob_and_its_unknown_fields_survive_byte_for_byte(known: bytes) -> None:
    wire = HEAD + delimited(7, known + delimited(14, b"more") + integer(10000, 7))
    assert caffe_pb2.LayerParameter.FromString(wire).SerializeToString() == wire


def test_an_unknown_field_of_the_net_survives() -> None:
    layer = delimited(100, HEAD)
    before, behind = delimited(9, b"before"), delimited(10000, b"behind")
    again = caffe_pb2.NetParameter.FromString(before + layer + behind).SerializeToString()
    # Unknown fields may come out behind the known ones, in the order in which they came in.
    assert again == layer + before + behind


@pytest.mark.parametrize(
    "dilation",
    [
        pytest.param(integer(16, 2) + integer(16, 4), id="one by one"),
        pytest.param(delimited(16, b"\x02\x04"), id="packed"),
    ],
)
def test_a_repeated_field_16_inside_a_convolution_survives(dilation: bytes) -> None:
    """BVLC's 16 is ``axis``, a single number; read as that, the first value would be lost."""
    wire = HEAD + delimited(106, integer(1, 64) + dilation + integer(18, 1))
    assert caffe_pb2.LayerParameter.FromString(wire).SerializeToString() == wire
    net = delimited(1, b"net") + delimited(100, wire)
    assert caffe_pb2.NetParameter.FromString(net).SerializeToString() == net
