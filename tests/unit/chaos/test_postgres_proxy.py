"""The proxy in front of Postgres, on a Unix socket, as chaos runs use it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from regrow.chaos.postgres_proxy import PostgresProxy
from regrow.gcs import embedded


@pytest.fixture
def proxy(postgres_server: embedded.EmbeddedServer, tmp_path: Path) -> Iterator[PostgresProxy]:
    with PostgresProxy.in_front_of(postgres_server.url, tmp_path) as proxy:
        yield proxy


def test_it_carries_what_is_asked_and_answered(proxy: PostgresProxy) -> None:
    with psycopg.connect(proxy.url) as connection:
        assert connection.execute("SELECT 42").fetchone() == (42,)


def test_a_lost_answer_is_of_a_transaction_that_is_in(proxy: PostgresProxy) -> None:
    with psycopg.connect(proxy.url, autocommit=True) as connection:
        connection.execute("CREATE TABLE lost (id int)")
    proxy.lose_answers(1)
    connection = psycopg.connect(proxy.url)
    connection.execute("INSERT INTO lost VALUES (1)")
    with pytest.raises(psycopg.OperationalError):
        connection.commit()
    connection.close()
    proxy.lose_answers(0)
    assert proxy.lost == 1
    with psycopg.connect(proxy.url, autocommit=True) as connection:
        assert connection.execute("SELECT count(*) FROM lost").fetchone() == (1,)
        connection.execute("DROP TABLE lost")


def test_while_it_is_away_nobody_gets_through(proxy: PostgresProxy) -> None:
    connection = psycopg.connect(proxy.url, autocommit=True)
    proxy.go_away()
    with pytest.raises(psycopg.OperationalError):
        connection.execute("SELECT 1")
    with pytest.raises(psycopg.OperationalError):
        psycopg.connect(proxy.url)
    connection.close()
    proxy.come_back()
    with psycopg.connect(proxy.url) as connection:
        assert connection.execute("SELECT 1").fetchone() == (1,)


def test_requests_wait_while_it_is_slow(proxy: PostgresProxy) -> None:
    with psycopg.connect(proxy.url, autocommit=True) as connection:
        proxy.delay(0.05)
        begun = time.monotonic()
        connection.execute("SELECT 1")
        assert time.monotonic() - begun >= 0.05
        proxy.delay(0)
