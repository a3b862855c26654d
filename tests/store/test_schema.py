"""The schema: brought up to date once, quickly, and documented in the database itself."""

from __future__ import annotations

import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import psycopg
import pytest
from alembic.script import ScriptDirectory

from regrow.gcs import operations as ops
from regrow.gcs import schema
from tests.store.worlds import Cluster, PostgresWorld, small

PUBLIC = {
    "actor_calls", "actors", "checkpoints", "events", "functions", "jobs", "nodes", "objects",
    "rebuilds", "task_results", "tasks",
}  # fmt: skip


def rows(url: str, sql: str) -> list[Any]:
    with psycopg.connect(url) as connection:
        return connection.execute(sql).fetchall()


def test_the_newest_revision_is_the_one_that_is_checked_for() -> None:
    assert ScriptDirectory.from_config(schema._config()).get_current_head() == schema.HEAD


def test_a_database_is_brought_up_to_date_once_and_then_found_so_quickly(
    database_url: str,
) -> None:
    assert schema.upgrade(database_url)
    took_s = []
    for _ in range(5):
        started = time.perf_counter()
        assert not schema.upgrade(database_url)
        took_s.append(time.perf_counter() - started)
    assert min(took_s) < 0.05


def test_a_database_that_is_up_to_date_costs_no_import_of_alembic(schema_url: str) -> None:
    program = (
        "import sys; from regrow.gcs import schema; assert not schema.upgrade(sys.argv[1]);"
        "sys.exit('alembic' in sys.modules or 'sqlalchemy' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program, schema_url], check=True)


def test_of_several_that_start_at_once_one_migrates(database_url: str) -> None:
    with ThreadPoolExecutor(3) as pool:
        done = list(pool.map(schema.upgrade, [database_url] * 3))
    assert sorted(done) == [False, False, True]


def test_a_database_of_a_newer_version_is_refused(schema_url: str) -> None:
    with psycopg.connect(schema_url) as connection:
        connection.execute("UPDATE regrow.schema_version SET version_num = '9999'")
    with pytest.raises(schema.SchemaError, match="9999"):
        schema.upgrade(schema_url)


def test_the_printed_sql_makes_the_same_schema(database_url: str, schema_url: str) -> None:
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute(schema.offline_sql().encode())
    assert not schema.upgrade(database_url)
    described = (
        "SELECT table_name, column_name, data_type, is_nullable FROM information_schema.columns"
        " WHERE table_schema = 'regrow' ORDER BY 1, 2"
    )
    functions = (
        "SELECT proname, md5(prosrc) FROM pg_proc WHERE pronamespace = 'regrow'::regnamespace"
        " ORDER BY 1, 2"
    )
    for query in (described, functions):
        assert rows(database_url, query) == rows(schema_url, query)


def test_every_relation_and_column_is_commented(schema_url: str) -> None:
    uncommented = rows(
        schema_url,
        "SELECT c.relname, a.attname FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid"
        " WHERE c.relnamespace = 'regrow'::regnamespace AND c.relkind IN ('r', 'p', 'v')"
        " AND a.attnum >= 0 AND NOT a.attisdropped AND c.relname <> 'schema_version'"
        " AND col_description(c.oid, a.attnum) IS NULL"
        " UNION ALL SELECT c.relname, '' FROM pg_class c"
        " WHERE c.relnamespace = 'regrow'::regnamespace AND c.relkind IN ('r', 'p', 'v')"
        " AND c.relname <> 'schema_version' AND obj_description(c.oid, 'pg_class') IS NULL",
    )
    assert uncommented == []


def test_the_public_relations_are_there(schema_url: str) -> None:
    found = {
        name
        for (name,) in rows(
            schema_url,
            "SELECT relname FROM pg_class WHERE relnamespace = 'regrow'::regnamespace"
            " AND relkind IN ('r', 'p', 'v')"
            " AND obj_description(oid, 'pg_class') NOT LIKE 'Internal%'",
        )
    }
    assert found >= PUBLIC


def test_people_read_states_as_words(postgres_world: PostgresWorld) -> None:
    cluster = Cluster(postgres_world)
    failed = ops.Outcome(b"", 1, 2, small().returns, error="ValueError")
    tasks = [cluster.task(outcome=small()), cluster.task(outcome=failed), cluster.task()]
    cluster.log(cluster.nodes[0], ops.Batch(submitted=tasks))
    read = postgres_world.sql.execute(
        "SELECT name, kind, state, error, result_size FROM regrow.tasks ORDER BY task_id"
    ).fetchall()
    assert read == [
        ("square", "task", "FINISHED", None, 2),
        ("square", "task", "FAILED", "ValueError", 2),
        ("square", "task", "PENDING", None, None),
    ]
    objects = postgres_world.sql.execute("SELECT kind, size, data FROM regrow.objects").fetchall()
    assert objects == [("return", 2, b"49")]
