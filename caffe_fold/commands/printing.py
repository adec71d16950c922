"""How a command prints what it did."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING

import click

from caffe_fold.errors import OutputError, ReportError
from caffe_fold.streams import say, silence

if TYPE_CHECKING:
    from caffe_fold.report import Report

__all__ = ["print_report", "printing_to_reader"]


def print_report(report: Report, as_json: bool, quiet: bool) -> None:
    """The report on standard output; its warnings on standard error.

    :raises ReportError: if it cannot be printed, and what it is of is written.
    :raises OutputError: if it cannot be printed, and nothing is written.
    """
    try:
        with printing_to_reader():
            _print(report, as_json, quiet)
    except OutputError as error:
        if not report.written:
            raise
        from caffe_fold.writing.outputs import written

        there = written(report.output_model, report.output_weights)
        raise ReportError(f"{error}; {there}") from None


@contextlib.contextmanager
def printing_to_reader() -> Iterator[None]:
    """A reader of our output who is gone is no error: the work is done all the same.

    :raises OutputError: if there is another reason why nothing can be printed.
    """
    try:
        yield
        sys.stdout.flush()
    except BrokenPipeError:
        silence(sys.stdout)
    except OSError as error:
        silence(sys.stdout)
        raise OutputError(f"standard output cannot be written to: {error.strerror}") from None


def _print(report: Report, as_json: bool, quiet: bool) -> None:
    if as_json:
        import json

        click.echo(json.dumps(report.to_dict(), indent=2))
        return
    for warning in report.warnings:
        say(f"{click.style('warning:', fg='yellow')} {warning.message}")
    if not quiet:
        click.echo(report.to_text())
