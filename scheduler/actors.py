"""Where actors are, and the order of their calls.

    PENDING    its creation is not finished, its place not known yet, or it restarts
    RESTORING  a worker of this node is becoming the actor again: what it did runs once more
    HERE       a worker of this node is the actor
    AWAY       it lives on another node; calls are handed over
    DEAD       for good; calls fail with the reason

Calls of one caller (one parent task) run in the order of their submission: they leave this node,
or reach the worker, in that order, whatever the state of their arguments.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Final

from regrow.ids import object_id
from regrow.messages import (
    ACTOR_CALL,
    ACTOR_CREATION,
    DETACHED,
    OK,
    RECOVERABLE,
    SYSTEM_ERROR,
    ActorAt,
    ActorHere,
    FindActor,
    KillActor,
    Return,
    SystemFailure,
    TaskHeader,
    Value,
    failure_decoder,
)
from regrow.scheduler import tasks as states
from regrow.scheduler.call_order import CallOrder
from regrow.scheduler.checkpoints import Checkpoints
from regrow.scheduler.restoring import Restoration, Restorer

if TYPE_CHECKING:
    from regrow.scheduler.core import Core
    from regrow.scheduler.objects import Entry
    from regrow.scheduler.tasks import Task
    from regrow.scheduler.workers import Worker

PENDING: Final = 0
HERE: Final = 1
AWAY: Final = 2
DEAD: Final = 3
RESTORING: Final = 4
#: In place of a caller: the calls that run again.
_REPLAY: Final = b""


class Actor:
    """An actor that something on this node calls, or that lives here."""

    __slots__ = (
        "actor_id", "checkpoints", "detached", "error", "exiting", "finding", "job", "name",
        "node", "pinned", "queues", "recoverable", "restoration", "returning", "seq", "state",
        "unblocked", "worker",
    )  # fmt: skip

    def __init__(self, actor_id: bytes, job: int, name: str) -> None:
        self.actor_id = actor_id
        self.job = job
        self.name = name
        self.state = PENDING
        self.node = 0
        self.worker: Worker | None = None
        #: Caller -> its calls that have not left yet, in order.
        self.queues: dict[bytes, deque[Task]] = {}
        #: Calls executed.
        self.seq = 0
        self.error: SystemFailure | None = None
        #: The control store was asked where it is.
        self.finding = False
        #: Its handles are gone, or it was killed.
        self.exiting = False
        #: It lives until it is killed.
        self.detached = False
        #: It restarts with its state.
        self.recoverable = False
        self.checkpoints = Checkpoints()
        #: On its way back, on this node.
        self.restoration: Restoration | None = None
        #: Calls that went to a home that is gone and have not come back: later ones wait for them.
        self.returning: set[bytes] = set()
        #: The last of them has just come back.
        self.unblocked = False
        #: Held by this node itself: who has handles is not known.
        self.pinned = False


class ActorTable:
    """See the module."""

    #: Dead actors that are remembered: an answer that names them may be on the way.
    _dead_max = 1000

    def __init__(self, core: Core) -> None:
        self._core = core
        self.table: dict[bytes, Actor] = {}
        self._dead: dict[bytes, None] = {}
        self.restorer = Restorer(core)
        self.call_order = CallOrder(core)

    # --- creation ---------------------------------------------------------------------------------

    def announced(self, task: Task) -> None:
        """An actor is being created; its creation is a task like any other."""
        self.known(task.header)

    def known(self, creation: TaskHeader) -> Actor:
        """The actor of this creation."""
        actor = self.table.get(creation.task_id)
        if actor is None:
            name = creation.name.removesuffix(".__init__")
            actor = self.table[creation.task_id] = Actor(creation.task_id, creation.job, name)
        if creation.flags & RECOVERABLE:
            actor.recoverable = True
        if creation.flags & DETACHED:
            actor.detached = True
        return actor

    def creation_ended(self, task: Task, status: int, returns: list[Return]) -> None:
        """The creation ran on this node. On success its worker is the actor."""
        actor = self.table.get(task.header.task_id)
        if actor is None:
            return
        if status == OK and task.worker is not None:
            actor.worker = task.worker
            self._core.pool.become_actor(task.worker, actor, task)
            self._set_place(actor, HERE, self._core.node_id)
            self._core.journal.actor(actor.actor_id, actor.job, True)
            self._core.send_store_held(ActorHere(actor.actor_id, actor.job, True))
            if actor.exiting:
                self._core.pool.kill(task.worker)
            elif task.attempt > 1 and actor.recoverable:
                self.lost_sight(self._core.objects.entry(object_id(actor.actor_id, 0)))
            elif object_id(actor.actor_id, 0) not in self._core.objects.entries:
                self.handles_gone(object_id(actor.actor_id, 0))  # before it was there
            return
        data = returns[0].data or b""
        if status == SYSTEM_ERROR:
            message = failure_decoder.decode(data).message
        else:
            message = f"the actor {actor.name} could not be created"
        self.died(actor, SystemFailure("actor_died", message))

    def lost_sight(self, entry: Entry) -> None:
        """The node that knew of handles is gone; who has them may go on elsewhere. An actor that
        restarts lives as long as its job then."""
        actor = self.table.get(entry.object_id[:16])
        if actor is None or not actor.recoverable or actor.pinned or actor.exiting:
            return
        if actor.node == self._core.node_id or actor.state == PENDING:
            actor.pinned = True
            entry.pins += 1

    def created_elsewhere(self, actor_id: bytes, node_id: int, value: Value) -> None:
        """Another node ran the creation."""
        actor = self.table.get(actor_id)
        if actor is None or actor.state != PENDING or actor.restoration is not None:
            return
        if value.status == OK:
            self._set_place(actor, AWAY, node_id)
        else:
            message = f"the actor {actor.name} could not be created on node {node_id}"
            if value.status == SYSTEM_ERROR and value.data is not None:
                message = failure_decoder.decode(value.data).message
            self._bury(actor, SystemFailure("actor_died", message))

    def located(self, message: ActorAt) -> None:
        """The control store tells where an actor is, or that it is dead."""
        actor = self.table.get(message.actor_id)
        if actor is None:
            return
        actor.finding = False
        if not message.alive:
            if actor.state != DEAD and actor.state != HERE:
                reason = message.error or SystemFailure("actor_died", f"{actor.name} died")
                self._bury(actor, reason)
        elif message.node_id == self._core.node_id:
            return
        elif actor.state == PENDING or (actor.state == AWAY and actor.recoverable):
            self._set_place(actor, AWAY, message.node_id)

    def _set_place(self, actor: Actor, state: int, node_id: int) -> None:
        actor.state = state
        actor.node = node_id
        if state == AWAY and actor.exiting:  # it was killed before it was known where it is
            self._kill_away(actor)
        for caller in list(actor.queues):
            self._advance(actor, caller)

    # --- calls ------------------------------------------------------------------------------------

    def enqueue(self, task: Task) -> None:
        """A call takes its place behind the earlier ones of its caller."""
        header = task.header
        actor = self.table.get(header.actor_id)
        if actor is None:
            name = header.name.rpartition(".")[0]
            actor = self.table[header.actor_id] = Actor(header.actor_id, header.job, name)
        if actor.returning:
            actor.returning.discard(header.task_id)
            actor.unblocked = not actor.returning
        if header.flags & RECOVERABLE:
            actor.recoverable = True
        created_here = header.actor_id in self._core.tasks.tasks
        awaited = actor.state == PENDING and actor.restoration is None
        if awaited and not actor.finding and not created_here:
            actor.finding = True
            self._core.send_store(FindActor(0, header.actor_id))
        caller = _REPLAY if task.rebuild else header.parent_id
        queue = actor.queues.get(caller)
        if queue is None:
            queue = actor.queues[caller] = deque()
        if queue and not task.rebuild and _place(queue[-1]) > _place(task):
            # It comes back from a home that is gone; what was called after it waited meanwhile.
            own = _place(task)
            later = next(place for place, other in enumerate(queue) if _place(other) > own)
            queue.insert(later, task)
        else:
            queue.append(task)
        if self.call_order.awaited:
            self.call_order.came(header.task_id)

    def arguments_awaited(self, task: Task) -> None:
        """A call waits for its arguments: in vain, if its actor is dead."""
        actor = self.table.get(task.header.actor_id)
        if actor is not None and actor.unblocked:
            self._advance_all(actor)
        elif actor is not None and actor.state == DEAD:
            self._advance(actor, task.header.parent_id)

    def arguments_known(self, task: Task) -> None:
        """A call's arguments have values: it leaves, if it is its turn."""
        actor = self.table.get(task.header.actor_id)
        if actor is not None and actor.unblocked:
            self._advance_all(actor)
        elif actor is not None:
            self._advance(actor, _REPLAY if task.rebuild else task.header.parent_id)

    def _advance_all(self, actor: Actor) -> None:
        """Nothing is awaited from a home that is gone any longer: every caller goes on."""
        actor.unblocked = False
        for caller in list(actor.queues):
            self._advance(actor, caller)

    def runnable(self, task: Task) -> None:
        """A call's bytes are here."""
        task.state = states.QUEUED
        self.arguments_known(task)

    def _fails_with_argument(self, queue: deque[Task], task: Task) -> bool:
        """Whether the first call of a queue ended because an argument is an error. It is out of the
        queue by then: its end may let others go."""
        queue.popleft()
        if self._core.tasks.fails_with_argument(task):
            return True
        queue.appendleft(task)
        return False

    def _advance(self, actor: Actor, caller: bytes) -> None:
        """Lets the caller's calls go, as far as their turn has come. Hot path."""
        queue = actor.queues.get(caller)
        core = self._core
        while queue:
            task = queue[0]
            if actor.state == DEAD:  # whatever its arguments become
                queue.popleft()
                core.tasks.detach(task)
                self._fail(task, actor)
                continue
            if task.missing:
                return
            if actor.state == PENDING or (actor.state == RESTORING and caller != _REPLAY):
                return
            if actor.returning and caller != _REPLAY:
                return  # what was called before comes first
            if task.header.deps and self._fails_with_argument(queue, task):
                continue
            if actor.state == AWAY:
                if actor.node not in core.nodes:
                    return  # the news of its death is on the way
                queue.popleft()
                core.tasks.hand_over(task, actor.node)
                continue
            if not self._start(actor, queue, task):
                return
            queue.popleft()
        if queue is not None and not queue:
            actor.queues.pop(caller, None)

    def _start(self, actor: Actor, queue: deque[Task], task: Task) -> bool:
        """Gives the first call of a queue to the actor's process, if nothing is missing. Hot
        path."""
        header = task.header
        if header.after and not (task.follows or task.rebuild or self.call_order.may_go(task)):
            return False
        if task.state == states.WAITING:
            if header.deps:
                self._core.tasks.stay(task)  # comes back through ``runnable``, and then here
                if task.state != states.QUEUED or not queue or queue[0] is not task:
                    return False
            task.state = states.QUEUED
        if task.state != states.QUEUED:
            return False
        assert actor.worker is not None
        return self._core.pool.call(actor.worker, task)  # else spilled arguments are restored

    def call_ended(self, task: Task) -> int:
        """A call has its result. Returns its place in the actor's order, from 1 (0: it never
        ran)."""
        actor = self.table.get(task.header.actor_id)
        if actor is None:
            return 0
        if actor.returning:
            self._came_back(actor, task)
        if task.worker is None or task.rebuild:
            return 0
        actor.seq += 1
        return actor.seq

    def replayed(self, task: Task, status: int, differs: bool) -> None:
        """A creation or call of an actor that is restored ran again, with this outcome."""
        actor = self.table.get(task.header.actor_id)
        if actor is None:
            return
        if task.header.kind == ACTOR_CREATION:
            self.restorer.created(actor, task, status)
        else:
            self.restorer.replayed(actor, task, differs)

    def ended_elsewhere(self, task: Task) -> None:
        """A call that had been handed over has its result."""
        actor = self.table.get(task.header.actor_id)
        if actor is not None and actor.returning:
            self._came_back(actor, task)

    def _came_back(self, actor: Actor, task: Task) -> None:
        actor.returning.discard(task.header.task_id)
        if not actor.returning:
            self._advance_all(actor)

    def _fail(self, task: Task, actor: Actor) -> None:
        error = actor.error or SystemFailure("actor_died", f"the actor {actor.name} is dead")
        self._core.tasks.fail(task, error.code, error.message)

    # --- death ------------------------------------------------------------------------------------

    def died(self, actor: Actor, error: SystemFailure) -> None:
        """An actor of this node is dead."""
        if actor.state == DEAD:
            return
        self._core.journal.actor(actor.actor_id, actor.job, False, error)
        self._core.send_store_held(ActorHere(actor.actor_id, actor.job, False, error))
        self._bury(actor, error)

    def _bury(self, actor: Actor, error: SystemFailure) -> None:
        """All calls that have not ended fail."""
        actor.state = DEAD
        actor.error = error
        self._dead[actor.actor_id] = None
        if len(self._dead) > self._dead_max:
            del self._dead[next(iter(self._dead))]
        self._core.checkpointer.forget(actor)
        worker, actor.worker = actor.worker, None
        core = self._core
        for task in list(core.tasks.tasks.values()):
            header = task.header
            if header.actor_id != actor.actor_id or header.kind != ACTOR_CALL:
                continue
            if task.state == states.REMOTE:
                continue  # its result, or its failure, comes from the log
            if worker is None or task.header.task_id not in worker.in_flight:
                continue
            worker.in_flight.pop(task.header.task_id)
            self._fail(task, actor)
        for caller in list(actor.queues):
            self._advance(actor, caller)
        if not core.objects.entries.get(object_id(actor.actor_id, 0)) and not actor.queues:
            self.table.pop(actor.actor_id, None)

    def left(self, actor: Actor, reason: str) -> None:
        """An actor of this node has ended itself; its process is about to end."""
        self.died(actor, SystemFailure("actor_died", f"the actor {actor.name} ended: {reason}"))

    def worker_died(self, actor: Actor, worker: Worker) -> None:
        """The process is gone."""
        if actor.state == DEAD:
            return
        if actor.exiting:
            message = f"the actor {actor.name} has ended: it was killed, or its handles are gone"
        else:
            message = (
                f"the actor {actor.name} died: its worker process (pid {worker.pid}) ended "
                f"{_why(worker)} It had max_restarts=0, so it was not restarted."
            )
        if actor.recoverable and not actor.exiting and actor.state != DEAD:
            self._restart(actor, worker)
            return
        actor.worker = worker
        self.died(actor, SystemFailure("actor_died", message))

    def _restart(self, actor: Actor, worker: Worker) -> None:
        """Its process is gone. The control store brings it back, here or elsewhere, once all that
        it did is in the log; the calls that it had not finished wait for that."""
        core = self._core
        known = core.tasks.tasks
        unfinished = [t for t in worker.in_flight.values() if known.get(t.header.task_id) is t]
        worker.in_flight.clear()
        actor.restoration = None
        core.checkpointer.forget(actor)
        unfinished.extend(actor.queues.pop(_REPLAY, ()))
        self.returns(actor, PENDING)
        killer = next((task for task in unfinished if not task.rebuild), None)
        for task in reversed(unfinished):
            task.worker = None
            if task.rebuild:
                core.tasks.give_up_rebuild(task)
                continue
            task.state = states.WAITING
            core.tasks.next_attempt(task)
            queue = actor.queues.setdefault(task.header.parent_id, deque())
            queue.appendleft(task)
        if killer is not None:
            self._charge(actor, killer, worker)
        core.journal.actor(actor.actor_id, actor.job, False)
        core.send_store_held(ActorHere(actor.actor_id, actor.job, False))

    def _charge(self, actor: Actor, task: Task, worker: Worker) -> None:
        """The call that ran when the process died may have killed it: not for ever."""
        task.kills += 1
        if task.kills < self._core.config.worker_kills_max:
            return
        actor.queues[task.header.parent_id].remove(task)
        self._core.tasks.fail(
            task,
            "out_of_memory" if worker.out_of_memory else "worker_crashed",
            f"{task.header.name} killed the actor's process (pid {worker.pid}) {task.kills} times "
            f"and is skipped; the actor goes on without it. The last time it ended {_why(worker)}",
        )

    def returns(self, actor: Actor, state: int = RESTORING) -> None:
        """It is on its way back: no call reaches it meanwhile."""
        if self.call_order.awaited:
            for queue in actor.queues.values():
                for task in queue:
                    self.call_order.forget(task)
        actor.state = state
        actor.node = 0
        actor.worker = None
        actor.finding = False
        actor.error = None

    def is_back(self, actor: Actor) -> None:
        """It is restored, on this node."""
        self._set_place(actor, HERE, self._core.node_id)
        if not self._core.objects.entries.get(object_id(actor.actor_id, 0)):
            self.handles_gone(object_id(actor.actor_id, 0))

    def node_died(self, node_id: int, reason: str) -> None:
        """Actors that lived there are dead."""
        for actor in list(self.table.values()):
            if actor.state != AWAY or actor.node != node_id:
                continue
            if actor.recoverable:
                self.returns(actor, PENDING)
                actor.finding = True
                actor.returning = {
                    task_id
                    for task_id, task in self._core.tasks.tasks.items()
                    if task.header.actor_id == actor.actor_id and task.state == states.REMOTE
                }
                self._core.send_store(FindActor(0, actor.actor_id))
            else:
                message = (
                    f"the actor {actor.name} died with node {node_id} ({reason}). It had "
                    "max_restarts=0, so it was not restarted."
                )
                self._bury(actor, SystemFailure("actor_died", message))

    def kill(self, actor_id: bytes, no_restart: bool = True) -> None:
        """``kill(actor)``: at once, wherever it is. ``no_restart`` False: it may come back."""
        actor = self.table.get(actor_id)
        core = self._core
        if actor is None:
            actor = self.table[actor_id] = Actor(actor_id, 0, "")
            actor.finding = True
            core.send_store(FindActor(0, actor_id))
        if actor.state == HERE:
            actor.exiting = no_restart
            assert actor.worker is not None
            core.pool.kill(actor.worker)
        elif actor.state == AWAY:
            actor.exiting = no_restart
            self._kill_away(actor, no_restart)
        elif not no_restart:
            return  # it is being made, or made again, anyway
        elif actor.state == RESTORING:
            actor.exiting = True
            self.restorer.failed(actor, f"{actor.name} was killed while it restarted")
        elif actor.state == PENDING:
            actor.exiting = True
            creation = core.tasks.tasks.get(actor_id)
            if creation is not None:
                self._end_creation(creation)

    def _kill_away(self, actor: Actor, no_restart: bool = True) -> None:
        self._core.send_peer_held(actor.node, KillActor(actor.actor_id, no_restart))
        if not actor.finding and no_restart:  # who has asked where it is hears of its end
            actor.finding = True
            self._core.send_store(FindActor(0, actor.actor_id))

    def is_ending(self, actor_id: bytes) -> bool:
        """Whether a client here may know that the actor is dead, or is about to be."""
        actor = self.table.get(actor_id)
        return actor_id in self._dead or (actor is not None and actor.exiting)

    def _end_creation(self, creation: Task) -> None:
        """The actor was killed before it was there. Where its bytes are on the way already, it is
        killed once it is there."""
        core = self._core
        if creation.state == states.REMOTE:
            core.send_peer_held(creation.node, KillActor(creation.header.task_id))
        elif creation.worker is not None:
            core.pool.kill(creation.worker)
        elif creation.state in (states.WAITING, states.QUEUED):
            core.pool.dequeue(creation)
            core.tasks.detach(creation)
            message = f"{creation.header.name} was killed before it was created"
            core.tasks.fail(creation, "actor_died", message)

    def is_home_of(self, oid: bytes) -> bool:
        """Whether the object stands for an actor that is back on this node, or about to be."""
        actor = self.table.get(oid[:16])
        return (
            actor is not None
            and oid[16:] == b"\0\0\0\0"
            and actor.recoverable
            and (actor.state in (HERE, RESTORING))
        )

    def handles_gone(self, oid: bytes) -> None:
        """The object of an actor's creation is held by nobody: neither is the actor."""
        actor = self.table.get(oid[:16])
        if actor is None or oid[16:] != b"\0\0\0\0":
            return
        if actor.detached and actor.state == HERE:
            return
        if actor.state == HERE and not actor.exiting:
            actor.exiting = True
            assert actor.worker is not None
            self._core.pool.retire(actor.worker)
        elif actor.state == DEAD or (actor.state == AWAY and not actor.exiting):
            del self.table[oid[:16]]

    def pin(self, actor_id: bytes) -> None:
        """A call holds its actor until it has ended."""
        self._core.objects.entry(object_id(actor_id, 0)).pins += 1

    def unpin(self, actor_id: bytes) -> None:
        self._core.objects.unpin((object_id(actor_id, 0),))

    def outlives(self, task: Task) -> bool:
        """Whether this call is replayed for an actor that is not of the call's job."""
        actor = self.table.get(task.header.actor_id)
        return task.rebuild and actor is not None and actor.job != task.header.job

    def calls_withdrawn(self, job: int, task_ids: set[bytes]) -> None:
        """These calls, all of a job that has ended, take no turn any more."""
        for actor in self.table.values():
            for caller, queue in list(actor.queues.items()):
                # A caller is of one job; what is replayed is the actor's own.
                of_job = actor.job if caller == _REPLAY else queue[0].header.job if queue else 0
                if of_job == job:
                    del actor.queues[caller]
            if actor.returning:
                actor.returning -= task_ids
                actor.unblocked = not actor.returning
        for actor in [a for a in self.table.values() if a.unblocked]:
            self._advance_all(actor)

    def job_closed(self, job: int) -> None:
        """The log has them as dead. They are forgotten at once: if the job is resumed, they are
        restored while their old processes end."""
        for actor in [a for a in self.table.values() if a.job == job]:
            if actor.pinned:
                actor.pinned = False
                self.unpin(actor.actor_id)
            worker = actor.worker
            actor.restoration = None
            self._bury(actor, SystemFailure("actor_died", "the actor's job has ended"))
            self._dead.pop(actor.actor_id, None)
            self.table.pop(actor.actor_id, None)
            if worker is not None:
                self._core.pool.kill(worker)

    def find_again(self) -> None:
        """The control store may have forgotten the question."""
        for actor in self.table.values():
            if actor.finding:
                self._core.send_store(FindActor(0, actor.actor_id))

    def report(self) -> list[ActorHere]:
        """The actors that live here, for a control store that came back."""
        return [
            ActorHere(actor.actor_id, actor.job, True)
            for actor in self.table.values()
            if actor.state == HERE
        ]


def _place(task: Task) -> tuple[int, int, int]:
    """Among the calls of its caller: a later driver of a job counts anew."""
    header = task.header
    return header.driver, header.order, task.order


def _why(worker: Worker) -> str:
    return f"because {worker.out_of_memory}" if worker.out_of_memory else "unexpectedly."
