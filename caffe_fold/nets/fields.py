"""Hyper-parameters read straight from the text, for types that the schema leaves out."""

from __future__ import annotations

import math
from dataclasses import dataclass

from caffe_fold.nets.net import Layer
from caffe_fold.nets.prototxt import Document, Field

__all__ = ["Fields", "fields_of"]


@dataclass(frozen=True)
class Fields:
    """The fields of a message; what is not there has its default."""

    document: Document
    fields: tuple[Field, ...]

    def words(self, name: str) -> list[str]:
        """All values of a scalar field, without quotes."""
        found = [f for f in self.fields if f.name == name and f.fields is None]
        return [self.document.value(f).strip("\"'") for f in found]

    def word(self, name: str, default: str = "") -> str:
        return (self.words(name) or [default])[-1]

    def numbers(self, name: str) -> list[float]:
        return [_number(word) for word in self.words(name)]

    def integers(self, name: str) -> list[int]:
        return [int(value) for value in self.numbers(name) if math.isfinite(value)]

    def integer(self, name: str, default: int) -> int:
        return (self.integers(name) or [default])[-1]

    def flag(self, name: str, default: bool = False) -> bool:
        word = self.word(name)
        return word in ("true", "True", "t", "1") if word else default

    def has(self, name: str) -> bool:
        return any(f.name == name for f in self.fields)

    def messages(self, name: str) -> list[Fields]:
        found = [f for f in self.fields if f.name == name and f.fields is not None]
        return [Fields(self.document, f.fields or ()) for f in found]

    def message(self, name: str) -> Fields:
        return (self.messages(name) or [Fields(self.document, ())])[0]


def fields_of(document: Document, layer: Layer) -> Fields:
    """The fields of a layer."""
    return Fields(document, layer.fields)


def _number(word: str) -> float:
    try:
        return float(word.rstrip("fF"))
    except ValueError:
        return math.nan
