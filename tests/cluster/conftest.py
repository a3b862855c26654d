"""Clusters of real processes, and the check that each test leaves nothing of them behind."""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import socket
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from urllib.parse import urlsplit

import psycopg
import pytest

from regrow.cluster_utils import Cluster
from regrow.gcs import embedded

#: In the environment of everything that these tests start.
MARK = "REGROW_TEST_RUN"
GONE_WITHIN_S = 10.0
SETTINGS_OF_THE_USER = (
    "REGROW_ADDRESS",
    "REGROW_POSTGRES",
    "REGROW_TOKEN",
    "PGPASSWORD",
    "PGPASSFILE",
)


@pytest.fixture(scope="session", autouse=True)
def own_environment(system_state: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Nothing of the user's cluster is touched; temporary files go to a folder that is checked."""
    folder = tmp_path_factory.mktemp("t")
    patch = pytest.MonkeyPatch()
    for name in SETTINGS_OF_THE_USER:
        patch.delenv(name, raising=False)
    patch.setenv(MARK, secrets.token_hex(8))
    patch.setenv("REGROW_HOME", str(tmp_path_factory.mktemp("h")))
    patch.setenv("TMPDIR", str(folder))
    patch.setattr(tempfile, "tempdir", None)
    yield folder
    patch.undo()


@pytest.fixture(autouse=True)
def nothing_left_behind(
    own_environment: Path, system_state: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[None]:
    """Fail a test that leaves a process, a server, a socket, shared memory or a temporary file."""
    places = [str(system_state), str(tmp_path_factory.getbasetemp())]
    before = Traces.now(own_environment, places)
    yield
    deadline = time.monotonic() + GONE_WITHIN_S
    while left := Traces.now(own_environment, places).since(before):
        if time.monotonic() > deadline:
            pytest.fail("left behind: " + "; ".join(left))
        time.sleep(0.05)


@dataclass(frozen=True)
class Traces:
    """What can be seen of clusters that this run of the tests started."""

    #: pid -> (session, command line)
    processes: dict[int, tuple[int, str]]
    files: frozenset[str]

    @classmethod
    def now(cls, temporary: Path, places: list[str]) -> Traces:
        """As it is now; ``places`` are the folders under which homes and servers' data lie."""
        files = {str(path) for path in Path("/dev/shm").glob("regrow*")}
        files |= {str(path) for path in temporary.iterdir()}
        for path in Path("/tmp").glob(f"regrow-{os.geteuid()}-*"):
            home = path / "home"
            if home.exists() and home.read_text().startswith(tuple(places)):
                files.add(str(path))
        return cls(_processes(places), frozenset(files))

    def since(self, before: Traces) -> list[str]:
        """What was not there before, nor started by what was."""
        sessions = {session for session, _ in before.processes.values()}
        new = [
            f"process {pid}: {command}"
            for pid, (session, command) in self.processes.items()
            if pid not in before.processes and session not in sessions
        ]
        return new + sorted(self.files - before.files)


def _processes(places: list[str]) -> dict[int, tuple[int, str]]:
    """Living processes with our mark, and servers whose data lies in these places."""
    mark = f"{MARK}={os.environ[MARK]}".encode()
    found = {}
    for entry in Path("/proc").glob("[0-9]*"):
        pid = int(entry.name)
        try:
            command = (entry / "cmdline").read_bytes().decode(errors="replace").split("\0")
            ours = mark in (entry / "environ").read_bytes().split(b"\0")
            ours |= "-D" in command and command[command.index("-D") + 1].startswith(tuple(places))
            if ours and pid != os.getpid() and command != [""]:
                found[pid] = (os.getsid(pid), " ".join(command))
        except (FileNotFoundError, ProcessLookupError, PermissionError):
            continue
    return found


@pytest.fixture
def kill_everything(
    own_environment: Path,
    system_state: Path,
    tmp_path: Path,
    postgres_server: embedded.EmbeddedServer,
) -> Callable[[], None]:
    """SIGKILL what this test started, its Postgres too; the server of the session is spared."""
    spared = os.getsid(postgres_server.pid)

    def kill() -> None:
        started = Traces.now(own_environment, [str(system_state), str(tmp_path)]).processes
        for pid, (session, _) in started.items():
            if session != spared:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)

    return kill


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home of the test's own, where nothing runs yet; REGROW_HOME names it."""
    monkeypatch.setenv("REGROW_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    """A cluster with a private home, without any node yet."""
    with Cluster() as cluster:
        yield cluster


@pytest.fixture
def regrow_session(home: Path) -> Iterator[ModuleType]:
    """The module, of which ``init`` was called: this process is the driver of its own cluster."""
    import regrow

    regrow.init()
    yield regrow
    regrow.shutdown()


@pytest.fixture
def database_url(database_url: str) -> Iterator[str]:
    """A database of the test's own on the session's server; nobody may stay connected to it."""
    yield database_url
    name = urlsplit(database_url).path[1:]
    deadline = time.monotonic() + GONE_WITHIN_S
    with psycopg.connect(database_url, autocommit=True) as connection:
        while True:
            left = connection.execute(
                "SELECT application_name, state, query FROM pg_stat_activity "
                "WHERE datname = %s AND pid <> pg_backend_pid()",
                [name],
            ).fetchall()
            if not left:
                break
            assert time.monotonic() < deadline, f"still connected: {left}"
            time.sleep(0.05)


@dataclass(frozen=True)
class PasswordServer:
    """A Postgres server on loopback TCP that asks for a password."""

    port: int
    user: str
    password: str

    def url(self, password: str | None) -> str:
        """Its URL with this password in it, or with none."""
        secret = "" if password is None else f":{password}"
        return f"postgresql://{self.user}{secret}@127.0.0.1:{self.port}/regrow"


@pytest.fixture(scope="session")
def password_server(
    own_environment: Path, tmp_path_factory: pytest.TempPathFactory, system_state: Path
) -> Iterator[PasswordServer]:
    """A server such as a user's own would be; its user owns the database."""
    folder = tmp_path_factory.mktemp("password-server")
    rules = system_state / "cluster_hba.conf"
    rules.write_text("local all all trust\nhost all all 127.0.0.1/32 scram-sha-256\n")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    settings = {"listen_addresses": "127.0.0.1", "port": str(port), "hba_file": str(rules)}
    server = embedded.start(folder, fsync=False, settings=settings)
    found = PasswordServer(port, "visitor", "correct-horse-battery")
    with psycopg.connect(server.url, autocommit=True) as connection:
        connection.execute(f"CREATE ROLE visitor LOGIN CREATEROLE PASSWORD '{found.password}'")
        connection.execute("ALTER DATABASE regrow OWNER TO visitor")
    yield found
    embedded.destroy(folder)
    rules.unlink()
