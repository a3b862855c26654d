"""The files of a cluster: its home, its token, its runtime directory, and what its daemons write.

Decides where each lies, who may read it, and whether what it says is still true. Starts and ends no
process. A home belongs to one user on one machine:

    <home>/token            the cluster's secret, mode 0600
    <home>/gcs.json         where the control store is (written by it when it is ready)
    <home>/database         what the last start used as its database, without any password
    <home>/stopped          there from a stop until the next start
    <home>/start.lock       held while somebody starts, joins or stops the cluster
    <home>/drivers.lock     held, shared, by every driver on this machine
    <home>/readers.lock     the same, by whoever reads the data of a cluster that has ended
    <home>/logs/            one file per daemon
    <home>/postgres/        the embedded server
    <runtime>/node-*.sock   a node's socket, and node-*.json what it says of itself

The runtime directory is `/tmp/regrow-<uid>-<hash of home>`: a Unix socket's path may have 107 bytes
only. It is not in XDG_RUNTIME_DIR, which is deleted when the user logs out, unlike the cluster.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import secrets
import shutil
import socket
import stat
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TypeVar

import msgspec

from regrow.exceptions import ClusterConnectionError

TOKEN_BYTES = 32
#: Logs that are kept besides those of the control store and the head: of nodes and workers.
LOGS_KEPT = 500
MAX_LOG_BYTES = 8 << 20
CONNECT_TIMEOUT_S = 2.0
POLL_INTERVAL_S = 0.02

T = TypeVar("T")


class GcsFile(msgspec.Struct, frozen=True):
    """What the control store writes into ``gcs.json`` when it is ready."""

    address: str
    #: 0: it runs on another machine.
    pid: int
    #: May hold a password: never shown.
    postgres_url: str
    cluster_id: str = ""
    storage: str = ""


class NodeFile(msgspec.Struct, frozen=True):
    """What a node writes into ``node-<id>.json`` when it is ready."""

    node_id: int
    incarnation: int
    pid: int
    socket: str
    host: str = ""
    port: int = 0


def create(home: Path) -> Path:
    """Make the home's folders, for this user only. Raises ClusterConnectionError."""
    try:
        home.mkdir(mode=0o700, parents=True, exist_ok=True)
        (home / "logs").mkdir(mode=0o700, exist_ok=True)
    except OSError as error:
        raise ClusterConnectionError(
            f"cannot make the home {home}: {error.strerror}; set REGROW_HOME to another folder"
        ) from None
    return home


def runtime_directory(home: Path) -> Path:
    """Where the sockets of this home's nodes are, whether it exists or not."""
    digest = hashlib.sha256(os.fsencode(os.path.realpath(home))).hexdigest()[:12]
    return Path(f"/tmp/regrow-{os.geteuid()}-{digest}")


def create_runtime_directory(home: Path) -> Path:
    """Make it, for this user only. Raises ClusterConnectionError if it belongs to another user."""
    path = runtime_directory(home)
    with contextlib.suppress(FileExistsError):
        path.mkdir(mode=0o700)
    found = path.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid():
        raise ClusterConnectionError(
            f"{path}, where the nodes' sockets are to be, is not a folder of this user's; "
            "delete it, or set REGROW_HOME to another folder"
        )
    if stat.S_IMODE(found.st_mode) != 0o700:
        path.chmod(0o700)
    (path / "home").write_text(f"{home}\n")
    return path


# The token


def token(home: Path, environ: Mapping[str, str] | None = None) -> str:
    """The cluster's token: REGROW_TOKEN, else the home's, which is made if there is none.

    Several callers may race and get the same one. Raises ClusterConnectionError if others may read
    the file.
    """
    env = os.environ if environ is None else environ
    path = home / "token"
    given = env.get("REGROW_TOKEN", "").strip()
    if given:
        # The daemons read the file.
        if not path.exists() or _read_token(path) != given:
            _write_private(path, given, replace=True)
        return given
    with contextlib.suppress(FileExistsError):
        if not path.exists():
            _write_private(path, secrets.token_urlsafe(TOKEN_BYTES), replace=False)
    return _read_token(path)


def _read_token(path: Path) -> str:
    with path.open() as file:
        found = os.fstat(file.fileno())
        if found.st_uid != os.geteuid() or found.st_mode & 0o077:
            raise ClusterConnectionError(
                f"{path} holds the cluster's secret and may be read by others; "
                f"run `chmod 600 {path}` as its owner, or delete it"
            )
        text = file.read().strip()
    if not text:
        raise ClusterConnectionError(f"{path} is empty; delete it, and a new token is made")
    return text


def _write_private(path: Path, text: str, *, replace: bool) -> None:
    """Write a file of mode 0600 that is there whole or not at all."""
    unfinished = path.with_name(f".{path.name}-{secrets.token_hex(4)}")
    descriptor = os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "w") as file:
            file.write(f"{text}\n")
        if replace:
            unfinished.replace(path)
        else:
            os.link(unfinished, path)  # fails if there is one already
    finally:
        unfinished.unlink(missing_ok=True)


# What daemons write


def read_gcs(home: Path) -> GcsFile | None:
    """What ``gcs.json`` says; None if there is none. It may be out of date."""
    return _read(home / "gcs.json", GcsFile)


def write_remote_gcs(home: Path, address: str, postgres_url: str, storage: str) -> None:
    """Note a control store on another machine, for the nodes that are started here."""
    note = GcsFile(address, 0, postgres_url, storage=storage)
    _write_private(home / "gcs.json", msgspec.json.encode(note).decode(), replace=True)


def read_nodes(home: Path) -> list[NodeFile]:
    """What the nodes of this machine say of themselves, in the order of their ids.

    Some may be dead; ``accepts`` tells.
    """
    paths = runtime_directory(home).glob("node-*.json")
    nodes = [node for path in paths if (node := _read(path, NodeFile)) is not None]
    return sorted(nodes, key=lambda node: node.node_id)


def _read(path: Path, kind: type[T]) -> T | None:
    try:
        return msgspec.json.decode(path.read_bytes(), type=kind)
    except (FileNotFoundError, NotADirectoryError, msgspec.MsgspecError):
        return None  # absent, or half written by a daemon that was killed


def accepts(path: str) -> bool:
    """Whether somebody accepts connections at this Unix socket."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(CONNECT_TIMEOUT_S)
        try:
            probe.connect(path)
        except OSError:
            return False
    return True


def remove_node_files(home: Path, node: NodeFile) -> None:
    """Delete what a dead node left in the runtime directory."""
    for path in runtime_directory(home).glob(f"node-{node.node_id}.*"):
        path.unlink(missing_ok=True)


def remove_what_ended(home: Path) -> None:
    """Delete what is of no use once nothing of the cluster runs: sockets and spilled objects."""
    (home / "gcs.json").unlink(missing_ok=True)
    shutil.rmtree(home / "spill", ignore_errors=True)
    path = runtime_directory(home)
    if not path.exists():
        return
    for entry in path.iterdir():
        if entry.name == "home" or entry.name.startswith("node-"):
            entry.unlink(missing_ok=True)
    with contextlib.suppress(OSError):  # somebody else's file in it, or gone already
        path.rmdir()


# Whether it was stopped


def note_stopped(home: Path) -> None:
    """Note that the cluster ends because somebody wants it to."""
    (home / "stopped").touch(mode=0o600)


def note_started(home: Path) -> None:
    """Note that it runs again."""
    (home / "stopped").unlink(missing_ok=True)


def was_stopped(home: Path) -> bool:
    """Whether what ended there since the last start was ended on purpose."""
    return (home / "stopped").exists()


# Which database


def remember_database(home: Path, conninfo: str) -> None:
    """Note what this start uses: "" for the embedded server, else conninfo without passwords."""
    _write_private(home / "database", conninfo, replace=True)


def remembered_database(home: Path) -> str:
    """What the last start used: "" for the embedded server, else conninfo without passwords."""
    try:
        return (home / "database").read_text().strip()
    except FileNotFoundError:
        return ""


def postgres_directory(home: Path) -> Path:
    """Where the embedded server keeps its data."""
    return home / "postgres"


# Locks


@contextlib.contextmanager
def start_lock(home: Path, timeout_s: float) -> Iterator[None]:
    """Hold the right to start, join or stop this home's cluster. Raises ClusterConnectionError."""
    descriptor = os.open(home / "start.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    deadline = time.monotonic() + timeout_s
    try:
        while not _try_lock(descriptor, fcntl.LOCK_EX):
            if time.monotonic() > deadline:
                raise ClusterConnectionError(
                    f"another process has been starting or stopping the cluster in {home} for "
                    f"{timeout_s:g} s; see {home / 'logs'}"
                )
            time.sleep(POLL_INTERVAL_S)
        yield
    finally:
        os.close(descriptor)


class Presence:
    """Tells other processes of this machine that somebody is there, for as long as it is held.

    The kernel gives it up when the process dies.
    """

    def __init__(self, path: Path) -> None:
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)

    def hold(self) -> None:
        """Be there. Waits only for a process that just now asks whether somebody is."""
        fcntl.flock(self._descriptor, fcntl.LOCK_SH)

    def release(self) -> bool:
        """Be there no longer; whether nobody is."""
        fcntl.flock(self._descriptor, fcntl.LOCK_UN)
        free = _try_lock(self._descriptor, fcntl.LOCK_EX)
        fcntl.flock(self._descriptor, fcntl.LOCK_UN)
        return free

    def close(self) -> None:
        """Release it and be done."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


def drivers(home: Path) -> Presence:
    """Of the drivers of this home's cluster, on this machine.

    A cluster that ``init`` started ends with its last driver, so if nobody is there it is ending.
    """
    return Presence(home / "drivers.lock")


def readers(home: Path) -> Presence:
    """Of those who read the data of this home where no cluster runs: the last stops the server."""
    return Presence(home / "readers.lock")


def has_drivers(home: Path) -> bool:
    """Whether a driver of this machine uses the cluster of this home."""
    lock = drivers(home)
    try:
        return not lock.release()
    finally:
        lock.close()


def _try_lock(descriptor: int, kind: int) -> bool:
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


# Logs


def log_path(home: Path, name: str) -> Path:
    """The log of the daemon ``name``; a large one is set aside, and the oldest others deleted."""
    folder = home / "logs"
    path = folder / f"{name}.log"
    with contextlib.suppress(FileNotFoundError):
        if path.stat().st_size > MAX_LOG_BYTES:
            path.replace(path.with_suffix(".log.1"))
    with os.scandir(folder) as entries:
        others = [e for e in entries if e.name not in ("gcs.log", "node-head.log")]
        others.sort(key=lambda entry: entry.stat().st_mtime, reverse=True)
    for old in others[LOGS_KEPT:]:
        os.unlink(old)
    return path


def tail(path: Path, start: int = 0, lines: int = 8) -> str:
    """The last lines of a log, of those written after byte ``start``."""
    try:
        with path.open("rb") as file:
            file.seek(max(start, path.stat().st_size - 16_384))
            text = file.read().decode(errors="replace")
    except FileNotFoundError:
        return ""
    return "\n".join([line for line in text.splitlines() if line.strip()][-lines:])
