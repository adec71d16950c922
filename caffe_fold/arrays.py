"""The arithmetic of folding on plain arrays, for those who have no files."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from caffe_fold.layers.affine import AffineMap
from caffe_fold.layers.linear import Layout
from caffe_fold.writing.arithmetic import Folding

__all__ = ["fold_weights"]

if TYPE_CHECKING:
    # NumPy 1.21 takes no np.floating[Any] where it runs.
    Float = NDArray[np.floating[Any]]


def fold_weights(
    weight: ArrayLike,
    bias: ArrayLike | None,
    mean: ArrayLike,
    variance: ArrayLike,
    eps: float = 1e-5,
    gamma: ArrayLike | None = None,
    beta: ArrayLike | None = None,
    *,
    factor: float = 1.0,
    group: int = 1,
    transpose: bool = False,
) -> tuple[Float, Float]:
    """Fold a BatchNorm, and a Scale if there is one, into the linear layer before them.

    What ``torch.nn.utils.fusion.fuse_conv_bn_weights`` is for PyTorch, with Caffe's
    moving-average factor. Computed in float64 and rounded once::

        a = gamma / sqrt(variance / factor + eps)
        weight' = a * weight        bias' = a * (bias - mean / factor) + beta

    :param weight: shape (N, ...): a Convolution's (N, C/g, k...) or an InnerProduct's
        (N, K). With ``transpose`` the outputs lie on axis 1: a Deconvolution's
        (C, N/g, k...) or a transposed InnerProduct's (K, N).
    :param bias: shape (N,), or None for none.
    :param mean: shape (N,), as stored: not yet divided by ``factor``.
    :param variance: shape (N,), likewise.
    :param eps: BatchNorm's eps.
    :param gamma: shape (N,), the Scale's multiplier; None for ones.
    :param beta: shape (N,), the Scale's bias; None for zeros.
    :param factor: BatchNorm's third blob. With 0, mean and variance count as 0, as in
        Caffe.
    :param group: the groups of a Deconvolution (a Convolution's do not matter here).
    :returns: the new weight and bias, of ``weight``'s shape and (N,), in its dtype.
    :raises ValueError: if shapes do not fit, ``variance / factor + eps`` is not positive, values
        are no real numbers, or a result is too large for the dtype.

    Source: BatchNormLayer::Forward_cpu and ScaleLayer::Forward_cpu in BVLC Caffe.

    >>> import numpy as np
    >>> weight, bias = fold_weights(np.ones((2, 3)), None, mean=[1, 2], variance=[4, 9], eps=0)
    >>> bias
    array([-0.5       , -0.66666667])
    """
    given = _real(weight, "weight")
    if not np.issubdtype(given.dtype, np.floating):
        given = given.astype(np.float64)
    layout = _layout(given, group, transpose)
    size = layout.outputs
    share = 0.0 if factor == 0 else 1.0 / factor
    inside = share * _vector(variance, size, "variance") + eps
    if not (inside > 0).all():
        raise ValueError("variance / factor + eps is not positive in every channel")
    scale = _vector(1.0 if gamma is None else gamma, size, "gamma") / np.sqrt(inside)
    shift = _vector(0.0 if beta is None else beta, size, "beta")
    shift = shift - scale * share * _vector(mean, size, "mean")
    folding = Folding(layout, None, AffineMap(scale, shift, size))
    block = given.astype(np.float64).reshape(layout.rows, layout.cols)
    old = None if bias is None else _vector(bias, size, "bias")
    new = folding.weights(block, 0, 0).reshape(given.shape)
    return _rounded(new, given.dtype), _rounded(folding.bias(old, np.zeros(size)), given.dtype)


def _real(values: ArrayLike, name: str) -> NDArray[Any]:
    array = np.asarray(values)
    if array.dtype.kind not in "fiub":
        raise ValueError(f"{name} holds {array.dtype}, not real numbers")
    return array


def _rounded(values: NDArray[np.float64], dtype: np.dtype[Any]) -> Float:
    with np.errstate(over="ignore"):
        found = values.astype(dtype)
    if (np.isfinite(values) & ~np.isfinite(found)).any():
        raise ValueError(f"a folded number is too large for {dtype}")
    return found


def _layout(weight: NDArray[Any], group: int, transpose: bool) -> Layout:
    if weight.ndim < 2 or weight.size == 0:
        raise ValueError(f"weight has the shape {weight.shape}; expected (N, ...) of two or more")
    if not transpose:
        return Layout("convolution", weight.shape[0], weight.shape[1], 1, _taps(weight), "")
    if group < 1 or weight.shape[0] % group:
        raise ValueError(f"group {group} does not divide the {weight.shape[0]} input channels")
    outputs = weight.shape[1] * group
    return Layout("deconvolution", outputs, weight.shape[0], group, _taps(weight), "")


def _taps(weight: NDArray[Any]) -> int:
    return int(weight.size // (weight.shape[0] * weight.shape[1]))


def _vector(values: ArrayLike, size: int, name: str) -> NDArray[np.float64]:
    array = _real(values, name).astype(np.float64).ravel()
    if array.size not in (1, size):
        raise ValueError(f"{name} has {array.size} values and the layer {size} outputs")
    return np.broadcast_to(array, (size,))
