"""``caffe-fold inspect``: what folding would do, layer by layer."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Any

import click

from caffe_fold.commands.fold_options import plan_options
from caffe_fold.commands.options import file_option, html_option
from caffe_fold.commands.printing import printing_to_reader

if TYPE_CHECKING:
    from caffe_fold.inspection.inspection import Inspection

__all__ = ["inspect"]

_EXAMPLES = """\b
Examples:
  caffe-fold inspect --model deploy.prototxt
  caffe-fold inspect --model deploy.prototxt --weights net.caffemodel --html report.html
  caffe-fold inspect --model deploy.prototxt --weights net.caffemodel --json

\b
Exit codes:
  0    done
  2    bad usage or input"""


@click.command(epilog=_EXAMPLES)
@file_option(
    "--model",
    required=True,
    metavar="PROTOTXT",
    help="The net's deploy prototxt.",
)
@file_option(
    "--weights",
    metavar="CAFFEMODEL",
    help="Its trained weights; can be left out.",
)
@plan_options
@html_option
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def inspect(as_json: bool, **options: Any) -> None:
    """Show what folding would do to each layer and why, and write nothing.

    The table has every linear and affine layer: what folds into what, what stays and why,
    shapes, how many numbers its blobs hold, and the least and largest gain.
    """
    from caffe_fold.inspection.inspect import inspect as inspect_files

    result = inspect_files(options.pop("model"), options.pop("weights"), int8=as_json, **options)
    with printing_to_reader():
        if as_json:
            import json

            click.echo(json.dumps(result.to_dict(), indent=2))
        else:
            _print_table(result)


def _print_table(result: Inspection) -> None:
    """By rich on a terminal; where there is none, or no rich, in plain text."""
    if sys.stdout.isatty():
        try:
            from rich.console import Console
        except ImportError:
            pass
        else:
            from caffe_fold.inspection.table import print_rich

            print_rich(result, Console(no_color=bool(os.environ.get("NO_COLOR")) or None))
            return
    click.echo(result.to_text())
