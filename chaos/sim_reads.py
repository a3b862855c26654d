"""What the simulated store answers from its tables: as ``regrow.gcs.store_recovery``."""

from __future__ import annotations

from collections.abc import Iterable

from msgspec import Raw
from msgspec.structs import replace

from regrow.chaos.sim_append import SimLog
from regrow.chaos.sim_tables import ActorEntry, TaskRow
from regrow.gcs.operations import ActorRow, Lineage, LineageTask, ObjectRow, ReadActor, ReadLineage
from regrow.gcs.store_values import (
    CANCELLED,
    JOB_ENDED,
    cancelled_value,
    constructor_raised,
    outward,
)
from regrow.ids import TASK_ID_SIZE, is_put, object_id, producer
from regrow.messages import (
    ACTOR_CREATION,
    OK,
    PENDING,
    SYSTEM_ERROR,
    TASK,
    FunctionDef,
    HeldTask,
    SystemFailure,
    TaskState,
    Value,
    failure_decoder,
)


class SimReads(SimLog):
    """Reading; each answer is a snapshot."""

    # --- tasks ------------------------------------------------------------------------------------

    def task_state(self, task_id: bytes) -> TaskState:
        row = self.tasks.get(task_id)
        if row is None:
            return TaskState(task_id, False)
        if row.status == PENDING:
            return TaskState(task_id, True, PENDING, self.live_holder(row))
        wanted = [object_id(task_id, index) for index in range(row.header.num_returns)]
        values = [value for oid in wanted if (value := self.value(row, oid)) is not None]
        return TaskState(task_id, True, outward(row.status), values=values)

    def live_holder(self, row: TaskRow) -> int:
        """The node that runs it; 0: that incarnation is dead."""
        return row.holder[0] if self.alive(row.holder) else 0

    def value(self, row: TaskRow, oid: bytes) -> Value | None:
        """A return of a finished task; all of them share an error. None: it has no such return."""
        if row.status == CANCELLED:
            return cancelled_value(oid)
        index = int.from_bytes(oid[TASK_ID_SIZE:], "big")
        assert row.outcome is not None
        if index >= row.header.num_returns:
            return None
        returns = row.outcome.returns
        if row.status != OK:
            index = 0
        if index >= len(returns):
            return Value(oid, row.status, 0, None) if index == 0 else None
        made = returns[index]
        return Value(oid, row.status, made.size, made.data, made.digest, made.refs)

    def held(self, row: TaskRow, attempt: int = 0, digests: Iterable[bytes] = ()) -> HeldTask:
        return HeldTask(Raw(row.spec), attempt or row.attempt, row.submitter, list(digests))

    def rebuilt(self, row: TaskRow, attempt: int, digests: Iterable[bytes]) -> HeldTask:
        """The same, to run again."""
        driver = self.jobs[row.header.job].driver
        return replace(self.held(row, attempt, digests), driver=driver)

    def functions_of(self, rows: Iterable[TaskRow]) -> list[FunctionDef]:
        needed = sorted({row.header.function_id for row in rows})
        return [self.functions[key] for key in needed if key in self.functions]

    # --- objects ----------------------------------------------------------------------------------

    def object(self, oid: bytes) -> ObjectRow:
        """What the log knows of an object."""
        if is_put(oid):
            return self._put_row(oid)
        row = self.tasks.get(producer(oid))
        value = None if row is None or row.status == PENDING else self.value(row, oid)
        if row is None or (row.status != PENDING and value is None):
            return ObjectRow(oid, False)
        return ObjectRow(
            oid,
            True,
            outward(row.status),
            self.live_holder(row) if row.status == PENDING else 0,
            value,
            self.stored.get(oid, ""),
            row.header.task_id,
            _max_retries(row),
            "task" if row.header.kind == TASK else "actor_call",
        )

    def _put_row(self, oid: bytes) -> ObjectRow:
        put = self.puts.get(oid)
        if put is None:
            return ObjectRow(oid, False)
        stored = self.stored.get(oid, "")
        if put.parent_id == self.jobs[put.job].driver_id:
            return ObjectRow(oid, True, OK, 0, put.value, stored, made_by="driver_put")
        retries = _max_retries(self.tasks.get(put.parent_id))
        return ObjectRow(oid, True, OK, 0, put.value, stored, put.parent_id, retries, "put")

    # --- lineage ----------------------------------------------------------------------------------

    def lineage(self, op: ReadLineage) -> Lineage:
        """Level by level; ``limit`` is looked at between levels."""
        tasks: list[LineageTask] = []
        frontier = sorted(set(op.task_ids))
        seen = set(frontier)
        level = 0
        while frontier and level < op.depth and len(tasks) < op.limit:
            makers: set[bytes] = set()
            for task_id in frontier:
                row = self.tasks.get(task_id)
                if row is not None:
                    needs = self._needs(row)
                    makers.update(maker for maker in needs.values() if maker)
                    tasks.append(self._lineage_task(row, list(needs), level))
            frontier = sorted(makers - seen)
            seen |= makers
            level += 1
        return Lineage(tasks, not frontier)

    def _needs(self, row: TaskRow) -> dict[bytes, bytes]:
        """Arguments that are not small, each with the task that makes it: empty if there is none,
        or if its bytes are in storage."""
        needs: dict[bytes, bytes] = {}
        for oid in sorted({*row.header.deps, *row.header.nested}):
            known = self.object(oid)
            value = known.value
            large = known.status == OK and value is not None and value.data is None
            if known.known and (known.status == PENDING or large):
                needs[oid] = b"" if oid in self.stored else known.producer
        return needs

    def _lineage_task(self, row: TaskRow, needs: list[bytes], level: int) -> LineageTask:
        return LineageTask(
            row.header.task_id,
            outward(row.status),
            row.header.kind,
            row.header.max_retries,
            needs,
            [(oid, self.stored[oid]) for oid in needs if oid in self.stored],
            digests(row),
            level,
            row.header.resources,
        )

    # --- actors -----------------------------------------------------------------------------------

    def read_actor(self, op: ReadActor) -> ActorRow:
        if not op.actor_id:
            return self.actor_named(op.name, op.namespace)
        entry = self.actors.get(op.actor_id)
        if entry is not None:
            return self.actor_row(op.actor_id, entry)
        creation = self.tasks.get(op.actor_id)
        if creation is None or creation.header.kind != ACTOR_CREATION:
            return ActorRow(False)
        error = _creation_error(creation)
        state = "dead" if error else "pending"
        header = creation.header
        return ActorRow(True, op.actor_id, state, 0, 0, "", header.job, header.function_id, error)

    def actor_named(self, name: str, namespace: str) -> ActorRow:
        """Dead actors have no names."""
        for actor_id, entry in self.actors.items():
            if (entry.name, entry.namespace) == (name, namespace) and entry.state != "dead":
                return self.actor_row(actor_id, entry)
        return ActorRow(False)

    def actor_row(self, actor_id: bytes, entry: ActorEntry) -> ActorRow:
        """One that waits for a creation which failed is dead, whatever its row says."""
        state, error = entry.state, entry.error
        if state == "pending":
            creation = self.tasks.get(actor_id)
            if creation is not None and creation.header.kind == ACTOR_CREATION:
                error = _creation_error(creation)
            state = "dead" if error else "pending"
        return ActorRow(
            True, actor_id, state, *entry.node, entry.name, entry.job, entry.function_id, error,
            entry.methods,
        )  # fmt: skip


def digests(row: TaskRow) -> list[bytes]:
    """Of a finished task's returns, by index."""
    if row.status != OK or row.outcome is None or not row.header.num_returns:
        return []
    made = [returned.digest for returned in row.outcome.returns][: row.header.num_returns]
    return made + [b""] * (row.header.num_returns - len(made))


def _max_retries(row: TaskRow | None) -> int:
    """How often the producer may run again; what actors did is not run again."""
    return 0 if row is None or row.header.kind != TASK else row.header.max_retries


def _creation_error(creation: TaskRow) -> SystemFailure | None:
    if creation.status in (PENDING, OK):
        return None
    if creation.status == CANCELLED:
        return JOB_ENDED
    assert creation.outcome is not None
    data = creation.outcome.returns[0].data if creation.outcome.returns else None
    if creation.status == SYSTEM_ERROR and data is not None:
        return failure_decoder.decode(data)
    return constructor_raised(creation.outcome.error)
