"""Mutation testing of the algebra, the graph and the planner.

    python scripts/mutate.py --sample 500 --seed 1 --jobs 2

Cosmic Ray's operators change one operator, number or keyword at a time, in copies of the files
that git knows, and a test must fail. Each mutant runs in a fork of a process that has imported
all but the package, with a hundred of the tests of TESTS that reach its lines, then with all of
them, and then with all other quick tests. Prints the survivors and the numbers; exits with 1 if
there are survivors (docs/mutation.md explains those that are known). Needs
pip install 'cosmic-ray>=8.4,<9' 'coverage>=7.10,<8', and Linux.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import difflib
import gc
import importlib
import json
import math
import os
import random
import re
import resource
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest

PROJECT = Path(__file__).resolve().parent.parent

MODULES = """
    layers/affine_map layers/affine layers/batch_norm layers/linear
    nets/graph planning/ranks nets/memory
    planning/pairing planning/facts planning/sharing planning/runs planning/conditions
    planning/planner planning/surgery
    writing/arithmetic writing/folded_values
""".split()

TESTS = """
    graph layouts patterns_merge patterns_before patterns_behind refusals refusals_rare
    refusals_weights sharing shared_memory check storage old_nets merged_entries rewrite warnings
    arrays unknown_fields
""".split()

# Some would say nothing: the others of a kind are as good (+ for a <<), annotations are never
# computed (int | None), and small numbers and names are one object each (== for is).
LEFT_OUT = re.compile(
    r"core/(ReplaceBinaryOperator_BitOr_"
    r"|ReplaceBinaryOperator_.*_(BitAnd|BitOr|BitXor|LShift|RShift)$"
    r"|ReplaceComparisonOperator_.*[qt]_Is(Not)?$)"
)

QUICK = ["-x", "-q", "-p", "no:cacheprovider", "-m", "not slow and not oracle"]

# A mutant may loop for ever, or collect without end.
PROCESSOR_SECONDS = 120
ADDRESSES = 6 << 30
# A mutant meets so many tests of all kinds at first: those of like times are often alike.
MOST = 100


@dataclass(frozen=True)
class Mutant:
    """One change: the ``at``-th place of an operator in a file, whose path is below the project.
    ``lines`` are those of the statement."""

    path: str
    operator: str
    at: int
    lines: range

    def source(self) -> str:
        """The file with the change."""
        from cosmic_ray.mutating import mutate_code
        from cosmic_ray.plugins import get_operator

        old = (PROJECT / self.path).read_text()
        return str(mutate_code(old, get_operator(self.operator)(), self.at))

    def __str__(self) -> str:
        old, new = (PROJECT / self.path).read_text().splitlines(), self.source().splitlines()
        lines = difflib.unified_diff(old, new, n=0, lineterm="")
        return "\n".join([f"{self.path}: {self.operator}", *list(lines)[2:]])


@dataclass(frozen=True)
class Reached:
    """What the tests do: ``tests`` in the order of their times, ``lines`` those that reach a
    line of a file, ``imports`` the modules of others that they need."""

    tests: list[str]
    lines: dict[str, dict[int, list[str]]]
    imports: list[str]

    def by(self, mutant: Mutant) -> list[str]:
        """The tests that can tell a mutant; all of them for what runs on import."""
        lines = self.lines.get(mutant.path, {})
        found = {test for line in mutant.lines for test in lines.get(line, ())}
        return self.tests if "" in found else [test for test in self.tests if test in found]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sample", type=int, help="so many mutants, at random; else all")
    parser.add_argument("--seed", type=int, default=1, help="of the sample")
    parser.add_argument("--jobs", type=int, default=1, help="how many mutants at a time")
    parser.add_argument("--modules", nargs="+", default=MODULES, metavar="MODULE")
    options = parser.parse_args()
    mutants = [m for module in options.modules for m in _mutants(f"caffe_fold/{module}.py")]
    size = min(options.sample or len(mutants), len(mutants))
    random.Random(options.seed).shuffle(mutants)
    taken = mutants[:size]
    with tempfile.TemporaryDirectory() as folder:
        copies = [Path(folder, str(job)) for job in range(options.jobs)]
        _copy(copies[0])
        reached = _reached(copies[0])
        for copy in copies[1:]:
            shutil.copytree(copies[0], copy)
        for name in reached.imports:
            with contextlib.suppress(Exception):
                importlib.import_module(name)
        gc.freeze()  # what forks need not look at
        survivors = list(_survivors(copies, taken, reached, MOST))
        survivors = list(_survivors(copies, survivors, reached, len(reached.tests)))
        left = [mutant for mutant in survivors if not _dies_of_the_others(copies[0], mutant)]
    for mutant in left:
        print(mutant)
    made, lived = (Counter(mutant.path for mutant in each) for each in (taken, left))
    for path in sorted(made):
        print(f"{path}: {made[path]} mutants, {lived[path]} left")
    print(f"{size} of {len(mutants)} mutants, {len(left)} left")
    return 1 if left else 0


# ---- Mutants ----


def _mutants(path: str) -> Iterator[Mutant]:
    """All mutants of a file, in a fixed order."""
    from cosmic_ray.ast import ast_nodes, get_ast
    from cosmic_ray.plugins import get_operator, operator_names

    source = (PROJECT / path).read_text()
    nodes, statements = list(ast_nodes(get_ast(source))), _statements(source)
    for name in sorted(operator_names()):
        kind = get_operator(name)
        if not LEFT_OUT.match(name) and not kind.arguments():
            starts = [start for node in nodes for start, _ in kind().mutation_positions(node)]
            for at, (line, _) in enumerate(starts):
                yield Mutant(path, name, at, statements[line])


def _statements(source: str) -> dict[int, range]:
    """The lines of the innermost statement around each line, of a compound one its head."""
    found = {}
    for node in ast.walk(ast.parse(source)):  # outer ones first
        if isinstance(node, (ast.stmt, ast.ExceptHandler)):
            body = getattr(node, "body", None)
            end = body[0].lineno - 1 if body else node.end_lineno or node.lineno
            start = min([node.lineno, *(d.lineno for d in getattr(node, "decorator_list", ()))])
            lines = range(start, max(end, node.lineno) + 1)
            found.update(dict.fromkeys(lines, lines))
    return found


# ---- Tests ----


def _copy(folder: Path) -> None:
    """The files that git knows, in a folder of their own."""
    names = subprocess.run(["git", "ls-files", "-z"], cwd=PROJECT, capture_output=True, check=True)
    for name in names.stdout.decode().split("\0")[:-1]:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(PROJECT / name, folder / name)


class _Watch:
    """A plugin of pytest: which test reaches which line, and how long each takes."""

    def __init__(self, coverage: Any) -> None:
        self.coverage = coverage
        self.seconds: Counter[str] = Counter()

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        self.coverage.switch_context(nodeid)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self.seconds[report.nodeid] += report.duration  # type: ignore[assignment]


class _Chosen:
    """A plugin of pytest: these tests alone, in this order."""

    def __init__(self, tests: list[str]) -> None:
        self.places = {test: at for at, test in enumerate(tests)}

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        items[:] = [item for item in items if item.nodeid in self.places]
        items.sort(key=lambda item: self.places[item.nodeid])


def _reached(copy: Path) -> Reached:
    """Run the tests as they are. Leaves the compiled files, which each copy needs."""

    def run() -> int:
        from coverage import Coverage

        coverage = Coverage(data_file=None, include=[f"{copy}/caffe_fold/*"], config_file=False)
        watch = _Watch(coverage)
        coverage.start()
        code = pytest.main([*QUICK, *(f"tests/test_{name}.py" for name in TESTS)], [watch])
        coverage.stop()
        data = coverage.get_data()
        lines = {
            str(Path(path).relative_to(copy)): data.contexts_by_lineno(path)
            for path in data.measured_files()
        }
        tests = [test for test, _ in reversed(watch.seconds.most_common())]
        own = {path.stem for path in (copy / "tests").rglob("*.py")} | {"caffe_fold", "support"}
        imports = [name for name in sys.modules if name.split(".")[0] not in own]
        (copy / "reached.json").write_text(json.dumps([tests, lines, imports]))
        return int(code)

    if os.waitstatus_to_exitcode(os.waitpid(_forked(copy, run), 0)[1]):
        sys.exit("the tests fail without mutants")
    tests, lines, imports = json.loads((copy / "reached.json").read_text())
    by_number = {
        path: {int(line): found for line, found in numbered.items()}
        for path, numbered in lines.items()
    }
    return Reached(tests, by_number, imports)


def _forked(copy: Path, run: Callable[[], int]) -> int:
    """Run something in a copy of the project, in a process of its own."""
    pid = os.fork()
    if pid:
        return pid
    code = 1
    with contextlib.suppress(BaseException):
        os.setsid()
        os.chdir(copy)
        sys.path[:0] = map(str, (copy, copy / "tests", copy / "scripts"))
        os.environ["PYTHONPATH"] = str(copy)
        for descriptor in (1, 2):
            os.dup2(os.open(copy / "output.txt", os.O_WRONLY | os.O_CREAT), descriptor)
        code = run()
    os._exit(code)


def _survivors(
    copies: list[Path], mutants: list[Mutant], reached: Reached, most: int
) -> Iterator[Mutant]:
    """Those that the tests which reach them, or so many of these, do not tell."""
    free, running = list(copies), dict[int, tuple[Path, Mutant]]()
    waiting = list(mutants)[::-1]
    while waiting or running:
        while waiting and free:
            mutant, copy = waiting.pop(), free.pop()
            (copy / mutant.path).write_text(mutant.source())
            tests = reached.by(mutant)
            some = tests[len(tests) // (2 * most) :: max(1, math.ceil(len(tests) / most))]
            running[_forked(copy, partial(_judge, some))] = copy, mutant
        pid, status = os.wait()
        copy, mutant = running.pop(pid)
        shutil.copy2(PROJECT / mutant.path, copy / mutant.path)
        free.append(copy)
        is_dead = os.waitstatus_to_exitcode(status) not in (0, pytest.ExitCode.NO_TESTS_COLLECTED)
        print(f"{len(waiting):5} to go, {mutant if not is_dead else 'dead'}", flush=True)
        if not is_dead:
            yield mutant


def _judge(tests: list[str]) -> int:
    """Run tests on what is there, as far as one that fails."""
    sys.dont_write_bytecode = True
    resource.setrlimit(resource.RLIMIT_CPU, (PROCESSOR_SECONDS, PROCESSOR_SECONDS))
    resource.setrlimit(resource.RLIMIT_AS, (ADDRESSES, ADDRESSES))
    gc.disable()
    return int(pytest.main([*QUICK, *tests], [_Chosen(tests)])) if tests else 0


def _dies_of_the_others(copy: Path, mutant: Mutant) -> bool:
    (copy / mutant.path).write_text(mutant.source())
    ignored = [f"--ignore=tests/test_{name}.py" for name in TESTS]
    command = [sys.executable, "-m", "pytest", *QUICK, "-n", "2", *ignored]
    environment = {**os.environ, "PYTHONPATH": str(copy), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(command, cwd=copy, env=environment, capture_output=True)
    shutil.copy2(PROJECT / mutant.path, copy / mutant.path)
    return done.returncode != 0


if __name__ == "__main__":
    sys.exit(main())
