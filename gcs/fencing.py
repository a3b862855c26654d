"""When a node is declared dead, and who is given what it held.

Part of the control store's core: no I/O, no clock. Only Postgres makes a node dead (``Fence``), and
in the same transaction it reassigns the node's tasks. A reset connection is a reason to look
(``Probe``), an expired lease on Postgres's clock a reason to fence. What a death means for objects,
actors and jobs their own parts decide.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

from regrow.gcs.core_context import Context, Continuation, Reply
from regrow.gcs.core_events import REFUSED, ProbeResult
from regrow.gcs.membership import Membership, Node
from regrow.gcs.operations import (
    Fence,
    GivenRows,
    Leases,
    NodeFenced,
    NodeLeft,
    NodeRows,
    ReadGiven,
    ReadLeases,
    ReadNodes,
    RestartingActor,
    Sweep,
)
from regrow.messages import (
    TASK,
    Fenced,
    FunctionDef,
    HeldTask,
    NodeDied,
    Reassigned,
    Suspect,
    header_decoder,
)

#: Leases are read this often where one may run out soon, else half as often.
LEASE_CHECK_S: Final = 0.5
#: A task may be handed to a node just after it was fenced: such are looked for this often ...
SWEEP_SOON_S: Final = 2.0
#: ... for so long after a death, and seldom at other times.
SWEEP_WATCH_S: Final = 60.0
SWEEP_SELDOM_S: Final = 30.0
#: In one message.
TASKS_PER_MESSAGE: Final = 500

CAME_BACK: Final = "it came back as a new incarnation"
LEFT: Final = "it stopped in good order"


class _Checking(Continuation):
    pass


class _Fencing(Continuation):
    node_id: int
    incarnation: int
    reason: str
    #: It stopped by itself.
    in_order: bool = False


class _Confirming(Continuation):
    """Of the nodes, after a fence whose first answer was lost."""

    node_id: int
    incarnation: int
    reason: str
    #: What it says was reassigned, if it was that fence which landed.
    fenced: NodeFenced
    in_order: bool = False


class _Sweeping(Continuation):
    pass


class _Resuming(Continuation):
    node_id: int
    incarnation: int


class _Inheriting(Continuation):
    """``giver``: the node that is dead."""

    node_id: int
    incarnation: int
    giver: int


class Fencing:
    """Set by the core: ``died(node, reason, fenced)`` after Postgres has made it so; ``swept``
    after tasks with dead holders were reassigned; ``restarting`` with actors whose homes are dead,
    and ``remind_restarts`` with those whose home may not know that it is to restore them."""

    def __init__(self, context: Context, membership: Membership) -> None:
        self._context = context
        self._members = membership
        #: Nobody is fenced for silence before: nodes are given a lease from when we took over.
        self.not_before = 0.0
        self._checking = False
        self._check_at = 0.0
        #: Whose tasks are being read, to be told again.
        self._reminding: dict[tuple[int, int], None] = {}
        self._sweeping = False
        self._sweep_again = False
        self._sweep_at = 0.0
        self._watch_until = 0.0
        self.died: Callable[[Node, str, NodeFenced], None]
        self.swept: Callable[[], None]
        self.restarting: Callable[[list[RestartingActor]], None]
        self.remind_restarts: Callable[[list[RestartingActor]], None]
        context.on(_Checking, self._leases_read)
        context.on(_Fencing, self._fenced)
        context.on(_Confirming, self._confirmed)
        context.on(_Sweeping, self._swept)
        context.on(_Resuming, self._given_read)
        context.on(_Inheriting, self._inherited)

    def wait_a_lease(self) -> None:
        """We took over, or the database was away: nodes had no chance to renew."""
        self.not_before = self._context.now + self._context.settings.lease_ttl_s

    def tick(self) -> None:
        now = self._context.now
        if not self._checking and self._check_at <= now:
            self._checking = True
            self._check_at = now + LEASE_CHECK_S
            self._context.execute(ReadLeases(), _Checking())
        if self._sweep_at <= now and self._members.nodes:
            self.sweep()

    # suspicion

    def look(self, node: Node) -> None:
        """A connection to this node was reset: does anybody listen there?"""
        if not node.probing and not node.fencing:
            node.probing = True
            view = node.view
            self._context.probe(view.node_id, view.incarnation, view.host, view.port)

    def suspected(self, message: Suspect) -> None:
        """A peer's word is a reason to look, no more: the way between the two may be cut."""
        node = self._members.nodes.get(message.node_id)
        if node is not None and node.view.incarnation == message.incarnation:
            self.look(node)

    def probed(self, event: ProbeResult) -> None:
        node = self._members.nodes.get(event.node_id)
        if node is None or node.view.incarnation != event.incarnation:
            return
        node.probing = False
        # Whoever answers, or does not answer in time, is left to its lease. A node that we have
        # heard of only from Postgres may be about to come to us: it is given its lease, too.
        heard = node.report_by is None
        if event.outcome == REFUSED and (heard or self.not_before <= self._context.now):
            self._fence(node, "its process is gone (nobody listens on its port)")

    def _leases_read(self, then: _Checking, reply: Reply) -> None:
        self._checking = False
        leases: Leases = reply.result
        ttl = self._context.settings.lease_ttl_s
        if all(left_s > 2 * LEASE_CHECK_S for _, _, left_s in leases.nodes):
            self._check_at = self._context.now + 2 * LEASE_CHECK_S
        if leases.database_up_s < ttl:
            self.not_before = max(self.not_before, self._context.now + ttl - leases.database_up_s)
        if self.not_before > self._context.now:
            return
        for node_id, incarnation, left_s in leases.nodes:
            node = self._members.nodes.get(node_id)
            if left_s < 0 and node is not None and node.view.incarnation == incarnation:
                if node.spared_until > self._context.now:
                    continue  # a full disk is no reason to lose what a node has in memory
                reason = f"it did not renew its lease of {ttl:g} s"
                self._fence(node, reason, only_expired=True)

    # fencing

    def replace(self, node: Node) -> None:
        """Its node came back as a new incarnation, so this one is no more."""
        self._fence(node, CAME_BACK)

    def left(self, node: Node, reason: str = "") -> None:
        """It stops in good order; ``reason`` where it gave one."""
        if not node.fencing:
            node.fencing = True
            heirs = self._members.heirs(without=node.node_id)
            operation = NodeLeft(self._context.epoch, *node.key, heirs, reason)
            self._context.execute(operation, _Fencing(*node.key, reason or LEFT, in_order=True))

    def _fence(self, node: Node, reason: str, only_expired: bool = False) -> None:
        if node.fencing:
            return
        node.fencing = True
        heirs = self._members.heirs(without=node.node_id)
        operation = Fence(self._context.epoch, *node.key, reason, heirs, only_expired)
        self._context.execute(operation, _Fencing(*node.key, reason))

    def _fenced(self, then: _Fencing, reply: Reply) -> None:
        fenced: NodeFenced = reply.result
        node = self._members.nodes[then.node_id]
        assert node.view.incarnation == then.incarnation
        if fenced.landed:
            self._bury(node, then.reason, fenced, then.in_order)
        else:
            # Its lease was renewed; or it is dead already: an earlier try of ours succeeded.
            confirming = _Confirming(*node.key, then.reason, fenced, then.in_order)
            self._context.execute(ReadNodes(), confirming)

    def _confirmed(self, then: _Confirming, reply: Reply) -> None:
        rows: NodeRows = reply.result
        node = self._members.nodes[then.node_id]
        alive = any((v.node_id, v.incarnation) == node.key and v.alive for v in rows.nodes)
        if alive:
            node.fencing = False
            self._members.retry_held()
        else:
            self._bury(node, then.reason, then.fenced, then.in_order)

    def _bury(self, node: Node, reason: str, fenced: NodeFenced, in_order: bool) -> None:
        """Postgres has declared it dead: tell everyone, and then the heirs of its tasks, who would
        otherwise hand them to the dead node."""
        conn = node.conn
        self._members.remove(node, reason)
        if in_order:
            self._context.close(conn)  # which tells it that it may go
        else:
            self._context.send(conn, Fenced(reason))
        self._members.broadcast(NodeDied(*node.key, reason))
        self.hand_out(fenced.reassigned, fenced.functions)
        self._members.broadcast_views()
        self._watch_until = self._context.now + SWEEP_WATCH_S
        self._sweep_at = min(self._sweep_at, self._context.now + SWEEP_SOON_S)
        self.died(node, reason, fenced)
        for other in self._members.nodes.values():  # what it handed over may not have arrived
            self._context.execute(ReadGiven(*other.key), _Inheriting(*other.key, node.node_id))
        self._members.retry_held()

    def hand_out(self, reassigned: dict[int, list[HeldTask]], functions: list[FunctionDef]) -> None:
        """Tells nodes which tasks are theirs now: the calls of actors in their callers' order."""
        for node_id, given in reassigned.items():
            node = self._members.nodes.get(node_id)
            if node is None:
                continue
            tasks = sorted(given, key=_order)
            for start in range(0, len(tasks), TASKS_PER_MESSAGE):
                part = tasks[start : start + TASKS_PER_MESSAGE]
                self._context.send(node.conn, Reassigned(part, [] if start else functions))

    def resumed(self, node: Node, asked: Sequence[bytes] = ()) -> None:
        """The message that told it of tasks it holds may have been lost; it asked for the objects
        that some of them make."""
        if node.key in self._reminding:
            return
        self._reminding[node.key] = None
        self._context.execute(ReadGiven(*node.key, list(asked)), _Resuming(*node.key))

    def _given_read(self, then: _Resuming, reply: Reply) -> None:
        given: GivenRows = reply.result
        self._reminding.pop((then.node_id, then.incarnation), None)
        if given.restarting and self._members.is_alive(then.node_id, then.incarnation):
            self.remind_restarts(given.restarting)
        if given.tasks and self._members.is_alive(then.node_id, then.incarnation):
            self.hand_out({then.node_id: given.tasks}, given.functions)

    def _inherited(self, then: _Inheriting, reply: Reply) -> None:
        """Calls are left to those who wait for them: others of their caller may be on the way."""
        given: GivenRows = reply.result
        tasks = [
            held
            for held in given.tasks
            if held.submitter == then.giver and header_decoder.decode(held.spec).kind == TASK
        ]
        if tasks and self._members.is_alive(then.node_id, then.incarnation):
            self.hand_out({then.node_id: tasks}, given.functions)

    # sweeping

    def joined(self) -> None:
        """There may be tasks that had no heir so far."""
        self.sweep()

    def sweep(self) -> None:
        """Reassigns tasks whose holder is dead; ``swept`` follows."""
        if self._sweeping:
            self._sweep_again = True
            return
        now = self._context.now
        self._sweeping = True
        self._sweep_at = now + (SWEEP_SOON_S if now < self._watch_until else SWEEP_SELDOM_S)
        operation = Sweep(self._context.epoch, self._members.heirs())
        self._context.execute(operation, _Sweeping())

    def _swept(self, then: _Sweeping, reply: Reply) -> None:
        fenced: NodeFenced = reply.result
        self._sweeping = False
        self.hand_out(fenced.reassigned, fenced.functions)
        self.restarting(fenced.restarting)
        if reply.repeated:  # what the first one reassigned is not in the answer of the next
            for node in self._members.nodes.values():
                self._context.execute(ReadGiven(*node.key), _Resuming(*node.key))
        if self._sweep_again:
            self._sweep_again = False
            self.sweep()
        self.swept()

    def check(self) -> None:
        """Raises AssertionError if an invariant is broken."""
        assert self._sweeping or not self._sweep_again


def _order(held: HeldTask) -> int:
    """Where a task comes among those given to a node. Ids do not tell in which order a caller made
    its calls."""
    return header_decoder.decode(held.spec).order
