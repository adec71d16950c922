"""Edits of a prototxt as splices: all that no edit touches comes out byte for byte."""

from __future__ import annotations

import re
from collections.abc import Iterable

from caffe_fold.named import NamedTuple
from caffe_fold.nets.prototxt import COMMA, SEPARATOR, Document, Field

__all__ = ["Edit", "apply_edits", "edited", "removals"]


class Edit(NamedTuple):
    """Replace the bytes ``start:end`` of a document by ``text`` (latin-1)."""

    start: int
    end: int
    text: str = ""


def apply_edits(document: Document, edits: Iterable[Edit]) -> bytes:
    """The document's bytes with all edits applied; edits must not overlap."""
    return edited(document.text, edits, 0, len(document.text)).encode("latin-1")


def edited(text: str, edits: Iterable[Edit], start: int, end: int) -> str:
    """The part ``start:end`` of a document's text with edits applied, all of which lie in it."""
    pieces, at = [], start
    for edit in sorted(edits, key=lambda e: (e.start, e.end)):
        if edit.start < at:
            raise AssertionError(f"edits overlap at byte {edit.start}")
        pieces += [text[at : edit.start], edit.text]
        at = edit.end
    return "".join([*pieces, text[at:end]])


_COMMENT_ABOVE = re.compile(r"[ \t]*#[^\n]*\n\Z")
_REST_OF_LINE = re.compile(r"[ \t]*[,;]?[ \t]*(?:#[^\n]*?)?(?:\r?\n|\Z)")


def removals(document: Document, fields: Iterable[Field]) -> list[Edit]:
    """The edits that take fields out, of which none may lie inside another.

    Where one has its lines to itself they go whole, with the comment lines
    directly above it and the comment behind it; elsewhere only the field goes.
    In a list a comma goes along.
    """
    ordered = sorted(fields, key=lambda field: field.start)
    alone = [_removal(document.text, field) for field in ordered if not field.in_list]
    return alone + _list_removals(document, [field for field in ordered if field.in_list])


def _removal(text: str, field: Field) -> Edit:
    start = field.start
    line_start = text.rfind("\n", 0, start) + 1
    rest = _REST_OF_LINE.match(text, field.end)
    separator = SEPARATOR.match(text, field.end)
    is_split = rest is not None and separator is not None and separator.end() > rest.end()
    if text[line_start:start].strip(" \t") or rest is None or is_split:
        return Edit(start, separator.end() if separator else field.end)
    while line_start > 0:
        above = text.rfind("\n", 0, line_start - 1) + 1
        if not _COMMENT_ABOVE.match(text, above, line_start):
            break
        line_start = above
    return Edit(line_start, rest.end())


def _list_removals(document: Document, fields: list[Field]) -> list[Edit]:
    """Values of lists, a run of neighbours at a time: in ``[a, b, c]`` the comma behind
    the run goes along, or else the one before it."""
    text, edits = document.text, []
    commas = {field.end: COMMA.match(text, field.end) for field in fields}
    before = _values_before(document) if fields else {}
    while fields:
        count = 1
        while count < len(fields) and before.get(fields[count].start) == fields[count - 1].end:
            count += 1
        run, fields = fields[:count], fields[count:]
        behind, previous = commas[run[-1].end], before.get(run[0].start)
        if behind and behind["comma"]:
            edits.append(Edit(run[0].start, behind.end()))
        else:
            edits.append(Edit(run[0].start if previous is None else previous, run[-1].end))
    return edits


def _values_before(document: Document) -> dict[int, int]:
    """Where the value before each value of a list ends, by the latter's start."""
    found: dict[int, int] = {}
    open_fields = [document.fields]
    while open_fields:
        fields = open_fields.pop()
        for one, next_one in zip(fields, fields[1:]):
            comma = COMMA.match(document.text, one.end) if one.in_list else None
            if comma and comma["comma"] and next_one.in_list and next_one.name == one.name:
                found[next_one.start] = one.end
        open_fields += [field.fields for field in fields if field.fields]
    return found
