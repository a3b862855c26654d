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

from regrow import _bootstrap, _daemons, _home
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
    """The embedded server on the data of this home; the last who reads it stops it."""
    directory = _home.postgres_directory(home)
    if not directory.exists():
        raise ClusterConnectionError(
            f"no cluster has kept data in {home} yet; set REGROW_HOME to the home of one that has, "
            "or REGROW_POSTGRES to its database"
        )
    readers = _home.readers(home)
    try:
        with _home.start_lock(home, LOCK_TIMEOUT_S):
            readers.hold()
            server = embedded.start(directory)
        yield server.url
    except embedded.EmbeddedPostgresError as error:
        raise ClusterConnectionError(str(error)) from None
    finally:
        with _home.start_lock(home, LOCK_TIMEOUT_S):
            if readers.release() and not _daemons.find(home):
                embedded.stop(directory)
        readers.close()
