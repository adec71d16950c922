"""A builder of small nets: a prototxt and a caffemodel, written side by side.

    >>> net = Net("small")
    >>> net.input("data", (1, 3, 8, 8))
    >>> net.conv("conv1", "data", 4, 3, 3, pad=1)
    >>> net.batch_norm("bn1", "conv1", 4)
    >>> net.scale("scale1", "bn1", 4)
    >>> prototxt, caffemodel = net.write(tmp_path)

Each layer's text is at hand (``net.layers[i].text``), so that odd texts and
odd weights can be made; the values are random but realistic, from the net's
own generator.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Union

import numpy as np
import numpy.typing as npt

from .netdef import V1_TYPES
from .wire import BlobFormat, layer_bytes, run

Array = npt.NDArray[np.float64]
Shape = tuple[int, ...]
Names = Union[str, Sequence[str]]

V1_ENUMS = {name: enum for enum, name in V1_TYPES.values()}
"""The enum's value by a layer type's name of today, for the format V1."""

FACTOR = 999.98236
"""The moving-average factor that a trained BatchNorm often has."""


@dataclass
class NetLayer:
    """One layer: its text, its blobs, and in which of the two files it stands."""

    name: str
    type: str
    bottoms: list[str]
    tops: list[str]
    text: str
    blobs: list[Array] = field(default_factory=list)
    in_text: bool = True
    in_weights: bool = True
    weights_type: str = ""
    format: BlobFormat = field(default_factory=BlobFormat)


def names(value: Names) -> list[str]:
    """Return one name, or several, as a list."""
    return [value] if isinstance(value, str) else list(value)


class Net:
    """A net under construction; ``layers`` may be edited freely before writing."""

    def __init__(self, name: str = "net", seed: int = 0, v1: bool = False) -> None:
        """Start a net; with ``v1``, one of the old format, in both files."""
        self.name = name
        self.v1 = v1
        self.rng = np.random.default_rng(seed)
        self.layers: list[NetLayer] = []
        self.header = f'name: "{name}"\n'
        self.shapes: dict[str, Shape] = {}
        """The inputs' shapes, by blob name."""

    def input(self, name: str, shape: Shape, net_level: str | None = None) -> None:
        """Add an Input layer; with ``net_level`` "input_dim" or "input_shape", the old form."""
        self.shapes[name] = tuple(shape)
        dims = " ".join(f"dim: {dim}" for dim in shape)
        if net_level == "input_dim":
            self.header += f'input: "{name}"\n' + dims.replace("dim:", "input_dim:") + "\n"
        elif net_level == "input_shape" or self.v1:  # V1 has no Input layer
            self.header += f'input: "{name}"\ninput_shape {{ {dims} }}\n'
        else:
            self.layer(name, "Input", [], [name], f"input_param {{ shape {{ {dims} }} }}")

    def layer(
        self,
        name: str,
        type: str,
        bottoms: Names = (),
        tops: Names = (),
        params: str = "",
        blobs: Iterable[npt.ArrayLike] = (),
        extra: str = "",
        in_text: bool = True,
        in_weights: bool = True,
        format: BlobFormat | None = None,
        weights_type: str = "",
    ) -> NetLayer:
        """Add any layer.

        ``params`` and ``extra`` are text put into the layer. ``weights_type``
        is the type in the caffemodel, where it is to differ.
        """
        keyword, type_text = ("layers", V1_ENUMS[type]) if self.v1 else ("layer", f'"{type}"')
        lines = [f'name: "{name}"', f"type: {type_text}"]
        lines += [f'bottom: "{bottom}"' for bottom in names(bottoms)]
        lines += [f'top: "{top}"' for top in names(tops)]
        lines += [part for part in (extra, params) if part]
        body = "".join(f"  {line}\n" for line in lines)
        added = NetLayer(
            name=name,
            type=type,
            bottoms=names(bottoms),
            tops=names(tops),
            text=f"{keyword} {{\n{body}}}\n",
            blobs=[np.asarray(blob, dtype=np.float64) for blob in blobs],
            in_text=in_text,
            in_weights=in_weights,
            weights_type=weights_type or type,
            format=format or BlobFormat(),
        )
        self.layers.append(added)
        return added

    # ---- Layers with realistic values ----

    def conv(
        self,
        name: str,
        bottom: Names,
        channels: int,
        count: int,
        kernel: int | Sequence[int] = 3,
        top: Names | None = None,
        group: int = 1,
        bias: bool = True,
        type: str = "Convolution",
        params: str = "",
        extra: str = "",
        pad: int = 0,
        stride: int = 1,
        spatial: int = 2,
    ) -> NetLayer:
        """Add a Convolution (or a kin of it) of ``channels`` to ``count`` channels.

        The weight is (count, channels / group, kernel...), a Deconvolution's
        (channels, count / group, kernel...).
        """
        sizes = [kernel] * spatial if isinstance(kernel, int) else list(kernel)
        text = f"num_output: {count}"
        text += "".join(f" kernel_size: {size}" for size in sizes)
        for key, value, default in (("group", group, 1), ("pad", pad, 0), ("stride", stride, 1)):
            text += f" {key}: {value}" if value != default else ""
        text += "" if bias else " bias_term: false"
        outer, inner = (channels, count) if type == "Deconvolution" else (count, channels)
        blobs = [self.weight((outer, inner // group, *sizes))]
        blobs += [self.rng.normal(0, 0.1, count)] if bias else []
        params = f"convolution_param {{ {text} {params} }}"
        return self.layer(name, type, bottom, top or name, params, blobs, extra)

    def deconv(
        self,
        name: str,
        bottom: Names,
        channels: int,
        count: int,
        kernel: int | Sequence[int] = 3,
        top: Names | None = None,
        group: int = 1,
        bias: bool = True,
        params: str = "",
        extra: str = "",
        pad: int = 0,
        stride: int = 1,
    ) -> NetLayer:
        """Add a Deconvolution; see :meth:`conv`."""
        return self.conv(
            name, bottom, channels, count, kernel, top, group, bias,
            "Deconvolution", params, extra, pad, stride,
        )  # fmt: skip

    def inner_product(
        self,
        name: str,
        bottom: str,
        width: int,
        count: int,
        top: str | None = None,
        bias: bool = True,
        transpose: bool = False,
        params: str = "",
        extra: str = "",
    ) -> NetLayer:
        """Add an InnerProduct with a weight (count, width), transposed (width, count)."""
        text = f"num_output: {count}" + ("" if bias else " bias_term: false")
        text += " transpose: true" if transpose else ""
        weight = self.rng.normal(0, np.sqrt(2.0 / width), (count, width))
        blobs = [weight.T.copy() if transpose else weight]
        blobs += [self.rng.normal(0, 0.1, count)] if bias else []
        params = f"inner_product_param {{ {text} {params} }}"
        return self.layer(name, "InnerProduct", bottom, top or name, params, blobs, extra)

    def batch_norm(
        self,
        name: str,
        bottom: str,
        channels: int,
        top: str | None = None,
        factor: float = FACTOR,
        params: str = "use_global_stats: true",
        extra: str = "",
    ) -> NetLayer:
        """Add a BatchNorm, in place where no top is given, with blobs (C), (C), (1)."""
        blobs = [
            self.rng.normal(0, 0.3, channels) * (factor or 1.0),
            self.rng.uniform(0.3, 2.0, channels) * (factor or 1.0),
            np.array([factor]),
        ]
        text = f"batch_norm_param {{ {params} }}" if params else ""
        return self.layer(name, "BatchNorm", bottom, top or bottom, text, blobs, extra)

    def scale(
        self,
        name: str,
        bottom: str,
        channels: int,
        top: str | None = None,
        bias: bool = True,
        params: str = "",
        extra: str = "",
    ) -> NetLayer:
        """Add a Scale, in place where no top is given; a quarter of the gammas is negative."""
        signs = self.rng.choice([1.0, 1.0, 1.0, -1.0], channels)
        blobs = [self.rng.uniform(0.5, 1.5, channels) * signs]
        blobs += [self.rng.normal(0, 0.3, channels)] if bias else []
        text = f"scale_param {{ {'bias_term: true ' if bias else ''}{params} }}"
        return self.layer(name, "Scale", bottom, top or bottom, text, blobs, extra)

    def bias(
        self,
        name: str,
        bottom: str,
        channels: int,
        top: str | None = None,
        params: str = "",
        extra: str = "",
    ) -> NetLayer:
        """Add a Bias, in place where no top is given."""
        text = f"bias_param {{ {params} }}" if params else ""
        blobs = [self.rng.normal(0, 0.3, channels)]
        return self.layer(name, "Bias", bottom, top or bottom, text, blobs, extra)

    def power(
        self,
        name: str,
        bottom: str,
        scale: float = 1.0,
        shift: float = 0.0,
        power: float = 1.0,
        top: str | None = None,
        extra: str = "",
    ) -> NetLayer:
        """Add a Power, in place where no top is given."""
        text = f"power_param {{ power: {power} scale: {scale} shift: {shift} }}"
        return self.layer(name, "Power", bottom, top or bottom, text, (), extra)

    def relu(self, name: str, bottom: str, top: str | None = None, slope: float = 0) -> NetLayer:
        """Add a ReLU, in place where no top is given."""
        text = f"relu_param {{ negative_slope: {slope} }}" if slope else ""
        return self.layer(name, "ReLU", bottom, top or bottom, text)

    def eltwise(self, name: str, bottoms: Names, top: str | None = None) -> NetLayer:
        """Add an Eltwise sum."""
        return self.layer(name, "Eltwise", bottoms, top or name)

    def weight(self, shape: Shape) -> Array:
        """Return random weights, scaled so that values neither vanish nor explode."""
        return self.rng.normal(0, np.sqrt(2.0 / max(1, int(np.prod(shape[1:])))), shape)

    # ---- What comes out ----

    def prototxt(self) -> str:
        """Return the text of the net."""
        return self.header + "".join(layer.text for layer in self.layers if layer.in_text)

    def caffemodel(self) -> bytes:
        """Return the weights file."""
        entries = [layer for layer in self.layers if layer.in_weights]
        return run(1, self.name.encode()) + b"".join(
            layer_bytes(e.name, e.weights_type, e.bottoms, e.tops, e.blobs, e.format, self.v1)
            for e in entries
        )

    def write(self, folder: Path, stem: str = "net") -> tuple[Path, Path]:
        """Write both files; return (prototxt, caffemodel)."""
        prototxt, caffemodel = folder / f"{stem}.prototxt", folder / f"{stem}.caffemodel"
        prototxt.write_bytes(self.prototxt().encode())
        caffemodel.write_bytes(self.caffemodel())
        return prototxt, caffemodel

    def inputs(self, seed: int = 1) -> dict[str, npt.NDArray[np.float32]]:
        """Return random values for the net's inputs, by blob name."""
        rng = np.random.default_rng(seed)
        return {
            name: rng.normal(0.2, 1.0, shape).astype(np.float32)
            for name, shape in self.shapes.items()
        }
