"""How a command prints what it did."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from caffe_fold.report import Report

__all__ = ["print_report", "reader_may_leave"]


def print_report(report: Report, as_json: bool, quiet: bool) -> None:
    """The report on standard output; its warnings on standard error."""
    with reader_may_leave():
        _print_to_reader(report, as_json, quiet)


@contextlib.contextmanager
def reader_may_leave() -> Iterator[None]:
    """Print to a reader that may be gone; the files are written all the same."""
    try:
        yield
    except BrokenPipeError:
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
