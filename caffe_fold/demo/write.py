"""The net as its two files, with random weights."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from caffe_fold import caffe_pb2
from caffe_fold.demo.layers import Fields, FloatArray, Layer, Scalar, Word
from caffe_fold.demo.mobilenet_ssd import INPUT_SIZE, layers
from caffe_fold.weights.wire import length_field
from caffe_fold.writing.outputs import Outputs, require_place
from caffe_fold.writing.pair import temporary_pair

__all__ = ["write_demo"]

_LINE = 80  # a message of scalars alone that is no longer than this stays on one line


def _scalar_text(value: Scalar) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str) and not isinstance(value, Word):
        return f'"{value}"'
    return str(value)


def _field_lines(name: str, value: Scalar | Fields, indent: str) -> Iterator[str]:
    """One field as lines of prototxt, each with its indent."""
    if isinstance(value, (bool, int, float, str)):
        yield f"{indent}{name}: {_scalar_text(value)}"
        return
    scalars = [f"{key}: {_scalar_text(v)}" for key, v in value if isinstance(v, (int, float, str))]
    line = f"{indent}{name} {{ {' '.join(scalars)} }}"
    if len(scalars) == len(value) and len(line) <= _LINE:
        yield line
        return
    yield f"{indent}{name} {{"
    for key, inner in value:
        yield from _field_lines(key, inner, indent + "  ")
    yield f"{indent}}}"


def _layer_text(layer: Layer) -> str:
    """One layer with the comment above it."""
    fields: Fields = (
        ("name", layer.name),
        ("type", layer.type),
        *(("bottom", bottom) for bottom in layer.bottoms),
        *(("top", top) for top in layer.tops),
        *layer.fields,
    )
    comment = [f"\n# {layer.comment}"] if layer.comment else []
    body = (line for key, value in fields for line in _field_lines(key, value, "  "))
    return "\n".join([*comment, "layer {", *body, "}", ""])


def _prototxt() -> Iterator[str]:
    """The prototxt, piece by piece."""
    yield (
        "# MobileNet-SSD for the 20 classes of Pascal VOC, before its BatchNorm is folded.\n"
        "# The input is BGR, as (pixel - 127.5) * 0.007843.\n"
        'name: "MobileNet-SSD"\n'
        'input: "data"\n'
        f"input_shape {{ dim: 1 dim: 3 dim: {INPUT_SIZE} dim: {INPUT_SIZE} }}\n"
    )
    for layer in layers():
        yield _layer_text(layer)


def _blob_wire(values: FloatArray) -> bytes:
    """``values`` as the field ``blobs`` of a LayerParameter.

    The floats are laid down as they are in memory, which is what a packed field holds, since
    ``data.extend`` takes 0.4 s for each million of them.
    """
    data = values.astype("<f4", copy=False).tobytes()
    shape = caffe_pb2.BlobProto(shape=caffe_pb2.BlobShape(dim=values.shape))
    blob = length_field(caffe_pb2.BlobProto.DATA_FIELD_NUMBER, data) + shape.SerializeToString()
    return length_field(caffe_pb2.LayerParameter.BLOBS_FIELD_NUMBER, blob)


def _layer_wire(layer: Layer, rng: np.random.Generator) -> bytes:
    """``layer``, its blobs drawn from ``rng``, as the field ``layer`` of a NetParameter."""
    head = caffe_pb2.LayerParameter(
        name=layer.name, type=layer.type, bottom=layer.bottoms, top=layer.tops
    )
    blobs = (_blob_wire(blob.draw(rng, blob.shape)) for blob in layer.blobs)
    body = b"".join((head.SerializeToString(), *blobs))
    return length_field(caffe_pb2.NetParameter.LAYER_FIELD_NUMBER, body)


def _caffemodel(rng: np.random.Generator) -> Iterator[bytes]:
    """The caffemodel, piece by piece: never more than one layer is in memory."""
    yield caffe_pb2.NetParameter(name="MobileNet-SSD").SerializeToString()
    for layer in layers():
        yield _layer_wire(layer, rng)


def write_demo(folder: Path, seed: int = 0) -> tuple[Path, Path]:
    """Writes MobileNet-SSD with random weights, ``mobilenet_ssd.prototxt`` and ``.caffemodel``.

    :param folder: where to; it is made if it is not there. Files of these names are replaced.
    :param seed: of the random weights, 23 MB of them; the same seed gives the same weights.
    :returns: the prototxt's path and the caffemodel's.
    :raises OSError: if the folder cannot be made.
    :raises OutputError: if the files cannot be written; none is left half done.
    """
    folder.mkdir(parents=True, exist_ok=True)
    outputs = Outputs(*(str(folder / f"mobilenet_ssd.{end}") for end in ("prototxt", "caffemodel")))
    for path in outputs:
        require_place(path)
    with temporary_pair(outputs) as pair:
        with open(pair.model, "w", encoding="utf-8", newline="\n") as text:
            text.writelines(_prototxt())
        with open(pair.weights, "wb") as weights:
            weights.writelines(_caffemodel(np.random.default_rng(seed)))
        pair.commit()
    return Path(outputs.model), Path(outputs.weights)
