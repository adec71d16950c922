"""Every layout of BatchNorm, BN and CuDNNBatchNorm folds by its own formula, or is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.nets import Net
from support.weights import read_weights

import caffe_fold
from caffe_fold.choices import Choices
from caffe_fold.layers.affine import AFFINE, Constants
from caffe_fold.report import Report

C = 4
RNG = np.random.default_rng(7)
MEAN, BIAS = RNG.normal(0, 0.5, (2, C))
VARIANCE, SCALE = RNG.uniform(0.3, 2, (2, C))
SCALE[1] = -SCALE[1]
ONE = np.ones(1)
FACTOR = np.full(1, 999.98)


def folded(
    folder: Path,
    type: str,
    params: str,
    blobs: list[Any],
    extra: str = "",
    channels: int = C,
    **options: Any,
) -> tuple[Report, list[Any]]:
    """Fold Input, Convolution, and one normalising layer; the report and the blobs of the
    convolution, as float64 arrays."""
    net = Net()
    net.input("data", (1, 3, 5, 5))
    net.conv("conv", "data", 3, channels, bias=False)
    net.layer("norm", type, "conv", "conv", params, blobs, extra=extra)
    model, weights = net.write(folder)
    out = folder / "out.prototxt", folder / "out.caffemodel"
    report = caffe_fold.fold(model, weights, *out, **options)
    (entry,) = [e for e in read_weights(out[1].read_bytes()) if e.name == "conv"]
    (original,) = [e for e in read_weights(weights.read_bytes()) if e.name == "conv"]
    return report, [original.blobs[0].array(), *(blob.array() for blob in entry.blobs)]


def expect(
    done: tuple[Report, list[Any]],
    eps: float = 1e-5,
    factor: float = 1.0,
    scale: Any = None,
    bias: Any = None,
    deviation: Any = None,
) -> None:
    """Assert that the folded convolution holds the formula's numbers."""
    report, (old, weight, shift) = done
    gain = 1 / np.sqrt(VARIANCE / factor + np.float32(eps)) if deviation is None else deviation
    gain = gain * (1 if scale is None else scale)
    offset = -gain * MEAN / factor + (0 if bias is None else bias)
    np.testing.assert_allclose(weight, old * gain[:, None, None, None], rtol=1e-6)
    np.testing.assert_allclose(shift, offset, rtol=1e-5, atol=1e-7)
    assert report.after.by_type == {"Input": 1, "Convolution": 1}
    assert report.checked is not None


def refused(done: tuple[Report, list[Any]]) -> tuple[str, str]:
    """The code and the sentence of a layer that stays."""
    report, blobs = done
    assert len(blobs) == 2, "the convolution got a bias"
    (stay,) = report.stayed
    assert stay.layer == "norm"
    return stay.code, stay.reason


def test_two_blobs_have_no_factor(tmp_path: Path) -> None:
    expect(folded(tmp_path, "BatchNorm", "", [MEAN, VARIANCE]))


@pytest.mark.parametrize("factor", [999.98, 0.5])
def test_three_blobs_divide_by_the_factor(tmp_path: Path, factor: float) -> None:
    blobs = [MEAN, VARIANCE, [factor]]
    expect(folded(tmp_path, "BatchNorm", "batch_norm_param { eps: 0.01 }", blobs), 0.01, factor)


NVIDIA = "batch_norm_param { scale_bias: true eps: 1e-8 use_global_stats: false }"
INTEL = "batch_norm_param { use_weight_bias: true bias_term: true eps: 1e-8 }"
FIVE = [MEAN, VARIANCE, FACTOR, SCALE, BIAS]
OLD_FIVE = [SCALE, BIAS, MEAN, VARIANCE, ONE]


def test_nvidia_ignores_the_factor_and_has_a_least_eps(tmp_path: Path) -> None:
    expect(folded(tmp_path, "BatchNorm", NVIDIA, FIVE), 1e-5, 1, SCALE, BIAS)


@pytest.mark.parametrize(
    ("params", "extra"),
    [
        (INTEL, ""),
        ("batch_norm_param { eps: 1e-8 filler { value: 1 } bias_filler { value: 0 } }", ""),
        ("batch_norm_param { eps: 1e-8 engine: MKLDNN }", ""),
        ("batch_norm_param { eps: 1e-8 }", 'engine: "MKL2017"'),
    ],
)
def test_intel_divides_by_the_factor_and_has_no_least_eps(
    tmp_path: Path, params: str, extra: str
) -> None:
    expect(folded(tmp_path, "BatchNorm", params, FIVE, extra), 1e-8, FACTOR[0], SCALE, BIAS)


def test_intel_with_four_blobs_has_no_bias(tmp_path: Path) -> None:
    done = folded(tmp_path, "BatchNorm", "batch_norm_param { use_weight_bias: true }", FIVE[:4])
    expect(done, factor=FACTOR[0], scale=SCALE)


def test_intel_normalises_by_the_batch_where_it_says_so(tmp_path: Path) -> None:
    params = "batch_norm_param { use_weight_bias: true use_global_stats: false }"
    assert refused(folded(tmp_path, "BatchNorm", params, FIVE))[0] == "batch-statistics"


def test_without_signs_five_blobs_fold_where_both_forks_agree(tmp_path: Path) -> None:
    blobs = [MEAN, VARIANCE, ONE, SCALE, BIAS]
    expect(folded(tmp_path, "BatchNorm", "", blobs), 1e-5, 1, SCALE, BIAS)


@pytest.mark.parametrize(
    ("params", "blobs"),
    [
        ("", FIVE),
        ("batch_norm_param { eps: 1e-6 }", [MEAN, VARIANCE, ONE, SCALE, BIAS]),
        ("batch_norm_param { use_global_stats: false }", [MEAN, VARIANCE, ONE, SCALE, BIAS]),
        ("batch_norm_param { bias_filler { value: 0 } }", FIVE),
        ("batch_norm_param { scale_bias: true use_weight_bias: true }", FIVE),
    ],
)
def test_what_the_files_do_not_tell_is_refused(
    tmp_path: Path, params: str, blobs: list[Any]
) -> None:
    code, sentence = refused(folded(tmp_path, "BatchNorm", params, blobs))
    assert code == "bn-layout"
    assert "--bn-layout" in sentence


def test_the_user_may_tell(tmp_path: Path) -> None:
    for name, factor in (("nvidia", 1.0), ("intel", FACTOR[0])):
        (tmp_path / name).mkdir()
        done = folded(tmp_path / name, "BatchNorm", "", FIVE, bn_layout=name)
        expect(done, 1e-5, factor, SCALE, BIAS)


def test_the_old_order_is_told_by_its_last_blob(tmp_path: Path) -> None:
    expect(folded(tmp_path, "BatchNorm", "", OLD_FIVE), 1e-5, 1, SCALE, BIAS)


def test_the_old_order_with_a_factor_is_told_by_the_user_alone(tmp_path: Path) -> None:
    blobs = [SCALE, BIAS, MEAN, VARIANCE, FACTOR]
    assert refused(folded(tmp_path, "BatchNorm", "", blobs))[0] == "bn-layout"
    (tmp_path / "told").mkdir()
    done = folded(tmp_path / "told", "BatchNorm", "", blobs, bn_layout="digits")
    expect(done, 1e-5, 1, SCALE, BIAS)


def test_with_one_channel_the_order_cannot_be_told(tmp_path: Path) -> None:
    blobs = [[0.5], [1.5], [1.0], [2.0], [0.25]]
    done = folded(tmp_path, "BatchNorm", NVIDIA, blobs, channels=1)
    code, sentence = refused(done)
    assert (code, "nvidia or digits (--bn-layout does)" in sentence) == ("bn-layout", True)
    for name, gain, offset in (
        ("nvidia", 2 / np.sqrt(1.5 + 1e-5), 0.25 - 0.5 * 2 / np.sqrt(1.5 + 1e-5)),
        ("digits", 0.5 / np.sqrt(2 + 1e-5), 1.5 - 1.0 * 0.5 / np.sqrt(2 + 1e-5)),
    ):
        (tmp_path / name).mkdir()
        folder = tmp_path / name
        _, (old, weight, shift) = folded(
            folder, "BatchNorm", NVIDIA, blobs, channels=1, bn_layout=name
        )
        np.testing.assert_allclose(weight, old * gain, rtol=1e-6)
        np.testing.assert_allclose(shift, [offset], rtol=1e-6)


def test_blobs_in_no_known_layout_are_described(tmp_path: Path) -> None:
    code, sentence = refused(folded(tmp_path, "BatchNorm", "", [MEAN, VARIANCE, SCALE, BIAS]))
    assert code == "bn-layout"
    assert "4 blobs of the shapes (4,), (4,), (4,), (4,)" in sentence


@pytest.mark.parametrize(
    ("params", "count"),
    [
        ("scale_bias: true", 3),
        ("scale_filler { value: 1 }", 3),
        ("bias_filler { value: 0 }", 3),
        ("use_weight_bias: true", 3),
        ("bias_term: true", 3),
        ("scale_bias: true", 4),
        ("bias_term: true", 4),
        ("scale_bias: false", 5),
        ("use_weight_bias: false", 5),
        ("use_weight_bias: true bias_term: false", 5),
    ],
)
def test_blobs_that_the_prototxt_does_not_ask_for(tmp_path: Path, params: str, count: int) -> None:
    blobs = [MEAN, VARIANCE, ONE, SCALE, BIAS][:count]
    done = folded(tmp_path, "BatchNorm", f"batch_norm_param {{ {params} }}", blobs)
    assert refused(done)[0] == "blob-count"


def test_a_choice_that_does_not_fit_the_blobs_is_no_choice(tmp_path: Path) -> None:
    done = folded(tmp_path, "BatchNorm", "", FIVE, bn_layout="digits")
    code, sentence = refused(done)
    assert code == "bn-layout"
    assert "--bn-layout digits does not fit" in sentence


def test_both_signs_fold_where_both_readings_are_equal(tmp_path: Path) -> None:
    params = "batch_norm_param { scale_bias: true use_weight_bias: true }"
    done = folded(tmp_path, "BatchNorm", params, [MEAN, VARIANCE, ONE, SCALE, BIAS])
    expect(done, 1e-5, 1, SCALE, BIAS)


def test_an_engine_for_the_whole_net_is_a_sign(tmp_path: Path) -> None:
    net = Net()
    net.header += 'engine: "MKLDNN"\n'
    net.input("data", (1, 3, 5, 5))
    net.conv("conv", "data", 3, C)
    net.layer("norm", "BatchNorm", "conv", "conv", "", FIVE)
    model, weights = net.write(tmp_path)
    out = tmp_path / "out.prototxt", tmp_path / "out.caffemodel"
    assert caffe_fold.fold(model, weights, *out).left == 0


@pytest.mark.parametrize("layout", ["nvidia", "digits"])
def test_four_blobs_of_one_channel_are_intels_or_none(tmp_path: Path, layout: str) -> None:
    blobs = [[0.5], [1.5], [1.0], [2.0]]
    done = folded(tmp_path, "BatchNorm", "", blobs, channels=1, bn_layout=layout)
    assert refused(done)[0] == "bn-layout"


# ---- BN and CuDNNBatchNorm ----

BN_BLOBS = [blob.reshape(1, C, 1, 1) for blob in (SCALE, BIAS, MEAN, VARIANCE)]


@pytest.mark.parametrize("params", ["", "bn_param { frozen: true }"])
def test_bn_of_four_blobs(tmp_path: Path, params: str) -> None:
    done = folded(tmp_path, "BN", params, BN_BLOBS)
    expect(done, 1e-5, 1, SCALE, BIAS)
    assert [note.code for note in done[0].notes] == ["bn-variance"]


def test_bn_of_old_files_holds_the_inverse_deviation(tmp_path: Path) -> None:
    done = folded(tmp_path, "BN", "bn_param { eps: 0.01 }", BN_BLOBS, bn_variance="invstd")
    expect(done, scale=SCALE, bias=BIAS, deviation=VARIANCE)


def test_bn_of_two_blobs_folds_in_mode_inference(tmp_path: Path) -> None:
    blobs = [SCALE.reshape(1, C, 1, 1), BIAS.reshape(1, C, 1, 1)]
    _, (old, weight, shift) = folded(tmp_path, "BN", "bn_param { bn_mode: INFERENCE }", blobs)
    np.testing.assert_allclose(weight, old * SCALE[:, None, None, None], rtol=1e-6)
    np.testing.assert_allclose(shift, BIAS, rtol=1e-6)


@pytest.mark.parametrize("params", ["", "bn_param { bn_mode: LEARN }"])
def test_bn_of_two_blobs_learns_by_default(tmp_path: Path, params: str) -> None:
    code, sentence = refused(folded(tmp_path, "BN", params, [SCALE, BIAS]))
    assert code == "batch-statistics"
    assert "bn_mode: INFERENCE" in sentence


def test_bn_with_several_tops_is_refused(tmp_path: Path) -> None:
    extra = 'top: "mean" top: "deviation"'
    done = folded(tmp_path, "BN", "bn_param { bn_mode: INFERENCE }", [SCALE, BIAS], extra)
    assert refused(done)[0] == "tops-and-bottoms"


def test_bn_of_three_blobs_is_described(tmp_path: Path) -> None:
    code, sentence = refused(folded(tmp_path, "BN", "", [SCALE, BIAS, MEAN]))
    assert code == "blob-count"
    assert "3: (4,), (4,), (4,)" in sentence


@pytest.mark.parametrize("count", [2, 3, 4])
def test_cudnn_batch_norm(tmp_path: Path, count: int) -> None:
    blobs = [MEAN, VARIANCE, SCALE, BIAS][:count]
    done = folded(tmp_path, "CuDNNBatchNorm", "batch_norm_param { eps: 0.001 }", blobs)
    expect(done, 1e-3, 1, SCALE if count > 2 else None, BIAS if count > 3 else None)
    assert [note.code for note in done[0].notes] == ["cudnn-layout"]


def test_cudnn_batch_norm_of_one_channel_and_two_blobs(tmp_path: Path) -> None:
    done = folded(tmp_path, "CuDNNBatchNorm", "", [[0.5], [3.0]], channels=1)
    _, (old, weight, shift) = done
    np.testing.assert_allclose(weight, old / np.sqrt(3 + 1e-5), rtol=1e-6)
    np.testing.assert_allclose(shift, [-0.5 / np.sqrt(3 + 1e-5)], rtol=1e-6)


def test_cudnn_batch_norm_of_one_channel_and_three_blobs_is_not_guessed(tmp_path: Path) -> None:
    done = folded(tmp_path, "CuDNNBatchNorm", "", [[1.0], [1.0], [1.0]], channels=1)
    assert refused(done)[0] == "bn-layout"


def test_an_unknown_normalising_type_is_noted(tmp_path: Path) -> None:
    report, _ = folded(tmp_path, "SyncBN", "", [SCALE, BIAS])
    assert "unknown-type" in [note.code for note in report.notes]


def test_cudnn_batch_norm_with_a_factor_is_described(tmp_path: Path) -> None:
    done = folded(tmp_path, "CuDNNBatchNorm", "", [MEAN, VARIANCE, ONE])
    assert refused(done)[0] == "bn-layout"


# Type, parameters, blobs, and what the user has to say.
EQUALS: list[tuple[str, dict[str, Any], list[Any], Choices]] = [
    ("BatchNorm", {}, [MEAN, VARIANCE], Choices()),
    ("BatchNorm", {"eps": 0.01}, [MEAN, VARIANCE, FACTOR], Choices()),
    ("BatchNorm", {"use_weight_bias": True, "bias_term": True}, FIVE, Choices()),
    ("BatchNorm", {"use_weight_bias": True}, FIVE[:4], Choices()),
    ("BatchNorm", {"scale_bias": True}, FIVE, Choices()),
    ("BatchNorm", {}, OLD_FIVE, Choices()),
    ("BN", {"bn_mode": 1}, [SCALE, BIAS], Choices()),
    ("BN", {"eps": 0.01}, [SCALE, BIAS, MEAN, VARIANCE], Choices()),
    ("BN", {"eps": 0.01}, [SCALE, BIAS, MEAN, VARIANCE], Choices(bn_variance="invstd")),
    ("CuDNNBatchNorm", {}, [MEAN, VARIANCE], Choices()),
    ("CuDNNBatchNorm", {}, [MEAN, VARIANCE, SCALE], Choices()),
    ("CuDNNBatchNorm", {}, [MEAN, VARIANCE, SCALE, BIAS], Choices()),
]


@pytest.mark.parametrize(("type", "params", "blobs", "choices"), EQUALS)
def test_the_standard_equal_of_a_layer_computes_the_same(
    type: str, params: dict[str, Any], blobs: list[Any], choices: Choices
) -> None:
    kind = AFFINE[type]
    shapes = tuple(np.shape(blob) for blob in blobs)
    message = kind.message(**params)
    constants = Constants(message, tuple(blobs), shapes, None, "TEST", (), choices)
    assert kind.standard is not None
    statistics, multipliers, eps = kind.standard(constants)
    x = RNG.normal(0, 1, (C, 5))
    y = x
    if statistics:
        mean, variance, factor = statistics
        y = (y - (mean / factor)[:, None]) / np.sqrt(variance / factor + eps)[:, None]
    if multipliers:
        y = y * multipliers[0][:, None] + multipliers[1][:, None]
    np.testing.assert_allclose(y, kind.forward(x, constants), rtol=1e-12, atol=1e-12)


def test_layouts_merge_with_what_follows(tmp_path: Path) -> None:
    """A normalisation with its own scale becomes a Scale where nothing linear is near."""
    net = Net()
    net.input("data", (1, C, 5, 5))
    net.relu("relu", "data", "relu")
    net.layer("bn", "BN", "relu", "bn", "bn_param { frozen: true }", BN_BLOBS)
    net.power("power", "bn", 2, 1)
    net.relu("last", "bn", "out")
    model, weights = net.write(tmp_path)
    out = tmp_path / "out.prototxt", tmp_path / "out.caffemodel"
    report = caffe_fold.fold(model, weights, *out)
    assert report.after.by_type == {"Input": 1, "ReLU": 2, "Scale": 1}
    (entry,) = [e for e in read_weights(out[1].read_bytes()) if e.name == "power"]
    gain = 2 * SCALE / np.sqrt(VARIANCE + np.float32(1e-5))
    np.testing.assert_allclose(entry.blobs[0].array(), gain, rtol=1e-6)
    np.testing.assert_allclose(entry.blobs[1].array(), 2 * BIAS - gain * MEAN + 1, rtol=1e-5)
