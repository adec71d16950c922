"""Random small nets on which Caffe would not abort, for tests by property.

Values are drawn from what the net has so far, so branches, sums, sharing, second
readers and runs in place come of themselves; a value that has been read is never
changed in place, and no blob is written twice in any other way.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Callable

import numpy as np
from hypothesis import strategies as st
from support.nets import Net, NetLayer
from support.wire import BlobFormat

__all__ = ["RandomNet", "nets", "renamed"]

Shape = tuple[int, ...]


@dataclass
class RandomNet:
    """A net, and the blobs that it has at its end."""

    net: Net
    blobs: list[str] = field(default_factory=list)


@dataclass(eq=False)
class _Value:
    """A value that can be read: its blob, its shape, and whether anything has read it."""

    blob: str
    shape: Shape
    is_read: bool = False


class _Grower:
    """Adds one random layer after the other."""

    def __init__(self, draw: st.DrawFn, seed: int, reuse: bool) -> None:
        self.draw = draw
        self.net = Net(seed=seed)
        self.values: list[_Value] = []
        self.count = 0
        self.reuse = reuse

    def choose(self, *options: str) -> str:
        return self.draw(st.sampled_from(options))

    def chance(self) -> bool:
        return self.draw(st.booleans())

    def name(self) -> str:
        """A new layer's name."""
        self.count += 1
        return f"layer{self.count:02}"

    def read(self, spatial: bool = False) -> _Value:
        """Choose a value to read, more often than not the latest."""
        rank = [v for v in self.values if len(v.shape) == 4 or not spatial]
        latest = rank[-1]
        return latest if self.chance() else self.draw(st.sampled_from(rank))

    def wrote(self, value: _Value, shape: Shape) -> str:
        """The top of a layer that reads a value: in place where that may be, or new."""
        if not value.is_read and shape == value.shape and self.chance():
            self.values.remove(value)
            self.values.append(_Value(value.blob, shape))
            return value.blob
        return self.fresh([value], shape)

    def fresh(self, values: list[_Value], shape: Shape) -> str:
        for value in values:
            value.is_read = True
        blob = f"blob{len(self.net.layers):02}"
        others = [value for value in self.values if value not in values]
        if self.reuse and others and self.chance():
            old = self.draw(st.sampled_from(others))
            self.values.remove(old)
            blob = old.blob
        self.values.append(_Value(blob, shape))
        return blob

    # ---- Layers ----

    def affine(self) -> NetLayer:
        value = self.read()
        top, bottom, channels = "", value.blob, value.shape[1]
        top = self.wrote(value, value.shape)
        kind = self.choose("bn", "bn", "scale", "gamma", "bias", "power", "scalar", "identity")
        net, name = self.net, self.name()
        if kind == "bn":
            layer = net.batch_norm(name, bottom, channels, top)
            if self.chance():
                layer.blobs[0][:] = 0
            return layer
        if kind == "bias":
            return net.bias(name, bottom, channels, top)
        if kind == "power":
            return net.power(name, bottom, -1.5, 0.25 if self.chance() else 0.0, 1.0, top)
        if kind == "identity":
            return net.power(name, bottom, 1.0, 0.0, 1.0, top)
        if kind == "scalar":
            text = "scale_param { num_axes: 0 }"
            return net.layer(name, "Scale", bottom, top, text, [np.array(1.25)])
        axis = f"axis: {1 - len(value.shape)}" if self.chance() else ""
        return net.scale(name, bottom, channels, top, kind == "scale", axis)

    def linear(self) -> NetLayer:
        value = self.read()
        if len(value.shape) == 2:
            return self.inner_product(value)
        kind = self.choose("conv", "conv", "padded", "deconv", "depthwise", "ip", "pair")
        if kind == "ip":
            return self.inner_product(value)
        batch, channels, height, width = value.shape
        size = 1 if min(height, width) < 3 else self.draw(st.sampled_from([1, 2, 3]))
        grow = {"conv": 1 - size, "pair": 1 - size, "deconv": size - 1, "depthwise": 1 - size}
        by = grow.get(kind, 3 - size)
        count = channels if kind == "depthwise" else self.draw(st.sampled_from([2, 4, 6]))
        group = channels if kind == "depthwise" else self.draw(st.sampled_from([1, 2]))
        if channels % group:
            group = 1
        shape = (batch, count, height + by, width + by)
        options = {"group": group, "pad": 1 if kind == "padded" else 0}
        if kind != "pair":
            type = "Deconvolution" if kind == "deconv" else "Convolution"
            bias, bottom = self.chance(), value.blob
            top = self.fresh([value], shape)
            return self.net.conv(
                self.name(), bottom, channels, count, size, top, group, bias, type,
                pad=options["pad"],
            )  # fmt: skip
        return self.pair(value, shape, size, group)

    def pair(self, value: _Value, shape: Shape, size: int, group: int) -> NetLayer:
        """Two convolutions that share their weights."""
        word = self.name()
        extra = f'param {{ name: "{word}w" }} param {{ name: "{word}b" }}'
        for _ in "ab":
            bottom, top = value.blob, self.fresh([value], shape)
            layer = self.net.conv(
                self.name(), bottom, value.shape[1], shape[1], size, top, group, extra=extra
            )
        layer.blobs = self.net.layers[-2].blobs
        return layer

    def inner_product(self, value: _Value) -> NetLayer:
        width, bias, is_turned = int(np.prod(value.shape[1:])), self.chance(), self.chance()
        bottom, top = value.blob, self.fresh([value], (value.shape[0], 4))
        return self.net.inner_product(self.name(), bottom, width, 4, top, bias, is_turned)

    def other(self) -> NetLayer:
        value = self.read()
        kind = self.choose("ReLU", "TanH", "Dropout", "Flatten", "Pooling", "Eltwise", "Concat")
        net, name = self.net, self.name()
        alike = [v for v in self.values if v.shape == value.shape]
        if kind in ("Eltwise", "Concat"):
            second = self.draw(st.sampled_from(alike))
            bottoms = [value.blob, second.blob]
            batch, channels, *rest = value.shape
            shape = value.shape if kind == "Eltwise" else (batch, 2 * channels, *rest)
            return net.layer(name, kind, bottoms, self.fresh([value, second], shape))
        if kind == "Pooling" and len(value.shape) == 4 and min(value.shape[2:]) > 1:
            shape = (*value.shape[:2], *(size - 1 for size in value.shape[2:]))
            bottom, top = value.blob, self.fresh([value], shape)
            return net.layer(name, kind, bottom, top, "pooling_param { kernel_size: 2 }")
        if kind == "Flatten":
            shape = (value.shape[0], int(np.prod(value.shape[1:])))
            bottom, top = value.blob, self.fresh([value], shape)
            return net.layer(name, kind, bottom, top)
        bottom, top = value.blob, self.wrote(value, value.shape)
        return net.layer(name, "ReLU" if kind == "Pooling" else kind, bottom, top)


@st.composite
def nets(draw: st.DrawFn, kind: str = "double", reuse: bool = False) -> RandomNet:
    """Draw a net with weights of one kind of number.

    With ``reuse`` layers write names of old blobs anew, on which Caffe aborts and some
    engines do not.
    """
    grower = _Grower(draw, draw(st.integers(0, 2**16)), reuse)
    shape = (2, 4, 5, 4)
    grower.net.shapes["blobin"] = shape
    text = "input_param { shape { dim: 2 dim: 4 dim: 5 dim: 4 } }"
    grower.net.layer("input", "Input", [], "blobin", text)
    grower.values.append(_Value("blobin", shape))
    steps: list[Callable[[], NetLayer]] = [grower.affine, grower.affine, grower.linear]
    steps.append(grower.other)
    for step in draw(st.lists(st.sampled_from(range(len(steps))), min_size=2, max_size=14)):
        steps[step]()
    for layer in grower.net.layers:
        layer.format = BlobFormat(kind)
    return RandomNet(grower.net, [value.blob for value in grower.values])


def renamed(net: Net, names: dict[str, str]) -> None:
    """Give the blobs of a random net other names, in both files."""
    for layer in net.layers:
        layer.text = re.sub(r'"(blob\w\w)"', lambda m: f'"{names[m[1]]}"', layer.text)
        layer.bottoms = [names[name] for name in layer.bottoms]
        layer.tops = [names[name] for name in layer.tops]
    net.shapes = {names[name]: shape for name, shape in net.shapes.items()}
