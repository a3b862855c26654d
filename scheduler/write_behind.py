"""Large puts on their way to storage: behind who put them, or while that waits.

Decides which puts are written, and when: those of drivers, which nobody makes again, and those of
tasks that may not, or did not end well enough to, run again.  How an object is written is
``transport``'s business.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from regrow.messages import OK, TASK, Answer, SystemFailure
from regrow.objectstore.copies import CopyState
from regrow.objectstore.effects import ObjectKey
from regrow.scheduler import events
from regrow.scheduler.objects import Entry

if TYPE_CHECKING:
    from regrow.scheduler.core import Core
    from regrow.scheduler.tasks import Task

#: A put that storage refused, and which nobody waits for, is written again so much later.
_RETRY_MS: Final = 5000.0


class WriteBehind:
    """See the module."""

    def __init__(self, core: Core) -> None:
        self._core = core
        #: To be written behind; oldest first.
        self._behind: dict[bytes, None] = {}
        #: Those that could not be written, and when they are tried again, all together.
        self._again: dict[bytes, None] = {}
        self._again_ms = 0.0
        #: To be stored before who put them goes on: (client, its question's number). Nobody: one
        #: that was spilled before it was written behind.
        self._wanted: dict[bytes, list[tuple[int, int]]] = {}

    def put(self, client: int, parent_id: bytes, entry: Entry, now_ms: float) -> None:
        """A large put is written, by a client whose task is ``parent_id``."""
        core = self._core
        if core.is_driver(client):
            self._add(entry, now_ms)
            return
        task = core.tasks.tasks.get(parent_id)
        if task is None or task.header.kind != TASK:
            return
        if task.header.max_retries == 0:
            self._add(entry, now_ms)
        elif task.puts is None:
            task.puts = [entry.object_id]
        else:
            task.puts.append(entry.object_id)

    def task_ended(self, task: Task, status: int) -> None:
        """A task that failed does not run again for what it has put."""
        if status == OK or task.puts is None:
            return
        for object_id in task.puts:
            entry = self._core.objects.entries.get(object_id)
            if entry is not None and entry.key is not None:
                self._add(entry, self._core.now_ms)

    def _add(self, entry: Entry, now_ms: float) -> None:
        entry.put_at_ms = now_ms
        self._behind[entry.object_id] = None

    def forget(self, object_id: bytes) -> None:
        """Nobody holds it."""
        self._behind.pop(object_id, None)
        self._again.pop(object_id, None)
        if self._wanted.get(object_id) == []:
            del self._wanted[object_id]

    def tick(self, now_ms: float) -> None:
        """What has lived long enough goes to storage."""
        core = self._core
        delay_ms = core.config.write_behind_delay_s * 1000
        if self._again and now_ms >= self._again_ms:
            self._behind.update(self._again)
            self._again.clear()
        while self._behind:
            object_id = next(iter(self._behind))
            entry = core.objects.entries.get(object_id)
            key = entry.key if entry is not None else None
            if entry is not None and key is not None:
                if now_ms - entry.put_at_ms < delay_ms:
                    return
                copy = core.transport.store.lookup(key)
                if not entry.stored and copy is not None and copy.state is CopyState.SPILLED:
                    if self._wanted:  # room for one at a time: there is none to spare
                        return
                    self._wanted[object_id] = []
                    self.go_on(entry, key)
                elif not entry.stored:
                    core.transport.store_bytes(entry, self._written)
            self._behind.pop(object_id, None)

    def _written(self, event: events.Stored) -> None:
        """The put stays volatile while storage fails; it is tried again by and by."""
        if not event.path and event.object_id in self._core.objects.entries:
            if not self._again:
                self._again_ms = self._core.now_ms + _RETRY_MS
            self._again[event.object_id] = None

    # --- who waits --------------------------------------------------------------------------------

    def wait_for(self, client: int, number: int, object_id: bytes) -> None:
        """A client waits until its large put is in storage, and the log knows it."""
        self._wanted.setdefault(object_id, []).append((client, number))
        entry = self._core.objects.entries.get(object_id)
        key = entry.key if entry is not None else None
        if entry is not None and entry.stored:
            self._tell(events.Stored(object_id, entry.stored))
        elif entry is None or key is None or self._core.transport.store.lookup(key) is None:
            text = "its bytes are not on this node"
            self._tell(events.Stored(object_id, "", "object_lost", text))
        else:
            self.go_on(entry, key)

    def go_on(self, entry: Entry, key: ObjectKey) -> None:
        """Its copy can be read now, perhaps: if it is wanted in storage, it is written."""
        if entry.object_id not in self._wanted:
            return
        transport = self._core.transport
        self._behind.pop(entry.object_id, None)
        self._again.pop(entry.object_id, None)
        patience_s = self._core.config.storage_retry_s
        copy = transport.store.lookup(key)
        if transport.is_storing(entry.object_id):  # written behind already
            transport.tell_too(entry.object_id, self._tell, patience_s)
        elif copy is not None and copy.state is CopyState.SPILLED:
            transport.bring_back(key)  # ``go_on`` follows
        elif copy is None or copy.state is not CopyState.RESTORING:
            transport.store_bytes(entry, self._tell, patience_s)

    def lost(self, object_id: bytes) -> None:
        """The object store has this copy no longer."""
        self._tell(events.Stored(object_id, "", "object_lost", "its copy was lost"))

    def _tell(self, event: events.Stored) -> None:
        """Who waits for it is told, after the commit."""
        error = None
        waiting = self._wanted.pop(event.object_id, None)
        if not event.path:
            if not waiting:
                self._written(event)
                return
            lasted_s = self._core.config.storage_retry_s
            text = event.detail
            if event.code != "object_lost":
                text = (
                    f"put(durable=True): storage refused the value for {lasted_s:g} s: {text}. "
                    f"Make room there, or mend its address or credentials, and put it again; put() "
                    f"without durable does not wait for storage"
                )
            error = SystemFailure(event.code or "storage", text)
        for client, number in waiting or ():
            answer = events.ToClient(client, Answer(number, b"", error))
            if not self._core.journal.hold(answer):
                self._core.emit(answer)
