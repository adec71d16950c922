"""Messages of a prototxt, read through protobuf's ``text_format`` over the compiled schema, so
that defaults and enums are Caffe's. What the schema lacks is left out, and named.
"""

from __future__ import annotations

import functools
import re
from typing import TYPE_CHECKING, Any, Callable, TypeVar

from caffe_fold.named import NamedTuple
from caffe_fold.nets.prototxt import Document, Field, literals

if TYPE_CHECKING:
    from google.protobuf.message import Message

    M = TypeVar("M", bound=Message)

__all__ = ["Parsed", "canonical", "from_text", "parsed_message"]


class Parsed(NamedTuple):
    """A message read from the text, and the names in it that the schema lacks."""

    message: Any
    unknown: tuple[str, ...]
    fields: tuple[Field, ...]

    def unknown_fields(self, name: str) -> list[Field]:
        """The fields of a name that the schema lacks."""
        return [f for f in self.fields if f.name == name and name in self.unknown]


def parsed_message(document: Document, field: Field | None, message: type[M]) -> Parsed:
    """Read a message field through ``text_format``, leaving out what the schema lacks.

    It is handed over a line a field, so that the line of a complaint leads back
    to the field's place in the file, and layers that say the same are read once.
    """
    if field is None:
        return Parsed(message(), (), ())
    if field.fields is None:
        raise document.error(field.value_start, f"{field.name!r} takes a message in braces")
    lines: list[tuple[str, int]] = []
    unknown: list[str] = []
    _known_lines(document, field, message.DESCRIPTOR, "", lines, unknown)
    make: Callable[[], Any] = message
    parsed, line, complaint = from_text(make, "\n".join(text for text, _ in lines))
    if complaint:
        offset = lines[min(line, len(lines)) - 1][1]
        raise document.error(offset, f"in {field.name!r}: {complaint}")
    return Parsed(parsed, tuple(dict.fromkeys(unknown)), field.fields)


def _known_lines(
    document: Document,
    field: Field,
    descriptor: Any,
    prefix: str,
    lines: list[tuple[str, int]],
    unknown: list[str],
) -> None:
    """Collect a message's fields, each with its place; name the unknown ones."""
    for child in field.fields or ():
        known = descriptor.fields_by_name.get(child.name)
        name = prefix + child.name
        if known is None:
            unknown.append(name)
        elif child.fields is None:
            value = canonical(document.value(child))
            if known.enum_type is not None and _is_unknown_enum(value, known.enum_type):
                unknown.append(f"{name}: {value}")
            else:
                lines.append((f"{child.name}: {value}", child.value_start))
        else:
            lines.append((f"{child.name} {{", child.value_start))
            if known.message_type is not None:
                _known_lines(document, child, known.message_type, f"{name}.", lines, unknown)
            lines.append(("}", child.value_end))


def canonical(raw: str) -> str:
    """A scalar without blanks and comments between its parts, in ASCII."""
    if raw[:1] in ("'", '"'):
        raw = " ".join(literals(raw))
        return re.sub("[\x80-\xff]", lambda m: f"\\{ord(m[0]):03o}", raw)
    return raw if raw.isalnum() else re.sub(r"#[^\n]*\n|\s", "", raw)


def _is_unknown_enum(value: str, enum: Any) -> bool:
    if value.isdigit():
        # As text: Python takes no number of thousands of digits.
        return value.lstrip("0") not in {str(number or "") for number in enum.values_by_number}
    return value not in enum.values_by_name


# Longer ones are hardly ever said twice.
_SHORT = 1 << 12


def from_text(make: Callable[[], Any], text: str) -> tuple[Any, int, str]:
    """A message, or the line of a complaint and the complaint. Not to be changed."""
    return (_remembered if len(text) <= _SHORT else _read)(make, text)


@functools.lru_cache(maxsize=4096)
def _remembered(make: Callable[[], Any], text: str) -> tuple[Any, int, str]:
    return _read(make, text)


def _read(make: Callable[[], Any], text: str) -> tuple[Any, int, str]:
    from google.protobuf import text_format

    parsed = make()
    try:
        text_format.Parse(text, parsed)
    except text_format.ParseError as error:
        return parsed, error.GetLine() or 1, re.sub(r"^\d+:\d+ : ", "", str(error))
    return parsed, 0, ""
