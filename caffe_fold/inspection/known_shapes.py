"""The shapes of a net's values as far as its prototxt tells them, axis by axis.

Behind a Convolution the number of channels is known, whatever the image's size is. So
the shapes are inferred twice, from different guesses of what is not told; what comes out
the same both times does not depend on the guess.
"""

from __future__ import annotations

from caffe_fold.layers.affine_map import Dims
from caffe_fold.nets.graph import Graph
from caffe_fold.verification.shapes import infer

__all__ = ["known_shapes"]

# Large enough for the strides of any net.
_GUESSES = ((1, 3, 2309, 2311), (2, 5, 2333, 2339))


def known_shapes(graph: Graph) -> list[Dims]:
    """The shape of each value of the graph; an axis that is not told is None, and a shape
    of which nothing is told is ()."""
    first, second = (infer(graph, {}, guess) for guess in _GUESSES)
    return [_agreed(first.get(i, ()), second.get(i, ())) for i in range(len(graph.values))]


def _agreed(one: tuple[int, ...], other: tuple[int, ...]) -> Dims:
    if len(one) != len(other):
        return ()
    dims = tuple(a if a == b else None for a, b in zip(one, other))
    return dims if any(dims) else ()
