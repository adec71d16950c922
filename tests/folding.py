"""Fold a small net and judge the result in every way that needs no thought of the test's own.

    >>> done = fold_net(net, tmp_path)
    >>> done.types, done.stayed("bn1").code

``fold_net`` folds, and then asserts by means independent of the package:

- the folded pair loads where Caffe would load it, and each output of the net, each
  blob with the same last writer and each fold point has its value;
- the prototxt differs only where an issue of folding may change it;
- entries of the weights that the fold did not concern are the same bytes, those of
  removed layers are gone, and the others name the bottoms and tops of the prototxt;
- folding the result again changes no byte.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from support import compare, netdef
from support.evaluate import Evaluation, Evaluator
from support.judge import fold_points
from support.netdef import NetDef
from support.nets import Net
from support.weights import Blob, Weights, read_weights

import caffe_fold
from caffe_fold.report import Absorbed, Merged, Report, Stayed

TOLERANCE = 1e-5
"""How far values may be apart, relative to the largest of their blob: each weight is
rounded to float32 once (6e-8), and a sum can cancel."""


@dataclass
class Folded:
    """A net, folded: the report, both texts and weights, and both evaluations."""

    report: Report
    old_text: bytes
    new_text: bytes
    old_weights: bytes
    new_weights: bytes
    old_net: NetDef
    new_net: NetDef
    before: Evaluation = field(default_factory=Evaluation)
    after: Evaluation = field(default_factory=Evaluation)

    @property
    def text(self) -> str:
        """The folded prototxt."""
        return self.new_text.decode("latin-1")

    @property
    def layers(self) -> list[str]:
        """The names of the folded net's layers, without its inputs."""
        return [layer.name for layer in self.new_net.layers if layer.type != "Input"]

    @property
    def types(self) -> Counter[str]:
        """How many layers of each type the folded net has."""
        return Counter(layer.type for layer in self.new_net.layers)

    @property
    def is_unchanged(self) -> bool:
        """Whether both files are the input's, byte for byte."""
        return (self.old_text, self.old_weights) == (self.new_text, self.new_weights)

    @property
    def warnings(self) -> dict[str, str]:
        """The warnings by code."""
        return {note.code: note.message for note in self.report.warnings}

    def layer(self, name: str) -> netdef.Layer:
        """A layer of the folded net."""
        (found,) = [layer for layer in self.new_net.layers if layer.name == name]
        return found

    def blobs(self, name: str) -> tuple[Blob, ...]:
        """The blobs of a layer in the folded weights."""
        (found,) = [entry for entry in self.entries() if entry.name == name]
        return found.blobs

    def entries(self) -> list[Weights]:
        """The layers of the folded weights."""
        return read_weights(self.new_weights)

    def absorbed(self, name: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """What went into a linear layer: the names before it and behind it."""
        (found,) = [fold for fold in self.report.folded if fold.layer == name]
        return found.before, found.behind

    def stayed(self, name: str) -> Stayed:
        """Why a layer stays."""
        (found,) = [stay for stay in self.report.stayed if stay.layer == name]
        return found


def absorbed(report: Report) -> dict[str, tuple[str, ...]]:
    """The layers that went into each linear layer, those before it first."""
    return {fold.layer: (*fold.before, *fold.behind) for fold in report.folded}


def fold_net(
    net: Net,
    folder: Path,
    text: str | bytes | None = None,
    stages: Sequence[str] = (),
    level: int = 0,
    meaning: str | None = None,
    runs: bool = True,
    any_names: bool = False,
    tolerance: float = TOLERANCE,
    **options: Any,
) -> Folded:
    """Fold a net and judge the result; see the module.

    ``text`` stands in place of the net's own prototxt. Where Caffe would abort on the
    original, ``meaning`` is the prototxt that says what it means. ``runs`` is false where
    the evaluator knows no such layer, so that there are no values to compare. With
    ``any_names`` blobs are written anew in ways on which Caffe aborts, and the evaluator
    must have been made not to; then an older value of a name may come to light, and what
    a merge makes possible is folded by a second run only.
    """
    model, weights = net.write(folder)
    if text is not None:
        model.write_bytes(text.encode() if isinstance(text, str) else text)
    if level:
        options["level"] = level
    new_model, new_weights = folder / "folded.prototxt", folder / "folded.caffemodel"
    report = caffe_fold.fold(model, weights, new_model, new_weights, stages=stages, **options)
    done = Folded(
        report,
        model.read_bytes(),
        new_model.read_bytes(),
        weights.read_bytes(),
        new_weights.read_bytes(),
        netdef.read_net(model, stages, level),
        netdef.read_net(new_model, stages, level),
    )
    if runs:
        done.before = Evaluator(meaning or model, weights, stages, level).run(net.inputs())
        done.after = Evaluator(new_model, new_weights, stages, level).run(net.inputs())
        assert_values(done, tolerance)
        assert any_names or outputs(done.new_net) == outputs(done.old_net)
    assert_text(done)
    assert_weights(done)
    if not any_names:
        assert_folded_once(new_model, new_weights, stages, options)
    assert done.report.before.by_type == Counter(la.type for la in _own(model, stages, level))
    assert done.report.after.by_type == Counter(la.type for la in _own(new_model, stages, level))
    return done


def _own(path: Path, stages: Sequence[str], level: int) -> list[netdef.Layer]:
    """The layers of the file itself, without the one that stands for net-level inputs."""
    layers = netdef.read_net(path, stages, level).layers
    return [layer for layer in layers if layer.text.has("name") or layer.type != "Input"]


# ---- Values ----


def assert_values(done: Folded, tolerance: float) -> None:
    """Every value that both nets have, and every output, is the same."""
    compare.assert_same(done.before, done.after, fold_points(done.report), tolerance)
    for name in outputs(done.old_net):
        assert name in done.after.blobs, f"output {name!r} is gone"
        difference = compare.differ(name, done.before.blobs[name], done.after.blobs[name])
        assert difference.relative <= tolerance, difference


def outputs(net: NetDef) -> set[str]:
    """The blobs whose last value nothing reads."""
    unread: set[str] = set()
    for layer in net.layers:
        unread.difference_update(layer.bottoms)
        unread.update(layer.tops)
    return unread


# ---- The text ----

_BLOCK = re.compile(rb"^layers? *\{.*?^\}[^\n]*\n", re.MULTILINE | re.DOTALL)
_BIAS_TERM = re.compile(rb"\s*bias_term: (true|false)\s*")
_NAMES = re.compile(rb"^\s*(top|bottom): [^#{}]*$")


def assert_text(done: Folded) -> None:
    """The prototxt differs in removed layers, names, bias terms and merged Scales only.

    Holds for layers written as ``layer {`` to ``}``, each at the start of a line.
    """
    merged = {merge.layer for merge in done.report.merged}
    blocks = _BLOCK.findall(done.new_text)
    staying = {_layer_in(block) for block in blocks}
    kept = [
        block
        for block in _BLOCK.findall(done.old_text)
        if _layer_in(block) in staying or name_in(block) in merged
    ]
    for old, new in zip(kept, blocks):
        assert name_in(old) == name_in(new)
        if b"bias_term: false" in new and b"bias_term: false" not in old:
            # Caffe takes no more params than there are blobs.
            old, new = (re.sub(rb"param \{ [^}]*\}", b"", block) for block in (old, new))
        if name_in(new) not in merged:
            assert list(_essence(old)) == list(_essence(new)), new
    assert len(kept) == len(blocks)
    assert _BLOCK.sub(b"", done.new_text) == _BLOCK.sub(b"", done.old_text)


def name_in(block: bytes) -> str:
    """The name that a layer's text gives."""
    match = re.search(rb"name: [\"']([^\"']*)", block)
    return match[1].decode() if match else ""


def _layer_in(block: bytes) -> tuple[str, bytes]:
    """The name and the type that a layer's text gives."""
    match = re.search(rb"type: (\S+)", block)
    return name_in(block), match[1] if match else b""


def _essence(block: bytes) -> Iterator[bytes]:
    """The lines of a layer without what folding may change in it."""
    for line in block.splitlines(keepends=True):
        rest = _NAMES.sub(rb"\1", _BIAS_TERM.sub(b" ", line))
        rest = re.sub(rb"\w+_param \{ \}\n|\s", b"", rest)
        if rest:
            yield rest


# ---- The weights ----


def raw_layers(data: bytes) -> list[tuple[str, bytes]]:
    """Name and bytes of each layer of a weights file, in order."""
    found, at = [], 0
    while at < len(data):
        start = at
        tag, at = _varint(data, at)
        assert tag & 7 == 2, "the tests' weights hold messages and strings only"
        size, at = _varint(data, at)
        if tag >> 3 in (2, 100):
            (entry,) = read_weights(data[start : at + size])
            found.append((entry.name, data[start : at + size]))
        at += size
    return found


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while data[at] & 0x80:
        value |= (data[at] & 0x7F) << shift
        at, shift = at + 1, shift + 7
    return value | data[at] << shift, at + 1


def assert_weights(done: Folded) -> None:
    """Only entries that the fold concerns differ; those of removed layers are gone."""
    old, new = raw_layers(done.old_weights), raw_layers(done.new_weights)
    removed = _text_names(done.old_text) - _text_names(done.new_text)
    assert not removed & {name for name, _ in new}
    added = {merge.layer for merge in done.report.merged} - {name for name, _ in old}
    stay = [(name, data) for name, data in old if name not in removed]
    kept = [(name, data) for name, data in new if name not in added]
    assert [name for name, _ in stay] == [name for name, _ in kept]
    concerned = _concerned(done)
    for (name, before), (_, after) in zip(stay, kept):
        if name not in concerned:
            assert before == after, f"{name!r} changed in the weights"


def _text_names(text: bytes) -> set[str]:
    return {name_in(block) for block in _BLOCK.findall(text)}


def _concerned(done: Folded) -> set[str]:
    """Layers that were folded or merged, or got other names of blobs."""
    old = {layer.name: layer for layer in done.old_net.layers}
    renamed = {
        layer.name
        for layer in done.new_net.layers
        if (layer.bottoms, layer.tops) != (old[layer.name].bottoms, old[layer.name].tops)
    }
    changed: list[Absorbed | Merged] = [*done.report.folded, *done.report.merged]
    return renamed | {each.layer for each in changed}


def assert_folded_once(
    model: Path, weights: Path, stages: Sequence[str], options: dict[str, Any]
) -> None:
    """Folding what is folded writes the same bytes."""
    again = model.with_name("again.prototxt"), weights.with_name("again.caffemodel")
    report = caffe_fold.fold(model, weights, *again, stages=stages, **options)
    assert (report.folded, report.merged, report.removed) == ((), (), ())
    assert again[0].read_bytes() == model.read_bytes()
    assert again[1].read_bytes() == weights.read_bytes()
