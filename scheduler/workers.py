"""The worker pool: which worker runs what, and when there should be more or fewer of them.

A worker holds the resources of one *shape* while it has tasks of it (a lease).  Short tasks are
queued behind the running one (pipelining), long ones and those that must not run twice never; what
is queued behind a task that turns out long is taken back.  A task that waits gives its CPU back,
and its worker everything that was queued behind it; when it goes on it does not wait for the CPU.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Final

from regrow.config import RESOURCE_UNIT
from regrow.messages import (
    ACTOR_CALL,
    ACTOR_CREATION,
    OK,
    Exit,
    FunctionDef,
    Location,
    Run,
    RunTask,
    TakeBack,
    TaskDone,
    Value,
)
from regrow.scheduler.events import CloseClient, KillWorker, StartWorker
from regrow.scheduler.ledger import Shape
from regrow.scheduler.tasks import QUEUED, RUNNING, Task

if TYPE_CHECKING:
    from regrow.scheduler.actors import Actor
    from regrow.scheduler.core import Core

#: Workers that are being started at once at most.
STARTING_MAX: Final = 16
#: An idle worker beyond the node's CPUs is ended after so long.
IDLE_MS: Final = 5_000.0
#: Tasks queued behind one that runs longer than this are taken back.
TAKE_BACK_MS: Final = 25.0
#: The connection of a process that has ended is closed after so long, if it has not closed itself.
LAST_WORDS_MS: Final = 500.0


class Worker:
    """A worker process."""

    __slots__ = (
        "actor", "blocked", "client", "done_later", "exited_ms", "functions", "gpus",
        "idle_since_ms", "in_flight", "number", "out_of_memory", "pid", "progress_ms",
        "retiring", "shape", "taking_back", "told",
    )  # fmt: skip

    def __init__(self, number: int, pid: int, client: int) -> None:
        self.number = number
        self.pid = pid
        self.client = client
        #: What it was given, in order; the first one runs.
        self.in_flight: dict[bytes, Task] = {}
        #: What it has done while its submissions were looked up.
        self.done_later: list[TaskDone] = []
        #: The shape it holds resources of; None: it holds none.
        self.shape: Shape | None = None
        self.gpus: list[int] = []
        self.blocked = False
        self.actor: Actor | None = None
        self.functions: set[bytes] = set()
        self.idle_since_ms = 0.0
        #: When it last began or finished something.
        self.progress_ms = 0.0
        self.taking_back = False
        self.retiring = False
        #: How much of its standard output and error it has told.
        self.told = {1: 0, 2: 0}
        #: Why it is ended, if memory is short.
        self.out_of_memory = ""
        #: When its process ended; negative: it lives.
        self.exited_ms = -1.0

    @property
    def label(self) -> tuple[int, str]:
        """Number of the job and name of what runs there, for its output."""
        if self.actor is not None:
            return self.actor.job, self.actor.name
        task = next(iter(self.in_flight.values()), None)
        if task is None:
            return 0, "worker"
        return task.header.job, task.header.name.removesuffix(".__init__")


class Pool:
    """See the module."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self.workers: dict[int, Worker] = {}
        #: Client number -> worker.
        self.by_client: dict[int, Worker] = {}
        self.idle: list[Worker] = []
        self.starting: dict[int, None] = {}
        self._number = 0
        self.ready: dict[Shape, deque[Task]] = {}
        self.queued = 0
        #: Function -> mean run time, milliseconds (exponential).
        self._means: dict[bytes, float] = {}
        self._runs: dict[int, list[RunTask]] = {}
        self._new_functions: dict[int, list[FunctionDef]] = {}

    # --- the queue --------------------------------------------------------------------------------

    def enqueue(self, task: Task, front: bool = False) -> None:
        """The task waits for resources and a worker."""
        queue = self.ready.get(task.shape)
        if queue is None:
            queue = self.ready[task.shape] = deque()
        if front:
            queue.appendleft(task)
        else:
            queue.append(task)
        self.queued += 1

    def dequeue(self, task: Task) -> None:
        """The task is not to run: its job ended."""
        if task.state == QUEUED and task.header.kind != ACTOR_CALL:
            queue = self.ready.get(task.shape)
            if queue is not None and task in queue:
                queue.remove(task)
                self.queued -= 1
        elif task.worker is not None and task.worker.actor is None:
            self.kill(task.worker)

    def has_room(self, shape: Shape) -> bool:
        """Whether a task of this shape could start now."""
        return not self.ready.get(shape) and self._core.ledger.fits(shape)

    def dispatch(self) -> None:
        """Gives queued tasks to workers: first to idle ones, then behind short tasks. Called once
        at the end of every event. Hot path."""
        if not self.queued:
            return
        for shape in list(self.ready):
            queue = self.ready[shape]
            while queue and self._core.ledger.fits(shape):
                if not self.idle:
                    self._start_for(len(queue))
                    break
                self._lease(self.idle.pop(), shape, queue)
            if queue:
                self._pipeline(shape, queue)
            if not queue:
                del self.ready[shape]
        self._send_runs()

    def _lease(self, worker: Worker, shape: Shape, queue: deque[Task]) -> None:
        task = queue.popleft()
        self.queued -= 1
        worker.gpus = self._core.ledger.acquire(shape)
        worker.shape = shape
        if not self._give(worker, task):
            self._end_lease(worker)

    def _pipeline(self, shape: Shape, queue: deque[Task]) -> None:
        """Short tasks go behind short tasks, evenly."""
        depth = self._core.config.pipeline_depth
        hosts = [
            worker
            for worker in self.by_client.values()
            if worker.shape == shape
            and worker.actor is None
            and not worker.blocked
            and 0 < len(worker.in_flight) < depth
            and self._all_short(worker)
        ]
        if not hosts:
            return
        share = -(-len(queue) // len(hosts))
        for worker in hosts:
            for _ in range(min(share, depth - len(worker.in_flight))):
                if not queue or not self._is_short(queue[0]):
                    return
                task = queue.popleft()
                self.queued -= 1
                self._give(worker, task)

    def _is_short(self, task: Task) -> bool:
        header = task.header
        if header.kind == ACTOR_CREATION or header.max_retries == 0:
            return False
        mean = self._means.get(header.function_id)
        return mean is not None and mean <= self._core.config.pipeline_task_max_ms

    def _all_short(self, worker: Worker) -> bool:
        if self._core.now_ms - worker.progress_ms > TAKE_BACK_MS:
            return False
        first = next(iter(worker.in_flight.values()))
        return self._is_short(first)

    def _give(self, worker: Worker, task: Task) -> bool:
        """False: a spilled argument has to come back first, or the task ended."""
        core = self._core
        inline: list[Value] = []
        located: list[Location] = []
        if task.header.deps:
            entries = core.objects.entries
            for oid in dict.fromkeys(task.header.deps):
                entry = entries[oid]
                value = entry.value
                assert value is not None, "a queued task whose argument has no value"
                if value.data is not None:
                    inline.append(value)
                    continue
                location = core.transport.pin(entry.key, worker.client) if entry.key else None
                if location is None:
                    pins = [(place.object_id, place.attempt) for place in located]
                    core.transport.unpin(worker.client, pins)
                    core.tasks.restore_arguments(task)
                    return False
                located.append(location)
            core.tasks.unpin_restored(task)
        function_id = task.header.function_id
        if function_id not in worker.functions and function_id in core.functions:
            worker.functions.add(function_id)
            self._new_functions.setdefault(worker.client, []).append(core.functions[function_id])
        if not worker.in_flight:
            worker.progress_ms = core.now_ms
        task.state = RUNNING
        task.worker = worker
        worker.in_flight[task.header.task_id] = task
        run = RunTask(
            task.spec,
            task.attempt,
            inline,
            located,
            worker.gpus,
            task.restore,
            task.answers,
            task.driver,
        )
        runs = self._runs.get(worker.client)
        if runs is None:
            self._runs[worker.client] = [run]
        else:
            runs.append(run)
        return True

    def call(self, worker: Worker, task: Task) -> bool:
        """An actor's call; its worker queues any number of them."""
        return self._give(worker, task)

    def _send_runs(self) -> None:
        if not self._runs:
            return
        core = self._core
        runs, self._runs = self._runs, {}
        for client, items in runs.items():
            core.send_client(client, Run(items, self._new_functions.pop(client, [])))

    def flush(self) -> None:
        """Sends what ``call`` gave out; at the end of every event."""
        self._send_runs()

    # --- what workers say -------------------------------------------------------------------------

    def arrived(self, number: int, pid: int, client: int) -> Worker | None:
        """A worker that was asked for is there. None: nobody asked for it."""
        if number not in self.starting:
            return None
        del self.starting[number]
        worker = Worker(number, pid, client)
        worker.idle_since_ms = self._core.now_ms
        self.workers[number] = worker
        self.by_client[client] = worker
        self.idle.append(worker)
        return worker

    def done(self, worker: Worker, items: list[TaskDone]) -> None:
        """Finished tasks. Hot path."""
        core = self._core
        if worker.client in core.tasks.asking:
            # The results may refer to what was submitted: that has to be in the log with them.
            worker.done_later.extend(items)
            return
        worker.progress_ms = core.now_ms
        in_flight = worker.in_flight
        means = self._means
        actor = worker.actor
        for item in items:
            if actor is not None and actor.recoverable and core.checkpointer.holds(actor):
                core.checkpointer.hold(worker, item)
                continue
            task = in_flight.pop(item.task_id, None)
            if task is None or task.attempt != item.attempt:
                continue  # an old attempt's answer
            if core.tasks.tasks.get(item.task_id) is not task:
                continue  # its job has ended
            if item.status == OK:
                function_id = task.header.function_id
                ms = item.duration_us / 1000
                mean = means.get(function_id)
                means[function_id] = ms if mean is None else mean + (ms - mean) * 0.2
            core.tasks.done(task, item, worker.client)
        if not in_flight and worker.actor is None:
            self._end_lease(worker)

    def go_on(self, client: int) -> None:
        """Nothing is looked up any more for this client: what it has done meanwhile ends now."""
        worker = self.by_client.get(client)
        if worker is not None and worker.done_later:
            items, worker.done_later = worker.done_later, []
            self.done(worker, items)

    def returned(self, worker: Worker, task_ids: list[bytes]) -> None:
        """Tasks that the worker had not started, in their order."""
        worker.taking_back = False
        tasks = [worker.in_flight.pop(task_id, None) for task_id in task_ids]
        core = self._core
        for task in reversed(tasks):
            if task is not None:
                pins = [(oid, core.objects.entries[oid].key) for oid in task.header.deps]
                keys = [key for _, key in pins if key is not None]
                core.transport.unpin(worker.client, keys)
                task.worker = None
                task.state = QUEUED
                self.enqueue(task, front=True)
        if not worker.in_flight and worker.actor is None:
            self._end_lease(worker)

    def blocked(self, worker: Worker) -> None:
        """Its task waits: the CPU is free for others."""
        if not worker.blocked and worker.shape is not None:
            worker.blocked = True
            self._core.ledger.release(_cpu(worker.shape), [])

    def unblocked(self, worker: Worker) -> None:
        if worker.blocked:
            worker.blocked = False
            assert worker.shape is not None
            self._core.ledger.acquire(_cpu(worker.shape), force=True)
            worker.progress_ms = self._core.now_ms

    def become_actor(self, worker: Worker, actor: Actor, creation: Task) -> None:
        """The worker is an actor from now on. One that named no resources needed its CPU only to be
        created, as in Ray."""
        worker.actor = actor
        if creation.header.resources is None:
            self._release(worker)
            worker.shape = ()

    def _end_lease(self, worker: Worker) -> None:
        if worker.shape is not None:
            self._release(worker)
            if worker.number in self.workers and not worker.retiring:
                worker.idle_since_ms = self._core.now_ms
                self.idle.append(worker)

    def _release(self, worker: Worker) -> None:
        shape, worker.shape = worker.shape, None
        if shape is None:
            return
        if worker.blocked:
            worker.blocked = False
            shape = tuple((name, amount) for name, amount in shape if name != "CPU")
        self._core.ledger.release(shape, worker.gpus)
        worker.gpus = []

    # --- life and death ---------------------------------------------------------------------------

    def start(self, count: int) -> None:
        """Asks for so many more workers."""
        for _ in range(count):
            self._number += 1
            self.starting[self._number] = None
            self._core.emit(StartWorker(self._number, {}))

    def _start_for(self, waiting: int) -> None:
        wanted = min(waiting, STARTING_MAX) - len(self.starting)
        if wanted > 0:
            cpus = self._core.ledger.available.get("CPU", 0) // RESOURCE_UNIT
            self.start(min(wanted, max(1, cpus - len(self.starting))))

    def kill(self, worker: Worker) -> None:
        """At once; ``gone`` follows."""
        if not worker.retiring:
            worker.retiring = True
            if worker in self.idle:
                self.idle.remove(worker)
        self._core.emit(KillWorker(worker.number))

    def retire(self, worker: Worker) -> None:
        """The worker ends after what it was given."""
        worker.retiring = True
        if worker in self.idle:
            self.idle.remove(worker)
        self._core.send_client(worker.client, Exit())

    def never_came(self, number: int) -> None:
        """A worker's process ended before it said anything."""
        if self.starting.pop(number, 0) is None and self.queued:
            self._start_for(1)

    def gone(self, worker: Worker) -> None:
        """The process is dead. The first of its tasks killed it, perhaps; the others never
        began."""
        core = self._core
        self.workers.pop(worker.number, None)
        self.by_client.pop(worker.client, None)
        self._runs.pop(worker.client, None)
        self._new_functions.pop(worker.client, None)
        if worker in self.idle:
            self.idle.remove(worker)
        self._release(worker)
        if worker.actor is not None:
            core.actors.worker_died(worker.actor, worker)
            return
        known = core.tasks.tasks
        tasks = [t for t in worker.in_flight.values() if known.get(t.header.task_id) is t]
        worker.in_flight.clear()
        for task in reversed(tasks[1:]):
            task.worker = None
            task.state = QUEUED
            self.enqueue(task, front=True)
        if tasks:
            self._killed_its_worker(tasks[0], worker)

    def _killed_its_worker(self, task: Task, worker: Worker) -> None:
        core = self._core
        header = task.header
        task.worker = None
        if worker.out_of_memory:
            core.pressure.ended(task, worker)
            return
        task.kills += 1
        actor = core.actors.table.get(header.task_id)
        if actor is not None and actor.exiting:
            core.tasks.fail(task, "actor_died", f"{header.name} was killed while it was created")
            return
        retries = header.max_retries
        spent = retries >= 0 and task.attempt - task.oom_kills > retries
        # An allowance that was named is honoured; one without end would never get past this task.
        if spent or (retries < 0 and task.kills >= core.config.worker_kills_max):
            how = (
                f"max_retries={retries} allows no other attempt"
                if spent
                else f"it has killed {task.kills} workers, which ends even max_retries=-1"
            )
            code = "actor_died" if header.kind == ACTOR_CREATION else "worker_crashed"
            who = f"{header.name}: its worker (pid {worker.pid}) died"
            message = f"{who} in attempt {task.attempt}; {how}."
            core.tasks.fail(task, code, message)
            return
        core.tasks.next_attempt(task)
        task.state = QUEUED
        self.enqueue(task, front=True)

    def tick(self, now_ms: float) -> None:
        """Takes back what waits behind a long task, and ends workers that nobody needs."""
        core = self._core
        for worker in self.by_client.values():
            if 0 <= worker.exited_ms < now_ms - LAST_WORDS_MS:
                core.emit(CloseClient(worker.client))
            if (
                len(worker.in_flight) > 1
                and worker.actor is None
                and not worker.taking_back
                and now_ms - worker.progress_ms > TAKE_BACK_MS
            ):
                worker.taking_back = True
                core.send_client(worker.client, TakeBack(len(worker.in_flight) - 1))
        keep = max(1, core.ledger.total.get("CPU", 0) // RESOURCE_UNIT)
        spare = len(self.idle) - keep
        if spare > 0:
            for worker in list(self.idle[:spare]):
                if now_ms - worker.idle_since_ms > IDLE_MS:
                    self.retire(worker)

    def offload(self) -> None:
        """Hands queued tasks to peers that have room, unless they are done sooner here."""
        core = self._core
        for shape, queue in self.ready.items():
            while queue:
                task = queue[-1]
                mean = self._means.get(task.header.function_id)
                soon = mean is not None and mean * len(queue) < core.config.offload_min_ms
                if soon and not self._is_stuck():
                    break
                target = core.peer_with_room(shape)
                if target is None or task.rebuild or task.submitter != core.node_id:
                    break
                if task.restored or (len(queue) <= 1 and mean is None and self.idle):
                    break
                queue.pop()
                self.queued -= 1
                core.tasks.hand_over(task, target)

    def give_away(self) -> None:
        """This node drains: what is queued goes to nodes that can run it."""
        core = self._core
        for shape, queue in list(self.ready.items()):
            kept = deque(task for task in queue if not core.tasks.give_away(task))
            self.queued -= len(queue) - len(kept)
            self.ready[shape] = kept

    def _is_stuck(self) -> bool:
        """Whether no task has ended here for a while: how long they took before says nothing."""
        last = max(
            (w.progress_ms for w in self.by_client.values() if w.in_flight and w.actor is None),
            default=None,
        )
        patience = max(self._core.config.offload_min_ms, TAKE_BACK_MS)
        return last is not None and self._core.now_ms - last > patience

    def check(self) -> None:
        """Invariants."""
        assert self.queued == sum(len(queue) for queue in self.ready.values())
        for worker in self.idle:
            assert not worker.in_flight, "an idle worker has tasks"
            assert worker.shape is None, "an idle worker holds resources"
        for client, worker in self.by_client.items():
            assert worker.client == client
            for task in worker.in_flight.values():
                assert task.worker is worker, "a task that two workers have"


def _cpu(shape: Shape) -> Shape:
    return tuple((name, amount) for name, amount in shape if name == "CPU")
