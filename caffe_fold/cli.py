"""The command line: a thin layer over the public API.

Nothing that a command does not use is imported before it runs.
"""

from __future__ import annotations

import gc
import importlib
import os
import sys
from typing import TYPE_CHECKING, Any, NoReturn

import click

from caffe_fold import interrupts
from caffe_fold._version import __version__
from caffe_fold.errors import CaffeFoldError, Interrupted, show
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
        if args and args[0].startswith("-") and args[0] not in ("--help", "--version"):
            args = [self.default, *args]
        return super().parse_args(ctx, args)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name = args[0]
        if name not in _HOMES and (os.path.splitext(name)[1] or os.path.exists(name)):
            ctx.fail(f"'{show(name)}' is no command; a file is named by --model or --weights")
        return super().resolve_command(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            with interrupts.working():
                return super().invoke(ctx)
        except KeyboardInterrupt as interrupt:
            raise Interrupted(_interrupted(str(interrupt))) from None
        except Exception as error:
            if not interrupts.was_interrupted() or isinstance(
                error, (CaffeFoldError, click.ClickException)
            ):
                raise
            # Modules in C make other errors of one that comes while they are imported.
            raise Interrupted(_interrupted()) from error

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
    if context.invoked_subcommand != _LazyGroup.default:
        gc.enable()  # one fold makes no garbage to speak of, and ends at once; see __main__.py
    if os.environ.get("NO_COLOR"):
        context.color = False


def main() -> NoReturn:
    """Run the command line: every outcome is an exit code and at most one line of error."""
    fill()
    # Folding has threads of its own; those of NumPy's BLAS would stand in their way.
    for name in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ.setdefault(name, "1")
    sys.exit(_run())


def _interrupted(done: str = "") -> str:
    return f"interrupted; {done or interrupts.what_is_done() or 'nothing was written'}"


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
        return _fail(_interrupted(), Interrupted.exit_code)
    except CaffeFoldError as error:
        return _fail(str(error), error.exit_code)
    except MemoryError:
        return _fail("not enough memory for these files", 2)
    except OSError as error:  # as of standard output, for --help
        file = f" ({show(str(error.filename))})" if error.filename else ""
        return _fail(f"the system refuses: {error.strerror}{file}", 2)
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
        if code == Interrupted.exit_code and sys.stderr.isatty():
            click.echo(err=True)  # the terminal has shown ^C
        click.secho("error: ", fg="red", err=True, nl=False, color=color)
        click.echo(message, err=True)
    except OSError:  # the code tells it
        silence(sys.stderr)
    return code
