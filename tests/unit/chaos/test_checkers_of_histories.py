"""Checkers of the history: a good one passes, and one with any single defect does not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from regrow.chaos.checkers import CHECKERS
from regrow.chaos.checkers.checker import Evidence
from regrow.chaos.history import Kind
from regrow.chaos.workloads.workload import RAN
from tests.unit.chaos.histories import Writer, evidence


def found(checker: str, workload: str, writer: Writer, **changes: Any) -> list[str]:
    return CHECKERS[checker]().check(evidence(workload, writer, **changes))


# --- answers, errors, ends ------------------------------------------------------------------------


def answered(**changes: Any) -> Writer:
    writer = Writer()
    writer.operation("chain", [5, 0], 5)
    given: dict[str, Any] = {"name": "chain", "value": [6, 0], "result": 6, "at": (1.5, 5.0)}
    writer.operation(**{**given, **changes})
    writer.line(Kind.FAULT, 2.0, name="node_crash", value="it")
    return writer


@pytest.mark.parametrize(
    "checker", ["answers", "errors", "everything_ends", "progress", "faults_fired", "recovery"]
)
def test_a_good_history_passes(checker: str) -> None:
    assert found(checker, "chains", answered()) == []


@pytest.mark.parametrize(
    ("checker", "changes", "words"),
    [
        ("answers", {"result": 7}, "expected 6"),
        ("errors", {"kind": Kind.FAIL, "error": "ObjectLostError"}, "ObjectLostError"),
        ("errors", {"kind": Kind.UNKNOWN, "error": "KeyError"}, "KeyError"),
        ("everything_ends", {"kind": None}, "never answered"),
        ("progress", {"at": (2.5, 3.0)}, "no fault struck while"),
    ],
)
def test_one_defect_is_found(checker: str, changes: dict[str, Any], words: str) -> None:
    [finding] = found(checker, "chains", answered(**changes))
    assert words in finding


def test_a_driver_that_hangs_or_fails_is_told_of() -> None:
    [finding] = found("everything_ends", "chains", answered(kind=None), driver_status=None)
    assert "had not ended" in finding
    assert "chain([6, 0])" in finding
    [finding] = found("everything_ends", "chains", answered(), driver_status=1)
    assert "status 1" in finding


def test_a_fault_that_never_fired_is_told_of() -> None:
    writer = Writer()
    writer.operation("chain", [5, 0], 5)
    assert found("faults_fired", "chains", writer) == ["node_crash never fired"]
    assert found("progress", "chains", Writer()) == ["no operation was acknowledged"]


def test_a_recovery_that_takes_too_long_is_told_of() -> None:
    limited = evidence("chains", answered())
    scenario = msgspec.structs.replace(limited.scenario, recovery_max_s=2.0)
    [finding] = found("recovery", "chains", answered(), scenario=scenario)
    assert "a recovery took 3.0 s" in finding


# --- objects --------------------------------------------------------------------------------------


def appended(items: list[str], last: list[str]) -> Writer:
    writer = Writer()
    for number, token in enumerate(items, 1):
        value = {"on": "list", "token": token, "argument": token}
        writer.operation("append", value, number)
    writer.operation("read", {"on": "list", "token": "end"}, last)
    return writer


def test_a_good_list_passes() -> None:
    writer = appended(["a", "b", "c"], ["a", "b", "c"])
    assert found("fifo", "lists", writer) == []
    assert found("linearizable", "lists", writer) == []


@pytest.mark.parametrize(
    ("last", "words"),
    [
        (["a", "c"], "b was acknowledged and is lost"),
        (["a", "b", "b", "c"], "has b twice"),
        (["a", "b", "c", "x"], "x, which nobody sent"),
        (["b", "a", "c"], "sent a before b"),
    ],
)
def test_lists_that_lost_doubled_invented_or_disordered_are_found(
    last: list[str], words: str
) -> None:
    writer = appended(["a", "b", "c"], last)
    assert any(words in finding for finding in found("fifo", "lists", writer))
    [finding] = found("linearizable", "lists", writer)
    assert "is not linearizable" in finding


def test_a_list_that_nobody_read_is_told_of() -> None:
    writer = Writer()
    writer.operation("append", {"on": "list", "token": "a", "argument": "a"}, 1)
    assert found("fifo", "lists", writer) == ["list was never read"]


def test_a_token_is_one_operation_in_all_lives_of_the_driver() -> None:
    value = {"on": "list", "token": "a", "argument": "a"}
    writer = Writer()
    writer.operation("append", value, kind=None)
    writer.operation("append", value, 1, process="driver2/client1")
    writer.operation("read", {"on": "list", "token": "end"}, ["a"])
    assert found("fifo", "lists", writer) == []
    assert found("linearizable", "lists", writer) == []
    writer.operation("append", value, 2, process="driver3/client1")
    assert "list: a was answered 1 and 2" in found("linearizable", "lists", writer)


def test_a_stale_read_is_found() -> None:
    writer = Writer()
    for token, value in (("1", 4), ("2", 3)):
        writer.operation("write", {"on": "register", "token": token, "argument": value})
    writer.operation("read", {"on": "register", "token": "3"}, 3)
    assert found("linearizable", "registers", writer) == []
    writer.operation("read", {"on": "register", "token": "4"}, 4)
    [finding] = found("linearizable", "registers", writer)
    assert "nothing explains" in finding


def counted(answers: list[int], last: tuple[int, list[str]]) -> Writer:
    writer = Writer()
    for number, answer in enumerate(answers):
        writer.operation("increment", [0, f"t{number}"], answer)
    writer.operation("read", 0, list(last))
    return writer


def test_an_operation_that_died_with_its_driver_was_under_way() -> None:
    writer = Writer()
    writer.operation("run", ["python"], kind=None)
    writer.fault("driver_kill")
    writer.operation("run", ["python"], 0, process="driver2/client1")
    assert found("progress", "counter", writer) == []


def test_an_increment_begins_when_a_killed_driver_asked_for_it_first() -> None:
    writer = Writer()
    writer.operation("increment", [0, "t1"], kind=None)
    writer.operation("increment", [0, "t2"], 2, process="driver2/client1")
    writer.operation("increment", [0, "t1"], 1, process="driver2/client2")
    writer.operation("read", 0, [2, ["t1", "t2"]], process="driver2")
    assert found("counters", "counter", writer) == []


def test_a_good_counter_passes() -> None:
    assert found("counters", "counter", counted([1, 2], (2, ["t0", "t1"]))) == []


@pytest.mark.parametrize(
    ("answers", "last", "words"),
    [
        ([1, 2], (1, ["t0"]), "is not counted"),
        ([1, 2], (3, ["t0", "t1", "t1"]), "counted 2 times"),
        ([1, 2], (3, ["t0", "t1", "x"]), "nobody asked"),
        ([2, 1], (2, ["t1", "t0"]), "began after"),
        ([1, 1], (2, ["t0", "t1"]), "two increments were answered 1"),
        ([1, 2], (2, ["t1", "t0"]), "another's place"),
        ([1, 2], (3, ["t0", "t1"]), "says 3"),
    ],
)
def test_counters_with_one_defect_are_found(
    answers: list[int], last: tuple[int, list[str]], words: str
) -> None:
    findings = found("counters", "counter", counted(answers, last))
    assert any(words in finding for finding in findings), findings


# --- single workloads -----------------------------------------------------------------------------

Accounts = list[tuple[int, list[tuple[str, int]]]]


def banked(accounts: Accounts, moved: bool = True) -> Writer:
    writer = Writer()
    value = {"token": "t", "source": 0, "target": 1, "amount": 30}
    writer.operation("transfer", value, moved)
    writer.operation("accounts", None, [list(account) for account in accounts])
    return writer


BOOKED: Accounts = [(70, [("t", -30)]), (130, [("t", 30)])]


def test_a_good_bank_passes() -> None:
    assert found("bank", "bank", banked(BOOKED)) == []
    assert found("bank", "bank", banked([(100, []), (100, [])], moved=False)) == []


@pytest.mark.parametrize(
    ("accounts", "moved", "words"),
    [
        ([(70, [("t", -30)]), (100, [])], True, "there are 170"),
        ([(40, [("t", -30), ("t", -30)]), (160, [("t", 30), ("t", 30)])], True, "was booked as"),
        ([(100, []), (100, [])], True, "t was answered True, and booked: False"),
        (BOOKED, False, "t was answered False, and booked: True"),
        ([(70, [("x", -30)]), (130, [("x", 30)])], True, "nobody asked for it"),
        ([(80, [("t", -30)]), (120, [("t", 30)])], True, "its entries make"),
        ([(-10, [("t", -110)]), (210, [("t", 110)])], True, "was overdrawn"),
    ],
)
def test_banks_with_one_defect_are_found(accounts: Accounts, moved: bool, words: str) -> None:
    findings = found("bank", "bank", banked(accounts, moved))
    assert any(words in finding for finding in findings), findings


def test_accounts_that_nobody_read_are_told_of() -> None:
    assert found("bank", "bank", Writer()) == ["the accounts were never read"]


@pytest.mark.parametrize(
    ("result", "words"),
    [
        ([[0, 1, False], [1, 1, True]], ""),
        ([[0, 1, False], [1, 1, False]], ""),
        ([[0, 0, True], [1, 1, True]], "different actors"),
        ([[0, 5, False], [1, 5, False]], "nobody in the race"),
        ([[0, 1, True], [1, 1, True]], "did not"),
    ],
)
def test_races_have_one_winner(result: list[Any], words: str) -> None:
    writer = Writer()
    writer.operation("race", "name", result)
    findings = found("one_winner", "names", writer)
    assert bool(findings) is bool(words)
    assert all(words in finding for finding in findings)


def test_work_that_is_done_again_is_found() -> None:
    writer = Writer()
    writer.note(RAN, "1.0.0")
    writer.note(RAN, "1.0.0")  # a retry, before anyone knew
    writer.operation("item", "1.0.0", 1)
    assert found("not_again", "nightly", writer) == []
    writer.note(RAN, "1.0.0")
    [finding] = found("not_again", "nightly", writer)
    assert "after it was acknowledged" in finding


def test_work_that_was_never_done_is_found() -> None:
    writer = Writer()
    writer.operation("item", "1.0.0", 1)
    assert found("not_again", "nightly", writer) == ["1.0.0 was acknowledged, and never ran"]


def test_an_answer_that_changes_is_found() -> None:
    writer = Writer()
    writer.operation("ask", "1.0", 17)
    writer.operation("ask", "1.0", 17)
    assert found("stable", "dice", writer) == []
    writer.operation("ask", "1.0", 18)
    assert found("stable", "dice", writer) == ["1.0 was answered 17, then 18"]


@pytest.mark.parametrize("name", sorted(CHECKERS))
def test_every_checker_says_what_it_claims(name: str) -> None:
    checker = CHECKERS[name]
    assert checker.name == name
    assert checker.claim
    judge: Callable[[Evidence], list[str]] = checker().check
    assert callable(judge)
