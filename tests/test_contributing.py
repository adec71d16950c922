"""CONTRIBUTING.md: its examples run as they stand there, and what it names is there; and the
changelog has the version."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from support.command import unwatched

from caffe_fold import __version__

pytestmark = pytest.mark.any_version

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
    table = re.findall(r"\| `([\w/]+\.py)` \|$", section("### Other types"), re.MULTILINE)
    assert len(table) >= 5
    named += [f"caffe_fold/{name}" for name in table]
    assert [name for name in named if not (ROOT / name).exists()] == []


def test_the_changelog_has_the_version() -> None:
    """As a section with its date, or as what the unreleased becomes; the newest stands first."""
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    sections = re.split(r"^## ", text, flags=re.MULTILINE)[1:]
    heads = [section.partition("\n")[0] for section in sections]
    dated = [re.fullmatch(r"\[(\d+)\.(\d+)\.(\d+)\] - \d{4}-\d\d-\d\d", head) for head in heads]
    assert all(match or head == "[Unreleased]" for match, head in zip(dated, heads)), heads
    versions = [tuple(map(int, match.groups())) for match in dated if match]
    assert versions == sorted(set(versions), reverse=True)
    is_dated = any(head.startswith(f"[{__version__}] - ") for head in heads)
    assert is_dated or f"Becomes {__version__}," in sections[0]


# ---- The examples ----

BLOCK = re.compile(r"^```python\n# (\S+)\n(.*?)^```$", re.DOTALL | re.MULTILINE)


def test_the_examples_run(tmp_path: Path) -> None:
    """In a copy of the project, each block at the end of the file that its first line names."""
    ignore = shutil.ignore_patterns("__pycache__")
    for name in ("caffe_fold", "tests/support"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=ignore)
    for name in ("folding.py", "deploying.py"):
        shutil.copy(ROOT / "tests" / name, tmp_path / "tests")
    tests = []
    for name, code in BLOCK.findall(TEXT):
        file = tmp_path / name
        assert file.exists() != name.startswith("tests/test_"), name
        with file.open("a", encoding="utf-8") as end:
            end.write(f"\n\n{code}")
        tests += re.findall(r"^def (test_\w+)", code, re.MULTILINE)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests"],
        cwd=tmp_path,
        env={**unwatched(), "PYTHONPATH": os.pathsep.join(["", "tests"])},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    counts = re.findall(r"(\d+) (?:passed|skipped)", done.stdout)  # those that need OpenCV
    assert sum(map(int, counts)) == len(tests), done.stdout
    assert len(tests) >= 9


def test_the_examples_say_where_the_code_goes() -> None:
    """A block whose first line names no file would not be run at all."""
    blocks = re.findall(r"^```python$", TEXT, re.MULTILINE)
    assert len(BLOCK.findall(TEXT)) == len(blocks) >= 8
