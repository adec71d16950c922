"""``caffe-fold fold``, which also runs where no command is named."""

from __future__ import annotations

import gc
from typing import Any

import click

from caffe_fold.commands.fold_options import fold_options
from caffe_fold.commands.options import file_option, html_option
from caffe_fold.commands.printing import print_report
from caffe_fold.commands.verify_options import asked_for
from caffe_fold.errors import StrictError

__all__ = ["EXAMPLES", "fold"]

_EXIT_CODES = """\b
Exit codes:
  0    done
  1    a check failed; nothing was written
  2    bad usage or input; nothing was written
  3    --strict: a BatchNorm is left; written, but for --dry-run
  4    written, but the report could not be printed
  130  interrupted; the line says whether both files are written, or nothing"""

EXAMPLES = f"""\b
Examples:
  caffe-fold --model deploy.prototxt --weights net.caffemodel
  caffe-fold --model deploy.prototxt --weights net.caffemodel --dry-run
  caffe-fold inspect --model deploy.prototxt
  caffe-fold verify --model deploy.prototxt --weights net.caffemodel \\
      --folded-model deploy_inference.prototxt --folded-weights net_inference.caffemodel
  caffe-fold demo

{_EXIT_CODES}"""


@click.command(epilog=EXAMPLES)
@file_option(
    "--model",
    required=True,
    metavar="PROTOTXT",
    help="The net's deploy prototxt.",
)
@file_option(
    "--weights",
    required=True,
    metavar="CAFFEMODEL",
    help="Its trained weights.",
)
@file_option(
    "--output-model",
    "--output_model",
    metavar="PROTOTXT",
    help="Where the folded prototxt goes.  [default: beside --model, its stem plus _inference]",
)
@file_option(
    "--output-weights",
    "--output_weights",
    metavar="CAFFEMODEL",
    help="Where the folded weights go.  [default: beside --weights, its stem plus _inference]",
)
@fold_options
@html_option
@click.option("--dry-run", is_flag=True, help="Report what would be done, and write nothing.")
@click.option("--strict", is_flag=True, help="Exit with 3 if a BatchNorm is left.")
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
@click.option("--quiet", is_flag=True, help="Print warnings and errors only.")
def fold(verify: bool, strict: bool, as_json: bool, quiet: bool, **options: Any) -> None:
    """Fold one net. Runs also where no command is named."""
    from caffe_fold.convert import fold as fold_files

    options["verify"] = asked_for(click.get_current_context(), options, verify)
    if verify:
        gc.enable()  # it is more than one fold: at the end an engine's process has to go
    report = fold_files(options.pop("model"), options.pop("weights"), **options)
    print_report(report, as_json, quiet)
    if strict and report.left:
        raise StrictError(report.left)
