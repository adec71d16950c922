"""A batch from its sources to its outcomes."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import IO, Any, Union

from caffe_fold.batch import ledger, manifest, storage
from caffe_fold.batch.execute import Workers, execute
from caffe_fold.batch.folders import Item, Pair, Skipped, pairs_in
from caffe_fold.batch.progress import Progress
from caffe_fold.batch.store_ledger import StoreLedger
from caffe_fold.batch.table import Row, as_line, counted, row_of, skipped_line
from caffe_fold.batch.tasks import Task, addressed, identity, plan
from caffe_fold.errors import CaffeFoldError, InputError, Interrupted, OutputError, show
from caffe_fold.streams import say
from caffe_fold.threads import cores
from caffe_fold.writing.outputs import is_same

__all__ = ["Batch", "Result", "find", "run", "split"]


@dataclass(frozen=True)
class Batch:
    """What is to be done, and what is no pair.

    :param others: addresses of what is read and of no task.
    """

    sources: tuple[str, ...]
    output: str
    tasks: tuple[Task, ...]
    skipped: tuple[Skipped, ...]
    others: tuple[str, ...]


def find(
    sources: Sequence[str],
    output: str,
    options: Mapping[str, Any],
    row_options: manifest.Options,
    checksum: bool,
) -> Batch:
    """Look through the sources and plan all folds; nothing is written.

    :param options: of ``caffe_fold.fold``, and ``strict``.
    :param row_options: those that a manifest's row may have.
    :raises InputError: if a source is not there or not understood, or there is no pair.
    :raises OutputError: if two pairs would write one file.
    """
    output, sources = _given(output), tuple(map(_given, sources))
    found = [item for source in sources for item in _items(source, output, row_options)]
    skipped = tuple(item for item in found if isinstance(item, Skipped))
    pairs = [item for item in found if isinstance(item, Pair)]
    if not pairs and not skipped:
        names = ", ".join(show(source, 1000) for source in sources)
        has_folder = not all(manifest.is_manifest(s) and not os.path.isdir(s) for s in sources)
        what = "there is no caffemodel in it" if has_folder else "it has no rows"
        raise InputError(f"{names}: {what}")
    others = (*sources, *(item.path for item in found if not isinstance(item, Pair)))
    tasks = tuple(plan(pairs, output, options, checksum, others))
    return Batch(sources, output, tasks, skipped, others)


def _items(source: str, output: str, options: manifest.Options) -> Iterator[Item]:
    if not storage.is_url(source) and not os.path.exists(source):
        raise InputError(f"{show(source, 1000)} is not there")
    is_folder = os.path.isdir(source)
    if not is_folder and manifest.is_manifest(source):
        yield from manifest.pairs_of(source, options)
    elif is_folder or storage.is_url(source):
        yield from pairs_in(source, output)
    else:
        suffixes = ", ".join(manifest.SUFFIXES)
        raise InputError(
            f"{show(source, 1000)} is no folder and no manifest ({suffixes}); for one net leave "
            "out 'batch'"
        )


def _given(address: str) -> str:
    """An address of the command line, made absolute.

    :raises InputError: if it is empty, as of a variable that is not set.
    """
    if not address:
        raise InputError("an empty path is given; expected a folder, a manifest or a URL")
    return storage.absolute(address)


# ---- What is done ----


def split(batch: Batch, entries: Mapping[str, ledger.Entry]) -> tuple[list[Row], list[Task]]:
    """The rows of what the ledger has as done, and the tasks that are left."""
    # Most of it is waiting: for a disk or a store, or for a hash, which leaves the lock.
    with ThreadPoolExecutor(max(cores(), 8)) as threads:
        done = list(threads.map(lambda t: ledger.is_done(t, entries.get(t.name)), batch.tasks))
    rows, left = [], []
    for task, is_done in zip(batch.tasks, done):
        if is_done:
            report = addressed(entries[task.name]["report"], task)
            rows.append(Row(task.name, "unchanged", task.model, task.weights, report=report))
        else:
            left.append(task)
    return rows, left


# ---- Running ----


@dataclass(frozen=True)
class Result:
    """A brief row a model, and why the report is not whole; "" where it is."""

    rows: list[Row]
    report_error: str


def run(
    batch: Batch,
    workers: Callable[[int], Workers],
    report: str | None,
    progress: Callable[[int], Progress],
) -> Result:
    """Fold what is not done; a row a model.

    :param workers: gives the workers for a number of tasks.
    :param report: a file that gets a line a model.
    :param progress: makes what is told of each model, for a number of tasks.
    :raises OutputError: if the output folder is locked, or it or the report cannot be written
        to; a report that cannot be written to later on stops no fold.
    :raises Interrupted: after Ctrl-C, with what is done in the ledger.
    """
    rows: list[Row] = []
    try:
        report_error = _run(batch, workers, report, progress, rows)
    except KeyboardInterrupt:
        raise Interrupted(f"interrupted; {_how_far(rows, batch)}") from None
    except CaffeFoldError as error:
        if any(row.status == "done" for row in rows):  # as where the disk is full
            error.args = (f"{error}; {_how_far(rows, batch)}",)
        raise
    return Result(rows, report_error)


def _how_far(rows: Sequence[Row], batch: Batch) -> str:
    if not rows:  # it may not be known yet what an earlier run has done
        return "nothing was folded by this run"
    done, count = sum(not row.error for row in rows), len(batch.tasks)
    models = f"{counted(count, 'model')} {'is' if count == 1 else 'are'}"
    return f"{done} of {models} done, and the same command goes on from there"


_Book = Union[ledger.Ledger, StoreLedger]


def _book(folder: str) -> _Book:
    return StoreLedger(folder) if storage.is_url(folder) else ledger.Ledger(folder)


def _run(
    batch: Batch,
    workers: Callable[[int], Workers],
    report: str | None,
    progress: Callable[[int], Progress],
    rows: list[Row],
) -> str:
    """``run``, which adds to ``rows``; gives why the report is not whole."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(ledger.locked(batch.output))
        lines = stack.enter_context(_opened(report, batch))
        book = stack.enter_context(contextlib.closing(_book(batch.output)))
        for skipped in batch.skipped:
            lines.write(skipped_line(skipped))
        unchanged, left = split(batch, book.entries)
        for row in unchanged:
            rows.append(row.brief())
            lines.write(as_line(row))
        _tell_replaced(left, book)
        if left:
            found = _outcomes(left, workers(len(left)), book)
            told = stack.enter_context(progress(len(left)))
            with contextlib.closing(found):
                for row in found:
                    rows.append(row.brief())
                    lines.write(as_line(row))
                    told.tell(row)
    return lines.error


def _tell_replaced(tasks: Sequence[Task], book: _Book) -> None:
    """Warn where an output was made of another source by an earlier run."""
    for task in tasks:
        path = ledger.replaced(task, book.entries.get(task.name))
        if path:
            output, weights = show(task.output_weights, 1000), show(task.weights, 1000)
            made = f"replaces what was made of {show(path, 1000)}"
            say(f"warning: {output} {made}; it is now of {weights}")


def _outcomes(tasks: Sequence[Task], workers: Workers, book: _Book) -> Generator[Row, None, None]:
    """A row for each task as it comes to an end, which the ledger has by then."""
    with contextlib.closing(execute(tasks, workers, book.start)) as outcomes:
        for outcome in outcomes:
            if outcome.entry is not None:
                book.done(outcome.entry)
            yield row_of(outcome)


class _Report:
    """Writes lines to the report at once, if there is one, until that fails."""

    def __init__(self, path: str, file: IO[str] | None) -> None:
        self.path, self.file = path, file
        self.error = ""

    def write(self, line: str) -> None:
        if self.file is None or self.error:
            return
        try:
            self.file.write(line + "\n")
            self.file.flush()
        except OSError as error:
            self.error = f"{show(self.path, 1000)} is not whole: {error.strerror}"


@contextlib.contextmanager
def _opened(path: str | None, batch: Batch) -> Iterator[_Report]:
    """The report.

    :raises OutputError: if it cannot be opened, or is one of the batch's own files.
    """
    if path is None:
        yield _Report("", None)
        return
    path = storage.local(path)
    _require_other(path, batch)
    try:
        file = open(path, "w", encoding="utf-8")  # noqa: SIM115 - closed below
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise OutputError(f"{show(path, 1000)} cannot be written: {reason}") from None
    try:
        yield _Report(path, file)
    finally:
        with contextlib.suppress(OSError):  # of what could not be written before
            file.close()


def _require_other(path: str, batch: Batch) -> None:
    """Check that a report does not replace one of the batch's files, under whatever name."""
    outputs = (name for task in batch.tasks for name in (task.output_model, task.output_weights))
    inputs = (name for task in batch.tasks for name in ledger.input_addresses(task))
    own = (storage.join(batch.output, name) for name in ledger.OWN_FILES)
    real = identity(path)
    for name in (*batch.others, *own, *inputs, *outputs):
        if identity(name) == real or is_same(name, path):
            raise OutputError(f"{show(path, 1000)} is a file of the batch; give another --report")
