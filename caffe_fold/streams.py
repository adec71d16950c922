"""Standard output and error where nobody reads them: closed, full, or a reader who is gone."""

from __future__ import annotations

import io
import os
import sys
from typing import TextIO

import click

__all__ = ["fill", "say", "silence"]


def fill() -> None:
    """Make the standard streams fit to be written to. One that is closed gets the null device:
    the next file would get its number, and then what is meant for the stream."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # the lowest free number
    if sys.stdout is None:
        sys.stdout = os.fdopen(1, "w", encoding="utf-8", closefd=False)
    if sys.stderr is None:
        sys.stderr = os.fdopen(2, "w", encoding="utf-8", closefd=False)
    if isinstance(sys.stdout, io.TextIOWrapper):
        # A name that the terminal's encoding lacks is no reason to say nothing at all.
        sys.stdout.reconfigure(errors="backslashreplace")


def say(message: str) -> None:
    """Print a line to standard error. That nobody reads it stops no work."""
    try:
        click.echo(message, err=True)
    except OSError:
        silence(sys.stderr)


def silence(stream: TextIO) -> None:
    """Send what else a stream gets to the null device; or its end, too, would be an error."""
    null = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(null, stream.fileno())
    finally:
        os.close(null)
