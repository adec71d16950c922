"""The command ``inspect``: its table on a terminal and in a pipe, and JSON."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from support.command import HANGS, Call, all_shown
from support.nets import Net

import caffe_fold
from caffe_fold import cli
from caffe_fold.inspection.table import plain_table, print_rich

Patch = pytest.MonkeyPatch


def small_net(conv: str = "conv", bn: str = "bn") -> Net:
    net = Net("small")
    net.input("data", (1, 3, 6, 6))
    net.conv(conv, "data", 3, 4, top="conv")
    net.batch_norm(bn, "conv", 4)
    net.scale("scale", "conv", 4)
    net.relu("relu", "conv")
    return net


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    small_net().write(tmp_path)
    return tmp_path


def files(folder: Path) -> list[str]:
    return ["--model", str(folder / "net.prototxt"), "--weights", str(folder / "net.caffemodel")]


def test_a_line_a_layer_and_nothing_written(folder: Path, call: Call) -> None:
    there = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    done = call("inspect", *files(folder))
    assert (done.code, done.err) == (0, "")
    lines = [" ".join(line.split()) for line in done.out.splitlines()]
    assert lines[0] == "type weights parameters gain layer folding"
    assert lines[1] == "Convolution 4x3x3x3 112 - conv takes bn + scale"
    assert lines[2].startswith("BatchNorm 4 9 ")
    assert lines[2].endswith(" bn folds into conv")
    assert lines[-1] == "layers 5 -> 3"
    assert "BatchNorm 1 -> 0, 9 parameters: 1 fold" in lines
    assert "\x1b" not in done.out
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == there


def test_the_prototxt_alone(folder: Path, call: Call) -> None:
    done = call("inspect", *files(folder)[:2])
    assert (done.code, done.err) == (0, "")
    assert "takes bn + scale" in done.out
    assert "As far as the prototxt tells" in done.out


def test_json(folder: Path, call: Call) -> None:
    done = call("inspect", *files(folder), "--json")
    data = json.loads(done.out)
    assert (data["schema"], data["version"]) == (1, caffe_fold.__version__)
    conv, bn = data["layers"][1:3]
    assert (conv["fate"], conv["names"], conv["shapes"]) == (
        "takes",
        ["bn", "scale"],
        [[4, 3, 3, 3], [4]],
    )
    assert (bn["role"], bn["fate"], bn["names"], bn["parameters"]) == (
        "affine",
        "folds",
        ["conv"],
        9,
    )
    assert data["totals"]["types"][1]["fates"] == {"folds": 1}
    (layer,) = data["int8"]["layers"]
    assert layer["layer"] == "conv"
    assert layer["after"]["sqnr_db"] > 0
    alone = json.loads(call("inspect", *files(folder)[:2], "--json").out)
    assert alone["weights"] is None
    assert "int8" not in alone


def hostile() -> list[str]:
    return [
        "</script><img src=x onerror=alert(1)>",
        "[red]markup[/red]",
        "a'b&amp;",
        "right\u202eleft",
        "x" * 10_000,
        "层" * 30,
    ]


@pytest.mark.parametrize("name", hostile(), ids=range(6))
def test_names_of_anybody_break_no_table(name: str, tmp_path: Path, call: Call) -> None:
    small_net(bn=name).write(tmp_path)
    done = call("inspect", *files(tmp_path))
    assert (done.code, done.err) == (0, "")
    rows = [line for line in done.out.splitlines() if line.startswith("BatchNorm  ")]
    assert len(rows) == 1
    assert "\u202e" not in done.out
    assert json.loads(call("inspect", *files(tmp_path), "--json").out)["layers"][2]["name"]


def test_names_that_are_not_utf8_or_hold_line_feeds(tmp_path: Path, call: Call) -> None:
    model, _ = small_net(conv="ODD").write(tmp_path)
    model.write_bytes(model.read_bytes().replace(b"ODD", b"caf\\351\\n\\033[31m"))
    done = call("inspect", "--model", model)
    assert "folds into caf\\xe9\\n\\x1b[31m\n" in done.out
    assert "\x1b" not in done.out
    data = json.loads(call("inspect", "--model", model, "--json").out)
    assert data["layers"][1]["name"] == "caf\\xe9\\n\\x1b[31m"


@pytest.mark.parametrize("width", [40, 60, 200])
@pytest.mark.parametrize("name", hostile(), ids=range(6))
def test_on_a_terminal_no_line_is_wider(width: int, name: str, tmp_path: Path) -> None:
    console = pytest.importorskip("rich.console")
    cells = pytest.importorskip("rich.cells")
    found = caffe_fold.inspect(small_net(conv=name[:300]).write(tmp_path)[0])
    out = io.StringIO()
    print_rich(found, console.Console(file=out, width=width, force_terminal=False))
    table = out.getvalue().split("\n\n")[0]
    assert max(cells.cell_len(line) for line in table.splitlines()) <= width
    assert "[red]" not in name or "[red]" in "".join(out.getvalue().split())
    assert (table.count("takes"), table.count("folds")) == (1, 2)
    assert "4x3x3x3" in table


def terminal(folder: Path, *arguments: str, **env: str) -> str:
    """What the command shows on a terminal."""
    pty = pytest.importorskip("pty")
    ours, theirs = pty.openpty()
    root = str(Path(cli.__file__).parents[1])
    base = {k: v for k, v in os.environ.items() if k not in ("NO_COLOR", "FORCE_COLOR", "COLUMNS")}
    with subprocess.Popen(
        [sys.executable, "-m", "caffe_fold", "inspect", *arguments],
        cwd=folder,
        stdin=subprocess.DEVNULL,
        stdout=theirs,
        env={**base, "PYTHONPATH": root, "TERM": "xterm-256color", **env},
    ) as process:
        os.close(theirs)
        out = all_shown(ours)
    assert process.returncode == 0
    return out.decode()


@pytest.mark.skipif(os.name != "posix", reason="needs a pseudo-terminal")
def test_colour_on_a_terminal_but_not_with_no_color(folder: Path) -> None:
    pytest.importorskip("rich")
    model = ("--model", "net.prototxt")
    assert "\x1b[32m" in terminal(folder, *model, COLUMNS="100")
    plain = terminal(folder, *model, COLUMNS="40", NO_COLOR="1")
    assert "\x1b[32m" not in plain
    assert "conv" in plain


def test_without_rich_a_terminal_gets_the_plain_table(
    folder: Path, call: Call, monkeypatch: Patch
) -> None:
    monkeypatch.setitem(sys.modules, "rich.console", None)
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    done = call("inspect", *files(folder))
    assert done.out.splitlines()[0].split()[0] == "type"
    assert done.code == 0


@pytest.mark.skipif(os.name != "posix", reason="needs a shell")
@pytest.mark.parametrize("more", [[], ["--json"]], ids=["table", "json"])
def test_a_reader_that_goes_away_is_no_error(more: list[str], tmp_path: Path) -> None:
    net = small_net()
    for index in range(700):
        net.relu(f"{'x' * 60}{index}", "conv", top=f"y{index}")
        net.scale(f"{'s' * 60}{index}", f"y{index}", 4, top=f"z{index}")
    net.write(tmp_path)
    root = str(Path(cli.__file__).parents[1])
    done = subprocess.run(
        f"'{sys.executable}' -m caffe_fold inspect --model net.prototxt {' '.join(more)} "
        "| head -n 1; exit ${PIPESTATUS[0]}",
        shell=True,
        executable="/bin/bash",
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": root},
        capture_output=True,
        text=True,
        timeout=HANGS,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.count("\n") == 1


@pytest.mark.parametrize("kind", ["folder", "weights", "missing"])
def test_bad_inputs(kind: str, folder: Path, call: Call) -> None:
    path = {"folder": folder, "weights": folder / "net.caffemodel", "missing": folder / "no"}[kind]
    done = call("inspect", "--model", path)
    assert (done.code, done.out) == (2, "")
    assert done.err.startswith("error: ")
    assert done.err.count("\n") == 1


def test_help(call: Call) -> None:
    done = call("inspect", "--help")
    for option in ("--model", "--weights", "--html", "--json", "--stage", "--keep", "--bn-layout"):
        assert option in done.out
    assert "inspect" in call("--help").out


def test_inspecting_imports_no_page_and_no_rich(folder: Path) -> None:
    code = (
        "import sys; from caffe_fold import cli\n"
        f"sys.argv = ['caffe-fold', 'inspect', '--model', {str(folder / 'net.prototxt')!r}]\n"
        "try: cli.main()\n"
        "except SystemExit: pass\n"
        "print([m for m in ('jinja2', 'rich', 'h5py') if m in sys.modules])"
    )
    root = str(Path(cli.__file__).parents[1])
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": root},
        capture_output=True,
        text=True,
        timeout=HANGS,
    )
    assert done.stdout.splitlines()[-1] == "[]", done.stderr


def test_a_plain_table_cuts_nothing(tmp_path: Path) -> None:
    name = "n" * 150
    found = caffe_fold.inspect(small_net(conv=name, bn="b" * 150).write(tmp_path)[0])
    assert plain_table(found).count(name) == 3
