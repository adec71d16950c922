"""The shape that a data layer's top has, as far as the two files tell it.

A data layer's channels come from its data set, which is not at hand, so they are those
that the weights of the first layer behind it were trained for. Height and width come
from the data layer's own parameters.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from caffe_fold.errors import show
from caffe_fold.layers.affine import AFFINE, Refused
from caffe_fold.layers.linear import LINEAR, fitted
from caffe_fold.layers.other import keeps_shape
from caffe_fold.named import NamedTuple
from caffe_fold.nets.graph import Graph
from caffe_fold.nets.net import Layer
from caffe_fold.nets.prototxt import Document, Field
from caffe_fold.weights.blob import Blob
from caffe_fold.weights.caffemodel import Caffemodel

__all__ = ["DataTop", "dummy_batch", "shape_of"]

Shape = tuple[int, ...]

# Beside the types that keep the shape: their first top has the channels of their first
# bottom, those of _RESIZING with another height and width; a Flatten's has all its numbers.
_RESIZING = frozenset("Interp Pooling Resample Upsample".split())
_KEEPING = _RESIZING | {"Eltwise", "Flatten"}


class DataTop(NamedTuple):
    """One top of a data layer: its name, its place among the tops, and its value."""

    layer: Layer
    blob: str
    slot: int
    value: int


class _Reader(NamedTuple):
    """A layer that reads a value, and how many channels of it its weights are for; where
    ``is_flat``, how many numbers in all."""

    layer: Layer
    width: int
    is_flat: bool

    def fits(self, shape: Shape) -> bool:
        if self.is_flat:
            return math.prod(shape[1:]) == self.width
        return len(shape) > 1 and shape[1] == self.width

    @property
    def wants(self) -> str:
        unit = "values" if self.is_flat else "channels"
        return f"the weights of layer '{show(self.layer.name)}' are for {self.width} {unit}"


def shape_of(
    graph: Graph, model: Caffemodel, top: DataTop, read_by: Layer, given: Mapping[str, Shape]
) -> Shape:
    """The shape of a data layer's top for one image at a time.

    :param read_by: a layer for whose sake the shape is asked for, to name in an error.
    :param given: shapes by blob name, which go before what the data layer says.
    :raises InputError: where the files do not tell the shape, or the given one does not
        fit the weights.
    """
    document, reader = graph.net.document, _reader(graph, model, top.value)
    shape = given.get(top.blob) or _stated_shape(document, top)
    if shape is None:
        return _image_shape(document, top, read_by, reader)
    if min(shape) < 1 or (reader is not None and not reader.fits(shape)):
        source = "--input-shape" if top.blob in given else f"layer {top.layer.described}"
        reason = reader.wants if reader and min(shape) > 0 else "every dimension is at least 1"
        shown = ",".join(map(str, shape))
        raise document.error(
            top.layer.field.start,
            f"{source} gives '{show(top.blob)}' the shape {shown}, and {reason}",
        )
    return shape


def _image_shape(document: Document, top: DataTop, read_by: Layer, reader: _Reader | None) -> Shape:
    """The shape by the layer's height and width and the weights' channels."""
    size = _size(document, top.layer) if top.slot == 0 else None
    channels = reader.width if reader and not reader.is_flat else None
    if size and reader and reader.is_flat and reader.width % math.prod(size) == 0:
        channels = reader.width // math.prod(size)
    if size and channels:
        return (1, channels, *size)
    if size is None:
        missing = "its parameters give no height and width"
    elif reader is None:
        missing = "no weights tell its channels"
    else:
        missing = f"{reader.wants}, which {size[0]}x{size[1]} does not divide"
    if size is None and reader is not None and reader.is_flat:
        shape: Shape = (1, reader.width)
    elif reader is None and top.slot > 0:  # labels, or what goes with them
        shape = (1,)
    else:
        shape = (1, channels or 3, *(size or (224, 224)))
    example = ",".join(map(str, shape))
    raise document.error(
        top.layer.field.start,
        f"the shape of '{show(top.blob)}' from layer {top.layer.described}, which layer "
        f"{read_by.described} reads, is not known: {missing}; give it, such as --input-shape "
        f"{show(top.blob)}={example}",
    )


# ---- What the data layer says ----


def _stated_shape(document: Document, top: DataTop) -> Shape | None:
    """The whole shape, where a data layer gives it: MemoryDataLayer::DataLayerSetUp
    (memory_data_layer.cpp), DummyDataLayer::LayerSetUp (dummy_data_layer.cpp)."""
    for message in top.layer.all("memory_data_param"):
        if top.slot:
            return (1,)
        dims = [_number(document, message, n) for n in ("channels", "height", "width")]
        return (1, *dims) if all(dims) else None
    for message in top.layer.all("dummy_data_param"):
        return _dummy_shape(document, message, top.slot)
    return None


def dummy_batch(document: Document, layer: Layer) -> int | None:
    """The batch size of a DummyData layer, None for other layers and where it has none."""
    if layer.type != "DummyData":
        return None
    for message in layer.all("dummy_data_param"):
        for field in message.fields or ():
            if field.name == "num":
                return _numbers(document, message, "num")[0]
            if field.name == "shape":
                return next(iter(_numbers(document, field, "dim")), None)
    return None


def _dummy_shape(document: Document, message: Field, slot: int) -> Shape | None:
    """A DummyData's shapes, one for each top or one for all, as ``shape`` or as four numbers."""
    shapes = [_numbers(document, f, "dim") for f in message.fields or () if f.name == "shape"]
    legacy = [_numbers(document, message, n) for n in ("num", "channels", "height", "width")]
    shapes = shapes or [list(dims) for dims in zip(*legacy)]
    if not shapes:
        return None
    return (1, *shapes[slot if slot < len(shapes) else 0][1:])


def _size(document: Document, layer: Layer) -> Shape | None:
    """Height and width of the images that a data layer gives.

    The crop comes last, after any resizing: DataTransformer::InferBlobShape
    (data_transformer.cpp), in the SSD fork with ``crop_h``, ``crop_w`` and ``resize_param``;
    ImageDataLayer::DataLayerSetUp (image_data_layer.cpp) with ``new_height`` and
    ``new_width``. Older files have ``crop_size`` in ``data_param`` and the like
    (UpgradeNetDataTransformation, upgrade_proto.cpp).
    """
    messages = [field for field in layer.fields if field.fields is not None]
    resizes = [f for m in messages for f in m.fields or () if f.name == "resize_param"]
    found = [_pair(document, m, "crop_size", "crop_size") for m in messages]
    found += [_pair(document, m, "crop_h", "crop_w") for m in messages]
    found += [_pair(document, m, "height", "width") for m in resizes if _is_exact(document, m)]
    found += [_pair(document, m, "new_height", "new_width") for m in messages]
    return next((size for size in found if size is not None), None)


def _is_exact(document: Document, resize: Field) -> bool:
    """Whether a ``resize_param`` makes images of one size (InferNewSize in the SSD fork's
    im_transforms.cpp)."""
    modes = [document.value(f) for f in resize.fields or () if f.name == "resize_mode"]
    return not any(mode in ("FIT_SMALL_SIZE", "2") for mode in modes)


def _pair(document: Document, message: Field, first: str, second: str) -> Shape | None:
    pair = _number(document, message, first), _number(document, message, second)
    return pair if all(pair) else None


def _number(document: Document, message: Field, name: str) -> int:
    """A field's last value, or 0 where it is not given."""
    return next(reversed(_numbers(document, message, name)), 0)


def _numbers(document: Document, message: Field, name: str) -> list[int]:
    found = []
    for field in message.fields or ():
        if field.name == name:
            try:
                found.append(int(document.value(field), 0))
            except ValueError:
                raise document.error(
                    field.value_start,
                    f"found '{show(document.value(field), 40)}'; '{name}' takes a whole number",
                ) from None
    return found


# ---- What the weights say ----


def _reader(graph: Graph, model: Caffemodel, value: int) -> _Reader | None:
    """The first layer with weights that reads a value as it is, or through layers that
    keep its channels, or all of its numbers."""
    pending, seen = [(value, "image")], {value}
    for value, form in pending:
        for at, slot in graph.readers[value]:
            layer = graph.layers[at]
            found = _count(graph, model, layer, form) if slot == 0 else None
            if found is not None:
                return found
            if not keeps_shape(layer.type) and layer.type not in _KEEPING:
                continue
            for top in set(graph.tops[at][:1]) - seen:
                pending.append((top, _form(layer, form)))
                seen.add(top)
    return None


def _form(layer: Layer, form: str) -> str:
    """What is left of an image behind a layer: all of it, its channels alone ("resized"),
    its numbers in a row ("flat"), or none of that ("lost")."""
    if layer.type == "Flatten":
        return "flat" if form in ("image", "flat") else "lost"
    if layer.type in _RESIZING:
        return "resized" if form in ("image", "resized") else "lost"
    return form


def _count(graph: Graph, model: Caffemodel, layer: Layer, form: str) -> _Reader | None:
    entries = model.by_name.get(layer.name, ())
    blobs = entries[-1].blobs if entries else ()
    if not blobs or form == "lost":
        return None
    if layer.type in LINEAR:
        count, is_flat = _linear_count(graph, layer, blobs[0]), LINEAR[layer.type].flattens
        usable = form != "resized" if is_flat else form != "flat"
        return _Reader(layer, count, is_flat) if count and usable else None
    if _is_per_channel(graph, layer):
        return _Reader(layer, blobs[0].count, form == "flat")
    return None


def _linear_count(graph: Graph, layer: Layer, weight: Blob) -> int:
    kind = LINEAR[layer.type]
    message = graph.net.parsed(layer, kind.parameter, kind.message).message
    try:
        shape = fitted(weight.shape, weight.legacy, kind.weight_rank)
        return kind.read(message, shape, None).inputs
    except Refused:
        return 0


def _is_per_channel(graph: Graph, layer: Layer) -> bool:
    """Whether the first blob of an affine layer has one number a channel, whatever the shape
    of its bottom is."""
    kind = AFFINE.get(layer.type)
    if kind is None:
        return False
    message = graph.net.parsed(layer, kind.parameter, kind.message).message
    image = (1, -1, 1, 1)  # no other axis of it is like that of its channels
    shapes = kind.blob_shapes(message, (image,) * len(layer.bottoms))
    return shapes is not None and shapes[:1] == (image[1:2],)
