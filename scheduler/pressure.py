"""What a node does before its memory is used up: it ends one worker at a time, rather than let the
kernel end whatever it finds, which may be the node.

Decides which worker, and when its task runs again: later each time, and not for ever.  Reads no
memory itself: it is told what the shell has measured.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from regrow.messages import ACTOR_CREATION
from regrow.scheduler.events import MemoryMeasured
from regrow.scheduler.tasks import QUEUED, Task

if TYPE_CHECKING:
    from regrow.scheduler.core import Core
    from regrow.scheduler.workers import Worker

#: A task that was ended for memory waits so long, and twice as long each time, but no longer than
#: the second.
BACKOFF_MS: Final = 1_000.0
BACKOFF_MAX_MS: Final = 30_000.0
#: A worker with less than this part of the biggest one's memory is not worth its end.
_WORTH: Final = 0.1
#: The biggest workers that an error names.
_NAMED_MAX: Final = 3
#: What is lost with a worker, in the order in which it is given up.
_RETRIED, _RESTARTED, _FAILED, _LOST = range(4)


def is_pressed(used: int, limit: int, threshold: float) -> bool:
    """Whether so much of the memory is used that a worker has to go. Sizes in bytes."""
    return used > limit * threshold


class Pressure:
    """See the module."""

    def __init__(self, core: Core) -> None:
        self._core = core
        #: The worker that is being ended.
        self._ending: Worker | None = None
        #: Tasks that were ended, and when they are queued again.
        self._waiting: dict[bytes, tuple[float, Task]] = {}

    def measured(self, event: MemoryMeasured) -> None:
        """Ends a worker if memory is short, and none is ending already."""
        core = self._core
        threshold = core.config.memory_usage_threshold
        if not is_pressed(event.used, event.limit, threshold):
            return
        if sum(event.workers.values()) < event.used - event.limit * threshold:
            return  # others have it: no worker's end would help
        if self._ending is not None and self._ending.number in core.pool.workers:
            return
        worker = self._victim(event.workers)
        if worker is None:
            return
        self._ending = worker
        worker.out_of_memory = reason = self._reason(event)
        task = next(iter(worker.in_flight.values()), None)
        subject = b"" if task is None else task.header.task_id
        if worker.actor is not None:
            subject = worker.actor.actor_id
        core.journal.event("out_of_memory", subject, f"{worker.label[1]} was ended: {reason}")
        core.pool.kill(worker)

    def ended(self, task: Task, worker: Worker) -> None:
        """The worker that ran ``task`` is gone for memory's sake."""
        core = self._core
        task.oom_kills += 1
        name, kills = task.header.name, task.oom_kills
        message = f"{name} was ended: {worker.out_of_memory}"
        if not self._may_retry(task):
            how = (
                "max_retries=0 allows no other attempt"
                if task.header.max_retries == 0
                else f"that was time number {kills}, and REGROW_TASK_OOM_RETRIES="
                f"{core.config.task_oom_retries} allows no other"
            )
            code = "actor_died" if task.header.kind == ACTOR_CREATION else "out_of_memory"
            core.tasks.fail(
                task, code,
                f"{message} {how}. Let fewer tasks run at once (num_cpus, or resources of their "
                f"own), give each less to do, or use a node with more memory.",
            )  # fmt: skip
            return
        delay_ms = min(BACKOFF_MS * 2 ** (kills - 1), BACKOFF_MAX_MS)
        core.warn_driver(task.header.job, f"{message} It runs again in {delay_ms / 1000:g} s.")
        core.tasks.next_attempt(task)
        task.state = QUEUED
        self._waiting[task.header.task_id] = (core.now_ms + delay_ms, task)

    def tick(self, now_ms: float) -> None:
        """Whose time has come is queued again."""
        core = self._core
        for task_id, (due_ms, task) in list(self._waiting.items()):
            ended = core.tasks.tasks.get(task_id) is not task
            if ended or now_ms >= due_ms:
                del self._waiting[task_id]
                if not ended:
                    core.pool.enqueue(task)

    # --- which worker -----------------------------------------------------------------------------

    def _victim(self, sizes: dict[int, int]) -> Worker | None:
        """Of those that lose the least, the one whose task came last: the first go on."""
        workers = [
            worker
            for number, worker in self._core.pool.workers.items()
            if number in sizes and (worker.in_flight or worker.actor is not None)
        ]
        if not workers:
            return None
        biggest = max(sizes[worker.number] for worker in workers)
        worth = [w for w in workers if sizes[w.number] >= biggest * _WORTH]
        return min(worth, key=lambda w: (self._loss(w), -_order(w), -w.number))

    def _loss(self, worker: Worker) -> int:
        if worker.actor is not None:
            return _RESTARTED if worker.actor.recoverable else _LOST
        task = next(iter(worker.in_flight.values()))
        return _RETRIED if self._may_retry(task, 1) else _FAILED

    def _may_retry(self, task: Task, more: int = 0) -> bool:
        allowed = self._core.config.task_oom_retries
        return task.header.max_retries != 0 and task.oom_kills + more <= allowed

    def _reason(self, event: MemoryMeasured) -> str:
        core = self._core
        view = core.nodes.get(core.node_id)
        where = f" ({view.hostname})" if view is not None and view.hostname else ""
        sizes = sorted(event.workers.items(), key=lambda item: (-item[1], item[0]))
        named = [
            f"{worker.label[1]} (pid {worker.pid}) {_gib(size)}"
            for number, size in sizes
            if (worker := core.pool.workers.get(number)) is not None
        ]
        return (
            f"node {core.node_id}{where} was running out of memory, with {_gib(event.used)} of "
            f"{_gib(event.limit)} in use (REGROW_MEMORY_USAGE_THRESHOLD="
            f"{core.config.memory_usage_threshold:g}). Its biggest workers: "
            f"{', '.join(named[:_NAMED_MAX])}."
        )


def _order(worker: Worker) -> int:
    return next((task.order for task in worker.in_flight.values()), 0)


def _gib(size: int) -> str:
    return f"{size / (1 << 30):.2f} GiB"
