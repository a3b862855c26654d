"""``regrow.append`` in memory: see ``gcs/migrations/versions/0001_append.sql`` for the reasons."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from msgspec.structs import replace

from regrow.chaos.sim_tables import (
    ActorEntry,
    JobEntry,
    NodeKey,
    NodeRow,
    PutEntry,
    RebuildRow,
    Table,
    TaskRow,
)
from regrow.gcs.operations import (
    APPLIED,
    BEHIND,
    CONFLICT,
    FENCED,
    Append,
    AppendResult,
    Batch,
    Event,
    NewHolder,
    Outcome,
    PutRow,
    Submitted,
)
from regrow.gcs.store_values import CANCELLED, JOB_ENDED
from regrow.messages import (
    OK,
    PENDING,
    TASK_ERROR,
    FunctionDef,
    Return,
    SystemFailure,
    Value,
)


class _Conflict(Exception):
    """The batch contradicts the log."""


class SimLog:
    """The tables, and the appends that fill them. ``now`` is the database's clock, in seconds."""

    def __init__(self, now: Callable[[], float]) -> None:
        self.now = now
        self.nodes: Table[NodeKey, NodeRow] = Table()
        self.jobs: Table[int, JobEntry] = Table()
        self.functions: Table[bytes, FunctionDef] = Table()
        self.tasks: Table[bytes, TaskRow] = Table()
        #: Those of ``tasks`` that are pending: the partial index.
        self.unfinished: Table[bytes, TaskRow] = Table()
        self.puts: Table[bytes, PutEntry] = Table()
        self.stored: Table[bytes, str] = Table()
        self.actors: Table[bytes, ActorEntry] = Table()
        #: Actor -> place of the last call -> (object, saved by the class itself).
        self.checkpoints: Table[bytes, dict[int, tuple[bytes, bool]]] = Table()
        self.rebuilds: Table[int, RebuildRow] = Table()
        #: Cancelled tasks that a resumed job took out.
        self.discarded: Table[bytes, int] = Table()
        #: (node and incarnation, event); the control store is node 0.
        self.events: Table[int, tuple[NodeKey, Event]] = Table()

    def alive(self, node: NodeKey) -> bool:
        """Whether this incarnation was registered and not fenced since."""
        row = self.nodes.get(node)
        return row is not None and row.view.alive

    def put_task(self, task_id: bytes, row: TaskRow) -> None:
        """Writes a row, and the index."""
        self.tasks.put(task_id, row)
        if row.status == PENDING:
            self.unfinished.put(task_id, row)
        else:
            self.unfinished.remove(task_id)

    def commit(self) -> None:
        for table in self._tables():
            table.commit()

    def roll_back(self) -> None:
        for table in self._tables():
            table.roll_back()

    def _tables(self) -> tuple[Table[bytes, object], ...]:
        return tuple(table for table in vars(self).values() if isinstance(table, Table))

    # --- batches ----------------------------------------------------------------------------------

    def append(self, append: Append) -> AppendResult:
        """One batch, all or nothing."""
        key = (append.node, append.incarnation)
        verdict = self.judge(self.nodes.get(key), append)
        if verdict is not None:
            return AppendResult(verdict)
        row = self.nodes[key]
        expires_s = self.now() + row.ttl_s
        self.nodes.put(key, replace(row, last_batch=append.number, lease_expires_s=expires_s))
        try:
            self._apply(key, append.batch)
        except _Conflict as conflict:
            self.roll_back()
            return AppendResult(CONFLICT, str(conflict))
        self.commit()
        return AppendResult(APPLIED)

    def judge(self, row: NodeRow | None, append: Append) -> str | None:
        """What is said of a batch without looking at it; None: it is to be applied."""
        if row is None:
            return BEHIND
        if not row.view.alive:
            return FENCED
        if row.last_batch >= append.number:
            return APPLIED
        return None if row.last_batch == append.number - 1 else BEHIND

    def _apply(self, key: NodeKey, batch: Batch) -> None:
        for function in batch.functions:
            if function.function_id not in self.functions:
                self.functions.put(function.function_id, function)
        for job in [s.header.job for s in batch.submitted] + [p.job for p in batch.puts]:
            if job not in self.jobs:
                raise _Conflict(f"job {job} is not in the log")
        self._submit(key, batch.submitted)
        for holder in {h.task_id: h for h in batch.holders}.values():
            self._hand_over(key, holder)
        for outcome in batch.outcomes:
            self._finish(key, outcome)
        for put in batch.puts:
            self._put(put)
        for object_id, path in batch.stored:
            self.stored.put(object_id, path)
        for actor_id, job, alive, error in {a[0]: a for a in batch.actors}.values():
            self._actor(key, actor_id, job, alive, error)
        for actor_id, seq, oid, custom in {c[:2]: c for c in batch.checkpoints}.values():
            if not oid or self._may_save(key, actor_id, seq):
                self._checkpoint(actor_id, seq, oid, custom)
        for event in batch.events:
            self.events.put(len(self.events) + 1, (key, event))
        self._rebuilt(key, dict(batch.rebuilt))

    def _submit(self, key: NodeKey, batch: Iterable[Submitted]) -> None:
        ended: set[int] = set()
        there: list[Outcome] = []
        for submitted in batch:
            header, outcome = submitted.header, submitted.outcome
            if self.jobs[header.job].status != "running":
                ended.add(header.job)
            if header.driver < self.jobs[header.job].driver:
                self.discarded.put(header.task_id, header.job)
                continue
            if header.task_id in self.tasks:
                if outcome is not None:
                    there.append(outcome)
                continue
            self.put_task(
                header.task_id,
                TaskRow(
                    header,
                    submitted.spec,
                    submitted.submitter,
                    submitted.holder,
                    submitted.attempt if outcome is None else outcome.attempt,
                    PENDING if outcome is None else outcome.status,
                    outcome,
                ),
            )
        if ended:
            self.cancel(ended)
        for outcome in there:
            self._finish(key, outcome)

    def cancel(self, jobs: Iterable[int]) -> None:
        """Marks the unfinished tasks of jobs that have ended."""
        for task_id, row in list(self.unfinished.items()):
            if row.header.job in jobs:
                self.put_task(task_id, replace(row, status=CANCELLED))

    def _finish(self, key: NodeKey, outcome: Outcome) -> None:
        task_id = outcome.task_id
        row = self.tasks.get(task_id)
        if row is not None and row.status == PENDING and row.holder == key:
            ended = replace(row, attempt=outcome.attempt, status=outcome.status, outcome=outcome)
            self.put_task(task_id, ended)
        elif (row is None or row.holder != key) and task_id in self.discarded:
            return
        elif row is None or not (row.status == CANCELLED or _same_outcome(row, outcome)):
            raise _Conflict(f"the outcome of task {task_id.hex()} contradicts the log")

    def _hand_over(self, key: NodeKey, new: NewHolder) -> None:
        row = self.tasks.get(new.task_id)
        if row is not None and row.status == PENDING and row.holder == key:
            moved = replace(row, holder=new.holder, attempt=new.attempt, given=0)
            self.put_task(new.task_id, moved)
            return
        there = ((row is None or row.holder != key) and new.task_id in self.discarded) or (
            row is not None
            and (
                row.status == CANCELLED
                or (row.status, row.holder, row.attempt) == (PENDING, new.holder, new.attempt)
            )
        )
        if not there:
            raise _Conflict(f"task {new.task_id.hex()} is not held by node {key[0]} any more")

    def _put(self, put: PutRow) -> None:
        value = Value(put.object_id, OK, put.size, put.data, put.digest, put.refs)
        known = self.puts.get(put.object_id)
        if known is None:
            self.puts.put(put.object_id, PutEntry(put.parent_id, put.job, value))
        elif not _same(known.value, value):
            raise _Conflict(f"object {put.object_id.hex()} contradicts the log")

    def _actor(
        self, key: NodeKey, actor_id: bytes, job: int, alive: bool, error: SystemFailure | None
    ) -> None:
        """Death is final, and nothing begins to live in a job that has ended; an actor of a
        creation that was taken out never was."""
        if actor_id in self.discarded and actor_id not in self.tasks:
            return
        row = self.actors.get(actor_id) or ActorEntry(job, "pending")
        if alive and row.state == "alive" and row.node != key and self.alive(row.node):
            raise _Conflict(f"actor {actor_id.hex()} lives on another node")
        creation = self.tasks.get(actor_id)
        if not row.function_id and creation is not None:
            row = replace(row, function_id=creation.header.function_id)
        if row.max_restarts is None and creation is not None:
            row = replace(row, max_restarts=creation.header.max_retries)
        if not self._runs(job) and error is None:
            error = JOB_ENDED
        if row.state != "dead":
            state = "alive" if alive and self._runs(job) else "dead"
            if state == "dead" and error is None and self._runs(row.job) and row.may_restart:
                row = replace(row, restarts=row.restarts + 1)
                state = "restarting"
            row = replace(row, state=state, node=key, error=error)
        self.actors.put(actor_id, row)

    def _runs(self, job: int) -> bool:
        entry = self.jobs.get(job)
        return entry is not None and entry.status == "running"

    def _may_save(self, key: NodeKey, actor_id: bytes, seq: int) -> bool:
        """Only from where the actor lives, and after a call that the log has."""
        actor = self.actors.get(actor_id)
        if actor is None or actor.node != key:
            return False
        return not seq or any(
            row.outcome is not None
            and row.outcome.actor_seq == seq
            and row.status in (OK, TASK_ERROR)
            for row in self.tasks.values()
            if row.header.actor_id == actor_id
        )

    def _checkpoint(self, actor_id: bytes, seq: int, oid: bytes, custom: bool) -> None:
        """The two newest are kept; without an object it is taken back."""
        saved = self.checkpoints.get(actor_id, {})
        if oid:
            saved = {seq: (oid, custom), **saved}
        else:
            saved = {other: state for other, state in saved.items() if other != seq}
        newest = sorted(saved, reverse=True)[:2]
        self.checkpoints.put(actor_id, {other: saved[other] for other in newest})

    def _rebuilt(self, key: NodeKey, ended: dict[bytes, bool]) -> None:
        if ended:
            for number, row in list(self.rebuilds.items()):
                if row.open and row.holder == key and row.task_id in ended:
                    done = replace(row, open=False, differs=ended[row.task_id])
                    self.rebuilds.put(number, done)


def _same_outcome(row: TaskRow, outcome: Outcome) -> bool:
    """Whether two outcomes agree; a task without returns has none to compare."""
    if row.outcome is None or row.status != outcome.status:
        return False
    pairs = zip(row.outcome.returns, outcome.returns, strict=False)
    return all(_same(ours, theirs) for ours, theirs in pairs)


def _same(one: Return | Value, other: Return | Value) -> bool:
    """By digest, or by their bytes where they have none."""
    if one.digest or other.digest:
        return one.digest == other.digest
    return one.data == other.data
