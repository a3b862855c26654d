"""The figures of a run are those that its history has."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from regrow.chaos import figures
from regrow.chaos.checkers.checker import Evidence
from regrow.chaos.history import Follower, History, Kind, Line, Recorder
from regrow.chaos.result import Phase, RunResult, Struck
from regrow.chaos.scenario import Scenario
from regrow.chaos.workloads import WORKLOADS


def line(at_s: float, kind: Kind, number: int = 0, name: str = "", value: object = None) -> Line:
    return Line(at_s, kind, "client1" if number else "", number, name, value)


#: One operation is hit by the fault, one ends before it, one fails after, one has no answer.
HISTORY = History(
    [
        line(100.0, Kind.NOTE, name="driver_started", value=1),
        line(100.5, Kind.NOTE, name="phase", value="safety"),
        line(101.0, Kind.INVOKE, 1, "add"),
        line(101.2, Kind.OK, 1, "add", 1),
        line(102.0, Kind.INVOKE, 2, "add"),
        line(102.1, Kind.FAULT, name="node_crash", value="node 3"),
        line(103.6, Kind.OK, 2, "add", 2),
        line(103.7, Kind.HEAL, name="node_crash", value="node 3"),
        line(104.0, Kind.INVOKE, 3, "add"),
        line(104.5, Kind.FAIL, 3, "add"),
        line(105.0, Kind.NOTE, name="phase", value="liveness"),
        line(105.1, Kind.INVOKE, 4, "add"),
        line(110.0, Kind.NOTE, name="driver_done", value=1),
    ]
)


def test_a_history_gives_counts_faults_phases_and_throughput() -> None:
    result = RunResult(Scenario("t", "counter"), 0, "")
    figures.collect_history(result, HISTORY)
    assert (result.acknowledged, result.failed, result.unknown) == (2, 1, 1)
    assert result.fired == {"node_crash": 1}
    [struck] = result.faults
    assert struck.at_s == pytest.approx(2.1)
    assert struck.healed_s == pytest.approx(3.7)
    assert struck.recovery_s == pytest.approx(1.5)
    assert result.recoveries_s == pytest.approx([1.5])
    assert result.phases == [Phase("safety", 0.5), Phase("liveness", 5.0)]
    assert result.span_s == 10.0
    assert result.slice_s == 0.25
    assert sum(ok for ok, _ in result.slices) == 2
    assert [place for place, (ok, _) in enumerate(result.slices) if ok] == [4, 14]
    assert sum(failed for _, failed in result.slices) == 1


def test_an_empty_history_gives_no_figures() -> None:
    result = RunResult(Scenario("t", "counter"), 0, "")
    figures.collect_history(result, History([]))
    assert (result.acknowledged, result.faults, sum(map(sum, result.slices))) == (0, [], 0)


@pytest.mark.parametrize(
    ("target", "deaths", "noticed_s"),
    [
        ("node 3", [(3, 12.5)], 2.5),
        ("node 3", [(3, 4.0), (3, 11.0), (3, 20.0)], 1.0),
        ("node 1, 2", [(1, 11.0), (2, 13.0)], 3.0),
        ("node 1, 2", [(1, 11.0)], None),
        ("node 3", [(2, 11.0)], None),
        ("worker 9 of node 3", [(3, 11.0)], None),
        ("control store 77", [(3, 11.0)], None),
    ],
)
def test_a_death_is_noticed_when_the_log_says_so(
    target: str, deaths: list[tuple[int, float]], noticed_s: float | None
) -> None:
    assert figures.detection(Struck("node_crash", target, 10.0), deaths) == noticed_s


def test_what_is_still_being_written_is_counted_once(tmp_path: Path) -> None:
    path = tmp_path / "history.jsonl"
    with Recorder(path) as recorder, Follower(path) as follower:
        assert follower.acknowledged() == 0
        for number in range(3):
            with recorder.operation("client1", "add", number) as pending:
                pending.ok(number)
        assert follower.acknowledged() == 3
        with path.open("ab") as file:
            file.write(b'{"at_s": 1.0, "kind": "ok", "process": "c", ')
            file.flush()
            assert follower.acknowledged() == 3
            file.write(b'"number": 9, "name": "add"}\n')
            file.flush()
        assert follower.acknowledged() == 4


def test_of_a_users_program_the_tasks_are_counted_that_the_log_has() -> None:
    offset_s = time.time() - time.monotonic()
    answers: dict[str, list[tuple[object, ...]]] = {
        "SELECT extract": [(offset_s + 101.1, False), (offset_s + 103.3, True), (1.0, False)],
        "SELECT node_id": [],
        "SELECT (SELECT count(*) FROM regrow.tasks WHERE state IN": [(2, 0, 0)],
        "SELECT (SELECT count(*) FROM regrow.tasks WHERE state =": [(0, 0)],
    }

    def rows(query: str, *arguments: object) -> list[tuple[object, ...]]:
        return next((rows for begin, rows in answers.items() if query.startswith(begin)), [])

    workload = WORKLOADS["program"].made_from({"command": ["python"]}, 0, 1)
    result = RunResult(Scenario("t", "program"), 0, "")
    figures.collect(result, Evidence(result.scenario, workload, HISTORY, rows, 0))
    assert result.counted == "tasks and calls"
    assert [place for place, (ok, _) in enumerate(result.slices) if ok] == [4]
    assert [place for place, (_, failed) in enumerate(result.slices) if failed] == [13]
