"""Which nodes there are: joining, resuming a session, leaving it, and what each has free.

Part of the control store's core: no I/O, no clock. A node is alive if Postgres says so; sessions
come and go. Who is declared dead is decided in ``fencing``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, Final

from msgspec import structs

from regrow.gcs.core_context import RETRY_FIRST_S, Context, Continuation, Reply
from regrow.gcs.core_events import StoreFailed
from regrow.gcs.operations import NodeDrains, NodeRegistered, NodeRows, ReadNodes, RegisterNode
from regrow.messages import (
    PROTOCOL_VERSION,
    Drain,
    Fenced,
    FromStore,
    NodeDied,
    Nodes,
    NodeStatus,
    NodeView,
    Register,
    Registered,
    RegisterRefused,
    Resources,
)

#: Changes of what nodes have free are told at most this often.
BROADCAST_S: Final = 0.05
#: A node that resumed its session and has reported no objects for so long has none.
REPORT_S: Final = 3.0
#: Dead nodes that are still listed, and deaths that a node which missed them is told of.
DEAD_LISTED: Final = 100


class Node:
    """An incarnation that is alive in Postgres."""

    __slots__ = ("conn", "fencing", "probing", "report_by", "spared_until", "view")

    def __init__(self, view: NodeView, conn: int, report_by: float | None) -> None:
        self.view = view
        #: Its session; 0 while it has none.
        self.conn = conn
        #: Its report of objects is awaited until then; None: it has reported.
        self.report_by = report_by
        self.probing = False
        #: A ``Fence`` or ``NodeLeft`` is under way.
        self.fencing = False
        #: It says that Postgres refuses its log, so that its lease proves nothing before.
        self.spared_until = 0.0

    @property
    def node_id(self) -> int:
        return self.view.node_id

    @property
    def key(self) -> tuple[int, int]:
        """(node id, incarnation)"""
        return self.view.node_id, self.view.incarnation


class _Loading(Continuation):
    pass


class _Noting(Continuation):
    pass


class _Registering(Continuation):
    """Not tried again by itself: its session may be gone, and the node have come back since."""

    RETRIED: ClassVar[bool] = False
    conn: int


class Membership:
    """The nodes of the cluster.

    Set by the core: ``replace`` is asked to end an incarnation whose node comes back as a new one;
    ``joined(node)`` and ``resumed(node)`` tell of sessions, ``all_reported`` that every node
    alive has said which objects it has.
    """

    def __init__(self, context: Context) -> None:
        self._context = context
        #: Alive in Postgres, by node id.
        self.nodes: dict[int, Node] = {}
        self._dead: dict[int, NodeView] = {}
        #: Incarnations that died, and why.
        self._deaths: dict[tuple[int, int], str] = {}
        self._by_conn: dict[int, int] = {}
        #: The nodes alive in Postgres are known.
        self.loaded = False
        #: Registrations that wait: for ``loaded``, or for a fence that is under way.
        self._held: dict[int, Register] = {}
        #: Registrations under way in Postgres.
        self._registering: dict[int, Register] = {}
        #: When registrations whose outcome is unknown are tried again.
        self._retry_at: float | None = None
        self._changed = False
        self._broadcast_at = 0.0
        self.replace: Callable[[Node], None]
        self.joined: Callable[[Node], None]
        self.resumed: Callable[[Node], None]
        self.all_reported: Callable[[], None]
        context.on(_Loading, self._nodes_read)
        context.on(_Registering, self._node_registered)
        context.on(_Noting, lambda then, reply: None)

    # what others ask

    def of_conn(self, conn: int) -> Node | None:
        """The node whose session this is."""
        node_id = self._by_conn.get(conn)
        return None if node_id is None else self.nodes[node_id]

    def is_alive(self, node_id: int, incarnation: int) -> bool:
        node = self.nodes.get(node_id)
        return node is not None and node.view.incarnation == incarnation

    def awaits(self, conn: int) -> bool:
        """Whether this session's registration is not decided yet."""
        return conn in self._held or conn in self._registering

    def heirs(self, without: int = 0) -> list[tuple[int, int]]:
        """Who may be given tasks: the nodes with the most free first; those that drain only if
        there are no others."""
        able = [n for n in self.nodes.values() if n.node_id != without and not n.fencing]
        able = [n for n in able if not n.view.draining] or able
        able.sort(key=lambda n: (n.view.queued, -sum(n.view.available.values()), n.node_id))
        return [node.key for node in able]

    def choose(self, preferred: int, needs: Resources) -> Node | None:
        """A node that can ever offer ``needs``: the preferred, else the one with the most free; one
        that seems dead, or drains, only if there is no other."""
        able = [
            node
            for node_id in [preferred, *(node_id for node_id, _ in self.heirs())]
            if (node := self.nodes.get(node_id)) and _offers(node.view.total, needs)
        ]
        for node in able:
            if not node.fencing and not node.probing and node.conn and not node.view.draining:
                return node
        for node in able:
            if not node.fencing:
                return node
        return None

    def views(self) -> list[NodeView]:
        """All nodes, in the order of their ids."""
        every = self._dead | {node_id: node.view for node_id, node in self.nodes.items()}
        return [every[node_id] for node_id in sorted(every)]

    @property
    def reporting(self) -> bool:
        """Whether a node alive has not said yet which objects it has."""
        return not self.loaded or any(n.report_by is not None for n in self.nodes.values())

    # leadership

    def load(self) -> None:
        """At the start of our leadership."""
        self._context.execute(ReadNodes(), _Loading())

    def _nodes_read(self, then: _Loading, reply: Reply) -> None:
        rows: NodeRows = reply.result
        until = self._context.now + max(REPORT_S, 2 * self._context.settings.lease_ttl_s)
        for view in rows.nodes:
            if view.alive:
                # Nobody hands it tasks before it has resumed: perhaps it is dead already.
                self.nodes[view.node_id] = Node(structs.replace(view, available={}), 0, until)
            dead = view.incarnation - 1 if view.alive else view.incarnation
            if dead:
                self._deaths[view.node_id, dead] = "it was declared dead"
        _trim(self._deaths)
        self.loaded = True
        self.retry_held()

    # joining

    def register(self, conn: int, message: Register) -> None:
        """A node joins, resumes (with its incarnation) or comes back (without)."""
        if message.version != PROTOCOL_VERSION:
            text = (
                f"this node speaks version {message.version} of the protocol, the cluster "
                f"{PROTOCOL_VERSION}; install the same version of regrow on both"
            )
            self._context.send(conn, RegisterRefused("version", text))
            self._context.close(conn)
            return
        self.unbind(conn)
        view = message.view
        node = self.nodes.get(view.node_id)
        if not self.loaded or (node is not None and node.fencing):
            self._held[conn] = message
        elif view.incarnation:
            self._resume(conn, node, view)
        elif node is not None:
            self._held[conn] = message
            self.replace(node)
        else:
            if view.node_id:
                # An earlier session of this node, of whose end we have not heard yet.
                for pending in (self._registering, self._held):
                    for other in [c for c, m in pending.items() if m.view.node_id == view.node_id]:
                        del pending[other]
            self._registering[conn] = message
            ttl = self._context.settings.lease_ttl_s
            self._context.execute(RegisterNode(self._context.epoch, view, ttl), _Registering(conn))

    def _resume(self, conn: int, node: Node | None, view: NodeView) -> None:
        if node is None or node.view.incarnation != view.incarnation:
            reason = f"incarnation {view.incarnation} of node {view.node_id} was declared dead"
            self._context.send(conn, Fenced(reason))
            return
        if node.conn:
            self._context.close(node.conn)
            self.unbind(node.conn)
        node.view = structs.replace(view, alive=True)
        node.report_by = self._context.now + REPORT_S
        for (node_id, incarnation), reason in self._deaths.items():
            self._context.send(conn, NodeDied(node_id, incarnation, reason))
        self._bind(conn, node)
        self.resumed(node)

    def _node_registered(self, then: _Registering, reply: Reply) -> None:
        message = self._registering.pop(then.conn, None)
        if isinstance(reply.result, StoreFailed):
            if message is not None:
                self._held[then.conn] = message
                self._retry_at = self._context.now + RETRY_FIRST_S
            return
        registered: NodeRegistered = reply.result
        operation: RegisterNode = reply.operation
        view = structs.replace(
            operation.view,
            node_id=registered.node_id,
            incarnation=registered.incarnation,
            alive=True,
        )
        self._dead.pop(view.node_id, None)
        node = self.nodes[view.node_id] = Node(view, 0, None)
        if message is not None:  # else the session ended meanwhile, and its lease will
            self._bind(then.conn, node)
        self.joined(node)

    def _bind(self, conn: int, node: Node) -> None:
        node.conn = conn
        self._by_conn[conn] = node.node_id
        context = self._context
        node_id, incarnation = node.key
        storage = context.settings.storage
        context.send(conn, Registered(node_id, incarnation, context.epoch, self.views(), storage))
        self.broadcast_views(but=conn)

    def retry_held(self) -> None:
        """After a fence was decided, or the nodes are known."""
        held, self._held = self._held, {}
        for conn, message in held.items():
            self.register(conn, message)

    # leaving

    def disconnected(self, conn: int) -> Node | None:
        """The node that lost its session by this, if any."""
        self._held.pop(conn, None)
        self._registering.pop(conn, None)
        return self.unbind(conn)

    def unbind(self, conn: int) -> Node | None:
        """The session is no longer that of a node."""
        node_id = self._by_conn.pop(conn, None)
        if node_id is None:
            return None
        node = self.nodes[node_id]
        node.conn = 0
        return node

    def remove(self, node: Node, reason: str) -> None:
        """The incarnation is dead, in Postgres."""
        assert self.nodes[node.node_id] is node
        if node.conn:
            self.unbind(node.conn)
        del self.nodes[node.node_id]
        self._dead[node.node_id] = structs.replace(node.view, alive=False, available={}, queued=0)
        self._deaths[node.key] = reason
        _trim(self._dead)
        _trim(self._deaths)

    # what nodes have

    def status(self, node: Node, message: NodeStatus) -> None:
        drains = bool(message.draining)
        if drains and not node.view.draining:
            noted = NodeDrains(self._context.epoch, *node.key, message.draining)
            self._context.execute(noted, _Noting())
        node.view = structs.replace(
            node.view, available=message.available, queued=message.queued, draining=drains
        )
        if message.log_refused:
            node.spared_until = self._context.now + self._context.settings.lease_ttl_s
        self._changed = True

    def drain(self, node_id: int, deadline_s: float, reason: str) -> bool:
        """Asks a node to go; it says so itself in its status. False: there is none to ask."""
        node = self.nodes.get(node_id)
        if node is None or not node.conn:
            return False
        self._context.send(node.conn, Drain(deadline_s, reason))
        return True

    def has_reported(self, node: Node) -> None:
        """The node said which objects it has."""
        if node.report_by is None:
            return
        node.report_by = None
        if not self.reporting:
            self.all_reported()

    def tick(self) -> None:
        now = self._context.now
        if self._retry_at is not None and self._retry_at <= now:
            self._retry_at = None
            self.retry_held()
        for node in self.nodes.values():
            if node.report_by is not None and node.report_by <= now:
                self.has_reported(node)
        if self._changed and self._broadcast_at + BROADCAST_S <= now:
            self.broadcast_views()

    @property
    def busy(self) -> bool:
        return self._changed or self._retry_at is not None

    def broadcast(self, message: FromStore, but: int = 0) -> None:
        """To every node that has a session, but one."""
        for node in self.nodes.values():
            if node.conn != but:
                self._context.send(node.conn, message)

    def broadcast_views(self, but: int = 0) -> None:
        self._changed = False
        self._broadcast_at = self._context.now
        self.broadcast(Nodes(self.views()), but)

    def check(self) -> None:
        """Raises AssertionError if an invariant is broken."""
        for conn, node_id in self._by_conn.items():
            assert self.nodes[node_id].conn == conn
            assert not self.awaits(conn)
        for node_id, node in self.nodes.items():
            assert node.node_id == node_id and node.view.alive and node.view.incarnation > 0
            assert not node.conn or self._by_conn[node.conn] == node_id
            assert node_id not in self._dead


def _trim(remembered: dict[Any, Any]) -> None:
    while len(remembered) > DEAD_LISTED:
        del remembered[next(iter(remembered))]


def _offers(total: Resources, needs: Resources) -> bool:
    return all(total.get(name, 0) >= amount for name, amount in needs.items())
