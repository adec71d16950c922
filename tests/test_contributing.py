"""CONTRIBUTING.md: its examples run as they stand there, and what it names is there."""

from __future__ import annotations

import ast
import importlib
import re
import runpy
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Callable

import pytest
from support import blobspecs, registry

from caffe_fold.layers.affine import AFFINE
from caffe_fold.layers.linear import LINEAR

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "caffe_fold"
TEXT = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")

# ---- The map ----


def section(title: str) -> str:
    """The text below a heading, up to the next of its level."""
    ends = rf"^##{{1,{title.count('#') - 1}}} |\Z"  # a comment in code has one #
    found = re.search(rf"^{title}\n(.*?)(?={ends})", TEXT, re.DOTALL | re.MULTILINE)
    assert found, title
    return found[1]


def on_the_map() -> set[str]:
    """The modules and packages in the first column of the map."""
    rows = re.findall(r"^\| (`.*?) \|", section("## The map"), re.MULTILINE)
    return {name for row in rows for name in re.findall(r"`([^`]+)`", row)}


def test_what_is_on_the_map_is_there() -> None:
    missing = sorted(name for name in on_the_map() if not (PACKAGE / name).exists())
    assert missing == []


def test_every_package_and_every_module_beside_them_is_on_the_map() -> None:
    packages = {f"{path.parent.name}/" for path in PACKAGE.glob("*/__init__.py")}
    modules = {path.name for path in PACKAGE.glob("[!_]*.py")}
    assert len(packages) > 5
    assert sorted((packages | modules) - on_the_map()) == []


def test_files_that_the_text_names_are_there() -> None:
    named = re.findall(r"`((?:scripts|docs|proto|tests|\.ci|caffe_fold)/[\w./]*)", TEXT)
    named += re.findall(r"\]\(([^)#:]+)\)", TEXT)
    table = re.findall(r"\| `([\w/]+\.py)` \|$", section("### What else knows types"), re.MULTILINE)
    assert len(table) >= 5
    named += [f"caffe_fold/{name}" for name in table]
    assert [name for name in named if not (ROOT / name).exists()] == []


# ---- The examples ----


class Example:
    """One example's blocks, by the files that their first lines name."""

    def __init__(self, title: str) -> None:
        block = r"^```python\n# (\S+)\n(.*?)^```$"
        blocks = re.findall(block, section(title), re.DOTALL | re.MULTILINE)
        self.tests = {path: code for path, code in blocks if path.startswith("tests/test_")}
        self.code = [(path, code) for path, code in blocks if path not in self.tests]

    def install(self) -> None:
        """Run what is not a test, each block as at the end of its file."""
        for path, code in self.code:
            module = importlib.import_module(path.replace("tests/", "").replace("/", ".")[:-3])
            exec(compile(code, path, "exec"), {**vars(module)})


EXAMPLES = {title: Example(title) for title in ("### An affine one", "### A linear one")}
TESTS = [
    pytest.param(title, path, node.name, id=node.name)
    for title, example in EXAMPLES.items()
    for path, code in example.tests.items()
    for node in ast.parse(code).body
    if isinstance(node, ast.FunctionDef)
]


@pytest.fixture
def tables() -> Iterator[None]:
    """What an example adds to the tables is gone behind the test."""
    importlib.import_module("folding")  # fills the table of types that the judge runs
    known: list[dict[str, Any]] = [AFFINE, LINEAR, blobspecs._SPECS, registry.FORWARD]
    kept = [dict(table) for table in known]
    yield
    for table, old in zip(known, kept):
        table.clear()
        table.update(old)


@pytest.mark.usefixtures("tables")
@pytest.mark.parametrize(("title", "path", "name"), TESTS)
def test_the_example(title: str, path: str, name: str, tmp_path: Path) -> None:
    EXAMPLES[title].install()
    file = tmp_path / Path(path).name
    file.write_text(EXAMPLES[title].tests[path], encoding="utf-8")
    test: Callable[[Path], None] = runpy.run_path(str(file))[name]
    test(tmp_path)


def test_the_examples_say_where_the_code_goes() -> None:
    """A block whose first line names no file would not be run at all."""
    blocks = re.findall(r"^```python\n(.*)$", TEXT, re.MULTILINE)
    counted = sum(len(example.code) + len(example.tests) for example in EXAMPLES.values())
    assert counted == len(blocks) >= 8
    assert len(TESTS) >= 3
