"""What a user may decide where the files do not say, or against what they say."""

from __future__ import annotations

from caffe_fold.errors import InputError
from caffe_fold.named import NamedTuple

__all__ = ["BN_LAYOUTS", "BN_VARIANCES", "CHANNEL_ORDERS", "ENGINES", "WEIGHTS_DTYPES", "Choices"]

BN_LAYOUTS = ("nvidia", "digits", "intel")
BN_VARIANCES = ("var", "invstd")
WEIGHTS_DTYPES = ("float16", "float32", "float64")
ENGINES = ("auto", "opencv", "caffe")
CHANNEL_ORDERS = ("bgr", "rgb")


class Choices(NamedTuple):
    """The user's decisions.

    :param assume_global_stats: BatchNorm layers normalise by their stored statistics,
        whatever the prototxt says.
    :param bn_layout: the order and rules of BatchNorm layers of four or five blobs whose
        files do not tell: "nvidia", "digits" or "intel".
    :param bn_variance: what the fourth blob of a "BN" layer holds: "var", the variance, or
        "invstd", the inverse standard deviation.
    :param weights_dtype: the number type of folded blobs, "float16", "float32" or
        "float64"; None for the widest among the blobs that go into a fold.
    :param drop_quantization: fold layers with quantization parameters, and drop those.
    """

    assume_global_stats: bool = False
    bn_layout: str | None = None
    bn_variance: str = "var"
    weights_dtype: str | None = None
    drop_quantization: bool = False

    def known(self) -> Choices:
        """The same choices.

        :raises InputError: if a name is none of those above.
        """
        _require(self.bn_layout, (None, *BN_LAYOUTS), "bn_layout")
        _require(self.bn_variance, BN_VARIANCES, "bn_variance")
        _require(self.weights_dtype, (None, *WEIGHTS_DTYPES), "weights_dtype")
        return self


def _require(value: str | None, allowed: tuple[str | None, ...], name: str) -> None:
    if value not in allowed:
        names = ", ".join(repr(a) for a in allowed if a is not None)
        raise InputError(f"{name} is {value!r}; expected one of {names}")
