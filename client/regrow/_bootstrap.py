"""Joins the cluster that lives in a home, starts one there, and stops it.

Decides whether what is there lives, what must be started, and when what ``init`` started has ended.
Everything that changes a cluster happens under the home's start lock, so that any number of
processes may start, join and stop at once. It never speaks to a node: whoever holds a ``Session``
does, and calls ``attach`` again if the node is gone before it answered.
"""

from __future__ import annotations

import contextlib
import logging
import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from regrow import _daemons, _home, config
from regrow._daemons import Daemon, NodeDaemon, NodeOptions
from regrow._home import GcsFile, NodeFile, Presence
from regrow.exceptions import ClusterConnectionError, RaySystemError, UnsupportedOptionError

if TYPE_CHECKING:
    from regrow.gcs.postgres_progress import Patience

logger = logging.getLogger("regrow")

START_TIMEOUT_S = 60.0
#: A standby that ends at once, because it cannot use Postgres, does so within this.
STANDBY_WATCH_S = 2.0
#: A standby takes over within this, where there is one.
TAKE_OVER_S = 6.0
#: How long a node and the control store may take to stop in good order.
STOP_GRACE_S = 5.0
#: How long a cluster whose last driver left may take to begin to end by itself. One whose driver
#: was killed waits longer, for it to come back, and is stopped.
ABANDONED_GRACE_S = 1.5
#: How long it may take to end then.
END_GRACE_S = 10.0


class Session:
    """A driver's membership of a cluster on this machine; make one with ``attach``."""

    def __init__(
        self,
        home: Path,
        node_socket: str,
        token: str,
        *,
        started: bool,
        ephemeral: bool,
        lock: Presence | None,
        daemon: NodeDaemon | None = None,
    ) -> None:
        self.home = home
        self.runtime_dir = _home.runtime_directory(home)
        #: The Unix socket of a node that accepted a moment ago.
        self.node_socket = node_socket
        self.token = token
        #: Whether this call started the cluster (or its node on this machine).
        self.started = started
        #: Whether the cluster ends with its last driver.
        self.ephemeral = ephemeral
        #: The node that this call started, if it did.
        self.daemon = daemon
        self._lock = lock
        self._last = False
        self._pid = os.getpid()

    def local_sockets(self) -> list[str]:
        """The sockets of the nodes on this machine that accept now, lowest node id first.

        Raises ClusterConnectionError if the cluster was stopped on purpose.
        """
        if _home.was_stopped(self.home):
            raise ClusterConnectionError(
                f"the cluster in {self.home} was stopped with `regrow stop`. Results that were not "
                "fetched are in the log; see `regrow list tasks`."
            )
        return [node.socket for node in _home.read_nodes(self.home) if _home.accepts(node.socket)]

    def release(self) -> None:
        """Say that this driver is about to leave, before it tells its node so.

        Who attaches from now on does not join a cluster that is about to end.
        """
        if self._lock is not None and os.getpid() == self._pid:
            self._last = self._lock.release()
            self._lock.close()
            self._lock = None

    def close(self) -> None:
        """Leave. If the cluster ends with its last driver, and this was it, wait until it is gone.

        A cluster that does not end by itself is stopped. Calling it twice does nothing.
        """
        if os.getpid() != self._pid:  # a fork of the driver is no driver
            return
        self.release()
        if not (self._last and self.ephemeral):
            return
        self._last = False
        with _home.start_lock(self.home, START_TIMEOUT_S):
            _end_abandoned(self.home)


def attach(
    address: str | None = None,
    home: Path | str | None = None,
    postgres: str | None = None,
    storage: str | None = None,
    num_cpus: float | None = None,
    num_gpus: float | None = None,
    resources: Mapping[str, float] | None = None,
    object_store_memory: int | None = None,
    ephemeral: bool = True,
) -> Session:
    """Join the cluster that lives in the home, or start one there; the caller is a driver then.

    ``address`` (default: ``REGROW_ADDRESS``) is "auto" or a home: the cluster must run; "host:port"
    of a control store: a node of that cluster must run here; "local": none may run yet.
    ``postgres`` is by default ``REGROW_POSTGRES``, else the embedded server is used. What a node
    has can only be said where one is started, as in Ray.

    Raises ClusterConnectionError (a ConnectionError) if there is no cluster, or none could be
    started, or Postgres cannot be used; StorageError if the storage cannot; ValueError for what a
    running cluster cannot heed.
    """
    if address is None:
        address = os.environ.get("REGROW_ADDRESS") or None
    place, gcs_address = resolve(address, home)
    must_run = address not in (None, "local")
    if must_run and not place.is_dir():
        raise _nothing_there(place, gcs_address)
    place_of_objects = _storage_in_full(storage)
    options = NodeOptions(
        num_cpus, num_gpus, resources or {}, object_store_memory=object_store_memory
    )
    asked = {
        "num_cpus": num_cpus,
        "num_gpus": num_gpus,
        "resources": resources,
        "object_store_memory": object_store_memory,
    }
    _home.create(place)
    with _home.start_lock(place, START_TIMEOUT_S):
        cluster = _inspect(place)
        wanted = Wanted(_server(postgres), place_of_objects)
        if cluster.runs and address == "local":
            raise ClusterConnectionError(
                f"a cluster runs in {place} already; call init() without address='local' to join it"
            )
        if must_run and (not cluster.runs or not cluster.is_at(gcs_address)):
            raise _nothing_there(place, gcs_address)
        lock = _home.drivers(place)
        lock.hold()
        try:
            daemon = None
            if cluster.runs:
                _refuse_unheeded(cluster, wanted, {k for k, v in asked.items() if v is not None})
                socket = cluster.nodes[0].socket
            else:
                socket, daemon = _start(cluster, options, wanted, ephemeral=ephemeral)
            gcs = _find_gcs(place)
            return Session(
                place,
                socket,
                _home.token(place),
                started=not cluster.runs,
                ephemeral=gcs is not None and gcs.ephemeral,
                lock=lock,
                daemon=daemon,
            )
        except BaseException:
            lock.close()
            raise


def start_head(
    home: Path,
    *,
    postgres: str | None = None,
    storage: str | None = None,
    options: NodeOptions | None = None,
    ephemeral: bool = False,
    port: int = 0,
) -> Session:
    """Start a cluster that stays: Postgres, the control store and the head node.

    The session is no driver's. Raises ClusterConnectionError if one runs in this home already, or
    Postgres cannot be used; StorageError if the storage cannot.
    """
    place_of_objects = _storage_in_full(storage)
    _home.create(home)
    with _home.start_lock(home, START_TIMEOUT_S):
        cluster = _inspect(home)
        if not cluster.nodes and _is_remote(home):  # it was a part of another machine's cluster
            (home / "gcs.json").unlink()
            cluster = _inspect(home)
        if cluster.runs:
            raise ClusterConnectionError(
                f"a cluster runs in {home} already; `regrow status` shows it, `regrow stop` ends it"
            )
        wanted = Wanted(_server(postgres), place_of_objects, port)
        socket, daemon = _start(cluster, options or NodeOptions(), wanted, ephemeral=ephemeral)
        return Session(
            home,
            socket,
            _home.token(home),
            started=True,
            ephemeral=ephemeral,
            lock=None,
            daemon=daemon,
        )


def start_standby(home: Path, postgres: str | None = None) -> Daemon:
    """Start a control store beside the one of this home, which takes over when that is gone.

    Raises ClusterConnectionError if none runs here, or one that ends with its last driver.
    """
    with _home.start_lock(home, START_TIMEOUT_S):
        gcs, leader = _home.read_gcs(home), _find_gcs(home)
        if gcs is None or leader is None:
            raise ClusterConnectionError(
                f"no control store runs in {home}; start one with `regrow start --head`. A standby "
                "shares the folder of the cluster with it"
            )
        if leader.ephemeral:
            raise ClusterConnectionError(
                f"the cluster in {home} ends with its last driver, so it has no standby; start one "
                "that stays with `regrow start --head`"
            )
        named = postgres or os.environ.get("REGROW_POSTGRES") or None
        if named is None and _home.remembered_database(home):
            named = gcs.postgres_url
        host = gcs.address.rpartition(":")[0]
        standby = _daemons.start_standby(home, named, gcs.storage, host)
        with _ending_on_error([standby]):
            deadline = time.monotonic() + STANDBY_WATCH_S
            while time.monotonic() < deadline:
                standby.check()
                time.sleep(_daemons.POLL_INTERVAL_S)
        return standby


def start_node(
    home: Path, options: NodeOptions, *, node_id: int = 0, postgres: str | None = None
) -> NodeDaemon:
    """Start one more node for the cluster whose control store runs (or is named) in this home.

    Returns at once; ``await_node`` waits until it is a member. ``node_id`` brings back an old one.
    ``postgres`` may have the password that the cluster's own note of its server lacks. Raises
    ClusterConnectionError if there is no cluster, or its named server cannot be used.
    """
    gcs = look(home).gcs
    if gcs is None:
        raise _nothing_there(home, "")
    password = ""
    if _home.remembered_database(home):
        from regrow._named_server import check_postgres, password_of

        if postgres is not None:
            password = password_of(postgres, gcs.postgres_url)
        check_postgres(gcs.postgres_url, password)
    name = f"node-{time.time_ns() // 1_000_000:x}"
    return _daemons.start_node(home, options, name=name, node_id=node_id, password=password)


def await_node(home: Path, node: NodeDaemon, timeout_s: float = START_TIMEOUT_S) -> NodeFile:
    """Wait until a node is a member. Raises ClusterConnectionError, and ends it, if it is not."""
    deadline = time.monotonic() + timeout_s
    with _ending_on_error([node]):
        while not node.poll_ready(0.05):
            if time.monotonic() > deadline:
                raise _not_ready(node)
        return next(file for file in _home.read_nodes(home) if file.node_id == node.node_id)


def connect_remote(home: Path, address: str, postgres: str, storage: str = "") -> None:
    """Prepare this home for nodes of a cluster whose control store is on another machine.

    Raises ClusterConnectionError if a cluster of its own runs here or Postgres cannot be used.
    """
    from regrow._named_server import check_postgres, without_password

    _home.create(home)
    with _home.start_lock(home, START_TIMEOUT_S):
        cluster = _inspect(home)
        if cluster.gcs is not None or (cluster.nodes and not cluster.is_at(address)):
            raise ClusterConnectionError(
                f"another cluster runs in {home}; stop it, or set REGROW_HOME to another folder"
            )
        check_postgres(postgres)
        _home.token(home)
        _home.remember_database(home, without_password(postgres))
        _home.note_started(home)
        _home.write_remote_gcs(home, address, postgres, storage)


@dataclass(frozen=True)
class Wanted:
    """What a caller asks of the cluster as a whole."""

    #: None: the embedded server.
    postgres: str | None
    storage: str | None
    #: Of the control store; 0: any.
    port: int = 0


@dataclass(frozen=True)
class Cluster:
    """What lives in a home."""

    home: Path
    gcs: GcsFile | None
    #: Those that accept.
    nodes: list[NodeFile]

    @property
    def runs(self) -> bool:
        """Whether a driver can join."""
        return bool(self.nodes) and self.gcs is not None

    def is_at(self, address: str) -> bool:
        """Whether its control store has this address; any has the empty one."""
        return not address or (self.gcs is not None and self.gcs.address == address)


# Looking


def look(home: Path) -> Cluster:
    """What lives in a home, without changing anything.

    Where the control store is gone and a standby is about to take over, once it has.
    """
    gcs = _living_gcs(home)
    deadline = time.monotonic() + TAKE_OVER_S
    while gcs is None and _standbys(home) and time.monotonic() < deadline:
        time.sleep(_daemons.POLL_INTERVAL_S)
        gcs = _living_gcs(home)
    nodes = [node for node in _home.read_nodes(home) if _home.accepts(node.socket)]
    return Cluster(home, gcs, nodes)


def _inspect(home: Path) -> Cluster:
    """What lives in a home, once what was left by a killed or abandoned cluster is out of the way.

    The caller holds the start lock.
    """
    gcs = _find_gcs(home)
    if gcs is not None and gcs.ephemeral and not _home.has_drivers(home):
        _end_abandoned(home)
    cluster = look(home)
    if cluster.gcs is None:
        strays = [found.pid for found in _daemons.find(home) if found.module == _daemons.GCS_MODULE]
        _daemons.kill_sessions(strays)  # whoever started it was killed before it was ready
        (home / "gcs.json").unlink(missing_ok=True)
    living = {node.node_id for node in cluster.nodes}
    for node in _home.read_nodes(home):
        if node.node_id not in living and _daemons.identify(node.pid, home) is None:
            _daemons.kill_sessions(_daemons.orphans(home, [node.pid]))
            _home.remove_node_files(home, node)
    return cluster


def _living_gcs(home: Path) -> GcsFile | None:
    """The control store that is announced, unless it is dead; one on another machine may be."""
    gcs = _home.read_gcs(home)
    if gcs is None or not gcs.pid:
        return gcs
    found = _daemons.identify(gcs.pid, home)
    return gcs if found is not None and found.module == _daemons.GCS_MODULE else None


def _standbys(home: Path) -> list[_daemons.Found]:
    return [found for found in _daemons.find(home) if found.standby]


def _find_gcs(home: Path) -> _daemons.Found | None:
    """The control store of this home that runs on this machine."""
    gcs = _home.read_gcs(home)
    found = _daemons.identify(gcs.pid, home) if gcs is not None and gcs.pid else None
    return found if found is not None and found.module == _daemons.GCS_MODULE else None


def _is_remote(home: Path) -> bool:
    gcs = _home.read_gcs(home)
    return gcs is not None and gcs.pid == 0


def resolve(address: str | None, home: Path | str | None) -> tuple[Path, str]:
    """The home that an address means, and the control store's address if it names one."""
    place = Path(home).expanduser() if home is not None else config.home()
    gcs_address = ""
    if address not in (None, "auto", "local"):
        if "://" in address:
            raise UnsupportedOptionError(
                f"address={address!r}: a driver runs on a machine of the cluster and gives the "
                "cluster's home, 'auto', or HOST:PORT of its control store"
            )
        host, colon, port = address.rpartition(":")
        if colon and host and port.isdigit() and "/" not in address:
            gcs_address = address
        else:
            place = Path(address).expanduser()
    return Path(os.path.realpath(place)), gcs_address


def _nothing_there(home: Path, gcs_address: str) -> ClusterConnectionError:
    if gcs_address:
        return ClusterConnectionError(
            f"no node of the cluster at {gcs_address} runs on this machine in {home}; start one "
            f"with `regrow start --address {gcs_address}`"
        )
    return ClusterConnectionError(
        f"no cluster runs in {home}; start one with `regrow start --head`, "
        "or call init() without an address"
    )


def _server(postgres: str | None) -> str | None:
    """The server that is asked for; an empty name is refused when it is checked."""
    return os.environ.get("REGROW_POSTGRES") or None if postgres is None else postgres


def _storage_in_full(storage: str | None) -> str | None:
    if storage is None:
        return None
    from regrow._named_storage import in_full

    return in_full(storage)


def _refuse_unheeded(cluster: Cluster, wanted: Wanted, resources: set[str]) -> None:
    """Raise for what was asked of a cluster that runs already and cannot change."""
    gcs = cluster.gcs
    assert gcs is not None
    if resources:
        names = ", ".join(sorted(resources))
        raise ValueError(
            f"a cluster runs in {cluster.home} already, so {names} cannot be given: leave out, "
            "or set REGROW_HOME to another folder for a cluster of its own"
        )
    if wanted.postgres is not None:
        from regrow._named_server import same_database

        if not same_database(wanted.postgres, gcs.postgres_url):
            raise ClusterConnectionError(
                f"the cluster that runs in {cluster.home} has another database than the one asked "
                "for; stop it, or set REGROW_HOME to another folder"
            )
    if wanted.storage is not None and wanted.storage != gcs.storage:
        raise ClusterConnectionError(
            f"the cluster that runs in {cluster.home} has the storage {gcs.storage!r}, not "
            f"{wanted.storage!r}; stop it, or set REGROW_HOME to another folder"
        )


# Starting


def _start(
    cluster: Cluster, options: NodeOptions, wanted: Wanted, *, ephemeral: bool
) -> tuple[str, NodeDaemon | None]:
    """Start what is missing, all at once, and wait until a node is ready.

    Returns a node's socket, and the node if it was started. The caller holds the start lock.
    """
    home = cluster.home
    if cluster.gcs is None:
        kept = ""
        if wanted.postgres is not None:
            from regrow._named_server import check_postgres, without_password

            check_postgres(wanted.postgres)
            kept = without_password(wanted.postgres)
        if wanted.storage is not None:
            from regrow._named_storage import check_storage

            check_storage(wanted.storage)
        _home.remember_database(home, kept)
    else:
        _refuse_unheeded(cluster, wanted, set())
    _home.token(home)
    _home.note_started(home)
    started: list[Daemon] = []
    with _ending_on_error(started, home if cluster.gcs is None else None):
        gcs = None
        if cluster.gcs is None:
            gcs = _daemons.start_gcs(
                home,
                ephemeral=ephemeral,
                postgres=wanted.postgres,
                storage=wanted.storage,
                listen=f"{options.host}:{wanted.port}",
            )
            started.append(gcs)
        if cluster.nodes:  # only the control store was gone
            assert gcs is not None
            _await_gcs(home, gcs)
            return cluster.nodes[0].socket, None
        node = _daemons.start_node(
            home, options, name="node-head", head=True, postgres=wanted.postgres
        )
        started.append(node)
        return _await_head(home, gcs, node).socket, node


def _await_head(home: Path, gcs: Daemon | None, node: NodeDaemon) -> NodeFile:
    patience = _patience(home)
    while not node.poll_ready(0.05):
        if gcs is not None:
            gcs.check()
        _check_patience(patience, node)
    return next(file for file in _home.read_nodes(home) if file.node_id == node.node_id)


def _await_gcs(home: Path, gcs: Daemon) -> None:
    patience = _patience(home)
    while (file := _home.read_gcs(home)) is None or file.pid != gcs.pid:
        gcs.check()
        _check_patience(patience, gcs)
        time.sleep(_home.POLL_INTERVAL_S)


def _patience(home: Path) -> Patience:
    """As long as Postgres says that it recovers, which may take minutes; the user reads it, too."""
    from regrow.gcs.postgres_progress import Patience

    def tell(said: str) -> None:
        if "elapsed time" in said:
            logger.warning("Postgres recovers after a crash: %s", said)

    return Patience(_home.postgres_directory(home), START_TIMEOUT_S, tell)


def _check_patience(patience: Patience, daemon: Daemon) -> None:
    if patience.is_over():
        raise _not_ready(daemon)


def _not_ready(daemon: Daemon) -> ClusterConnectionError:
    return ClusterConnectionError(
        f"the {daemon.what} was not ready in time; see its log {daemon.log}, and that of the "
        f"control store beside it"
    )


@contextlib.contextmanager
def _ending_on_error(
    started: list[Daemon] | list[NodeDaemon], home: Path | None = None
) -> Iterator[None]:
    """On an error, leave nothing of what was started; with ``home``, no server either."""
    try:
        yield
    except BaseException:
        _daemons.kill_sessions([daemon.pid for daemon in started])
        for daemon in started:
            if isinstance(daemon, NodeDaemon):
                daemon.close_pipe()
        if home is not None:
            _stop_postgres(home, force=False)
            _home.remove_what_ended(home)
        raise


# Stopping


@dataclass(frozen=True)
class Stopped:
    """What ``stop`` found and ended."""

    nodes: int
    gcs: bool
    postgres: bool

    @property
    def anything(self) -> bool:
        """Whether anything ran."""
        return bool(self.nodes or self.gcs or self.postgres)


def stop(home: Path, *, force: bool = False) -> Stopped:
    """Stop the nodes of this machine, the control store and the embedded server of a home.

    Each is asked first, and killed after a grace (at once with ``force``). Raises RaySystemError if
    anything is left.
    """
    if not home.is_dir():
        return Stopped(0, gcs=False, postgres=False)
    with _home.start_lock(home, START_TIMEOUT_S):
        return _stop(home, force=force)


def _stop(home: Path, *, force: bool) -> Stopped:
    found = _daemons.find(home)
    nodes = [daemon.pid for daemon in found if daemon.module == _daemons.NODE_MODULE]
    stores = [daemon.pid for daemon in found if daemon.module == _daemons.GCS_MODULE]
    named = [node.pid for node in _home.read_nodes(home)]
    orphans = [pid for pid in _daemons.orphans(home, named) if pid not in nodes]
    grace_s = 0.0 if force else STOP_GRACE_S
    _home.note_stopped(home)  # drivers that lose their node now need not look for another
    gone = _daemons.end(nodes, grace_s)
    gone &= _daemons.kill_sessions(orphans)
    gone &= _daemons.end(stores, grace_s)
    had_postgres = _stop_postgres(home, force=force)
    left = [daemon.pid for daemon in _daemons.find(home)]
    if left or not gone:
        named_pids = ", ".join(map(str, left)) or "workers of its nodes"
        raise RaySystemError(f"processes of the cluster in {home} do not end: {named_pids}")
    _home.remove_what_ended(home)
    return Stopped(len(nodes), bool(stores), had_postgres)


def _stop_postgres(home: Path, *, force: bool) -> bool:
    """Stop the embedded server; whether it ran."""
    from regrow.gcs import embedded

    directory = _home.postgres_directory(home)
    if not directory.exists():
        return False
    try:
        ran = embedded.status(directory) is not None
        embedded.stop(directory, mode="immediate" if force else "fast")
    except embedded.EmbeddedPostgresError as error:
        raise RaySystemError(str(error)) from None
    return ran


def _end_abandoned(home: Path) -> None:
    """Let a cluster without drivers end, and stop what does not.

    The caller holds the start lock. Does nothing if a driver has come.
    """
    if _home.has_drivers(home):
        return
    deadline = time.monotonic() + ABANDONED_GRACE_S
    # The control store's first step to its end is to take back what it announced.
    while _find_gcs(home) is not None and time.monotonic() < deadline:
        time.sleep(_daemons.POLL_INTERVAL_S)
    if _find_gcs(home) is None:
        _daemons.await_gone([daemon.pid for daemon in _daemons.find(home)], END_GRACE_S)
    _stop(home, force=False)
