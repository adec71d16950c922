"""The stable codes of --json: all of them are known, each is explained to the user, and each is
told of by some test."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import caffe_fold

pytestmark = pytest.mark.any_version

PACKAGE = Path(caffe_fold.__file__).parent
TESTS = Path(__file__).parent

# Where the code stands among the arguments.
MAKERS = {"Refused": 0, "Note": 0, "Blocked": 1, "Left": 1}

STAYS = """
axis batch-statistics blob-count blob-name blob-shape bn-layout both-names changes-computation
channels duplicate-name duplicate-weights in-place kept loss-weight net-input net-output no-weights
not-affine not-finite not-linear not-per-channel old-format overflow precision quantization
second-reader shared shared-memory shift tops-and-bottoms two-bottoms unknown-rank variance
""".split()
"""Why a layer stays. A program may ask for these: one that goes or changes breaks it."""

UNSEEN = ["net-output", "not-affine", "shift"]
"""Of these, those that no report has as the code of a layer: a Power that stays is not told
of, and where a run goes neither way the code is that of the way back."""

LEFT = "in-balance not-homogeneous other-states unknown-field zero-weights".split()
"""Why else equalising leaves a layer alone."""

NOTES = """
bn-variance cudnn-layout data-layers extra-weights no-bias-blob no-factor no-weights
nothing-to-fold other-states quantization-dropped unknown-field unknown-type untrained
""".split()
"""Warnings and notes."""


def made(makers: set[str]) -> Iterator[str]:
    """The codes that the package's own text gives to what it makes."""
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name):
                continue
            if node.func.id in makers:
                for part in ast.walk(node.args[MAKERS[node.func.id]]):
                    if isinstance(part, ast.Constant) and isinstance(part.value, str):
                        yield part.value


def test_the_codes_are_these() -> None:
    assert sorted(set(made({"Refused", "Blocked", "Left"}))) == sorted([*STAYS, *LEFT])
    assert sorted(set(made({"Note"}))) == sorted(NOTES)


def test_the_codes_are_explained() -> None:
    text = (TESTS.parent / "docs" / "refusals.md").read_text(encoding="utf-8")
    tables = [re.findall(r"^\| `([a-z-]+)` \|", part, re.MULTILINE) for part in text.split("\n## ")]
    assert tables == [[], STAYS, LEFT, NOTES]


def test_codes_are_short_words() -> None:
    for code in (*STAYS, *LEFT, *NOTES):
        assert re.fullmatch(r"[a-z]+(-[a-z]+)*", code)


def test_each_code_is_asked_for_by_a_test() -> None:
    others = [path for path in TESTS.rglob("test_*.py") if path.name != Path(__file__).name]
    text = "\n".join(path.read_text(encoding="utf-8") for path in others)
    seen = [code for code in (*STAYS, *LEFT, *NOTES) if code not in UNSEEN]
    assert [code for code in seen if f'"{code}"' not in text] == []
