"""What the options of several commands are made with."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Callable, TypeVar

import click

from caffe_fold.errors import show

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

__all__ = ["Command", "a_file", "a_folder", "each", "file_option", "html_option", "shapes"]

Command = TypeVar("Command", bound=Callable[..., Any])


def a_file(_: click.Context, __: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """For an option that takes a file: the shell completes its name. The type click.Path does, too,
    but looks at the file, and refuses it in words of its own."""
    from click.shell_completion import CompletionItem

    return [CompletionItem(incomplete, type="file")]


def a_folder(_: click.Context, __: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """For an option that takes a folder."""
    from click.shell_completion import CompletionItem

    return [CompletionItem(incomplete, type="dir")]


def shapes(
    _: click.Context, __: click.Parameter, texts: tuple[str, ...]
) -> dict[str, tuple[int, ...]]:
    """``BLOB=N,C,H,W`` as shapes by name."""
    found = {}
    for text in texts:
        name, dims = text.rpartition("=")[::2]
        sizes = dims.split(",")
        if not name or not all(map(_is_size, sizes)):
            raise click.BadParameter(f"{show(text)!r}: expected BLOB=N,C,H,W, as data=1,3,224,224")
        found[name] = tuple(int(size) for size in sizes)
    return found


def _is_size(text: str) -> bool:
    """Whether it is a number from 1; Python makes no int of thousands of digits."""
    digits = text.strip()
    return digits.isdecimal() and len(digits) < 20 and int(digits) > 0


def each(*options: Callable[[Any], Any]) -> Callable[[Command], Command]:
    def decorate(command: Command) -> Command:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


def file_option(
    *names: str, metavar: str, help: str, required: bool = False
) -> Callable[[Command], Command]:
    """An option that takes a file, whose name the shell completes."""
    return click.option(
        *names, metavar=metavar, help=help, required=required, shell_complete=a_file
    )


html_option = file_option(
    "--html",
    metavar="FILE",
    help="Write a page that shows the net, its folds, and how ready it is for int8.",
)
