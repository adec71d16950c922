"""How the weights are drawn: scaled as training leaves them, so that activations neither die nor
explode, and a comparison of two nets' outputs means something.
"""

from __future__ import annotations

import math

import numpy as np

from caffe_fold.demo.layers import FloatArray, Shape

__all__ = ["gain", "he_normal", "small_normal", "stored_factor", "stored_mean", "stored_variance"]

# A moving-average factor as solvers leave it: sum of 0.999^k over many iterations, nearly 1000.
# BatchNorm's mean and variance are stored multiplied by it.
_FACTOR = 999.98236


def _normal(rng: np.random.Generator, shape: Shape, std: float) -> FloatArray:
    """Normal values around 0, drawn as float64: NumPy's float32 stream differs by version."""
    return (rng.standard_normal(shape) * std).astype(np.float32)


def he_normal(rng: np.random.Generator, shape: Shape) -> FloatArray:
    """He et al., arXiv:1502.01852: variance 2 / fan-in keeps the signal through a ReLU."""
    return _normal(rng, shape, math.sqrt(2.0 / math.prod(shape[1:])))


def small_normal(rng: np.random.Generator, shape: Shape) -> FloatArray:
    """Biases and Scale's shifts."""
    return _normal(rng, shape, 0.2)


def stored_mean(rng: np.random.Generator, shape: Shape) -> FloatArray:
    """BatchNorm's blob 0: the mean, times the factor."""
    return _normal(rng, shape, 0.3 * _FACTOR)


def stored_variance(rng: np.random.Generator, shape: Shape) -> FloatArray:
    """BatchNorm's blob 1: the variance, times the factor.

    Its middle is about what these distributions bring about behind a convolution (tried: around
    1.0 the activations grow sevenfold on their way to the heads, and saturate the softmax).
    """
    return (rng.uniform(0.4, 2.8, shape) * _FACTOR).astype(np.float32)


def stored_factor(rng: np.random.Generator, shape: Shape) -> FloatArray:
    """BatchNorm's blob 2."""
    return np.full(shape, _FACTOR, dtype=np.float32)


def gain(rng: np.random.Generator, shape: Shape) -> FloatArray:
    """Scale's multiplier: about 1, and now and then negative, as trained nets have it."""
    magnitude = rng.uniform(0.5, 1.5, shape)
    sign = np.where(rng.uniform(size=shape) < 0.1, -1.0, 1.0)
    return (magnitude * sign).astype(np.float32)
