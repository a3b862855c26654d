"""The order of one caller's calls of an actor that restarts, where the actor lives.

Usually calls come in that order, since their caller's node sends them so.  When that node dies,
what it had committed is given to another, while the caller goes on through a third, and nothing
orders these two.  So each call names the one before it, and reaches the actor only when that one
has ended, or has come here too; then the queue of its caller has them in their order.

What is known on this node answers nearly always, without a question.  Else the log is asked, and if
it does not know an end either, the value of the call before is awaited like that of an argument:
which finds it, whoever has it, and reminds this node of a call that it was never told of.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from regrow.ids import object_id, producer
from regrow.messages import PENDING, LookUpTasks, TaskStates
from regrow.scheduler import tasks as states

if TYPE_CHECKING:
    from regrow.scheduler.core import Core
    from regrow.scheduler.tasks import Task


class CallOrder:
    """See the module."""

    def __init__(self, core: Core) -> None:
        self._core = core
        #: The call before -> the calls that wait for it, at the head of their queues. The object
        #: of each is pinned once.
        self.awaited: dict[bytes, list[Task]] = {}
        #: Questions to the log, by their (negative) numbers; and the last number.
        self._asked: dict[int, bytes] = {}
        self._number = 0

    def may_go(self, task: Task) -> bool:
        """Whether the call before has ended or come; else it is awaited, and the call's queue goes
        on after that. Hot path."""
        before = task.header.after
        core = self._core
        earlier = core.tasks.tasks.get(before)
        if earlier is not None:
            task.follows = earlier.state != states.REMOTE
        else:
            entry = core.objects.entries.get(object_id(before, 0))
            known = entry is not None and entry.value is not None
            task.follows = known or core.tasks.ended_here(before, task.header.driver)
        if not task.follows:
            self._await(task)
        return task.follows

    def _await(self, task: Task) -> None:
        before = task.header.after
        waiting = self.awaited.get(before)
        if waiting is not None:
            if task not in waiting:
                waiting.append(task)
            return
        self.awaited[before] = [task]
        self._core.objects.entry(object_id(before, 0)).pins += 1
        self._number -= 1
        self._asked[self._number] = before
        self._core.send_store(LookUpTasks(self._number, [before]))

    def ask_again(self) -> None:
        """The control store may have forgotten the questions."""
        for number, before in self._asked.items():
            self._core.send_store(LookUpTasks(number, [before]))

    def looked_up(self, message: TaskStates) -> None:
        """What the log knows of a call that is awaited."""
        before = self._asked.pop(message.number, b"")
        if before not in self.awaited:
            return
        [state] = message.tasks
        if state.known and state.status != PENDING:
            self.ended(before)
        else:
            entry = self._core.objects.entry(object_id(before, 0))
            self._core.objects.need_value(entry)

    def awaits(self, oid: bytes) -> bool:
        """Whether a call waits for the one that returns this."""
        return producer(oid) in self.awaited

    def came(self, task_id: bytes) -> list[Task]:
        """This call is in its queue, before those that waited for it: they go on behind it."""
        waiting = self.awaited.pop(task_id, [])
        for task in waiting:
            task.follows = True
        if waiting:
            self._core.objects.unpin((object_id(task_id, 0),))
        return waiting

    def ended(self, task_id: bytes) -> None:
        """Those that waited for this call go on."""
        for task in self.came(task_id):
            self._core.actors.arguments_known(task)

    def forget(self, task: Task) -> None:
        """It does not wait any more: it is over, or its actor is elsewhere."""
        before = task.header.after
        waiting = self.awaited.get(before)
        if waiting is None or task not in waiting:
            return
        waiting.remove(task)
        if not waiting:
            del self.awaited[before]
            self._core.objects.unpin((object_id(before, 0),))

    def check(self) -> None:
        """Invariants."""
        for before, waiting in self.awaited.items():
            assert waiting
            assert object_id(before, 0) in self._core.objects.entries
            for task in waiting:
                assert not task.follows
                assert task.header.after == before
