"""A cluster of several nodes on this machine, for tests and for trying what happens when one dies.

Ray's ``ray.cluster_utils.Cluster``: a node is a process group of its own and can be killed whole.
It lives in a private home, deleted at ``shutdown``, unless ``home`` names one to keep.
"""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from regrow import _bootstrap, _daemons, _home
from regrow._daemons import NodeDaemon, NodeOptions
from regrow._home import NodeFile
from regrow._options import check_node
from regrow.exceptions import UnsupportedOptionError

#: Ray's defaults for a node of a test cluster.
NODE_DEFAULTS: Mapping[str, Any] = {
    "num_cpus": 1,
    "num_gpus": 0,
    "object_store_memory": 150 * 1024 * 1024,
}
NODE_ARGUMENTS = (
    "num_cpus", "num_gpus", "memory", "object_store_memory", "resources", "labels", "host",
)  # fmt: skip
GRACE_S = 5.0


class Node:
    """One node of the cluster; its process group holds its workers too."""

    def __init__(self, cluster: Cluster, daemon: NodeDaemon) -> None:
        self._cluster = cluster
        self._daemon = daemon
        self._file: NodeFile | None = None

    @property
    def process(self) -> Any:
        """The daemon, as a ``subprocess.Popen``."""
        return self._daemon.process

    @property
    def pid(self) -> int:
        """The daemon's, which is also the number of the node's process group."""
        return self._daemon.pid

    @property
    def log(self) -> Path:
        """Where the daemon writes."""
        return self._daemon.log

    @property
    def node_id(self) -> int:
        """Its number in the cluster. Waits until it is a member."""
        return self._ready().node_id

    @property
    def socket(self) -> str:
        """The Unix socket on which drivers and workers reach it. Waits until it is a member."""
        return self._ready().socket

    def kill(self) -> None:
        """SIGKILL its whole process group, as a power cut would, and wait until it is gone."""
        _daemons.kill_sessions([self.pid])

    def alive(self) -> bool:
        """Whether the daemon runs."""
        return self.process.poll() is None

    def _ready(self) -> NodeFile:
        if self._file is None:
            self._file = _bootstrap.await_node(self._cluster.home, self._daemon)
        return self._file

    def _end(self, grace_s: float) -> None:
        _daemons.end([self.pid], grace_s)
        self._daemon.close_pipe()

    def __repr__(self) -> str:
        number = self._file.node_id if self._file is not None else "starting"
        return f"<Node {number} pid={self.pid}>"


class Cluster:
    """Nodes on this machine. Use it as a context manager, or call ``shutdown``.

    ``head_node_args`` are those of ``add_node``; ``shutdown_at_exit`` ends the cluster when this
    process does. ``postgres`` and ``storage`` are as in ``init``.
    """

    def __init__(
        self,
        initialize_head: bool = False,
        connect: bool = False,
        head_node_args: Mapping[str, Any] | None = None,
        shutdown_at_exit: bool = True,
        *,
        home: Path | str | None = None,
        postgres: str | None = None,
        storage: str | None = None,
    ) -> None:
        if connect and not initialize_head:
            raise ValueError(
                "connect=True needs initialize_head=True: there is nothing to join yet"
            )
        self._private = home is None
        place = tempfile.mkdtemp(prefix="regrow-cluster-") if home is None else home
        #: Where the cluster lives.
        self.home = Path(os.path.realpath(Path(place).expanduser()))
        self._postgres = postgres
        self._storage = storage
        #: The first node; None before it is added and after it is removed.
        self.head_node: Node | None = None
        self.worker_nodes: list[Node] = []
        self._pid = os.getpid()
        self._ended = False
        #: Whether ``connect`` made this process a driver of it.
        self.connected = False
        if shutdown_at_exit:
            atexit.register(self.shutdown)
        try:
            if initialize_head:
                self.add_node(**(head_node_args or {}))
            if connect:
                self.connect()
        except BaseException:
            self.shutdown()
            raise

    @property
    def address(self) -> str:
        """What ``init(address=...)`` takes to join it from this machine."""
        return str(self.home)

    def list_all_nodes(self) -> list[Node]:
        """Those that were added and not removed, the head first."""
        return [*([self.head_node] if self.head_node is not None else []), *self.worker_nodes]

    def add_node(self, wait: bool = True, **node_args: Any) -> Node:
        """Start a node; the first one brings Postgres and the control store.

        Takes ``num_cpus`` (1), ``num_gpus`` (0), ``memory`` and ``object_store_memory`` (bytes),
        ``resources``, ``labels``, and ``host``, the address at which others reach it (127.0.0.1).
        With ``wait`` it is a member on return. Raises UnsupportedOptionError for other arguments,
        ValueError or TypeError for impossible amounts, ClusterConnectionError if it does not start.
        """
        assert not self._ended, "the cluster was shut down"
        unknown = sorted(set(node_args) - set(NODE_ARGUMENTS))
        if unknown:
            raise UnsupportedOptionError(
                f"add_node has no {', '.join(unknown)}; it takes {', '.join(NODE_ARGUMENTS)}"
            )
        check_node(node_args, "add_node()")
        options = NodeOptions(**{**NODE_DEFAULTS, **node_args})
        node = None
        if _bootstrap.look(self.home).gcs is None:
            node = self._start_head(options)
        if node is not None:
            self.head_node = node
        else:
            node = Node(self, _bootstrap.start_node(self.home, options))
            self.worker_nodes.append(node)
        if wait:
            try:
                node._ready()
            except BaseException:
                self._forget(node)
                raise
        return node

    def _start_head(self, options: NodeOptions) -> Node | None:
        """None if a head node lives: then only the control store was started again."""
        session = _bootstrap.start_head(
            self.home, postgres=self._postgres, storage=self._storage, options=options
        )
        return Node(self, session.daemon) if session.daemon is not None else None

    def remove_node(self, node: Node, allow_graceful: bool = True) -> None:
        """Stop a node, or with ``allow_graceful=False`` SIGKILL its process group at once.

        Postgres and the control store are not part of a node, not even of the head.
        """
        if allow_graceful:
            node._end(GRACE_S)
        else:
            node.kill()
            node._end(0)
        self._forget(node)

    def _forget(self, node: Node) -> None:
        if node is self.head_node:
            self.head_node = None
        elif node in self.worker_nodes:
            self.worker_nodes.remove(node)

    def connect(self, namespace: str | None = None) -> None:
        """Make this process a driver of the cluster."""
        import regrow

        assert self.list_all_nodes(), "add a node first"
        regrow.init(address=self.address, namespace=namespace)
        self.connected = True

    def wait_for_nodes(self, timeout: float = 30) -> None:
        """Wait until the log counts exactly the nodes that were added and not removed.

        So a killed node has been declared dead on return; and this driver's node, if it is
        connected, has heard of it. Raises TimeoutError after ``timeout`` seconds.
        """
        deadline = time.monotonic() + timeout
        wanted = sorted(node.node_id for node in self.list_all_nodes())
        while (known := self._members()) != wanted or (known := self._heard_of()) != wanted:
            if time.monotonic() > deadline:
                raise TimeoutError(
                    f"after {timeout:g} s the cluster counts the nodes {known}, not {wanted}"
                )
            time.sleep(0.05)

    def _heard_of(self) -> list[int]:
        """The nodes that this driver's node counts as alive; without a driver those of the log."""
        import regrow

        if not self.connected:
            return self._members()
        return sorted(int(node["NodeID"]) for node in regrow.nodes() if node["Alive"])

    def _members(self) -> list[int]:
        """The nodes that the log counts as alive."""
        import psycopg

        gcs = _home.read_gcs(self.home)
        if gcs is None:
            return []
        with psycopg.connect(gcs.postgres_url) as connection:
            rows = connection.execute("SELECT DISTINCT node_id FROM regrow.nodes WHERE alive")
            return sorted(int(node_id) for (node_id,) in rows)

    def shutdown(self) -> None:
        """Leave the cluster, end every process of it, and delete the home if it is private."""
        if self._ended or os.getpid() != self._pid:
            return
        self._ended = True
        atexit.unregister(self.shutdown)
        try:
            if self.connected:
                import regrow

                regrow.shutdown()
        finally:
            nodes = self.list_all_nodes()
            _daemons.end([node.pid for node in nodes], GRACE_S)
            for node in nodes:
                node._daemon.close_pipe()
            _bootstrap.stop(self.home)
            if self._private:
                self._delete_home()
        self.head_node = None
        self.worker_nodes = []

    def _delete_home(self) -> None:
        from regrow.gcs import embedded

        directory = _home.postgres_directory(self.home)
        if directory.exists():
            embedded.destroy(directory)
        shutil.rmtree(self.home)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()
