"""``caffe-fold verify``: both nets in an engine."""

from __future__ import annotations

import os
from typing import Any

import click

from caffe_fold.commands.options import file_option, html_option
from caffe_fold.commands.printing import printing_to_reader
from caffe_fold.commands.verify_options import common_options, input_options
from caffe_fold.errors import InputError, show

__all__ = ["verify"]

_EXAMPLES = """\b
Examples:
  caffe-fold verify --model deploy.prototxt --weights net.caffemodel \\
      --folded-model folded.prototxt --folded-weights folded.caffemodel
  (the same four) --engine caffe --caffe-python /opt/caffe/bin/python
  (the same four) --input cat.jpg --mean 104,117,123
  (the same four) --report fold.json

\b
Exit codes:
  0    the nets agree
  1    they differ, or nothing proves a fold
  2    bad usage or input, or no engine is there"""

# Enough for a median, and a few seconds for a large net.
_ROUNDS = 15


@click.command(epilog=_EXAMPLES)
@file_option(
    "--model",
    required=True,
    metavar="PROTOTXT",
    help="The original prototxt.",
)
@file_option(
    "--weights",
    required=True,
    metavar="CAFFEMODEL",
    help="The original weights.",
)
@file_option(
    "--folded-model",
    required=True,
    metavar="PROTOTXT",
    help="The folded prototxt.",
)
@file_option(
    "--folded-weights",
    required=True,
    metavar="CAFFEMODEL",
    help="The folded weights.",
)
@common_options()
@input_options()
@file_option(
    "--report",
    metavar="JSON",
    help="The fold's --json report: blobs that --equalize gave another scale are skipped.",
)
@click.option("--stage", "stages", multiple=True, help="A stage of the nets' state; repeatable.")
@click.option("--level", type=int, help="The level of the nets' state.")
@click.option("--time", "is_timed", is_flag=True, help="Time forward passes of both nets, too.")
@html_option
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
@click.option("--quiet", is_flag=True, help="Print nothing if all agrees, and else what fails.")
def verify(is_timed: bool, as_json: bool, quiet: bool, report: str | None, **options: Any) -> int:
    """Run a net and the net folded from it in an engine, and compare their blobs."""
    from caffe_fold.verification.run import verify as verify_files

    files = ("model", "weights", "folded_model", "folded_weights")
    paths = [options.pop(name) for name in files]
    if report is not None:
        options["skip"] = (*options["skip"], *_rescaled(report))
    result = verify_files(*paths, rounds=_ROUNDS if is_timed else 0, **options)
    with printing_to_reader():
        if as_json:
            import json

            click.echo(json.dumps(result.to_dict(), indent=2))
        elif not (quiet and result.passed):
            click.echo(result.to_text(0 if quiet else 20))
    return 0 if result.passed else 1


def _rescaled(path: str) -> list[str]:
    """The blobs to which the fold of a report gave another scale."""
    import json

    try:
        # A pipe would be waited for, and a device have no end.
        if os.path.exists(path) and not os.path.isfile(path):
            raise ValueError(path)
        with open(path, encoding="utf-8") as file:
            report = json.load(file)
        equalized = report["equalized"]
        names = [] if equalized is None else equalized["blobs"]
    except OSError as error:
        raise InputError(f"{show(path)}: cannot be read: {error.strerror}") from None
    except (ValueError, KeyError, TypeError, RecursionError):
        names = None
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise InputError(f"{show(path)}: not the report of a fold, as --json prints it")
    return names
