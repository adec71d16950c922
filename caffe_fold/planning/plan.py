"""What is to be done to a net: folds, merges, removals, and what stays and why."""

from __future__ import annotations

from caffe_fold.layers.affine import AFFINE, AffineMap
from caffe_fold.named import NamedTuple
from caffe_fold.nets.net import Layer
from caffe_fold.planning.facts import AffineLayer, LinearLayer
from caffe_fold.planning.surgery import Surgery

__all__ = ["EXPLAINED", "Fold", "Merge", "Plan", "Removal", "Repair", "Stay"]

# The types of which each layer that stays is explained.
EXPLAINED = tuple(name for name, kind in AFFINE.items() if kind.explained)


class Fold(NamedTuple):
    """A linear layer and the affine layers that it absorbs, in the order of the data.

    ``before`` and ``behind`` are their composed maps, or None.
    """

    at: int
    linear: LinearLayer
    before: AffineMap | None
    behind: AffineMap | None
    layers_before: tuple[AffineLayer, ...]
    layers_behind: tuple[AffineLayer, ...]

    @property
    def changes_weights(self) -> bool:
        maps = (self.before, self.behind)
        return any(m is not None and not m.is_identity for m in maps)

    @property
    def needs_bias(self) -> bool:
        """Whether the folded layer has a bias: its own, or a shift that is not zero."""
        maps = (self.before, self.behind)
        return self.linear.bias is not None or any(m is not None and m.has_shift for m in maps)


class Merge(NamedTuple):
    """A run that becomes one Scale: ``keeper`` is the layer that is kept or rewritten."""

    at: int
    keeper: AffineLayer
    layers: tuple[AffineLayer, ...]
    map: AffineMap


class Removal(NamedTuple):
    """A run that changes nothing and disappears."""

    layers: tuple[AffineLayer, ...]


class Stay(NamedTuple):
    """A BatchNorm, Scale or Bias that stays, and why. ``type`` is what it is then, ``codes``
    has one for each reason, the way back first."""

    layer: Layer
    type: str
    codes: tuple[str, ...]
    sentence: str


class Repair(NamedTuple):
    """A layer whose prototxt implies a bias that the weights do not have, and that gets
    none: ``bias_term: false`` makes the pair load."""

    layer: Layer
    parameter: str


class Plan(NamedTuple):
    """All that is to be done to a net. ``surgery`` holds the graph as it will be."""

    surgery: Surgery
    folds: tuple[Fold, ...]
    merges: tuple[Merge, ...]
    removals: tuple[Removal, ...]
    repairs: tuple[Repair, ...]
    stays: tuple[Stay, ...]

    @property
    def changes_nothing(self) -> bool:
        return not (self.folds or self.merges or self.removals or self.repairs)
