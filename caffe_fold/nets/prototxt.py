"""The syntax of a prototxt: a tree of spans over the text.

protobuf's own ``text_format`` loses comments, order, spacing and every field
that its schema does not know. Here the text itself stays the truth: a field is
a span of it, which ``edits`` may replace. The text is held as latin-1, one
character a byte, so that any encoding passes through.

The grammar is that of ``TextFormat::Parser`` (protobuf, text_format.cc):
``name: value``, ``name { }`` with an optional colon, ``< >``, lists ``[ ]``,
``,`` or ``;`` behind a field, ``#`` comments, adjacent strings joined.
"""

from __future__ import annotations

import bisect
import functools
import re

from caffe_fold.errors import Path, PrototxtError, show
from caffe_fold.named import NamedTuple

__all__ = ["COMMA", "SEPARATOR", "Document", "Field", "literals", "parse", "string_value"]


class Field(NamedTuple):
    """A field: a name and one value. A list ``name: [a, b]`` is several fields.

    All positions are byte offsets in the document. ``fields`` is None for a
    scalar, and what stands between the braces for a message. In a list,
    ``start`` is the value's own start.
    """

    name: str
    start: int
    end: int
    value_start: int
    value_end: int
    fields: tuple[Field, ...] | None
    in_list: bool


_SKIP = r"[ \t\r\n\f\v]*(?:#[^\n]*\n[ \t\r\n\f\v]*)*"
_STRING = r'(?:"[^"\\\n]*(?:\\.[^"\\\n]*)*"|\'[^\'\\\n]*(?:\\.[^\'\\\n]*)*\')'
_LITERAL_OR_COMMENT = re.compile(rf"{_STRING}|#[^\n]*")
_NUMBER = (
    r"(?:0[xX][0-9a-fA-F]+|0[0-7]+"
    r"|(?:(?:0|[1-9][0-9]*)(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]+)?[fF]?)"
    r"(?![0-9A-Za-z_.])"
)
_WORD = r"[A-Za-z_][A-Za-z0-9_]*"
_SCALAR = rf"(?:{_STRING}(?:{_SKIP}{_STRING})*|(?:-{_SKIP})?(?:{_WORD}|{_NUMBER}))"
_NAME = rf"(?:{_WORD}|\[{_SKIP}[A-Za-z0-9_./-]+{_SKIP}\])"

_FIELD = re.compile(
    rf"{_SKIP}(?:(?P<close>[}}>])|(?P<name>{_NAME}){_SKIP}"
    rf"(?::{_SKIP}(?:(?P<scalar>{_SCALAR})(?:{_SKIP}[,;])?|(?P<open>[{{<\[]))|(?P<bare>[{{<\[])))"
)
# Compiled where one is met, as few nets have any.
_VALUE = rf"{_SKIP}(?:(?P<close>\])|(?P<scalar>{_SCALAR})|(?P<open>[{{<]))"
# What may stand behind a field, and what stands behind a value of a list or ends it.
SEPARATOR = re.compile(rf"{_SKIP}[,;]")
COMMA = re.compile(rf"{_SKIP}(?:(?P<comma>,)|(?=\]))")
_BLANK = re.compile(_SKIP)
_CLOSER = {"{": "}", "<": ">", "[": "]"}


class Document:
    """A parsed prototxt: its path (for messages), its text and its top-level fields."""

    def __init__(self, path: Path, text: str, fields: tuple[Field, ...]) -> None:
        self.path, self.text, self.fields = path, text, fields

    @functools.cached_property
    def _line_starts(self) -> list[int]:
        return [0, *(m.end() for m in re.finditer("\n", self.text))]

    def position(self, offset: int) -> tuple[int, int]:
        """Line and column of a byte offset, both from 1; a column counts characters."""
        line = bisect.bisect_right(self._line_starts, offset)
        before = self.text[self._line_starts[line - 1] : offset]
        return line, len(before.encode("latin-1").decode("utf-8", "replace")) + 1

    def line(self, field: Field) -> int:
        """The line, from 1, on which a field starts."""
        return bisect.bisect_right(self._line_starts, field.start)

    def error(self, offset: int, message: str) -> PrototxtError:
        """An error that points at a byte offset of this document."""
        return PrototxtError(self.path, *self.position(offset), message)

    def value(self, field: Field) -> str:
        """A scalar's text as it stands, in latin-1."""
        return self.text[field.value_start : field.value_end]

    @property
    def newline(self) -> str:
        """The line ending that most lines have."""
        return "\r\n" if 2 * self.text.count("\r\n") > self.text.count("\n") else "\n"


class _Frame(NamedTuple):
    """A message or list that is still open while parsing."""

    name: str
    start: int
    opened_at: int
    bracket: str
    in_list: bool
    fields: list[Field]


def parse(data: bytes, path: Path = "<prototxt>") -> Document:
    """Parse a prototxt. Nesting of any depth costs memory, not stack.

    :raises PrototxtError: with line and column, and what was expected there.
    """
    text = data.decode("latin-1")
    return Document(path, text, _Parser(path, text).run())


class _Parser:
    """One pass over the text, with an explicit stack of the open messages and lists."""

    def __init__(self, path: Path, text: str) -> None:
        self.document = Document(path, text, ())
        # A comment on the last line must end in a line feed for _SKIP to see it.
        self.text = text + "\n"
        self.at = 3 if text.startswith("\xef\xbb\xbf") else 0
        self.stack = [_Frame("", 0, 0, "", False, [])]

    def run(self) -> tuple[Field, ...]:
        while True:
            frame = self.stack[-1]
            if frame.bracket == "[":
                self._list_value(frame)
                continue
            match = self._scalars(frame)
            if match is None:
                if self._at_end():
                    return tuple(self.stack[0].fields)
                raise self._unexpected(frame)
            if match.lastgroup == "close":
                self._close(frame, match)
            else:
                at = match.start(match.lastgroup or 0)
                opened = _Frame(match["name"], match.start("name"), at, self.text[at], False, [])
                self.stack.append(opened)
                self.at = at + 1

    def _scalars(self, frame: _Frame) -> re.Match[str] | None:
        """Take the scalar fields that come next, most of a text, and give the match behind
        them."""
        text, at, add, field_at = self.text, self.at, frame.fields.append, _FIELD.match
        new = tuple.__new__  # what Field itself would call, in half of the time
        while True:
            match = field_at(text, at)
            if match is None or match.lastgroup != "scalar":
                self.at = at
                return match
            start, end = match.span("scalar")
            add(new(Field, (match["name"], match.start("name"), end, start, end, None, False)))
            at = match.end()

    def _at_end(self) -> bool:
        """Whether nothing follows; an open message at the end is an error."""
        end = _BLANK.match(self.text, self.at).end()  # type: ignore[union-attr]
        if end < len(self.text):
            return False
        if len(self.stack) > 1:
            frame = self.stack[-1]
            what = "list" if frame.bracket == "[" else "message"
            line, _ = self.document.position(frame.opened_at)
            raise self._error(
                len(self.document.text),
                f"the file ends inside the {what} {_quote(frame.name)} opened in line {line}; "
                f"expected {_CLOSER[frame.bracket]!r}. Is it complete?",
            )
        return True

    def _close(self, frame: _Frame, match: re.Match[str]) -> None:
        at = match.start("close")
        if self.text[at] != _CLOSER.get(frame.bracket):
            expected = f"{_CLOSER[frame.bracket]!r}" if frame.bracket else "a field name"
            raise self._error(at, f"found {self.text[at]!r}; expected {expected}")
        self.stack.pop()
        span = (frame.start, at + 1, frame.opened_at, at + 1)
        parent = self.stack[-1]
        parent.fields.append(Field(frame.name, *span, tuple(frame.fields), frame.in_list))
        if frame.in_list:
            self._comma(at + 1)
        else:
            self._behind(at + 1)

    def _list_value(self, frame: _Frame) -> None:
        match = re.compile(_VALUE).match(self.text, self.at)
        if match is None:
            self._at_end()
            raise self._unexpected(frame)
        if match.lastgroup == "close":
            if frame.fields and self._after_comma(match.start("close")):
                raise self._error(match.start("close"), "found ']'; expected a value behind ','")
            self.stack.pop()
            self.stack[-1].fields.extend(frame.fields)
            self._behind(match.end())
        elif match.lastgroup == "scalar":
            start, end = match.span("scalar")
            frame.fields.append(Field(frame.name, start, end, start, end, None, True))
            self._comma(end)
        else:
            at = match.start("open")
            self.stack.append(_Frame(frame.name, at, at, self.text[at], True, []))
            self.at = at + 1

    def _after_comma(self, at: int) -> bool:
        return self.text[self.at - 1] == "," and self.at <= at

    def _comma(self, at: int) -> None:
        """In a list, a comma or the end follows a value."""
        match = COMMA.match(self.text, at)
        if match is None:
            self.at = at
            self._at_end()
            raise self._error(self._next(at), f"found {self._found(at)}; expected ',' or ']'")
        self.at = match.end()

    def _behind(self, at: int) -> None:
        """One separator may follow a field."""
        match = SEPARATOR.match(self.text, at)
        self.at = match.end() if match else at

    def _next(self, at: int) -> int:
        return min(_BLANK.match(self.text, at).end(), len(self.document.text))  # type: ignore[union-attr]

    def _found(self, at: int) -> str:
        found = re.compile(r"[A-Za-z0-9_.]{1,40}|[^\n]?").match(self.text, self._next(at))
        text = found[0] if found and found[0] else "the end of the line"
        return _quote(text.encode("latin-1").decode("ascii", "backslashreplace"))

    def _unexpected(self, frame: _Frame) -> PrototxtError:
        """What the grammar wanted at the place where no rule of it fits."""
        at = self._next(self.at)
        if frame.bracket == "[":
            return self._error(at, f"found {self._found(at)}; expected a value or ']'")
        name = re.compile(_NAME).match(self.text, at)
        if name is None:
            closer = f" or {_CLOSER[frame.bracket]!r}" if frame.bracket else ""
            return self._error(at, f"found {self._found(at)}; expected a field name{closer}")
        behind = self._next(name.end())
        if self.text[behind] == ":":
            behind = self._next(behind + 1)
            if self.text[behind] in "\"'":
                return self._error(behind, "this string has no closing quote on its line")
            wanted = f"a value for {_quote(name[0])}"
        else:
            wanted = f"':' or '{{' behind {_quote(name[0])}"
        return self._error(behind, f"found {self._found(behind)}; expected {wanted}")

    def _error(self, offset: int, message: str) -> PrototxtError:
        return self.document.error(offset, message)


def _quote(text: str) -> str:
    return text if text.startswith("the end") else f"'{show(text, 60)}'"


def string_value(document: Document, field: Field) -> str:
    """A string field's value: adjacent literals joined, escapes resolved.

    Bytes that are not UTF-8 become surrogates (``surrogateescape``), the same
    way as names read from a caffemodel, so that names in any encoding compare.

    :raises PrototxtError: if the value is not a string.
    """
    raw = document.value(field)
    if field.fields is not None or raw[:1] not in "\"'":
        raise document.error(
            field.value_start, f"found {_quote(raw[:40])}; {field.name!r} takes a string in quotes"
        )
    if "\\" not in raw and raw.count(raw[0]) == 2 and raw[-1] == raw[0]:
        if raw.isascii():
            return raw[1:-1]
        data = raw[1:-1].encode("latin-1")
    else:
        data = b"".join(_unescape(document, field, literal) for literal in literals(raw))
    return data.decode("utf-8", "surrogateescape")


def literals(raw: str) -> list[str]:
    """The literals of a string value, without what stands between them."""
    return [part for part in _LITERAL_OR_COMMENT.findall(raw) if part[0] != "#"]


_ESCAPE = (
    r"\\(?:(?P<octal>[0-7]{1,3})|[xX](?P<hex>[0-9a-fA-F]{1,2})|u(?P<u>[0-9a-fA-F]{4})"
    r"|U(?P<U>[0-9a-fA-F]{8})|(?P<plain>[abfnrtv\\'\"?])|(?P<bad>.?))"
)
_PLAIN = dict(zip("abfnrtv", "\a\b\f\n\r\t\v"))


def _unescape(document: Document, field: Field, literal: str) -> bytes:
    """A literal's bytes. protobuf's CUnescape takes time that grows with the square of
    the backslashes."""

    def one(match: re.Match[str]) -> str:
        if match["octal"] or match["hex"]:
            return chr(int(match["octal"] or match["hex"], 8 if match["octal"] else 16) & 0xFF)
        code = match["u"] or match["U"]
        if code and int(code, 16) < 0x110000 and not 0xD800 <= int(code, 16) < 0xE000:
            return chr(int(code, 16)).encode().decode("latin-1")
        if match["plain"]:
            return _PLAIN.get(match["plain"], match["plain"])
        raise document.error(field.value_start, f"bad escape '{match[0]}' in a string")

    return re.sub(_ESCAPE, one, literal[1:-1], flags=re.DOTALL).encode("latin-1")
