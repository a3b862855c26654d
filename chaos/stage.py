"""The cluster on which a run takes place, and every handle by which a fault can take hold of it.

Starts and ends processes, and finds them: nodes and their workers, the control store, Postgres, the
driver. Decides nothing: what is done to whom and when is the nemeses' and the harness's. All that
it starts carries a mark in its environment, so that what is left behind can be found.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, Self

import msgspec
import psycopg

from regrow import _bootstrap, _daemons, _home
from regrow.chaos.history import Recorder
from regrow.chaos.namespaces import Network
from regrow.chaos.postgres_proxy import PostgresProxy
from regrow.chaos.scenario import Scenario
from regrow.cluster_utils import Cluster, Node
from regrow.gcs import embedded

#: In the environment of every process of a run.
MARK: Final = "REGROW_CHAOS_RUN"
#: What the user's own cluster is called must not leak into the run.
USER_SETTINGS: Final = ("REGROW_ADDRESS", "REGROW_POSTGRES", "REGROW_TOKEN", "REGROW_HOME")
START_S: Final = 60.0
#: A note of a driver's start: its life.
DRIVER_STARTED: Final = "driver_started"
POLL_S: Final = 0.02


class DriverSpec(msgspec.Struct):
    """What ``python -m regrow.chaos.driver`` is told, as a JSON file."""

    home: str
    workload: str
    parameters: dict[str, Any]
    seed: int
    clients: int
    history: str
    #: On the machine's monotonic clock: when the clients stop. Of the first driver it is so long
    #: after it was ready.
    ends_at_s: float
    duration_s: float
    #: Of a named job, which is resumed; "": none.
    job: str = ""
    #: Counts the drivers of a run.
    life: int = 1


class Stage:
    """See the module. A context manager: everything is ended at its end."""

    def __init__(self, scenario: Scenario, seed: int, recorder: Recorder, folder: Path) -> None:
        self.scenario = scenario
        self.seed = seed
        self.recorder = recorder
        #: Where the run keeps what is not the cluster's own.
        self.folder = folder.resolve()
        self.mark = secrets.token_hex(8)
        #: See `regrow.failpoints`.
        self.failpoints = self.folder / "failpoints"
        #: Of a scenario with namespaces; the address of each node, by its pid.
        self.network: Network | None = None
        #: Of a scenario with a disk of its own: where that is mounted.
        self.disk: Path | None = None
        self.addresses: dict[int, str] = {}
        self._before: dict[str, str | None] = {}
        self._ends = contextlib.ExitStack()
        self.cluster: Cluster
        self.proxy: PostgresProxy | None = None
        self._server: Path | None = None
        self.driver: subprocess.Popen[bytes] | None = None
        self._driver_spec: DriverSpec | None = None
        #: Drivers that nemeses have killed: what they end with is no fault of the product.
        self.killed_drivers: set[int] = set()
        #: Nodes as they are wanted; what nemeses kill is started again.
        self.wanted_nodes = scenario.nodes

    # Start and end

    def __enter__(self) -> Self:
        try:
            self._start()
        except BaseException:
            self._ends.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._ends.close()

    def _start(self) -> None:
        self._ends.callback(self._restore_environment)
        self._set_environment()
        postgres = None
        if self.scenario.proxy:
            postgres = self._start_own_server()
        if self.scenario.network == "namespaces":
            self.network = Network()
            self._ends.callback(self.network.close)
        home = self._mount() if self.scenario.disk_mib else None
        self.cluster = Cluster(postgres=postgres, home=home)
        self._ends.callback(self._shut_down)
        for _ in range(self.scenario.nodes):
            self.add_node()
        self.cluster.wait_for_nodes(START_S)
        if self.scenario.standby:
            self.start_standby()

    def _mount(self) -> Path:
        """A disk of the run's own, in memory; a home on it."""
        if os.geteuid() != 0:
            raise RuntimeError("a disk of its own (disk_mib) needs root, to be mounted")
        place = self.disk = Path(tempfile.mkdtemp(prefix="regrow-chaos-disk-"))
        self._ends.callback(place.rmdir)
        size = f"size={self.scenario.disk_mib}m,mode=0711"
        subprocess.run(["mount", "-t", "tmpfs", "-o", size, "regrow-chaos", str(place)], check=True)
        self._ends.callback(subprocess.run, ["umount", "-l", str(place)], check=True)
        return place / "home"

    def _set_environment(self) -> None:
        changes: dict[str, str | None] = dict.fromkeys(USER_SETTINGS)
        changes[MARK] = self.mark
        for folder in (self.failpoints, self.failpoints / "crash", self.failpoints / "fired"):
            folder.mkdir(mode=0o700, exist_ok=True)
        changes["REGROW_FAILPOINTS"] = str(self.failpoints)
        # So that what is left at rest shows soon.
        changes["REGROW_REBUILT_KEPT_S"] = "2"
        changes |= self.scenario.environment
        for name, value in changes.items():
            self._before[name] = os.environ.get(name)
            _set(name, value)

    def _restore_environment(self) -> None:
        for name, value in self._before.items():
            _set(name, value)

    def _start_own_server(self) -> str:
        """A server of the run's own, behind a proxy on a Unix socket; the URL of the proxy."""
        self._server = Path(tempfile.mkdtemp(prefix="regrow-chaos-pg-"))
        self._ends.callback(self._destroy_own_server, self._server)
        server = embedded.start(self._server)
        sockets = Path(tempfile.mkdtemp(prefix="regrow-chaos-proxy-"))
        self._ends.callback(shutil.rmtree, sockets)
        self.proxy = self._ends.enter_context(PostgresProxy.in_front_of(server.url, sockets))
        return self.proxy.url

    @staticmethod
    def _destroy_own_server(folder: Path) -> None:
        embedded.destroy(folder)
        shutil.rmtree(folder, ignore_errors=True)

    def _shut_down(self) -> None:
        self.end_driver()
        self.save_logs()
        self.cluster.shutdown()
        if self.disk is not None:
            embedded.destroy(_home.postgres_directory(self.home))

    def save_logs(self) -> None:
        """Keep a copy of the cluster's logs with the run."""
        logs = self.home / "logs"
        if logs.is_dir():
            shutil.copytree(logs, self.folder / "logs", dirs_exist_ok=True)

    # Looking

    @property
    def home(self) -> Path:
        """Where the cluster lives."""
        return self.cluster.home

    def nodes(self) -> list[Node]:
        """Those that are meant to run and do, in the order of their start."""
        return [node for node in self.cluster.list_all_nodes() if node.alive()]

    def workers(self, node: Node) -> list[int]:
        """Its worker processes."""
        return _daemons.workers_of(node.pid)

    def gcs_pid(self) -> int:
        """Of the control store that leads; 0: none does."""
        running = _home.read_gcs(self.home)
        if running is None or _daemons.identify(running.pid, self.home) is None:
            return 0
        return running.pid

    def postgres_directory(self) -> Path:
        """The data directory of the server, as `regrow.gcs.embedded` takes it."""
        return self._server or _home.postgres_directory(self.home)

    def postgres_pid(self) -> int:
        """Of the server; 0: none accepts connections."""
        server = embedded.status(self.postgres_directory())
        return server.pid if server is not None else 0

    def postgres_url(self) -> str:
        """Of the server itself, whatever is in front of it. Raises RuntimeError if none runs."""
        server = embedded.status(self.postgres_directory())
        if server is None:
            raise RuntimeError(f"no Postgres server runs on {self.postgres_directory()}")
        return server.url

    def rows(self, query: str, *arguments: Any) -> list[tuple[Any, ...]]:
        """The answer of the log."""
        with psycopg.connect(self.postgres_url(), autocommit=True) as connection:
            return connection.execute(query.encode(), arguments or None).fetchall()

    def storage(self) -> Path:
        """The folder in which objects are stored."""
        running = _home.read_gcs(self.home)
        assert running is not None, "a control store has run"
        return Path(running.storage)

    # Starting parts

    def add_node(self, **options: Any) -> Node:
        """One more node, a member on return."""
        scenario = self.scenario
        given: dict[str, Any] = {
            "num_cpus": scenario.cpus,
            "object_store_memory": scenario.object_store_memory,
        }
        given |= options
        network = self.network
        if network is None:
            return self.cluster.add_node(**given)
        address = network.bridge if not self.addresses else network.add()
        with network.inside(address):
            node = self.cluster.add_node(host=address, **given)
        self.addresses[node.pid] = address
        return node

    def replace_dead_nodes(self) -> None:
        """Bring the number of nodes back to what is wanted."""
        for node in self.cluster.list_all_nodes():
            if not node.alive():
                self.cluster.remove_node(node, allow_graceful=False)
        while len(self.nodes()) < self.wanted_nodes:
            self.add_node()

    def ensure_gcs(self) -> None:
        """Bring a control store back, if none runs, and its standby."""
        if self.scenario.standby:
            wait_until(lambda: self.gcs_pid() != 0, START_S)
            if not self._standby_waits():
                self.start_standby()
        elif not self.gcs_pid():
            self.start_gcs()

    def _standby_waits(self) -> bool:
        leader = self.gcs_pid()
        found = _daemons.find(self.home)
        return any(one.module == _daemons.GCS_MODULE and one.pid != leader for one in found)

    def ensure_postgres(self) -> None:
        """Start the run's own server, if it is down; the embedded one the control store starts."""
        if self._server is not None:
            embedded.start(self._server, timeout_s=START_S)

    def start_standby(self) -> None:
        """A control store that takes over."""
        daemon = _bootstrap.start_standby(self.home)
        self._ends.callback(_daemons.kill_sessions, [daemon.pid])

    def start_gcs(self) -> None:
        """A control store, if none runs; it is ready on return."""
        running = _home.read_gcs(self.home)
        storage = running.storage if running is not None else None
        postgres = self.proxy.url if self.proxy is not None else None
        host = self.network.bridge if self.network is not None else "127.0.0.1"
        daemon = _daemons.start_gcs(
            self.home, ephemeral=False, postgres=postgres, storage=storage, listen=f"{host}:0"
        )
        wait_until(lambda: self.gcs_pid() == daemon.pid, START_S, daemon.check)

    def start_everything(self) -> None:
        """After all was killed: what `regrow start` does, for as many nodes as there were."""
        self.ensure_postgres()
        self.replace_dead_nodes()
        self.cluster.wait_for_nodes(START_S)

    # The driver

    @property
    def driver_spec(self) -> DriverSpec:
        """What the driver was told."""
        assert self._driver_spec is not None, "it was started"
        return self._driver_spec

    def start_driver(self, spec: DriverSpec) -> None:
        """Start the driver; its output goes to the run's folder."""
        self._driver_spec = spec
        file = self.folder / f"driver-{spec.life}.json"
        file.write_bytes(msgspec.json.encode(spec))
        with (self.folder / f"driver-{spec.life}.log").open("wb") as log:
            self.driver = subprocess.Popen(
                [sys.executable, "-P", "-m", "regrow.chaos.driver", str(file)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self.recorder.note(DRIVER_STARTED, spec.life)

    def restart_driver(self) -> None:
        """The same program once more, as somebody would who finds it killed."""
        spec = self.driver_spec
        self.start_driver(msgspec.structs.replace(spec, life=spec.life + 1))

    def driver_runs(self) -> bool:
        """Whether there is one."""
        return self.driver is not None and self.driver.poll() is None

    def end_driver(self) -> None:
        """Kill it, if it still runs."""
        if self.driver is not None and self.driver.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.driver.pid, signal.SIGKILL)
            self.driver.wait()

    def driver_said(self) -> str:
        """The last lines of its output."""
        return _home.tail(self.folder / f"driver-{self.driver_spec.life}.log")

    def save_stacks(self) -> None:
        """Ask the driver to write the stacks of its threads into its log."""
        if self.driver is not None and self.driver_runs():
            self.driver.send_signal(signal.SIGUSR1)
            time.sleep(POLL_S * 10)

    # What is left

    def left_behind(self) -> list[str]:
        """Processes, sockets, shared memory and folders of this run."""
        left = [f"process {pid}: {command}" for pid, command in self.marked_processes().items()]
        places = [_home.runtime_directory(self.home), self.disk or self.home]
        left += [f"folder {place}" for place in places if place.exists()]
        return left

    def marked_processes(self) -> dict[int, str]:
        """Living processes of this run, without the harness itself: pid and command line."""
        mark = f"{MARK}={self.mark}".encode()
        found = {}
        for entry in Path("/proc").glob("[0-9]*"):
            pid = int(entry.name)
            with contextlib.suppress(OSError):
                if pid != os.getpid() and mark in (entry / "environ").read_bytes().split(b"\0"):
                    command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").strip()
                    if command:
                        found[pid] = command.decode(errors="replace")
        return found


def wait_until(condition: Any, timeout_s: float, check: Any = None) -> None:
    """Polls; ``check`` may raise. Raises TimeoutError."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        if check is not None:
            check()
        if time.monotonic() > deadline:
            raise TimeoutError(f"not within {timeout_s:g} s")
        time.sleep(POLL_S)


@contextlib.contextmanager
def run_folder(wanted: Path | None) -> Iterator[Path]:
    """The folder of a run: the given one, which stays, or one that is deleted."""
    if wanted is not None:
        wanted.mkdir(parents=True, exist_ok=True)
        yield wanted
        return
    folder = Path(tempfile.mkdtemp(prefix="regrow-chaos-"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


def _set(name: str, value: str | None) -> None:
    if value is None:
        os.environ.pop(name, None)
    else:
        os.environ[name] = value
