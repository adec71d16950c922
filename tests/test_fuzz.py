"""A bounded run of the fuzzer: the same cases each time. docs/fuzzing.md tells of longer ones."""

from __future__ import annotations

import sys
from collections import Counter
from random import Random
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

pytest.importorskip("resource", reason="the limits of a case are POSIX's")

from fuzzing import fold, mutate_text, mutate_wire, text, weights
from fuzzing.mutate_wire import joined, records
from fuzzing.outcome import Finding, judged
from fuzzing.seeds import made

QUICK = settings(deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])


@pytest.fixture(autouse=True, scope="module")
def seeds() -> None:
    """Hypothesis makes them, which it cannot do while it draws for a test."""
    made()


def outcomes(target: Any, cases: range) -> Counter[str]:
    """Run cases; a finding names the one that it came of."""
    found: Counter[str] = Counter()
    name = target.__name__.rpartition(".")[2]
    for number in cases:
        case = target.case(Random(f"{name}:0:{number}"))
        try:
            found[judged(target.check, case)] += 1
        except Finding as finding:
            pytest.fail(f"scripts/fuzz.py {name} --seed 0 --case {number}: {finding}")
    return found


@pytest.mark.slow
@pytest.mark.parametrize("part", range(2))
@pytest.mark.parametrize(("target", "count"), [(text, 600), (weights, 900)])
def test_a_reader_reads_or_refuses_as_protobufs_own(target: Any, count: int, part: int) -> None:
    found = outcomes(target, range(part * count, (part + 1) * count))
    assert min(found["read"], found["refused"]) > count // 10


@pytest.mark.slow
@pytest.mark.parametrize("part", range(2))
def test_a_fold_is_right_or_refused(part: int) -> None:
    found = outcomes(fold, range(part * 100, (part + 1) * 100))
    assert min(found["folded"], found["refused"]) > 10


@settings(QUICK, max_examples=25)
@given(st.randoms(use_true_random=False))
def test_a_small_text_that_fails_would_be_found(random: Random) -> None:
    """Hypothesis draws, so that it can make a failing case smaller."""
    judged(text.check, text.case(random))


@settings(QUICK, max_examples=10)
@given(st.randoms(use_true_random=False))
def test_a_small_file_that_fails_would_be_found(random: Random) -> None:
    judged(weights.check, weights.case(random))


# ---- The fuzzer itself ----


def test_a_file_is_taken_apart_and_put_together() -> None:
    for seed in made():
        assert joined(records(seed.weights)) == seed.weights


def test_the_seeds_themselves_fold() -> None:
    """Half's own rounding is above what is asked of the others."""
    found = Counter(judged(fold.check, fold.Case(*seed, {})) for seed in made())
    assert found == {"folded": len(made()) - 1, "folded, by rounding": 1}


@pytest.mark.parametrize("module", [mutate_text, mutate_wire])
def test_mutations_differ_and_come_again(module: Any) -> None:
    seeds = text.seeds() if module is mutate_text else weights.seeds()
    cases = [module.mutated(seeds[9], Random(number), seeds) for number in range(300)]
    assert cases == [module.mutated(seeds[9], Random(number), seeds) for number in range(300)]
    assert len(set(cases)) > 200


def hang(_: bytes) -> str:
    while True:
        pass


def nest(_: bytes) -> str:
    return nest(_)


def complain(_: bytes) -> str:
    from caffe_fold import CaffeFoldError

    error = CaffeFoldError("x")
    error.args = ("two\nlines",)
    raise error


def allocate(_: bytes) -> str:
    raise MemoryError


@pytest.mark.parametrize("check", [hang, nest, complain, allocate])
def test_what_must_not_happen_is_found(check: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fuzzing.outcome.SECONDS", 0.1)
    with pytest.raises(Finding):
        judged(check, b"")


def test_a_fold_that_computes_something_else_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """The check of the fold itself is off: the evaluator finds it."""
    from caffe_fold.writing import arithmetic

    seed = made()[1]
    monkeypatch.setattr(
        arithmetic.Folding, "bias", lambda self, old, shift: shift + 1.0, raising=True
    )
    with pytest.raises(Finding, match="computes something else"):
        judged(fold.check, fold.Case(*seed, {"check": False}))


def test_the_script_runs_cases_and_says_how_they_went() -> None:
    import subprocess
    from pathlib import Path

    script = Path(__file__).parent.parent / "scripts" / "fuzz.py"
    command = [sys.executable, str(script), "weights", "--cases", "50", "--jobs", "2"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.startswith("50 cases in ")
