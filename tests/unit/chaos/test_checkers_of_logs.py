"""Checkers of the log: a good log passes, and one with any single defect does not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from msgspec.structs import replace

from regrow.chaos.checkers.log import (
    AtRest,
    CleanLogs,
    NothingLeft,
    ReplaysAgree,
    actor_order,
    fencing,
    lineage,
    one_result,
)
from regrow.chaos.checkers.logbook import Logbook, LoggedNode, LoggedObject
from regrow.chaos.checkers.queue import total_queue
from regrow.chaos.history import History
from tests.unit.chaos.histories import (
    ACTOR,
    Writer,
    evidence,
    good_log,
    good_queue,
    object_of,
    task_id,
)

Judge = Callable[[Logbook], list[str]]


def queue(log: Logbook) -> list[str]:
    return total_queue(QUEUE, log)


QUEUE: History = good_queue(good_log()).finished()


@pytest.mark.parametrize("judge", [one_result, fencing, actor_order, lineage, queue])
def test_a_good_log_passes(judge: Judge) -> None:
    assert judge(good_log()) == []


def change(place: int, **fields: Any) -> Callable[[Logbook], None]:
    """Another value in one row."""

    def apply(log: Logbook) -> None:
        for name, value in fields.items():
            setattr(log.tasks[place], name, value)

    return apply


def drop(place: int) -> Callable[[Logbook], None]:
    """One row is lost."""

    def apply(log: Logbook) -> None:
        del log.tasks[place]

    return apply


def double(log: Logbook) -> None:
    log.tasks.append(log.tasks[0])


def two_lives(log: Logbook) -> None:
    log.nodes[0].alive, log.nodes[0].died_s = True, None


def late_death(log: Logbook) -> None:
    log.nodes[0].died_s = 14.5


def no_function(log: Logbook) -> None:
    log.functions.clear()


def two_objects(log: Logbook) -> None:
    log.objects += [LoggedObject(object_of(1)[:-1] + b"\1", task_id(1))] * 2


def dangling_object(log: Logbook) -> None:
    log.objects.append(LoggedObject(b"p" * 16 + b"\x80\0\0\0", task_id(1), refs=[object_of(9)]))


def circle(log: Logbook) -> None:
    log.tasks[0].deps = [object_of(2)]


@pytest.mark.parametrize(
    ("judge", "defect", "words"),
    [
        (one_result, change(0, state="PENDING"), "is unfinished"),
        (one_result, double, "has 2 rows"),
        (one_result, change(0, digest=b""), "without a result"),
        (one_result, change(0, num_returns=2), "1 of 2 results"),
        (one_result, two_objects, "has 2 rows"),
        (fencing, two_lives, "living incarnations"),
        (fencing, late_death, "registered anew before"),
        (fencing, change(0, finished_s=13.6), "after its end"),
        (fencing, change(0, node=7), "never registered"),
        (actor_order, drop(4), "places [2] are missing"),
        (actor_order, change(5, actor_seq=2), "[2] are there twice"),
        (actor_order, change(3, finished_s=13.2), "was committed by node 1 before"),
        # the old incarnation goes on after the new one has begun
        (actor_order, change(4, finished_s=14.5), "was committed by node 2 before"),
        (lineage, drop(0), "does not have what made"),
        (lineage, change(1, nested=[object_of(8)]), "does not have what made"),
        (lineage, change(1, result_refs=[object_of(8)]), "part of the result"),
        (lineage, dangling_object, "part of object"),
        (lineage, change(0, parent_id=task_id(77)), "who submitted"),
        (lineage, no_function, "what task"),
        (lineage, drop(2), "the creation of the actor"),
        (lineage, circle, "depends on itself"),
        (lineage, change(0, max_retries=0, inline=False), "may not be made again"),
        (queue, drop(5), "was acknowledged, and is not in the log"),
        (queue, change(0, state="FAILED"), "the log says that it is FAILED"),
        (queue, change(0, task_id=task_id(78)), "no client submitted it"),
    ],
)
def test_one_defect_is_found(judge: Judge, defect: Callable[[Logbook], None], words: str) -> None:
    log = good_log()
    defect(log)
    assert any(words in finding for finding in judge(log)), judge(log)


def test_what_was_submitted_and_never_logged_is_missed() -> None:
    log = good_log()
    writer = good_queue(log)
    writer.note("submitted", task_id(99).hex())
    assert total_queue(writer.finished(), log) == [
        f"task {task_id(99).hex()} was submitted, and is not in the log"
    ]


def test_what_failed_before_the_job_was_resumed_may_be_gone() -> None:
    log = good_log()
    writer = Writer()
    writer.note("submitted", task_id(99).hex())
    writer.note("driver_started", 2)
    writer.lines += [replace(line, at_s=line.at_s + 10) for line in good_queue(log).lines]
    assert total_queue(writer.finished(), log) == []
    writer.note("acknowledged", task_id(99).hex())
    assert "was acknowledged, and is not in the log" in total_queue(writer.finished(), log)[0]


def test_actors_without_restarts_may_have_gaps() -> None:
    log = good_log()
    log.max_restarts = {ACTOR: 0}
    del log.tasks[4]
    assert actor_order(log) == []


def test_a_large_result_that_may_not_be_made_again_is_allowed_in_storage() -> None:
    log = good_log()
    log.tasks[0].max_retries, log.tasks[0].inline = 0, False
    log.stored = {object_of(1)}
    assert lineage(log) == []


def test_leaks_are_found() -> None:
    resting = evidence("task_tree", Writer(), good_log(), node_stats={1: {"objects": 0}})
    assert AtRest().check(resting) == []
    leaking = evidence("task_tree", Writer(), good_log(), node_stats={1: {"objects": 3}})
    assert AtRest().check(leaking) == ["node 1: 3 objects at rest"]
    log = good_log()
    log.open_rebuilds = 1
    assert AtRest().check(evidence("task_tree", Writer(), log)) == ["1 rebuilds have not ended"]


def test_what_is_left_behind_and_what_logs_complain_of_is_told() -> None:
    clean = evidence("task_tree", Writer())
    assert NothingLeft().check(clean) == []
    assert CleanLogs().check(clean) == []
    dirty = evidence("task_tree", Writer(), left_behind=["process 7"], log_errors=["Traceback"])
    assert NothingLeft().check(dirty) == ["left behind: process 7"]
    assert CleanLogs().check(dirty) == ["Traceback"]


def test_a_replay_that_differs_is_allowed_to_those_who_throw_dice() -> None:
    log = Logbook(differing=["thrown"])
    assert ReplaysAgree().check(evidence("dice", Writer(), log)) == []
    [finding] = ReplaysAgree().check(evidence("task_tree", Writer(), log))
    assert "made something else" in finding


def test_a_dead_incarnation_may_be_followed_by_none() -> None:
    log = good_log()
    log.nodes = [LoggedNode(1, 1), LoggedNode(2, 1)]
    assert fencing(log) == []
