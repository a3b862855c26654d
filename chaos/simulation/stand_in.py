"""A store in memory with the meaning of ``regrow.gcs.operations``; see ``regrow.append``."""

from __future__ import annotations

from typing import Any

from msgspec import Raw, Struct

from regrow.gcs import operations as ops
from regrow.gcs.operations import Append, AppendResult, Operation, Outcome, PutRow, Submitted
from regrow.ids import is_put, object_id, producer
from regrow.messages import (
    ACTOR_CALL,
    ACTOR_CREATION,
    OK,
    PENDING,
    SYSTEM_ERROR,
    FunctionDef,
    HeldTask,
    NodeView,
    SystemFailure,
    TaskHeader,
    TaskState,
    Value,
    encode,
)

CANCELLED = 4


class TaskRow(Struct):
    header: TaskHeader
    spec: bytes
    submitter: int
    holder: tuple[int, int]
    attempt: int
    status: int = PENDING
    outcome: Outcome | None = None
    given: bool = False


class NodeRow(Struct):
    view: NodeView
    ttl_s: float
    last_batch: int = 0
    expires_s: float = 0.0


class _Conflict(Exception):
    pass


class StandInStore:
    """``append`` and ``execute``, each one transaction. ``now_s`` is the database's clock."""

    def __init__(self) -> None:
        self.now_s = 1000.0
        self.up_since_s = 0.0
        self.tasks: dict[bytes, TaskRow] = {}
        self.unfinished: dict[bytes, TaskRow] = {}
        self.nodes: dict[tuple[int, int], NodeRow] = {}
        self.puts: dict[bytes, PutRow] = {}
        self.stored: dict[bytes, str] = {}
        self.functions: dict[bytes, FunctionDef] = {}
        self.jobs: dict[int, tuple[bytes, str]] = {}
        self.actors: dict[bytes, Any] = {}
        self.rebuilds: dict[bytes, tuple[int, int]] = {}
        self.rebuild_count = 0
        self.events: list[ops.Event] = []
        self.epoch = 0
        self.leader = ""
        self.leads_until_s = 0.0

    # --- the log ----------------------------------------------------------------------------------

    def alive(self, key: tuple[int, int]) -> bool:
        row = self.nodes.get(key)
        return row is not None and row.view.alive

    def append(self, append: Append) -> AppendResult:
        key = (append.node, append.incarnation)
        row = self.nodes.get(key)
        verdict = self.judge(row, append)
        if verdict is not None:
            return AppendResult(verdict)
        assert row is not None
        batch = append.batch
        try:
            self._check(key, batch)
        except _Conflict as conflict:
            return AppendResult(ops.CONFLICT, str(conflict))
        row.last_batch = append.number
        row.expires_s = self.now_s + row.ttl_s
        self._apply(key, batch)
        return AppendResult(ops.APPLIED)

    def judge(self, row: NodeRow | None, append: Append) -> str | None:
        """None: the batch is to be applied."""
        if row is None:
            return ops.BEHIND
        if not row.view.alive:
            return ops.FENCED
        if row.last_batch >= append.number:
            return ops.APPLIED
        return None if row.last_batch == append.number - 1 else ops.BEHIND

    def _check(self, key: tuple[int, int], batch: ops.Batch) -> None:
        holders: dict[bytes, tuple[int, int]] = {}
        new: dict[bytes, Submitted] = {}
        for submitted in batch.submitted:
            task_id = submitted.header.task_id
            if task_id in self.tasks:
                if submitted.outcome is not None:
                    self._check_outcome(key, submitted.outcome, holders, new)
            else:
                new.setdefault(task_id, submitted)
        for holder in batch.holders:
            row = self.tasks.get(holder.task_id)
            held = new[holder.task_id].holder if holder.task_id in new else None
            if row is not None:
                if row.status == CANCELLED:
                    continue
                held = row.holder if row.status == PENDING else None
            same = row is not None and (row.status, row.holder, row.attempt) == (
                PENDING, holder.holder, holder.attempt,
            )  # fmt: skip
            if held != key and not same:
                raise _Conflict(f"task {holder.task_id.hex()} is not held by {key} any more")
            holders[holder.task_id] = holder.holder
        for outcome in batch.outcomes:
            self._check_outcome(key, outcome, holders, new)
        for put in batch.puts:
            known = self.puts.get(put.object_id)
            if known is not None and known.digest != put.digest:
                raise _Conflict(f"put {put.object_id.hex()} contradicts the log")

    def _check_outcome(
        self, key: tuple[int, int], outcome: Outcome, holders: dict[bytes, tuple[int, int]],
        new: dict[bytes, Submitted],
    ) -> None:  # fmt: skip
        row = self.tasks.get(outcome.task_id)
        if row is None:
            submitted = new.get(outcome.task_id)
            if submitted is None or submitted.holder != key:
                raise _Conflict(f"the outcome of {outcome.task_id.hex()}, which is not in the log")
            return
        if row.status == CANCELLED:
            return
        if row.status == PENDING:
            if holders.get(outcome.task_id, row.holder) != key:
                raise _Conflict(
                    f"the outcome of {outcome.task_id.hex()}, which {row.holder} holds"
                )
            return
        assert row.outcome is not None
        if (row.outcome.status, [r.digest for r in row.outcome.returns]) != (
            outcome.status, [r.digest for r in outcome.returns],
        ):  # fmt: skip
            raise _Conflict(f"the outcome of {outcome.task_id.hex()} contradicts the log")

    def _apply(self, key: tuple[int, int], batch: ops.Batch) -> None:
        for function in batch.functions:
            self.functions.setdefault(function.function_id, function)
        for submitted in batch.submitted:
            task_id = submitted.header.task_id
            if task_id not in self.tasks:
                row = TaskRow(
                    submitted.header, submitted.spec, submitted.submitter, submitted.holder,
                    submitted.attempt,
                )  # fmt: skip
                self.tasks[task_id] = row
                if self.jobs[submitted.header.job][1] != "running":
                    row.status = CANCELLED
                else:
                    self.unfinished[task_id] = row
            if submitted.outcome is not None:
                self._finish(submitted.outcome)
        for holder in batch.holders:
            row = self.tasks[holder.task_id]
            if row.status == PENDING:
                row.holder, row.attempt, row.given = holder.holder, holder.attempt, False
        for outcome in batch.outcomes:
            self._finish(outcome)
        for put in batch.puts:
            self.puts.setdefault(put.object_id, put)
        for oid, path in batch.stored:
            self.stored[oid] = path
        for actor_id, job, alive, error in batch.actors:
            known = self.actors.get(actor_id)
            if known is None or known[1] != "dead":
                running = job in self.jobs and self.jobs[job][1] == "running"
                state = "alive" if alive and running else "dead"
                self.actors[actor_id] = (job, state, key, error)
        self.events += batch.events
        for task_id, _ in batch.rebuilt:
            if self.rebuilds.get(task_id) == key:
                del self.rebuilds[task_id]

    def _finish(self, outcome: Outcome) -> None:
        row = self.tasks[outcome.task_id]
        if row.status == PENDING:
            row.status, row.outcome, row.attempt = outcome.status, outcome, outcome.attempt
            self.unfinished.pop(outcome.task_id, None)

    # --- the control store's operations -----------------------------------------------------------

    def execute(self, operation: Operation) -> Any:
        epoch = getattr(operation, "epoch", None)
        if epoch is not None and not isinstance(operation, ops.Lead):
            if epoch != self.epoch or self.leads_until_s < self.now_s:
                return ops.NotLeader()
        return getattr(self, "_do_" + type(operation).__name__)(operation)

    def _do_Lead(self, op: ops.Lead) -> ops.Leadership:  # noqa: N802
        if op.epoch and op.epoch == self.epoch and op.holder == self.leader:
            self.leads_until_s = self.now_s + op.ttl_s
        elif not op.epoch and (self.leads_until_s < self.now_s or self.leader == op.holder):
            self.epoch += 1
            self.leader = op.holder
            self.leads_until_s = self.now_s + op.ttl_s
        else:
            return ops.Leadership(0, b"c" * 16, self.now_s)
        return ops.Leadership(self.epoch, b"c" * 16, self.now_s)

    def _do_RegisterNode(self, op: ops.RegisterNode) -> ops.NodeRegistered:  # noqa: N802
        node_id = op.view.node_id or max((n for n, _ in self.nodes), default=0) + 1
        incarnation = max((i for n, i in self.nodes if n == node_id), default=0) + 1
        fenced = 0
        before = self.nodes.get((node_id, incarnation - 1))
        if before is not None and before.view.alive:
            fenced = incarnation - 1
            self._kill((node_id, fenced))
        view = _with(op.view, node_id=node_id, incarnation=incarnation, alive=True)
        self.nodes[node_id, incarnation] = NodeRow(view, op.ttl_s, 0, self.now_s + op.ttl_s)
        return ops.NodeRegistered(node_id, incarnation, fenced)

    def _do_ReadLeases(self, op: ops.ReadLeases) -> ops.Leases:  # noqa: N802
        alive = [
            (*key, row.expires_s - self.now_s) for key, row in self.nodes.items() if row.view.alive
        ]
        return ops.Leases(alive, self.now_s - self.up_since_s)

    def _kill(self, key: tuple[int, int]) -> list[tuple[bytes, int]]:
        row = self.nodes[key]
        row.view = _with(row.view, alive=False)
        lived = []
        for actor_id, (job, state, where, _) in list(self.actors.items()):
            if where == key and state == "alive":
                error = SystemFailure("actor_died", "its node died")
                self.actors[actor_id] = (job, "dead", where, error)
                lived.append((actor_id, job))
        for task_id in [t for t, holder in self.rebuilds.items() if holder == key]:
            del self.rebuilds[task_id]
        return lived

    def newest(self, node_id: int) -> tuple[int, int] | None:
        """The incarnation of a node that is alive."""
        for key, row in reversed(self.nodes.items()):
            if key[0] == node_id and row.view.alive:
                return key
        return None

    def _reassign(
        self, heirs: list[tuple[int, int]], spend: bool
    ) -> tuple[dict[int, list[HeldTask]], list[FunctionDef]]:
        heirs = [heir for heir in heirs if self.alive(heir)]
        given: dict[int, list[HeldTask]] = {}
        functions: dict[bytes, FunctionDef] = {}
        turn = 0
        for row in self.unfinished.values():
            if self.alive(row.holder):
                continue
            target = self.newest(row.submitter)
            if target is None:
                if not heirs:
                    continue
                target = heirs[turn % len(heirs)]
                turn += 1
            row.holder, row.given = target, True
            row.attempt += spend
            given.setdefault(target[0], []).append(_held(row))
            function = self.functions.get(row.header.function_id)
            if function is not None:
                functions[function.function_id] = function
        return given, list(functions.values())

    def _do_Fence(self, op: ops.Fence) -> ops.NodeFenced:  # noqa: N802
        key = (op.node_id, op.incarnation)
        row = self.nodes.get(key)
        if row is None or not row.view.alive or (op.only_expired and row.expires_s >= self.now_s):
            return ops.NodeFenced(False, {}, [])
        actors = self._kill(key)
        given, functions = self._reassign(op.heirs, True)
        return ops.NodeFenced(True, given, functions, actors)

    def _do_NodeLeft(self, op: ops.NodeLeft) -> ops.NodeFenced:  # noqa: N802
        key = (op.node_id, op.incarnation)
        if not self.alive(key):
            return ops.NodeFenced(False, {}, [])
        actors = self._kill(key)
        given, functions = self._reassign(op.heirs, False)
        return ops.NodeFenced(True, given, functions, actors)

    def _do_Sweep(self, op: ops.Sweep) -> ops.NodeFenced:  # noqa: N802
        given, functions = self._reassign(op.heirs, True)
        return ops.NodeFenced(True, given, functions)

    def _do_ReadGiven(self, op: ops.ReadGiven) -> ops.GivenRows:  # noqa: N802
        key = (op.node_id, op.incarnation)
        rows = [row for row in self.unfinished.values() if row.given and row.holder == key]
        needed = dict.fromkeys(row.header.function_id for row in rows)
        functions = [self.functions[f] for f in needed if f in self.functions]
        return ops.GivenRows([_held(row) for row in rows], functions)

    def _do_CreateJob(self, op: ops.CreateJob) -> ops.JobCreated:  # noqa: N802
        for job, (root, _) in self.jobs.items():
            if root == op.job_root:
                return ops.JobCreated(job)
        job = len(self.jobs) + 1
        self.jobs[job] = (op.job_root, "running")
        return ops.JobCreated(job)

    def _do_ReadJob(self, op: ops.ReadJob) -> ops.JobRow:  # noqa: N802
        found = self.jobs.get(op.job)
        if found is None:
            return ops.JobRow(False)
        return ops.JobRow(True, found[0], found[1] == "running")

    def _do_ReadJobs(self, op: ops.ReadJobs) -> ops.JobRows:  # noqa: N802
        return ops.JobRows([(j, root) for j, (root, s) in self.jobs.items() if s == "running"])

    def _do_EndJob(self, op: ops.EndJob) -> ops.Done:  # noqa: N802
        root, status = self.jobs[op.job]
        if status == "running":
            self.jobs[op.job] = (root, op.status)
        for task_id, row in list(self.unfinished.items()):
            if row.header.job == op.job:
                row.status = CANCELLED
                del self.unfinished[task_id]
        for actor_id, (job, _, where, error) in list(self.actors.items()):
            if job == op.job:
                self.actors[actor_id] = (job, "dead", where, error)
        return ops.Done()

    def _do_ReadActor(self, op: ops.ReadActor) -> ops.ActorRow:  # noqa: N802
        assert op.actor_id, "names are not simulated"
        found = self.actors.get(op.actor_id)
        task = self.tasks.get(op.actor_id)
        if found is None:
            if task is None:
                return ops.ActorRow(False)
            state, error = "pending", None
            if task.status == SYSTEM_ERROR or task.status == CANCELLED or task.status > OK:
                state = "dead"
                error = SystemFailure("actor_died", "its creation failed")
            return ops.ActorRow(True, op.actor_id, state, job=task.header.job, error=error)
        job, state, (node_id, incarnation), error = found
        return ops.ActorRow(True, op.actor_id, state, node_id, incarnation, "", job, b"", error)

    def _do_ReadFunctions(self, op: ops.ReadFunctions) -> ops.FunctionRows:  # noqa: N802
        found = [self.functions[f] for f in op.function_ids if f in self.functions]
        return ops.FunctionRows(found)

    def _do_ReadTasks(self, op: ops.ReadTasks) -> ops.TaskRows:  # noqa: N802
        return ops.TaskRows([self._state(task_id) for task_id in op.task_ids])

    def _state(self, task_id: bytes) -> TaskState:
        row = self.tasks.get(task_id)
        if row is None:
            return TaskState(task_id, False)
        if row.status == PENDING:
            holder = row.holder[0] if self.alive(row.holder) else 0
            return TaskState(task_id, True, PENDING, holder)
        count = max(1, row.header.num_returns)
        values = [self.value(row, object_id(task_id, i), i) for i in range(count)]
        return TaskState(task_id, True, row.status, 0, values)

    def value(self, row: TaskRow, oid: bytes, index: int) -> Value:
        if row.status == CANCELLED or row.outcome is None:
            data = encode(SystemFailure("cancelled", "its job ended"))
            return Value(oid, SYSTEM_ERROR, len(data), data)
        returns = row.outcome.returns
        returned = returns[index if row.status == OK and index < len(returns) else 0] if returns else None
        if returned is None:
            return Value(oid, row.status, 0, b"")
        return Value(oid, row.status, returned.size, returned.data, returned.digest, returned.refs)

    def _do_ReadObjects(self, op: ops.ReadObjects) -> ops.ObjectRows:  # noqa: N802
        return ops.ObjectRows([self.object(oid) for oid in op.object_ids])

    def object(self, oid: bytes) -> ops.ObjectRow:
        stored = self.stored.get(oid, "")
        if is_put(oid):
            put = self.puts.get(oid)
            if put is None:
                return ops.ObjectRow(oid, False)
            value = Value(oid, OK, put.size, put.data, put.digest, put.refs)
            by = self.tasks.get(put.parent_id)
            if by is None:
                return ops.ObjectRow(oid, True, OK, 0, value, stored, b"", 0, "driver_put")
            retries = by.header.max_retries
            return ops.ObjectRow(oid, True, OK, 0, value, stored, put.parent_id, retries, "put")
        row = self.tasks.get(producer(oid))
        if row is None:
            return ops.ObjectRow(oid, False)
        if row.status == PENDING:
            holder = row.holder[0] if self.alive(row.holder) else 0
            return ops.ObjectRow(oid, True, PENDING, holder, producer=row.header.task_id)
        index = int.from_bytes(oid[16:], "big")
        value = self.value(row, oid, index)
        call = row.header.kind in (ACTOR_CALL, ACTOR_CREATION)
        retries = 0 if call else row.header.max_retries
        kind = "actor_call" if call else "task"
        return ops.ObjectRow(
            oid, True, value.status, 0, value, stored, row.header.task_id, retries, kind
        )

    def _do_ReadLineage(self, op: ops.ReadLineage) -> ops.Lineage:  # noqa: N802
        found: dict[bytes, ops.LineageTask] = {}
        level, agenda = 0, list(op.task_ids)
        while agenda and level < op.depth and len(found) < op.limit:
            following: list[bytes] = []
            for task_id in agenda:
                row = self.tasks.get(task_id)
                if row is None or task_id in found:
                    continue
                task = found[task_id] = self._lineage(row, level)
                for need in task.needs:
                    put = self.puts.get(need)
                    following.append(put.parent_id if put is not None else producer(need))
            agenda, level = following, level + 1
        return ops.Lineage(list(found.values()), not agenda)

    def _lineage(self, row: TaskRow, level: int) -> ops.LineageTask:
        header = row.header
        needs = []
        for oid in dict.fromkeys([*header.deps, *header.nested]):
            value = self.object(oid).value
            if value is None or (value.status == OK and value.data is None):
                needs.append(oid)
        stored = [(oid, self.stored[oid]) for oid in needs if oid in self.stored]
        digests = [r.digest for r in row.outcome.returns] if row.outcome is not None else []
        return ops.LineageTask(
            header.task_id, row.status, header.kind, header.max_retries, needs, stored, digests,
            level, header.resources,
        )  # fmt: skip

    def _do_GrantRebuilds(self, op: ops.GrantRebuilds) -> ops.RebuildsGranted:  # noqa: N802
        granted: list[HeldTask] = []
        elsewhere: list[tuple[bytes, int]] = []
        functions: dict[bytes, FunctionDef] = {}
        for task_id in op.task_ids:
            holder = self.rebuilds.get(task_id)
            if holder is not None and holder != op.holder and self.alive(holder):
                elsewhere.append((task_id, holder[0]))
                continue
            row = self.tasks[task_id]
            self.rebuilds[task_id] = op.holder
            self.rebuild_count += holder != op.holder
            digests = [r.digest for r in row.outcome.returns] if row.outcome is not None else []
            granted.append(HeldTask(Raw(row.spec), row.attempt, row.submitter, digests))
            function = self.functions.get(row.header.function_id)
            if function is not None:
                functions[function.function_id] = function
        return ops.RebuildsGranted(granted, list(functions.values()), elsewhere)

    def _do_ReadNodes(self, op: ops.ReadNodes) -> ops.NodeRows:  # noqa: N802
        newest: dict[int, NodeView] = {}
        for (node_id, _), row in self.nodes.items():
            newest[node_id] = row.view
        return ops.NodeRows(list(newest.values()))

    def _do_WriteEvent(self, op: ops.WriteEvent) -> ops.Done:  # noqa: N802
        self.events.append(op.event)
        return ops.Done()

    def _do_UpdateResources(self, op: ops.UpdateResources) -> ops.Done:  # noqa: N802
        return ops.Done()


def _held(row: TaskRow) -> HeldTask:
    return HeldTask(Raw(row.spec), row.attempt, row.submitter)


def _with(view: NodeView, **changes: Any) -> NodeView:
    import msgspec

    return msgspec.structs.replace(view, **changes)
