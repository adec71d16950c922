"""What README.md promises of every command: no network, no file but those that are asked for,
nothing run by an import; and each promise names the tests that hold it."""

from __future__ import annotations

import ast
import os
import re
import socket
from pathlib import Path
from typing import Any

import pytest
from support.command import Call
from support.nets import Net

import caffe_fold

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = Path(caffe_fold.__file__).parent
MODULES = sorted(path for path in PACKAGE.rglob("*.py") if path.name != "caffe_pb2.py")


def test_each_promise_names_tests_that_are_there() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    section = text[text.index("\n## What it promises\n") :]
    rows = re.findall(r"^\| \*\*.*\|$", section[: section.index("\n## What folds")], re.MULTILINE)
    assert len(rows) >= 8
    for row in rows:
        named = re.findall(r"`(test_\w+)(?:::(\w+))?`", row)
        assert named, row
        for module, function in named:
            source = (ROOT / "tests" / f"{module}.py").read_text(encoding="utf-8")
            assert f"def {function or 'test_'}" in source, (module, function)


@pytest.fixture
def net(tmp_path: Path) -> Path:
    """A folder with a net whose names look like paths, and like a page."""
    net = Net()
    net.input("data", (1, 3, 6, 6))
    net.conv("../../conv", "data", 3, 4, 3, top="/tmp/conv")
    net.batch_norm("C:bn", "/tmp/conv", 4)
    net.scale("<script>x</script>", "/tmp/conv", 4)
    net.relu("..", "/tmp/conv", top="../out")
    folder = tmp_path / "in"
    folder.mkdir()
    net.write(folder)
    return folder


def commands(folder: Path) -> list[list[str]]:
    """Every command that reads a net, with all that makes it write."""
    given = ["--model", str(folder / "net.prototxt"), "--weights", str(folder / "net.caffemodel")]
    folded = [
        *("--folded-model", str(folder / "net_inference.prototxt")),
        *("--folded-weights", str(folder / "net_inference.caffemodel")),
    ]
    page = ["--html", str(folder / "page.html")]
    return [
        [*given, *page, "--verify", "--equalize"],
        [*given, "--dry-run"],
        ["inspect", *given, *page],
        ["verify", *given, *folded, "--tolerance", "1e30", *page],
    ]


def tree(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def test_names_in_a_net_never_become_files(net: Path, call: Call) -> None:
    pytest.importorskip("cv2")
    pytest.importorskip("jinja2")
    for command in commands(net):
        done = call(*command)
        assert done.code == 0, done.err
    names = ["net.caffemodel", "net.prototxt", "net_inference.caffemodel"]
    names += ["net_inference.prototxt", "page.html"]
    assert tree(net.parent) == ["in", *(os.path.join("in", name) for name in names)]


def test_no_command_touches_the_network(
    net: Path, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("cv2")
    pytest.importorskip("jinja2")
    asked: list[Any] = []

    def refuse(*arguments: Any, **_: Any) -> Any:
        asked.append(arguments)
        raise OSError("the network is not to be touched")

    for name in ("connect", "connect_ex", "sendto", "bind"):
        monkeypatch.setattr(socket.socket, name, refuse)
    for name in ("getaddrinfo", "create_connection", "gethostbyname"):
        monkeypatch.setattr(socket, name, refuse)
    for command in commands(net):
        assert call(*command).code == 0
    assert not asked


DEFINITIONS = (
    *(ast.Import, ast.ImportFrom, ast.FunctionDef, ast.ClassDef),
    *(ast.Assign, ast.AnnAssign, ast.AugAssign),
)


def is_definition(node: ast.stmt) -> bool:
    """Whether a statement of a module defines something and does nothing."""
    if isinstance(node, ast.If):  # for type checkers, of a system, or as a program
        return all(map(is_definition, node.body)) or "__main__" in ast.dump(node.test)
    if isinstance(node, ast.Try):  # an import that may fail
        return all(isinstance(each, DEFINITIONS) for each in node.body)
    is_docstring = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    return is_docstring or isinstance(node, DEFINITIONS)


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_an_import_only_defines(path: Path) -> None:
    if path.name in ("pycaffe_forward.py", "__main__.py"):
        pytest.skip("a program of its own")
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        assert is_definition(node), f"line {node.lineno}"
