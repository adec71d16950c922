"""The command line: a thin layer over the public API.

Nothing that a command does not use is imported before it runs.
"""

from __future__ import annotations

import os
import signal
import sys
from typing import TYPE_CHECKING, Any, NoReturn

import click

from caffe_fold._version import __version__
from caffe_fold.choices import BN_LAYOUTS, BN_VARIANCES, WEIGHTS_DTYPES
from caffe_fold.cli_options import asked_for, common_options, input_options
from caffe_fold.errors import CaffeFoldError, StrictError

if TYPE_CHECKING:
    from caffe_fold.report import Report

__all__ = ["main"]

_EXIT_CODES = """\b
Exit codes:
  0    done
  1    a check failed; nothing was written
  2    bad usage or input; nothing was written
  3    --strict: written, but a BatchNorm is left
  130  interrupted; nothing was written"""

_EXAMPLES = f"""\b
Examples:
  caffe-fold --model deploy.prototxt --weights net.caffemodel
  caffe-fold --model deploy.prototxt --weights net.caffemodel --dry-run
  caffe-fold verify --model deploy.prototxt --weights net.caffemodel \\
      --folded-model deploy_inference.prototxt --folded-weights net_inference.caffemodel
  caffe-fold demo

{_EXIT_CODES}"""

_VERIFY_EXAMPLES = """\b
Examples:
  caffe-fold verify --model deploy.prototxt --weights net.caffemodel \\
      --folded-model folded.prototxt --folded-weights folded.caffemodel
  (the same four) --engine caffe --caffe-python /opt/caffe/bin/python
  (the same four) --input cat.jpg --mean 104,117,123

\b
Exit codes:
  0    each blob agrees
  1    a blob differs
  2    bad usage or input, or no engine is there"""

# Enough for a median, and a few seconds for a large net.
_ROUNDS = 15


class _DefaultGroup(click.Group):
    """A group whose default command is ``fold``: ``caffe-fold --model ...`` folds."""

    default = "fold"

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if args and args[0] not in self.commands and args[0] not in ("--help", "--version"):
            args = [self.default, *args]
        return super().parse_args(ctx, args)

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        super().format_options(ctx, formatter)
        fold = self.commands[self.default]
        records = [param.get_help_record(ctx) for param in fold.params]
        with formatter.section("Options of fold, the default command"):
            formatter.write_dl([record for record in records if record is not None])


def _shapes(
    context: click.Context, parameter: click.Parameter, values: tuple[str, ...]
) -> dict[str, tuple[int, ...]]:
    """Shapes by blob name from ``BLOB=1,3,224,224``."""
    shapes = {}
    for value in values:
        name, _, dims = value.rpartition("=")
        numbers = dims.split(",")
        if not name or not all(n.strip().isdecimal() and int(n) > 0 for n in numbers):
            raise click.BadParameter(
                f"{value!r} is no shape; expected BLOB=N,C,H,W as in data=1,3,224,224"
            )
        shapes[name] = tuple(map(int, numbers))
    return shapes


@click.group(cls=_DefaultGroup, epilog=_EXAMPLES, context_settings={"max_content_width": 100})
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


@cli.command(epilog=_EXAMPLES)
@click.option("--model", required=True, metavar="PROTOTXT", help="The net's deploy prototxt.")
@click.option("--weights", required=True, metavar="CAFFEMODEL", help="Its trained weights.")
@click.option(
    "--output-model",
    "--output_model",
    metavar="PROTOTXT",
    help="Where the folded prototxt goes.  [default: beside --model, its stem plus _inference]",
)
@click.option(
    "--output-weights",
    "--output_weights",
    metavar="CAFFEMODEL",
    help="Where the folded weights go.  [default: beside --weights, its stem plus _inference]",
)
@click.option("--stage", "stages", multiple=True, help="A stage of the net's state; repeatable.")
@click.option("--level", type=int, help="The level of the net's state.")
@click.option(
    "--keep", multiple=True, metavar="BLOB", help="A blob that must keep its values; repeatable."
)
@click.option(
    "--assume-global-stats",
    is_flag=True,
    help="Fold BatchNorm layers that the prototxt sets to normalise by the batch, too.",
)
@click.option(
    "--bn-layout",
    type=click.Choice(BN_LAYOUTS),
    help="The layout of BatchNorm layers of 4 or 5 blobs where the files do not tell it.",
)
@click.option(
    "--bn-variance",
    type=click.Choice(BN_VARIANCES),
    default=BN_VARIANCES[0],
    show_default=True,
    help="What a BN layer's fourth blob holds: variance or inverse standard deviation.",
)
@click.option(
    "--weights-dtype",
    type=click.Choice(WEIGHTS_DTYPES),
    help="The number type of folded blobs.  [default: the widest that goes into each]",
)
@click.option(
    "--drop-quantization",
    is_flag=True,
    help="Fold layers with a quantization_param, too, and drop it.",
)
@click.option(
    "--allow-extra-weights",
    is_flag=True,
    help="Go on where the weights have a BatchNorm that the prototxt lacks.",
)
@click.option(
    "--deploy",
    is_flag=True,
    help="Make a deploy net: data layers become Input layers, losses go.",
)
@click.option(
    "--input-shape",
    "input_shapes",
    multiple=True,
    callback=_shapes,
    metavar="BLOB=N,C,H,W",
    help="With --deploy, the shape of an input; repeatable.",
)
@click.option("--engine-caffe", is_flag=True, help="Set 'engine: CAFFE' on 1x1 convolutions.")
@click.option("--dry-run", is_flag=True, help="Report what would be done, and write nothing.")
@click.option("--strict", is_flag=True, help="Exit with 3 if a BatchNorm is left.")
@click.option("--no-check", "check", flag_value=False, default=True, help="Skip the proof.")
@click.option(
    "--verify",
    is_flag=True,
    help="Run both nets in an engine before the result gets its name; a net that differs is "
    "not written.",
)
@common_options("verify-")
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
@click.option("--quiet", is_flag=True, help="Print warnings and errors only.")
def fold(verify: bool, strict: bool, as_json: bool, quiet: bool, **options: Any) -> None:
    """Fold one net. Runs also where no command is named."""
    from caffe_fold.convert import fold as fold_files

    options["verify"] = asked_for(click.get_current_context(), options, verify)
    report = fold_files(options.pop("model"), options.pop("weights"), **options)
    _print(report, as_json, quiet)
    if strict and report.left:
        raise StrictError(f"--strict: {report.left} BatchNorm layers are left")


@cli.command(epilog=_VERIFY_EXAMPLES)
@click.option("--model", required=True, metavar="PROTOTXT", help="The original prototxt.")
@click.option("--weights", required=True, metavar="CAFFEMODEL", help="The original weights.")
@click.option("--folded-model", required=True, metavar="PROTOTXT", help="The folded prototxt.")
@click.option("--folded-weights", required=True, metavar="CAFFEMODEL", help="The folded weights.")
@common_options()
@input_options()
@click.option("--stage", "stages", multiple=True, help="A stage of the nets' state; repeatable.")
@click.option("--level", type=int, help="The level of the nets' state.")
@click.option("--time", "is_timed", is_flag=True, help="Time forward passes of both nets, too.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
@click.option("--quiet", is_flag=True, help="Print nothing but a blob that differs.")
def verify(is_timed: bool, as_json: bool, quiet: bool, **options: Any) -> int:
    """Run a net and the net folded from it in an engine, and compare their blobs."""
    from caffe_fold.verification.run import verify as verify_files

    files = ("model", "weights", "folded_model", "folded_weights")
    paths = [options.pop(name) for name in files]
    result = verify_files(*paths, rounds=_ROUNDS if is_timed else 0, **options)
    if as_json:
        import json

        click.echo(json.dumps(result.to_dict(), indent=2))
    elif not (quiet and result.passed):
        click.echo(result.to_text(0 if quiet else 20))
    return 0 if result.passed else 1


@cli.command()
@click.argument("folder", metavar="[DIR]", default="caffe-fold-demo")
def demo(folder: str) -> None:
    """Make a MobileNet-SSD with random weights in DIR, fold it, and report.

    DIR is made where it is not there; by default caffe-fold-demo.
    """
    from pathlib import Path

    from caffe_fold.convert import fold as fold_files
    from caffe_fold.demo import write_demo
    from caffe_fold.errors import OutputError

    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        model, weights = write_demo(Path(folder))
    except OSError as error:
        raise OutputError(f"{folder} cannot be written: {error.strerror}") from error
    click.echo(f"made  {model}\nmade  {weights}\n")
    click.echo(f"$ caffe-fold --model {model} --weights {weights}")
    _print(fold_files(model, weights), as_json=False, quiet=False)


def _print(report: Report, as_json: bool, quiet: bool) -> None:
    """The report on standard output; its warnings on standard error."""
    try:
        _print_to_reader(report, as_json, quiet)
    except BrokenPipeError:
        # The reader of our output is gone; the files are written all the same.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _print_to_reader(report: Report, as_json: bool, quiet: bool) -> None:
    if as_json:
        import json

        click.echo(json.dumps(report.to_dict(), indent=2))
        return
    for warning in report.warnings:
        click.echo(f"{click.style('warning:', fg='yellow')} {warning.message}", err=True)
    if not quiet:
        click.echo(report.to_text())


def _terminated(*_: object) -> NoReturn:
    """A polite kill: leave as after Ctrl-C, with nothing left behind."""
    raise KeyboardInterrupt


def main() -> NoReturn:
    """The entry point: every outcome is an exit code and at most one line of error."""
    signal.signal(signal.SIGTERM, _terminated)
    sys.exit(_run())


def _run() -> int:
    try:
        result = cli.main(prog_name="caffe-fold", standalone_mode=False)
        return result if isinstance(result, int) else 0
    except click.ClickException as error:
        error.show()
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
            f"internal error ({kind}: {error}); nothing was written. Please report it with the "
            "files; CAFFE_FOLD_DEBUG=1 shows where it happened",
            1,
        )


def _fail(message: str, code: int) -> int:
    color = False if os.environ.get("NO_COLOR") else None
    click.secho("error: ", fg="red", err=True, nl=False, color=color)
    click.echo(message, err=True)
    return code
