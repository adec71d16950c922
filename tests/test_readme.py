"""README.md and docs/: what they show is what the commands print, and what they name is there."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import numpy as np
import pytest
from support.command import Call, unwatched
from support.nets import Net
from test_real_nets import BESIDE, cache

from caffe_fold.cli import cli

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(ROOT.glob("docs/*.md"))]
SCRIPTS = [
    path
    for path in sorted(ROOT.glob("scripts/*.py"))
    if "__main__" in path.read_text(encoding="utf-8")  # others are parts of one
]


def blocks(text: str, language: str = "") -> list[str]:
    """The fenced blocks of a language."""
    found = re.findall(r"^```(\w*)\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    return [code for name, code in found if name == language]


def section(title: str) -> str:
    found = re.search(rf"^## {re.escape(title)}\n(.*?)(?=^## )", README, re.DOTALL | re.MULTILINE)
    assert found, title
    return found[1]


# ---- What is shown ----


def assert_shown(block: str, printed: str) -> None:
    """A block is what was printed, but for what its lines of three dots stand for, and for how
    close the proof was, which NumPy's release decides."""
    closeness = re.compile(r"difference [\d.]+ of")
    lines = [closeness.sub("difference # of", line) for line in printed.splitlines()]
    at = 0
    for piece in closeness.sub("difference # of", block).split("...\n"):
        wanted = piece.splitlines()
        places = range(at, len(lines) - len(wanted) + 1)
        found = next((i for i in places if lines[i : i + len(wanted)] == wanted), None)
        assert found is not None, piece
        at = found + len(wanted)


def test_the_demo(tmp_path: Path, call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    text = section("Before and after")
    (report,) = blocks(text)
    (shown,) = blocks(text, "diff")
    _, diff = blocks(text, "sh")[0].splitlines()
    monkeypatch.chdir(tmp_path)
    done = call("demo")
    assert done.code == 0
    assert_shown(report, done.out)
    if shutil.which("diff") is None:
        pytest.skip("there is no diff")
    found = subprocess.run(shlex.split(diff), capture_output=True, text=True)
    assert_shown(shown, found.stdout)


def test_the_report_of_a_real_net(call: Call) -> None:
    folder = next((f for f in (BESIDE, cache()) if (f / "res10_ssd_fp32").exists()), None)
    if folder is None:
        pytest.skip("res10_ssd_fp32 is not there: scripts/fetch_models.py brings it")
    (weights,) = (folder / "res10_ssd_fp32").glob("*.caffemodel")
    model = weights.with_name("deploy.prototxt")
    done = call("--model", model, "--weights", weights, "--dry-run")
    assert done.code == 0
    (report,) = blocks(section("Fold a net"))
    assert_shown(report, done.out)


def test_the_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("cv2")
    net = Net()
    net.input("data", (1, 3, 6, 6))
    net.conv("conv", "data", 3, 4, 3)
    net.batch_norm("bn", "conv", 4)
    model, weights = net.write(tmp_path)
    model.rename(tmp_path / "deploy.prototxt")
    weights.rename(tmp_path / "net.caffemodel")
    monkeypatch.chdir(tmp_path)
    (code,) = blocks(section("From Python"), "python")
    given = {name: np.ones(4) for name in ("mean", "variance", "g", "b")}
    names = {"weight": np.ones((4, 3, 3, 3)), "bias": np.zeros(4), **given}
    exec(code, names)
    assert names["bias"].shape == (4,)


def test_the_ratios_are_those_of_the_long_table() -> None:
    """A row of README.md stands as it is in docs/inference.md."""
    rows = re.findall(r"^\| .* -> .*\|$", section("Is it worth it?"), re.MULTILINE)
    table = (ROOT / "docs" / "inference.md").read_text(encoding="utf-8").splitlines()
    assert len(rows) >= 3
    assert [row for row in rows if row not in table] == []


# ---- What is to be typed ----


def command_lines() -> Iterator[tuple[str, str]]:
    """Each line of a shell that begins with caffe-fold, with the document's name."""
    for path in DOCUMENTS:
        text = path.read_text(encoding="utf-8").replace("\\\n", " ")
        for block in blocks(text, "sh"):
            for line in block.splitlines():
                if line.startswith("caffe-fold "):
                    yield path.name, " ".join(line.split())


LINES = sorted(set(command_lines()))


@pytest.mark.parametrize("line", [line for _, line in LINES])
def test_a_command_has_these_options(line: str) -> None:
    words = shlex.split(line, comments=True)[1:]
    context = click.Context(cli)
    name = words.pop(0) if words[0] in cli.list_commands(context) else "fold"
    command = cli.get_command(context, name)
    assert command is not None
    command.make_context(name, words)


def test_there_are_lines_of_each_command() -> None:
    found = {line.split()[1] for document, line in LINES if document == "README.md"}
    assert found == {"--model", "batch", "demo", "inspect", "verify"}


def test_options_in_the_text_are_there() -> None:
    named = set(re.findall(r"`(--[a-z][a-z-]*)", README))
    assert len(named) > 10
    assert sorted(named - set(options())) == []


def options() -> Iterator[str]:
    """Those of all commands."""
    context = click.Context(cli)
    for name in cli.list_commands(context):
        command = cli.get_command(context, name)
        assert command is not None
        for param in command.params:
            yield from param.opts
    yield "--help"


def test_extras_are_there() -> None:
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    texts = [path.read_text(encoding="utf-8") for path in DOCUMENTS]
    named = set(re.findall(r"caffe-fold\[(\w+)\]'", "\n".join(texts)))
    assert {"batch", "report", "verify"} <= named
    assert [name for name in named if f"\n{name} = [\n" not in project] == []


@pytest.mark.any_version
@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_a_script_says_how_it_is_used(path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(path), "--help"],
        env={**unwatched(), "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"usage: {path.name}")


# ---- What is named ----


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", text) if "://" not in link]
    named = re.findall(r"`(?:python )?(scripts/\w+\.\w+)", text)
    missing = [link for link in links if not (path.parent / link).exists()]
    assert missing + [name for name in named if not (ROOT / name).exists()] == []


def test_every_document_can_be_found() -> None:
    texts = README + (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    linked = set(re.findall(r"\]\(docs/([\w.]+)\)", texts))
    assert sorted(p.name for p in ROOT.glob("docs/*.md") if p.name not in linked) == []


@pytest.mark.skipif(shutil.which("bash") is None, reason="there is no bash")
def test_the_two_commands_are_those_that_ci_runs() -> None:
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    (start,) = re.findall(r"^run_readme_command|^readme_command\(\) \{\n.*\n\}", script, re.M)[:1]
    for end in re.findall(r"run_readme_command '([^']+)'", script):
        found = subprocess.run(
            ["bash", "-c", f"{start}\nreadme_command '{end}'"],
            cwd=ROOT,
            env=dict(os.environ),
            capture_output=True,
            text=True,
        )
        assert found.stdout.endswith(f"{end}\n")
