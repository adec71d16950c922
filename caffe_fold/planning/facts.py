"""What each layer of a graph is, with its weights: affine, linear, or why neither.

Here the two files meet: hyper-parameters from the prototxt, blobs from the
caffemodel, by layer name. Whatever does not fit is a Refused with its sentence,
and concerns its layer alone.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

import numpy as np

from caffe_fold.choices import Choices
from caffe_fold.errors import show
from caffe_fold.layers.affine import AFFINE, AffineMap, AffineType, Constants, Refused
from caffe_fold.layers.linear import LINEAR, Layout, fitted
from caffe_fold.named import NamedTuple
from caffe_fold.nets.graph import Graph
from caffe_fold.nets.messages import Parsed
from caffe_fold.nets.net import Layer
from caffe_fold.nets.prototxt import Field
from caffe_fold.planning.sharing import Sharing
from caffe_fold.weights.blob import Blob
from caffe_fold.weights.caffemodel import Caffemodel, Entry

__all__ = ["LAYER_FIELDS", "AffineLayer", "Facts", "LinearLayer"]

# Fields of a layer itself that do not change what it computes.
LAYER_FIELDS = frozenset(
    (
        "name type bottom top param loss_weight include exclude phase propagate_down blobs_lr "
        "weight_decay blob_share_mode"
    ).split()
)

CHOICES = Choices()


class AffineLayer(NamedTuple):
    """A layer that is an affine map. ``entries`` are its entries in the weights."""

    layer: Layer
    kind: AffineType
    map: AffineMap
    constants: Constants
    entries: tuple[Entry, ...]

    @property
    def blobs(self) -> tuple[Blob, ...]:
        """Its blobs in the weights."""
        return self.entries[0].blobs if self.entries else ()


class LinearLayer(NamedTuple):
    """A linear layer with its weights. ``bias`` is None where it has none;
    ``bias_term`` is what the prototxt says."""

    layer: Layer
    layout: Layout
    entries: tuple[Entry, ...]
    weight: Blob
    bias: Blob | None
    bias_term: bool


class Facts:
    """Answers, and remembers, what each layer of a graph is.

    ``blocked`` holds refusals found by computing, by layer index in the file.
    """

    def __init__(
        self,
        graph: Graph,
        model: Caffemodel,
        choices: Choices = CHOICES,
        blocked: dict[int, Refused] | None = None,
    ) -> None:
        self.graph = graph
        self.model = model
        self.choices = choices
        self.blocked = blocked or {}
        self.sharing = Sharing(graph, model)
        self.unknown: dict[int, tuple[str, ...]] = {}
        self._net_engines = self._named_engines(graph.net.document.fields)
        self._affine: dict[int, AffineLayer | Refused] = {}
        self._linear: dict[int, LinearLayer | Refused] = {}
        self._messages: dict[int, Parsed] = {}
        self._ranks: dict[int, int | None] | None = None

    def affine(self, at: int) -> AffineLayer:
        """The affine layer at a place in the graph; raises Refused if it is none."""
        if at not in self._affine:
            try:
                self._affine[at] = self._read_affine(at)
            except Refused as refusal:
                self._affine[at] = refusal
        found = self._affine[at]
        if isinstance(found, Refused):
            raise found
        return found

    def linear(self, at: int) -> LinearLayer:
        """The linear layer at a place in the graph; raises Refused if it is none."""
        if at not in self._linear:
            try:
                self._linear[at] = self._read_linear(at)
            except Refused as refusal:
                self._linear[at] = refusal
        found = self._linear[at]
        if isinstance(found, Refused):
            raise found
        return found

    # ---- Affine layers ----

    def _read_affine(self, at: int) -> AffineLayer:
        layer = self.graph.layers[at]
        kind = AFFINE.get(layer.type)
        if kind is None:
            raise Refused("not-affine", f"a {show(layer.type)} is no per-channel affine map")
        self._require_one_in_one_out(layer)
        self._require_unique_name(layer)
        if layer.has_loss_weight:
            raise Refused("loss-weight", "its 'loss_weight' makes its top a part of the loss")
        parsed = self.parsed(layer, kind.parameter, kind.message)
        entries, blobs = self._blobs(layer, kind.blobs) if max(kind.blobs) else ((), ())
        self.sharing.require_equal_copies(at)
        shapes = tuple(fitted(blob.shape, blob.legacy, 1) for blob in blobs)
        values = tuple(self.model.vector(blob) for blob in blobs)
        if not all(np.isfinite(v).all() for v in values):
            raise Refused("not-finite", "its blobs hold values that are not finite numbers")
        constants = Constants(
            parsed.message,
            values,
            shapes,
            self._rank_for(at, parsed),
            layer.phase or self.graph.state.phase,
            self._engines(layer, parsed),
            self.choices,
        )
        return AffineLayer(layer, kind, self._map(kind, constants), constants, entries)

    def _map(self, kind: AffineType, constants: Constants) -> AffineMap:
        if any(values.size == 0 for values in constants.blobs):
            raise Refused("blob-shape", "one of its blobs is empty")
        with np.errstate(all="ignore"):  # see is_finite
            found = kind.read(constants)
        if not found.is_finite:
            raise Refused("not-finite", "its scale or shift is not a finite number")
        return found

    def _require_one_in_one_out(self, layer: Layer) -> None:
        if len(layer.bottoms) == 1 and len(layer.tops) == 1:
            return
        if len(layer.bottoms) == 2 and len(layer.tops) == 1:
            raise Refused(
                "two-bottoms",
                f"its second bottom '{show(layer.bottoms[1])}' is computed by the net, "
                "not a constant",
            )
        raise Refused(
            "tops-and-bottoms",
            f"it has {len(layer.bottoms)} bottoms and {len(layer.tops)} tops, not one of each",
        )

    # ---- Linear layers ----

    def _read_linear(self, at: int) -> LinearLayer:
        layer = self.graph.layers[at]
        kind = LINEAR.get(layer.type)
        if kind is None:
            raise Refused("not-linear", f"layer {layer.described} is not linear")
        if layer.index in self.blocked:
            raise self.blocked[layer.index]
        try:
            return self._linear_of_kind(at, layer)
        except Refused as refusal:
            raise Refused(
                refusal.code, f"layer {layer.described} cannot get new weights: {refusal.sentence}"
            ) from None

    def _linear_of_kind(self, at: int, layer: Layer) -> LinearLayer:
        kind = LINEAR[layer.type]
        if len(layer.bottoms) != 1 or len(layer.tops) != 1:
            raise Refused(
                "tops-and-bottoms",
                f"it has {len(layer.bottoms)} bottoms and {len(layer.tops)} tops, and uses its "
                "weights once for each",
            )
        self._require_unique_name(layer)
        if layer.bottoms == layer.tops:
            raise Refused("in-place", "it works in place, which Caffe does not compute rightly")
        parsed = self.parsed(layer, kind.parameter, kind.message)
        entries, blobs = self._blobs(layer, (1, 2))
        if len(blobs) == 2 and not parsed.message.bias_term:
            raise Refused(
                "blob-count", "its prototxt says 'bias_term: false' and its weights have a bias"
            )
        rank = self._rank_for(at, parsed)
        shape = fitted(blobs[0].shape, blobs[0].legacy, kind.weight_rank)
        layout = kind.read(parsed.message, shape, rank)
        bias = blobs[1] if len(blobs) == 2 else None
        if bias is not None and fitted(bias.shape, bias.legacy, 1) != (layout.outputs,):
            raise Refused(
                "blob-shape", f"its bias has the shape {bias.shape}, not ({layout.outputs},)"
            )
        padding = next((f for f in self.unknown[layer.index] if _PADDING.search(f)), None)
        if padding and not layout.shift:
            layout = layout._replace(shift=f"its unknown field '{show(padding, 60)}' may pad it")
        return LinearLayer(layer, layout, entries, blobs[0], bias, parsed.message.bias_term)

    def lacks_bias(self, at: int) -> bool:
        """Whether a layer's prototxt implies a bias and its weights hold one blob."""
        layer = self.graph.layers[at]
        kind = LINEAR.get(layer.type) or (AFFINE["Scale"] if layer.type == "Scale" else None)
        entries = self.model.by_name.get(layer.name, ())
        if kind is None or not entries or len(entries[-1].blobs) != 1:
            return False
        if layer.type == "Scale" and len(layer.bottoms) != 1:
            return False
        if self.graph.name_counts[layer.name] > 1:  # the weights may be another one's
            return False
        if not layer.all(kind.parameter):  # it has no num_output either, and loads nowhere
            return False
        return bool(self._parsed(layer, kind.parameter, kind.message).message.bias_term)

    # ---- What both need ----

    def _engines(self, layer: Layer, parsed: Parsed) -> tuple[str, ...]:
        """The engines named for a layer: in itself, in its parameters, for the whole net."""
        return (*self._named_engines((*layer.fields, *parsed.fields)), *self._net_engines)

    def _named_engines(self, fields: Iterable[Field]) -> tuple[str, ...]:
        value = self.graph.net.document.value
        return tuple(value(f) for f in fields if f.name == "engine" and f.fields is None)

    def _rank_for(self, at: int, parsed: Parsed) -> int | None:
        """The rank of a layer's bottom, where an axis that counts from the end asks."""
        if getattr(parsed.message, "axis", 1) >= 0:
            return None
        if self._ranks is None:
            from caffe_fold.planning.ranks import ranks  # which hardly any net needs

            self._ranks = ranks(self.graph, self.model)
        return self._ranks[self.graph.bottoms[at][0]]

    def parsed(self, layer: Layer, name: str, message: type[Any]) -> Parsed:
        """A layer's hyper-parameters; remembers unknown fields, and raises Refused
        where one changes what the layer computes."""
        parsed = self._parsed(layer, name, message)
        own = [f.name for f in layer.fields if f.name not in LAYER_FIELDS and f.name != name]
        self.unknown[layer.index] = tuple(
            dict.fromkeys([*(f"{name}.{field}" for field in parsed.unknown), *own])
        )
        self._require_harmless(layer, parsed, [*parsed.unknown, *own])
        return parsed

    def _parsed(self, layer: Layer, name: str, message: type[Any]) -> Parsed:
        if layer.index not in self._messages:
            self._messages[layer.index] = self.graph.net.parsed(layer, name, message)
        return self._messages[layer.index]

    def _require_harmless(self, layer: Layer, parsed: Parsed, unknown: list[str]) -> None:
        document = self.graph.net.document
        for field in (*layer.fields, *parsed.fields):
            if field.name == "quantization_param":
                self._require_droppable()
            elif field.name in unknown and _ACTIVATION.search(field.name):
                value = "" if field.fields is not None else document.value(field)
                if value.strip("\"'") not in _OFF:
                    shown = f"{field.name}: {value}" if value else field.name
                    raise Refused(
                        "changes-computation",
                        f"its field '{show(shown, 60)}' changes what it computes",
                    )

    def _require_droppable(self) -> None:
        if not self.choices.drop_quantization:
            raise Refused(
                "quantization",
                "its 'quantization_param' holds scales of the weights as they are "
                "(--drop-quantization drops it and folds)",
            )

    def _require_unique_name(self, layer: Layer) -> None:
        if self.graph.name_counts[layer.name] > 1:
            raise Refused(
                "duplicate-name",
                f"{self.graph.name_counts[layer.name]} layers of the net are named "
                f"'{show(layer.name)}', and weights go by name",
            )

    def _blobs(
        self, layer: Layer, counts: tuple[int, ...]
    ) -> tuple[tuple[Entry, ...], tuple[Blob, ...]]:
        """The entries and blobs of a layer in the weights."""
        entries = self.model.by_name.get(layer.name, ())
        if not entries:
            raise Refused("no-weights", "the weights have no layer of its name")
        if entries[0].is_v0:
            raise Refused(
                "old-format",
                "its weights are of the format before 'layers' (Caffe's upgrade_net_proto_binary "
                "writes the newer)",
            )
        blobs = entries[0].blobs
        for other in entries[1:]:
            if not self.model.same_blobs(blobs, other.blobs):
                raise Refused(
                    "duplicate-weights",
                    f"the weights hold {len(entries)} layers of its name with different blobs",
                )
        if len(blobs) not in counts:
            raise Refused(
                "no-weights" if not blobs else "blob-count",
                f"its type has {_either(counts)} and its weights {_shapes(blobs)}",
            )
        for index, blob in enumerate(blobs):
            if blob.problem:
                raise Refused("blob-shape", f"in its blob {index} {blob.problem}")
        return entries, blobs


def _either(counts: tuple[int, ...]) -> str:
    *others, last = map(str, counts)
    return f"{', '.join(others)} or {last} blobs" if others else f"{last} blob{'s' * (last != '1')}"


def _shapes(blobs: tuple[Blob, ...]) -> str:
    if not blobs:
        return "none"
    return f"{len(blobs)}: {', '.join(str(blob.shape) for blob in blobs)}"


# Fields by which a fork makes a layer more than its type says: Intel's relu, negative_slope
# and fusion_type of a ConvolutionParameter, relu of a BatchNormParameter, and their like.
_ACTIVATION = re.compile(
    "relu|leaky|activation|fusion|fuse|negative_slope|sigmoid|tanh|clip", re.IGNORECASE
)
_OFF = frozenset(
    ("false", "False", "f", "0", "0.0", "0.", "0.f", "UNFUSED", "NONE", "none", "LINEAR", "linear")
)
# Fields that may pad a convolution's input as no BVLC field does.
_PADDING = re.compile("pad|same|border", re.IGNORECASE)
