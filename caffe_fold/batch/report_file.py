"""The file of ``--report``: a line of JSON for each model, and for what is no pair."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable, Iterator
from typing import IO, Any

from caffe_fold.batch import storage
from caffe_fold.batch.folders import Skipped
from caffe_fold.batch.table import Row
from caffe_fold.batch.tasks import identity
from caffe_fold.errors import OutputError, show
from caffe_fold.writing.outputs import is_same

__all__ = ["ReportFile", "opened_report"]


class ReportFile:
    """Takes each line at once, if there is a file, until that fails: then ``error`` says why
    it is not whole."""

    def __init__(self, path: str, file: IO[str] | None) -> None:
        self.path, self.file = path, file
        self.error = ""

    def add(self, row: Row) -> None:
        """Write a model's line, with its report."""
        self._write(
            {
                "output": show(row.name, 10**9),
                "status": row.status,
                "model": show(row.model, 10**9),
                "weights": show(row.weights, 10**9),
                "error": row.error or None,
                "exit_code": row.exit_code,
                "seconds": round(row.seconds, 3),
                "report": row.report,
            }
        )

    def add_skipped(self, skipped: Skipped) -> None:
        """Write the line of what is no pair."""
        path = show(skipped.path, 10**9)
        self._write({"status": "skipped", "weights": path, "error": skipped.reason})

    def _write(self, data: dict[str, Any]) -> None:
        if self.file is None or self.error:
            return
        try:
            self.file.write(json.dumps(data) + "\n")
            self.file.flush()
        except OSError as error:
            self.error = f"{show(self.path, 1000)} is not whole: {error.strerror}"


@contextlib.contextmanager
def opened_report(path: str | None, files: Iterable[str]) -> Iterator[ReportFile]:
    """The report; None for one that is not asked for.

    :param files: the addresses of the batch's own files, none of which it may replace.
    :raises OutputError: if it is one of those, or cannot be opened.
    """
    if path is None:
        yield ReportFile("", None)
        return
    path = storage.local(path)
    _require_other(path, files)
    try:
        file = open(path, "w", encoding="utf-8")  # noqa: SIM115 - closed below
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise OutputError(f"{show(path, 1000)} cannot be written: {reason}") from None
    try:
        yield ReportFile(path, file)
    finally:
        with contextlib.suppress(OSError):  # of what could not be written before
            file.close()


def _require_other(path: str, files: Iterable[str]) -> None:
    """Check that a report does not replace one of some files, under whatever name."""
    real = identity(path)
    for name in files:
        if identity(name) == real or is_same(name, path):
            raise OutputError(f"{show(path, 1000)} is a file of the batch; give another --report")
