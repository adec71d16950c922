"""What a shell is told when it asks how a command line goes on."""

from __future__ import annotations

import shutil
import subprocess

import pytest
from click.shell_completion import CompletionItem, ShellComplete

from caffe_fold.cli import cli


def completed(line: str) -> list[CompletionItem]:
    """What could stand for the last word of a command line; it may be empty."""
    words = line.split(" ")[1:]
    complete = ShellComplete(cli, {}, "caffe-fold", "_CAFFE_FOLD_COMPLETE")
    return complete.get_completions(words[:-1], words[-1])


@pytest.mark.parametrize(
    ("line", "values"),
    [
        ("caffe-fold ver", ["verify"]),
        ("caffe-fold ", ["fold", "batch", "inspect", "verify", "demo"]),
        ("caffe-fold fold --mo", ["--model"]),
        ("caffe-fold --mo", ["--model"]),  # fold's, the default
        ("caffe-fold --model x --output-m", ["--output-model"]),
        ("caffe-fold --vers", ["--version"]),
        ("caffe-fold --hel", ["--help"]),  # of the group, and of fold: once
        ("caffe-fold --bn-layout n", ["nvidia"]),
        ("caffe-fold verify --folded-m", ["--folded-model"]),
        ("caffe-fold nothing-like-it", []),
    ],
)
def test_a_word_is_completed(line: str, values: list[str]) -> None:
    assert [item.value for item in completed(line)] == values


@pytest.mark.parametrize(
    ("line", "kind"),
    [
        ("caffe-fold --model de", "file"),
        ("caffe-fold fold --weights de", "file"),
        ("caffe-fold --html de", "file"),
        ("caffe-fold inspect --model de", "file"),
        ("caffe-fold verify --folded-weights de", "file"),
        ("caffe-fold verify --input de", "file"),
        ("caffe-fold batch de", "file"),
        ("caffe-fold batch zoo --output-dir de", "dir"),
        ("caffe-fold demo de", "dir"),
    ],
)
def test_paths_are_completed_by_the_shell(line: str, kind: str) -> None:
    assert [(item.type, item.value) for item in completed(line)] == [(kind, "de")]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_each_shell_gets_a_script(shell: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from click.shell_completion import get_completion_class

    kind = get_completion_class(shell)
    assert kind is not None
    monkeypatch.setattr(kind, "_check_version", lambda *_: None, raising=False)  # asks for bash
    script = kind(cli, {}, "caffe-fold", "_CAFFE_FOLD_COMPLETE").source()
    assert "_CAFFE_FOLD_COMPLETE" in script
    if shutil.which(shell):
        done = subprocess.run([shell, "-n"], input=script, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
