"""Postgres crashes, cuts connections, loses answers, is away or has no room, while tasks, calls and
submissions run: no result is missing or wrong, nothing takes effect twice, and whoever waits is
told why."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import psycopg
import pytest

import regrow as ray
from regrow.chaos.postgres_proxy import PostgresProxy
from regrow.cluster_utils import Cluster
from regrow.gcs import embedded
from tests.cluster.watching import postgres_url, rows, wait_until

TASKS = 60
CALLS = 30
PARENTS = 2
CHILDREN = 5
BLOCKS = 4
#: Elements of an array that is too large for the log.
LARGE = 4_000


def note(path: str, line: str) -> None:
    """In one write, which is whole or not there."""
    fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(fd, f"{line}\n".encode())
    os.close(fd)


@ray.remote
def step(path: str, index: int) -> int:
    note(path, f"step-{index}")
    return index * 3


@ray.remote
def parent(path: str, index: int) -> int:
    note(path, f"parent-{index}")
    children = [step.remote(path, 1_000_000 + index * CHILDREN + i) for i in range(CHILDREN)]
    return sum(ray.get(children))


@ray.remote
def block(path: str, index: int) -> Any:
    note(path, f"block-{index}")
    return np.full(LARGE, index)


class Account:
    """Its state depends on the order of its calls."""

    def __init__(self) -> None:
        self.value = 0

    def add(self, path: str, amount: int) -> int:
        note(path, f"add-{amount}")
        self.value = (self.value * 3 + amount) % 1_000_003
        return self.value


class Load:
    """Rounds of tasks, nested tasks, large results and calls of two actors, one recoverable."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)
        self.rounds = 0
        self.refs: list[tuple[Any, int]] = []
        self.blocks: list[tuple[Any, int]] = []
        self._value = 0
        account = ray.remote(Account)
        self.accounts = [
            account.options(max_restarts=-1, resources={"away": 0.1}).remote(),
            account.options(num_cpus=0).remote(),
        ]
        ray.get([a.add.remote(os.devnull, 0) for a in self.accounts], timeout=60)

    def submit(self) -> None:
        """One more round."""
        base = self.rounds * 1000
        self.rounds += 1
        submit = [(step.remote(self.path, base + i), (base + i) * 3) for i in range(TASKS)]
        for i in range(CALLS):
            self._value = (self._value * 3 + base + i) % 1_000_003
            for account in self.accounts:
                submit.append((account.add.remote(self.path, base + i), self._value))
        for i in range(PARENTS):
            first = 1_000_000 + (base + i) * CHILDREN
            expected = sum((first + k) * 3 for k in range(CHILDREN))
            submit.append((parent.remote(self.path, base + i), expected))
        self.refs += submit
        self.blocks += [(block.remote(self.path, base + i), base + i) for i in range(BLOCKS)]

    def submit_while(self, condition: Callable[[], bool]) -> None:
        """Round after round, each when some of the last one is done."""
        while condition():
            self.submit()
            last = [ref for ref, _ in self.refs[-TASKS:]]
            ray.wait(last, num_returns=TASKS // 2, timeout=60)

    def check(self, cluster: Cluster) -> None:
        """Everything is as in a run without faults: results, what ran, and the rows."""
        dead = "SELECT node_id, incarnation, reason FROM regrow.nodes WHERE NOT alive"
        assert rows(cluster.home, dead) == [], "a node was declared dead"
        values = ray.get([ref for ref, _ in self.refs], timeout=100)
        assert values == [expected for _, expected in self.refs]
        arrays = ray.get([ref for ref, _ in self.blocks], timeout=60)
        assert [int(a[0]) for a in arrays] == [expected for _, expected in self.blocks]
        ran = Path(self.path).read_text().split()
        steps = self.rounds * (TASKS + PARENTS * (1 + CHILDREN) + BLOCKS)
        assert len(set(ran)) == steps + self.rounds * CALLS
        assert len(ran) == steps + self.rounds * CALLS * 2, "something ran twice"
        count = "SELECT count(*), count(DISTINCT task_id), max(attempt) FROM regrow.task_log"
        own = len(self.accounts) * 2  # creations, and first calls
        every = steps + self.rounds * CALLS * 2 + own
        assert rows(cluster.home, count)[0] == (every, every, 1)
        failed = "SELECT count(*) FROM regrow.task_log WHERE status <> 1"
        assert rows(cluster.home, failed)[0][0] == 0
        assert rows(cluster.home, "SELECT count(*) FROM regrow.rebuilds")[0][0] == 0


@contextmanager
def two_nodes(postgres: str | None = None) -> Iterator[Cluster]:
    with Cluster(
        initialize_head=True, head_node_args={"num_cpus": 1}, postgres=postgres
    ) as cluster:
        cluster.add_node(num_cpus=2, resources={"away": 1})
        cluster.wait_for_nodes()
        cluster.connect()
        yield cluster


@contextmanager
def faults(fault: Callable[[], None]) -> Iterator[Callable[[], bool]]:
    """``fault`` runs on a thread; yields whether it does still."""
    failures: list[BaseException] = []

    def run() -> None:
        try:
            fault()
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield thread.is_alive
    finally:
        thread.join(60)
    assert not failures, failures


def progress(cluster: Cluster) -> None:
    """Waits until more has been committed."""
    committed = "SELECT sum(last_batch) FROM regrow.nodes"
    before = rows(cluster.home, committed)[0][0]
    wait_until(lambda: rows(cluster.home, committed)[0][0] > before + 2, "commits", 30)


def answered(url: str) -> bool:
    try:
        with psycopg.connect(url, connect_timeout=5) as connection:
            return connection.execute("SELECT 1").fetchone() == (1,)
    except psycopg.OperationalError:
        return False


def test_postgres_may_crash_again_and_again(tmp_path: Path) -> None:
    """``pg_ctl stop -m immediate``: no checkpoint, every connection cut, then crash recovery."""
    with two_nodes() as cluster:
        load = Load(tmp_path / "ran")
        url = postgres_url(cluster.home)

        def crash() -> None:
            for _ in range(3):
                progress(cluster)
                embedded.stop(cluster.home / "postgres", mode="immediate")
                wait_until(lambda: answered(url), "it is started again", 60)

        with faults(crash) as crashing:
            load.submit_while(crashing)
        load.check(cluster)


def test_connections_may_be_cut_in_mid_transaction(tmp_path: Path) -> None:
    with two_nodes() as cluster:
        load = Load(tmp_path / "ran")
        cut = 0

        def cut_all() -> None:
            nonlocal cut
            query = (
                "SELECT count(*) FILTER (WHERE pg_terminate_backend(pid)) FROM pg_stat_activity "
                "WHERE datname = current_database() AND pid <> pg_backend_pid() AND query <> ''"
            )
            until = time.monotonic() + 5
            with psycopg.connect(postgres_url(cluster.home), autocommit=True) as connection:
                while time.monotonic() < until:
                    row = connection.execute(query).fetchone()
                    assert row is not None
                    cut += row[0]
                    progress(cluster)

        with faults(cut_all) as cutting:
            load.submit_while(cutting)
        assert cut > 20
        load.check(cluster)


@pytest.fixture(scope="module")
def server_port(
    own_environment: Path, tmp_path_factory: pytest.TempPathFactory, system_state: Path
) -> Iterator[int]:
    """Of a server that listens on loopback."""
    folder = tmp_path_factory.mktemp("faulty-server")
    rules = system_state / "faulty_hba.conf"
    rules.write_text("local all all trust\nhost all all 127.0.0.1/32 trust\n")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    settings = {"listen_addresses": "127.0.0.1", "port": str(port), "hba_file": str(rules)}
    embedded.start(folder, fsync=False, settings=settings)
    yield port
    embedded.destroy(folder)
    rules.unlink()


@pytest.fixture
def proxy(server_port: int) -> Iterator[PostgresProxy]:
    with PostgresProxy(server_port) as proxy:
        yield proxy


@pytest.fixture
def database(server_port: int, tmp_path: Path) -> Iterator[str]:
    """The name of a new database on that server."""
    name = f"faults_{time.time_ns()}"
    admin = f"postgresql://regrow@127.0.0.1:{server_port}/template1"
    with psycopg.connect(admin, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}".encode())
    yield name
    with psycopg.connect(admin, autocommit=True) as connection:
        connection.execute(f"DROP DATABASE {name} WITH (FORCE)".encode())


@pytest.fixture
def proxied(proxy: PostgresProxy, database: str) -> str:
    """The URL of that database, through the proxy."""
    return f"postgresql://regrow@127.0.0.1:{proxy.port}/{database}"


def test_answers_to_commits_may_be_lost(tmp_path: Path, proxy: PostgresProxy, proxied: str) -> None:
    """The transaction is in, the answer is not: what is sent again is not done again."""
    with two_nodes(proxied) as cluster:
        load = Load(tmp_path / "ran")
        proxy.lose_answers(every=5)
        until = time.monotonic() + 60
        load.submit_while(lambda: proxy.lost < 40 and time.monotonic() < until)
        proxy.lose_answers(every=0)
        assert proxy.lost >= 40
        load.check(cluster)


def test_nothing_fails_while_postgres_is_away_and_the_driver_is_told(
    tmp_path: Path,
    proxy: PostgresProxy,
    proxied: str,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """Submissions wait when so many are not committed; then everything goes on."""
    monkeypatch.setenv("REGROW_SUBMIT_WINDOW", "500")
    heard = ""

    def told(text: str) -> bool:
        nonlocal heard
        heard += capfd.readouterr().err
        return text in heard

    with two_nodes(proxied) as cluster:
        load = Load(tmp_path / "ran")
        submitted = threading.Semaphore(0)

        def submit() -> None:
            for _ in range(10):
                load.submit()
                submitted.release()

        proxy.go_away()
        with faults(submit) as submitting:
            try:
                wait_until(lambda: told("Postgres does not answer"), "the driver is told", 30)
                began = time.monotonic()
                wait_until(lambda: time.monotonic() - began > 6, "6 seconds", 30)
                assert submitting(), "submissions wait"
                assert load.rounds <= 5, "no more than the window is in memory"
                assert told("Postgres does not answer")
            finally:
                proxy.come_back()
        wait_until(lambda: told("Postgres is back"), "the driver is told of its end", 30)
        load.check(cluster)
        assert heard.count("Postgres does not answer") == 1
        assert "control store does not answer" not in heard
        kinds = "SELECT kind FROM regrow.events WHERE starts_with(kind, 'postgres') ORDER BY at"
        found = [row[0] for row in rows(cluster.home, kinds)]
        assert "postgres_lost" in found
        assert "postgres_works" in found


NO_ROOM = """
CREATE FUNCTION regrow.no_room() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'could not extend file "base/16384/24576": No space left on device'
        USING ERRCODE = '53100', HINT = 'Check free disk space.';
END $$;
CREATE TRIGGER no_room BEFORE INSERT OR UPDATE ON regrow.nodes
    FOR EACH STATEMENT EXECUTE FUNCTION regrow.no_room();
"""


def test_a_full_disk_is_waited_for_and_told_of(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    heard = ""

    def told(text: str) -> bool:
        nonlocal heard
        heard += capfd.readouterr().err
        return text in heard

    with two_nodes() as cluster:
        load = Load(tmp_path / "ran")
        load.submit()
        connections = "SELECT sessions FROM pg_stat_database WHERE datname = current_database()"
        with psycopg.connect(postgres_url(cluster.home), autocommit=True) as connection:
            connection.execute(NO_ROOM)
            before = rows(cluster.home, connections)[0][0]
            load.submit()
            wait_until(lambda: told("No space left on device"), "the driver is told", 30)
            began = time.monotonic()
            wait_until(lambda: time.monotonic() - began > 4, "longer than a lease", 30)
            tries = rows(cluster.home, connections)[0][0] - before
            connection.execute("DROP FUNCTION regrow.no_room CASCADE")
        assert tries < 60, "it is tried again with back-off"
        load.check(cluster)
        wait_until(lambda: told("Postgres is back"), "the driver is told of its end", 30)
        assert heard.count("No space left on device") == 1
        assert "Make room" in heard
        query = "SELECT message FROM regrow.events WHERE kind = 'postgres_full'"
        messages = [row[0] for row in rows(cluster.home, query)]
        assert messages
        assert all("Make room" in message for message in messages)
