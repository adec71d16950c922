"""The types that are neither affine nor linear and whose top has the shape of its bottom."""

from __future__ import annotations

from caffe_fold.layers.affine import AFFINE

__all__ = ["ELEMENTWISE", "keeps_shape"]

# They make one number of one number; PReLU and Split are among them.
ELEMENTWISE = frozenset(
    (
        "AbsVal BNLL Clip Dropout ELU Exp HardSigmoid HardSwish Log Mish PReLU ReLU ReLU6 Sigmoid "
        "Split Swish TanH Threshold"
    ).split()
)
_MIXING = frozenset("LRN MVN Normalize ShuffleChannel Softmax".split())


def keeps_shape(type: str) -> bool:
    """Whether all tops of a layer of this type have the shape of its first bottom."""
    return type in AFFINE or type in ELEMENTWISE or type in _MIXING
