"""The control store's core with a fake store: events in, messages out, time by hand.

The fake store holds rows that a test puts there and answers at once, unless the test holds answers
back (``hold``). It is no model of Postgres; both real stores have a conformance suite of their own.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import msgspec

from regrow.gcs import operations as ops
from regrow.gcs.core import Core
from regrow.gcs.core_events import (
    CloseConnection,
    Effect,
    Event,
    Execute,
    FromNode,
    NodeConnected,
    NodeDisconnected,
    Probe,
    ProbeResult,
    Send,
    Settings,
    StopCluster,
    StoreFailed,
    StoreReplied,
    Tick,
)
from regrow.gcs.operations import Operation, Result
from regrow.ids import object_id
from regrow.messages import (
    ACTOR_CALL,
    OK,
    PENDING,
    PROTOCOL_VERSION,
    TASK,
    FromStore,
    HeldTask,
    JobClosed,
    JobDropped,
    NodeView,
    ObjectsHere,
    Register,
    Registered,
    TaskSpec,
    TaskState,
    ToStore,
    Value,
    encode,
)

M = TypeVar("M", bound=FromStore)
O = TypeVar("O", bound=Operation)  # noqa: E741 - a type variable

LARGE = 100_000


def view(
    node_id: int = 0, incarnation: int = 0, cpus: int = 4, port: int = 7000, queued: int = 0
) -> NodeView:
    resources = {"CPU": cpus * 10_000}
    return NodeView(
        node_id, incarnation, "127.0.0.1", port, "", resources, resources, queued, {}, True, False
    )  # fmt: skip


def tid(number: int) -> bytes:
    """A task id."""
    return number.to_bytes(16, "big")


def oid(number: int, index: int = 0) -> bytes:
    """The id of a return value of task ``number``."""
    return object_id(tid(number), index)


def spec(task_id: bytes, job: int = 1) -> bytes:
    return encode(TaskSpec(
        task_id, b"", job, b"f" * 16, "f", TASK, b"", [], [], None, 1, 3, 0, "",
    ))  # fmt: skip


def call(task_id: bytes, order: int) -> bytes:
    """The spec of an actor's call."""
    return encode(TaskSpec(
        task_id, b"c" * 16, 1, b"f" * 16, "A.f", ACTOR_CALL, b"a" * 16, [], [], None, 1, 0, 0, "",
        order,
    ))  # fmt: skip


def held(task_id: bytes, attempt: int = 1) -> HeldTask:
    return HeldTask(msgspec.Raw(spec(task_id)), attempt, 1)


class FakeStore:
    """Rows by id. Large finished objects are ``large``; lineage is in ``tasks``."""

    def __init__(self) -> None:
        self.leader = ""
        self.epoch = 0
        self.nodes: dict[int, NodeView] = {}
        #: Seconds left of a lease, where it is not the whole.
        self.leases: dict[int, float] = {}
        self.database_up_s = 1000.0
        self.objects: dict[bytes, ops.ObjectRow] = {}
        self.tasks: dict[bytes, ops.LineageTask] = {}
        self.states: dict[bytes, TaskState] = {}
        self.rebuilds: dict[bytes, tuple[int, int]] = {}
        self.jobs: dict[int, bytes] = {}
        #: Jobs that outlive their drivers, and those of them in which something is unfinished.
        self.detached: set[int] = set()
        self.unfinished: set[int] = set()
        #: Job -> (name, driver).
        self.named: dict[int, tuple[str, int]] = {}
        self.ended: dict[int, str] = {}
        self.actors: dict[bytes, ops.ActorRow] = {}
        #: What the next Fence, Sweep or NodeLeft reassigns.
        self.reassigned: dict[int, list[HeldTask]] = {}
        self.actors_of: dict[int, list[tuple[bytes, int]]] = {}
        self.given: dict[int, list[HeldTask]] = {}
        #: Actors that restart.
        self.restarting: dict[bytes, ops.RestartingActor] = {}
        #: Calls whose arguments may leave the log.
        self.trimmable = 0
        self.done: list[Operation] = []

    def large(self, number: int, needs: list[bytes] | None = None, **changes: object) -> bytes:
        """A finished task with one large result, which needs these objects; the result's id."""
        object_id = oid(number)
        row = ops.ObjectRow(
            object_id, True, OK, 0, Value(object_id, OK, LARGE, None, b"d"), "", tid(number), 3
        )
        task = ops.LineageTask(tid(number), OK, TASK, 3, needs or [], [], [b"d"], 0)
        self.objects[object_id] = msgspec.structs.replace(
            row, **{k: v for k, v in changes.items() if k in row.__struct_fields__}
        )
        self.tasks[tid(number)] = msgspec.structs.replace(
            task, **{k: v for k, v in changes.items() if k in task.__struct_fields__}
        )
        return object_id

    def pending(self, number: int, holder: int) -> bytes:
        """An unfinished task; its object's id. ``holder`` 0: dead."""
        self.objects[oid(number)] = ops.ObjectRow(oid(number), True, PENDING, holder)
        self.states[tid(number)] = TaskState(tid(number), True, PENDING, holder)
        return oid(number)

    def execute(self, operation: Operation) -> Result:
        self.done.append(operation)
        epoch = getattr(operation, "epoch", self.epoch)
        if not isinstance(operation, ops.Lead) and epoch != self.epoch:
            return ops.NotLeader()
        method: Callable[[Operation], Result] = getattr(self, f"_{type(operation).__name__}")
        return method(operation)

    def _Lead(self, op: ops.Lead) -> Result:  # noqa: N802
        if op.epoch == 0 and self.leader in ("", op.holder):
            self.leader = op.holder
            self.epoch += 1
        if self.leader != op.holder or op.epoch not in (0, self.epoch):
            return ops.Leadership(0, b"", 0.0)
        return ops.Leadership(self.epoch, b"c" * 16, 0.0)

    def _TrimCalls(self, op: ops.TrimCalls) -> Result:  # noqa: N802
        self.trimmable = max(0, self.trimmable - op.limit)
        return ops.CallsTrimmed(self.trimmable > 0)

    def _ReadNodes(self, op: ops.ReadNodes) -> Result:  # noqa: N802
        return ops.NodeRows(list(self.nodes.values()))

    def _RegisterNode(self, op: ops.RegisterNode) -> Result:  # noqa: N802
        node_id = op.view.node_id or len(self.nodes) + 1
        before = self.nodes.get(node_id)
        incarnation = before.incarnation + 1 if before else 1
        self.nodes[node_id] = msgspec.structs.replace(
            op.view, node_id=node_id, incarnation=incarnation, alive=True
        )
        fenced = before.incarnation if before and before.alive else 0
        return ops.NodeRegistered(node_id, incarnation, fenced)

    def _ReadLeases(self, op: ops.ReadLeases) -> Result:  # noqa: N802
        leases = [
            (n.node_id, n.incarnation, self.leases.get(n.node_id, 3.0))
            for n in self.nodes.values()
            if n.alive
        ]
        return ops.Leases(leases, self.database_up_s)

    def _Fence(self, op: ops.Fence | ops.NodeLeft) -> Result:  # noqa: N802
        node = self.nodes[op.node_id]
        expired = self.leases.get(op.node_id, 3.0) < 0
        only_expired = isinstance(op, ops.Fence) and op.only_expired
        if node.incarnation != op.incarnation or not node.alive or (only_expired and not expired):
            return ops.NodeFenced(False, {}, [])
        self.nodes[op.node_id] = msgspec.structs.replace(node, alive=False)
        actors = self.actors_of.get(op.node_id, [])
        return ops.NodeFenced(True, self._take(), [], actors, self._homeless())

    _NodeLeft = _Fence

    def _Sweep(self, op: ops.Sweep) -> Result:  # noqa: N802
        return ops.NodeFenced(True, self._take(), [], [], self._homeless())

    def _homeless(self) -> list[ops.RestartingActor]:
        return [actor for actor in self.restarting.values() if not self._lives(actor.home)]

    def _lives(self, key: tuple[int, int]) -> bool:
        node = self.nodes.get(key[0])
        return node is not None and node.alive and node.incarnation == key[1]

    def _RestoreActor(self, op: ops.RestoreActor) -> Result:  # noqa: N802
        actor = self.restarting.get(op.actor_id)
        if actor is None or actor.home not in (op.home, op.target) or not self._lives(op.target):
            return ops.ActorRestored(False)
        self.restarting[op.actor_id] = msgspec.structs.replace(actor, home=op.target)
        return ops.ActorRestored(True, actor.job, held(op.actor_id), [held(tid(77))], 1)

    def _take(self) -> dict[int, list[HeldTask]]:
        taken, self.reassigned = self.reassigned, {}
        return taken

    def _ReadGiven(self, op: ops.ReadGiven) -> Result:  # noqa: N802
        home = (op.node_id, op.incarnation)
        restarting = [actor for actor in self.restarting.values() if actor.home == home]
        return ops.GivenRows(self.given.get(op.node_id, []), [], restarting)

    def _CreateJob(self, op: ops.CreateJob) -> Result:  # noqa: N802
        job = len(self.jobs) + 1
        self.jobs[job] = op.job_root
        return ops.JobCreated(job)

    def _ResumeJob(self, op: ops.ResumeJob) -> Result:  # noqa: N802
        for job, (name, driver) in self.named.items():
            if name == op.name and self.ended.get(job) != "finished":
                self.ended.pop(job, None)
                self.named[job] = (name, driver + 1)
                restarting = list(self.restarting.values())
                return ops.JobResumed(job, self.jobs[job], driver + 1, "3.11", restarting)
        job = len(self.jobs) + 1
        if op.detached:
            self.detached.add(job)
        self.jobs[job], self.named[job] = op.job_root, (op.name, 1)
        return ops.JobResumed(job, op.job_root, 1, op.runtime)

    def _ReadJob(self, op: ops.ReadJob) -> Result:  # noqa: N802
        found = op.job in self.jobs
        running = found and op.job not in self.ended
        name, driver = self.named.get(op.job, ("", 0))
        detached = op.job in self.detached
        return ops.JobRow(found, self.jobs.get(op.job, b""), running, name, driver, detached)

    def _ReadJobs(self, op: ops.ReadJobs) -> Result:  # noqa: N802
        jobs = [
            (job, root, *self.named.get(job, ("", 0)), job in self.detached)
            for job, root in self.jobs.items()
            if job not in self.ended
        ]
        return ops.JobRows(jobs)

    def _EndIdleJobs(self, op: ops.EndIdleJobs) -> Result:  # noqa: N802
        ended = [job for job in op.jobs if job not in self.unfinished]
        self.ended.update(dict.fromkeys(ended, "finished"))
        return ops.JobsEnded(ended)

    def _EndJob(self, op: ops.EndJob) -> Result:  # noqa: N802
        self.ended[op.job] = op.status
        return ops.Done()

    def _ReserveActorName(self, op: ops.ReserveActorName) -> Result:  # noqa: N802
        for row in self.actors.values():
            if row.name == op.name and row.state != "dead":
                return row
        row = ops.ActorRow(
            True, op.actor_id, "pending", 0, 0, op.name, op.job, op.function_id, None, op.methods
        )
        self.actors[op.actor_id] = row
        return row

    def _ReadActor(self, op: ops.ReadActor) -> Result:  # noqa: N802
        for row in self.actors.values():
            if row.actor_id == op.actor_id or (not op.actor_id and row.name == op.name):
                return row
        return ops.ActorRow(False)

    def _ReadObjects(self, op: ops.ReadObjects) -> Result:  # noqa: N802
        unknown = [ops.ObjectRow(object_id, False) for object_id in op.object_ids]
        return ops.ObjectRows([self.objects.get(row.object_id, row) for row in unknown])

    def _ReadTasks(self, op: ops.ReadTasks) -> Result:  # noqa: N802
        unknown = [TaskState(task_id, False) for task_id in op.task_ids]
        return ops.TaskRows([self.states.get(row.task_id, row) for row in unknown])

    def _ReadFunctions(self, op: ops.ReadFunctions) -> Result:  # noqa: N802
        return ops.FunctionRows([])

    def _ReadLineage(self, op: ops.ReadLineage) -> Result:  # noqa: N802
        found: dict[bytes, ops.LineageTask] = {}
        level = list(op.task_ids)
        for depth in range(op.depth):
            fresh = [t for t in level if t in self.tasks and t not in found]
            room = op.limit - len(found)
            for task_id in fresh[:room]:
                found[task_id] = msgspec.structs.replace(self.tasks[task_id], level=depth)
            level = [need[:16] for task_id in fresh[:room] for need in self.tasks[task_id].needs]
        return ops.Lineage(list(found.values()), not level)

    def _GrantRebuilds(self, op: ops.GrantRebuilds) -> Result:  # noqa: N802
        granted: list[HeldTask] = []
        elsewhere: list[tuple[bytes, int]] = []
        for task_id in op.task_ids:
            holder = self.rebuilds.get(task_id)
            node = self.nodes.get(holder[0]) if holder else None
            alive = node is not None and node.alive and (node.node_id, node.incarnation) == holder
            if holder and alive and holder != op.holder:
                elsewhere.append((task_id, holder[0]))
            else:
                self.rebuilds[task_id] = op.holder
                granted.append(held(task_id))
        return ops.RebuildsGranted(granted, [], elsewhere)


class Bench:
    """A core, its store, and what left the core. Starts as the leader at time 100, past the lease
    that a new leader waits."""

    def __init__(
        self, store: FakeStore | None = None, settings: Settings | None = None, leading: bool = True
    ) -> None:
        self.store = store or FakeStore()
        self.core = Core(settings or Settings(holder="one"))
        self.now = 100.0
        #: Operations of these types are not answered until ``release``.
        self.hold: tuple[type[Operation], ...] = ()
        self.held: list[Execute] = []
        #: The next so many operations fail after they were carried out.
        self.lose_answers = 0
        #: Nodes drop what they are told to, and say so.
        self.nodes_drop = True
        self.sent: dict[int, list[FromStore]] = {}
        self.probes: list[Probe] = []
        self.closed: list[int] = []
        self.stops: list[str] = []
        self.executed: list[Operation] = []
        self._conn = 0
        if leading:
            self.tick()
            self.tick(10.0)
            self.tick()

    def handle(self, event: Event) -> list[Effect]:
        """One step and all that the store answers to it; the effects of the step itself."""
        effects = self.core.handle(event)
        for effect in effects:
            match effect:
                case Send(conn, message):
                    self.sent.setdefault(conn, []).append(message)
                case Probe():
                    self.probes.append(effect)
                case CloseConnection(conn):
                    self.closed.append(conn)
                case StopCluster(reason):
                    self.stops.append(reason)
                case Execute():
                    pass
        for effect in effects:
            if isinstance(effect, Execute):
                self._execute(effect)
        self.core.check()
        for effect in effects:
            if isinstance(effect, Send) and isinstance(effect.message, JobClosed):
                closed = effect.message
                if closed.driver and self.nodes_drop:
                    self.say(effect.conn, JobDropped(closed.job, closed.driver))
        return effects

    def _execute(self, effect: Execute) -> None:
        self.executed.append(effect.operation)
        if isinstance(effect.operation, self.hold):
            self.held.append(effect)
            return
        self._answer(effect)

    def _answer(self, effect: Execute) -> None:
        result: Result | StoreFailed = self.store.execute(effect.operation)
        if self.lose_answers:
            self.lose_answers -= 1
            result = StoreFailed("the connection broke")
        self.handle(StoreReplied(effect.number, result))

    def release(self) -> None:
        """Answers what was held back, in order."""
        held, self.held, self.hold = self.held, [], ()
        for effect in held:
            self._answer(effect)

    def tick(self, seconds: float = 0.0) -> None:
        """Time passes, in steps of 50 ms at most."""
        end = self.now + seconds
        while self.now < end:
            self.now = min(self.now + 0.05, end)
            self.handle(Tick(self.now))
        if not seconds:
            self.handle(Tick(self.now))

    def connect(self) -> int:
        self._conn += 1
        self.handle(NodeConnected(self._conn))
        return self._conn

    def say(self, conn: int, *messages: ToStore) -> None:
        for message in messages:
            self.handle(FromNode(conn, message, b"r" * 16))

    def join(self, node: NodeView | None = None) -> int:
        """A node registers (or resumes, if the view has an incarnation); its session."""
        conn = self.connect()
        self.say(conn, Register(PROTOCOL_VERSION, "token", node or view()))
        return conn

    def resume(self, node_id: int, *objects: bytes) -> int:
        """A node of the store resumes its session and reports its objects."""
        conn = self.join(self.store.nodes[node_id])
        self.say(conn, ObjectsHere([(object_id, LARGE) for object_id in objects]))
        return conn

    def drop(self, conn: int) -> None:
        self.handle(NodeDisconnected(conn))

    def kill(self, conn: int) -> int:
        """The node's process dies: reset, probe, refused, fenced. Returns its id."""
        registered = self.last(conn, Registered)
        self.drop(conn)
        self.handle(ProbeResult(registered.node_id, registered.incarnation, "refused"))
        return registered.node_id

    def of(self, conn: int, kind: type[M]) -> list[M]:
        """The messages of this type that were sent to this session."""
        return [message for message in self.sent.get(conn, []) if isinstance(message, kind)]

    def last(self, conn: int, kind: type[M]) -> M:
        return self.of(conn, kind)[-1]

    def operations(self, kind: type[O]) -> list[O]:
        """The operations of this type so far."""
        return [operation for operation in self.executed if isinstance(operation, kind)]
