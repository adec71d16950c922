"""Feeds hostile input to the readers and to the whole fold, and says what came of it.

    python scripts/fuzz.py text --cases 100000 --jobs 2
    python scripts/fuzz.py weights --seed 7 --nets FOLDER
    python scripts/fuzz.py fold --seed 0 --case 4711        (one case again)
    python scripts/fuzz.py text --atheris --cases 100000    (guided by coverage)

Needs pip install '.[test]', for --atheris pip install atheris as well, and Linux. A case
follows from the target, the seed and its number alone. FOLDER holds real nets, excerpts of
which are mutated too. Each finding is kept in --findings; exit code 1 if there is one.
"""

from __future__ import annotations

import argparse
import contextlib
import faulthandler
import importlib
import multiprocessing
import queue as queues
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

TARGETS = ("text", "weights", "fold")
REPORTED = 200
"""Cases between two reports of a worker."""
LAST_RESORT = 120
"""Seconds after which a case that no signal stops ends its process."""


def main() -> int:
    """Run the command line."""
    options = _options()
    if options.atheris:
        return _guided(options)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # which ends the workers too
    target = importlib.import_module(f"fuzzing.{options.target}")
    target.seeds()
    pool = _pool(options)
    if options.case is not None:
        return _one(target, options, pool)
    start = time.monotonic()
    outcomes: Counter[str] = Counter()
    findings: list[str] = []
    try:
        _all(target, options, pool, outcomes, findings)
    finally:  # also of what was interrupted
        _print(outcomes, findings, time.monotonic() - start)
    return 1 if findings else 0


def _options() -> Any:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("target", choices=TARGETS)
    parser.add_argument("--cases", type=int, default=10_000, metavar="N")
    parser.add_argument("--first", type=int, default=0, metavar="N", help="the first case")
    parser.add_argument("--seed", type=int, default=0, metavar="N")
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="processes")
    parser.add_argument("--case", type=int, metavar="N", help="run one case, and show it")
    parser.add_argument("--nets", type=Path, metavar="FOLDER", help="real nets to mutate too")
    parser.add_argument("--atheris", action="store_true", help="let coverage guide the cases")
    parser.add_argument("--findings", type=Path, default=Path("fuzz-findings"), metavar="FOLDER")
    return parser.parse_args()


def _pool(options: Any) -> tuple[bytes, ...]:
    if options.nets is None or options.target == "fold":
        return ()
    from fuzzing.seeds import excerpts

    suffix = ".prototxt" if options.target == "text" else ".caffemodel"
    return tuple(excerpts(options.nets, suffix))


def _case(target: Any, options: Any, number: int, pool: tuple[bytes, ...]) -> Any:
    return target.case(Random(f"{options.target}:{options.seed}:{number}"), pool)


def _one(target: Any, options: Any, pool: tuple[bytes, ...]) -> int:
    from fuzzing.outcome import Finding, judged

    case = _case(target, options, options.case, pool)
    print(case)
    try:
        print(judged(target.check, case))
    except Finding as finding:
        print(finding)
        return 1
    return 0


# ---- Many cases, in processes of their own ----


def _all(
    target: Any,
    options: Any,
    pool: tuple[bytes, ...],
    outcomes: Counter[str],
    findings: list[str],
) -> None:
    """Run all cases; a process that dies is a finding, and another goes on behind it."""
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    workers: dict[int, Any] = {}
    at = {job: context.Value("q", options.first + job) for job in range(options.jobs)}

    def begin(job: int, first: int) -> None:
        arguments = (target, options, pool, first, at[job], queue)
        workers[job] = context.Process(target=_work, args=arguments)
        workers[job].start()

    for job in at:
        begin(job, options.first + job)
    with _stopped(workers):
        while workers:
            _drain(queue, outcomes, findings)
            for job, worker in list(workers.items()):
                if worker.is_alive():
                    continue
                del workers[job]
                if worker.exitcode:
                    number = at[job].value
                    findings.append(f"case {number}: the process died ({worker.exitcode})")
                    begin(job, number + options.jobs)
            _progress(outcomes, findings)
        _drain(queue, outcomes, findings)


def _work(
    target: Any, options: Any, pool: tuple[bytes, ...], first: int, at: Any, queue: Any
) -> None:
    from fuzzing.outcome import Finding, judged, limited_memory

    limited_memory()
    outcomes: Counter[str] = Counter()
    findings: list[str] = []
    numbers = range(first, options.first + options.cases, options.jobs)
    for done, number in enumerate(numbers, 1):
        at.value = number
        # Of last resort, where no signal gets through.
        faulthandler.dump_traceback_later(LAST_RESORT, exit=True)
        case = _case(target, options, number, pool)
        try:
            outcomes[judged(target.check, case)] += 1
        except Finding as finding:
            outcomes["finding"] += 1
            findings.append(f"case {number}: {finding}")
            _keep(options, number, case, str(finding))
        if done % REPORTED == 0:
            queue.put((outcomes, findings))
            outcomes, findings = Counter(), []
    faulthandler.cancel_dump_traceback_later()
    queue.put((outcomes, findings))


def _keep(options: Any, number: int, case: Any, message: str) -> None:
    stem = options.findings / f"{options.target}-{options.seed}-{number}"
    options.findings.mkdir(parents=True, exist_ok=True)
    stem.with_suffix(".txt").write_text(message, errors="backslashreplace")
    if options.target == "fold":
        stem.with_suffix(".prototxt").write_bytes(case.text)
        stem.with_suffix(".caffemodel").write_bytes(case.weights)
    else:
        stem.with_suffix(".bin").write_bytes(case)


@contextlib.contextmanager
def _stopped(workers: dict[int, Any]) -> Iterator[None]:
    try:
        yield
    finally:
        for worker in workers.values():
            worker.terminate()


def _drain(queue: Any, outcomes: Counter[str], findings: list[str]) -> None:
    with contextlib.suppress(queues.Empty):
        while True:
            some, found = queue.get(timeout=0.5)
            outcomes.update(some)
            findings += found


def _progress(outcomes: Counter[str], findings: list[str]) -> None:
    if sys.stderr.isatty():
        print(
            f"\r{sum(outcomes.values())} cases, {len(findings)} findings", end="", file=sys.stderr
        )


def _print(outcomes: Counter[str], findings: list[str], seconds: float) -> None:
    for finding in findings[:50]:
        print(finding)
    total = sum(outcomes.values())
    print(f"{total} cases in {seconds:.0f} s ({total / max(seconds, 1e-9):.0f} a second)")
    for outcome, count in outcomes.most_common():
        print(f"{count:9} {outcome}")


# ---- Guided by coverage ----


def _guided(options: Any) -> int:
    """Let atheris choose what to mutate further, by the lines that a case reaches. It ends
    the process, with the first finding or after the last case."""
    try:
        import atheris
    except ImportError:
        print("--atheris needs atheris; pip install atheris", file=sys.stderr)
        return 2
    with atheris.instrument_imports(include=["caffe_fold"]):
        target = importlib.import_module(f"fuzzing.{options.target}")
    from fuzzing.outcome import judged

    def mutate(data: bytes, size: int, seed: int) -> bytes:
        return bytes(target.again(data, Random(seed))[:size])

    def check(data: bytes) -> None:
        judged(target.check, target.from_bytes(data))

    options.findings.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as corpus:
        for number, data in enumerate(target.corpus()):
            Path(corpus, str(number)).write_bytes(data)
        flags = [f"-runs={options.cases}", f"-seed={options.seed + 1}", "-max_len=100000"]
        flags += ["-timeout=600", f"-artifact_prefix={options.findings}/"]  # it has its own limit
        atheris.Setup([sys.argv[0], *flags, corpus], check, custom_mutator=mutate)
        atheris.Fuzz()
    return 0


if __name__ == "__main__":
    sys.exit(main())
