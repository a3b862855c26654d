"""The checkers of the chaos suite read both stores alike, and find a defect in the tables."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import psycopg
import pytest

from regrow.chaos.checkers.checker import Evidence
from regrow.chaos.checkers.log import (
    DatabaseAtRest,
    DifferencesTold,
    actor_order,
    fencing,
    lineage,
    one_result,
)
from regrow.chaos.checkers.logbook import Logbook, from_postgres, from_store
from regrow.chaos.history import History
from regrow.chaos.scenario import Scenario
from regrow.chaos.workloads import WORKLOADS
from regrow.gcs import operations as ops
from regrow.gcs.operations import Batch
from regrow.ids import object_id
from regrow.messages import ACTOR_CREATION
from tests.store.worlds import FUNCTION, Cluster, PostgresWorld, World, large, small

JUDGES = (one_result, fencing, actor_order, lineage)


def rows_of(url: str) -> Callable[..., list[tuple[Any, ...]]]:
    def rows(query: str, *arguments: Any) -> list[tuple[Any, ...]]:
        with psycopg.connect(url, autocommit=True) as connection:
            return connection.execute(query.encode(), arguments or None).fetchall()

    return rows


def logbook(world: World) -> Logbook:
    if isinstance(world, PostgresWorld):
        return from_postgres(rows_of(world.url))
    return from_store(world.store)


def some_work(cluster: Cluster) -> bytes:
    """Two tasks, the second of which needs the first, and an actor's creation; the first's id."""
    first = cluster.task(outcome=small())
    needs = [object_id(first.header.task_id, 0)]
    second = cluster.task(deps=needs, nested=needs, outcome=large(), num_returns=1)
    actor = cluster.new_id()
    creation = cluster.task(task_id=actor, kind=ACTOR_CREATION, actor_id=actor, outcome=small())
    cluster.log(cluster.nodes[0], Batch(functions=[FUNCTION], submitted=[first, second, creation]))
    return first.header.task_id


def test_both_stores_give_the_same_rows(cluster: Cluster) -> None:
    first = some_work(cluster)
    log = logbook(cluster.world)
    assert [judge(log) for judge in JUDGES] == [[], [], [], []]
    by_kind = sorted((t.kind, t.state, t.inline, len(t.deps), len(t.nested)) for t in log.tasks)
    assert by_kind == [
        ("actor_creation", "FINISHED", True, 0, 0),
        ("task", "FINISHED", False, 1, 1),
        ("task", "FINISHED", True, 0, 0),
    ]
    assert first in {task.task_id for task in log.tasks}
    assert {(node.node, node.incarnation, node.alive) for node in log.nodes} == {
        (1, 1, True),
        (2, 1, True),
    }
    assert log.drivers == {cluster.driver}


def test_a_fenced_node_and_an_unfinished_task_are_seen_in_both(cluster: Cluster) -> None:
    cluster.log(cluster.nodes[0], Batch(functions=[FUNCTION], submitted=[cluster.task()]))
    node = cluster.nodes[1]
    cluster.do(ops.Fence(cluster.epoch, *node, "silent", heirs=[cluster.nodes[0]]))
    log = logbook(cluster.world)
    assert [one.alive for one in log.nodes if (one.node, one.incarnation) == node] == [False]
    [finding] = one_result(log)
    assert "is unfinished" in finding


@pytest.mark.parametrize(
    ("defect", "words"),
    [
        ("DELETE FROM regrow.task_log WHERE deps IS NULL AND kind = 0", "does not have what made"),
        ("DELETE FROM regrow.functions", "what task"),
        ("UPDATE regrow.task_log SET parent_id = '\\x00'", "who submitted"),
        ("UPDATE regrow.task_log SET status = 0", "is unfinished"),
        ("UPDATE regrow.task_log SET result_digest = NULL", "without a result"),
        (
            "UPDATE regrow.nodes SET alive = false, died_at = registered_at",
            "after its end",
        ),
        ("UPDATE regrow.task_log SET max_retries = 0", "may not be made again"),
    ],
)
def test_one_defect_in_the_tables_is_found(
    postgres_world: PostgresWorld, defect: str, words: str
) -> None:
    cluster = Cluster(postgres_world)
    some_work(cluster)
    postgres_world.sql.execute(defect.encode())
    log = logbook(postgres_world)
    findings = [finding for judge in JUDGES for finding in judge(log)]
    assert any(words in finding for finding in findings), findings


def evidence(url: str) -> Evidence:
    workload = WORKLOADS["dice"].made_from({}, 1, 1)
    return Evidence(Scenario("test", "dice"), workload, History([]), rows_of(url), 0)


def test_a_difference_that_nobody_was_told_of_is_found(postgres_world: PostgresWorld) -> None:
    cluster = Cluster(postgres_world)
    task = some_work(cluster)
    sql = postgres_world.sql
    sql.execute(
        "INSERT INTO regrow.rebuilds (task_id, attempt, node_id, incarnation, started_at, "
        "finished_at, differs) VALUES (%s, 2, 1, 1, now(), now(), true)",
        [task],
    )
    [finding] = DifferencesTold().check(evidence(postgres_world.url))
    assert "no event says so" in finding
    assert logbook(postgres_world).differing == ["square"]
    sql.execute(
        "INSERT INTO regrow.events (at, kind, subject, message) "
        "VALUES (now(), 'replay_difference', %s, 'another')",
        [task],
    )
    assert DifferencesTold().check(evidence(postgres_world.url)) == []


def test_what_is_open_in_the_database_is_found(schema_url: str) -> None:
    assert DatabaseAtRest().check(evidence(schema_url)) == []
    with psycopg.connect(schema_url, autocommit=True) as holder:
        holder.execute("SELECT pg_advisory_lock(7)")
        assert DatabaseAtRest().check(evidence(schema_url)) == ["1 advisory locks are held"]
    with psycopg.connect(schema_url, application_name="regrow-node"):
        assert DatabaseAtRest().check(evidence(schema_url)) == ["1 connections of 0 nodes"]
    with psycopg.connect(schema_url) as idle:
        idle.execute("SELECT 1")
        [finding] = DatabaseAtRest(open_s=0).check(evidence(schema_url))
        assert "has been open" in finding
