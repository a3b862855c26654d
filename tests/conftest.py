"""The Postgres server and the databases that every tier of tests may use.

One embedded server serves a session of tests; each test that asks for `database_url` gets a new
database in it. Nothing outlives the session: no process, folder or database.
"""

from __future__ import annotations

import itertools
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import psycopg
import pytest

from regrow.gcs import embedded

_database_numbers = itertools.count(1)


@pytest.fixture(scope="session", autouse=True)
def system_state() -> Iterator[Path]:
    """Keep what root's servers need in a folder that is deleted, not in the system's."""
    before = os.environ.get("REGROW_SYSTEM_STATE")
    folder = Path(tempfile.mkdtemp(prefix="regrow-state-"))
    folder.chmod(0o711)
    os.environ["REGROW_SYSTEM_STATE"] = str(folder)
    yield folder
    if before is None:
        del os.environ["REGROW_SYSTEM_STATE"]
    else:
        os.environ["REGROW_SYSTEM_STATE"] = before
    shutil.rmtree(folder)


@pytest.fixture(scope="session")
def postgres_server(
    system_state: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[embedded.EmbeddedServer]:
    """An embedded server that survives kills but not a power cut, which makes it quick."""
    data_dir = tmp_path_factory.mktemp("postgres")
    yield embedded.start(data_dir, fsync=False)
    embedded.destroy(data_dir)


@pytest.fixture
def database_url(postgres_server: embedded.EmbeddedServer) -> Iterator[str]:
    """The libpq URL of a new, empty database, which is dropped after the test."""
    name = f"test_{next(_database_numbers)}"
    with psycopg.connect(postgres_server.url, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}")
    parts = urlsplit(postgres_server.url)
    yield urlunsplit(parts._replace(path=f"/{name}"))
    with psycopg.connect(postgres_server.url, autocommit=True) as connection:
        connection.execute(f"DROP DATABASE {name} WITH (FORCE)")
