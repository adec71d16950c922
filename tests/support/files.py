"""Compares a net's two files with those of the net folded from it, as text and as bytes.

What is compared is read by a scanner of lines and a walk over the wire format of
this module's own, which share nothing with the tool.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass

from caffe_fold import Report

from .judge import Net, definition_of
from .netdef import Layer

# ---- Text ----

_MARK = re.compile(r"""#[^\n]*|"(?:[^"\\\n]|\\.)*"|'(?:[^'\\\n]|\\.)*'|[{}]""")
_NAME = re.compile(r"""\bname\s*:\s*["']([^"'\n]*)["']""")
_FREE = re.compile(
    r"""\b(?:top|bottom)\s*:\s*(?:"[^"\n]*"|'[^'\n]*')[ \t]*|\bbias_term\s*:\s*\w+[ \t]*"""
)
_COMMENT = re.compile(r"[ \t]*#")


@dataclass(frozen=True)
class Block:
    """A layer's lines, from the one that opens it to behind the one that closes it."""

    name: str
    start: int
    end: int


def blocks(text: str) -> list[Block]:
    """Return the top-level messages of a text in braces, each with its own name."""
    found: list[Block] = []
    depth = start = 0
    own = ""  # the text at depth 1, where the layer's own name is
    at = 0
    for match in _MARK.finditer(text):
        if depth == 1:
            own += text[at : match.start()]
        at = match.end()
        mark = match[0]
        if mark == "{":
            depth += 1
            if depth == 1:
                start, own = match.start(), ""
        elif mark == "}":
            depth -= 1
            if depth == 0:
                name = _NAME.search(own)
                lines = (text.count("\n", 0, start), text.count("\n", 0, match.end()) + 1)
                found.append(Block(name[1] if name else "", *lines))
        elif depth == 1 and mark[0] != "#":
            own += mark
    return found


def outline(text: str, without: Collection[str]) -> list[str]:
    """Return the lines of a text, without those of some layers and the comments directly
    above them, and without all tops, bottoms and bias terms."""
    lines = text.splitlines(keepends=True)
    dropped: set[int] = set()
    for block in blocks(text):
        if block.name in without:
            dropped.update(range(block.start, block.end))
            above = block.start - 1
            while above >= 0 and _COMMENT.match(lines[above]):
                dropped.add(above)
                above -= 1
    found = []
    for number, line in enumerate(lines):
        if number in dropped:
            continue
        freed = _FREE.sub("", line)
        if freed == line or freed.strip():
            found.append(freed)
    return found


def check_text(original: Net, folded: Net, report: Report) -> None:
    """Assert that the texts differ as the report says, and in nothing else."""
    old, new = (net.prototxt.read_bytes().decode("latin-1") for net in (original, folded))
    merged = {merge.layer.encode().decode("latin-1") for merge in report.merged}
    gone = {name.encode().decode("latin-1") for name in removed(report)}
    assert outline(old, gone | merged) == outline(new, merged)
    before = {layer.name: layer for layer in definition_of(original).layers}
    after = {layer.name: layer for layer in definition_of(folded).layers}
    assert set(before) - set(after) == removed(report)
    assert set(after) <= set(before)
    behind = {fold.layer for fold in report.folded if fold.behind}
    ahead = {fold.layer for fold in report.folded if fold.before}
    merges = {merge.layer for merge in report.merged}
    for name, layer in after.items():
        was = before[name]
        if name in merges or report.removed:
            continue
        assert layer.tops == was.tops or name in behind, name
        assert layer.bottoms == was.bottoms or name in ahead, name
        assert _bias_term(layer) == _bias_term(was) or name in behind | ahead, name


def _bias_term(layer: Layer) -> list[object]:
    return [
        value.all("bias_term")
        for key, value in layer.text
        if isinstance(value, list) and key.endswith("_param")
    ]


def removed(report: Report) -> set[str]:
    """Return the names of the layers that the report says are no more."""
    found = set(report.removed)
    for fold in report.folded:
        found.update((*fold.before, *fold.behind))
    for merge in report.merged:
        found.update(set(merge.layers) - {merge.layer})
    return found


# ---- Weights ----


def wire_fields(data: memoryview) -> list[tuple[int, memoryview, memoryview]]:
    """Return a message's fields: the number, all bytes, and the bytes of the value."""
    found = []
    at = 0
    while at < len(data):
        start = at
        tag, at = _varint(data, at)
        kind, value = tag & 7, at
        if kind == 0:
            _, at = _varint(data, at)
        elif kind == 2:
            size, value = _varint(data, at)
            at = value + size
        else:
            at += {1: 8, 5: 4}[kind]
        found.append((tag >> 3, data[start:at], data[value:at]))
    assert at == len(data), "the file is cut off"
    return found


def _varint(data: memoryview, at: int) -> tuple[int, int]:
    value = shift = 0
    while data[at] & 0x80:
        value |= (data[at] & 0x7F) << shift
        at, shift = at + 1, shift + 7
    return value | data[at] << shift, at + 1


def entries(data: bytes) -> list[tuple[str, memoryview, memoryview]]:
    """Return the fields of a weights file: the layer's name ('' for others), all, value."""
    found = []
    for number, whole, value in wire_fields(memoryview(data)):
        name = ""
        if number in (2, 100):  # V1 layers have their name in field 4
            place = 4 if number == 2 else 1
            name = next((bytes(v).decode() for n, _, v in wire_fields(value) if n == place), "")
        found.append((name, whole, value))
    return found


_CHANGED = {3, 4, 7, 106, 117}  # bottom, top, blobs, and the messages that hold bias_term


def check_weights(original: Net, folded: Net, report: Report) -> int:
    """Assert that untouched entries are the same bytes; return how many those are."""
    gone = removed(report)
    old = [e for e in entries(original.caffemodel.read_bytes()) if e[0] not in gone]
    new = entries(folded.caffemodel.read_bytes())
    assert [entry[0] for entry in old] == [entry[0] for entry in new]
    folds = {fold.layer for fold in report.folded}
    merges = {merge.layer for merge in report.merged}
    same = 0
    for (name, whole, value), (_, now, new_value) in zip(old, new):
        if name in merges:
            continue
        if name not in folds:
            assert bytes(now) == bytes(whole), f"the entry of '{name}' changed"
            same += 1
            continue
        kept, now_kept = (
            [field for number, field, _ in wire_fields(v) if number not in _CHANGED]
            for v in (value, new_value)
        )
        assert kept == now_kept, f"a field of '{name}' changed"
    return same
