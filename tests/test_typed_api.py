"""The types of the public names, as a user's mypy sees them in the installed package."""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

import caffe_fold

pytest.importorskip("mypy", reason="mypy, of the dev extra, is not installed")

PROGRAM = Path(__file__).with_name("typed_program.py")

WRONG = """\
from pathlib import Path

import caffe_fold

report = caffe_fold.fold("net.prototxt")  # call-arg: no weights
caffe_fold.fold("net.prototxt", 3)  # arg-type
caffe_fold.fold("net.prototxt", "net.caffemodel", Path("x"), keeps=["a"])  # call-arg
print(report.stayed[0].why)  # attr-defined
text: bytes = report.to_text()  # assignment
caffe_fold.unfold("net.prototxt")  # attr-defined
caffe_fold.inspect("net.prototxt").layers[0].fate.names.append("x")  # attr-defined
left: str = caffe_fold.verify("a", "b", "c", "d").tolerance  # assignment
caffe_fold.fold_weights([1.0], None, mean=[0.0])  # call-arg
report.written = True  # misc
"""


def packages(folder: Path, typed: bool) -> Path:
    """The Python of a new environment with the package and what it needs."""
    venv.create(folder, with_pip=False, symlinks=True)
    scheme = {"base": str(folder), "platbase": str(folder)}
    target = Path(sysconfig.get_path("purelib", vars=scheme))
    shutil.copytree(Path(caffe_fold.__file__).parent, target / "caffe_fold")
    if not typed:
        (target / "caffe_fold" / "py.typed").unlink()
    (target / "needed.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return folder / ("Scripts" if sys.platform == "win32" else "bin") / "python"


def errors(python: Path, *programs: Path) -> list[tuple[str, str, str]]:
    """What mypy finds in programs of one folder: the file, the line and the code of each error."""
    command = [sys.executable, "-m", "mypy", "--strict", "--config-file=", "--no-incremental"]
    command += ["--python-executable", str(python), *(program.name for program in programs)]
    done = subprocess.run(command, cwd=programs[0].parent, capture_output=True, text=True)
    found = re.findall(r"^(\S+?):(\d+): error: .*\[([\w-]+)\]$", done.stdout, re.MULTILINE)
    assert bool(found) == bool(done.returncode), done.stdout + done.stderr
    return found


def test_the_program_uses_every_public_name() -> None:
    tree = ast.parse(PROGRAM.read_text(encoding="utf-8"))
    used = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    used |= {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    assert set(caffe_fold.__all__) - used == set()


@pytest.mark.slow
def test_a_right_program_passes_and_a_wrong_one_fails(tmp_path: Path) -> None:
    right, wrong = tmp_path / "right.py", tmp_path / "wrong.py"
    shutil.copy(PROGRAM, right)
    wrong.write_text(WRONG, encoding="utf-8")
    expected = [
        ("wrong.py", str(number), line.partition("  # ")[2].partition(":")[0])
        for number, line in enumerate(WRONG.splitlines(), 1)
        if "  # " in line
    ]
    assert errors(packages(tmp_path / "env", typed=True), right, wrong) == expected


@pytest.mark.slow
def test_without_its_marker_the_package_would_have_no_types(tmp_path: Path) -> None:
    """The guard of the guard: what is checked is the installed package, and not the checkout."""
    program = tmp_path / "program.py"
    shutil.copy(PROGRAM, program)
    found = errors(packages(tmp_path / "env", typed=False), program)
    assert {code for _, _, code in found} >= {"import-untyped", "assert-type"}
