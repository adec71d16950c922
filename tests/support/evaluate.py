"""An evaluator of Caffe nets in float64 numpy, to judge a folded net by.

    >>> result = evaluate("deploy.prototxt", "net.caffemodel", {"data": image})
    >>> result.blobs["prob"], result.tops["conv1", "conv1"]

It is independent of the code under test: it has its own reader of the text and
its own graph. It runs the TEST phase, binds weights by layer name as Caffe
does, and raises :class:`~support.netdef.NetError` where Caffe would abort.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from . import layers_elementwise, layers_fork, layers_linear, layers_shape
from .blobspecs import blob_specs
from .netdef import Layer, NetDef, NetError, check_graph, read_net
from .prototext import Message
from .registry import FORWARD, Array, Call, Unsupported
from .weights import Binder, Weights, read_weights

# Importing these modules fills the registry.
_REGISTERED = (layers_elementwise, layers_fork, layers_linear, layers_shape)


@dataclass
class Evaluation:
    """What a forward pass computed.

    ``blobs`` has the final value of each blob; ``tops`` each top by (layer
    name, blob name) as it was right after that layer ran, so that values that
    are overwritten in place are seen too; ``writers`` the name of the layer
    that wrote each blob last; ``unknown`` the blobs that could not be computed
    (only with ``lenient``).
    """

    blobs: dict[str, Array] = field(default_factory=dict)
    tops: dict[tuple[str, str], Array] = field(default_factory=dict)
    writers: dict[str, str] = field(default_factory=dict)
    unknown: set[str] = field(default_factory=set)
    net: NetDef | None = None

    def by_caffe_key(self) -> dict[str, Array]:
        """Return all values, keyed as :func:`support.engines.caffe_forward` does."""
        tops = {f"{layer}@{top}": value for (layer, top), value in self.tops.items()}
        return {**self.blobs, **tops}

    def by_layer(self) -> dict[str, Array]:
        """Return each layer's tops, keyed as :func:`support.engines.opencv_forward` does."""
        found: dict[str, Array] = {}
        for layer in self.net.layers if self.net else ():
            for place, top in enumerate(layer.tops):
                if (layer.name, top) in self.tops:
                    key = f"{layer.name}.{place}" if place else layer.name
                    found[key] = self.tops[layer.name, top]
        return found


class Evaluator:
    """A net with its weights, to be run on any number of inputs."""

    def __init__(
        self,
        prototxt: str | Path,
        caffemodel: str | Path | bytes,
        stages: Sequence[str] = (),
        level: int = 0,
    ) -> None:
        self.net = read_net(prototxt, stages, level)
        self.weights: list[Weights] = read_weights(caffemodel)

    def run(self, inputs: Mapping[str, npt.ArrayLike], lenient: bool = False) -> Evaluation:
        """Run the net forward on the inputs, by blob name.

        An input is taken for a blob that an Input or data layer makes, or that
        nothing makes. With ``lenient``, a layer that cannot be run leaves its
        tops unknown, and so on behind it, instead of raising Unsupported.
        """
        given = {name: np.asarray(value, dtype=np.float64) for name, value in inputs.items()}
        made = {top for layer in self.net.layers for top in layer.tops}
        result = Evaluation(net=self.net, blobs={k: v for k, v in given.items() if k not in made})
        check_graph(self.net, sorted(given))
        binder = Binder(self.net, self.weights)
        for index, layer in enumerate(self.net.layers):
            missing = [name for name in layer.bottoms if name not in result.blobs]
            try:
                if missing:
                    raise Unsupported(f"its bottoms {missing} are unknown")
                if layer.bottoms:
                    tops = _run_layer(layer, index, binder, result)
                else:
                    tops = _source(layer, given)
            except Unsupported as error:
                if not lenient:
                    raise Unsupported(f"layer {layer.name!r} ({layer.type}): {error}") from None
                _forget(layer, result)
                continue
            _keep(layer, tops, result)
        return result


def evaluate(
    prototxt: str | Path,
    caffemodel: str | Path | bytes,
    inputs: Mapping[str, npt.ArrayLike],
    stages: Sequence[str] = (),
    level: int = 0,
    lenient: bool = False,
) -> Evaluation:
    """Run a net forward once; see :class:`Evaluator`."""
    return Evaluator(prototxt, caffemodel, stages, level).run(inputs, lenient)


def _run_layer(layer: Layer, index: int, binder: Binder, result: Evaluation) -> list[Array | None]:
    bottoms = [result.blobs[name] for name in layer.bottoms]
    specs = blob_specs(layer, [bottom.shape for bottom in bottoms])
    blobs = binder.blobs(index, specs)
    if layer.type not in FORWARD:
        raise Unsupported("no such layer here")
    try:
        with np.errstate(all="ignore"):  # a NaN is then the net's own, as in Caffe
            tops = FORWARD[layer.type](Call(layer, bottoms, blobs))
    except (NetError, ValueError) as error:  # numpy's: shapes that do not go together
        raise NetError(f"layer {layer.name!r}: {error}") from None
    if len(tops) != len(layer.tops):
        raise NetError(f"layer {layer.name!r}: {len(layer.tops)} tops, but {len(tops)} values")
    return [*tops]


def _source(layer: Layer, given: Mapping[str, Array]) -> list[Array | None]:
    """Return the tops of a layer without bottoms: they are given, or constant fillers.

    A data layer's label need not be given where nothing reads it.
    """
    if any(top in given for top in layer.tops):
        return [given.get(top) for top in layer.tops]
    if layer.type == "DummyData":
        return dummy_data(layer)
    raise Unsupported(f"no input given for {list(layer.tops)}")


def dummy_data(layer: Layer) -> list[Array | None]:
    """Return the tops of a DummyData layer with constant fillers."""
    params = layer.params("dummy_data_param")
    shapes = [shape.integers("dim") for shape in params.messages("shape")]
    fillers = params.messages("data_filler") or [Message()]
    if any(filler.text("type", "constant") != "constant" for filler in fillers):
        raise Unsupported("random data")
    shapes *= len(layer.tops) if len(shapes) == 1 else 1
    fillers *= len(layer.tops) if len(fillers) == 1 else 1
    return [np.full(shape, filler.real("value")) for shape, filler in zip(shapes, fillers)]


def _keep(layer: Layer, tops: list[Array | None], result: Evaluation) -> None:
    for name, value in zip(layer.tops, tops):
        if value is None:
            result.unknown.add(name)
            continue
        result.blobs[name] = value
        result.tops[layer.name, name] = value
        result.writers[name] = layer.name
        result.unknown.discard(name)


def _forget(layer: Layer, result: Evaluation) -> None:
    for name in layer.tops:
        result.blobs.pop(name, None)
        result.writers[name] = layer.name
        result.unknown.add(name)
