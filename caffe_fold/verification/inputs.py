"""What goes into both nets: random numbers like an image's, or a user's file."""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from caffe_fold.choices import CHANNEL_ORDERS
from caffe_fold.errors import EngineMissing, InputError, Path, reading, show
from caffe_fold.hints import closest
from caffe_fold.layers.affine import Refused
from caffe_fold.layers.linear import LINEAR
from caffe_fold.nets.fields import fields_of
from caffe_fold.verification.shapes import Shape, stated
from caffe_fold.verification.sides import Side

__all__ = ["Wanted", "input_shapes", "make_inputs"]

Array = NDArray[np.float32]

# The mean of random pixels of 0 to 255, where the user gives none.
_MIDDLE = 127.5
_IMAGE_CHANNELS = (1, 3, 4)

_ARRAYS = (".npy", ".npz")


@dataclass(frozen=True)
class Wanted:
    """What the user asked for.

    ``source`` is an image, an .npy or an .npz; ``mean`` and ``scale`` make a pixel's
    number, ``scale * (pixel - mean)``, with one mean or one a channel; ``shapes`` are
    those of inputs by blob name.
    """

    source: Path | None = None
    mean: tuple[float, ...] | None = None
    scale: float | None = None
    channel_order: str = "bgr"
    samples: int = 1
    seed: int = 0
    shapes: Mapping[str, Shape] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.channel_order not in CHANNEL_ORDERS:
            raise InputError(f"channel_order is {self.channel_order!r}; expected 'bgr' or 'rgb'")
        if not all(map(math.isfinite, (*(self.mean or ()), self.scale or 0.0))):
            raise InputError("mean and scale must be finite numbers")
        if self.samples < 1:
            raise InputError(f"samples is {self.samples}; expected 1 or more")
        if self.seed < 0:
            raise InputError(f"seed is {self.seed}; expected 0 or more")
        if self.source is not None and self.samples > 1:
            raise InputError("--input is one sample; --samples asks for random ones")


def input_shapes(side: Side, given: Mapping[str, Shape]) -> dict[int, Shape]:
    """The shapes of all values that come from outside, but for those that nothing
    produces and whose shape nobody tells.

    :raises InputError: where an input has no shape, or a shape is given for no input.
    """
    graph = side.graph
    names = {graph.values[value].blob: value for value in graph.sources()}
    for blob in given:
        if blob not in graph.last:
            hint = closest(blob, names)
            raise InputError(f"in an input shape, no blob is named '{show(blob)}'{hint}")
    found: dict[int, Shape] = {}
    batch = next((shape[0] for shape in given.values()), 1)
    orphans = set(side.orphans())
    for value in graph.sources():
        blob = graph.values[value].blob
        shape = given.get(blob) or stated(graph, value)
        if shape is None or min(shape, default=1) < 1:
            shape = _of_data_layer(side, value, batch) or _of_inner_product(side, value, batch)
        if shape is not None:
            found[value] = shape
        elif value not in orphans and graph.readers[value]:
            raise InputError(
                f"{show(side.model, 1000)}: the input '{show(blob)}' has no shape; give it by "
                f"--input-shape {show(blob)}=1,3,224,224 (--verify-input-shape where fold verifies)"
            )
    return found


def _of_data_layer(side: Side, value: int, batch: int) -> Shape | None:
    """A data layer's labels are one number an image; its images are as large as it crops
    them, with the channels that their reader is for."""
    graph = side.graph
    at = graph.values[value].producer
    if at is None:
        return None
    if graph.values[value].slot > 0:
        return (batch,)
    fields = fields_of(graph.net.document, graph.layers[at])
    crop = fields.message("transform_param").integer("crop_size", 0)
    channels = _read_channels(side, value)
    return (batch, channels, crop, crop) if crop and channels else None


def _read_channels(side: Side, value: int) -> int | None:
    for at, _ in side.graph.readers[value]:
        try:
            return side.facts.linear(at).layout.inputs
        except Refused:
            continue
    return None


def _of_inner_product(side: Side, value: int, batch: int) -> Shape | None:
    """What an InnerProduct alone reads is as long as its weights are."""
    kinds = [LINEAR.get(side.graph.layers[at].type) for at, _ in side.graph.readers[value]]
    if not kinds or not all(kind is not None and kind.flattens for kind in kinds):
        return None
    length = _read_channels(side, value)
    return (batch, length) if length else None


# ---- Values ----


def make_inputs(
    shapes: Mapping[str, Shape], constant: Sequence[str], wanted: Wanted, sample: int
) -> dict[str, Array]:
    """The values of one sample by blob name.

    :param shapes: the inputs' shapes by blob name.
    :param constant: the names of those that are labels, and are zeros.
    :raises InputError: where the user's file does not fit them.
    """
    given = _given(shapes, wanted) if wanted.source is not None else {}
    found = {}
    for index, (name, shape) in enumerate(shapes.items()):
        if name in given:
            found[name] = given[name]
        elif name in constant:
            found[name] = np.zeros(shape, np.float32)
        else:
            rng = np.random.default_rng((wanted.seed, sample, index))
            found[name] = _random(rng, shape, wanted)
    return found


def _random(rng: np.random.Generator, shape: Shape, wanted: Wanted) -> Array:
    """Pixels where it may be an image, else numbers about zero."""
    if len(shape) != 4 or shape[1] not in _IMAGE_CHANNELS:
        return rng.standard_normal(shape, np.float32)
    pixels = rng.integers(0, 256, shape).astype(np.float32)
    mean = wanted.mean
    if mean is None and wanted.scale is None:
        mean = (_MIDDLE,)
    return _prepared(pixels, mean, wanted.scale)


def _prepared(pixels: Array, mean: tuple[float, ...] | None, scale: float | None) -> Array:
    """``scale * (pixels - mean)`` for pixels of shape (N, C, ...)."""
    channels = pixels.shape[1] if pixels.ndim > 1 else 1
    if mean is not None and len(mean) not in (1, channels):
        raise InputError(f"--mean has {len(mean)} numbers and the input {channels} channels")
    with np.errstate(over="ignore", invalid="ignore"):  # which is then told
        if mean is not None:
            pixels = pixels - np.asarray(mean, np.float32).reshape(-1, *[1] * (pixels.ndim - 2))
        found = np.asarray(pixels if scale is None else pixels * np.float32(scale), np.float32)
    if not np.isfinite(found).all():
        raise InputError("the input holds numbers that are not finite in float32")
    return found


def _given(shapes: Mapping[str, Shape], wanted: Wanted) -> dict[str, Array]:
    """The user's values by blob name."""
    source = os.fspath(wanted.source or "")
    shown, suffix = show(source, 1000), os.path.splitext(source)[1].lower()
    if not os.path.isfile(source):
        raise InputError(f"{shown} cannot be read: there is no such file")
    first = next(iter(shapes), None)
    if first is None:
        raise InputError(f"{shown}: the net has no input")
    is_image = suffix not in _ARRAYS
    arrays = {first: _image(source, shapes[first], wanted)} if is_image else _load(source, first)
    found = {}
    for name, array in arrays.items():
        if name not in shapes:
            hint = closest(name, shapes)
            raise InputError(f"{shown}: the net has no input '{show(name)}'{hint}")
        found[name] = _fitted(shown, name, array, shapes[name], wanted)
    return found


def _load(source: str, first: str) -> dict[str, NDArray[Any]]:
    """The arrays of an .npz by name; that of an .npy as the ``first`` input's."""
    try:
        loaded = np.load(source, allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            return {first: loaded}
        with loaded:
            arrays = {name: loaded[name] for name in loaded.files}
        if not arrays:
            raise ValueError("it holds no arrays")
        odd = [name for name, array in arrays.items() if not isinstance(array, np.ndarray)]
        if odd:  # what is no .npy comes as bytes
            raise ValueError(f"its '{odd[0]}' is no array")
        return arrays
    except MemoryError:
        raise
    # The header is parsed as Python and the rest by zipfile and zlib, each with errors of its own.
    except Exception as error:
        words = " ".join(str(error).split())
        raise InputError(f"{show(source, 1000)} cannot be read: {show(words)}") from None


def _fitted(shown: str, name: str, array: NDArray[Any], shape: Shape, wanted: Wanted) -> Array:
    """An array of a net's input: with a batch axis, and of any height and width where it
    is an array of numbers that the net was not asked for in another shape."""
    if array.dtype.kind not in "fiub":
        raise InputError(f"{shown}: '{show(name)}' holds {array.dtype}, not numbers")
    if array.ndim == len(shape) - 1:
        array = array[None]
    fits = array.ndim == len(shape) and array.shape[1:2] == tuple(shape[1:2])
    if not fits or array.size == 0:
        raise InputError(
            f"{shown}: '{show(name)}' has the shape {array.shape}; the net's input has {shape}"
        )
    with np.errstate(over="ignore"):  # which is then told
        array = array.astype(np.float32)
    return _prepared(array, wanted.mean, wanted.scale)


def _image(source: str, shape: Shape, wanted: Wanted) -> Array:
    """An image in the size of an input, (1, C, H, W), as pixels of 0 to 255."""
    try:
        import cv2
    except ImportError:
        raise EngineMissing(
            "reading an image needs OpenCV: pip install 'caffe-fold[verify]' (or give an .npy)"
        ) from None
    if len(shape) != 4 or shape[1] not in (1, 3):
        raise InputError(f"{show(source, 1000)} is an image and the net's input has {shape}")
    flag = cv2.IMREAD_GRAYSCALE if shape[1] == 1 else cv2.IMREAD_COLOR
    pixels = None
    # cv2.imread writes its complaints to standard error.
    with reading(source), _quiet(cv2), contextlib.suppress(cv2.error):
        data = np.fromfile(source, np.uint8)
        pixels = cv2.imdecode(data, flag) if data.size else None
    if pixels is None:
        raise InputError(f"{show(source, 1000)} is no image that OpenCV reads, and no .npy or .npz")
    pixels = np.atleast_3d(cv2.resize(pixels, (shape[3], shape[2])))
    if wanted.channel_order == "rgb":
        pixels = pixels[:, :, ::-1]
    return np.repeat(pixels.transpose(2, 0, 1)[None].astype(np.float32), shape[0], axis=0)


@contextlib.contextmanager
def _quiet(cv2: Any) -> Iterator[None]:
    """While it lasts, OpenCV writes no complaints of its own to standard error."""
    # Newer releases have it in a module, older ones at the top.
    logging = getattr(cv2.utils, "logging", cv2)
    level = logging.getLogLevel()
    logging.setLogLevel(_SILENT)
    try:
        yield
    finally:
        logging.setLogLevel(level)


_SILENT = 0  # LOG_LEVEL_SILENT of opencv2/core/utils/logger.defines.hpp
