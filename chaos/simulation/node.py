"""The shell of a simulated node: what ``regrow.scheduler.daemon`` does, over simulated parts.

A *life* is one incarnation of the process: it has a core, workers, memory and connections, and all
of that is gone with it. Whatever was scheduled for an earlier life does not happen; what comes for
a paused one happens when it goes on.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, assert_never

from regrow.chaos.simulation.clients import SimClient
from regrow.chaos.simulation.drivers import SimDriver
from regrow.chaos.simulation.node_bytes import NodeBytes
from regrow.chaos.simulation.node_log import NodeLog
from regrow.chaos.simulation.node_peers import NodePeers
from regrow.chaos.simulation.workers import SimWorker
from regrow.chaos.simulation.world import Pipe
from regrow.config import Config
from regrow.gcs.operations import Append
from regrow.messages import (
    PROTOCOL_VERSION,
    ClientMessage,
    FromStore,
    Hello,
    Leave,
    NodeDied,
    Nodes,
    NodeStatus,
    NodeView,
    ObjectsHere,
    PeerMessage,
    Register,
    Registered,
    Resources,
    ToStore,
)
from regrow.objectstore.core import StoreCore
from regrow.scheduler import events
from regrow.scheduler.core import Core, NodeSettings
from regrow.scheduler.events import Effect, Event

if TYPE_CHECKING:
    from regrow.chaos.simulation.cluster import Cluster
    from regrow.chaos.simulation.control import ControlShell

#: A node that leaves waits so long for its last batches, and for its word to the control store.
LOGGED_WITHIN_MS: Final = 2_000.0
TOLD_WITHIN_MS: Final = 1_000.0


class NodeShell:
    """A node: down, or in one of its lives."""

    def __init__(self, cluster: Cluster, slot: int, total: Resources, arena_size: int) -> None:
        self.cluster = cluster
        self.world = cluster.world
        self.slot = slot
        self.total = total
        self.arena_size = arena_size
        self.config: Config = cluster.config
        #: Counts its processes, whether or not they ever register.
        self.life = 0
        self.up = False
        self.paused = False
        self.node_id = 0
        self.incarnation = 0
        self.core: Core | None = None
        self._reset()

    def _reset(self) -> None:
        self.core = None
        self.incarnation = 0
        self.paused = False
        #: It was drained, and is about to go; then it is started again after so long.
        self.leaving = False
        self.starts_again_ms = 0.0
        self._deferred: deque[tuple[Callable[..., object], tuple[Any, ...]]] = deque()
        self.log = NodeLog(self)
        self.peers = NodePeers(self)
        self.bytes = NodeBytes(self)
        self.clients: dict[int, SimClient] = {}
        self.workers: dict[int, SimWorker] = {}
        self._down: dict[int, Pipe] = {}
        self._client_number = 0
        self._outbox: deque[ToStore] = deque()
        self.session = 0
        #: The control store at the other end of the session.
        self.session_with: ControlShell | None = None
        self._session_up: Pipe | None = None
        #: Drivers whose processes are watched since their connections broke.
        self._watched: dict[int, SimDriver] = {}
        self._gone: dict[int, SimDriver] = {}

    @property
    def name(self) -> str:
        return f"n{self.node_id}.{self.incarnation}"

    # --- processes --------------------------------------------------------------------------------

    def start(self) -> None:
        """The process starts."""
        if self.up:
            return
        self.life += 1
        self._reset()
        self.up = True
        self.world.trace(f"slot{self.slot}", "starts")
        self.log.connect()
        self.schedule(self.life, self.cluster.latency(), self._open_session)

    def crash(self) -> bool:
        """SIGKILL of the whole process group. Drivers are processes of their own. False: it was
        down."""
        if not self.up:
            return False
        self.world.trace(self.name, "crashes")
        self.up = False
        self.life += 1
        self._end_connections()
        self._reset()
        return True

    def _end_connections(self) -> None:
        self.cluster.node_is_down(self)
        self.bytes.end()
        for number, client in list(self.clients.items()):
            if isinstance(client, SimDriver):
                self._down[number].send(self._lost_node, client, number)
            else:
                client.alive = False
        self.peers.end()
        if self.session_with is not None:
            self.session_with.hang_up(self.session)
            self.session, self.session_with = 0, None
        if self._session_up is not None and self.world.rng.random() < 0.5:
            self._session_up.cut()
        self.log.lose()

    def _lost_node(self, driver: SimDriver, number: int) -> None:
        if driver.number == number and driver.node is self:
            driver.disconnected()

    def pause(self) -> bool:
        """SIGSTOP of the whole process group. False: it was down, or stopped."""
        if not self.up or self.paused:
            return False
        self.world.trace(self.name, "is paused")
        self.paused = True
        return True

    def resume(self) -> None:
        if self.up and self.paused:
            self.world.trace(self.name, "goes on")
            self.paused = False
            life = self.life
            deferred, self._deferred = self._deferred, deque()
            while deferred:
                act, args = deferred.popleft()
                self.run(life, act, *args)

    def run(self, life: int, act: Callable[..., object], *args: Any) -> None:
        """``act(*args)`` in this life, if it still is, and when it is not paused."""
        if life != self.life or not self.up:
            return
        if self.paused:
            self._deferred.append((act, args))
        else:
            act(*args)

    def schedule(self, life: int, delay_ms: float, act: Callable[..., object], *args: Any) -> None:
        self.world.after(delay_ms, self.run, life, act, *args)

    # --- the core ---------------------------------------------------------------------------------

    def handle(self, event: Event) -> None:
        """One step of the core, and what follows from it."""
        core = self.core
        if core is None:
            return
        core.now_ms = self.world.now
        self.world.trace(self.name, "<-", event)
        effects = core.handle(event)
        if effects:
            self.carry(effects)
        self.cluster.checks.node_stepped(self)

    def carry(self, effects: list[Effect]) -> None:
        for effect in effects:
            self._carry(effect)

    def _carry(self, effect: Effect) -> None:  # noqa: C901 - one arm per effect
        world, cluster = self.world, self.cluster
        if not isinstance(effect, events.ArmFlush):
            world.trace(self.name, "->", effect)
        match effect:
            case events.ToClient(client, message):
                cluster.checks.left_to_client(self, client, message)
                pipe = self._down.get(client)
                if pipe is not None:
                    pipe.send(self._deliver, self.clients[client], client, message)
            case events.AppendBatch(number, batch):
                self.log.append(Append(self.node_id, self.incarnation, number, batch))
            case events.ArmFlush():
                self.schedule(
                    self.life, self.config.flush_interval_ms, self.handle, events.FlushDue()
                )
            case events.ToPeer(node_id, message):
                cluster.checks.left_to_peer(self, message)
                self.peers.send(node_id, message)
            case events.ToControlStore(message):
                self._to_store(message)
            case events.CloseClient(client):
                self._close_client(client)
            case events.StartWorker(number, _):
                self.schedule(self.life, cluster.start_ms(), self._fork, number)
            case events.WatchDriver(client):
                self._watch(client)
            case events.DeleteStored(object_id):
                cluster.storage.pop(f"storage/{object_id.hex()}", None)
            case events.KillWorker(number):
                worker = self.workers.get(number)
                if worker is not None:
                    self.worker_dies(worker)
            case events.MakeFile(key, _):
                self.bytes.make_file(key)
            case events.FetchBytes():
                self.bytes.fetch(effect)
            case (
                events.LoadBytes()
                | events.StoreBytes()
                | events.SpillBytes()
                | events.RestoreBytes()
            ):
                self.bytes.on_disk(effect)
            case events.ServeBytes():
                self.bytes.serve(effect)
            case events.DeleteBytes():
                self.bytes.delete(effect)
            case events.Restart(reason):
                self._restart(reason)
            case events.LeaveCluster(reason):
                self.leaving = True
                self._leave(reason, world.now + LOGGED_WITHIN_MS)
            case events.StopNode(reason):
                cluster.checks.require(False, f"{self.name} stopped: {reason}")
            case _:
                assert_never(effect)

    def _leave(self, reason: str, until_ms: float) -> None:
        """It goes once its log is in Postgres and the control store has been told, if that can
        be."""
        if not self.log.idle and self.world.now < until_ms:
            self.schedule(self.life, 1.0, self._leave, reason, until_ms)
            return
        if self.session_with is not None and self._session_up is not None:
            self._session_up.send(self.session_with.said, self.session, Leave(reason))
            self._session_up.send(self.run, self.life, self._end)
        self.schedule(self.life, TOLD_WITHIN_MS, self._end)

    def _end(self) -> None:
        start_ms = self.starts_again_ms
        self.crash()
        self.world.after(start_ms, self.start)

    def _restart(self, reason: str) -> None:
        """The daemon executes itself anew; its workers die, its clients see the end."""
        self.world.trace(self.name, f"restarts: {reason}")
        self.cluster.checks.restarted(self, reason)
        self.crash()
        self.world.after(self.cluster.start_ms(), self.start)

    # --- the control store ------------------------------------------------------------------------

    def _open_session(self) -> None:
        control = self.cluster.control.announced
        if self.session or not control.reachable():
            self.schedule(self.life, 100.0, self._open_session)
            return
        self.session, self.session_with = control.connect(self), control
        self._session_up = Pipe(self.world, self.cluster.latency)
        registers = self._view() if self.core is None else self._view(self.incarnation)
        self._session_up.send(control.said, self.session, Register(PROTOCOL_VERSION, "", registers))
        queued, self._outbox = self._outbox, deque()
        for message in queued:
            self._session_up.send(control.said, self.session, message)

    def _view(self, incarnation: int = 0) -> NodeView:
        return NodeView(
            self.node_id, incarnation, f"host{self.slot}", self.life, f"sock{self.slot}",
            self.total,
            self.total, 0, {}, True, self.slot == 0, f"host{self.slot}", self.arena_size,
        )  # fmt: skip

    def _to_store(self, message: ToStore) -> None:
        if self.session_with is not None and self._session_up is not None:
            self._session_up.send(self.session_with.said, self.session, message)
        elif not isinstance(message, NodeStatus | ObjectsHere):
            self._outbox.append(message)

    def store_said(self, session: int, message: FromStore) -> None:
        """From the control store, over a session."""
        if session != self.session:
            return
        if self.core is None:
            if isinstance(message, Registered):
                self._registered(message)
            return
        if isinstance(message, Nodes | Registered):
            self.peers.told(message.nodes)
        elif isinstance(message, NodeDied):
            self.peers.died(message.node_id, message.incarnation)
        self.handle(events.StoreSaid(message))

    def session_lost(self, session: int) -> None:
        """The stream broke."""
        if session != self.session:
            return
        self.session, self.session_with = 0, None
        if self._session_up is not None:
            self._session_up.cut()
        self.handle(events.StoreLost())
        self.schedule(self.life, self.world.rng.uniform(50, 200), self._open_session)

    def _registered(self, message: Registered) -> None:
        self.node_id, self.incarnation = message.node_id, message.incarnation
        settings = NodeSettings(
            node_id=message.node_id,
            incarnation=message.incarnation,
            total=self.total,
            arena_size=self.arena_size,
            arena_path="",
            storage=message.storage,
            home="",
            prestart=1,
        )
        store = StoreCore(self.arena_size, None)
        self.core = self.cluster.mutation.core(
            settings, self.config, store, lambda key: f"{key[0].hex()}-{key[1]}"
        )
        self.core.now_ms = self.world.now
        self.cluster.checks.node_begins(self)
        self.carry(self.core.start())
        self.peers.told(message.nodes)
        self.handle(events.StoreSaid(message))
        self._tick(self.life)
        self._renew(self.life)

    def _tick(self, life: int) -> None:
        if life != self.life or self.core is None:
            return
        self.handle(events.Tick(self.world.now))
        core: Core | None = self.core  # the tick may have ended this life
        busy = core is not None and bool(core.tasks.tasks)
        self.schedule(life, 20.0 if busy else 200.0, self._tick, life)

    def _renew(self, life: int) -> None:
        if life != self.life or self.core is None:
            return
        interval_ms = self.config.renew_interval_s * 1000
        if self.world.now - self.log.last_append >= interval_ms:
            self.carry(self.core.renew())
        self.schedule(life, interval_ms, self._renew, life)

    # --- peers ------------------------------------------------------------------------------------

    def peer_said(self, node_id: int, incarnation: int, message: PeerMessage) -> None:
        self.peers.called(node_id, incarnation)
        self.handle(events.PeerSaid(node_id, message, incarnation))

    # --- clients ----------------------------------------------------------------------------------

    def connect(self, client: SimClient, hello: Hello) -> int:
        """A client connects; its number."""
        self._client_number += 1
        number = self._client_number
        self.clients[number] = client
        self._down[number] = Pipe(self.world, self.cluster.local_ms)
        client.up = Pipe(self.world, self.cluster.local_ms)
        client.number = number
        client.arena = self.bytes
        client.up.send(self.run, self.life, self._client_arrived, number, hello)
        return number

    def _client_arrived(self, number: int, hello: Hello) -> None:
        """Not where its process died before its greeting was read: nothing follows its end."""
        if number in self.clients:
            self.handle(events.ClientArrived(number, hello))

    def client_said(self, life: int, number: int, message: ClientMessage) -> None:
        self.run(life, self._client_said, number, message)

    def _client_said(self, number: int, message: ClientMessage) -> None:
        if number in self.clients:
            self.handle(events.ClientSaid(number, message))

    def _deliver(self, client: SimClient, number: int, message: Any) -> None:
        if isinstance(client, SimWorker):
            self.run(client.life, self._to_worker, client, message)
        elif client.node is self and client.number == number:
            client.receive(message)

    def _to_worker(self, worker: SimWorker, message: Any) -> None:
        if worker.alive:
            worker.receive(message)

    def client_leaves(self, client: SimClient) -> None:
        """The client closes its connection; what it said before arrives first."""
        if client.up is None:
            self.schedule(self.life, self.cluster.local_ms(), self._client_gone, client.number)
        else:
            client.up.send(self.run, self.life, self._client_gone, client.number)

    def _client_gone(self, number: int) -> None:
        client = self.clients.pop(number, None)
        if client is None:
            return
        del self._down[number]
        if isinstance(client, SimDriver):
            self._gone[number] = client
        self.handle(events.ClientGone(number))

    def _close_client(self, number: int) -> None:
        client = self.clients.get(number)
        if client is None:
            return
        if isinstance(client, SimWorker):
            self.worker_dies(client)
        else:
            assert isinstance(client, SimDriver)
            self._down[number].send(self._lost_node, client, number)
            self.client_leaves(client)

    def _watch(self, number: int) -> None:
        """A driver's connection broke: that it comes back is hoped for until its process ends."""
        driver = self._gone.get(number)
        assert driver is not None
        if driver.alive:
            self._watched[number] = driver
        else:
            self.schedule(self.life, self.cluster.local_ms(), self._driver_exited, number)

    def _driver_exited(self, number: int) -> None:
        self.handle(events.DriverExited(number))

    def driver_died(self, driver: SimDriver) -> None:
        """Its process ended."""
        for number, client in list(self.clients.items()):
            if client is driver:
                self._down[number].cut()
                if self.world.rng.random() < 0.5 and driver.up is not None:
                    driver.up.cut()
                self.schedule(self.life, self.cluster.local_ms(), self._client_gone, number)
        for number, watched in self._watched.items():
            if watched is driver:
                self.schedule(self.life, self.cluster.local_ms(), self._driver_exited, number)

    def break_client(self, driver: SimDriver) -> None:
        """A driver's connection breaks, or its node does not answer."""
        self._down[driver.number].cut()
        self.client_leaves(driver)
        driver.disconnected()

    # --- workers ----------------------------------------------------------------------------------

    def _fork(self, number: int) -> None:
        if self.cluster.faults.happens("worker_fails_to_start"):
            self.handle(events.WorkerExited(number, 9))
            return
        worker = self.workers[number] = SimWorker(self.cluster, self, number)
        worker.number = self.connect(worker, worker.hello())

    def worker_dies(self, worker: SimWorker) -> None:
        """SIGKILL, or its own end. What it had said is read first."""
        if not worker.alive:
            return
        worker.alive = False
        self.workers.pop(worker.worker, None)
        self._down[worker.number].cut()
        self.client_leaves(worker)
        assert worker.up is not None
        worker.up.send(self.run, self.life, self._worker_exited, worker.worker)

    def _worker_exited(self, number: int) -> None:
        self.handle(events.WorkerExited(number, 9))
