"""How long lost objects would take to come back, and which are stored so that it is never too long.

Each large result says how long its making took from the last stored objects on, along the longest
path of tasks that made its arguments: what a replay takes where there are enough workers.  One over
the limit is written to storage behind the task, and what is made of it counts from there.  Where an
object came from the control store nothing is known of its making, and it counts from there too.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from msgspec.structs import replace

from regrow.messages import Return
from regrow.scheduler import events

if TYPE_CHECKING:
    from regrow.scheduler.core import Core
    from regrow.scheduler.objects import Entry
    from regrow.scheduler.tasks import Task


class ReplayCosts:
    """See the module."""

    def __init__(self, core: Core) -> None:
        self._core = core

    def of(self, task: Task, returns: list[Return], duration_us: int) -> int:
        """Milliseconds from the last stored objects to the large results of a task that ends now;
        0 where it has none, for a small one is in the log."""
        if all(returned.data is not None for returned in returns):
            return 0
        entries = self._core.objects.entries
        longest = 0
        for dep in task.header.deps:
            entry = entries.get(dep)
            if entry is not None and entry.value is not None:
                longest = max(longest, entry.value.replay_ms)
        return longest + duration_us // 1000

    def made(self, entry: Entry) -> None:
        """A large result is here: it is stored if it would take too long to make it again."""
        limit_s = self._core.config.max_replay_s
        value = entry.value
        if value is None or limit_s <= 0 or value.replay_ms <= limit_s * 1000:
            return
        if not entry.stored and entry.key is not None:
            self._core.checkpointer.store(entry, self._stored)

    def _stored(self, event: events.Stored) -> None:
        entry = self._core.objects.entries.get(event.object_id)
        if event.path and entry is not None and entry.value is not None:
            entry.value = replace(entry.value, replay_ms=0)
