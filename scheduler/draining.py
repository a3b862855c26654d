"""A node that is to go: what it does before, and when it goes.

From the moment it is asked to, it takes nothing new: what waits here is handed to nodes that can
run it, and what comes is passed on. What runs may end. Large objects of which only this node has a
copy are written to storage, so that nobody has to make them again. It goes when nothing is left to
do, or at its deadline: then the control store gives what still runs to others, without using up an
attempt, and restores its recoverable actors elsewhere; actors that cannot come back hold it until
then.

Decides when; how tasks are placed and bytes are stored, their parts know.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

from regrow.messages import ACTOR_CALL, ACTOR_CREATION, TakeBack
from regrow.objectstore.copies import CopyState
from regrow.scheduler import events
from regrow.scheduler.actors import HERE
from regrow.scheduler.tasks import RUNNING, STORING, Task

if TYPE_CHECKING:
    from regrow.scheduler.core import Core
    from regrow.scheduler.objects import Entry

#: Objects that are written to storage at once.
STORING_MAX: Final = 16
#: What storage refuses is written again so much later.
STORE_AGAIN_MS: Final = 500.0


class Draining:
    """See the module."""

    def __init__(self, core: Core) -> None:
        self._core = core
        #: Why it goes; empty: it does not.
        self.reason = ""
        self._until_ms = 0.0
        self._storing: dict[bytes, None] = {}
        #: When those are tried again that storage refused.
        self._refused: dict[bytes, float] = {}

    def __bool__(self) -> bool:
        return bool(self.reason)

    def begin(self, deadline_s: float, reason: str) -> None:
        """It is to go, within so long. Asked again, only an earlier deadline counts."""
        core = self._core
        until_ms = core.now_ms + deadline_s * 1000
        if self:
            self._until_ms = min(self._until_ms, until_ms)
            return
        self.reason = reason
        self._until_ms = until_ms
        core.tell_drivers(
            f"node {core.node_id} drains ({reason}) and leaves within {deadline_s:g} s; "
            "its work goes on elsewhere."
        )
        for worker in core.pool.by_client.values():
            if len(worker.in_flight) > 1 and worker.actor is None and not worker.taking_back:
                worker.taking_back = True
                core.send_client(worker.client, TakeBack(len(worker.in_flight) - 1))
        self.tick()

    def tick(self) -> None:
        """Time has passed: what waits is given away, what is only here is stored; perhaps it
        goes."""
        core = self._core
        if not self:
            return
        core.pool.give_away()
        left = list(self._only_here())
        for entry in left:
            if len(self._storing) < STORING_MAX:
                self._keep(entry)
        late = core.now_ms >= self._until_ms
        busy = left or self._storing or self._holds_it() or core.pool.queued
        # What it made and handed over leaves only once it is committed.
        if late or not (busy or core.journal.pending):
            self._leave(late)

    def _holds_it(self) -> bool:
        """Whether something runs that may end, or that only the deadline ends."""
        core = self._core
        for actor in core.actors.table.values():
            if actor.state == HERE and not actor.recoverable:
                return True
        return any(
            task.state in (RUNNING, STORING) and task.header.kind != ACTOR_CALL
            for task in core.tasks.tasks.values()
        )

    # objects

    def _only_here(self) -> Iterator[Entry]:
        """Objects of which there may be no other copy. Those that this node has fetched, or that
        are stored, the object store may drop at any time."""
        core = self._core
        for entry in core.objects.entries.values():
            if entry.key is None or entry.stored or entry.object_id in self._storing:
                continue
            copy = core.transport.store.lookup(entry.key)
            if copy is None or copy.droppable or copy.doomed:
                continue
            if self._refused.get(entry.object_id, 0.0) <= core.now_ms:
                yield entry

    def _keep(self, entry: Entry) -> None:
        core, oid = self._core, entry.object_id
        assert entry.key is not None
        copy = core.transport.store.lookup(entry.key)
        assert copy is not None
        if copy.state is not CopyState.SEALED:
            if copy.state is CopyState.SPILLED:  # stored once it is back
                core.transport.restore_for_task(entry, _pin_of(oid))
            return
        self._storing[oid] = None

        def stored(event: events.Stored) -> None:
            self._storing.pop(oid, None)
            core.transport.give_back(_pin_of(oid))
            if not event.path:
                self._refused[oid] = core.now_ms + STORE_AGAIN_MS

        core.transport.store_bytes(entry, stored)

    # the end

    def _leave(self, late: bool) -> None:
        """What may not run twice ends here, with the reason; everything else goes on elsewhere."""
        core = self._core
        for task in list(core.tasks.tasks.values()) if late else []:
            if task.state == RUNNING and task.header.max_retries == 0 and not task.rebuild:
                self._fail(task)
        core.leave(f"it was drained ({self.reason})")

    def _fail(self, task: Task) -> None:
        core, header = self._core, task.header
        if header.kind not in (ACTOR_CALL, ACTOR_CREATION):
            assert task.worker is not None
            task.worker.in_flight.pop(header.task_id, None)
            core.pool.kill(task.worker)
            message = (
                f"{header.name} had begun on node {core.node_id}, which was drained "
                f"({self.reason}) and left at its deadline; max_retries=0 allows no other attempt."
            )
            core.tasks.fail(task, "node_died", message)


def _pin_of(oid: bytes) -> bytes:
    """In whose name a spilled copy is brought back."""
    return b"drain:" + oid
