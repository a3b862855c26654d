"""Tasks on a node, from submission to result.

    WAITING   for the values of its arguments       -> FETCHING, REMOTE, QUEUED; done (an error)
    FETCHING  for bytes, its function, or a lookup  -> QUEUED
    QUEUED    for resources and a worker            -> RUNNING, REMOTE, FETCHING (spilled arguments)
    RUNNING   given to a worker             -> done; QUEUED (returned, retried); STORING; WAITING
    STORING   done; large results go to storage     -> done
    REMOTE    its holder is another node            -> done; WAITING (the store gave it to us)

A task whose attempt is not the first, or that runs again for its lost objects (a *rebuild*), is
*replayed*: what it submits is looked up in the log before it is started. So is everything that is
submitted in a job which was resumed.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Iterable
from typing import TYPE_CHECKING, Final

from msgspec import Raw

from regrow.gcs.operations import Outcome
from regrow.ids import object_id
from regrow.messages import (
    ACTOR_CALL,
    ACTOR_CREATION,
    ASYNC,
    CHECKPOINT,
    DRIVER_SHIFT,
    KEYED,
    OK,
    PENDING,
    RECOVERABLE,
    RESUMED,
    SYSTEM_ERROR,
    TASK,
    TASK_ERROR,
    FetchFunctions,
    HandedTask,
    HeldTask,
    LookUpTasks,
    Rebuilt,
    ReplayDifference,
    Return,
    SystemFailure,
    TaskDone,
    TaskHeader,
    TaskState,
    TaskStates,
    Value,
    encode,
    failure_decoder,
    header_decoder,
    keyed_content,
)
from regrow.objectstore.effects import ObjectKey
from regrow.objectstore.layout import digest as digest_of
from regrow.scheduler import events, policy
from regrow.scheduler.ledger import NOTHING, ONE_CPU, Shape, missing, shape_of
from regrow.scheduler.objects import Entry, failure_value

if TYPE_CHECKING:
    from regrow.scheduler.core import Core
    from regrow.scheduler.workers import Worker

WAITING: Final = 0
FETCHING: Final = 1
QUEUED: Final = 2
RUNNING: Final = 3
REMOTE: Final = 4
STORING: Final = 5
#: Ended tasks of other nodes that are not run again for a reminder which was out of date; far more
#: than end while one is on its way.
GUESTS_REMEMBERED: Final = 65_536


class Task:
    """A task that is not finished."""

    __slots__ = (
        "answers", "attempt", "client", "digests", "driver", "ended", "follows", "gpus", "header",
        "holder", "infeasible_ms", "kills", "logged",
        "missing", "node", "oom_kills", "order", "puts", "rebuild", "restore", "restored", "shape",
        "spec", "state", "submitter", "worker",
    )  # fmt: skip

    def __init__(
        self, header: TaskHeader, spec: Raw, shape: Shape, submitter: int, holder: tuple[int, int]
    ) -> None:
        self.header = header
        self.spec = spec
        self.shape = shape
        #: The node that waits for the result.
        self.submitter = submitter
        self.holder = holder
        #: From which driver of its job what it submits descends.
        self.driver = header.driver
        self.attempt = 1
        self.state = WAITING
        #: Arguments that are awaited: their values, then their bytes.
        self.missing = 0
        #: The client here that submitted it; 0: none.
        self.client = 0
        self.worker: Worker | None = None
        #: Its place among all that came to this node.
        self.order = 0
        #: The node that runs it, while REMOTE.
        self.node = 0
        self.rebuild = False
        self.digests: list[bytes] = []
        #: Of a rebuild: how it ended before.
        self.ended = OK
        #: Of an actor's creation that runs again: the object that is its saved state.
        self.restore = b""
        #: Of a call that is replayed: what ``wait`` and timed ``get`` answered in it.
        self.answers: bytes | None = None
        #: Of an actor's call: its caller's calls before it have ended, or are here.
        self.follows = False
        #: Its row is in the log, or in the open batch.
        self.logged = False
        #: Large objects that it has put, this attempt or an earlier one.
        self.puts: list[bytes] | None = None
        #: Workers that it killed.
        self.kills = 0
        #: Attempts that were ended because memory was short; they do not count as retries.
        self.oom_kills = 0
        self.gpus: list[int] = []
        #: Its spilled arguments are back and pinned for it.
        self.restored = False
        self.infeasible_ms = -1.0

    @property
    def replayed(self) -> bool:
        return self.attempt > 1 or self.rebuild or bool(self.header.flags & RESUMED)

    @property
    def object_ids(self) -> list[bytes]:
        """Of its return values; at least one, which tells that it ended."""
        return returns_of(self.header)


class TaskTable:
    """See the module."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self.tasks: dict[bytes, Task] = {}
        self._lookups: dict[int, list[tuple[int, TaskHeader, Raw]]] = {}
        self._looking_up: dict[bytes, int] = {}
        #: Answers that wait for earlier ones: what a client submits stays in its order.
        self._answers: dict[int, TaskStates] = {}
        self._lookup_number = 0
        #: Clients whose submissions are being looked up: how many answers are awaited.
        self.asking: dict[int, int] = {}
        self._order = 0
        self._without_function: dict[bytes, list[Task]] = {}
        self.infeasible: dict[bytes, Task] = {}
        #: Tasks that were spread: they take turns.
        self._turn = 0
        self._restoring: dict[bytes, list[Task]] = {}
        #: Whose last argument is known, and that are to go on; the first one is at it.
        self._arrived: deque[Task] = deque()
        #: Tasks of other nodes that ended here: for which driver, in which attempt; oldest first.
        self._guests_ended: OrderedDict[bytes, tuple[int, int]] = OrderedDict()

    # --- arrival ----------------------------------------------------------------------------------

    def submit(self, client: int, specs: Iterable[Raw], resent: bool) -> None:
        """Specs of a client, in order. Hot path: once per task."""
        tasks = self.tasks
        decode = header_decoder.decode
        held: list[tuple[int, TaskHeader, Raw]] = []
        for spec in specs:
            header = decode(spec)
            parent = tasks.get(header.parent_id)
            if header.flags >> DRIVER_SHIFT and not self._admits(header, parent):
                self._refuse(header, client)
                continue
            if resent or header.flags & RESUMED or (parent is not None and parent.replayed):
                held.append((client, header, spec))
            else:
                self.admit(header, spec, client)
        if held:
            self._look_up(held)

    def _admits(self, header: TaskHeader, parent: Task | None) -> bool:
        """Of a driver that is replaced, or has ended, only what is needed again is: it is found."""
        replayed = parent is not None and parent.rebuild
        return replayed or self._core.admits(header.job, header.driver)

    def _refuse(self, header: TaskHeader, client: int) -> None:
        """The log would not take it. Whoever submitted it ends, or works for others and is not to
        wait for it; nobody else is told: the next driver submits the same task."""
        message = f"{header.name}: its job has ended, or was taken over by another driver."
        self._core.journal.acknowledge(client, 1)
        for oid in returns_of(header):
            self._core.tell(client, failure_value(oid, "cancelled", message))

    def _mismatch(self, header: TaskHeader, client: int, spec: Raw, entries: list[Entry]) -> None:
        """Its key stands for another call in the log."""
        key, _ = keyed_content(spec)
        message = (
            f"{header.name}.options(key={key!r}) was submitted before, by an earlier driver of the "
            "job or an earlier attempt, with another function or other arguments; one key names "
            "one call. Take another key, or begin a new run of the job"
        )
        self._core.journal.acknowledge(client, 1)
        for entry in entries:
            value = failure_value(entry.object_id, "replay_mismatch", message)
            if entry.value is None:
                self._core.objects.set_value(entry, value)
            else:
                self._core.tell(client, value)

    def _look_up(self, held: list[tuple[int, TaskHeader, Raw]]) -> None:
        self._lookup_number += 1
        self._lookups[self._lookup_number] = held
        client = held[0][0]
        self.asking[client] = self.asking.get(client, 0) + 1
        self._core.journal.defer(client)
        entry = self._core.objects.entry
        for client, header, _ in held:
            self._looking_up[header.task_id] = self._lookup_number
            # What ends here meanwhile is kept, even if the client lets go of it.
            for oid in returns_of(header):
                entry(oid).pins += 1
            if header.flags & RESUMED and not self._core.journal.has_ended(header.task_id):
                self._core.objects.forget_errors(returns_of(header))
            self._own(header, client)
        # The answer is read from the log, so what this node knows has to be in it.
        self._core.send_store_held(_question(self._lookup_number, held))

    def look_up_again(self) -> None:
        """The control store may have forgotten the question."""
        for number, held in self._lookups.items():
            self._core.send_store(_question(number, held))

    def is_looking_up(self, task_id: bytes) -> bool:
        return task_id in self._looking_up

    def looked_up(self, message: TaskStates) -> None:
        """What the log knows of the children of a replayed parent."""
        if message.number in self._lookups:
            self._answers[message.number] = message
        while self._lookups and (first := next(iter(self._lookups))) in self._answers:
            self._answered(self._lookups.pop(first), self._answers.pop(first))

    def _answered(self, held: list[tuple[int, TaskHeader, Raw]], message: TaskStates) -> None:
        core = self._core
        for (client, header, spec), state in zip(held, message.tasks, strict=True):
            self._looking_up.pop(header.task_id, None)
            entries = [core.objects.entries[oid] for oid in returns_of(header)]
            if core.is_connected(client):  # else whoever takes its place submits again
                self._judge(header, spec, client, state, entries)
            for entry in entries:
                entry.pins -= 1
                awaited = core.actors.call_order.awaits(entry.object_id)
                if awaited or entry.waiters or entry.dependents or entry.readers:
                    core.objects.need_value(entry)
                core.objects.free_unheld(entry)
        client = held[0][0]
        self.asking[client] -= 1
        if not self.asking[client]:
            del self.asking[client]
            core.journal.go_on(client)
            core.pool.go_on(client)

    def _judge(
        self, header: TaskHeader, spec: Raw, client: int, state: TaskState, entries: list[Entry]
    ) -> None:
        """One answer: the task is started only if nobody has it and it has not ended."""
        core = self._core
        if not self._admits(header, self.tasks.get(header.parent_id)):
            self._refuse(header, client)
            return
        if state.content and state.content != keyed_content(spec)[1]:
            self._mismatch(header, client, spec, entries)
            return
        known_here = header.task_id in self.tasks or entries[0].value is not None
        held_here = state.status == PENDING and state.holder == core.node_id
        if not known_here and (not state.known or held_here):
            owners = [entry.owner for entry in entries]  # the client may have let go since
            self.admit(header, spec, client)
            for entry, owner in zip(entries, owners, strict=True):
                entry.owner = owner
            return
        core.journal.acknowledge(client, 1)
        if header.task_id in self.tasks:
            return
        values = {value.object_id: value for value in state.values}
        for entry in entries:
            if entry.value is None:
                if entry.object_id in values:
                    core.objects.set_value(entry, values[entry.object_id])
                elif entry.maker == 0:
                    core.objects.need_value(entry)

    def _own(self, header: TaskHeader, client: int) -> None:
        """The client holds what the task returns, and is told of it."""
        objects = self._core.objects
        for oid in returns_of(header):
            entry = objects.entry(oid)
            if entry.owner in (0, client):
                entry.owner = client
                if entry.value is not None:
                    self._core.tell(client, entry.value)
            else:
                objects.borrow(client, [entry.object_id])
                objects.subscribe(client, [entry.object_id])

    def admit(self, header: TaskHeader, spec: Raw, client: int) -> None:
        """A task of this node's own client enters the log and the queue. Hot path."""
        core = self._core
        task_id = header.task_id
        if task_id in self.tasks or object_id(task_id, 0) in core.objects.entries:
            known = task_id in self.tasks or (
                core.objects.entries[object_id(task_id, 0)].value is not None
            )
            if known:
                self._admit_again(header, client)
                return
        kind = header.kind
        shape = shape_of(header.resources, NOTHING if kind == ACTOR_CALL else ONE_CPU)
        task = Task(header, spec, shape, core.node_id, core.self_id)
        task.client = client
        self._order += 1
        task.order = self._order
        self.tasks[task_id] = task
        core.journal.submitted(task, client)
        entry = core.objects.entry
        made = entry(object_id(task_id, 0))
        made.task = task
        made.owner = client
        for index in range(1, header.num_returns):
            made = entry(object_id(task_id, index))
            made.task = task
            made.owner = client
        if kind == ACTOR_CREATION:
            core.actors.announced(task)
        elif kind == ACTOR_CALL:
            core.actors.pin(header.actor_id)
        if header.flags & RECOVERABLE and (header.deps or header.nested):
            core.checkpointer.keep_arguments(task)
        self._resolve(task)

    def _admit_again(self, header: TaskHeader, client: int) -> None:
        """The same id was submitted before (``key=``, or a child of a replayed parent)."""
        core = self._core
        core.journal.acknowledge(client, 1)
        self._own(header, client)

    def handed(self, handed: HandedTask) -> None:
        """A peer made this node the task's holder (in the log, already)."""
        header = header_decoder.decode(handed.spec)
        if not self._core.admits(header.job, header.driver):
            return
        for value in handed.values:
            entry = self._core.objects.entry(value.object_id)
            entry.pins += 1
            if entry.value is None:
                self.remote_done(entry, value)  # it may be the result of a task from here
                self._core.objects.set_value(entry, value)
            entry.pins -= 1
        for dep, node_id in handed.sources:
            entry = self._core.objects.entry(dep)
            if node_id == self._core.node_id or self._core.is_dead(node_id):
                continue  # it was handed over before that node died
            if node_id not in entry.sources:
                entry.sources.append(node_id)
        self._core.note_job(header.job, handed.submitter)
        core, objects = self._core, self._core.objects
        task = self.tasks.get(header.task_id)
        runs = task is not None and task.state != REMOTE
        if runs or self._has_ended(header, handed.attempt):
            # A driver that went from there to here submitted it here too.
            if handed.submitter != core.node_id and not core.is_dead(handed.submitter):
                objects.watch(handed.submitter, returns_of(header))
        else:
            self.hold(HeldTask(handed.spec, handed.attempt, handed.submitter), header)
        for oid in [value.object_id for value in handed.values] + [
            oid for oid, _ in handed.sources
        ]:
            if oid in objects.entries:
                objects.free_unheld(objects.entries[oid])

    def hold(
        self,
        held: HeldTask,
        header: TaskHeader | None = None,
        rebuild: bool = False,
        restore: bytes = b"",
    ) -> None:
        """A task whose holder this node already is: handed over, reassigned, or to be rebuilt."""
        core = self._core
        header = header or header_decoder.decode(held.spec)
        task_id = header.task_id
        # What drivers before it left here goes now: later, that would take this along.
        admitted = core.admits(header.job, held.driver if rebuild else header.driver)
        if not rebuild and not admitted:
            return
        if not rebuild and self._has_ended(header, held.attempt):
            return
        task = self.tasks.get(task_id)
        if task is not None:
            if task.rebuild or task.state != REMOTE:
                return  # it runs here already
            # It is to run again: its node is dead, or ended it and took the result along.
            task.worker = None
            task.node = 0
            task.missing = 0
            task.follows = False
            task.state = WAITING
            self.detach(task)
        else:
            shape = shape_of(header.resources, NOTHING if header.kind == ACTOR_CALL else ONE_CPU)
            task = Task(header, held.spec, shape, held.submitter, core.self_id)
            self._order += 1
            task.order = self._order
            self.tasks[task_id] = task
            if header.kind == ACTOR_CREATION:
                core.actors.announced(task)
            elif header.kind == ACTOR_CALL:
                core.actors.pin(header.actor_id)
            self._pin_arguments(task)
        task.logged = True
        task.attempt = held.attempt
        task.holder = core.self_id
        task.rebuild = rebuild
        task.driver = held.driver if rebuild else header.driver
        task.digests = held.digests
        task.ended = held.status
        task.restore = restore
        task.answers = held.answers if rebuild and header.kind == ACTOR_CALL else None
        tells = held.submitter != core.node_id and not rebuild and not core.is_dead(held.submitter)
        for oid in task.object_ids:
            entry = core.objects.entry(oid)
            entry.task = task
            entry.maker = 0
            entry.locating = False
            if tells:
                if entry.peers is None:
                    entry.peers = {}
                entry.peers[held.submitter] = None
        if not rebuild and header.max_retries >= 0 and task.attempt > header.max_retries + 1:
            message = (
                f"{header.name} was on a node that died, in its attempt {task.attempt - 1}; "
                f"max_retries={header.max_retries} allows no other. Raise max_retries if it may "
                "run again."
            )
            if header.kind == ACTOR_CALL:
                self.fail(task, "actor_died", f"the actor's node died during {header.name}.")
            else:
                self.fail(task, "node_died", message)
            return
        self._resolve_pinned(task)

    def _has_ended(self, header: TaskHeader, attempt: int) -> bool:
        """The log is about to say so, or has; whoever told of the task may not have known."""
        known = self._guests_ended.get(header.task_id)
        ended = known is not None and known >= (header.driver, attempt)
        return ended or self._core.journal.has_ended(header.task_id)

    def ended_here(self, task_id: bytes, driver: int) -> bool:
        """Whether a call of an actor that restarts, submitted by this driver of its job or by a
        later one, ended on this node."""
        known = self._guests_ended.get(task_id)
        return known is not None and known[0] >= driver

    def detach(self, task: Task) -> None:
        """It awaits its arguments no more, nor the call before it."""
        if task.header.after:
            self._core.actors.call_order.forget(task)
        for dep in task.header.deps:
            entry = self._core.objects.entries.get(dep)
            if entry is not None:
                for waiting in (entry.dependents, entry.byte_waiters):
                    while waiting and task in waiting:
                        waiting.remove(task)

    # --- arguments --------------------------------------------------------------------------------

    def _pin_arguments(self, task: Task) -> None:
        entry = self._core.objects.entry
        for oid in task.header.deps:
            entry(oid).pins += 1
        for oid in task.header.nested:
            entry(oid).pins += 1

    def _resolve(self, task: Task) -> None:
        header = task.header
        if header.deps or header.nested:
            self._pin_arguments(task)
            self._resolve_pinned(task)
        else:
            self._known(task)

    def _resolve_pinned(self, task: Task) -> None:
        """Waits for the values of the arguments."""
        objects = self._core.objects
        if task.header.kind == ACTOR_CALL:
            self._core.actors.enqueue(task)
        for oid in task.header.deps:
            entry = objects.entry(oid)
            if entry.value is None:
                if entry.dependents is None:
                    entry.dependents = []
                entry.dependents.append(task)
                task.missing += 1
                objects.need_value(entry)
        if not task.missing:
            self._known(task, queued_call=True)
        elif task.header.kind == ACTOR_CALL:
            self._core.actors.arguments_awaited(task)

    def value_arrived(self, task: Task) -> None:
        task.missing -= 1
        if task.missing or task.state != WAITING:
            return
        # A task that fails with its argument is the argument of others: a queue, not a recursion.
        self._arrived.append(task)
        if len(self._arrived) > 1:
            return
        while self._arrived:
            task = self._arrived[0]
            if self.tasks.get(task.header.task_id) is task and not task.missing:
                self._known(task, queued_call=True)
            self._arrived.popleft()

    def _known(self, task: Task, queued_call: bool = False) -> None:
        """Every argument has a value: the task is placed, or fails with the argument's error."""
        if task.header.kind == ACTOR_CALL:
            if not queued_call:
                self._core.actors.enqueue(task)
            self._core.actors.arguments_known(task)
            return
        if task.header.deps and self.fails_with_argument(task):
            return
        self._place(task)

    def fails_with_argument(self, task: Task) -> bool:
        """Whether an argument is an error, which then is the task's result too (as in Ray). (But
        that an actor was not created its callers are told in words, which a worker finds.)"""
        if task.header.kind == ACTOR_CREATION:
            return False
        for oid in task.header.deps:
            value = self._core.objects.entry(oid).value
            if value is not None and value.status != OK:
                assert value.data is not None
                returned = Return(len(value.data), value.digest, value.data)
                self.complete(task, value.status, [returned], 0)
                return True
        return False

    def _place(self, task: Task) -> None:
        core = self._core
        header = task.header
        fits = not core.draining and core.ledger.could_ever_fit(task.shape)
        passed_on = task.submitter != core.node_id and not header.strategy.startswith("node:")
        if fits and (passed_on or (not header.strategy and not header.deps)):
            self.stay(task)  # hot path; an overloaded node hands over what is queued (``offload``)
            return
        bytes_at: dict[int, int] = {}
        for oid in header.deps:
            entry = core.objects.entry(oid)
            if entry.value is not None and entry.value.data is None:
                homes = [*entry.sources, core.node_id] if entry.key is not None else entry.sources
                for node_id in homes:
                    bytes_at[node_id] = bytes_at.get(node_id, 0) + entry.value.size
        if header.strategy == "SPREAD":
            self._turn += 1
        target = policy.choose(
            task.shape, header.strategy, core.node_id, core.nodes_alive(), fits, bytes_at,
            self._turn,
        )  # fmt: skip
        if target is None and core.draining and core.ledger.could_ever_fit(task.shape):
            self.stay(task)  # nobody else can run it: perhaps it ends in time
        elif target is None:
            if task.infeasible_ms < 0:
                task.infeasible_ms = core.now_ms
                core.warn_driver(header.job, self.why_infeasible(task))
            self.infeasible[header.task_id] = task
        elif target == core.node_id:
            self.stay(task)
        else:
            self.hand_over(task, target)

    def give_away(self, task: Task) -> bool:
        """A queued task goes to another node, whatever that has to do first. False: none can run
        it."""
        core = self._core
        target = policy.choose(
            task.shape, task.header.strategy, core.node_id, core.nodes_alive(), False, {},
            self._turn,
        )  # fmt: skip
        if target is None or task.rebuild:
            return False
        self.unpin_restored(task)
        self.hand_over(task, target)
        return True

    def why_infeasible(self, task: Task) -> str:
        """Names what no node has."""
        nodes = self._core.nodes_alive()
        strategy = task.header.strategy
        if strategy.startswith("node:"):
            return f"{task.header.name} asks for {strategy}, which is not alive"
        offers = "; ".join(f"node {n.node_id} lacks {missing(task.shape, n.total)}" for n in nodes)
        return f"no node can ever run {task.header.name}: {offers}"

    def retry_infeasible(self) -> None:
        """The cluster changed, or time passed: what could not be placed is tried again, or
        failed."""
        limit_ms = self._core.config.infeasible_timeout_s * 1000
        for task_id, task in list(self.infeasible.items()):
            del self.infeasible[task_id]
            if self._core.now_ms - task.infeasible_ms > limit_ms:
                creation = task.header.kind == ACTOR_CREATION
                code = "actor_unschedulable" if creation else "unschedulable"
                self.fail(task, code, self.why_infeasible(task))
            else:
                self._place(task)

    def stay(self, task: Task) -> None:
        """The task runs here: its bytes are brought here first."""
        header = task.header
        if header.deps:
            objects = self._core.objects
            absent: list[Entry] = []
            for oid in header.deps:
                entry = objects.entry(oid)
                value = entry.value
                if value is not None and value.data is None and entry.key is None:
                    absent.append(entry)
            if absent:
                if task.state == FETCHING:  # one that had come is gone again
                    self._keep_arguments(task)
                task.state = FETCHING
                task.missing += len(absent)
                for entry in absent:
                    if entry.byte_waiters is None:
                        entry.byte_waiters = []
                    entry.byte_waiters.append(task)
                for entry in absent:
                    objects.need_bytes(entry)
                return
        self._runnable(task)

    def _keep_arguments(self, task: Task) -> None:
        """Its arguments, and those of others, drive each other out of memory: from now on it keeps
        those that are here, and the rest finds room elsewhere."""
        task.restored = True
        for oid in task.header.deps:
            key = self._core.objects.entry(oid).key
            if key is not None:
                self._core.transport.pin(key, task.header.task_id)

    def bytes_arrived(self, task: Task, key: ObjectKey | None = None) -> None:
        """Of an argument: ``key`` names the copy, where there is one."""
        if task.restored and key is not None:
            self._core.transport.pin(key, task.header.task_id)
        task.missing -= 1
        if task.missing or task.state != FETCHING:
            return
        if self.tasks.get(task.header.task_id) is not task:
            return  # it has ended meanwhile
        if task.header.kind != ACTOR_CALL and self.fails_with_argument(task):
            return
        self.stay(task)

    def _runnable(self, task: Task) -> None:
        core = self._core
        header = task.header
        if header.kind == ACTOR_CALL:
            core.actors.runnable(task)
            return
        if header.function_id not in core.functions:
            task.state = FETCHING
            waiting = self._without_function.setdefault(header.function_id, [])
            if not waiting:
                core.send_store(FetchFunctions([header.function_id]))
            waiting.append(task)
            return
        task.state = QUEUED
        core.pool.enqueue(task)

    def functions_arrived(self, function_ids: Iterable[bytes]) -> None:
        for function_id in function_ids:
            for task in self._without_function.pop(function_id, ()):
                if self.tasks.get(task.header.task_id) is task:
                    self._runnable(task)

    def ask_functions_again(self) -> None:
        if self._without_function:
            self._core.send_store(FetchFunctions(list(self._without_function)))

    # --- other nodes ------------------------------------------------------------------------------

    def hand_over(self, task: Task, node_id: int) -> None:
        """Another node becomes the holder: in the log first, then in fact."""
        core = self._core
        if task.rebuild:
            self.stay(task)
            return
        view = core.nodes[node_id]
        task.state = REMOTE
        task.node = node_id
        core.journal.new_holder(task, (node_id, view.incarnation))
        values: list[Value] = []
        sources: list[tuple[bytes, int]] = []
        for oid in task.header.deps:
            entry = core.objects.entry(oid)
            assert entry.value is not None
            values.append(entry.value)
            if entry.value.data is None:
                if entry.key is not None:
                    sources.append((oid, core.node_id))
                sources.extend((oid, source) for source in entry.sources)
        for oid in task.header.nested:
            sources.append((oid, core.node_id))
        for oid in task.object_ids:
            core.objects.entry(oid).maker = node_id
        core.hand_over(
            task.holder, HandedTask(task.spec, task.attempt, task.submitter, values, sources)
        )
        if task.submitter != core.node_id:
            self._pass_on(task, node_id)

    def _pass_on(self, task: Task, node_id: int) -> None:
        """A task of another node's client goes on to a third node: its result goes past this
        one."""
        core = self._core
        self._forget(task)
        for oid in task.object_ids:
            entry = core.objects.entries.get(oid)
            if entry is None:
                continue
            entry.task = None
            entry.maker = 0
            if entry.peers is not None:
                entry.peers.pop(task.submitter, None)
            if entry.held:
                core.objects.expect_from(entry, node_id)
            else:
                core.objects.free_unheld(entry)

    def function_of(self, handed: HandedTask) -> bytes:
        """The function that a handed-over task runs."""
        return header_decoder.decode(handed.spec).function_id

    def remote_done(self, entry: Entry, value: Value) -> None:
        """A task that ran elsewhere has ended."""
        task = entry.task
        if task is None or task.state != REMOTE:
            return
        for oid in task.object_ids:
            made = self._core.objects.entries.get(oid)
            if made is not None:
                made.task = None
                if value.status != OK and oid != entry.object_id and made.value is None:
                    self._core.objects.set_value(
                        made, Value(oid, value.status, value.size, value.data, value.digest)
                    )
                elif made is not entry and made.value is None and not made.maker:
                    self._core.objects.need_value(made)
        self._forget(task)
        if task.header.kind == ACTOR_CREATION:
            self._core.actors.created_elsewhere(task.header.actor_id, task.node, value)
        elif task.header.kind == ACTOR_CALL:
            self._core.actors.ended_elsewhere(task)

    def no_longer_elsewhere(self, task_id: bytes) -> None:
        """A call that was handed over has ended, and is about to run again here: those who wait for
        its result have it from here."""
        task = self.tasks.get(task_id)
        if task is None or task.state != REMOTE:
            return
        for oid in task.object_ids:
            entry = self._core.objects.entries.get(oid)
            if entry is not None and entry.task is task:
                entry.task = None
        self._forget(task)
        self._core.actors.ended_elsewhere(task)

    def give_up_rebuild(self, task: Task) -> None:
        """The actor that was to run it again is gone once more: it begins anew."""
        self._forget(task)
        self.detach(task)
        for oid in task.object_ids:
            entry = self._core.objects.entries.get(oid)
            if entry is not None and entry.task is task:
                entry.task = None
                self._core.objects.relocate_value(entry)

    @staticmethod
    def is_remote(task: Task) -> bool:
        return task.state == REMOTE

    def node_died(self, node_id: int) -> None:
        """Tasks handed to it come back, or someone else has them: the control store tells."""
        for task in list(self.tasks.values()):
            if task.state == REMOTE and task.node == node_id:
                for oid in task.object_ids:
                    entry = self._core.objects.entry(oid)
                    entry.maker = 0
                    entry.locating = True
                    self._core.locate(oid)

    # --- results ----------------------------------------------------------------------------------

    def done(self, task: Task, done: TaskDone, client: int) -> None:
        """A worker finished the task. Hot path."""
        header = task.header
        if self.tasks.get(header.task_id) is not task:
            return  # its job ended, and its worker is being killed
        if done.status == TASK_ERROR and done.retry and self._may_retry(task):
            self.next_attempt(task)
            self._runnable(task)
            return
        for index, returned in enumerate(done.returns):
            if returned.data is None:
                key = (object_id(header.task_id, index), task.attempt)
                self._core.transport.seal(key, returned.digest, client)
        if (
            (header.max_retries == 0 or header.flags & CHECKPOINT)
            and header.kind != ACTOR_CALL
            and not task.rebuild
            and any(returned.data is None for returned in done.returns)
        ):
            self._store_first(task, done)
            return
        self.complete(task, done.status, done.returns, done.duration_us)

    def _may_retry(self, task: Task) -> bool:
        retries = task.header.max_retries
        return retries < 0 or task.attempt - task.oom_kills <= retries

    def next_attempt(self, task: Task) -> None:
        """The attempt is over, in the log too."""
        task.attempt += 1
        task.worker = None
        if not task.rebuild:
            self._core.journal.new_holder(task, self._core.self_id)

    def _store_first(self, task: Task, done: TaskDone) -> None:
        """A large result that could not, or is not to, be made again is stored before it is
        released."""
        core = self._core
        task.state = STORING
        task.worker = None
        large = [i for i, returned in enumerate(done.returns) if returned.data is None]
        left = len(large)
        refused: events.Stored | None = None
        # The worker lets go of these as it ends the task; the values that hold them come later.
        inner = [ref for returned in done.returns for ref in returned.refs]
        for ref in inner:
            core.objects.entry(ref).pins += 1

        def stored(event: events.Stored) -> None:
            nonlocal left, refused
            left -= 1
            if not event.path:
                refused = event
            if left:
                return
            if self.tasks.get(task.header.task_id) is task:
                if refused is None:
                    self.complete(task, done.status, done.returns, done.duration_us)
                else:
                    self._not_stored(task, refused)
            core.objects.unpin(inner)

        for index in large:
            entry = core.objects.entry(object_id(task.header.task_id, index))
            entry.key = (entry.object_id, task.attempt)
            core.transport.store_bytes(entry, stored, core.config.storage_retry_s)

    def _not_stored(self, task: Task, refused: events.Stored) -> None:
        """Without it in storage, a result that cannot be made again may be seen by nobody."""
        core = self._core
        for oid in task.object_ids:
            entry = core.objects.entries.get(oid)
            if entry is not None:
                core.transport.free(entry)
        why, instead = "max_retries=0 forbids to make again", "give the task a max_retries above 0"
        if task.header.flags & CHECKPOINT:
            why, instead = "checkpoint=True wants in storage", "leave checkpoint=True out"
        message = (
            f"{task.header.name} ran, but its large result, which {why}, could not be stored for "
            f"{core.config.storage_retry_s:g} s: {refused.detail}. Make room in the storage of the "
            f"cluster, name another (init(storage=...)), or {instead}."
        )
        self.fail(task, refused.code, message)

    def fail(self, task: Task, code: str, message: str) -> None:
        """The system gives the task up: a committed result like any other."""
        data = encode(SystemFailure(code, message))
        self._core.journal.event("task_failed", task.header.task_id, message)
        self.complete(task, SYSTEM_ERROR, [Return(len(data), digest_of(data), data)], 0)

    def complete(self, task: Task, status: int, returns: list[Return], duration_us: int) -> None:
        """The task has ended: its outcome is logged, its objects have values. Hot path."""
        core = self._core
        header = task.header
        task_id = header.task_id
        actor_seq = 0
        if header.kind == ACTOR_CALL:
            actor_seq = core.actors.call_ended(task)
        if task.rebuild:
            ran = status
            status, returns, differs = self._rebuilt(task, status, returns)
        else:
            error = "" if status == OK else _error_word(status, returns)
            core.journal.outcome(
                Outcome(task_id, task.attempt, status, returns, duration_us, actor_seq, error)
            )
            # The caller of an actor that restarts may have been here and elsewhere.
            if task.submitter != core.node_id or header.flags & RECOVERABLE:
                self._guest_ended(task)
        if task.puts is not None:
            core.transport.puts.task_ended(task, status)
        replay_ms = core.replay_costs.of(task, returns, duration_us)
        # A result may hold what only the task's arguments held until now.
        inner = [ref for returned in returns for ref in returned.refs]
        for ref in inner:
            core.objects.entry(ref).pins += 1
        self._forget(task)
        # An actor that cannot recover is not waited for on its own node (docs/durability.md).
        ungated = bool(header.flags & ASYNC) or (
            header.kind == ACTOR_CALL
            and task.submitter == core.node_id
            and not header.flags & RECOVERABLE
        )
        entries = core.objects.entries
        for index in range(max(1, header.num_returns)):
            oid = object_id(task_id, index)
            entry = entries.get(oid)
            if entry is None:
                self._unwanted(task, oid, returns[index : index + 1])
                continue
            value = self._made(task, entry, index, status, returns, replay_ms)
            if value is not None:
                core.objects.set_value(entry, value, ungated)
                if value.replay_ms:
                    core.replay_costs.made(entry)
        if inner:
            core.objects.unpin(inner)
        if header.kind == ACTOR_CREATION and not task.rebuild:
            core.actors.creation_ended(task, status, returns)
        elif header.kind != TASK and task.rebuild:
            core.actors.replayed(task, ran, differs)

    def _made(
        self, task: Task, entry: Entry, index: int, status: int, returns: list[Return],
        replay_ms: int,
    ) -> Value | None:  # fmt: skip
        """What an object is from now on; None if only its bytes were lost. Hot path."""
        core = self._core
        oid = entry.object_id
        if status != OK or index >= len(returns):
            r = returns[0]
            return Value(oid, status, r.size, r.data, r.digest, r.refs)
        r = returns[index]
        if r.data is not None:
            return Value(oid, OK, r.size, r.data, r.digest, r.refs)
        core.transport.result_made(entry, (oid, task.attempt), r.size)
        if task.header.flags & RECOVERABLE:
            core.checkpointer.keep_result(task, entry)
        if task.rebuild:
            core.objects.keep_rebuilt(entry)
        if entry.value is not None:
            core.objects.made_again(entry)
            return None
        return Value(oid, OK, r.size, None, r.digest, r.refs, 0 if entry.stored else replay_ms)

    def _unwanted(self, task: Task, oid: bytes, made: list[Return]) -> None:
        """It ran again for an actor, and nobody holds this result: its room is free again."""
        if made and made[0].data is None:
            self._core.transport.discard((oid, task.attempt))

    def _guest_ended(self, task: Task) -> None:
        self._guests_ended[task.header.task_id] = task.header.driver, task.attempt
        if len(self._guests_ended) > GUESTS_REMEMBERED:
            self._guests_ended.popitem(last=False)

    def _rebuilt(
        self, task: Task, status: int, returns: list[Return]
    ) -> tuple[int, list[Return], bool]:
        """A re-execution ended: nothing is committed but the fact; its digests are compared."""
        core = self._core
        header = task.header
        made = [returned.digest for returned in returns]
        known = task.digests
        differs = status != task.ended or any(
            a != b for a, b in zip(made, known, strict=False) if b
        )
        core.journal.rebuilt(header.task_id, differs)
        core.rebuilt.append((header.task_id, differs))
        core.send_store_held(Rebuilt([(header.task_id, differs)]))
        if not differs:
            return status, returns, False
        message = f"{header.name} made another result when it was run again for its lost objects."
        core.journal.event("replay_difference", header.task_id, message)
        core.tell_driver(header.job, ReplayDifference(object_id(header.task_id, 0), header.name))
        if status == OK and core.config.on_replay_difference != "error":
            return status, returns, True
        code = "replay_difference" if status == OK else "object_reconstruction_failed"
        data = encode(SystemFailure(code, message))
        return SYSTEM_ERROR, [Return(len(data), digest_of(data), data)], True

    def _forget(self, task: Task) -> None:
        """The task is over: its arguments are held by it no more."""
        header = task.header
        self.tasks.pop(header.task_id, None)
        self.infeasible.pop(header.task_id, None)
        self.unpin_restored(task)
        if header.deps:
            self._core.objects.unpin(header.deps)
        if header.nested:
            self._core.objects.unpin(header.nested)
        if header.kind == ACTOR_CALL:
            self._core.actors.unpin(header.actor_id)

    # --- spilled arguments ------------------------------------------------------------------------

    def restore_arguments(self, task: Task) -> None:
        """Some arguments are spilled: all are pinned for the task while they come back."""
        core = self._core
        task_id = task.header.task_id
        task.state = FETCHING
        lost: list[Entry] = []
        for oid in task.header.deps:
            entry = core.objects.entry(oid)
            if entry.key is None or core.transport.pin(entry.key, task_id) is not None:
                continue
            if core.transport.restore_for_task(entry, task_id):
                self._restoring.setdefault(oid, []).append(task)
                task.missing += 1
            else:
                lost.append(entry)
        task.restored = True
        for entry in lost:
            core.objects.copy_lost(entry)
        if not task.missing:
            self.stay(task)

    def restored(self, entry: Entry) -> None:
        """A spilled argument is back, or gone for good."""
        for task in self._restoring.pop(entry.object_id, ()):
            self.bytes_arrived(task)

    def unpin_restored(self, task: Task) -> None:
        """The worker has its own pins now."""
        if task.restored:
            task.restored = False
            self._core.transport.give_back(task.header.task_id)

    # --- jobs -------------------------------------------------------------------------------------

    def job_closed(self, job: int) -> None:
        """Nobody waits for the job's tasks; the control store has marked them cancelled. What runs
        is killed: a driver that resumes the job may be about to run it again."""
        of_job = [t for t in self.tasks.values() if t.header.job == job]
        closed = [t for t in of_job if not self._core.actors.outlives(t)]
        running = {t.worker.number: t.worker for t in closed if t.worker is not None}
        for worker in running.values():
            others = [t for t in worker.in_flight.values() if t.header.job != job]
            if worker.actor is None and not others:
                self._core.pool.kill(worker)
        for task in closed:  # all of them before any result is known: another may wait for that
            self.tasks.pop(task.header.task_id, None)
            self.infeasible.pop(task.header.task_id, None)
            self._core.pool.dequeue(task)
            self.unpin_restored(task)
            self.detach(task)
        self._core.actors.calls_withdrawn(job, {task.header.task_id for task in closed})
        for task in closed:
            for oid in task.object_ids:
                entry = self._core.objects.entries.get(oid)
                if entry is not None and entry.task is task:
                    entry.task = None
                    if entry.value is None:
                        message = f"{task.header.name}: its job ended."
                        value = failure_value(oid, "cancelled", message)
                        self._core.objects.set_value(entry, value)
                    else:
                        self._core.objects.free_unheld(entry)
            self._core.objects.unpin([*task.header.deps, *task.header.nested])
            if task.header.kind == ACTOR_CALL:
                self._core.actors.unpin(task.header.actor_id)

    def check(self) -> None:
        """Invariants."""
        for task_id, task in self.tasks.items():
            assert task.header.task_id == task_id
            assert task.missing >= 0, "an argument arrived twice"
            if task.state == RUNNING:
                assert task.worker is not None, "a running task without a worker"
                assert task_id in task.worker.in_flight, "its worker does not know of it"
            if task.state == REMOTE:
                assert task.node, "handed over to nobody"


def _question(number: int, held: list[tuple[int, TaskHeader, Raw]]) -> LookUpTasks:
    headers = [header for _, header, _ in held]
    keyed = [header.task_id for header in headers if header.flags & KEYED]
    return LookUpTasks(number, [header.task_id for header in headers], keyed)


def returns_of(header: TaskHeader) -> list[bytes]:
    """A task's return values; at least one, which tells that it ended."""
    return [object_id(header.task_id, i) for i in range(max(1, header.num_returns))]


def _error_word(status: int, returns: list[Return]) -> str:
    """For the ``error`` column: the failure's code; the program's own errors are just that."""
    if status == SYSTEM_ERROR and returns and returns[0].data is not None:
        return failure_decoder.decode(returns[0].data).code
    return "task_error"
