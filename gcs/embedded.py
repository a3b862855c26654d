"""Runs a private Postgres server for one data directory, with nothing installed by hand.

Decides the server's settings, how it is started and stopped, and whether a server seen in a pid
file is really ours. It must not open a connection or know a schema, and it never deletes data
except in `destroy`.

The server listens on a Unix socket in a folder of mode 0700 and nowhere else; whoever may enter
that folder is trusted. `postgres_supervisor` is its parent.

Where the data lies, which for root is not where it was asked for, says `postgres_home`.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from urllib.parse import quote

from regrow.gcs import postgres_binaries, postgres_supervisor
from regrow.gcs.postgres_binaries import EmbeddedPostgresError, find_binaries
from regrow.gcs.postgres_home import POLL_INTERVAL_S, Home, claim_home, find_home, locked, resolved
from regrow.gcs.postgres_progress import Patience

__all__ = [
    "EmbeddedPostgresError",
    "EmbeddedServer",
    "destroy",
    "find_binaries",
    "start",
    "status",
    "stop",
]

DATABASE = "regrow"
SUPERUSER = "regrow"
MAX_LOG_BYTES = 8 << 20
NO_SETTINGS: Mapping[str, str] = MappingProxyType({})

#: Chosen for a log of many small commits by few connections, and for little memory when idle.
SETTINGS: Mapping[str, str] = MappingProxyType(
    {
        "cluster_name": "regrow",
        "listen_addresses": "",
        "port": "5432",
        "unix_socket_permissions": "0700",
        "max_connections": "60",
        "shared_buffers": "64MB",
        "huge_pages": "off",
        # Not posix: nothing may be left in /dev/shm, which containers keep at 64 MB besides.
        "dynamic_shared_memory_type": "mmap",
        "synchronous_commit": "on",
        "wal_level": "minimal",
        "max_wal_senders": "0",
        "max_wal_size": "2GB",
        # Not syncfs: the file system is mostly that of spilled objects too, which nobody needs
        # synced, and of whatever else the machine writes.
        "recovery_init_sync_method": "fsync",
        "checkpoint_timeout": "15min",
        "max_worker_processes": "4",
        "max_parallel_workers": "2",
        "max_parallel_workers_per_gather": "0",
        "max_logical_replication_workers": "0",
        "jit": "off",
        "autovacuum": "on",
        "timezone": "UTC",
        "log_timezone": "UTC",
        "log_line_prefix": "%m [%p] ",
        "log_checkpoints": "off",
        # LOG ranks above ERROR: a statement's error is its client's to report, not the log's.
        "log_min_messages": "log",
    }
)

#: What a server says that was started too soon after its predecessor was killed.
PREDECESSOR_NOT_GONE = ("already exists", "pre-existing shared memory block")


@dataclass(frozen=True)
class EmbeddedServer:
    """A server that accepts connections."""

    #: libpq URL, as psycopg takes it; for SQLAlchemy replace the scheme by `postgresql+psycopg`.
    url: str
    #: The postmaster's process id.
    pid: int
    #: The directory as the caller named it (resolved), not where root's data really lies.
    data_dir: Path


@dataclass(frozen=True)
class _Postmaster:
    """A living server of ours, as its pid file describes it."""

    pid: int
    port: int
    socket_directory: str
    ready: bool


def start(
    data_dir: Path,
    *,
    timeout_s: float = 50,
    fsync: bool = True,
    settings: Mapping[str, str] = NO_SETTINGS,
) -> EmbeddedServer:
    """Return the server of this data directory, creating and starting it as needed.

    Starting one that runs already returns it unchanged, whatever the settings; several callers may
    race. `settings` go over `SETTINGS`. `fsync=False` is for tests: a power cut loses the data.
    Raises EmbeddedPostgresError, also when a server that recovers from a crash has said nothing of
    it for `timeout_s`; it goes on recovering then, and a later call finds it.
    """
    patience = Patience(data_dir, timeout_s)
    running = status(data_dir)
    if running is not None:
        return running
    home = claim_home(resolved(data_dir))
    with locked(home, patience.is_over):
        while True:
            if _postmaster(home) is None:
                binaries = postgres_binaries.select(home.data, home.user)
                if not home.data.exists():
                    _create_data(home, binaries.directory, fsync=fsync)
                _write_configuration(home, binaries, fsync=fsync, settings=settings)
                _launch(home, binaries.directory, patience)
            # One that was found may be about to end: whoever was stopping it was killed.
            server = _await_ready(home, patience)
            if server is not None:
                return server


def status(data_dir: Path) -> EmbeddedServer | None:
    """Return the server of this data directory if one runs and accepts connections."""
    home = find_home(resolved(data_dir))
    if home is None:
        return None
    postmaster = _postmaster(home)
    if postmaster is None or not postmaster.ready:
        return None
    return _describe(home, postmaster)


def stop(data_dir: Path, mode: str = "fast", timeout_s: float = 10) -> None:
    """Stop the server of this data directory, if any runs, and wait until it is gone.

    `mode` is "smart" (wait for clients to leave), "fast" (end their sessions) or "immediate" (as in
    a crash; the next start recovers). After `timeout_s` an immediate shutdown follows, which loses
    nothing that was committed. Raises EmbeddedPostgresError if the server survives that too.
    """
    signals = {"smart": signal.SIGTERM, "fast": signal.SIGINT, "immediate": signal.SIGQUIT}
    if mode not in signals:
        raise ValueError(f"mode is {mode!r}; it must be one of {', '.join(signals)}")
    home = find_home(resolved(data_dir))
    if home is None:
        return
    deadline = time.monotonic() + timeout_s + 10
    with locked(home, lambda: time.monotonic() > deadline):
        postmaster = _postmaster(home)
        if postmaster is not None and not _stop(home, postmaster.pid, signals[mode], timeout_s):
            raise EmbeddedPostgresError(
                f"Postgres process {postmaster.pid} on {data_dir} does not stop; "
                f"its log is {home.log}"
            )
        with contextlib.suppress(OSError):  # not made yet, or a socket of somebody else's in it
            home.socket_directory.rmdir()


def _stop(home: Home, pid: int, number: signal.Signals, timeout_s: float) -> bool:
    """Send this signal, after `timeout_s` another; whether server and supervisor are gone then."""
    processes = [pid, *_supervisor_of(pid)]
    _send(home, pid, number)
    if _await_gone(processes, time.monotonic() + timeout_s):
        return True
    _send(home, pid, signal.SIGQUIT)
    # The server itself kills what does not heed SIGQUIT, after five seconds.
    return _await_gone(processes, time.monotonic() + 10)


def destroy(data_dir: Path) -> None:
    """Stop the server of this data directory and delete all of its data for good."""
    stop(data_dir, mode="immediate")
    asked = resolved(data_dir)
    try:
        path = Path((asked / "location").read_text().strip())
    except (FileNotFoundError, NotADirectoryError):
        path = asked
    for name in ("data", "data.new", "run"):
        if (path / name).exists():
            shutil.rmtree(path / name)
    for name in ("postgresql.conf", "pg_hba.conf", "postgres.log", "postgres.log.1", "asked"):
        (path / name).unlink(missing_ok=True)
    for folder in (path, asked):
        (folder / "lock").unlink(missing_ok=True)
        (folder / "location").unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # not ours alone, or never made
            folder.rmdir()


# Creating and configuring


def _create_data(home: Home, binaries: Path, *, fsync: bool) -> None:
    """Make the database cluster beside its place and rename it there when it is complete."""
    unfinished = home.path / "data.new"
    shutil.rmtree(unfinished, ignore_errors=True)
    home.user.make_directory(unfinished)
    initdb = [str(binaries / "initdb"), "-D", str(unfinished)]
    flavour = ["-U", SUPERUSER, "-E", "UTF8", "--locale=C", "--auth=trust", "--no-sync"]
    _run(home, [*initdb, *flavour, "--no-instructions"])
    # A single-user server renames the database without a client library and in milliseconds.
    rename = f"ALTER DATABASE postgres RENAME TO {DATABASE}\n"
    single = [str(binaries / "postgres"), "--single", "-F", "-D", str(unfinished), "template1"]
    _run(home, single, stdin=rename)
    if fsync:
        _run(home, [*initdb, "--sync-only"])
    unfinished.rename(home.data)


def _run(home: Home, command: list[str], stdin: str = "") -> None:
    try:
        done = subprocess.run(
            command,
            input=stdin,
            text=True,
            capture_output=True,
            timeout=120,
            cwd="/",
            env=_environment(),
            umask=0o077,
            **home.user.process_arguments(),
        )
    except (OSError, subprocess.SubprocessError) as error:
        raise EmbeddedPostgresError(
            f"{command[0]} could not run as user {home.user.name}: {error}"
        ) from error
    if done.returncode != 0 or "ERROR:" in done.stderr:
        reason = " ".join(done.stderr.split()) or f"exit status {done.returncode}"
        raise EmbeddedPostgresError(f"{command[0]} failed: {reason}")


def _environment() -> dict[str, str]:
    """The server's environment: nothing of the user's shell, in which PG* would change defaults."""
    return {"PATH": os.defpath, "LC_ALL": "C", "TZ": "UTC"}


def _write_configuration(
    home: Home,
    binaries: postgres_binaries.Binaries,
    *,
    fsync: bool,
    settings: Mapping[str, str],
) -> None:
    """Write our settings anew at each start; `ALTER SYSTEM` still goes over them."""
    home.user.make_directory(home.socket_directory)
    chosen = dict(SETTINGS)
    chosen["hba_file"] = str(home.path / "pg_hba.conf")
    chosen["unix_socket_directories"] = str(home.socket_directory)
    if binaries.major >= 18:
        chosen["io_method"] = "sync"  # the default keeps three idle processes for reading ahead
    if postgres_binaries.has_lz4(binaries.directory):
        chosen["wal_compression"] = "lz4"
    if not fsync:
        chosen |= {"fsync": "off", "full_page_writes": "off"}
    chosen |= settings
    lines = [f"{name} = '{_quoted(value)}'\n" for name, value in chosen.items()]
    _write(home.path / "postgresql.conf", "".join(lines))
    _write(home.path / "pg_hba.conf", "local all all trust\n")


def _quoted(value: str) -> str:
    return value.replace("\\", "\\\\").replace("'", "''")


def _write(path: Path, text: str) -> None:
    path.write_text(text)
    path.chmod(0o644)


# Running


def _launch(home: Home, binaries: Path, patience: Patience) -> None:
    """Start the supervisor and wait until the server runs or has said why it will not."""
    if home.log.exists() and home.log.stat().st_size > MAX_LOG_BYTES:
        home.log.rename(home.log.with_suffix(".log.1"))
    while True:
        _remove_foreign_pid_file(home)
        log_size = home.log.stat().st_size if home.log.exists() else 0
        alive = _launch_once(home, binaries, patience)
        if alive:
            return
        said = _log_since(home, log_size)
        if not any(text in said for text in PREDECESSOR_NOT_GONE) or patience.is_over():
            raise EmbeddedPostgresError(
                f"Postgres did not start on {home.data}: {_reason(said)} (log: {home.log})"
            )
        time.sleep(POLL_INTERVAL_S * 5)


def _launch_once(home: Home, binaries: Path, patience: Patience) -> bool:
    """Start the supervisor once; False if the server ended before it was ready."""
    configuration = f"config_file={home.path / 'postgresql.conf'}"
    server = [str(binaries / "postgres"), "-D", str(home.data), "-c", configuration]
    user = home.user
    supervisor = [sys.executable, "-I", "-S", postgres_supervisor.__file__]
    starter = subprocess.Popen(
        [*supervisor, str(user.uid), str(user.gid), str(home.log), *server],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        cwd="/",
        env=_environment(),
        start_new_session=True,
    )
    assert starter.stdout is not None
    with starter.stdout as pipe:
        starter.wait()
        os.set_blocking(pipe.fileno(), False)
        while not patience.is_over():
            if _ended(pipe.fileno()):
                return False
            postmaster = _postmaster(home)
            if postmaster is not None and postmaster.ready:
                return True
            time.sleep(POLL_INTERVAL_S)
    return True


def _ended(pipe: int) -> bool:
    """Whether the supervisor has closed its end, which it does only by ending."""
    try:
        return os.read(pipe, 4096) == b""
    except BlockingIOError:
        return False


def _await_ready(home: Home, patience: Patience) -> EmbeddedServer | None:
    """None: it has ended."""
    while True:
        postmaster = _postmaster(home)
        if postmaster is not None and postmaster.ready:
            return _describe(home, postmaster)
        if patience.is_over():
            raise EmbeddedPostgresError(
                f"Postgres on {home.data} is not ready yet, and has not said lately how far it is; "
                f"it may be recovering from a crash and goes on doing so: try again, or see "
                f"{home.log}"
            )
        if postmaster is None:
            return None
        time.sleep(POLL_INTERVAL_S)


def _describe(home: Home, postmaster: _Postmaster) -> EmbeddedServer:
    port = "" if postmaster.port == 5432 else f"&port={postmaster.port}"
    host = quote(postmaster.socket_directory, safe="/")
    url = f"postgresql://{SUPERUSER}@/{DATABASE}?host={host}{port}"
    return EmbeddedServer(url, postmaster.pid, home.asked)


def _log_since(home: Home, offset: int) -> str:
    try:
        with home.log.open("rb") as log:
            log.seek(offset)
            return log.read(1 << 20).decode(errors="replace")
    except FileNotFoundError:
        return ""


def _reason(said: str) -> str:
    """The lines of a server's log that tell why it ended, as one."""
    told = r"(?:FATAL|PANIC): +(.*)|LOG: +((?:invalid value|unrecognized|could not).*)"
    reasons = [fatal or log for fatal, log in re.findall(told, said)] or said.splitlines()[-2:]
    return "; ".join(reasons) or "it gave no reason"


# Which process is ours


def _postmaster(home: Home) -> _Postmaster | None:
    """Return the living server that the pid file names, if it is one and is ours."""
    try:
        lines = (home.data / "postmaster.pid").read_text().splitlines()
        pid = int(lines[0])
    except (FileNotFoundError, IndexError, ValueError):
        return None
    if not _is_our_server(home, pid):
        return None
    ready = len(lines) >= 8 and lines[7].strip() == "ready"
    port = int(lines[3]) if len(lines) > 3 else 0
    return _Postmaster(pid, port, lines[4] if len(lines) > 4 else "", ready)


def _command_line(pid: int) -> list[bytes]:
    """The arguments of a living process; empty for a zombie, which counts as dead."""
    try:
        line = Path(f"/proc/{pid}/cmdline").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return []
    return line.split(b"\0") if line else []


def _is_our_server(home: Home, pid: int) -> bool:
    """Judge by the command line: a pid alone may by now belong to any process."""
    command = _command_line(pid)
    return (
        len(command) > 2
        and os.path.basename(command[0]) == b"postgres"
        and command[1:3] == [b"-D", os.fsencode(home.data)]
    )


def _supervisor_of(pid: int) -> list[int]:
    """The pid of a server's supervisor, unless that has died before it."""
    try:
        after_name = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return []
    parent = int(after_name[1])
    script = os.fsencode(postgres_supervisor.__file__)
    return [parent] if script in _command_line(parent) else []


def _remove_foreign_pid_file(home: Home) -> None:
    """Remove a pid file whose pid now belongs to another process or to a zombie.

    Postgres would take either for a running server. A pid file with a dead pid stays: by it
    Postgres finds the shared memory of orphaned backends, and clears it up itself.
    """
    path = home.data / "postmaster.pid"
    try:
        pid = int(path.read_text().split()[0])
    except (FileNotFoundError, IndexError, ValueError):
        return
    if Path(f"/proc/{pid}").exists() and not _is_our_server(home, pid):
        path.unlink(missing_ok=True)


def _send(home: Home, pid: int, number: signal.Signals) -> None:
    if _is_our_server(home, pid):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


def _await_gone(pids: list[int], deadline: float) -> bool:
    while any(_command_line(pid) for pid in pids):
        if time.monotonic() > deadline:
            return False
        time.sleep(POLL_INTERVAL_S)
    return True
