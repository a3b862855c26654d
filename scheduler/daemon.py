"""The node daemon: the shell around the node's core.

    python -m regrow.scheduler.daemon --home DIR --runtime-dir DIR [--num-cpus N] ...

Feeds the core with what sockets, timers, threads and Postgres bring, and carries out what it asks
for, in order.  An incarnation that is fenced ends by executing the program anew, with the node's
id: nothing of it is left, and what it was registers as the next incarnation.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import socket
import sys
import time
from pathlib import Path
from typing import assert_never

import uvloop

from regrow.config import Config
from regrow.gcs.client import ControlStoreLink
from regrow.gcs.operations import Append
from regrow.messages import (
    PROTOCOL_VERSION,
    Done,
    FromStore,
    Leave,
    NodeDied,
    Nodes,
    NodeView,
    Output,
    Register,
    Registered,
    RegisterRefused,
)
from regrow.objectstore.arena import Arena
from regrow.objectstore.core import StoreCore
from regrow.objectstore.fallback import FallbackFiles
from regrow.scheduler import events
from regrow.scheduler.bytes import ByteMover
from regrow.scheduler.clients import ArenaDoor, ClientServer
from regrow.scheduler.core import Core, NodeSettings
from regrow.scheduler.events import Effect, Event
from regrow.scheduler.logwriter import LogWriter
from regrow.scheduler.memory import MemoryGauge
from regrow.scheduler.options import NodeOptions, parse_options
from regrow.scheduler.peers import Credentials, PeerNetwork
from regrow.scheduler.pressure import is_pressed
from regrow.scheduler.processes import WorkerProcesses

logger = logging.getLogger(__name__)

_BUSY_TICK_S = 0.02
_IDLE_TICK_S = 0.2


class Daemon:
    """One incarnation of a node."""

    def __init__(self, options: NodeOptions, config: Config) -> None:
        self._options = options
        self._config = config
        self._loop = asyncio.get_running_loop()
        self._cluster = json.loads((options.home / "gcs.json").read_text())
        self._token = options.read_token()
        self._core: Core | None = None
        self._link = ControlStoreLink(self._store_address, self._name)
        self._registered: asyncio.Future[Registered] = self._loop.create_future()
        self._view: NodeView | None = None
        self._ended: asyncio.Future[Effect | None] = self._loop.create_future()
        self._last_append = 0.0
        self._busy = False
        self._tick_handle: asyncio.TimerHandle | None = None
        self._memory = MemoryGauge(config.memory_limit)

    # --- start ------------------------------------------------------------------------------------

    async def run(self) -> Effect | None:
        """Until the incarnation ends. Returns why: ``Restart``, ``StopNode``, or None on a
        signal."""
        options = self._options
        arena = Arena.create(options.object_store_memory)
        listening = _listening_socket(options.host)
        log = LogWriter(self._cluster["postgres_url"], self.on_event)
        self._log = log
        clients = ClientServer(self._token, self.on_event)
        self._clients = clients
        processes = WorkerProcesses(
            {"REGROW_HOME": str(options.home)}, arena.fd, options.log_dir, self.on_event
        )
        self._processes = processes
        processes.start()
        link_task = asyncio.ensure_future(
            self._link.run(self._store_said, self._store_up, self._store_down)
        )
        try:
            self._view = self._describe(arena.capacity, listening)
            self._register(self._view)
            async with asyncio.timeout(30):
                registered, _ = await asyncio.gather(self._registered, log.connect_first())
            await self._open(registered, arena, listening)
            return await self._ended
        finally:
            link_task.cancel()
            self._close()
            arena.close()

    def _store_address(self) -> str:
        """Where the control store is now: one that was started again has another port."""
        try:
            cluster = json.loads((self._options.home / "gcs.json").read_text())
        except (OSError, ValueError):
            cluster = self._cluster  # it is being written, or its writer is dead
        return str(cluster["address"])

    def _name(self) -> str:
        """As the chaos suite calls this node."""
        return str(self._view.node_id if self._view is not None else 0)

    def _describe(self, arena_size: int, listening: socket.socket) -> NodeView:
        options = self._options
        host, port = listening.getsockname()[:2]
        address = options.advertise or host
        total = options.resources(address)
        return NodeView(
            options.node_id, 0, address, port, "", total, total, 0,
            options.labels,
            True, options.is_head, socket.gethostname(), arena_size,
        )  # fmt: skip

    def _register(self, view: NodeView) -> None:
        self._link.send(Register(PROTOCOL_VERSION, self._token, view))

    async def _open(self, registered: Registered, arena: Arena, listening: socket.socket) -> None:
        """The node has an identity: it opens its doors."""
        options = self._options
        self_id = (registered.node_id, registered.incarnation)
        runtime = options.runtime_dir
        name = f"node-{registered.node_id}"
        assert self._view is not None
        view = _with_identity(self._view, self_id, str(runtime / f"{name}.sock"))
        self._view = view
        credentials = Credentials(self._token, self_id)
        spill_dir = options.spill_dir / f"{name}-{registered.incarnation}"
        files = FallbackFiles(spill_dir / "files")
        mover = ByteMover(
            arena, files, str(spill_dir / "spilled"), registered.storage, credentials,
            self.on_event, self._config.storage_retry_s,
        )  # fmt: skip
        self._mover = mover
        peers = PeerNetwork(credentials, self.on_event, mover.serve_bulk)
        self._peers = peers
        mover.network = peers
        door = runtime / f"{name}.arena"
        self._door = ArenaDoor(door, arena.fd)
        settings = NodeSettings(
            node_id=registered.node_id,
            incarnation=registered.incarnation,
            total=view.total,
            arena_size=arena.capacity,
            arena_path=str(door),
            storage=registered.storage,
            home=str(options.home),
            prestart=min(int(options.num_cpus) or 1, 8),
        )
        spill_capacity = options.spill_capacity or self._config.spill_capacity or None
        store = StoreCore(arena.capacity, spill_capacity)
        core = Core(settings, self._config, store, lambda key: str(files.path(key)))
        self._core = core
        core.now_ms = time.monotonic() * 1000
        self._processes.set_socket(view.socket_path, self._token)
        await self._clients.listen(Path(view.socket_path))
        peers.listen(listening)
        self._carry(core.start())
        self._store_said([registered])
        self._loop.add_signal_handler(signal.SIGTERM, self._drain)
        self._loop.add_signal_handler(signal.SIGINT, self._stop)
        self._tick()
        self._renew()
        if self._config.memory_monitor_refresh_ms > 0:
            self._measure()
        self._announce(view)

    def _announce(self, view: NodeView) -> None:
        """Tells whoever started the node that it is ready."""
        described = {
            "node_id": view.node_id,
            "incarnation": view.incarnation,
            "pid": os.getpid(),
            "socket": view.socket_path,
            "host": view.host,
            "port": view.port,
        }
        path = self._options.runtime_dir / f"node-{view.node_id}.json"
        temporary = path.with_suffix(".tmp")
        temporary.write_text(json.dumps(described))
        temporary.replace(path)
        self._options.tell_ready(view.node_id)
        logger.info("node %d, incarnation %d, is ready", view.node_id, view.incarnation)

    # --- events -----------------------------------------------------------------------------------

    def on_event(self, event: Event) -> None:
        """Feeds the core. Hot path."""
        core = self._core
        if core is None:
            return
        core.now_ms = time.monotonic() * 1000
        if isinstance(event, events.ClientArrived) and event.hello.role == "worker":
            self._processes.connected(event.hello.number, event.hello.pid)
        if isinstance(event, events.ClientGone):
            self._hear_last_words(event.client)
        self._carry(core.handle(event))
        if isinstance(event, events.WorkerExited) and event.number not in core.pool.workers:
            self._processes.last_words(event.number)  # it never came, or is gone already
        if not self._busy and core.tasks.tasks:
            self._tick()

    def _hear_last_words(self, client: int) -> None:
        """A worker's results that it had no time to send are as good as those it sent, and so is
        what it printed."""
        core = self._core
        assert core is not None
        worker = core.pool.by_client.get(client)
        if worker is None:
            return
        done = self._processes.last_words(worker.number)
        if done:
            self._carry(core.handle(events.ClientSaid(client, Done(done))))
        job, label = worker.label
        for stream, told in worker.told.items():
            data = self._processes.last_output(worker.pid, stream, told)
            if data:
                lines = data.removesuffix(b"\n").decode(errors="replace").split("\n")
                output = Output(stream, job, label, lines, told + len(data))
                self._carry(core.handle(events.ClientSaid(client, output)))

    def _store_said(self, messages: list[FromStore]) -> None:
        for message in messages:
            if self._core is None:
                if isinstance(message, Registered) and not self._registered.done():
                    self._registered.set_result(message)
                elif isinstance(message, RegisterRefused) and not self._registered.done():
                    self._registered.set_exception(PermissionError(message.message))
                continue
            if isinstance(message, Nodes | Registered):
                self._peers.update(message.nodes)
            elif isinstance(message, NodeDied):
                self._peers.node_died(message.node_id, message.incarnation)
            self.on_event(events.StoreSaid(message))

    def _store_up(self) -> None:
        """The stream is there (again): the node says who it is, before anything else."""
        if self._core is not None and self._view is not None:
            self._register(self._view)

    def _store_down(self) -> None:
        self.on_event(events.StoreLost())

    # --- effects ----------------------------------------------------------------------------------

    def _carry(self, effects: list[Effect]) -> None:  # noqa: C901 - one arm per effect
        for effect in effects:
            match effect:
                case events.ToClient(client, message):
                    self._clients.send(client, message)
                case events.AppendBatch(number, batch):
                    assert self._view is not None
                    node, incarnation = self._view.node_id, self._view.incarnation
                    self._last_append = time.monotonic()
                    self._log.send(Append(node, incarnation, number, batch))
                case events.ArmFlush():
                    delay_s = self._config.flush_interval_ms / 1000
                    self._loop.call_later(delay_s, self.on_event, events.FlushDue())
                case events.ToPeer(node_id, message):
                    self._peers.send(node_id, message)
                case events.ToControlStore(message):
                    self._link.send(message)
                case events.CloseClient(client):
                    self._clients.close_client(client)
                case events.WatchDriver(client):
                    self._clients.processes.watch(client)
                case events.StartWorker(number, env):
                    self._processes.fork(number, env)
                case events.KillWorker(number):
                    self._processes.kill(number)
                case events.MakeFile(key, size):
                    self._mover.make_file(key, size)
                case events.FetchBytes():
                    self._mover.fetch(effect)
                case events.LoadBytes():
                    self._mover.load(effect)
                case events.StoreBytes():
                    self._mover.store(effect)
                case events.ServeBytes():
                    self._mover.serve(effect)
                case events.SpillBytes():
                    self._mover.spill(effect)
                case events.RestoreBytes():
                    self._mover.restore(effect)
                case events.DeleteBytes():
                    self._mover.delete(effect)
                case events.DeleteStored():
                    self._mover.delete_stored(effect)
                case events.LeaveCluster(reason):
                    asyncio.ensure_future(self._leave(reason))  # noqa: RUF006 - ends with the loop
                case events.Restart() | events.StopNode():
                    if not self._ended.done():
                        self._ended.set_result(effect)
                case _:
                    assert_never(effect)

    # --- time -------------------------------------------------------------------------------------

    def _tick(self) -> None:
        core = self._core
        if core is None or self._ended.done():
            return
        if self._tick_handle is not None:
            self._tick_handle.cancel()
        self._busy = bool(core.tasks.tasks)
        delay_s = _BUSY_TICK_S if self._busy else _IDLE_TICK_S
        self._tick_handle = self._loop.call_later(delay_s, self._tick)
        self.on_event(events.Tick(time.monotonic() * 1000))

    def _renew(self) -> None:
        if self._core is None or self._ended.done():
            return
        interval_s = self._config.renew_interval_s
        if time.monotonic() - self._last_append >= interval_s:
            self._carry(self._core.renew())
        self._loop.call_later(interval_s, self._renew)

    def _measure(self) -> None:
        if self._core is None or self._ended.done():
            return
        config, pids = self._config, self._processes.pids
        used, limit = self._memory.read(pids.values())
        if is_pressed(used, limit, config.memory_usage_threshold):
            self.on_event(events.MemoryMeasured(used, limit, self._memory.sizes(pids)))
        self._loop.call_later(config.memory_monitor_refresh_ms / 1000, self._measure)

    # --- end --------------------------------------------------------------------------------------

    def _drain(self) -> None:
        """SIGTERM, as from whoever is about to take the machine away: the node gives its work away
        first, where others can take it. The second time it goes at once."""
        core = self._core
        assert core is not None
        if core.draining or not core.has_peers:
            self._stop()
        else:
            deadline_s = self._config.drain_deadline_s
            self.on_event(events.DrainAsked(deadline_s, "its process was asked to end"))

    def _stop(self) -> None:
        """SIGINT: what is done is committed, the rest goes to others."""
        asyncio.ensure_future(self._leave())  # noqa: RUF006 - ends with the loop

    async def _leave(self, reason: str = "") -> None:
        await self._log.drained(2.0)
        self._link.send(Leave(reason))
        await self._link.drained(1.0)
        if not self._ended.done():
            self._ended.set_result(None)

    def _close(self) -> None:
        self._processes.close()
        self._clients.close()
        self._log.close()
        if self._core is not None:
            assert self._view is not None
            self._peers.close()
            self._mover.close()
            self._door.close()
            name = f"node-{self._view.node_id}"
            for suffix in ("sock", "arena", "json"):
                (self._options.runtime_dir / f"{name}.{suffix}").unlink(missing_ok=True)


def _with_identity(view: NodeView, self_id: tuple[int, int], socket_path: str) -> NodeView:
    return NodeView(
        self_id[0], self_id[1], view.host, view.port, socket_path, view.total, view.available,
        view.queued, view.labels, view.alive, view.is_head, view.hostname, view.object_store_memory,
    )  # fmt: skip


def _listening_socket(host: str) -> socket.socket:
    sock = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.bind((host, 0))
    # Before anyone is told of the port: where nobody listens, a node is taken for dead.
    sock.listen(128)
    return sock


def main(argv: list[str] | None = None) -> int:
    """Runs a node until it is stopped. Returns the exit status."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    options = parse_options(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    options.wait_for_cluster()

    async def run() -> tuple[Effect | None, int]:
        daemon = Daemon(options, Config.from_environment())
        ended = await daemon.run()
        node_id = daemon._view.node_id if daemon._view is not None else options.node_id
        return ended, node_id

    try:
        ended, node_id = uvloop.run(run())
    except PermissionError as error:
        logger.error("%s", error)
        return 1
    if isinstance(ended, events.Restart):
        logger.warning("this incarnation is over (%s); the node registers anew", ended.reason)
        rest = options.without_node_id(arguments)
        program = [sys.executable, "-m", "regrow.scheduler.daemon"]
        os.execv(sys.executable, [*program, *rest, "--node-id", str(node_id)])
    if isinstance(ended, events.StopNode) and ended.reason:
        logger.error("%s", ended.reason)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
