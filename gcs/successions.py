"""When the next driver of a named job begins: not before the nodes have dropped what the last left.

Part of the control store's core: no I/O, no clock. What a node has logged of the last driver may
still be on its way to Postgres. It names tasks and actors by the same ids as the next driver's, and
if they were given to that node again meanwhile, the outcome of an attempt that was dropped would
end a task whose children are in no log, and the end of an actor's old process would be the new
one's. So a resumed job waits for each node to say, behind all that it had logged, that it has
dropped the last driver; a node that is fenced says nothing more. One whose log or session is stuck
is waited for only so long: new specs of the last driver are refused by Postgres all the same.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from msgspec import Struct

from regrow.gcs.core_context import Context
from regrow.gcs.membership import Membership, Node
from regrow.messages import JobClosed, JobDropped

#: A node is waited for so long; its answer takes a commit.
WAIT_S: Final = 2.0


class _Succession(Struct):
    """Of one job."""

    #: The last of its drivers that are over.
    driver: int
    #: Nodes that have not said so yet.
    nodes: dict[tuple[int, int], None]
    until: float
    begin: Callable[[], None]


class Successions:
    """See the module."""

    def __init__(self, context: Context, members: Membership) -> None:
        self._context = context
        self._members = members
        self._waiting: dict[int, _Succession] = {}

    def after(self, job: int, driver: int, begin: Callable[[], None]) -> None:
        """Calls ``begin`` once no node has anything of the job's drivers up to this one."""
        # One that a new leader has not heard of yet is probably dead.
        known = [n for n in self._members.nodes.values() if n.conn or n.report_by is None]
        nodes = {node.key: None for node in known}
        self._waiting[job] = _Succession(driver, nodes, self._context.now + WAIT_S, begin)
        self._members.broadcast(JobClosed(job, driver))
        self._look(job)

    def dropped(self, node: Node, message: JobDropped) -> None:
        """A node has nothing of these drivers any more, and all that it had is committed."""
        succession = self._waiting.get(message.job)
        if succession is not None and message.driver >= succession.driver:
            succession.nodes.pop(node.key, None)
            self._look(message.job)

    def resumed(self, node: Node) -> None:
        """What it was told just before its last session broke may be lost."""
        for job, succession in self._waiting.items():
            if node.key in succession.nodes:
                self._context.send(node.conn, JobClosed(job, succession.driver))

    def node_died(self, node: Node) -> None:
        for job, succession in list(self._waiting.items()):
            succession.nodes.pop(node.key, None)
            self._look(job)

    def tick(self) -> None:
        for job, succession in list(self._waiting.items()):
            if succession.until <= self._context.now:
                succession.nodes.clear()
                self._look(job)

    @property
    def busy(self) -> bool:
        return bool(self._waiting)

    def _look(self, job: int) -> None:
        succession = self._waiting[job]
        if not succession.nodes:
            del self._waiting[job]
            succession.begin()

    def check(self) -> None:
        """Raises AssertionError if an invariant is broken."""
        for succession in self._waiting.values():
            assert succession.nodes
            for key in succession.nodes:
                assert self._members.is_alive(*key)
