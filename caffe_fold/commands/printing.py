"""How a command prints what it did."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING

import click

from caffe_fold.errors import OutputError, ReportError
from caffe_fold.interrupts import what_is_done
from caffe_fold.streams import say, silence

if TYPE_CHECKING:
    from caffe_fold.report import Report

__all__ = ["print_report", "printing_to_reader"]


def print_report(report: Report, as_json: bool, quiet: bool) -> None:
    """The report on standard output; its warnings on standard error. Errors are those of
    ``printing_to_reader``.
    """
    with printing_to_reader():
        if as_json:
            import json

            click.echo(json.dumps(report.to_dict(), indent=2))
            return
        for warning in report.warnings:
            say(f"{click.style('warning:', fg='yellow')} {warning.message}")
        if not quiet:
            click.echo(report.to_text())


@contextlib.contextmanager
def printing_to_reader() -> Iterator[None]:
    """A reader of our output who is gone is no error: the work is done all the same.

    :raises ReportError: if there is another reason why nothing can be printed, and files are
        written that it was to tell of.
    :raises OutputError: if none are.
    """
    try:
        yield
        sys.stdout.flush()
    except BrokenPipeError:
        silence(sys.stdout)
    except OSError as error:
        silence(sys.stdout)
        told = f"standard output cannot be written to: {error.strerror}"
        if what_is_done():
            raise ReportError(f"{told}; {what_is_done()}") from None
        raise OutputError(told) from None
