"""The log's append on Postgres: its parameters, its connection, its role."""

from __future__ import annotations

import select
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from regrow.gcs import embedded, schema
from regrow.gcs import operations as ops
from regrow.gcs.log import LogConnection, LogConnectionLost
from regrow.gcs.log_records import PARAMETERS, encode_append
from regrow.gcs.operations import APPLIED, CONFLICT, Append, Batch, Outcome
from regrow.ids import object_id
from regrow.messages import OK, TASK, TASK_ERROR, Return
from tests.store.conftest import database_of
from tests.store.worlds import FUNCTION, Cluster, PostgresWorld, answers, small


@pytest.fixture
def cluster(postgres_world: PostgresWorld) -> Cluster:
    return Cluster(postgres_world)


@pytest.fixture
def log(postgres_world: PostgresWorld) -> Iterator[LogConnection]:
    connection = LogConnection.connect(postgres_world.url)
    yield connection
    connection.close()


def test_the_parameters_are_those_of_the_sql_function(postgres_world: PostgresWorld) -> None:
    found = postgres_world.sql.execute(
        "SELECT proargnames, array(SELECT t::regtype::text FROM unnest(proargtypes) t)"
        " FROM pg_proc WHERE oid = 'regrow.append'::regproc"
    ).fetchone()
    assert found is not None
    spelled = {"int": "integer", "int[]": "integer[]"}
    assert list(zip(*found, strict=True)) == [
        (name, spelled.get(kind, kind)) for name, kind in PARAMETERS
    ]


# --- what is sent is what is there ----------------------------------------------------------------

_blob = st.binary(max_size=40) | st.binary(min_size=1000, max_size=1100)
_ids = st.lists(st.integers(0, 5).map(lambda n: object_id(bytes([n]) * 16, n)), max_size=3)
_records = st.fixed_dictionaries(
    {
        "parent": st.sampled_from([b"p" * 16, b"q" * 16]),
        "deps": _ids,
        "nested": _ids,
        "name": st.sampled_from(["square", "größe", "nul\0"]),
        "resources": st.sampled_from([None, {}, {"CPU": 5, "GPU": 10_000}]),
        "max_retries": st.integers(-1, 3),
        "spec": _blob,
        "result": st.none() | st.tuples(st.none() | _blob, st.sampled_from([b"", b"d" * 16]), _ids),
        "status": st.sampled_from([OK, TASK_ERROR]),
        "attempt": st.integers(1, 3),
        "actor_seq": st.integers(0, 2),
        "error": st.sampled_from(["", "ValueError"]),
        "duration_us": st.integers(0, 2**40),
    }
)


@settings(
    max_examples=60,
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(records=st.lists(_records, min_size=1, max_size=6))
def test_every_column_is_written_as_it_was_given(
    cluster: Cluster, records: list[dict[str, Any]]
) -> None:
    submitted, expected = [], []
    for record in records:
        task_id = cluster.new_id()
        outcome, result = None, record["result"]
        if result is not None:
            data, digest, refs = result
            made = Return(len(data) if data is not None else 2**33, digest, data, refs)
            outcome = Outcome(
                task_id, record["attempt"], record["status"], [made], record["duration_us"],
                record["actor_seq"], record["error"],
            )  # fmt: skip
        task = cluster.task(
            task_id=task_id, parent=record["parent"], deps=record["deps"],
            nested=record["nested"], max_retries=record["max_retries"],
            resources=record["resources"], attempt=record["attempt"], outcome=outcome,
        )  # fmt: skip
        header = replace(task.header, name=record["name"])
        submitted.append(replace(task, header=header, spec=record["spec"]))
        ended = (None,) * 8
        if outcome is not None and result is not None:
            data, digest, refs = result
            ended = (
                record["error"] or None, record["actor_seq"] or None, data,
                len(data) if data is not None else 2**33, digest or None,
                b"".join(refs) or None, record["duration_us"], True,
            )  # type: ignore[assignment]  # fmt: skip
        expected.append(
            (
                task_id,
                record["parent"],
                record["name"].replace("\0", "\ufffd"),
                TASK,
                b"".join(record["deps"]) or None,
                b"".join(record["nested"]) or None,
                record["resources"],
                record["max_retries"],
                record["spec"],
                record["attempt"],
                *ended,
            )
        )
    cluster.log(cluster.nodes[0], Batch(submitted=submitted))
    assert isinstance(cluster.world, PostgresWorld)
    rows = cluster.world.sql.execute(
        "SELECT task_id, parent_id, name, 0, deps, nested, resources, max_retries, spec, attempt,"
        " error, actor_seq, result, result_size, result_digest, result_refs, duration_us,"
        " CASE WHEN finished_at IS NOT NULL THEN true END"
        " FROM regrow.tasks WHERE task_id = ANY (%s) ORDER BY task_id",
        ([task.header.task_id for task in submitted],),
    ).fetchall()
    assert rows == expected


# --- the connection -------------------------------------------------------------------------------


def test_batches_are_pipelined_and_answered_in_order(cluster: Cluster, log: LogConnection) -> None:
    node = cluster.nodes[0]
    for number in (1, 2, 3):
        log.send(Append(*node, number, Batch(submitted=[cluster.task(outcome=small())])))
    log.flush()
    numbers: list[int] = []
    while len(numbers) < 3:
        assert select.select([log], [], [], 10)[0]
        for number, answer in log.receive():
            assert answer.verdict == APPLIED
            numbers.append(number)
    assert numbers == [1, 2, 3]


def test_after_a_conflict_the_batches_behind_it_are_conflicts_too(
    cluster: Cluster, log: LogConnection
) -> None:
    node = cluster.nodes[0]
    log.send(Append(*node, 1, Batch(outcomes=[small(task_id=b"u" * 16)])))
    log.send(Append(*node, 2, Batch(submitted=[cluster.task()])))
    first, second = answers(log, 2)
    assert (first.verdict, second.verdict) == (CONFLICT, CONFLICT)
    assert (b"u" * 16).hex() in first.detail
    assert cluster.world.tables()["tasks"] == []


def test_a_batch_larger_than_the_sockets_buffer_goes_out_bit_by_bit(
    cluster: Cluster, log: LogConnection
) -> None:
    node = cluster.nodes[0]
    spec = b"s" * 60_000
    tasks = [replace(cluster.task(), spec=spec) for _ in range(300)]
    log.send(Append(*node, 1, Batch(submitted=tasks)))
    assert log.flush(), "18 MB do not fit into the socket"
    assert [answer.verdict for answer in answers(log, 1)] == [APPLIED]
    assert isinstance(cluster.world, PostgresWorld)
    total = cluster.world.sql.execute("SELECT sum(octet_length(spec)) FROM regrow.tasks")
    assert total.fetchone() == (300 * 60_000,)


def test_a_connection_that_breaks_is_said_to_be_lost(
    postgres_world: PostgresWorld, log: LogConnection
) -> None:
    postgres_world.sql.execute("SELECT pg_terminate_backend(%s)", (log.backend_pid,))
    with pytest.raises(LogConnectionLost):
        answers(log, 1)


def test_an_error_that_is_no_answer_loses_the_connection(
    cluster: Cluster, log: LogConnection
) -> None:
    assert isinstance(cluster.world, PostgresWorld)
    cluster.world.sql.execute(
        "CREATE OR REPLACE FUNCTION regrow.now() RETURNS timestamptz LANGUAGE plpgsql VOLATILE AS"
        " 'BEGIN RAISE EXCEPTION ''the disk is full'' USING ERRCODE = ''53100''; END'"
    )
    log.send(Append(*cluster.nodes[0], 1, Batch()))
    with pytest.raises(LogConnectionLost, match="the disk is full"):
        answers(log, 1)


def test_a_server_that_is_not_there_is_a_lost_connection_in_one_sentence() -> None:
    with pytest.raises(LogConnectionLost) as caught:
        LogConnection.connect("postgresql://me:secret@/regrow?host=/nonexistent", 5)
    assert "nothing answers" in str(caught.value)
    assert "secret" not in str(caught.value)


def test_the_nodes_side_does_without_sqlalchemy() -> None:
    program = "import sys, regrow.gcs.log; sys.exit('sqlalchemy' in sys.modules)"
    subprocess.run([sys.executable, "-c", program], check=True)


# --- the session and its role ---------------------------------------------------------------------


@pytest.fixture
def seen(postgres_world: PostgresWorld) -> Callable[[], dict[str, str]]:
    """The settings that were in force in the last append."""
    sql = postgres_world.sql
    sql.execute("CREATE TABLE IF NOT EXISTS public.seen (name text, value text)")
    sql.execute("TRUNCATE public.seen")
    sql.execute(
        "CREATE OR REPLACE FUNCTION regrow.now() RETURNS timestamptz LANGUAGE plpgsql VOLATILE AS"
        " 'BEGIN INSERT INTO public.seen SELECT name, setting FROM pg_settings;"
        " RETURN clock_timestamp(); END'"
    )

    def read() -> dict[str, str]:
        return dict(sql.execute("SELECT name, value FROM public.seen").fetchall())

    return read


def test_a_commit_is_one_also_where_the_servers_default_is_otherwise(
    cluster: Cluster, seen: Callable[[], dict[str, str]]
) -> None:
    assert isinstance(cluster.world, PostgresWorld)
    sql = cluster.world.sql
    name = sql.info.dbname
    lax = {"synchronous_commit": "off", "default_transaction_isolation": "'repeatable read'"}
    for setting, value in lax.items():
        sql.execute(f"ALTER DATABASE {name} SET {setting} = {value}")
    try:
        cluster.log(cluster.nodes[0], Batch())
    finally:
        for setting in lax:
            sql.execute(f"ALTER DATABASE {name} RESET {setting}")
    settings = seen()
    assert settings["synchronous_commit"] == "on"
    assert settings["transaction_isolation"] == "read committed"


def test_the_logs_role_may_append_and_nothing_else(cluster: Cluster) -> None:
    assert isinstance(cluster.world, PostgresWorld)
    cluster.log(cluster.nodes[0], Batch(submitted=[cluster.task()]))
    with psycopg.connect(cluster.world.url, autocommit=True) as connection:
        connection.execute("SET ROLE regrow_append")
        for statement in (
            "SELECT * FROM regrow.tasks",
            "UPDATE regrow.task_log SET status = 1",
            "DELETE FROM regrow.nodes",
            "SELECT regrow.ensure_partition(1)",
            "CREATE TABLE regrow.mine ()",
        ):
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                connection.execute(statement)


def test_nodes_log_in_that_role(
    postgres_server: embedded.EmbeddedServer, postgres_world: PostgresWorld, cluster: Cluster
) -> None:
    """A user that may do nothing but take the role can write the log."""
    sql = postgres_world.sql
    sql.execute("CREATE ROLE logger LOGIN")
    try:
        sql.execute("GRANT regrow_append TO logger")
        url = postgres_world.url.replace("//regrow@", "//logger@")
        connection = LogConnection.connect(url)
        connection.send(Append(*cluster.nodes[0], 1, Batch(functions=[FUNCTION])))
        assert [answer.verdict for answer in answers(connection, 1)] == [APPLIED]
        connection.close()
    finally:
        sql.execute("DROP ROLE logger")


def test_where_roles_cannot_be_granted_an_event_says_so_and_the_log_works(
    postgres_server: embedded.EmbeddedServer, schema_template: str
) -> None:
    with psycopg.connect(postgres_server.url, autocommit=True) as server:
        server.execute("CREATE ROLE limited LOGIN")
        server.execute("CREATE DATABASE limited OWNER limited")
        url = database_of(postgres_server.url, "limited").replace("//regrow@", "//limited@")
        try:
            assert schema.upgrade(url)
            world = PostgresWorld(url)
            cluster = Cluster(world)
            cluster.log(cluster.nodes[0], Batch(submitted=[cluster.task(outcome=small())]))
            [(node, kind, message)] = world.tables()["events"]
            assert (node, kind) == (0, "warning")
            assert "regrow_append" in message
            world.close()
        finally:
            server.execute("DROP DATABASE limited WITH (FORCE)")
            server.execute("DROP ROLE limited")


def test_unfinished_tasks_always_have_a_holder(cluster: Cluster) -> None:
    assert isinstance(cluster.world, PostgresWorld)
    cluster.log(cluster.nodes[0], Batch(submitted=[cluster.task()]))
    for column in ("holder", "holder_incarnation"):
        with pytest.raises(psycopg.errors.NotNullViolation):
            cluster.world.sql.execute(f"UPDATE regrow.task_log SET {column} = NULL")


def test_tasks_of_a_job_stay_in_the_partition_of_its_first_day(cluster: Cluster) -> None:
    assert isinstance(cluster.world, PostgresWorld)
    node = cluster.nodes[0]
    task = cluster.task()
    cluster.log(node, Batch(submitted=[task]))
    cluster.world.advance(86_400)
    later = cluster.do(ops.CreateJob(cluster.epoch, b"another job root", "x.py", 8)).job
    cluster.log(node, Batch(submitted=[task, cluster.task(), cluster.task(job=later)]))
    parts = cluster.world.sql.execute(
        "SELECT j.job, j.part, count(DISTINCT t.part), count(*), bool_and(t.part = j.part)"
        " FROM regrow.jobs j JOIN regrow.tasks t USING (job) GROUP BY 1, 2 ORDER BY 1"
    ).fetchall()
    assert [row[2:] for row in parts] == [(1, 2, True), (1, 1, True)]
    assert parts[1][1] > parts[0][1]


def test_rows_are_looked_up_by_id_also_where_statistics_mislead(cluster: Cluster) -> None:
    """Statistics of a time when no task was unfinished must not make it go through all that are."""
    assert isinstance(cluster.world, PostgresWorld)
    node = cluster.nodes[0]
    cluster.log(node, Batch(submitted=[cluster.task(outcome=small()) for _ in range(3000)]))
    cluster.world.sql.execute("ANALYZE regrow.task_log")
    tasks = [cluster.task(num_returns=2) for _ in range(1000)]
    cluster.log(node, Batch(submitted=tasks))
    ids = [task.header.task_id for task in tasks]
    made = [Return(1, b"a" * 16, b"1"), Return(1, b"b" * 16, b"2")]
    batch = Batch(
        holders=[ops.NewHolder(task_id, 2, node) for task_id in ids],
        outcomes=[Outcome(task_id, 2, OK, made) for task_id in ids],
    )
    with psycopg.connect(cluster.world.url) as connection:
        places = ", ".join(f"${n}::{kind}" for n, (_, kind) in enumerate(PARAMETERS, 1))
        connection.execute("SELECT")  # begins a transaction
        connection.pgconn.exec_params(
            f"SELECT regrow.append({places})".encode(),
            encode_append(Append(*node, 3, batch)),
            param_formats=[1] * len(PARAMETERS),
        )
        looked_up, fetched = connection.execute(
            "SELECT sum(idx_scan), sum(idx_tup_fetch) FROM pg_stat_xact_user_tables"
            " WHERE relid IN (SELECT inhrelid FROM pg_inherits"
            " WHERE inhparent = 'regrow.task_log'::regclass)"
        ).fetchone() or (0, 0)
    # New holders, outcomes and second returns: three times each row, by its id.
    assert looked_up >= 3000
    assert fetched <= 6000
