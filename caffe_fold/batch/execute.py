"""Tasks to outcomes over an executor of ``concurrent.futures``: a pool of processes here, or
a Dask cluster."""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import os
import signal
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import CancelledError, Executor, Future
from concurrent.futures.process import BrokenProcessPool, ProcessPoolExecutor
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from typing import Any, TypeVar, Union

from caffe_fold.batch.tasks import Task
from caffe_fold.batch.worker import Outcome, failed, fold_and_end, fold_on_cluster, prepare
from caffe_fold.errors import InputError, show
from caffe_fold.interrupts import STOPPING
from caffe_fold.streams import say

__all__ = ["Cluster", "Processes", "Workers", "execute"]

_T = TypeVar("_T")

_SECONDS = 10
_NO_START = "worker processes cannot be started"
_LOST = "the cluster has dropped it; is its scheduler still there?"


@dataclass(frozen=True)
class Pool:
    """An executor, and whether it is gone with all that it had."""

    executor: Executor
    is_lost: Callable[[], bool]


@dataclass(frozen=True)
class Processes:
    """Worker processes on this machine.

    :param count: how many; each has one task at a time.
    """

    count: int
    run = staticmethod(fold_and_end)

    @property
    def ahead(self) -> int:
        """How many tasks are handed over at once: enough that no worker waits, and few, since
        a process that dies takes with it what is known of all of them."""
        return 2 * self.count

    @contextlib.contextmanager
    def pool(self) -> Iterator[Pool]:
        """The pool. At its end, however that comes, the processes end, and first remove what
        they were writing."""
        context = multiprocessing.get_context("spawn")  # the same everywhere, and safe
        reader, writer = context.Pipe(duplex=False)
        with _starting():
            executor = ProcessPoolExecutor(self.count, context, prepare, (reader,))
        try:
            yield Pool(executor, lambda: False)
        finally:
            writer.close()
            with contextlib.suppress(OSError):  # of processes that did not start
                executor.shutdown(cancel_futures=True)
            reader.close()


@dataclass(frozen=True)
class Cluster:
    """The workers of a Dask cluster.

    :param address: of its scheduler, as ``tcp://host:8786``.
    """

    address: str
    run = staticmethod(fold_on_cluster)
    ahead = 10_000

    @contextlib.contextmanager
    def pool(self) -> Iterator[Pool]:
        """The cluster's executor.

        :raises InputError: if Dask is not installed, or there is no scheduler.
        """
        try:
            from distributed import Client
        except ImportError:
            raise InputError(
                "--scheduler needs Dask, which is not there: pip install 'caffe-fold[dask]'"
            ) from None
        with _unlogged():
            try:
                client: Any = Client(self.address, timeout=_SECONDS, set_as_default=False)
            except (OSError, ValueError, ImportError) as error:
                raise InputError(
                    f"no Dask scheduler answers at {show(self.address)}: {show(str(error))}"
                ) from None
            try:
                if not client.scheduler_info()["workers"]:
                    say(f"waiting for workers of {show(self.address)}")
                yield Pool(client.get_executor(), lambda: client.status == "closed")
            finally:
                client.close(timeout=_SECONDS)


@contextlib.contextmanager
def _unlogged() -> Iterator[None]:
    """Keep what is logged of a lost connection, with tracebacks, from the user, who has it in
    the outcomes."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(before)


Workers = Union[Processes, Cluster]


def execute(
    tasks: Sequence[Task], workers: Workers, started: Callable[[Task], None]
) -> Generator[Outcome, None, None]:
    """Run all tasks; each gives one outcome, as it comes.

    A process that dies breaks the pool and does not say over which task. Those that were
    handed over are then run one at a time, each in a process of its own, so that only the one
    that kills it again fails.

    :param started: is called with each task before it is handed over.
    """
    waiting = deque(tasks)
    while waiting:
        suspects: list[Task] = []
        with workers.pool() as pool:
            yield from _until_broken(pool, waiting, workers, started, suspects)
        for task in suspects:
            yield _alone(task)


def _until_broken(
    pool: Pool,
    waiting: deque[Task],
    workers: Workers,
    started: Callable[[Task], None],
    suspects: list[Task],
) -> Iterator[Outcome]:
    """Run the waiting tasks until none is left, or the pool breaks: then ``suspects`` has
    those that were handed over and came to no end."""
    running: dict[Future[Outcome], Task] = {}
    # Not wait(), which looks at all that run, each time one is done.
    ended: SimpleQueue[Future[Outcome]] = SimpleQueue()
    while (waiting and not suspects) or running:
        if pool.is_lost():
            for task in (*running.values(), *waiting):
                yield failed(task, _LOST)
            waiting.clear()
            return
        while waiting and not suspects and len(running) < workers.ahead:
            task = waiting.popleft()
            started(task)
            try:
                future = _submitted(pool, workers.run, task)
            except BrokenProcessPool:
                suspects.append(task)
            else:
                running[future] = task
                future.add_done_callback(ended.put)
        if not running:
            return
        try:
            future = ended.get(timeout=_SECONDS)
        except Empty:
            continue
        task = running.pop(future)
        try:
            yield future.result()
        except BrokenProcessPool:
            suspects.append(task)
        except CancelledError:
            yield failed(task, _LOST)
        except Exception as error:
            yield failed(task, _said(error))


def _alone(task: Task) -> Outcome:
    one = Processes(1)
    with one.pool() as pool:
        try:
            _submitted(pool, os.getpid).result()
        except BrokenProcessPool:
            raise InputError(f"{_NO_START}: they end before they have begun") from None
        try:
            return _submitted(pool, one.run, task).result()
        except BrokenProcessPool:
            return failed(
                task, "its process was killed, twice; is there enough memory for this model?"
            )


def _submitted(pool: Pool, call: Callable[..., _T], *arguments: Any) -> Future[_T]:
    """The future of a call.

    :raises InputError: if no process can be started for it.
    """
    with _starting(), _held_back():
        return pool.executor.submit(call, *arguments)


@contextlib.contextmanager
def _starting() -> Iterator[None]:
    """Say in one line why processes cannot be started. A broken pipe that is raised on is taken
    for that of standard output, and nothing said."""
    try:
        yield
    except OSError as error:
        raise InputError(f"{_NO_START}: {show(error.strerror or str(error))}") from None


def _said(error: Exception) -> str:
    """What an executor has against a task."""
    if type(error).__name__ == "KilledWorker":  # Dask's, which has tried several
        return "all workers that had it died; is there enough memory for this model?"
    return f"its worker failed ({show(f'{type(error).__name__}: {error}')})"


@contextlib.contextmanager
def _held_back() -> Iterator[None]:
    """Hold signals back while processes start, which inherit that: they are not to die of a
    Ctrl-C, with a traceback, before they can handle it."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOPPING)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
