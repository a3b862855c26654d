"""What has to run again so that lost objects exist again: a walk up their lineage.

Decides, from rows that are added as they are read, which tasks are still to be read, which cannot
run again and why, and in which order the others run. Reads nothing itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Final

from msgspec import Struct

from regrow.gcs.operations import LineageTask, ObjectRow
from regrow.ids import is_put, producer
from regrow.messages import OK, PENDING, TASK

#: Stands for a producer that is running anyway: what it makes will come.
RUNNING: Final = "running"
#: How the reason ends where the producer is an actor: if that restarts, it may come back.
BY_ACTOR: Final = "is an actor's, and what actors did is not run again"


class Plan(Struct):
    """``order``: tasks to run again, producers first, each with the object it is wanted for.

    ``failed``: lost objects that cannot come back: (code, why). ``coming``: lost objects whose
    producer is still running."""

    order: list[tuple[LineageTask, bytes]]
    failed: dict[bytes, tuple[str, str]]
    coming: list[bytes]


class Walk:
    """One walk for a set of lost objects. ``has_copy`` and ``in_progress`` (is a task being rebuilt
    already?) are asked at most once per object or task."""

    def __init__(
        self,
        roots: Iterable[ObjectRow],
        has_copy: Callable[[bytes], bool],
        in_progress: Callable[[bytes], bool],
    ) -> None:
        self._has_copy = has_copy
        self._in_progress = in_progress
        self._roots: list[bytes] = []
        #: The task that makes an object again.
        self._producers: dict[bytes, bytes] = {}
        #: Why an object, or a task, cannot be had again.
        self._unmakeable: dict[bytes, str] = {}
        self._tasks: dict[bytes, LineageTask] = {}
        #: Tasks reached, with the objects each lacks. Rebuilt already or running: none.
        self._lacks: dict[bytes, list[bytes]] = {}
        self._running: set[bytes] = set()
        self._agenda: list[bytes] = []
        self._unread_tasks: dict[bytes, None] = {}
        self._unread_puts: dict[bytes, None] = {}
        for row in roots:
            self._roots.append(row.object_id)
            self._object(row)
            self._agenda.append(row.object_id)

    def unread(self) -> tuple[list[bytes], list[bytes]]:
        """The tasks and the puts whose rows are to be added next; when there are none, ``plan``."""
        while self._agenda:
            object_id = self._agenda.pop()
            if object_id in self._unmakeable:
                continue
            task_id = self._producers.get(object_id)
            if task_id is None and is_put(object_id):
                self._unread_puts[object_id] = None
            else:
                self._visit(task_id if task_id is not None else producer(object_id))
        return list(self._unread_tasks), list(self._unread_puts)

    def _visit(self, task_id: bytes) -> None:
        if task_id in self._lacks or task_id in self._unmakeable:
            return
        task = self._tasks.get(task_id)
        if task is None and not self._in_progress(task_id):
            self._unread_tasks[task_id] = None
            return
        lacks = self._lacks[task_id] = []
        if task is None:
            return
        if task.status == PENDING:
            self._running.add(task_id)
            return
        why = _why_not(task)
        if why:
            self._unmakeable[task_id] = why
            return
        stored = {object_id for object_id, _ in task.stored}
        for need in task.needs:
            if need not in stored and not self._has_copy(need):
                lacks.append(need)
                self._agenda.append(need)

    def add_tasks(self, asked: Iterable[bytes], tasks: Iterable[LineageTask]) -> None:
        """Rows of a ``ReadLineage`` for ``asked``; those that do not exist cannot run."""
        for task in tasks:
            self._tasks.setdefault(task.task_id, task)
        for task_id in asked:
            self._unread_tasks.pop(task_id, None)
            if task_id in self._tasks:
                self._visit(task_id)
            else:
                self._unmakeable[task_id] = f"task {task_id.hex()} is not in the log"

    def add_puts(self, rows: Iterable[ObjectRow]) -> None:
        """Rows of a ``ReadObjects``."""
        for row in rows:
            self._unread_puts.pop(row.object_id, None)
            if not row.known:
                text = f"object {row.object_id.hex()} is not in the log"
                self._unmakeable[row.object_id] = text
            elif row.stored or (row.value is not None and row.value.data is not None):
                # It can be read after all: nothing need run for it.
                self._producers[row.object_id] = row.object_id
                self._lacks[row.object_id] = []
            else:
                self._object(row)
                self._agenda.append(row.object_id)

    def _object(self, row: ObjectRow) -> None:
        name = f"object {row.object_id.hex()}"
        if row.made_by == "driver_put" or not row.producer:
            why = (
                "its bytes in storage cannot be read"
                if row.stored
                else "its node died before it was written to storage"
            )
            self._unmakeable[row.object_id] = (
                f"{name} was put by the driver, and {why}; no task makes it again"
            )
        else:
            self._producers[row.object_id] = row.producer

    # the plan

    def plan(self) -> Plan:
        """When nothing is left to be read."""
        failed = self._failures()
        plan = Plan([], {}, [])
        done: set[bytes] = set()
        for root in self._roots:
            task_id = self._producer(root)
            if root in failed:
                why, own = failed[root], root in self._unmakeable or task_id in self._unmakeable
                plan.failed[root] = ("object_lost" if own else "object_reconstruction_failed", why)
            elif task_id in self._running:
                plan.coming.append(root)
            else:
                for needed in self._postorder(task_id, done):
                    if needed in self._tasks and needed not in self._running:
                        plan.order.append((self._tasks[needed], root))
        return plan

    def _producer(self, object_id: bytes) -> bytes:
        return self._producers.get(object_id) or producer(object_id)

    def _failures(self) -> dict[bytes, str]:
        """Objects that cannot come back, and why: what is unmakeable, and all that needs it."""
        users: dict[bytes, list[bytes]] = {}
        objects: dict[bytes, list[bytes]] = {}
        for object_id in self._roots:
            objects.setdefault(self._producer(object_id), []).append(object_id)
        for task_id, lacks in self._lacks.items():
            for object_id in lacks:
                users.setdefault(object_id, []).append(task_id)
                objects.setdefault(self._producer(object_id), []).append(object_id)
        failed: dict[bytes, str] = {}
        agenda = list(self._unmakeable.items())
        while agenda:
            failing, why = agenda.pop()
            if failing in failed:
                continue
            failed[failing] = why
            # An object fails the tasks that need it, a task the objects that it makes.
            agenda.extend((other, why) for other in users.get(failing, ()))
            agenda.extend((other, why) for other in objects.get(failing, ()))
        return failed

    def _postorder(self, task_id: bytes, done: set[bytes]) -> Iterator[bytes]:
        """The tasks that ``task_id`` needs, producers first, and itself; each once in all calls."""
        stack = [(task_id, iter(self._lacks[task_id]))]
        opened = {task_id}
        if task_id in done:
            return
        while stack:
            current, lacks = stack[-1]
            for object_id in lacks:
                needed = self._producer(object_id)
                if needed not in done and needed not in opened:
                    opened.add(needed)
                    stack.append((needed, iter(self._lacks[needed])))
                    break
            else:
                stack.pop()
                done.add(current)
                yield current


def _why_not(task: LineageTask) -> str:
    """Why this finished task cannot run again; empty if it can."""
    name = f"task {task.task_id.hex()}"
    if task.kind != TASK and task.max_retries == 0:
        return f"{name}, which made it, {BY_ACTOR}: it had max_restarts=0"
    if task.kind != TASK:
        return f"{name}, which made it, {BY_ACTOR}"
    if task.max_retries == 0:
        return f"{name}, which made it, has max_retries=0 and may not run again"
    if task.status != OK:
        return f"{name}, which made it, failed"
    return ""
