"""The command line: a thin layer over the public API.

Nothing that a command does not use is imported before it runs.
"""

from __future__ import annotations

import importlib
import os
import signal
import sys
from typing import TYPE_CHECKING, NoReturn

import click

from caffe_fold._version import __version__
from caffe_fold.errors import CaffeFoldError, show
from caffe_fold.streams import fill, silence

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

__all__ = ["main"]

_HOMES = {
    "fold": "caffe_fold.commands.fold",
    "batch": "caffe_fold.commands.batch",
    "inspect": "caffe_fold.commands.inspect",
    "verify": "caffe_fold.commands.verify",
    "demo": "caffe_fold.commands.demo",
}


class _LazyGroup(click.Group):
    """A group that imports a command when it is asked for, and whose default command is
    ``fold``: ``caffe-fold --model ...`` folds."""

    default = "fold"

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_HOMES)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _HOMES:
            return None
        command: click.Command = getattr(importlib.import_module(_HOMES[cmd_name]), cmd_name)
        return command

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if args and args[0] not in _HOMES and args[0] not in ("--help", "--version"):
            args = [self.default, *args]
        return super().parse_args(ctx, args)

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """Where a command can stand, the options of the default one can, too."""
        found = super().shell_complete(ctx, incomplete)
        default = self.get_command(ctx, self.default)
        if default is not None:
            own = {item.value for item in found}
            items = default.shell_complete(ctx, incomplete)
            found += [item for item in items if item.value not in own]
        return found

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        super().format_options(ctx, formatter)
        fold = self.get_command(ctx, self.default)
        assert fold is not None
        records = [param.get_help_record(ctx) for param in fold.params]
        with formatter.section("Options of fold, the default command"):
            formatter.write_dl([record for record in records if record is not None])
        self.epilog = fold.epilog


@click.group(cls=_LazyGroup, context_settings={"max_content_width": 100})
@click.version_option(__version__, prog_name="caffe-fold", message="%(prog)s %(version)s")
@click.pass_context
def cli(context: click.Context) -> None:
    """Fold the BatchNorm, Scale, Bias and Power layers of a Caffe net into the Convolution,
    Deconvolution and InnerProduct layers beside them, exactly, and write a new prototxt and
    caffemodel.

    The inputs are never changed. What cannot be folded exactly stays, with the reason.
    """
    if os.environ.get("NO_COLOR"):
        context.color = False


def _terminated(*_: object) -> NoReturn:
    """A polite kill: leave as after Ctrl-C, with nothing left behind."""
    raise KeyboardInterrupt


def main() -> NoReturn:
    """The entry point: every outcome is an exit code and at most one line of error."""
    fill()
    signal.signal(signal.SIGTERM, _terminated)
    # Folding has threads of its own; those of NumPy's BLAS would stand in their way.
    for name in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ.setdefault(name, "1")
    sys.exit(_run())


def _run() -> int:
    try:
        result = cli.main(prog_name="caffe-fold", standalone_mode=False)
        return result if isinstance(result, int) else 0
    except click.ClickException as error:
        try:
            error.show()
        except OSError:
            silence(sys.stderr)
        return error.exit_code
    except (click.Abort, KeyboardInterrupt):
        return _fail("interrupted; nothing was written", 130)
    except CaffeFoldError as error:
        return _fail(str(error), error.exit_code)
    except MemoryError:
        return _fail("not enough memory for these files", 2)
    except Exception as error:
        if os.environ.get("CAFFE_FOLD_DEBUG"):
            raise
        kind = type(error).__name__
        return _fail(
            f"internal error ({kind}: {show(str(error))}); please report it with the files; "
            "CAFFE_FOLD_DEBUG=1 shows where it happened",
            1,
        )


def _fail(message: str, code: int) -> int:
    color = False if os.environ.get("NO_COLOR") else None
    try:
        click.secho("error: ", fg="red", err=True, nl=False, color=color)
        click.echo(message, err=True)
    except OSError:  # the code tells it
        silence(sys.stderr)
    return code
