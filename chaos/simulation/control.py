"""The shell of the simulated control store, and the database with its faults.

The database carries out what arrives, in the order of each connection; what a fault does is delay
it, break the connection before or after it was carried out, or be away for a while.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, assert_never

from regrow.chaos.sim_store import SimStore
from regrow.chaos.simulation.world import Pipe
from regrow.gcs import core_events as gcs_events
from regrow.gcs.core import Core
from regrow.gcs.core_events import Effect, Event, Settings
from regrow.gcs.operations import Append, Operation
from regrow.messages import FromStore, OpenJob, ToStore

if TYPE_CHECKING:
    from regrow.chaos.simulation.cluster import Cluster
    from regrow.chaos.simulation.node import NodeShell


class Database:
    """Postgres, as the shells of nodes and control store see it."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self.world = cluster.world
        self.store: SimStore = cluster.mutation.store(self.now_s)
        self.up = True
        #: Connections on which nothing is carried out any more: (slot, connection, life).
        self._broken: set[tuple[int, int, int]] = set()

    def now_s(self) -> float:
        """The clock of Postgres."""
        return 1000.0 + self.world.now / 1000

    def stop(self) -> bool:
        """It is away; every connection breaks. False: it was away."""
        was_up, self.up = self.up, False
        self.world.trace("postgres", "stops")
        for node in self.cluster.nodes:
            node.log.break_off()
        return was_up

    def start(self) -> None:
        if not self.up:
            self.world.trace("postgres", "starts")
            self.up = True
            self.store.up_since_s = self.now_s()

    def append(self, node: NodeShell, life: int, connection: int, append: Append) -> None:
        """A batch arrived."""
        faults = self.cluster.faults
        source = (node.slot, connection, life)
        if source in self._broken:
            return
        if not self.up or faults.append_is_lost():
            self._broken.add(source)
            node.run(life, node.log.break_off)
            return
        result = self.cluster.checks.append(append)
        self.world.trace("postgres", f"{append.node}.{append.incarnation} {append.number}", result)
        if faults.happens("lost_answers"):
            node.run(life, node.log.break_off)
            return
        if node.log.answers is not None:
            node.log.answers.send(
                node.run, life, node.log.appended, connection, append, result.verdict, result.detail
            )

    def execute(self, control: ControlShell, life: int, number: int, operation: Operation) -> None:
        """An operation of the control store arrived."""
        failed = gcs_events.StoreFailed("the connection broke")
        faults = self.cluster.faults
        if not self.up or faults.append_is_lost():
            control.reply(life, gcs_events.StoreReplied(number, failed))
            return
        result = self.store.execute(operation)
        self.world.trace("postgres", f"executes {number}", result)
        self.cluster.checks.executed(operation, result)
        answer = failed if faults.happens("lost_answers") else result
        control.reply(life, gcs_events.StoreReplied(number, answer))


class _Session:
    def __init__(self, node: NodeShell, down: Pipe) -> None:
        self.node = node
        self.life = node.life
        self.down = down


class ControlShells:
    """The control stores: one, or two of which one leads. Nodes know the one that said last that it
    leads, and look for no other."""

    def __init__(self, cluster: Cluster, count: int) -> None:
        names = ["gcs", "standby"][:count]
        self.shells = [ControlShell(cluster, name) for name in names]
        self.announced = self.shells[0]

    def start(self) -> None:
        """All that are down; what is paused goes on."""
        for shell in self.shells:
            shell.resume()
            shell.start()


class ControlShell:
    """A control store's process: down, or in one of its lives."""

    def __init__(self, cluster: Cluster, name: str) -> None:
        self.cluster = cluster
        self.world = cluster.world
        self.name = name
        self.paused = False
        self._leads_until = 0.0
        self._deferred: deque[Event] = deque()
        self.life = 0
        self.up = False
        self.core: Core | None = None
        self._sessions: dict[int, _Session] = {}
        self._conn = 0
        self._operations: Pipe | None = None
        self._replies: Pipe | None = None

    # --- process ----------------------------------------------------------------------------------

    def start(self) -> None:
        if self.up:
            return
        self.life += 1
        self.up = True
        self.world.trace(self.name, "starts")
        config = self.cluster.config
        settings = Settings(
            holder=f"{self.name}{self.life}",
            lease_ttl_s=config.lease_ttl_s,
            leader_ttl_s=0.7,
            driver_grace_s=self.cluster.driver_grace_s,
            trim_every_s=0.1,
        )
        self.core = self.cluster.mutation.control(settings)
        self._operations = Pipe(self.world, self.cluster.database_ms)
        self._replies = Pipe(self.world, self.cluster.latency)
        self._tick(self.life)

    def crash(self) -> bool:
        """SIGKILL: what it knew is gone; what it had asked of Postgres may still be carried out.
        False: it was down."""
        if not self.up:
            return False
        self.world.trace(self.name, "crashes")
        self.up = self.paused = False
        self._deferred.clear()
        self.life += 1
        self.core = None
        if self._operations is not None and self.world.rng.random() < 0.5:
            self._operations.cut()
        for conn in list(self._sessions):
            self._end(conn)
        return True

    def pause(self) -> bool:
        """SIGSTOP: what comes waits; another may lead when it goes on. False: it was down, or
        stopped."""
        if not self.up or self.paused:
            return False
        self.world.trace(self.name, "is paused")
        self.paused = True
        return True

    def resume(self) -> None:
        if not self.paused:
            return
        self.world.trace(self.name, "goes on")
        self.paused = False
        deferred, self._deferred = self._deferred, deque()
        for event in deferred:
            self.handle(event)

    def reachable(self) -> bool:
        return self.up

    def schedule(self, life: int, delay_ms: float, event: Event) -> None:
        self.world.after(delay_ms, self._in_life, life, event)

    def reply(self, life: int, event: Event) -> None:
        """Postgres answers, in the order in which it was asked."""
        if life == self.life and self._replies is not None:
            self._replies.send(self._in_life, life, event)

    def _in_life(self, life: int, event: Event) -> None:
        if life != self.life:
            return
        if self.paused:
            self._deferred.append(event)
        else:
            self.handle(event)

    def _tick(self, life: int) -> None:
        if life != self.life or self.core is None:
            return
        if not self.paused:
            self.handle(gcs_events.Tick(self.world.now / 1000))
        delay = 50.0 if self.core.busy else 250.0
        self.world.after(delay, self._tick, life)

    # --- the core ---------------------------------------------------------------------------------

    def handle(self, event: Event) -> None:
        core = self.core
        if core is None:
            return
        self.world.trace(self.name, "<-", event)
        for effect in core.handle(event):
            self._carry(effect)
        self.cluster.checks.control_stepped(core)
        if core.leads_until != self._leads_until and core.leads and core.members.loaded:
            self.cluster.control.announced = self
            self._leads_until = core.leads_until

    def _carry(self, effect: Effect) -> None:
        self.world.trace(self.name, "->", effect)
        match effect:
            case gcs_events.Send(conn, message):
                self._send(conn, message)
            case gcs_events.Execute(number, operation):
                assert self._operations is not None
                self._operations.send(
                    self.cluster.database.execute, self, self.life, number, operation
                )
            case gcs_events.Probe(node_id, incarnation):
                self._probe(node_id, incarnation)
            case gcs_events.CloseConnection(conn):
                session = self._sessions.get(conn)
                if session is not None:
                    session.down.send(self._end, conn)
            case gcs_events.StopCluster(reason):
                self.cluster.checks.require(False, f"the cluster was stopped: {reason}")
            case _:
                assert_never(effect)

    def _probe(self, node_id: int, incarnation: int) -> None:
        outcome = self.cluster.probe(node_id, incarnation)
        delay = 1000.0 if outcome == gcs_events.SILENT else self.cluster.latency()
        self.schedule(self.life, delay, gcs_events.ProbeResult(node_id, incarnation, outcome))

    # --- sessions ---------------------------------------------------------------------------------

    def connect(self, node: NodeShell) -> int:
        """A node opens a stream; the number of the connection."""
        self._conn += 1
        conn = self._conn
        self._sessions[conn] = _Session(node, Pipe(self.world, self.cluster.latency))
        self.schedule(self.life, 0.0, gcs_events.NodeConnected(conn))
        return conn

    def said(self, conn: int, message: ToStore) -> None:
        """A node's message arrived."""
        if self.up and conn in self._sessions:
            entropy = self.world.rng.randbytes(16) if isinstance(message, OpenJob) else b""
            self._in_life(self.life, gcs_events.FromNode(conn, message, entropy))

    def _send(self, conn: int, message: FromStore) -> None:
        session = self._sessions.get(conn)
        if session is not None:
            session.down.send(
                session.node.run, session.life, session.node.store_said, conn, message
            )

    def hang_up(self, conn: int) -> None:
        """The node's process is gone: the stream is reset."""
        session = self._sessions.pop(conn, None)
        if session is not None:
            self.schedule(self.life, self.cluster.latency(), gcs_events.NodeDisconnected(conn))

    def _end(self, conn: int) -> None:
        """The stream ends, for both."""
        session = self._sessions.pop(conn, None)
        if session is None:
            return
        session.down.cut()
        node = session.node
        node.schedule(session.life, self.cluster.latency(), node.session_lost, conn)
        self.schedule(self.life, self.cluster.latency(), gcs_events.NodeDisconnected(conn))

    def break_session(self, node: NodeShell) -> None:
        """The stream to a node breaks; what is under way on it is lost, both ways."""
        if node.session:
            self.world.trace(node.name, "loses its session")
            self._end(node.session)
