"""The arithmetic on arrays against its formula, and against layers run one after another."""

from __future__ import annotations

import doctest
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

import caffe_fold
from caffe_fold import arrays, fold_weights

Array = NDArray[Any]


def normalise(y: Array, bn: dict[str, Any]) -> Array:
    """BatchNorm and Scale on ``y`` of shape (N, ...), as Caffe computes them."""
    factor = bn.get("factor", 1.0)
    share = 0.0 if factor == 0 else 1.0 / factor
    gamma, beta = bn.get("gamma"), bn.get("beta")
    result = np.empty_like(y)
    for n in range(y.shape[0]):
        x = (y[n] - bn["mean"][n] * share) / np.sqrt(bn["variance"][n] * share + bn["eps"])
        result[n] = x * (1 if gamma is None else gamma[n]) + (0 if beta is None else beta[n])
    return result


@st.composite
def batch_norms(draw: st.DrawFn, outputs: int) -> dict[str, Any]:
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    given: dict[str, Any] = {
        "mean": rng.normal(0, 2, outputs),
        "variance": rng.uniform(0, 3, outputs),
        "eps": draw(st.sampled_from([1e-5, 1e-3, 1.0])),
    }
    if draw(st.booleans()):
        given["factor"] = draw(st.sampled_from([0.0, 1.0, 999.98236, 0.5]))
    for name in ("gamma", "beta"):
        values = draw(st.sampled_from([None, rng.normal(0, 1, outputs)]))
        if values is not None or draw(st.booleans()):
            given[name] = values
    return given


def convolve(weight: Array, bias: Array | None, x: Array, group: int) -> Array:
    """One output of a grouped convolution; ``x`` is (C, taps), ``weight`` (N, C/g, taps)."""
    outputs, inputs = weight.shape[0] // group, weight.shape[1]
    y = np.zeros(weight.shape[0])
    for n in range(weight.shape[0]):
        g = n // outputs
        y[n] = (weight[n] * x[g * inputs : (g + 1) * inputs]).sum()
    return y if bias is None else y + bias


def deconvolve(weight: Array, bias: Array | None, x: Array, group: int) -> Array:
    """One output of a grouped deconvolution; ``x`` is (C, taps), ``weight`` (C, N/g, taps)."""
    inputs, outputs = weight.shape[0] // group, weight.shape[1]
    y = np.zeros(outputs * group)
    for c in range(weight.shape[0]):
        for n in range(outputs):
            y[c // inputs * outputs + n] += (weight[c, n] * x[c]).sum()
    return y if bias is None else y + bias


@given(st.data(), st.integers(1, 3), st.integers(1, 3), st.integers(1, 3), st.integers(1, 4))
@settings(deadline=None)
@pytest.mark.parametrize("kind", ["convolution", "deconvolution"])
def test_a_folded_layer_gives_what_the_layers_gave(
    kind: str, data: st.DataObject, group: int, outputs: int, inputs: int, taps: int
) -> None:
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    total, channels = outputs * group, inputs * group
    shape = (total, inputs, taps) if kind == "convolution" else (channels, outputs, taps)
    weight = rng.normal(0, 1, shape)
    bias = data.draw(st.sampled_from([None, rng.normal(0, 1, total)]))
    bn = data.draw(batch_norms(total))
    x = rng.normal(0, 1, (channels, taps))
    run = convolve if kind == "convolution" else deconvolve
    options: dict[str, Any] = {} if kind == "convolution" else {"group": group, "transpose": True}
    new_weight, new_bias = fold_weights(weight, bias, **bn, **options)
    assert (new_weight.shape, new_bias.shape) == (weight.shape, (total,))
    wanted = normalise(run(weight, bias, x, group), bn)
    found = run(new_weight, new_bias, x, group)
    assert np.allclose(found, wanted, rtol=1e-10, atol=1e-9 * max(1, np.abs(wanted).max()))


@given(st.data(), st.integers(1, 4), st.integers(1, 5), st.booleans())
@settings(deadline=None)
def test_an_inner_product(data: st.DataObject, outputs: int, inputs: int, transpose: bool) -> None:
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    weight, bias = rng.normal(0, 1, (outputs, inputs)), rng.normal(0, 1, outputs)
    bn = data.draw(batch_norms(outputs))
    x = rng.normal(0, 1, inputs)
    stored = weight.T if transpose else weight
    new_weight, new_bias = fold_weights(stored, bias, **bn, transpose=transpose)
    folded = new_weight.T if transpose else new_weight
    wanted = normalise(weight @ x + bias, bn)
    assert np.allclose(folded @ x + new_bias, wanted, rtol=1e-10, atol=1e-9)


def test_each_value_by_hand() -> None:
    weight, bias = fold_weights(
        np.array([[2.0], [3.0]]), [1, 1], [4, 8], [16, 32], 0, [1, -1], [0, 5], factor=4
    )
    assert weight.tolist() == [[1.0], [-3.0 / np.sqrt(8)]]
    assert np.allclose(bias, [0, 5 + 1 / np.sqrt(8)])


def test_a_factor_of_zero_counts_mean_and_variance_as_zero() -> None:
    weight, bias = fold_weights(np.ones((1, 1)), [1.0], [7.0], [9.0], 0.25, factor=0)
    assert (weight.item(), bias.item()) == (2.0, 2.0)


@pytest.mark.parametrize(
    ("given", "made"),
    [("f2", "f2"), ("f4", "f4"), ("f8", "f8"), ("i4", "f8"), (">f4", ">f4")],
)
def test_the_weights_type_stays(given: str, made: str) -> None:
    weight, bias = fold_weights(np.ones((2, 1), given), None, [0, 0], [3, 3], 1.0)
    assert (weight.dtype, bias.dtype) == (np.dtype(made), np.dtype(made))
    assert weight.tolist() == [[0.5], [0.5]]


def test_weights_are_rounded_once() -> None:
    rng = np.random.default_rng(0)
    weight = rng.normal(0, 1, (50, 20)).astype(np.float32)
    mean, variance = rng.normal(0, 1, 50), rng.uniform(0.1, 2, 50)
    found, _ = fold_weights(weight, None, mean, variance)
    exact, _ = fold_weights(weight.astype(np.float64), None, mean, variance)
    assert np.array_equal(found, exact.astype(np.float32))


def test_the_arrays_given_are_not_changed() -> None:
    given = [np.ones((2, 2)), np.ones(2), np.ones(2), np.ones(2), np.ones(2), np.ones(2)]
    weight, bias, mean, variance, gamma, beta = given
    fold_weights(weight, bias, mean, variance, 3.0, gamma, beta, factor=2.0)
    assert all((array == 1).all() for array in given)


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ((np.ones((2, 2)), None, [0, 0, 0], [1, 1]), {}, "mean has 3 values and the layer 2"),
        ((np.ones((2, 2)), None, [0, 0], [1, 1, 1]), {}, "variance has 3 values"),
        ((np.ones((2, 2)), [1, 2, 3], [0, 0], [1, 1]), {}, "bias has 3 values"),
        ((np.ones((2, 2)), None, [0, 0], [1, 1], 1e-5, [1, 2, 3]), {}, "gamma has 3 values"),
        ((np.ones((2, 2)), None, [0, 0], [1, 1], 1e-5, None, []), {}, "beta has 0 values"),
        ((np.ones(2), None, [0, 0], [1, 1]), {}, "weight has the shape"),
        ((np.ones((0, 2)), None, [], []), {}, "weight has the shape"),
        ((np.ones((2, 2)), None, [0, 0], [1, -1]), {}, "is not positive"),
        ((np.ones((2, 2)), None, [0, 0], [1, np.nan]), {}, "is not positive"),
        ((np.ones((3, 2)), None, [0] * 4, [1] * 4), {"transpose": True, "group": 2}, "group 2"),
        ((np.ones((3, 2)), None, [0] * 2, [1] * 2), {"transpose": True, "group": 0}, "group 0"),
    ],
)
def test_what_does_not_fit_is_a_value_error(
    arguments: tuple[Any, ...], options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        fold_weights(*arguments, **options)


@pytest.mark.parametrize("odd", [np.ones((2, 3)) * 1j, np.zeros((2, 3), "M8[s]"), [["1", "2"]]])
def test_what_is_no_real_number_is_a_value_error(odd: Any) -> None:
    with pytest.raises(ValueError, match=r"weight holds .*, not real numbers"):
        fold_weights(odd, None, [1, 2], [1, 2])
    with pytest.raises(ValueError, match=r"mean holds .*, not real numbers"):
        fold_weights(np.ones((2, 3)), None, np.ravel(odd)[:2], [1, 2])


def test_what_is_too_large_for_the_dtype_is_a_value_error() -> None:
    weight = np.full((2, 3), 60000, np.float16)
    with pytest.raises(ValueError, match="a folded number is too large for float16"):
        fold_weights(weight, None, [0, 0], [1, 1], gamma=[1, 100])
    assert np.isinf(fold_weights(weight * np.inf, None, [0, 0], [1, 1])[0]).all()


@pytest.mark.parametrize("module", [arrays, caffe_fold], ids=lambda module: module.__name__)
def test_the_examples_in_the_docstrings_run(module: Any) -> None:
    result = doctest.testmod(module)
    assert result.attempted > 0
    assert result.failed == 0


def test_the_names_of_the_package_are_there() -> None:
    assert set(caffe_fold.__all__) <= set(dir(caffe_fold))
    for name in caffe_fold.__all__:
        assert getattr(caffe_fold, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = caffe_fold.nothing  # type: ignore[attr-defined]
