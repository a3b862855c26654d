"""The table of bugs that are put in: each is declared, has a workload and a checker to find it."""

from __future__ import annotations

import pytest

from regrow import failpoints
from regrow.chaos import mutation
from regrow.chaos.checkers import CHECKERS
from regrow.chaos.workloads import WORKLOADS


def test_every_declared_bug_is_looked_for() -> None:
    assert set(mutation.REAL) == set(failpoints.MUTANTS)
    for workload, checker in mutation.REAL.values():
        assert workload in WORKLOADS
        assert checker in CHECKERS


def test_no_bug_is_in_without_the_chaos_suite() -> None:
    assert failpoints.MUTANT == ""


def test_a_bug_that_nothing_finds_fails_the_table(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(mutation, "real", lambda name: mutation.Found(name, "something"))
    assert mutation.main(["--tier", "real"]) == 1
    assert "3 bugs, 0 found" in capsys.readouterr().out
    found = mutation.Found("a", "something", "real", "counters: wrong")
    monkeypatch.setattr(mutation, "real", lambda name: found)
    assert mutation.main(["--tier", "real"]) == 0


def test_a_simulated_bug_is_found_and_a_hidden_one_is_not() -> None:
    assert mutation.simulated("output-released-early").finding
    assert not mutation.simulated("id-reused", seeds=1).finding
