"""Which task this code runs in: the parent of what it submits.

Kept in a contextvar, so that threads and coroutines of an actor see their own call.  A thread that
lost it (one that the program started itself) falls back to the task its process runs; where several
run, that is ambiguous and an error, because ids are made from the parent.
"""

from __future__ import annotations

import itertools
from contextvars import ContextVar

from regrow._answers import Answers
from regrow._resuming import Changes
from regrow.exceptions import RaySystemError
from regrow.ids import ContentIds, CountedIds, driver_task_id
from regrow.messages import flags_of_driver


class ActorExit(BaseException):
    """Raised by ``exit_actor``: the actor ends after this call."""


class Task:
    """The driver, or a task or actor call that is running here."""

    __slots__ = (
        "actor_id", "answers", "attempt", "calls", "changes", "content_ids", "counted_ids",
        "driver", "function_id", "has_namespace", "is_replay", "job", "keys", "last_calls",
        "name", "namespace", "passed_on", "resources", "steps", "task_id",
    )  # fmt: skip

    def __init__(
        self, task_id: bytes, job: int, job_root: bytes, name: str,
        *, replayable: bool = True, actor_id: bytes = b"", function_id: bytes = b"",
        attempt: int = 1, resources: dict[str, int] | None = None, namespace: str = "",
        driver: int = 0,
    ) -> None:  # fmt: skip
        self.task_id = task_id
        self.job = job
        self.name = name
        #: The number of the driver from which it descends, and the flags which tell that to what
        #: it submits.
        self.driver = driver
        self.passed_on = flags_of_driver(driver)
        #: Of a parent that is never replayed, else None.
        self.counted_ids = None if replayable else CountedIds(job_root)
        self.content_ids = ContentIds(job_root, task_id)
        #: What was submitted under each ``options(key=...)``.
        self.keys: dict[bytes, bytes] = {}
        #: Of a job that is resumed, once it was asked for: what code it ran before.
        self.changes: Changes | None = None
        #: The place of its next call of an actor among all of them.
        self.calls = itertools.count(1)
        #: Its last call of each actor that restarts.
        self.last_calls: dict[bytes, bytes] = {}
        self.actor_id = actor_id
        #: Of a call of an actor that restarts.
        self.answers: Answers | None = None
        #: A call that had ended, run again to bring its actor back: it is as it was.
        self.is_replay = False
        self.attempt = attempt
        self.resources = resources
        self.function_id = function_id
        #: Where the names of actors are looked up by default; a job's own unless it says another.
        self.namespace = namespace or f"job-{job}"
        #: The number of its next transaction: the same in each of its attempts.
        self.steps = itertools.count(1)
        #: The namespace is not the job's own: its children must be told.
        self.has_namespace = bool(namespace)


def driver_task(job: int, job_root: bytes, namespace: str, driver: int) -> Task:
    """The driver of a job. That of an unnamed one (0) is never replayed: its ids are counted."""
    return Task(
        driver_task_id(job_root), job, job_root, "driver", replayable=driver > 0,
        namespace=namespace, driver=driver,
    )  # fmt: skip


class Running:
    """The tasks that this process runs now."""

    def __init__(self, root: Task | None = None) -> None:
        self._root = root
        #: Of the actor that lives in this process: its methods, as its handles carry them.
        self.actor_methods = b"\x80"
        #: The name it was given; "" where it has none.
        self.actor_name = ""
        self._tasks: dict[bytes, Task] = {}
        self._here: ContextVar[Task | None] = ContextVar("regrow_task", default=None)

    def enter(self, task: Task) -> None:
        """``task`` begins in the present context."""
        self._tasks[task.task_id] = task
        self._here.set(task)

    def leave(self, task: Task) -> None:
        """``task`` ended. Threads it left behind still fall back to it while nothing else runs."""
        self._tasks.pop(task.task_id, None)
        self._root = task
        self._here.set(None)

    def some(self) -> Task | None:
        """One of those that run here, or else the last one that did."""
        return next(iter(self._tasks.values()), self._root)

    def known(self) -> Task | None:
        """The task of the calling code; None where that cannot be known."""
        task = self._here.get()
        if task is None and len(self._tasks) == 1:
            task = next(iter(self._tasks.values()))
        return task

    def current(self) -> Task:
        """The task of the calling code. Raises RaySystemError where that cannot be known."""
        task = self._here.get()
        if task is not None:
            return task
        tasks = self._tasks
        if len(tasks) == 1:
            return next(iter(tasks.values()))
        if tasks:
            raise RaySystemError(
                f"this thread cannot tell which of {len(tasks)} running calls it belongs to; start "
                f"it with contextvars.copy_context().run(...)"
            )
        if self._root is None:
            raise RaySystemError("no task runs in this worker")
        return self._root
