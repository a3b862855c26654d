"""Postgres servers of a test's own, for tests that stop, kill or misconfigure one."""

from __future__ import annotations

import itertools
import os
import shutil
import socket
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import psycopg
import pytest

from regrow.gcs import embedded, schema
from tests.store.worlds import Cluster, PostgresWorld, SimWorld, World

_schema_numbers = itertools.count(1)


@pytest.fixture(autouse=True)
def usual_temporary_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where tests of clusters keep their temporary files is closed to the server's user."""
    monkeypatch.delenv("TMPDIR", raising=False)
    monkeypatch.setattr(tempfile, "tempdir", None)


@pytest.fixture
def data_dir(tmp_path: Path, system_state: Path) -> Iterator[Path]:
    """A directory for one embedded server, which is stopped and deleted after the test."""
    folder = tmp_path / "postgres"
    yield folder
    embedded.destroy(folder)
    assert_no_server_of(system_state, tmp_path)


def assert_no_server_of(*folders: Path) -> None:
    """Fail if a server or supervisor whose data is under `folders`, but not the session's, lives.

    The session's own server is told by its data directory, which no test's folder contains.
    """
    asked = {str(folder) for folder in folders}
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            command = (entry / "cmdline").read_bytes().decode(errors="replace").split("\0")
        except (FileNotFoundError, ProcessLookupError):
            continue
        if "-D" not in command:
            continue
        home = Path(command[command.index("-D") + 1]).parent
        owner = home / "asked"
        place = owner.read_text().strip() if owner.exists() else str(home)
        for folder in asked:
            assert not place.startswith(folder), f"left behind: {' '.join(command)}"


@dataclass(frozen=True)
class PasswordServer:
    """A server on loopback TCP that asks for a password."""

    port: int
    user: str
    password: str
    #: The URL of the same server for its owner, over its Unix socket.
    owner_url: str

    def url(self, password: str | None = None, database: str = "regrow", user: str = "") -> str:
        """A URL with this password in it, or with none."""
        secret = "" if password is None else f":{password}"
        return f"postgresql://{user or self.user}{secret}@127.0.0.1:{self.port}/{database}"


def free_port() -> int:
    """A TCP port on loopback that nobody listened on a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="session")
def password_server(
    system_state: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[PasswordServer]:
    """A second server, reached as a server that the user runs would be."""
    folder = tmp_path_factory.mktemp("password-server")
    rules = system_state / "password_hba.conf"
    rules.write_text("local all all trust\nhost all all 127.0.0.1/32 scram-sha-256\n")
    port = free_port()
    settings = {"listen_addresses": "127.0.0.1", "port": str(port), "hba_file": str(rules)}
    server = embedded.start(folder, fsync=False, settings=settings)
    password = "correct-horse-battery"
    with psycopg.connect(server.url, autocommit=True) as connection:
        connection.execute(f"CREATE ROLE visitor LOGIN PASSWORD '{password}'")
    yield PasswordServer(port, "visitor", password, server.url)
    embedded.destroy(folder)
    rules.unlink()


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that every user may enter, unlike pytest's own; deleted after the test."""
    parent = Path(tempfile.mkdtemp(prefix="regrow-test-"))
    parent.chmod(0o755)
    yield parent
    shutil.rmtree(parent)


@pytest.fixture
def as_root() -> None:
    """For tests of what only root can do, such as running a server as another user."""
    if os.geteuid() != 0:
        pytest.skip("only root runs the server as another user")


@pytest.fixture(scope="session")
def schema_template(postgres_server: embedded.EmbeddedServer) -> Iterator[str]:
    """The name of a database with the schema and nothing in it, to be copied."""
    with psycopg.connect(postgres_server.url, autocommit=True) as connection:
        connection.execute("CREATE DATABASE schema_template")
    schema.upgrade(database_of(postgres_server.url, "schema_template"))
    yield "schema_template"
    with psycopg.connect(postgres_server.url, autocommit=True) as connection:
        connection.execute("DROP DATABASE schema_template WITH (FORCE)")


@pytest.fixture
def schema_url(postgres_server: embedded.EmbeddedServer, schema_template: str) -> Iterator[str]:
    """The URL of a new database with the schema, dropped after the test."""
    name = f"schema_{next(_schema_numbers)}"
    with psycopg.connect(postgres_server.url, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name} TEMPLATE {schema_template}")
    yield database_of(postgres_server.url, name)
    with psycopg.connect(postgres_server.url, autocommit=True) as connection:
        connection.execute(f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture(scope="session")
def _shared_world(
    postgres_server: embedded.EmbeddedServer, schema_template: str
) -> Iterator[PostgresWorld]:
    with psycopg.connect(postgres_server.url, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE shared TEMPLATE {schema_template}")
    world = PostgresWorld(database_of(postgres_server.url, "shared"))
    yield world
    world.close()
    with psycopg.connect(postgres_server.url, autocommit=True) as connection:
        connection.execute("DROP DATABASE shared WITH (FORCE)")


@pytest.fixture
def postgres_world(_shared_world: PostgresWorld) -> PostgresWorld:
    """An empty store in Postgres. Its database is shared: making one takes longer than a test."""
    _shared_world.clear()
    return _shared_world


@pytest.fixture(params=["postgres", "simulated"])
def world(request: pytest.FixtureRequest) -> World:
    """An empty store of either kind."""
    if request.param == "postgres":
        postgres: PostgresWorld = request.getfixturevalue("postgres_world")
        return postgres
    return SimWorld()


@pytest.fixture
def cluster(world: World) -> Cluster:
    """Two nodes and a job in a store of either kind."""
    return Cluster(world)


def database_of(url: str, name: str) -> str:
    """The URL of another database of the same server."""
    return urlunsplit(urlsplit(url)._replace(path=f"/{name}"))
