"""A small reader of protobuf's text format, independent of the tool's own.

    >>> net = parse('name: "n" layer { top: "a" top: "b" }')
    >>> net.text("name"), net.message("layer").all("top")
    ('n', ['a', 'b'])

It takes every spelling that protobuf takes: ``{ }`` and ``< >``, an optional
colon before a message, lists in brackets, ``,`` and ``;`` between fields, both
quotes with escapes, adjacent strings joined, ``#`` comments, CRLF and a
byte-order mark. It knows no schema: a scalar given twice is both values here,
and the accessors of :class:`Message` refuse it where one value was asked for.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Union, cast


class ProtoTextError(ValueError):
    """The text is not protobuf's text format; the message says where."""


class Ident(str):
    """A bare word that is not a number or a boolean, as ``MAX`` in ``pool: MAX``."""


# Message is a list, so the type can only be named as a string before it exists.
Value = Union[str, Ident, float, int, bool, "Message"]


class Message(list[tuple[str, Value]]):
    """A message: its (name, value) pairs in the order of the text."""

    def all(self, name: str) -> list[Value]:
        """Return every value of the field, in order (empty where it is absent)."""
        return [value for key, value in self if key == name]

    def has(self, name: str) -> bool:
        """Say whether the field is given at all."""
        return any(key == name for key, _ in self)

    def one(self, name: str) -> Value | None:
        """Return the field's only value or None; a second one is an error, as in protobuf."""
        values = self.all(name)
        if len(values) > 1:
            raise ProtoTextError(f"the field {name!r} is given {len(values)} times")
        return values[0] if values else None

    def messages(self, name: str) -> list[Message]:
        """Return the field's values, each of which must be a message."""
        found = self.all(name)
        if not all(isinstance(value, Message) for value in found):
            raise ProtoTextError(f"the field {name!r} is not a message everywhere")
        return cast("list[Message]", found)

    def message(self, name: str) -> Message:
        """Return the message of that name; an empty one where it is absent.

        A singular message given twice is merged, as protobuf does it.
        """
        merged = Message()
        for part in self.messages(name):
            merged.extend(part)
        return merged

    def text(self, name: str, default: str = "") -> str:
        """Return a string or a bare word (an enum's value)."""
        value = self.one(name)
        if value is None:
            return default
        if not isinstance(value, str):
            raise ProtoTextError(f"the field {name!r} is not a string: {value!r}")
        return str(value)

    def integer(self, name: str, default: int = 0) -> int:
        """Return a whole number."""
        value = self.one(name)
        if value is None:
            return default
        return _whole(name, value)

    def integers(self, name: str) -> list[int]:
        """Return every value of a repeated field of whole numbers."""
        return [_whole(name, value) for value in self.all(name)]

    def real(self, name: str, default: float = 0.0) -> float:
        """Return a number of any kind as a float."""
        value = self.one(name)
        return default if value is None else _real(name, value)

    def reals(self, name: str) -> list[float]:
        """Return every value of a repeated field of numbers."""
        return [_real(name, value) for value in self.all(name)]

    def flag(self, name: str, default: bool = False) -> bool:
        """Return a boolean (protobuf takes 0 and 1 too)."""
        value = self.one(name)
        if value is None:
            return default
        if value in (0, 1):
            return bool(value)
        if isinstance(value, Ident) and value in _BOOLEANS:
            return _BOOLEANS[value]
        raise ProtoTextError(f"the field {name!r} is not a boolean: {value!r}")


def _whole(name: str, value: Value) -> int:
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    raise ProtoTextError(f"the field {name!r} is not a whole number: {value!r}")


def _real(name: str, value: Value) -> float:
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return float(value)
    raise ProtoTextError(f"the field {name!r} is not a number: {value!r}")


_BOOLEANS = {"true": True, "True": True, "t": True, "false": False, "False": False, "f": False}

_TOKEN = re.compile(
    r"""(?P<space>[ \t\r\n\f\v]+|\#[^\n]*)
      | (?P<string>"(?:[^"\\\n]|\\.)*"|'(?:[^'\\\n]|\\.)*')
      | (?P<number>-?[ \t]*(?:0[xX][0-9a-fA-F]+|(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?[fF]?))(?![\w.])
      | (?P<word>-?[ \t]*[A-Za-z_][\w]*)
      | (?P<mark>[{}<>\[\]:,;/.])""",
    re.VERBOSE,
)

Token = tuple[str, str, int]  # kind, text, offset


def _tokens(text: str) -> Iterator[Token]:
    position = 0
    while position < len(text):
        match = _TOKEN.match(text, position)
        if match is None:
            line = text.count("\n", 0, position) + 1
            raise ProtoTextError(f"line {line}: unexpected character {text[position]!r}")
        kind = cast(str, match.lastgroup)
        if kind != "space":
            yield kind, match.group(), position
        position = match.end()
    yield "end", "", len(text)


_ESCAPE = re.compile(
    rb"\\(?:[xX]([0-9a-fA-F]{1,2})|([0-7]{1,3})|u([0-9a-fA-F]{4})|U([0-9a-fA-F]{8})|(.))", re.DOTALL
)
_NAMED = {"a": 7, "b": 8, "f": 12, "n": 10, "r": 13, "t": 9, "v": 11}


def _unescape(match: re.Match[bytes]) -> bytes:
    hexadecimal, octal, short, long, named = match.groups()
    if hexadecimal is not None:
        return bytes([int(hexadecimal, 16)])
    if octal is not None:
        return bytes([int(octal, 8) & 0xFF])
    if short is not None or long is not None:
        return chr(int(short or long, 16)).encode()
    letter = named.decode("latin-1")
    return bytes([_NAMED[letter]]) if letter in _NAMED else bytes(named)


def _string(quoted: str) -> str:
    # Escapes name bytes, and several of them may make up one UTF-8 character.
    raw = _ESCAPE.sub(_unescape, quoted[1:-1].encode("utf-8", "surrogateescape"))
    return raw.decode("utf-8", "surrogateescape")


def _number(text: str) -> int | float:
    text = text.replace(" ", "").replace("\t", "")
    digits = text.lstrip("-")
    sign = -1 if text.startswith("-") else 1
    if digits[:2] in ("0x", "0X"):
        return sign * int(digits, 16)
    if re.fullmatch(r"0[0-7]+", digits):
        return sign * int(digits, 8)
    if digits.isdigit():
        return sign * int(digits)
    return sign * float(digits.rstrip("fF"))


def _word(text: str) -> Value:
    bare = text.replace(" ", "").replace("\t", "")
    if bare in _BOOLEANS and bare in ("true", "false"):
        return _BOOLEANS[bare]
    if bare.lower().lstrip("-") in ("inf", "infinity", "nan"):
        return float(bare)
    if bare.startswith("-"):
        raise ProtoTextError(f"{text!r} is neither a number nor a word")
    return Ident(bare)


class _Parser:
    """Recursive descent over the tokens, one token ahead."""

    def __init__(self, text: str) -> None:
        self.source = text
        self.stream = _tokens(text)
        self.token: Token = next(self.stream)

    def take(self) -> str:
        kind, text, _ = self.token
        if kind == "end":
            raise self.fail("more text")
        self.token = next(self.stream)
        return text

    def sees(self, *marks: str) -> bool:
        return self.token[0] == "mark" and self.token[1] in marks

    def fail(self, wanted: str) -> ProtoTextError:
        line = self.source.count("\n", 0, self.token[2]) + 1
        return ProtoTextError(f"line {line}: expected {wanted}, found {self.token[1]!r}")

    def message(self, closing: str) -> Message:
        """Read fields up to the closing mark ('' is the end of the text) and take it."""
        fields = Message()
        while not (self.token[0] == "end" if closing == "" else self.sees(closing)):
            name = self.field_name()
            colon = self.sees(":")
            if colon:
                self.take()
            for value in self.values(colon):
                fields.append((name, value))
            if self.sees(",", ";"):
                self.take()
        if closing:
            self.take()
        return fields

    def field_name(self) -> str:
        if self.sees("["):  # an extension or Any; its name stays in brackets
            parts = [self.take()]
            while not self.sees("]"):
                parts.append(self.take())
            return "".join([*parts, self.take()])
        if self.token[0] not in ("word", "number") or self.token[1].startswith("-"):
            raise self.fail("a field's name")
        return self.take()

    def values(self, colon: bool) -> list[Value]:
        if not self.sees("["):
            return [self.value(colon)]
        self.take()
        found: list[Value] = []
        while not self.sees("]"):
            found.append(self.value(True))
            if self.sees(","):
                self.take()
            elif not self.sees("]"):
                raise self.fail("',' or ']'")
        self.take()
        return found

    def value(self, colon: bool) -> Value:
        if self.sees("{"):
            self.take()
            return self.message("}")
        if self.sees("<"):
            self.take()
            return self.message(">")
        if not colon:
            raise self.fail("':' or a message")
        kind = self.token[0]
        if kind == "string":
            parts = [_string(self.take())]
            while self.token[0] == "string":
                parts.append(_string(self.take()))
            return "".join(parts)
        if kind == "number":
            return _number(self.take())
        if kind == "word":
            return _word(self.take())
        raise self.fail("a value")


def parse(text: str) -> Message:
    """Parse a text (a byte-order mark in front is passed over)."""
    return _Parser(text.lstrip("\ufeff")).message("")


def parse_file(path: str | Path) -> Message:
    """Parse a file as UTF-8; bytes that are no UTF-8 survive as surrogates."""
    return parse(Path(path).read_bytes().decode("utf-8", "surrogateescape"))
