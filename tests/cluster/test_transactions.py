"""Effects outside of the cluster that happen once: transactions and idempotency keys of tasks that
run more than once."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest

import regrow as ray
from regrow.cluster_utils import Cluster
from regrow.exceptions import GetTimeoutError
from tests.cluster.watching import postgres_url, rows, wait_until

#: Bytes of an object that only an arena keeps.
LARGE = 64 * 1024


@pytest.fixture
def url(database_url: str) -> str:
    """A database of the program's own."""
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute("CREATE TABLE entries (id serial PRIMARY KEY, amount int NOT NULL)")
    return database_url


def amounts(url: str) -> list[int]:
    with psycopg.connect(url) as connection:
        found = connection.execute("SELECT amount FROM entries ORDER BY id").fetchall()
    return [amount for (amount,) in found]


def enter(connection: Any, amount: int) -> int:
    row = connection.execute(
        "INSERT INTO entries (amount) VALUES (%s) RETURNING id", [amount]
    ).fetchone()
    return int(row[0])


def within(url: str, amount: int) -> int:
    with ray.transaction(url) as connection:
        return enter(connection, amount)


def by_run(url: str, amount: int) -> int:
    return ray.transaction(url).run(enter, amount)


@pytest.mark.parametrize("step", [within, by_run])
def test_sql_of_a_task_that_dies_before_it_returns_takes_effect_once(
    regrow_session: Any, url: str, tmp_path: Path, step: Callable[[str, int], int]
) -> None:
    @ray.remote
    def transfer(path: str) -> list[int]:
        ids = [step(url, 10), step(url, 20)]  # each is a step of its own
        with open(path, "a") as runs:
            runs.write("x")
        if os.path.getsize(path) == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return [*ids, step(url, 30)]

    path = tmp_path / "runs"
    assert ray.get(transfer.remote(str(path)), timeout=60) == [1, 2, 3]
    assert path.read_text() == "xx"
    assert amounts(url) == [10, 20, 30]
    # Another task with the same arguments is another one.
    assert ray.get(transfer.remote(str(path)), timeout=60) == [4, 5, 6]


def test_a_retry_after_an_exception_finds_what_was_committed(
    regrow_session: Any, url: str, tmp_path: Path
) -> None:
    @ray.remote(retry_exceptions=True)
    def transfer(path: str) -> int:
        found = within(url, 10)
        if not os.path.exists(path):
            Path(path).touch()
            raise LookupError
        return found

    assert ray.get(transfer.remote(str(tmp_path / "failed")), timeout=60) == 1
    assert amounts(url) == [10]


def test_a_lost_result_is_made_again_without_its_sql(url: str) -> None:
    @ray.remote(resources={"doomed": 1})
    def large() -> bytes:
        with ray.transaction(url) as connection:
            first = enter(connection, 10)
            total = connection.execute("SELECT sum(amount) FROM entries").fetchone()
        other = ray.transaction(url).run(enter, 20)
        return bytes([first, int(total[0]), other]) * LARGE

    with Cluster(initialize_head=True, head_node_args={"num_cpus": 0}) as cluster:
        doomed = cluster.add_node(num_cpus=1, resources={"doomed": 1})
        cluster.wait_for_nodes()
        cluster.connect()
        made = large.remote()
        ray.wait([made], timeout=60, fetch_local=False)
        assert rows(cluster.address, "SELECT 1 FROM regrow.tasks WHERE state = 'FINISHED'")
        cluster.remove_node(doomed, allow_graceful=False)
        cluster.add_node(num_cpus=1, resources={"doomed": 1})
        assert ray.get(made, timeout=60) == bytes([1, 10, 2]) * LARGE
        counted = rows(cluster.address, "SELECT count(*), bool_or(differs) FROM regrow.rebuilds")
        assert counted == [(1, False)]
    assert amounts(url) == [10, 20]


def test_sql_of_an_actor_that_restarts_takes_effect_once(regrow_session: Any, url: str) -> None:
    class Ledger:
        def __init__(self) -> None:
            self.ids: list[int] = []

        def enter(self, amount: int) -> list[int]:
            self.ids.append(within(url, amount))
            return self.ids

    ledger = ray.remote(max_restarts=-1)(Ledger).remote()
    assert ray.get([ledger.enter.remote(a) for a in (1, 2)], timeout=60)[1] == [1, 2]
    ray.kill(ledger, no_restart=False)
    assert ray.get(ledger.enter.remote(3), timeout=60) == [1, 2, 3]
    assert amounts(url) == [1, 2, 3]


@contextmanager
def held_commits(cluster: Cluster, node_id: int) -> Iterator[None]:
    """No append of the node can commit in here: its row is locked by someone else."""
    with psycopg.connect(postgres_url(cluster.address)) as connection:
        connection.execute("SELECT 1 FROM regrow.nodes WHERE node_id = %s FOR UPDATE", [node_id])
        yield
        connection.rollback()


def test_nothing_is_done_outside_that_the_log_could_forget(url: str, tmp_path: Path) -> None:
    """Neither a key is handed out nor a transaction committed before the log is."""

    @ray.remote
    def request(path: str) -> str:
        Path(path, "asks").touch()
        key = ray.idempotency_key()
        Path(path, "has a key").touch()
        return f"{key} {ray.idempotency_key('other')}"

    @ray.remote
    def transfer(path: str) -> int:
        with ray.transaction(url) as connection:
            found = enter(connection, 10)
            Path(path, "has entered").touch()
            return found

    with Cluster(initialize_head=True, head_node_args={"num_cpus": 2}) as cluster:
        cluster.connect()
        assert cluster.head_node is not None
        ray.get([request.remote(str(tmp_path)), transfer.remote(str(tmp_path))], timeout=60)
        for path in tmp_path.iterdir():
            path.unlink()
        with held_commits(cluster, cluster.head_node.node_id):
            refs = [request.remote(str(tmp_path)), transfer.remote(str(tmp_path))]
            for ran in ("asks", "has entered"):
                wait_until((tmp_path / ran).exists, f"work runs ahead of the log: {ran}")
            with pytest.raises(GetTimeoutError):
                ray.get(refs, timeout=1)
            assert not (tmp_path / "has a key").exists()
            assert amounts(url) == [10], "committed before the log"
        keys, found = ray.get(refs, timeout=60)
        task_id = refs[0].hex()[:32]
        assert keys == f"{task_id} {task_id}-other"
        assert found == 2
    assert amounts(url) == [10, 10]


def test_an_idempotency_key_is_the_same_in_every_attempt(
    regrow_session: Any, tmp_path: Path
) -> None:
    @ray.remote
    def request(path: str) -> str:
        with open(path, "a") as keys:
            print(ray.idempotency_key(), file=keys)
        if len(Path(path).read_text().split()) < 2:
            os.kill(os.getpid(), signal.SIGKILL)
        return ray.idempotency_key()

    refs = [request.remote(str(tmp_path / name)) for name in ("a", "b")]
    keys = ray.get(refs, timeout=60)
    assert len(set(keys)) == 2
    for name, key in zip("ab", keys, strict=True):
        assert (tmp_path / name).read_text().split() == [key, key]


def test_the_driver_of_a_named_job_has_steps_of_its_own(home: Path, url: str) -> None:
    with ray.init(job="import"):
        assert [within(url, 1), by_run(url, 2)] == [1, 2]
        key = ray.idempotency_key()
    with ray.init(job="another"):
        assert within(url, 3) == 3
        assert ray.idempotency_key() != key
    with ray.init():
        with pytest.raises(RuntimeError, match="needs a key"):
            within(url, 4)
        for _ in range(2):
            assert ray.transaction(url, key="once and for all").run(enter, 5) == 4
    assert amounts(url) == [1, 2, 3, 5]


RESUMED = """
import os, sys
import regrow as ray

def enter(connection, amount):
    row = connection.execute(
        "INSERT INTO entries (amount) VALUES (%s) RETURNING id", [amount]
    ).fetchone()
    return row[0]

url, crashes = sys.argv[1], sys.argv[2] == "crashes"
ray.init(job="import")

@ray.remote
def transfer(amount):
    return ray.transaction(url).run(enter, amount)

ids = [ray.get(transfer.remote(10)), ray.transaction(url).run(enter, 20)]
with ray.transaction(url) as connection:
    ids.append(enter(connection, 30))
if crashes:
    os._exit(3)
print(ids, ray.get(transfer.remote(40)))
"""


def test_a_resumed_job_repeats_no_sql(
    home: Path, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REGROW_POSTGRES", url)
    program = tmp_path / "program.py"
    program.write_text(RESUMED)
    command = [sys.executable, str(program), url]
    for _ in range(2):
        assert subprocess.run([*command, "crashes"], check=False, timeout=60).returncode == 3
    finished = subprocess.run(
        [*command, "ends"], check=True, stdout=subprocess.PIPE, text=True, timeout=60
    )
    assert finished.stdout == "[1, 2, 3] 4\n"
    assert amounts(url) == [10, 20, 30, 40]
