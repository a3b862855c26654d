"""Making lost objects again: which tasks run once more, and where.

Part of the control store's core: no I/O, no clock. One walk up the lineage at a time; objects found
lost meanwhile wait for the next, so no task is looked at twice. Postgres holds who rebuilds what
(``GrantRebuilds``); the map here only saves asking again.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from msgspec import Struct

from regrow.gcs.core_context import Context, Continuation, Reply
from regrow.gcs.directory import Directory
from regrow.gcs.lineage import BY_ACTOR, Plan, Walk
from regrow.gcs.membership import Membership, Node
from regrow.gcs.operations import (
    GrantRebuilds,
    Lineage,
    LineageTask,
    ObjectRow,
    ObjectRows,
    ReadLineage,
    ReadObjects,
    RebuildsGranted,
)
from regrow.gcs.restarts import Restarts
from regrow.messages import HeldTask, Rebuild, Rebuilt, header_decoder

#: Levels of the first read of a walk; each further read goes four times as deep.
FIRST_DEPTH: Final = 8
MAX_DEPTH: Final = 2000
#: Tasks in one read, one grant and one message.
READ_LIMIT: Final = 5000
GRANT_CHUNK: Final = 2000
TASKS_PER_MESSAGE: Final = 500

CPU: Final = {"CPU": 10_000}


class _Rebuilding(Struct):
    """A task that runs again: who does it, and of which job it is (0: not known)."""

    node_id: int
    incarnation: int
    job: int


class _Lost(Struct):
    row: ObjectRow
    #: The node that asked first.
    asker: int


class _Lineage(Continuation):
    asked: list[bytes]


class _Puts(Continuation):
    asked: list[bytes]


class _Granting(Continuation):
    node_id: int
    incarnation: int


class _Regranting(Continuation):
    node_id: int
    incarnation: int


class Recovery:
    def __init__(
        self, context: Context, members: Membership, directory: Directory, restarts: Restarts
    ) -> None:
        self._context = context
        self._members = members
        self._directory = directory
        self._restarts = restarts
        self._rebuilding: dict[bytes, _Rebuilding] = {}
        #: Found lost, for the next walk; and those of the present one.
        self._queue: dict[bytes, _Lost] = {}
        self._walked: dict[bytes, _Lost] = {}
        #: Those for which a task must run that no node can run.
        self._parked: dict[bytes, _Lost] = {}
        self._walk: Walk | None = None
        self._depth = FIRST_DEPTH
        self._reads_pending = 0
        self._grants_pending = 0
        context.on(_Lineage, self._lineage_read)
        context.on(_Puts, self._puts_read)
        context.on(_Granting, self._granted)
        context.on(_Regranting, self._regranted)

    # lost objects

    def lost(self, row: ObjectRow, asker: int) -> None:
        """It has no copy and ``asker`` waits for it; ``start`` follows."""
        maker = self._rebuilding.get(row.producer)
        if maker is not None:
            self._directory.made_by(row.object_id, maker.node_id)
        else:
            self._queue[row.object_id] = _Lost(row, asker)

    def start(self) -> None:
        """Begins a walk if one is wanted and none is under way."""
        if self._queue and not self._walked:
            self._walked, self._queue = self._queue, {}
            rows = [lost.row for lost in self._walked.values()]
            self._walk = Walk(rows, self._directory.has_copy, self._rebuilding.__contains__)
            self._depth = FIRST_DEPTH
            self._go_on(self._walk)

    def _go_on(self, walk: Walk) -> None:
        """Reads what the walk lacks; when it lacks nothing, carries its plan out."""
        if self._reads_pending:
            return
        tasks, puts = walk.unread()
        if tasks:
            operation = ReadLineage(tasks, self._depth, max(READ_LIMIT, len(tasks)))
            self._depth = min(self._depth * 4, MAX_DEPTH)
            self._reads_pending += 1
            self._context.execute(operation, _Lineage(tasks))
        if puts:
            self._reads_pending += 1
            self._context.execute(ReadObjects(puts), _Puts(puts))
        if not tasks and not puts:
            self._carry_out(walk)

    def _lineage_read(self, then: _Lineage, reply: Reply) -> None:
        lineage: Lineage = reply.result
        assert self._walk is not None
        self._reads_pending -= 1
        self._walk.add_tasks(then.asked, lineage.tasks)
        self._go_on(self._walk)

    def _puts_read(self, then: _Puts, reply: Reply) -> None:
        rows: ObjectRows = reply.result
        assert self._walk is not None
        self._reads_pending -= 1
        self._walk.add_puts(rows.objects)
        self._go_on(self._walk)

    # the plan

    def _carry_out(self, walk: Walk) -> None:
        self._walk = None
        plan = walk.plan()
        for object_id, (code, why) in plan.failed.items():
            del self._walked[object_id]
            if self._restarts.under_way and why.endswith(BY_ACTOR):  # it may be making it again
                self._directory.later(object_id)
                continue
            self._directory.give_up(object_id, code, self._explain(object_id, why))
        for object_id in plan.coming:
            del self._walked[object_id]
            self._directory.later(object_id)
        for node_id, task_ids in self._distribute(plan).items():
            self._grant(self._members.nodes[node_id], task_ids)
        if not self._grants_pending:
            self._answer()

    def _distribute(self, plan: Plan) -> dict[int, list[bytes]]:
        """Tasks by node. Objects that need what no node has wait for a node that joins."""
        placed = [
            (task.task_id, wanted, self._place(task, self._walked[wanted].asker))
            for task, wanted in plan.order
        ]
        for _, wanted, node in placed:
            if node is None and wanted in self._walked:
                self._parked[wanted] = self._walked.pop(wanted)
        by_node: dict[int, list[bytes]] = {}
        for task_id, wanted, node in placed:
            if node is not None and wanted in self._walked:
                by_node.setdefault(node.node_id, []).append(task_id)
        return by_node

    def joined(self) -> None:
        """A new node may have what was missing."""
        parked, self._parked = self._parked, {}
        for object_id, lost in parked.items():
            if self._directory.is_asked(object_id):
                self._queue[object_id] = lost
        self.start()

    def _explain(self, object_id: bytes, why: str) -> str:
        holder = self._directory.lost_from(object_id)
        gone = (
            f"node {holder}, which had its last copy, lost it" if holder else "no node has a copy"
        )
        return f"object {object_id.hex()} is lost: {gone}, and it cannot be made again: {why}"

    def _place(self, task: LineageTask, asker: int) -> Node | None:
        """Where it is asked for, if that node has what it needs."""
        return self._members.choose(asker, CPU if task.resources is None else task.resources)

    def _grant(self, node: Node, task_ids: list[bytes]) -> None:
        for start in range(0, len(task_ids), GRANT_CHUNK):
            chunk = task_ids[start : start + GRANT_CHUNK]
            self._grants_pending += 1
            operation = GrantRebuilds(self._context.epoch, chunk, node.key)
            self._context.execute(operation, _Granting(*node.key))

    def _granted(self, then: _Granting, reply: Reply) -> None:
        granted: RebuildsGranted = reply.result
        self._grants_pending -= 1
        self._begin(then.node_id, then.incarnation, granted)
        self._note_elsewhere(granted.elsewhere)
        if not self._grants_pending:
            self._answer()

    def _begin(self, node_id: int, incarnation: int, granted: RebuildsGranted) -> None:
        """Tells the node what it is to run again."""
        if not self._members.is_alive(node_id, incarnation):
            return  # its grants died with it; who waits asks again
        tasks = granted.tasks
        for held in tasks:
            header = header_decoder.decode(held.spec)
            self._rebuilding[header.task_id] = _Rebuilding(node_id, incarnation, header.job)
        conn = self._members.nodes[node_id].conn
        for start in range(0, len(tasks), TASKS_PER_MESSAGE):
            part: list[HeldTask] = tasks[start : start + TASKS_PER_MESSAGE]
            functions = [] if start else granted.functions
            self._context.send(conn, Rebuild(part, functions))

    def _note_elsewhere(self, elsewhere: list[tuple[bytes, int]]) -> None:
        """Tasks that other nodes rebuild, granted by an earlier leader: they may not know yet."""
        unknown: dict[int, list[bytes]] = {}
        for task_id, node_id in elsewhere:
            node = self._members.nodes.get(node_id)
            if node is not None and task_id not in self._rebuilding:
                self._rebuilding[task_id] = _Rebuilding(*node.key, 0)
                unknown.setdefault(node_id, []).append(task_id)
        for node_id, task_ids in unknown.items():
            self._regrant(self._members.nodes[node_id], task_ids)

    def _regrant(self, node: Node, task_ids: list[bytes]) -> None:
        for start in range(0, len(task_ids), GRANT_CHUNK):
            chunk = task_ids[start : start + GRANT_CHUNK]
            operation = GrantRebuilds(self._context.epoch, chunk, node.key)
            self._context.execute(operation, _Regranting(*node.key))

    def _regranted(self, then: _Regranting, reply: Reply) -> None:
        self._begin(then.node_id, then.incarnation, reply.result)

    def _answer(self) -> None:
        """Who waits is told the maker; the next walk begins."""
        for object_id, lost in self._walked.items():
            maker = self._rebuilding.get(lost.row.producer)
            if maker is None:  # its node died meanwhile
                self._directory.later(object_id)
            else:
                self._directory.made_by(object_id, maker.node_id)
        self._walked = {}
        self.start()

    # the end of rebuilds

    def rebuilt(self, node: Node, message: Rebuilt) -> None:
        for task_id, _ in message.tasks:
            rebuilding = self._rebuilding.get(task_id)
            if rebuilding is not None and rebuilding.node_id == node.node_id:
                del self._rebuilding[task_id]

    def node_died(self, node: Node) -> None:
        """Who waited for it asks again."""
        self._forget(lambda rebuilding: rebuilding.node_id == node.node_id)

    def job_closed(self, job: int) -> None:
        self._forget(lambda rebuilding: rebuilding.job == job)

    def _forget(self, which: Callable[[_Rebuilding], bool]) -> None:
        gone = [task_id for task_id, entry in self._rebuilding.items() if which(entry)]
        for task_id in gone:
            del self._rebuilding[task_id]

    def resumed(self, node: Node) -> None:
        """What it was told just before its session broke may have been lost: it is told again."""
        tasks = [t for t, entry in self._rebuilding.items() if entry.node_id == node.node_id]
        self._regrant(node, tasks)

    @property
    def rebuilding(self) -> int:
        """Tasks that run again at present."""
        return len(self._rebuilding)

    def check(self) -> None:
        """Raises AssertionError if an invariant is broken."""
        for entry in self._rebuilding.values():
            assert self._members.is_alive(entry.node_id, entry.incarnation)
        busy = self._walk is not None or self._grants_pending > 0
        assert bool(self._walked) == busy
        assert busy or not self._queue
