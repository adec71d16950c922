"""As what an engine gets a layer: types of forks become their equals of standard Caffe, as
far as they have one. ``text`` writes them.
"""

from __future__ import annotations

from caffe_fold.layers.affine import AFFINE, Refused
from caffe_fold.layers.linear import LINEAR
from caffe_fold.nets.fields import fields_of
from caffe_fold.nets.net import Layer
from caffe_fold.verification.engine import SPECIAL, TRANSPOSED, WEIGHTLESS, ungrouped
from caffe_fold.verification.sides import Side

__all__ = ["can_be_written", "is_retyped", "kind_to_run", "may_be_misread", "standard_type"]


def standard_type(layer: Layer) -> str:
    """The type under which an engine gets a layer."""
    if layer.type in LINEAR:
        return LINEAR[layer.type].standard or layer.type
    return "BatchNorm" if _has_standard(layer) else layer.type


def _has_standard(layer: Layer) -> bool:
    """Whether an affine layer can be written as a BatchNorm and a Scale."""
    kind = AFFINE.get(layer.type)
    return kind is not None and kind.standard is not None and len(layer.bottoms) == 1


def kind_to_run(side: Side, at: int) -> str:
    """What an engine has to know to run a layer: its type there, or more than that."""
    layer = side.graph.layers[at]
    kind, fields = standard_type(layer), fields_of(side.graph.net.document, layer)
    messages = fields.messages("inner_product_param") if kind == "InnerProduct" else []
    if any(message.flag("transpose") for message in messages):
        return TRANSPOSED
    if ungrouped(kind) in SPECIAL:
        name = "shuffle_channel_param" if kind == "ShuffleChannel" else "convolution_param"
        if any(message.integer("group", 1) == 0 for message in fields.messages(name)):
            return ungrouped(kind)
    if kind == "Deconvolution":
        entry = side.entry(layer)
        if entry is None or not entry.blobs or not entry.blobs[0].count:
            return WEIGHTLESS
    return layer.type if _is_plain_bias(side, at) else kind


def is_retyped(side: Side, at: int) -> bool:
    """Whether a layer has to be written as others, because of its type or its blobs."""
    layer = side.graph.layers[at]
    if layer.type != "BatchNorm":
        return _has_standard(layer) and not _is_plain_bias(side, at)
    entry = side.entry(layer)
    return entry is not None and (len(entry.blobs) != 3 or side.facts.choices.assume_global_stats)


def can_be_written(side: Side, at: int) -> bool:
    """Whether a layer can be written for an engine, as it is or as its standard equal."""
    return not is_retyped(side, at) or _is_affine(side, at)


def may_be_misread(side: Side, at: int) -> bool:
    """Whether an engine may take a layer for another than it is. A Bias is what Caffe says; it
    is written as others for OpenCV, which has none."""
    return is_retyped(side, at) and side.graph.layers[at].type != "Bias"


def _is_plain_bias(side: Side, at: int) -> bool:
    """Whether a layer is a Bias that cannot be written as a Scale."""
    return side.graph.layers[at].type == "Bias" and not _is_affine(side, at)


def _is_affine(side: Side, at: int) -> bool:
    try:
        side.facts.affine(at)
    except Refused:
        return False
    return True
