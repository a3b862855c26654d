"""Steps in a database of the program's own: each takes effect once, whoever runs it and however
often. Without a cluster: the key is what a task's id is otherwise."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal
from functools import partial
from pathlib import Path
from typing import Any, Self
from urllib.parse import parse_qs, urlsplit

import psycopg
import pytest
import sqlalchemy
from psycopg import sql
from psycopg.rows import dict_row, namedtuple_row

import regrow as ray
from regrow.exceptions import ReplayMismatchError


@pytest.fixture
def url(database_url: str) -> str:
    """A database with a table of entries."""
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute("CREATE TABLE entries (id serial PRIMARY KEY, amount numeric NOT NULL)")
    return database_url


def rows(url: str, query: str) -> list[tuple[Any, ...]]:
    with psycopg.connect(url) as connection:
        return connection.execute(query.encode()).fetchall()


def amounts(url: str) -> list[int]:
    return [int(amount) for (amount,) in rows(url, "SELECT amount FROM entries ORDER BY id")]


def enter(connection: Any, amount: int) -> int:
    row = connection.execute(
        "INSERT INTO entries (amount) VALUES (%s) RETURNING id", [amount]
    ).fetchone()
    return int(row[0])


def test_a_body_that_runs_again_is_told_what_it_was_told_and_changes_nothing(url: str) -> None:
    def body() -> list[Any]:
        with ray.transaction(url, key="k") as connection:
            first = enter(connection, 5)
            cursor = connection.cursor(row_factory=dict_row)
            cursor.execute("SELECT amount, now() AS at FROM entries")
            described = [column.name for column in cursor.description or ()]
            read = cursor.fetchall()
            named = connection.cursor(row_factory=namedtuple_row)
            totals = [
                row.total for row in named.execute("SELECT sum(amount) AS total FROM entries")
            ]
            with connection.cursor() as many:
                many.executemany("INSERT INTO entries (amount) VALUES (%s)", [[7], [8]])
                changed = many.rowcount
            update = sql.SQL("UPDATE {} SET amount = amount + 1").format(sql.Identifier("entries"))
            told = connection.execute(update)
            return [first, described, read, totals, changed, told.rowcount, told.statusmessage]

    once = body()
    assert once[0] == 1
    assert once[1] == ["amount", "at"]
    assert once[3:] == [[Decimal(5)], 2, 3, "UPDATE 3"]
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("UPDATE entries SET amount = amount * 10")
    assert body() == once, "it is told what it read then, not what is there now"
    assert amounts(url) == [60, 80, 90]


def test_a_function_is_called_until_it_has_committed(url: str) -> None:
    calls: list[int] = []

    def step(connection: psycopg.Connection[Any], amount: int) -> dict[str, int]:
        calls.append(amount)
        with connection.cursor() as cursor, cursor.copy("COPY entries (amount) FROM STDIN") as copy:
            copy.write_row([amount])
        return {"amount": amount}

    results = [ray.transaction(url, key="k").run(step, amount) for amount in (3, 4)]
    assert results == [{"amount": 3}, {"amount": 3}]
    assert calls == [3]
    assert amounts(url) == [3]


def test_an_error_in_the_body_rolls_back_the_sql_and_the_record(url: str) -> None:
    def fails(amount: int) -> None:
        with ray.transaction(url, key="k") as connection:
            enter(connection, amount)
            raise LookupError

    for attempt in (1, 2):
        with pytest.raises(LookupError):
            fails(attempt)
    with (
        pytest.raises(psycopg.errors.NotNullViolation),
        ray.transaction(url, key="k") as connection,
    ):
        connection.execute("INSERT INTO entries (amount) VALUES (NULL)")
    assert amounts(url) == []
    assert rows(url, "SELECT * FROM regrow_steps") == []
    with ray.transaction(url, key="k") as connection:
        enter(connection, 3)
    assert amounts(url) == [3]


def test_an_error_that_the_body_swallowed_is_not_taken_for_a_commit(url: str) -> None:
    def body() -> None:
        with ray.transaction(url, key="k") as connection:
            enter(connection, 1)
            with pytest.raises(psycopg.Error):
                connection.execute("SELECT 1/0")

    with pytest.raises(psycopg.errors.InFailedSqlTransaction):
        body()
    assert rows(url, "SELECT * FROM regrow_steps") == []


def test_savepoints_and_the_errors_behind_them_are_replayed(url: str) -> None:
    def body() -> list[str]:
        said = []
        with ray.transaction(url, key="k") as connection:
            enter(connection, 1)
            try:
                with connection.transaction():
                    enter(connection, 2)
                    connection.execute("SELECT 1/0")
            except psycopg.errors.DivisionByZero as error:
                said.append(str(error))
            with connection.transaction():
                if enter(connection, 3):
                    raise psycopg.Rollback
            said.append(str(enter(connection, 4)))
        return said

    assert body() == body() != []
    assert amounts(url) == [1, 4]


def test_other_statements_than_those_committed_reach_no_database(url: str) -> None:
    with ray.transaction(url, key="k") as connection:
        enter(connection, 1)
    with pytest.raises(ReplayMismatchError), ray.transaction(url, key="k") as connection:
        connection.execute("DELETE FROM entries")
    with pytest.raises(ReplayMismatchError), ray.transaction(url, key="k") as connection:
        assert [enter(connection, 1), enter(connection, 2)] == []
    with pytest.raises(ReplayMismatchError), ray.transaction(url, key="k"):
        pass
    with pytest.raises(ReplayMismatchError):
        ray.transaction(url, key="k").run(lambda connection: None)
    assert amounts(url) == [1]


def test_the_second_of_two_waits_for_the_first_and_finds_its_record(url: str) -> None:
    ran: list[str] = []
    inside, go_on = threading.Event(), threading.Event()

    def first(connection: psycopg.Connection[Any]) -> str:
        inside.set()
        assert go_on.wait(30)
        ran.append("first")
        enter(connection, 1)
        return "first"

    def second(connection: psycopg.Connection[Any]) -> str:
        ran.append("second")
        enter(connection, 2)
        return "second"

    with ThreadPoolExecutor(2) as pool:
        one = pool.submit(lambda: ray.transaction(url, key="k").run(first))
        assert inside.wait(30)
        other = pool.submit(lambda: ray.transaction(url, key="k").run(second))
        waiting = "SELECT 1 FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
        wait_until(lambda: rows(url, f"{waiting} AND datname = current_database()"))
        assert not other.done()
        go_on.set()
        assert [one.result(30), other.result(30)] == ["first", "first"]
    assert ran == ["first"]
    assert amounts(url) == [1]


def test_the_second_runs_when_the_first_gave_up_also_with_frozen_snapshots(url: str) -> None:
    inside, go_on = threading.Event(), threading.Event()

    def first(connection: psycopg.Connection[Any]) -> None:
        inside.set()
        assert go_on.wait(30)
        raise LookupError

    def as_serializable(function: Callable[[Any], Any]) -> Any:
        with psycopg.connect(url) as connection:
            connection.isolation_level = psycopg.IsolationLevel.SERIALIZABLE
            return ray.transaction(connection, key="k").run(function)

    with ThreadPoolExecutor(3) as pool:
        one = pool.submit(lambda: ray.transaction(url, key="k").run(first))
        assert inside.wait(30)
        others = [pool.submit(as_serializable, partial(enter, amount=amount)) for amount in (2, 2)]
        waiting = "SELECT 1 FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
        wait_until(lambda: len(rows(url, f"{waiting} AND datname = current_database()")) == 2)
        go_on.set()
        assert isinstance(one.exception(30), LookupError)
        assert len({other.result(30) for other in others}) == 1
    assert amounts(url) == [2]


def test_many_at_once_make_one_table_and_run_one_step_each(url: str) -> None:
    def step(number: int) -> int:
        return ray.transaction(url, key=str(number % 4)).run(enter, number % 4)

    with ThreadPoolExecutor(12) as pool:
        ids = list(pool.map(step, range(12)))
    assert ids[:4] == ids[4:8] == ids[8:]
    assert sorted(amounts(url)) == [0, 1, 2, 3]


def test_a_step_that_ends_its_transaction_itself_is_told_and_not_repeated(url: str) -> None:
    def ends(connection: psycopg.Connection[Any]) -> None:
        enter(connection, 1)
        connection.execute("COMMIT")

    with pytest.raises(RuntimeError, match="ended the step's transaction"):
        ray.transaction(url, key="k").run(ends)
    with pytest.raises(RuntimeError, match="has no outcome"):
        ray.transaction(url, key="k").run(ends)
    assert amounts(url) == [1]


def test_a_connection_of_the_program_is_used_and_left_open(url: str) -> None:
    for autocommit in (False, True):
        with psycopg.connect(url, autocommit=autocommit, row_factory=dict_row) as connection:
            for _ in range(2):
                with ray.transaction(connection, key=str(autocommit)) as handed:
                    handed.execute("INSERT INTO entries (amount) VALUES (1)")
            assert not connection.closed
            connection.execute("SELECT 1")
            if not autocommit:
                with pytest.raises(RuntimeError, match="in a transaction already"):
                    ray.transaction(connection, key="x").run(enter, 1)
    assert amounts(url) == [1, 1]


def test_a_connection_of_sqlalchemy_works_as_it_does_elsewhere(url: str) -> None:
    engine = sqlalchemy.create_engine(url.replace("postgresql", "postgresql+psycopg", 1))
    entries = sqlalchemy.Table("entries", sqlalchemy.MetaData(), autoload_with=engine)

    def body(connection: sqlalchemy.Connection) -> list[Any]:
        with ray.transaction(connection, key="with") as step:
            added = step.execute(sqlalchemy.insert(entries).returning(entries.c.id), {"amount": 5})
            first = added.one().id
            step.execute(sqlalchemy.insert(entries), [{"amount": 6}, {"amount": 7}])
            changed = step.execute(sqlalchemy.text("UPDATE entries SET amount = amount + 1"))
            try:
                with step.begin_nested():
                    step.exec_driver_sql("SELECT 1/0")
            except sqlalchemy.exc.DataError as error:
                said = type(error.orig).__name__
            total = step.scalar(sqlalchemy.select(sqlalchemy.func.sum(entries.c.amount)))
            read = step.execute(sqlalchemy.select(entries)).mappings().all()
            return [first, changed.rowcount, said, total, [dict(row) for row in read]]

    def insert(connection: sqlalchemy.Connection, amount: int) -> int:
        connection.execute(sqlalchemy.insert(entries), {"amount": amount})
        return amount

    def commit(connection: sqlalchemy.Connection) -> None:
        insert(connection, 100)
        connection.commit()

    def fail(connection: sqlalchemy.Connection) -> None:
        insert(connection, 100)
        connection.execute(sqlalchemy.text("SELECT 1/0"))

    with engine.connect() as connection:
        assert body(connection) == body(connection)
        assert [ray.transaction(connection, key="run").run(insert, n) for n in (1, 2)] == [1, 1]
        with pytest.raises(sqlalchemy.exc.ProgrammingError, match="Explicit commit"):
            ray.transaction(connection, key="commits").run(commit)
        with pytest.raises(sqlalchemy.exc.DataError):
            ray.transaction(connection, key="fails").run(fail)
        assert connection.execute(sqlalchemy.select(entries.c.amount)).all(), "it is usable"
        with pytest.raises(RuntimeError, match="in a transaction already"):
            ray.transaction(connection, key="other").run(insert, 1)
    assert ray.transaction(engine.url, key="url").run(enter, 9) > 5
    engine.dispose()
    assert amounts(url) == [6, 7, 8, 1, 9]


def test_what_cannot_be_used_is_refused_with_what_to_do(url: str) -> None:
    with pytest.raises(RuntimeError, match="needs a key"):
        ray.transaction(url)
    with pytest.raises(RuntimeError, match="belongs into a task"):
        ray.idempotency_key()
    with pytest.raises(TypeError, match="connection of psycopg"):
        ray.transaction(7, key="k").run(enter, 1)  # type: ignore[call-overload]
    with pytest.raises(TypeError, match="needs Postgres"):
        ray.transaction("sqlite:///x", key="k").run(enter, 1)
    with ray.transaction(url, key="k") as connection:
        for name in ("commit", "rollback", "close"):
            with pytest.raises(AttributeError, match="commits at its end"):
                getattr(connection, name)
        with pytest.raises(AttributeError, match=r"\.run\(function\)"):
            connection.cursor().copy("COPY entries FROM STDIN")
    used = ray.transaction(url, key="other")
    used.run(enter, 1)
    with pytest.raises(RuntimeError, match="make one for each"):
        used.run(enter, 1)


@pytest.mark.parametrize("arrives", [True, False], ids=["committed", "lost"])
def test_a_commit_that_was_cut_is_looked_up(url: str, tmp_path: Path, arrives: bool) -> None:
    """The connection breaks at the commit: behind it, or before it has reached the server."""
    with Cut(url, tmp_path, arrives) as cut:
        step = ray.transaction(cut.url, key="k")
        if arrives:
            assert step.run(enter, 1) == 1
        else:
            with pytest.raises(psycopg.OperationalError):
                step.run(enter, 1)
    assert cut.cuts == 1
    assert ray.transaction(url, key="k").run(enter, 1) in (1, 2)
    assert amounts(url) == [1]


class Cut:
    """A server of Postgres's protocol in front of the real one, that breaks the connection at the
    first COMMIT of a step."""

    def __init__(self, url: str, folder: Path, arrives: bool) -> None:
        parts = urlsplit(url)
        host = parts.hostname or parse_qs(parts.query)["host"][0]
        port = parts.port or int(parse_qs(parts.query).get("port", ["5432"])[0])
        self._server = f"{host}/.s.PGSQL.{port}"
        self._arrives = arrives
        self.cuts = 0
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(folder / f".s.PGSQL.{port}"))
        self._listener.listen()
        self._threads = [threading.Thread(target=self._accept)]
        self.url = url + ("&" if parts.query else "?") + f"host={folder}&port={port}"

    def __enter__(self) -> Self:
        self._threads[0].start()
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for thread in self._threads:
            thread.join(30)

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            server = socket.socket(socket.AF_UNIX)
            server.connect(self._server)
            thread = threading.Thread(target=self._carry, args=(client, server))
            self._threads.append(thread)
            thread.start()

    def _carry(self, client: socket.socket, server: socket.socket) -> None:
        back = threading.Thread(target=self._carry_back, args=(server, client))
        back.start()
        completed = False
        with client, server:
            while data := client.recv(65536):
                completed |= b"SET outcome" in data
                if completed and b"COMMIT" in data and not self.cuts:
                    self.cuts += 1
                    if not self._arrives:
                        break
                    client.shutdown(socket.SHUT_RDWR)  # the answer finds nobody
                    server.sendall(data)
                    server.shutdown(socket.SHUT_WR)
                    break
                server.sendall(data)
            shut(client, socket.SHUT_RD)
            shut(server, socket.SHUT_WR)
            back.join(30)

    def _carry_back(self, server: socket.socket, client: socket.socket) -> None:
        try:
            while data := server.recv(65536):
                client.sendall(data)
        except OSError:
            return  # it was cut
        finally:
            shut(client, socket.SHUT_RDWR)


def shut(end: socket.socket, how: int) -> None:
    with contextlib.suppress(OSError):  # the other side may have done so
        end.shutdown(how)


def wait_until(condition: Callable[[], object]) -> None:
    """Polls: for what happens in the server there is no event to wait for."""
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline, "not within 30 s"
        time.sleep(0.01)
