"""Jobs, functions and actors, as transactions on Postgres."""

from __future__ import annotations

from typing import Final

from regrow.gcs.operations import (
    ActorRow,
    CreateJob,
    Done,
    EndIdleJobs,
    EndJob,
    FunctionRows,
    JobCreated,
    JobRow,
    JobRows,
    JobsEnded,
    ReadActor,
    ReadFunctions,
    ReadJob,
    ReadJobs,
    ReserveActorName,
)
from regrow.gcs.store_session import Connection, Row, Rows, by_id, run
from regrow.gcs.store_values import CANCELLED, JOB_ENDED, constructor_raised
from regrow.ids import driver_task_id
from regrow.messages import FunctionDef, SystemFailure, encode, failure_decoder

# --- jobs -----------------------------------------------------------------------------------------

#: The partition key of unnamed jobs is the day they start, so a resend lands where the first did.
_PARTITION = "SELECT to_char(regrow.now() AT TIME ZONE 'UTC', 'YYYYMMDD')::int"
_ENSURE_PARTITION = "SELECT regrow.ensure_partition(:part)"
_CREATE_JOB = """
INSERT INTO regrow.jobs (job_root, driver_id, part, entrypoint, pid, started_at)
VALUES (:job_root, :driver_id, :part, :entrypoint, :pid, regrow.now())
ON CONFLICT (job_root) DO NOTHING
RETURNING job
"""
_JOB_OF_ROOT = "SELECT job FROM regrow.jobs WHERE job_root = :job_root"
_JOB = """
SELECT job_root, status = 'running' AS running, coalesce(name, '') AS name, driver, detached
FROM regrow.jobs WHERE job = :job
"""
_RUNNING_JOBS = """
SELECT job, job_root, coalesce(name, '') AS name, driver, detached FROM regrow.jobs
WHERE status = 'running' ORDER BY job
"""
LOCK_NODES: Final = """
SELECT 1 FROM regrow.nodes WHERE alive ORDER BY node_id, incarnation FOR UPDATE
"""
_END_JOB = """
UPDATE regrow.jobs SET status = :status, finished_at = regrow.now()
WHERE job = :job AND status = 'running'
RETURNING part
"""
_CANCEL_TASKS = """
UPDATE regrow.task_log SET status = 4, error = 'cancelled', finished_at = regrow.now()
WHERE part = :part AND job = :job AND status = 0
"""
_END_ACTORS = """
UPDATE regrow.actors SET state = 'dead', died_at = regrow.now(), error = :error
WHERE job = :job AND state <> 'dead'
"""
_END_REBUILDS = """
UPDATE regrow.rebuilds r SET finished_at = regrow.now()
WHERE r.finished_at IS NULL AND EXISTS (
    SELECT FROM regrow.task_log t
    WHERE t.task_id = r.task_id AND t.part = :part AND t.job = :job)
"""


def create_job(connection: Connection, op: CreateJob) -> JobCreated:
    """The same root again is the same job: it may be sent again."""
    [(part,)] = run(connection, _PARTITION)
    run(connection, _ENSURE_PARTITION, part=part)
    rows = run(
        connection,
        _CREATE_JOB,
        job_root=op.job_root,
        driver_id=driver_task_id(op.job_root),
        part=part,
        entrypoint=op.entrypoint,
        pid=op.pid,
    ) or run(connection, _JOB_OF_ROOT, job_root=op.job_root)
    return JobCreated(rows[0][0])


def read_job(connection: Connection, op: ReadJob) -> JobRow:
    rows = run(connection, _JOB, job=op.job)
    if not rows:
        return JobRow(False)
    [row] = rows
    return JobRow(True, row.job_root, row.running, row.name, row.driver, row.detached)


def read_jobs(connection: Connection, op: ReadJobs) -> JobRows:
    rows = run(connection, _RUNNING_JOBS)
    return JobRows([(row.job, row.job_root, row.name, row.driver, row.detached) for row in rows])


def end_job(connection: Connection, op: EndJob) -> Done:
    """The nodes' rows are locked first: a batch is wholly before the end, and its unfinished tasks
    are cancelled here, or wholly after it, and ``regrow.append`` cancels them."""
    run(connection, LOCK_NODES)
    rows = run(connection, _END_JOB, job=op.job, status=op.status)
    if rows:
        run(connection, _CANCEL_TASKS, part=rows[0].part, job=op.job)
        run(connection, _END_ACTORS, job=op.job, error=encode(JOB_ENDED))
        run(connection, _END_REBUILDS, part=rows[0].part, job=op.job)
    return Done()


_END_IDLE = """
UPDATE regrow.jobs j SET finished_at = regrow.now(), status = CASE WHEN EXISTS (
        SELECT FROM regrow.task_log t WHERE t.part = j.part AND t.job = j.job AND t.status > 1)
    THEN 'failed' ELSE 'finished' END
WHERE j.job = ANY (CAST(:jobs AS int[])) AND j.status = 'running' AND NOT EXISTS (
        SELECT FROM regrow.task_log t WHERE t.part = j.part AND t.job = j.job AND t.status = 0)
    AND NOT EXISTS (SELECT FROM regrow.actors a WHERE a.job = j.job AND a.state <> 'dead')
"""
_ENDED = """
SELECT job FROM regrow.jobs WHERE job = ANY (CAST(:jobs AS int[])) AND status <> 'running'
ORDER BY job
"""


def end_idle_jobs(connection: Connection, op: EndIdleJobs) -> JobsEnded:
    """As at the end of a job, the nodes' rows are locked first."""
    run(connection, LOCK_NODES)
    run(connection, _END_IDLE, jobs=op.jobs)
    return JobsEnded([job for (job,) in run(connection, _ENDED, jobs=op.jobs)])


# --- functions ------------------------------------------------------------------------------------

_FUNCTIONS = """
SELECT function_id, name, pickled, fingerprint FROM regrow.functions
WHERE function_id = ANY (CAST(:ids AS bytea[])) ORDER BY function_id
"""


def read_functions(connection: Connection, op: ReadFunctions) -> FunctionRows:
    return FunctionRows(_functions(connection, op.function_ids))


def functions_of(connection: Connection, rows: Rows) -> list[FunctionDef]:
    """The functions that rows with a ``function_id`` need."""
    ids = sorted({row.function_id for row in rows})
    return _functions(connection, ids) if ids else []


def _functions(connection: Connection, ids: list[bytes]) -> list[FunctionDef]:
    rows = run(connection, _FUNCTIONS, ids=ids)
    return [FunctionDef(r.function_id, r.name, r.pickled, r.fingerprint or b"") for r in rows]


# --- actors ---------------------------------------------------------------------------------------

_ACTOR_COLUMNS = """
SELECT a.actor_id, a.state, a.node_id, a.incarnation, a.name, a.job, a.function_id, a.error,
    a.methods
FROM regrow.actors a
"""
_ACTOR_BY_ID = f"{_ACTOR_COLUMNS} WHERE a.actor_id = :actor_id"
_ACTOR_BY_NAME = f"""{_ACTOR_COLUMNS}
WHERE a.namespace = :namespace AND a.name = :name AND a.state <> 'dead'"""
_CREATION = """
SELECT task_id, job, function_id, status, error, CASE WHEN status = 3 THEN result END AS failure
FROM regrow.task_log
WHERE task_id = ANY (CAST(:ids AS bytea[])) AND kind = 1
    AND (CAST(:parts AS int[]) IS NULL OR part = ANY (CAST(:parts AS int[])))
"""
#: Only a running job's actors hold names. Conflicts are of the id, or of the name.
_NEW_ACTOR = """
INSERT INTO regrow.actors (actor_id, job, state, name, namespace, function_id, methods)
SELECT :actor_id, job, 'pending', :name, :namespace, :function_id, :methods
FROM regrow.jobs WHERE job = :job AND status = 'running'
ON CONFLICT DO NOTHING
"""
_NAME_ACTOR = """
UPDATE regrow.actors SET name = :name, namespace = :namespace, methods = :methods
WHERE actor_id = :actor_id AND name IS NULL AND state <> 'dead' AND NOT EXISTS (
    SELECT FROM regrow.actors o
    WHERE o.namespace = :namespace AND o.name = :name AND o.state <> 'dead')
"""


def reserve_actor_name(connection: Connection, op: ReserveActorName) -> ActorRow:
    """Not found: the name is free, but the actor is dead or its job has ended."""
    names = {"name": op.name, "namespace": op.namespace}
    run(
        connection,
        _NEW_ACTOR,
        **names,
        actor_id=op.actor_id,
        job=op.job,
        function_id=op.function_id,
        methods=op.methods,
    )
    run(connection, _NAME_ACTOR, **names, actor_id=op.actor_id, methods=op.methods)
    rows = run(connection, _ACTOR_BY_NAME, **names)
    return _actor(connection, rows[0]) if rows else ActorRow(False)


def read_actor(connection: Connection, op: ReadActor) -> ActorRow:
    if not op.actor_id:
        rows = run(connection, _ACTOR_BY_NAME, name=op.name, namespace=op.namespace)
        return _actor(connection, rows[0]) if rows else ActorRow(False)
    rows = run(connection, _ACTOR_BY_ID, actor_id=op.actor_id)
    if rows:
        return _actor(connection, rows[0])
    creation = by_id(connection, _CREATION, [op.actor_id]).get(op.actor_id)
    if creation is None:
        return ActorRow(False)
    error = _creation_error(creation)
    return ActorRow(
        True,
        creation.task_id,
        "dead" if error else "pending",
        job=creation.job,
        function_id=creation.function_id,
        error=error,
    )


def _actor(connection: Connection, row: Row) -> ActorRow:
    """One that waits for a creation which failed is dead, whatever its row says."""
    state = row.state
    error = None if row.error is None else failure_decoder.decode(row.error)
    if state == "pending":
        creation = by_id(connection, _CREATION, [row.actor_id]).get(row.actor_id)
        error = _creation_error(creation) if creation is not None else None
        state = "dead" if error else "pending"
    return ActorRow(
        True,
        row.actor_id,
        state,
        row.node_id or 0,
        row.incarnation or 0,
        row.name or "",
        row.job,
        row.function_id or b"",
        error,
        row.methods or b"",
    )


def _creation_error(creation: Row) -> SystemFailure | None:
    """Why the task that creates the actor failed; None if it did not."""
    if creation.status in (0, 1):
        return None
    if creation.failure is not None:
        return failure_decoder.decode(creation.failure)
    if creation.status == CANCELLED:
        return JOB_ENDED
    return constructor_raised(creation.error)
