"""Two sessions at once on real Postgres: who comes first is made, and seen in its lock tables.

A third session holds a lock that one of the two needs after it has taken the lock that matters, so
that it stops there; the other is then seen waiting for it (``pg_blocking_pids``). No test relies on
how long anything takes.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any
from urllib.parse import urlsplit

import psycopg
import pytest

from regrow.gcs import embedded
from regrow.gcs import operations as ops
from regrow.gcs.log import LogConnection, LogConnectionLost
from regrow.gcs.operations import APPLIED, BEHIND, CONFLICT, FENCED, Append, Batch
from regrow.gcs.store import PostgresStore
from regrow.messages import OK, PENDING
from tests.store.conftest import database_of
from tests.store.worlds import (
    ANSWER_TIMEOUT_S,
    FUNCTION,
    TTL_S,
    Cluster,
    Node,
    PostgresWorld,
    answers,
    large,
    small,
)


@pytest.fixture
def cluster(postgres_world: PostgresWorld) -> Cluster:
    return Cluster(postgres_world)


@pytest.fixture
def url(postgres_world: PostgresWorld) -> str:
    return postgres_world.url


@pytest.fixture
def blocker(url: str) -> Iterator[psycopg.Connection[Any]]:
    """A session in a transaction, for locks that stop others."""
    connection = psycopg.connect(url)
    yield connection
    connection.close()


@pytest.fixture
def threads() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(4) as pool:
        yield pool


@pytest.fixture
def log(url: str) -> Iterator[Callable[[], LogConnection]]:
    """Makes connections to the log, closed after the test."""
    made: list[LogConnection] = []

    def connect() -> LogConnection:
        made.append(LogConnection.connect(url))
        return made[-1]

    yield connect
    for connection in made:
        connection.close()


def until(cluster: Cluster, sql: str, *parameters: object) -> None:
    """Waits until a query answers with true; its own round trip is the pause."""
    assert isinstance(cluster.world, PostgresWorld)
    deadline = time.monotonic() + ANSWER_TIMEOUT_S
    while True:
        row = cluster.world.sql.execute(sql, parameters).fetchone()
        if row is not None and row[0]:
            return
        assert time.monotonic() < deadline, f"not within {ANSWER_TIMEOUT_S:g} s: {sql}"


def until_blocked_by(cluster: Cluster, waiting: int, holding: int) -> None:
    """Waits until one backend is seen to wait for a lock of another."""
    until(cluster, "SELECT %s = ANY (pg_blocking_pids(%s))", holding, waiting)


def until_blocks_another(cluster: Cluster, holding: int, session: str) -> int:
    """Waits until a backend of a session waits for a lock of this one; its pid."""
    assert isinstance(cluster.world, PostgresWorld)
    found = (
        "SELECT pid FROM pg_stat_activity WHERE application_name = %s"
        " AND %s = ANY (pg_blocking_pids(pid))"
    )
    until(cluster, f"SELECT EXISTS ({found})", session, holding)
    row = cluster.world.sql.execute(found, (session, holding)).fetchone()
    assert row is not None
    pid: int = row[0]
    return pid


def send(log: LogConnection, node: Node, number: int, batch: Batch) -> None:
    """All of it goes out at once."""
    log.send(Append(*node, number, batch))
    assert not log.flush()


def store_of(cluster: Cluster) -> PostgresStore:
    assert isinstance(cluster.world, PostgresWorld)
    return cluster.world.store


def execute(store: PostgresStore, op: ops.Operation) -> Any:
    return store.execute(op)


def pid_of(connection: psycopg.Connection[Any]) -> int:
    return connection.info.backend_pid


# --- a zombie's batch and its fencing -------------------------------------------------------------


def test_a_zombies_batch_that_waits_for_its_fencing_is_refused(
    cluster: Cluster,
    blocker: psycopg.Connection[Any],
    threads: ThreadPoolExecutor,
    log: Callable[[], LogConnection],
) -> None:
    one, zombie = cluster.nodes
    held = cluster.task(zombie)
    cluster.log(zombie, Batch(submitted=[held]))
    # The fencing takes the node's row and stops at the task that it reassigns.
    blocker.execute(
        "SELECT FROM regrow.task_log WHERE task_id = %s FOR UPDATE", (held.header.task_id,)
    )
    fence = ops.Fence(cluster.epoch, *zombie, "why", [one])
    fencing = threads.submit(execute, store_of(cluster), fence)
    fencing_pid = until_blocks_another(cluster, pid_of(blocker), store_of(cluster).session)
    late = cluster.task(zombie, outcome=small())
    its_log = log()
    outcome = small(task_id=held.header.task_id)
    send(its_log, zombie, 2, Batch(submitted=[late], outcomes=[outcome]))
    until_blocked_by(cluster, its_log.backend_pid, fencing_pid)
    blocker.rollback()
    assert [answer.verdict for answer in answers(its_log, 1)] == [FENCED]
    fenced = fencing.result(ANSWER_TIMEOUT_S)
    assert fenced.landed
    assert len(fenced.reassigned[one[0]]) == 1
    states = cluster.do(ops.ReadTasks([held.header.task_id, late.header.task_id])).tasks
    assert [(s.known, s.status, s.holder) for s in states] == [
        (True, PENDING, one[0]), (False, PENDING, 0),
    ]  # fmt: skip


def test_a_batch_that_came_before_the_fencing_is_in_and_reassigned(
    cluster: Cluster,
    blocker: psycopg.Connection[Any],
    threads: ThreadPoolExecutor,
    log: Callable[[], LogConnection],
) -> None:
    one, dying = cluster.nodes
    task = cluster.task(dying)
    # The append takes the node's row and stops at a row with the same key.
    lock_out(blocker, cluster, task.header.task_id)
    its_log = log()
    send(its_log, dying, 1, Batch(functions=[FUNCTION], submitted=[task]))
    until_blocked_by(cluster, its_log.backend_pid, pid_of(blocker))
    fence = ops.Fence(cluster.epoch, *dying, "why", [one])
    fencing = threads.submit(execute, store_of(cluster), fence)
    until_blocks_another(cluster, its_log.backend_pid, store_of(cluster).session)
    blocker.rollback()
    assert [answer.verdict for answer in answers(its_log, 1)] == [APPLIED]
    fenced = fencing.result(ANSWER_TIMEOUT_S)
    assert [bytes(held.spec) for held in fenced.reassigned[one[0]]] == [task.spec]


def lock_out(blocker: psycopg.Connection[Any], cluster: Cluster, task_id: bytes) -> None:
    """Whoever inserts this task waits for the end of the blocker's transaction."""
    blocker.execute(
        "INSERT INTO regrow.task_log (submitted_at, part, job, submitter, holder,"
        " holder_incarnation, attempt, max_retries, num_returns, status, kind, task_id,"
        " parent_id, function_id, name, spec)"
        " SELECT now(), part, job, 1, 1, 1, 1, 0, 1, 0, 0, %s, '', '', '', ''"
        " FROM regrow.jobs WHERE job = %s",
        (task_id, cluster.job),
    )


# --- the same batch twice, and lost answers -------------------------------------------------------


def test_a_batch_on_two_connections_at_once_is_written_once(
    cluster: Cluster, blocker: psycopg.Connection[Any], log: Callable[[], LogConnection]
) -> None:
    node = cluster.nodes[0]
    task = cluster.task(outcome=small())
    batch = Batch(submitted=[task], events=[ops.Event("kind", b"", "once")])
    lock_out(blocker, cluster, task.header.task_id)
    first, second = log(), log()
    send(first, node, 1, batch)
    until_blocked_by(cluster, first.backend_pid, pid_of(blocker))
    send(second, node, 1, batch)
    until_blocked_by(cluster, second.backend_pid, first.backend_pid)
    blocker.rollback()
    assert [a.verdict for a in answers(first, 1) + answers(second, 1)] == [APPLIED, APPLIED]
    tables = cluster.world.tables()
    assert len(tables["events"]) == len(tables["tasks"]) == 1


def test_after_a_lost_answer_everything_unanswered_is_sent_again(
    cluster: Cluster, log: Callable[[], LogConnection]
) -> None:
    node = cluster.nodes[0]
    batches = [Batch(events=[ops.Event("kind", b"", str(n))]) for n in (1, 2, 3)]
    lost = log()
    for number in (1, 2):
        send(lost, node, number, batches[number - 1])
    until(cluster, "SELECT last_batch = 2 FROM regrow.nodes WHERE node_id = %s", node[0])
    lost.close()
    again = log()
    for number in (1, 2, 3):
        send(again, node, number, batches[number - 1])
    assert [answer.verdict for answer in answers(again, 3)] == [APPLIED] * 3
    assert [message for _, _, message in cluster.world.tables()["events"]] == ["1", "2", "3"]


def test_a_batch_cut_off_in_the_middle_is_sent_again_and_written_once(
    cluster: Cluster, blocker: psycopg.Connection[Any], log: Callable[[], LogConnection]
) -> None:
    node = cluster.nodes[0]
    task = cluster.task()
    batch = Batch(submitted=[task], events=[ops.Event("kind", b"", "once")])
    lock_out(blocker, cluster, task.header.task_id)
    cut = log()
    send(cut, node, 1, batch)
    until_blocked_by(cluster, cut.backend_pid, pid_of(blocker))
    blocker.execute("SELECT pg_terminate_backend(%s)", (cut.backend_pid,))
    with pytest.raises(LogConnectionLost):
        answers(cut, 1)
    blocker.rollback()
    again = log()
    send(again, node, 1, batch)
    assert [answer.verdict for answer in answers(again, 1)] == [APPLIED]
    tables = cluster.world.tables()
    assert len(tables["events"]) == len(tables["tasks"]) == 1


# --- results --------------------------------------------------------------------------------------


def test_of_two_results_at_once_one_is_in_and_the_others_batch_is_not(
    cluster: Cluster, blocker: psycopg.Connection[Any], log: Callable[[], LogConnection]
) -> None:
    one, two = cluster.nodes
    stop, task_id = cluster.task(one), cluster.new_id()
    first, second = log(), log()
    # The first inserts its result and stops at the next row; the second waits for the first.
    lock_out(blocker, cluster, stop.header.task_id)
    ours = cluster.task(one, task_id=task_id, outcome=large(b"1" * 16))
    theirs = cluster.task(two, task_id=task_id, outcome=large(b"2" * 16))
    send(first, one, 1, Batch(submitted=[ours, stop]))
    until_blocked_by(cluster, first.backend_pid, pid_of(blocker))
    extra = cluster.task(two)
    send(second, two, 1, Batch(submitted=[extra, theirs]))
    until_blocked_by(cluster, second.backend_pid, first.backend_pid)
    blocker.rollback()
    assert [answer.verdict for answer in answers(first, 1)] == [APPLIED]
    assert [answer.verdict for answer in answers(second, 1)] == [CONFLICT]
    states = cluster.do(ops.ReadTasks([task_id, extra.header.task_id])).tasks
    assert (states[0].status, states[0].values[0].digest) == (OK, b"1" * 16)
    assert not states[1].known


def test_a_job_that_ends_while_its_specs_arrive_leaves_none_unfinished(
    cluster: Cluster,
    blocker: psycopg.Connection[Any],
    threads: ThreadPoolExecutor,
    log: Callable[[], LogConnection],
) -> None:
    node = cluster.nodes[0]
    task = cluster.task()
    lock_out(blocker, cluster, task.header.task_id)
    its_log = log()
    send(its_log, node, 1, Batch(submitted=[task]))
    until_blocked_by(cluster, its_log.backend_pid, pid_of(blocker))
    end = ops.EndJob(cluster.epoch, cluster.job, "finished")
    ending = threads.submit(execute, store_of(cluster), end)
    until_blocks_another(cluster, its_log.backend_pid, store_of(cluster).session)
    blocker.rollback()
    assert [answer.verdict for answer in answers(its_log, 1)] == [APPLIED]
    assert ending.result(ANSWER_TIMEOUT_S) == ops.Done()
    assert cluster.world.tables()["unfinished"] == []


# --- leadership -----------------------------------------------------------------------------------


@pytest.fixture
def contenders(url: str) -> Iterator[list[PostgresStore]]:
    """Stores of two control stores, as in two processes."""
    stores = [PostgresStore(url, connections=2, session=f"contender-{n}") for n in (1, 2)]
    yield stores
    for store in stores:
        store.close()


def test_of_two_contenders_one_leads(
    postgres_world: PostgresWorld,
    contenders: list[PostgresStore],
    blocker: psycopg.Connection[Any],
    threads: ThreadPoolExecutor,
) -> None:
    blocker.execute("SELECT FROM regrow.cluster FOR UPDATE")
    racing: list[Future[Any]] = [
        threads.submit(execute, store, ops.Lead(store.session, 0, TTL_S)) for store in contenders
    ]
    waiting = (
        "SELECT count(*) = 2 FROM pg_stat_activity WHERE application_name LIKE 'contender-%%'"
        " AND cardinality(pg_blocking_pids(pid)) > 0"
    )
    deadline = time.monotonic() + ANSWER_TIMEOUT_S
    while postgres_world.sql.execute(waiting).fetchone() != (True,):
        assert time.monotonic() < deadline, "both contenders wait for the row"
    blocker.rollback()
    epochs = sorted(future.result(ANSWER_TIMEOUT_S).epoch for future in racing)
    assert epochs == [0, 1]


def test_a_successor_ends_its_predecessors_unfinished_write(
    postgres_world: PostgresWorld,
    contenders: list[PostgresStore],
    blocker: psycopg.Connection[Any],
    threads: ThreadPoolExecutor,
) -> None:
    cluster = Cluster(postgres_world)
    postgres_world.advance(2 * TTL_S)
    old, new = contenders
    epoch = execute(old, ops.Lead("old", 0, TTL_S)).epoch
    zombie = cluster.nodes[1]
    held = cluster.task(zombie)
    cluster.log(zombie, Batch(submitted=[held]))
    blocker.execute("SELECT FROM regrow.task_log FOR UPDATE")
    writing = threads.submit(execute, old, ops.Fence(epoch, *zombie, "why", [cluster.nodes[0]]))
    until_blocks_another(cluster, pid_of(blocker), old.session)
    postgres_world.advance(2 * TTL_S)
    # The old leader's transaction holds the leadership row, and is not waited for.
    taken = execute(new, ops.Lead("new", 0, TTL_S))
    assert taken.epoch == epoch + 1
    blocker.rollback()
    assert writing.result(ANSWER_TIMEOUT_S) == ops.NotLeader()
    assert cluster.append(zombie).verdict == APPLIED


def test_a_takeover_waits_for_a_write_that_has_begun(
    postgres_world: PostgresWorld,
    url: str,
    blocker: psycopg.Connection[Any],
    threads: ThreadPoolExecutor,
) -> None:
    cluster = Cluster(postgres_world)
    dying = cluster.nodes[1]
    cluster.log(dying, Batch(submitted=[cluster.task(dying)]))
    blocker.execute("SELECT FROM regrow.task_log FOR UPDATE")
    old = store_of(cluster)
    fence = ops.Fence(cluster.epoch, *dying, "why", [cluster.nodes[0]])
    writing = threads.submit(execute, old, fence)
    writing_pid = until_blocks_another(cluster, pid_of(blocker), old.session)
    postgres_world.advance(2 * TTL_S)
    # Of the same session: it does not end the other's connections.
    new = PostgresStore(url, connections=1, session=old.session)
    taking = threads.submit(execute, new, ops.Lead("new", 0, TTL_S))
    until_blocks_another(cluster, writing_pid, new.session)
    blocker.rollback()
    assert writing.result(ANSWER_TIMEOUT_S).landed
    assert taking.result(ANSWER_TIMEOUT_S).epoch == cluster.epoch + 1
    new.close()


def test_a_fencing_whose_answer_was_lost_answers_the_same_again(
    cluster: Cluster, threads: ThreadPoolExecutor
) -> None:
    assert isinstance(cluster.world, PostgresWorld)
    one, two = cluster.nodes
    tasks = [cluster.task(two) for _ in range(3)]
    cluster.log(two, Batch(submitted=tasks))
    # The connection breaks right after the commit.
    world = cluster.world
    cut = CutAfterCommit(world.url)
    fenced = cut.execute(ops.Fence(cluster.epoch, *two, "why", [one]))
    cut.close()
    assert cut.cuts == 1
    assert isinstance(fenced, ops.NodeFenced)
    assert fenced.landed
    assert [len(given) for given in fenced.reassigned.values()] == [3]


class CutAfterCommit(PostgresStore):
    """Loses the connection once, after a write has been committed."""

    cuts = 0

    def _write(self, op: Any, handler: Any) -> ops.Result:
        answer = super()._write(op, handler)
        if not self.cuts:
            self.cuts += 1
            raise psycopg.OperationalError("the connection was cut")
        return answer


# --- a database restored from the past ------------------------------------------------------------


def test_a_database_restored_from_an_older_backup_is_noticed(
    postgres_server: embedded.EmbeddedServer, schema_url: str
) -> None:
    name = urlsplit(schema_url).path.strip("/")
    world = PostgresWorld(schema_url)
    cluster = Cluster(world)
    old, task = cluster.nodes[0], cluster.task()
    cluster.log(old, Batch(submitted=[task]))
    world.close()
    with psycopg.connect(postgres_server.url, autocommit=True) as server:
        server.execute(f"CREATE DATABASE {name}_backup TEMPLATE {name}")
    try:
        world = cluster.world = PostgresWorld(schema_url)
        cluster.log(old, Batch(outcomes=[small(task_id=task.header.task_id)]))
        young = cluster.register()
        cluster.log(young, Batch())
        world.close()
        restored = PostgresWorld(database_of(schema_url, f"{name}_backup"))
        before = restored.tables()
        for node in (old, young):
            append = Append(*node, cluster.batches(node) + 1, Batch(submitted=[cluster.task()]))
            assert restored.append(append).verdict == BEHIND
        assert restored.tables() == before
        restored.close()
    finally:
        with psycopg.connect(postgres_server.url, autocommit=True) as server:
            server.execute(f"DROP DATABASE {name}_backup WITH (FORCE)")


# --- what always holds ----------------------------------------------------------------------------


def test_the_index_of_unfinished_tasks_is_never_entered_by_finished_ones(
    cluster: Cluster,
) -> None:
    assert isinstance(cluster.world, PostgresWorld)
    sizes = (
        "SELECT sum(pg_relation_size(i.inhrelid)) FROM pg_inherits i"
        " WHERE i.inhparent = 'regrow.task_log_unfinished'::regclass"
    )
    cluster.world.sql.execute("REINDEX TABLE regrow.task_log")
    before = cluster.world.sql.execute(sizes).fetchone()
    tasks = [cluster.task(outcome=small()) for _ in range(2000)]
    cluster.log(cluster.nodes[0], Batch(submitted=tasks))
    assert cluster.world.sql.execute(sizes).fetchone() == before
    cluster.log(cluster.nodes[0], Batch(submitted=[cluster.task() for _ in range(2000)]))
    after = cluster.world.sql.execute(sizes).fetchone()
    assert after is not None
    assert before is not None
    assert after[0] > before[0]


def test_two_nodes_that_log_the_same_tasks_in_opposite_order_both_get_through(
    cluster: Cluster, threads: ThreadPoolExecutor, log: Callable[[], LogConnection]
) -> None:
    one, two = cluster.nodes
    tasks = [cluster.task(one) for _ in range(500)]

    def append(node: Node, batch: Batch) -> str:
        """As a node does: after a deadlock, once more on a new connection."""
        for _ in range(5):
            connection = log()
            try:
                send(connection, node, 1, batch)
                return answers(connection, 1)[0].verdict
            except LogConnectionLost:
                continue
        return "five deadlocks in a row"

    racing = [
        threads.submit(append, one, Batch(submitted=tasks)),
        threads.submit(append, two, Batch(submitted=tasks[::-1])),
    ]
    assert [future.result() for future in racing] == [APPLIED, APPLIED]
    assert len(cluster.world.tables()["tasks"]) == 500


def test_an_append_does_not_open_partitions_of_jobs_that_have_ended(
    cluster: Cluster, blocker: psycopg.Connection[Any], log: Callable[[], LogConnection]
) -> None:
    assert isinstance(cluster.world, PostgresWorld)
    world, node = cluster.world, cluster.nodes[0]
    for part in range(20_000_101, 20_000_121):
        world.sql.execute("SELECT regrow.ensure_partition(%s)", (part,))
    first, second, task = (cluster.task(num_returns=2) for _ in range(3))
    cluster.log(node, Batch(submitted=[first, second]))
    second_id = second.header.task_id
    blocker.execute("SELECT FROM regrow.task_log WHERE task_id = %s FOR UPDATE", (second_id,))
    its_log = log()
    ended = [small(task_id=first.header.task_id), small(task_id=second_id)]
    moved = ops.NewHolder(first.header.task_id, 2, node)
    send(its_log, node, 2, Batch(submitted=[task], outcomes=ended, holders=[moved]))
    until_blocked_by(cluster, its_log.backend_pid, pid_of(blocker))
    opened = world.sql.execute(
        "SELECT count(DISTINCT relation) FROM pg_locks l JOIN pg_class c ON c.oid = l.relation"
        " WHERE l.pid = %s AND c.relname LIKE 'task\\_log\\_2%%' AND c.relkind = 'r'",
        (its_log.backend_pid,),
    ).fetchone()
    blocker.rollback()
    assert [answer.verdict for answer in answers(its_log, 1)] == [APPLIED]
    for part in range(20_000_101, 20_000_121):
        world.sql.execute(f"DROP TABLE regrow.task_log_{part}, regrow.object_log_{part}")
    assert opened == (1,)
