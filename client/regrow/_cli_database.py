"""The database that a command reads: of a running cluster, of a named server, or of kept data.

Decides which one, and starts the embedded server where nothing runs, for as long as the command
reads. It knows no table.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg

from regrow import _bootstrap, _home
from regrow.exceptions import ClusterConnectionError
from regrow.gcs import embedded
from regrow.gcs.postgres_url import PostgresUnavailableError, connect_checked

Connection = psycopg.Connection[tuple[Any, ...]]

LOCK_TIMEOUT_S = 60.0


@contextlib.contextmanager
def connected(home: Path, *, write: bool = False) -> Iterator[Connection]:
    """A connection to the database of this home, which only reads unless ``write`` is given.

    Raises ClusterConnectionError, in one sentence, if there is none.
    """
    with contextlib.ExitStack() as stack:
        url = stack.enter_context(connection_url(home))
        try:
            connection = stack.enter_context(connect_checked(url))
        except PostgresUnavailableError as error:
            raise ClusterConnectionError(str(error)) from None
        if not write:
            # The setting holds for every transaction that a statement might begin by itself.
            connection.execute("SET default_transaction_read_only = on")
            connection.commit()
            connection.read_only = True
        yield connection


@contextlib.contextmanager
def connection_url(home: Path) -> Iterator[str]:
    """Where the database of this home can be reached meanwhile. Raises ClusterConnectionError."""
    url = server_url(home)
    if url is not None:
        yield url
        return
    with _kept_data(home) as url:
        yield url


def server_url(home: Path) -> str | None:
    """The server that runs for this home, or that its last cluster used; None: the embedded one."""
    named = os.environ.get("REGROW_POSTGRES")
    if named:
        return named
    gcs = _bootstrap.look(home).gcs
    if gcs is not None:
        return gcs.postgres_url
    return _home.remembered_database(home) or None


@contextlib.contextmanager
def _kept_data(home: Path) -> Iterator[str]:
    """The embedded server on the data of this home, stopped afterwards if it did not run before."""
    directory = _home.postgres_directory(home)
    if not directory.exists():
        raise ClusterConnectionError(
            f"no cluster has kept data in {home} yet; set REGROW_HOME to the home of one that has, "
            "or REGROW_POSTGRES to its database"
        )
    with _home.start_lock(home, LOCK_TIMEOUT_S):
        try:
            ran = embedded.status(directory) is not None
            server = embedded.start(directory)
        except embedded.EmbeddedPostgresError as error:
            raise ClusterConnectionError(str(error)) from None
    try:
        yield server.url
    finally:
        if not ran:
            _stop_unless_used(home)


def _stop_unless_used(home: Path) -> None:
    """Stop the embedded server, unless a cluster has been started on it or somebody else reads."""
    from regrow import _daemons

    directory = _home.postgres_directory(home)
    with _home.start_lock(home, LOCK_TIMEOUT_S):
        server = embedded.status(directory)
        if server is None or _daemons.find(home):
            return
        with psycopg.connect(server.url) as connection:
            others = connection.execute(
                "SELECT count(*) FROM pg_stat_activity "
                "WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()"
            ).fetchone()
        if others == (0,):
            embedded.stop(directory)
