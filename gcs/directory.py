"""Where objects are: which nodes have copies, and who is told.

Part of the control store's core: no I/O, no clock. Copies of large objects are known from what
nodes report; everything else is read from Postgres. A ``Locate`` is answered once per object; until
then the object's *ask* remembers who wants to know. What is lost goes to ``recovery``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from regrow.gcs.core_context import Context, Continuation, Reply, failed_value
from regrow.gcs.membership import Membership, Node
from regrow.gcs.operations import ObjectRow, ObjectRows, ReadObjects
from regrow.ids import producer
from regrow.messages import (
    OK,
    PENDING,
    Locate,
    Locations,
    ObjectsHere,
    WatchFor,
    Whereabouts,
)

#: Objects in one read.
READ_CHUNK: Final = 2000
#: What is not known yet is read again after 0.1 s, and then less and less often.
RETRY_FIRST_S: Final = 0.1
RETRY_MAX_S: Final = 1.0
#: An object without a copy may have been finished just now: its node's report is awaited so long,
#: unless we saw its last copy go.
REPORT_LAG_S: Final = 0.2
#: An unknown object is given up so long after a job has ended.
UNKNOWN_GIVE_UP_S: Final = 10.0
#: A ``WatchFor`` may have been lost with a session that broke unnoticed; for so long at least it is
#: remembered and repeated.
WATCH_MEMORY_S: Final = 20.0
#: Objects of which the last copy went with a node.
LOST_REMEMBERED: Final = 1_000_000


class _Ask:
    """An object somebody wants to know about."""

    __slots__ = ("give_up_at", "lost", "missing_since", "retry_at", "tries", "waiters")

    def __init__(self) -> None:
        #: (node id, incarnation) of those who asked.
        self.waiters: dict[tuple[int, int], None] = {}
        #: When to read it again; None: a read, a rebuild or reports are under way.
        self.retry_at: float | None = None
        self.tries = 0
        #: Since when it is finished but without a copy.
        self.missing_since: float | None = None
        self.give_up_at: float | None = None
        #: Recovery is at it.
        self.lost = False


class _Reading(Continuation):
    pass


class Directory:
    """Set by the core: ``lost(row, asker)`` for objects to be made again, then ``lost_all`` once;
    ``sweep`` when a task's holder turns out to be dead, ``remind`` when it does not know of it."""

    def __init__(self, context: Context, members: Membership) -> None:
        self._context = context
        self._members = members
        #: Sizes by object and node.
        self._copies: dict[bytes, dict[int, int]] = {}
        self._by_node: dict[int, dict[bytes, None]] = {}
        #: Whose last copy went: the node that had it.
        self._lost_from: dict[bytes, int] = {}
        #: Whose bytes in storage are damaged, or not there.
        self._unreadable: dict[bytes, None] = {}
        self._asks: dict[bytes, _Ask] = {}
        #: Of these ``retry_at`` is set.
        self._later: dict[bytes, None] = {}
        #: What this step answers, by node; and whom makers are to tell: (maker, asker) -> objects.
        self._answers: dict[int, list[Whereabouts]] = {}
        self._watches: dict[tuple[int, int], list[bytes]] = {}
        self._recent: list[dict[tuple[int, int], list[bytes]]] = [{}, {}]
        self._rotate_at = 0.0
        self.lost: Callable[[ObjectRow, int], None]
        self.lost_all: Callable[[], None]
        self.sweep: Callable[[], None]
        self.remind: Callable[[Node, list[bytes]], None]
        #: Tasks of which nodes do not know that they hold them.
        self._reminded: dict[tuple[int, int], list[bytes]] = {}
        context.on(_Reading, self._rows_read)

    # reports

    def objects_here(self, node: Node, message: ObjectsHere) -> None:
        """A change; or, first after a session was resumed, all that the node has."""
        here = self._by_node.setdefault(node.node_id, {})
        if node.report_by is not None:
            kept = {object_id for object_id, _ in message.added}
            for object_id in [object_id for object_id in here if object_id not in kept]:
                self._remove_copy(object_id, node.node_id)
        for object_id, size in message.added:
            self._copies.setdefault(object_id, {})[node.node_id] = size
            here[object_id] = None
            self._lost_from.pop(object_id, None)
            if object_id in self._asks:
                self._answer_sources(object_id)
        for object_id in message.removed:
            self._remove_copy(object_id, node.node_id)

    def has_copy(self, object_id: bytes) -> bool:
        return object_id in self._copies

    def is_asked(self, object_id: bytes) -> bool:
        """Whether somebody waits for an answer."""
        return object_id in self._asks

    def lost_from(self, object_id: bytes) -> int:
        """The node with which the last copy went, as far as we know; else 0."""
        return self._lost_from.get(object_id, 0)

    def _remove_copy(self, object_id: bytes, node_id: int) -> bool:
        copies = self._copies.get(object_id)
        if copies is None or copies.pop(node_id, None) is None:
            return False
        if not copies:
            del self._copies[object_id]
        self._by_node[node_id].pop(object_id, None)
        return True

    def node_died(self, node: Node) -> None:
        """Its copies and its questions are gone."""
        for object_id in list(self._by_node.get(node.node_id, ())):
            self._remove_copy(object_id, node.node_id)
            if object_id not in self._copies:
                self._remember_lost(object_id, node.node_id)
        self._by_node.pop(node.node_id, None)
        for object_id, ask in list(self._asks.items()):
            ask.waiters.pop(node.key, None)
            if not ask.waiters:
                self._close(object_id)
        for recent in self._recent:
            for pair in [pair for pair in recent if node.node_id in pair]:
                del recent[pair]

    def _remember_lost(self, object_id: bytes, node_id: int) -> None:
        self._lost_from[object_id] = node_id
        if len(self._lost_from) > LOST_REMEMBERED:
            del self._lost_from[next(iter(self._lost_from))]

    # questions

    def locate(self, node: Node, message: Locate) -> None:
        for object_id, holder in message.gone:
            if not holder:
                self._unreadable[object_id] = None
                if len(self._unreadable) > LOST_REMEMBERED:
                    del self._unreadable[next(iter(self._unreadable))]
            if self._remove_copy(object_id, holder) and object_id not in self._copies:
                self._remember_lost(object_id, holder)
        unread: list[bytes] = []
        for object_id in message.object_ids:
            self._remove_copy(object_id, node.node_id)  # it would not ask
            ask = self._asks.get(object_id)
            if ask is None:
                ask = self._asks[object_id] = _Ask()
                unread.append(object_id)
            ask.waiters[node.key] = None
            if object_id in self._copies:
                self._answer_sources(object_id)
        self._read([object_id for object_id in unread if object_id in self._asks])

    def _read(self, object_ids: list[bytes]) -> None:
        for start in range(0, len(object_ids), READ_CHUNK):
            chunk = object_ids[start : start + READ_CHUNK]
            self._context.execute(ReadObjects(chunk), _Reading())

    def _rows_read(self, then: _Reading, reply: Reply) -> None:
        rows: ObjectRows = reply.result
        for row in rows.objects:
            ask = self._asks.get(row.object_id)
            if ask is not None and not ask.lost:
                self._judge(ask, row)
        self.lost_all()

    def _judge(self, ask: _Ask, row: ObjectRow) -> None:
        """Answers, or says what is waited for."""
        object_id = row.object_id
        if object_id in self._copies:
            self._answer_sources(object_id)
        elif not row.known:
            self._judge_unknown(ask, object_id)
        elif row.status == PENDING:
            self._judge_pending(ask, row)
        elif row.value is not None and (row.status != OK or row.value.data is not None):
            self._answer(object_id, Whereabouts(object_id, value=row.value))
        elif row.stored and object_id not in self._unreadable:
            size, digest = (row.value.size, row.value.digest) if row.value else (0, b"")
            self._answer(
                object_id, Whereabouts(object_id, stored=row.stored, size=size, digest=digest)
            )
        else:
            self._judge_missing(ask, row)

    def _judge_unknown(self, ask: _Ask, object_id: bytes) -> None:
        if ask.give_up_at is not None and ask.give_up_at <= self._context.now:
            text = f"nothing is known of object {object_id.hex()}: the job it belonged to has ended"
            self.give_up(object_id, "object_lost", text)
        else:
            self.later(object_id)

    def _judge_pending(self, ask: _Ask, row: ObjectRow) -> None:
        holder = self._members.nodes.get(row.holder)
        if holder is not None and holder.key in ask.waiters:
            # It was handed over by a node that died before it could say so; or has ended just now.
            self._reminded.setdefault(holder.key, []).append(producer(row.object_id))
            self.later(row.object_id)
        elif holder is not None:
            self.made_by(row.object_id, row.holder)
        else:
            self.later(row.object_id)
            self.sweep()

    def _judge_missing(self, ask: _Ask, row: ObjectRow) -> None:
        """It is finished, large and not stored, and no node has said that it has it."""
        now = self._context.now
        if self._members.reporting:
            ask.retry_at = None  # ``all_reported`` follows
            self._later.pop(row.object_id, None)
            return
        if ask.missing_since is None:
            ask.missing_since = now
        if row.object_id in self._lost_from or ask.missing_since + REPORT_LAG_S <= now:
            ask.lost = True
            self._later.pop(row.object_id, None)
            self.lost(row, next(iter(ask.waiters))[0])
        else:
            self.later(row.object_id, REPORT_LAG_S)

    def later(self, object_id: bytes, delay_s: float | None = None) -> None:
        """To be read again, after ``delay_s`` or, if not given, after longer and longer."""
        ask = self._asks.get(object_id)
        if ask is None:
            return
        if delay_s is None:
            delay_s = min(RETRY_FIRST_S * 2**ask.tries, RETRY_MAX_S)
            ask.tries = min(ask.tries + 1, 10)
        ask.lost = False
        ask.retry_at = self._context.now + delay_s
        self._later[object_id] = None

    def swept(self) -> None:
        """Tasks with dead holders have others now."""
        self._read_later(self._context.now + RETRY_MAX_S)

    def all_reported(self) -> None:
        """Every node alive has said what it has: what waited for that is judged anew."""
        waiting = [oid for oid, ask in self._asks.items() if ask.retry_at is None and not ask.lost]
        self._read(waiting)

    def job_closed(self) -> None:
        """What nobody knows may have been of that job."""
        for object_id in self._later:
            ask = self._asks[object_id]
            if ask.give_up_at is None:
                ask.give_up_at = self._context.now + UNKNOWN_GIVE_UP_S

    def tick(self) -> None:
        now = self._context.now
        if self._later:
            self._read_later(now)
        if self._rotate_at <= now:
            self._rotate_at = now + WATCH_MEMORY_S
            self._recent = [{}, self._recent[0]]

    def _read_later(self, until: float) -> None:
        due: list[bytes] = []
        for object_id in self._later:
            ask = self._asks[object_id]
            if ask.retry_at is not None and ask.retry_at <= until:
                ask.retry_at = None
                due.append(object_id)
        for object_id in due:
            del self._later[object_id]
        self._read(due)

    # answers

    def made_by(self, object_id: bytes, maker: int) -> None:
        """The node ``maker`` runs or rebuilds it; it is told who waits."""
        ask = self._close(object_id)
        if ask is None:
            return
        for asker, _ in ask.waiters:
            self._answers.setdefault(asker, []).append(Whereabouts(object_id, maker=maker))
            if asker != maker:
                self._watches.setdefault((maker, asker), []).append(object_id)

    def give_up(self, object_id: bytes, code: str, message: str) -> None:
        """It will never be there; but for what storage could not give: who asks later, asks it."""
        self._unreadable.pop(object_id, None)
        value = failed_value(object_id, code, message)
        self._answer(object_id, Whereabouts(object_id, value=value))

    def _answer_sources(self, object_id: bytes) -> None:
        copies = self._copies[object_id]
        nodes = list(copies)
        self._answer(object_id, Whereabouts(object_id, nodes=nodes, size=copies[nodes[0]]))

    def _answer(self, object_id: bytes, where: Whereabouts) -> None:
        ask = self._close(object_id)
        if ask is not None:
            for asker, _ in ask.waiters:
                self._answers.setdefault(asker, []).append(where)

    def _close(self, object_id: bytes) -> _Ask | None:
        self._later.pop(object_id, None)
        return self._asks.pop(object_id, None)

    def resumed(self, node: Node) -> None:
        """What it was told just before its session broke may have been lost."""
        for recent in self._recent:
            for (maker, asker), object_ids in recent.items():
                if maker == node.node_id:
                    self._context.send(node.conn, WatchFor(object_ids, asker))

    def flush(self) -> None:
        """At the end of a step: one message per node, not one per object."""
        nodes = self._members.nodes
        for asker, found in self._answers.items():
            if asker in nodes:
                self._context.send(nodes[asker].conn, Locations(found))
        for (maker, asker), object_ids in self._watches.items():
            if maker in nodes and asker in nodes:
                self._context.send(nodes[maker].conn, WatchFor(object_ids, asker))
                self._recent[0].setdefault((maker, asker), []).extend(object_ids)
        for (holder, incarnation), tasks in self._reminded.items():
            if self._members.is_alive(holder, incarnation):
                self.remind(nodes[holder], tasks)
        self._reminded.clear()
        self._answers.clear()
        self._watches.clear()

    @property
    def busy(self) -> bool:
        return bool(self._later)

    @property
    def size(self) -> tuple[int, int]:
        """(objects with copies, objects asked for)"""
        return len(self._copies), len(self._asks)

    def check(self) -> None:
        """Raises AssertionError if an invariant is broken."""
        for object_id, copies in self._copies.items():
            assert copies
            for node_id in copies:
                assert node_id in self._members.nodes
                assert object_id in self._by_node[node_id]
        assert sum(map(len, self._by_node.values())) == sum(map(len, self._copies.values()))
        for object_id, ask in self._asks.items():
            assert ask.waiters
            assert (object_id in self._later) == (ask.retry_at is not None)
            assert not (ask.lost and object_id in self._later)
        assert all(object_id in self._asks for object_id in self._later)
        assert not self._answers and not self._watches
