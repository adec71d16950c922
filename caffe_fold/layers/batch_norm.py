"""The layers named BatchNorm, BN and CuDNNBatchNorm, in the layouts of their forks.

All compute, with global statistics and per channel::

    y = gain * (x - s * mean) / sqrt(s * variance + eps) + offset
    s = 0 if factor == 0 else 1 / factor

They differ in which blob holds what, and in four rules. Sources: batch_norm_layer.cpp
of BVLC, NVIDIA and Intel Caffe, bn_layer.cpp of yjxiong's fork and of SegNet, and
BatchNormalScale.cpp of MNN's converter:

============== ======================================= ====== ========= ==========
layout         blobs                                   factor least eps statistics
============== ======================================= ====== ========= ==========
BVLC           mean, variance[, factor]                yes    -         as said
Intel          mean, variance, factor, scale[, bias]   yes    -         as said
NVIDIA         mean, variance, -, scale, bias          no     1e-5      TEST: stored
older DIGITS   scale, bias, mean, variance, -          no     1e-5      TEST: stored
yjxiong BN     slope, bias, mean, variance             -      -         TEST: stored
SegNet BN      scale, shift                            -      -         bn_mode
CuDNNBatchNorm mean, variance[, scale[, bias]]         -      -         as said
============== ======================================= ====== ========= ==========

What the files do not tell is not guessed but refused, unless both readings are equal.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from caffe_fold import caffe_pb2
from caffe_fold.layers.affine_map import (
    AffineMap,
    AffineType,
    Array,
    Constants,
    Dims,
    Refused,
    Standard,
    channels_of,
)
from caffe_fold.named import NamedTuple

__all__ = ["BATCH_NORM", "BN", "CUDNN_BATCH_NORM"]

# BatchNormLayer::LayerSetUp of NVIDIA's fork.
_NVIDIA_LEAST_EPS = np.float32(1e-5)

_NEW_ORDER = ("mean", "variance", "factor", "scale", "bias")
_OLD_ORDER = ("scale", "bias", "mean", "variance", "factor")


class _Statistics(NamedTuple):
    """One layer in plain words: float64 vectors of shape (C,). With ``is_inverse`` the
    variance is the inverse standard deviation."""

    mean: Array
    variance: Array
    factor: float
    eps: float
    scale: Array | None
    bias: Array | None
    is_inverse: bool = False

    @property
    def share(self) -> float:
        return 0.0 if self.factor == 0 else 1.0 / self.factor


def _map(found: _Statistics) -> AffineMap:
    """The map of a normalisation; raises Refused where it has no inverse root."""
    if found.mean.size != found.variance.size:
        raise Refused(
            "blob-shape",
            f"its mean has {found.mean.size} values and its variance {found.variance.size}",
        )
    scale = found.variance if found.is_inverse else 1.0 / np.sqrt(_positive(found))
    if found.scale is not None:
        scale = found.scale * scale
    shift = -found.share * found.mean * scale
    if found.bias is not None:
        shift = found.bias + shift
    return AffineMap(scale, shift, found.mean.size)


def _positive(found: _Statistics) -> Array:
    """variance + eps, which must be above zero in every channel."""
    inside = found.share * found.variance + found.eps
    bad = np.flatnonzero(~(inside > 0))
    if bad.size:
        raise Refused(
            "variance",
            f"variance + eps is {inside[bad[0]]:.3g} in channel {int(bad[0])}, "
            "which has no inverse square root",
        )
    return inside


def _forward(x: Array, found: _Statistics) -> Array:
    """Normalise as the layer does: subtract, divide, and then multiply and add."""
    share = 0 if found.factor == 0 else 1 / found.factor
    y = x - (share * found.mean)[:, None]
    if found.is_inverse:
        y = y * found.variance[:, None]
    else:
        y = y / np.sqrt(share * found.variance + found.eps)[:, None]
    if found.scale is not None:
        y = y * found.scale[:, None]
    return y if found.bias is None else y + found.bias[:, None]


def _standard(found: _Statistics) -> Standard:
    """The normalisation as BVLC's, and what it scales and shifts by as a Scale."""
    variance = found.variance
    if found.is_inverse:
        variance = found.variance**-2.0 - found.eps
    norm = (found.mean, variance, np.array([found.factor]))
    if found.scale is None:
        return Standard(norm, eps=found.eps)
    bias = np.zeros_like(found.scale) if found.bias is None else found.bias
    return Standard(norm, (found.scale, bias), found.eps)


def _require_global(constants: Constants) -> None:
    """BVLC's rule: use_global_stats, or else the phase."""
    if constants.choices.assume_global_stats:
        return
    if constants.message.HasField("use_global_stats"):
        if not constants.message.use_global_stats:
            raise Refused(
                "batch-statistics",
                "'use_global_stats: false' makes it normalise by the statistics of each batch "
                "(--assume-global-stats folds the stored ones)",
            )
    else:
        _require_test_phase(constants)


def _require_test_phase(constants: Constants) -> None:
    if constants.phase != "TEST" and not constants.choices.assume_global_stats:
        raise Refused(
            "batch-statistics",
            f"its own 'phase: {constants.phase}' makes it normalise by the statistics of each "
            "batch (--assume-global-stats folds the stored ones)",
        )


# ---- BatchNorm ----


def _is_nvidia(message: Any) -> bool:
    return any(map(message.HasField, ("scale_bias", "scale_filler")))


def _is_intel(constants: Constants) -> bool:
    names = ("use_weight_bias", "bias_term", "filler")
    has_field = any(map(constants.message.HasField, names))
    return has_field or any("MKL" in engine.upper() for engine in constants.engines)


def _layout(constants: Constants) -> str:
    """The layout of a BatchNorm: "bvlc", "nvidia", "digits" or "intel"."""
    sizes = [blob.size for blob in constants.blobs]
    channels = max(sizes)
    if len(sizes) <= 3:
        _require_asked(constants, scale=False, bias=False)
        if sizes[2:] not in ([], [1]):
            raise _unknown_layout(constants)
        return "bvlc"
    _require_asked(constants, scale=True, bias=len(sizes) == 5)
    if sizes == [channels, channels, 1, channels]:
        return _told(constants, ("intel",), is_sure=channels > 1)
    is_new = sizes == [channels, channels, 1, channels, channels]
    is_old = sizes == [channels] * 4 + [1]
    if is_new and is_old:
        return _told_by_signs(constants, ("nvidia", "digits"))
    if is_new:
        return _told_by_signs(constants, ("nvidia",))
    if is_old:
        return _told_in_old_order(constants)
    raise _unknown_layout(constants)


def _unknown_layout(constants: Constants) -> Refused:
    return Refused("bn-layout", f"its weights have {constants.described()}, in no known layout")


def _require_asked(constants: Constants, scale: bool, bias: bool) -> None:
    """Where the prototxt says whether the layer has a scale and bias of its own, the
    weights must have as many blobs. NVIDIA's layer has both or neither."""
    message = constants.message
    filled = any(map(message.HasField, ("bias_filler", "filler")))
    both = message.scale_bias or message.HasField("scale_filler")
    asked = (
        (_is_nvidia(message), both, bias),
        (message.HasField("use_weight_bias"), message.use_weight_bias, scale),
        (message.HasField("bias_term"), message.bias_term, bias),
        (filled, True, scale),
    )
    if any(is_said and value != is_there for is_said, value, is_there in asked):
        raise Refused(
            "blob-count",
            "its prototxt asks for another number of blobs by its scale and bias, and its weights "
            f"have {constants.described()}",
        )


def _told_by_signs(constants: Constants, nvidia: tuple[str, ...]) -> str:
    """The rules of five blobs whose order is that of both forks; ``nvidia`` are those of
    NVIDIA's layouts that the blobs fit."""
    signs = (_is_nvidia(constants.message), _is_intel(constants))
    if signs == (False, True):
        return "intel"
    if signs == (True, False):
        return _told(constants, nvidia, is_sure=len(nvidia) == 1)
    is_sure = len(nvidia) == 1 and _rules_agree(constants, 2)
    return _told(constants, (*nvidia, "intel"), is_sure)


def _told_in_old_order(constants: Constants) -> str:
    """The older order. A ``scale_filler`` is no sign of NVIDIA here: a former
    batch_norm_layer.cpp of Intel Caffe had scale, shift, mean, variance and a factor that
    divides, with a ``scale_filler``."""
    is_nvidia = constants.message.HasField("scale_bias") and not _is_intel(constants)
    return _told(constants, ("digits",), is_sure=is_nvidia or _rules_agree(constants, 4))


def _told(constants: Constants, allowed: tuple[str, ...], is_sure: bool) -> str:
    """The first of the layouts that fit, if that is sure, or else the user's choice."""
    choice = constants.choices.bn_layout
    if is_sure:
        return allowed[0]
    if choice in allowed and choice is not None:
        return choice
    if choice is not None:
        raise Refused(
            "bn-layout",
            f"its weights have {constants.described()}, which --bn-layout {choice} does not fit",
        )
    raise Refused(
        "bn-layout",
        f"its weights have {constants.described()}, and nothing tells for sure that their layout "
        f"is {' or '.join(allowed)} (--bn-layout does)",
    )


def _rules_agree(constants: Constants, factor: int) -> bool:
    """Whether NVIDIA's rules and Intel's give the same numbers; ``factor`` is the blob of
    the factor."""
    message = constants.message
    uses_batch = message.HasField("use_global_stats") and not message.use_global_stats
    return (
        float(constants.blobs[factor][0]) == 1
        and bool(np.float32(message.eps) >= _NVIDIA_LEAST_EPS)
        and (not uses_batch or constants.choices.assume_global_stats)
    )


def _batch_norm_statistics(constants: Constants) -> _Statistics:
    layout = _layout(constants)
    is_nvidia = layout in ("nvidia", "digits")
    # NVIDIA's layer has three blobs with ``scale_bias: false``, and its other rules hold; the
    # factor of three is divided out when they are loaded.
    follows_nvidia = is_nvidia or (_is_nvidia(constants.message) and not _is_intel(constants))
    eps = np.float32(constants.message.eps)
    if follows_nvidia:
        _require_test_phase(constants)
        eps = max(eps, _NVIDIA_LEAST_EPS)
    else:
        _require_global(constants)
    order = _OLD_ORDER if layout == "digits" else _NEW_ORDER
    blobs = dict(zip(order, constants.blobs))
    factor = 1.0 if is_nvidia or "factor" not in blobs else float(blobs["factor"][0])
    return _Statistics(
        blobs["mean"], blobs["variance"], factor, float(eps), blobs.get("scale"), blobs.get("bias")
    )


def _batch_norm_blobs(message: Any, bottoms: tuple[Dims, ...]) -> tuple[Dims, ...]:
    channels = channels_of(bottoms[0])
    has_filler = any(map(message.HasField, ("scale_filler", "bias_filler", "filler")))
    if _is_nvidia(message):
        more = 2 if message.scale_bias or has_filler else 0
    elif message.bias_term or (has_filler and not message.HasField("bias_term")):
        more = 2
    else:
        more = 1 if message.use_weight_bias or has_filler else 0
    return ((channels,), (channels,), (1,), *[(channels,)] * more)


BATCH_NORM = AffineType(
    "batch_norm_param",
    caffe_pb2.BatchNormParameter,
    (2, 3, 4, 5),
    lambda constants: _map(_batch_norm_statistics(constants)),
    lambda x, constants: _forward(x, _batch_norm_statistics(constants)),
    normalises=True,
    implied=_batch_norm_blobs,
    standard=lambda constants: _standard(_batch_norm_statistics(constants)),
)


# ---- BN ----


def _bn(constants: Constants) -> AffineMap:
    if len(constants.blobs) == 2:
        scale, shift = _segnet_blobs(constants)
        return AffineMap(scale, shift, scale.size)
    return _map(_bn_statistics(constants))


def _bn_forward(x: Array, constants: Constants) -> Array:
    if len(constants.blobs) == 2:
        return x * constants.blobs[0][:, None] + constants.blobs[1][:, None]
    return _forward(x, _bn_statistics(constants))


def _segnet_blobs(constants: Constants) -> tuple[Array, Array]:
    """Scale and shift of SegNet's BN, which is affine in mode INFERENCE alone
    (BNLayer::Forward_cpu): its default mode LEARN keeps no statistics."""
    if constants.message.bn_mode != caffe_pb2.BNParameter.INFERENCE:
        raise Refused(
            "batch-statistics",
            "without 'bn_mode: INFERENCE' it normalises by the statistics of each batch, and its "
            "weights hold none",
        )
    scale, shift = constants.blobs
    if scale.size != shift.size:
        raise _unknown_layout(constants)
    return scale, shift


def _bn_statistics(constants: Constants) -> _Statistics:
    """yjxiong's and PSPNet's BN (BNLayer::Forward_cpu)."""
    sizes = {blob.size for blob in constants.blobs}
    if len(sizes) > 1 or constants.message.HasField("bn_mode"):
        raise _unknown_layout(constants)
    if not constants.message.frozen:
        _require_test_phase(constants)
    slope, bias, mean, variance = constants.blobs
    eps = float(np.float32(constants.message.eps))
    is_inverse = constants.choices.bn_variance == "invstd"
    return _Statistics(mean, variance, 1.0, eps, slope, bias, is_inverse)


def _bn_standard(constants: Constants) -> Standard:
    if len(constants.blobs) == 2:
        return Standard(scale=_segnet_blobs(constants))
    return _standard(_bn_statistics(constants))


def _bn_blobs(message: Any, bottoms: tuple[Dims, ...]) -> tuple[Dims, ...]:
    is_segnet = any(map(message.HasField, ("bn_mode", "scale_filler", "shift_filler")))
    return ((channels_of(bottoms[0]),),) * (2 if is_segnet else 4)


BN = AffineType(
    "bn_param",
    caffe_pb2.BNParameter,
    (2, 4),
    _bn,
    _bn_forward,
    normalises=True,
    implied=_bn_blobs,
    standard=_bn_standard,
)


# ---- CuDNNBatchNorm ----


def _cudnn_statistics(constants: Constants) -> _Statistics:
    """MNN's converter is the one reader whose layout is known."""
    sizes = {blob.size for blob in constants.blobs}
    # One number in the third place would be a factor as well as a scale.
    if len(sizes) > 1 or (sizes == {1} and len(constants.blobs) == 3):
        raise _unknown_layout(constants)
    _require_global(constants)
    blobs = dict(zip(("mean", "variance", "scale", "bias"), constants.blobs))
    eps = float(np.float32(constants.message.eps))
    return _Statistics(
        blobs["mean"], blobs["variance"], 1.0, eps, blobs.get("scale"), blobs.get("bias")
    )


CUDNN_BATCH_NORM = AffineType(
    "batch_norm_param",
    caffe_pb2.BatchNormParameter,
    (2, 3, 4),
    lambda constants: _map(_cudnn_statistics(constants)),
    lambda x, constants: _forward(x, _cudnn_statistics(constants)),
    normalises=True,
    standard=lambda constants: _standard(_cudnn_statistics(constants)),
)
