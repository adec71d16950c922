"""One task in a process of its own, here or on another machine.

What goes wrong with a model is in its outcome and never raised, so that no model stops the
others. Nothing heavy is imported before ``prepare`` has run.
"""

from __future__ import annotations

import contextlib
import os
import signal
import tempfile
import threading
import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from caffe_fold._version import __version__
from caffe_fold.batch import storage
from caffe_fold.batch.ledger import Entry, entry_of, inputs_of
from caffe_fold.batch.tasks import Task, addressed, require_inside
from caffe_fold.errors import CaffeFoldError, InputError, OutputError, StrictError, show
from caffe_fold.interrupts import STOPPING

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

    from caffe_fold.report import Report

__all__ = ["Outcome", "failed", "fold_and_end", "fold_on_cluster", "fold_task", "prepare"]


@dataclass(frozen=True)
class Outcome:
    """How a task ended.

    :param error: one line; "" if it is done.
    :param exit_code: that of a single fold.
    :param seconds: how long it took.
    :param report: ``Report.to_dict`` of the fold; None where there is none.
    :param entry: for the ledger; None if it is not done.
    """

    task: Task
    error: str = ""
    exit_code: int = 0
    seconds: float = 0.0
    report: dict[str, Any] | None = None
    entry: Entry | None = None


def failed(task: Task, error: str, exit_code: int = 1) -> Outcome:
    """The outcome of a task that came to nothing."""
    return Outcome(task, error, exit_code)


# ---- One fold ----


def fold_task(task: Task, has_digests: bool = False) -> Outcome:
    """Fold one net. Its files are whole, or they are not there.

    :param has_digests: whether the ledger is to know them by their content, too.
    """
    start = time.perf_counter()
    try:
        _require_version(task)
        inputs = inputs_of(task)
        report = _fold(task)
        data = addressed(report.to_dict(), task)
        outcome = Outcome(task, report=data)
        if task.strict and report.left:
            error = StrictError(report.left)
            outcome = replace(outcome, error=str(error), exit_code=error.exit_code)
        else:
            outcome = replace(outcome, entry=entry_of(task, inputs, data, has_digests))
    except CaffeFoldError as error:
        outcome = failed(task, str(error), error.exit_code)
    except MemoryError:
        outcome = failed(task, "not enough memory for these files", 2)
    except Exception as error:
        if os.environ.get("CAFFE_FOLD_DEBUG"):
            raise
        outcome = failed(task, f"internal error ({type(error).__name__}: {show(str(error))})")
    return replace(outcome, seconds=time.perf_counter() - start)


def fold_on_cluster(task: Task) -> Outcome:
    """``fold_task`` where a task that is done may be run again, because the worker that had
    done it is gone: its files are the same then, and have another time."""
    return fold_task(task, has_digests=True)


def _require_version(task: Task) -> None:
    if task.version != __version__:
        raise InputError(
            f"this worker has caffe-fold {__version__}, and the batch was started with "
            f"{task.version}; install one version everywhere"
        )


def _fold(task: Task) -> Report:
    """Fold files where they lie; what a URL names is copied to a scratch folder and back."""
    remote = [
        address
        for address in (task.model, task.weights, task.output_model, _input_of(task))
        if storage.is_url(address)
    ]
    if not remote:
        return _fold_files(task)
    with tempfile.TemporaryDirectory(prefix="caffe-fold-") as scratch:
        local = _fetched(task, scratch)
        try:
            report = _fold_files(local)
        except CaffeFoldError as error:
            error.args = (_with_addresses(str(error), local, task),)
            raise
        if local.output != task.output:
            # As in one folder: never a prototxt beside weights that are not its own.
            storage.remove(task.output_model)
            storage.upload(local.output_weights, task.output_weights)
            storage.upload(local.output_model, task.output_model)
    return report


def _fold_files(task: Task) -> Report:
    from caffe_fold.convert import fold

    require_inside(task.output_weights, task.output)
    require_inside(task.output_model, task.output)
    try:
        for path in (task.output_model, task.output_weights):
            os.makedirs(os.path.dirname(path), exist_ok=True)
    except OSError as error:
        where = show(str(error.filename), 1000)
        raise OutputError(f"{where} cannot be made: {error.strerror}") from None
    # Each core has a process of its own.
    files = (task.model, task.weights, task.output_model, task.output_weights)
    return fold(*files, **task.options, threads=1)


def _input_of(task: Task) -> str:
    return (task.options.get("verify") or {}).get("input") or ""


def _fetched(task: Task, scratch: str) -> Task:
    """The task with paths for all URLs."""
    for folder in ("in", "out"):
        os.mkdir(os.path.join(scratch, folder))
    fetched = []
    for number, address in enumerate((task.model, task.weights, _input_of(task))):
        path = address
        if storage.is_url(address):
            path = os.path.join(scratch, "in", _scratch_name(number, address))
            storage.download(address, path)
        fetched.append(path)
    local = replace(task, model=fetched[0], weights=fetched[1])
    if fetched[2]:
        options = {**task.options, "verify": {**task.options["verify"], "input": fetched[2]}}
        local = replace(local, options=options)
    if storage.is_url(task.output):
        folder = os.path.join(scratch, "out")
        local = replace(
            local,
            output=folder,
            output_model=os.path.join(folder, _scratch_name(0, task.output_model)),
            output_weights=os.path.join(folder, _scratch_name(1, task.output_weights)),
        )
    return local


def _scratch_name(number: int, address: str) -> str:
    """A file's name in place of that of a URL, which may be anything; its suffix tells HDF5
    from binary weights, and an image's format."""
    return f"{number}{os.path.splitext(storage.basename(address))[1]}"


def _with_addresses(text: str, local: Task, task: Task) -> str:
    """A message about scratch files as one about those that they are copies of."""
    for name in ("model", "weights", "output_model", "output_weights"):
        text = text.replace(getattr(local, name), getattr(task, name))
    return text.replace(_input_of(local), _input_of(task)) if _input_of(task) else text


# ---- The process ----


class _State:
    """What this process is doing, for its signal handler."""

    is_folding = False
    is_stopping = False


def prepare(life: Connection) -> None:
    """Set up a worker process. It ends when the other end of ``life`` is closed, be it by a
    kill, and first removes what it was writing. Ctrl-C is for the process that started it.
    """
    # Each core has a worker; threads of BLAS beside it would only be in the way.
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ.setdefault(name, "1")
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _stop)
    if hasattr(signal, "pthread_sigmask"):  # it was started with these held back
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPPING)
    threading.Thread(target=_watch, args=(life,), daemon=True).start()


def fold_and_end(task: Task) -> Outcome:
    """``fold_task`` in a process that ``prepare`` has set up: interrupted, it ends."""
    try:
        _State.is_folding = True
        return fold_task(task)
    except KeyboardInterrupt:
        os._exit(130)
    finally:
        _State.is_folding = False


def _watch(life: Connection) -> None:
    with contextlib.suppress(EOFError, OSError):
        life.recv()
    while True:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.5)


def _stop(*_: object) -> None:
    """Break off a fold, once, so that its own cleaning up is not broken off; end otherwise."""
    if not _State.is_folding:
        os._exit(130)
    if not _State.is_stopping:
        _State.is_stopping = True
        raise KeyboardInterrupt
