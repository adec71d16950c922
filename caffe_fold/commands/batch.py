"""``caffe-fold batch``: many nets at once."""

from __future__ import annotations

import math
import os
import sys
import time
from functools import partial
from typing import TYPE_CHECKING, Any, Callable

import click

from caffe_fold.commands.fold_options import fold_options
from caffe_fold.commands.options import a_file, a_folder, file_option
from caffe_fold.commands.printing import printing_to_reader
from caffe_fold.commands.verify_options import asked_for
from caffe_fold.errors import ReportError, show
from caffe_fold.interrupts import record_done
from caffe_fold.streams import say

if TYPE_CHECKING:
    from collections.abc import Sequence

    from caffe_fold.batch.execute import Workers
    from caffe_fold.batch.run import Batch
    from caffe_fold.batch.table import Row

__all__ = ["batch"]

_EXAMPLES = """\b
Examples:
  caffe-fold batch zoo --output-dir folded
  caffe-fold batch pairs.csv --output-dir folded --report report.jsonl --verify
  caffe-fold batch s3://models/zoo --output-dir s3://models/folded --jobs 8
  caffe-fold batch /shared/zoo --output-dir /shared/folded --scheduler tcp://host:8786

\b
Exit codes:
  0    each model is done, now or by an earlier run
  1    a model failed, and the others are done; or, with --strict, no pair was found
  2    bad usage or input, and nothing was folded; or what is done cannot be recorded
  130  interrupted; what is done is recorded, and the same command goes on"""


@click.command(epilog=_EXAMPLES)
@click.argument("sources", shell_complete=a_file, metavar="SOURCE...", nargs=-1, required=True)
@click.option(
    "--output-dir",
    "output",
    required=True,
    shell_complete=a_folder,
    metavar="DIR",
    help="Where the folded nets go, in the folders of their sources; made if it is not there.",
)
@click.option(
    "--jobs",
    type=click.IntRange(min=1),
    metavar="N",
    help="How many processes.  [default: the cores]",
)
@click.option("--scheduler", metavar="ADDRESS", help="Fold on a Dask cluster, as tcp://host:8786.")
@file_option(
    "--report",
    metavar="FILE",
    help="Write the reports to it, as JSON lines.",
)
@click.option(
    "--checksum",
    is_flag=True,
    help="Tell changed files by their content, and not by size and time.",
)
@click.option("--dry-run", is_flag=True, help="Print what would be done, and write nothing.")
@click.option("--strict", is_flag=True, help="A model in which a BatchNorm is left has failed.")
@click.option("--quiet", is_flag=True, help="Print nothing but models that fail or are skipped.")
@fold_options
def batch(
    sources: tuple[str, ...],
    output: str,
    jobs: int | None,
    scheduler: str | None,
    report: str | None,
    checksum: bool,
    dry_run: bool,
    quiet: bool,
    **options: Any,
) -> int:
    """Fold many nets. A SOURCE is a folder, which is searched; a manifest (.csv, .jsonl), a
    row a pair; or the fsspec URL of either.

    In a folder, prototxt and weights of one name are a pair, and so is one deploy prototxt
    with one weights file, or with each snapshot of one training (NAME_iter_N.caffemodel).
    What is ambiguous is listed and skipped.

    Models that are done are not folded again, unless their files, the options or the version
    changed.
    """
    from caffe_fold.batch.run import find

    if jobs is not None and scheduler is not None:
        raise click.UsageError("--jobs is for this machine; leave it out with --scheduler")
    found = find(sources, output, _absolute(options), _row_options(), checksum)
    # Options of verify are for the rows that ask for it, too.
    is_verified = options["verify"] or any(task.options["verify"] for task in found.tasks)
    asked_for(click.get_current_context(), dict(options), is_verified)
    for skipped in found.skipped:
        say(f"skipped  {show(skipped.path, 1000)}: {skipped.reason}")
    if options["strict"] and not found.tasks:
        say(f"error: --strict: nothing was folded; {_skipped(len(found.skipped))}")
        return 1
    if dry_run:
        return _print_plan(found)
    return _run(found, partial(_workers, jobs, scheduler), report, quiet)


# ---- Options ----


def _absolute(options: dict[str, Any]) -> dict[str, Any]:
    """The options with paths that mean the same in another folder."""
    from caffe_fold.batch import storage

    found = dict(options)
    given, python = options["verify_input"], options["verify_caffe_python"]
    if given:
        found["verify_input"] = storage.absolute(given)
    if python and os.sep in python:  # a bare name is looked up on the PATH
        found["verify_caffe_python"] = os.path.abspath(python)
    return found


@click.command()
@click.option("--strict", is_flag=True)
@fold_options
def _row(**_: Any) -> None:
    """What a manifest's row may say: parsed by the same options as the command line."""


def _row_options() -> dict[str, Callable[[Any], tuple[str, Any]]]:
    """By an option's name, what makes a parameter's name and value of a cell."""
    context = click.Context(_row)
    return {
        name[2:]: partial(_parameter, context, option)
        for option in _row.params
        if isinstance(option, click.Option)
        for name in option.opts
    }


def _parameter(context: click.Context, option: click.Option, cell: Any) -> tuple[str, Any]:
    """A parameter's name and value.

    :raises ValueError: with what was expected.
    """
    assert option.name is not None
    try:
        if option.is_flag:
            if not isinstance(cell, (bool, str)):
                raise ValueError("expected true or false")
            is_on = click.BOOL.convert(cell, option, context)
            return option.name, option.flag_value if is_on else not option.flag_value
        given = cell if isinstance(cell, list) else [cell]
        if option.multiple and isinstance(cell, str):
            given = [part for part in cell.split(";") if part]
        if not all(isinstance(c, (str, int, float)) and not isinstance(c, bool) for c in given):
            raise ValueError("expected text or a number, or a list of them")
        if not option.multiple and len(given) != 1:
            raise ValueError("expected one value")
        if any(isinstance(c, float) and not math.isfinite(c) for c in given):
            raise ValueError("expected a finite number")
        texts = tuple(map(str, given))
        if not all(map(_is_text, texts)):
            raise ValueError("it has half a character of UTF-16")
        return option.name, option.process_value(context, texts if option.multiple else texts[0])
    except click.BadParameter as error:
        raise ValueError(error.message) from None


def _is_text(cell: str) -> bool:
    try:
        cell.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return False
    return True


def _workers(jobs: int | None, scheduler: str | None, count: int) -> Workers:
    """The workers for a number of tasks."""
    from caffe_fold.batch.execute import Cluster, Processes
    from caffe_fold.threads import cores

    if scheduler is not None:
        return Cluster(scheduler)
    most = 61 if sys.platform == "win32" else count  # Windows waits for no more
    return Processes(min(jobs or cores(), count, most))


# ---- What is printed ----


def _print_plan(found: Batch) -> int:
    from caffe_fold.batch.ledger import read
    from caffe_fold.batch.run import split

    rows, left = split(found, read(found.output))
    with printing_to_reader():
        for row in rows:
            click.echo(f"unchanged  {show(row.name, 1000)}")
        for task in left:
            files = " + ".join(show(path, 1000) for path in (task.model, task.weights))
            click.echo(f"fold  {files} -> {show(task.name, 1000)}")
        click.echo(
            f"{len(left)} to fold, {len(rows)} unchanged, {len(found.skipped)} skipped; "
            "nothing was written"
        )
    return 0


def _run(found: Batch, workers: Callable[[int], Workers], report: str | None, quiet: bool) -> int:
    from caffe_fold.batch.progress import progress
    from caffe_fold.batch.run import run

    start = time.monotonic()
    result = run(found, workers, report, partial(progress, quiet=quiet))
    seconds = time.monotonic() - start
    record_done("the batch is done, but for its table")
    if not quiet:
        try:
            with printing_to_reader():
                _print_table(result.rows, len(found.skipped), seconds)
        except ReportError as error:  # the folds are done all the same
            say(f"warning: {error}")
    if result.report_error:
        say(f"error: {result.report_error}")
    return 1 if result.report_error or any(row.error for row in result.rows) else 0


def _print_table(rows: Sequence[Row], skipped: int, seconds: float) -> None:
    from caffe_fold.batch.table import as_table, counted

    if rows:
        click.echo(as_table(rows))
    done, same, failed = (
        sum(row.status == status for row in rows) for status in ("done", "unchanged", "failed")
    )
    rate = f", {(done + failed) / seconds:.1f}/s" if done + failed and seconds else ""
    click.echo(
        f"{counted(len(rows), 'model')}: {done} done, {same} unchanged, {failed} failed; "
        f"{_skipped(skipped)}; {seconds:.1f} s{rate}"
    )


def _skipped(count: int) -> str:
    from caffe_fold.batch.table import counted

    return f"{counted(count, 'file')} skipped"
