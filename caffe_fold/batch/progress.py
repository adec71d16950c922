"""How far a batch is: a bar on a terminal, lines elsewhere; both on standard error."""

from __future__ import annotations

import contextlib
import os
import sys
from types import TracebackType
from typing import TYPE_CHECKING, Protocol

from caffe_fold.batch.table import Row
from caffe_fold.errors import show
from caffe_fold.streams import say

if TYPE_CHECKING:
    from rich.progress import Progress as RichProgress

__all__ = ["Progress", "progress"]


class Progress(Protocol):
    """Is told each model that came to an end; a context manager while there are more."""

    def __enter__(self) -> Progress: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None: ...

    def tell(self, row: Row) -> None:
        """Count a model."""


def progress(total: int, quiet: bool) -> Progress:
    """The bar where standard error is a terminal and rich is installed; else lines, of the
    failed models alone with ``quiet``."""
    if not quiet and sys.stderr.isatty() and os.environ.get("TERM") != "dumb":
        try:
            return _Bar(total)
        except ImportError:
            pass
    return _Lines(total, quiet)


class _Lines:
    """A line a model."""

    def __init__(self, total: int, quiet: bool) -> None:
        self.total, self.quiet = total, quiet
        self.count = 0

    def __enter__(self) -> _Lines:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def tell(self, row: Row) -> None:
        self.count += 1
        if row.error or not self.quiet:
            say(f"[{self.count}/{self.total}] {_line(row)}")


class _Bar:
    """rich's bar, with the failed models above it."""

    def __init__(self, total: int) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as RichProgress

        self.bar: RichProgress = RichProgress(
            TextColumn("folding"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[failed]} failed"),
            TextColumn("{task.fields[rate]}"),
            TimeRemainingColumn(),
            TextColumn("left"),
            console=Console(stderr=True),
            transient=True,
        )
        self.failed = 0
        self.job = self.bar.add_task("", total=total, failed=0, rate="")

    def __enter__(self) -> _Bar:
        self.bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):  # the terminal may be gone
            self.bar.stop()

    def tell(self, row: Row) -> None:
        if row.error:
            self.failed += 1
            with contextlib.suppress(OSError):
                self.bar.console.print(_line(row), markup=False, highlight=False, soft_wrap=True)
        speed = self.bar.tasks[self.job].speed
        rate = f"{speed:.1f}/s" if speed else ""
        self.bar.update(self.job, advance=1, failed=self.failed, rate=rate)


def _line(row: Row) -> str:
    said = f": {row.said}" if row.said else ""
    return f"{row.status}  {show(row.name, 1000)}{said}"
