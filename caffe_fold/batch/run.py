"""A batch from its sources to its outcomes."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Union

from caffe_fold.batch import manifest, storage
from caffe_fold.batch.execute import Workers, execute
from caffe_fold.batch.folders import Item, Pair, Skipped, pairs_in
from caffe_fold.batch.ledger import (
    OWN_FILES,
    Entry,
    Ledger,
    input_addresses,
    is_done,
    locked,
    replaced,
)
from caffe_fold.batch.progress import Progress
from caffe_fold.batch.report_file import opened_report
from caffe_fold.batch.store_ledger import StoreLedger
from caffe_fold.batch.table import Row, counted, row_of
from caffe_fold.batch.tasks import Task, addressed, plan
from caffe_fold.errors import CaffeFoldError, InputError, Interrupted, show
from caffe_fold.streams import say
from caffe_fold.threads import cores

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

    def files(self) -> Iterator[str]:
        """The addresses of all that it reads and writes."""
        yield from self.others
        yield from (storage.join(self.output, name) for name in OWN_FILES)
        for task in self.tasks:
            yield from (*input_addresses(task), task.output_model, task.output_weights)


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


def split(batch: Batch, entries: Mapping[str, Entry]) -> tuple[list[Row], list[Task]]:
    """The rows of what the ledger has as done, and the tasks that are left."""
    # Most of it is waiting: for a disk or a store, or for a hash, which leaves the lock.
    with ThreadPoolExecutor(max(cores(), 8)) as threads:
        are_done = list(threads.map(lambda t: is_done(t, entries.get(t.name)), batch.tasks))
    rows, left = [], []
    for task, is_unchanged in zip(batch.tasks, are_done):
        if is_unchanged:
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


_Ledger = Union[Ledger, StoreLedger]


def _ledger(folder: str) -> _Ledger:
    return StoreLedger(folder) if storage.is_url(folder) else Ledger(folder)


def _run(
    batch: Batch,
    workers: Callable[[int], Workers],
    report: str | None,
    progress: Callable[[int], Progress],
    rows: list[Row],
) -> str:
    """``run``, which adds to ``rows``; gives why the report is not whole."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(locked(batch.output))
        lines = stack.enter_context(opened_report(report, batch.files()))
        ledger = stack.enter_context(contextlib.closing(_ledger(batch.output)))
        for skipped in batch.skipped:
            lines.add_skipped(skipped)
        unchanged, left = split(batch, ledger.entries)
        for row in unchanged:
            rows.append(row.brief())
            lines.add(row)
        _tell_replaced(left, ledger)
        if left:
            found = _outcomes(left, workers(len(left)), ledger)
            told = stack.enter_context(progress(len(left)))
            with contextlib.closing(found):
                for row in found:
                    rows.append(row.brief())
                    lines.add(row)
                    told.tell(row)
    return lines.error


def _tell_replaced(tasks: Sequence[Task], ledger: _Ledger) -> None:
    """Warn where an output was made of another source by an earlier run."""
    for task in tasks:
        path = replaced(task, ledger.entries.get(task.name))
        if path:
            output, weights = show(task.output_weights, 1000), show(task.weights, 1000)
            made = f"replaces what was made of {show(path, 1000)}"
            say(f"warning: {output} {made}; it is now of {weights}")


def _outcomes(
    tasks: Sequence[Task], workers: Workers, ledger: _Ledger
) -> Generator[Row, None, None]:
    """A row for each task as it comes to an end, which the ledger has by then."""
    with contextlib.closing(execute(tasks, workers, ledger.start)) as outcomes:
        for outcome in outcomes:
            if outcome.entry is not None:
                ledger.done(outcome.entry)
            yield row_of(outcome)
