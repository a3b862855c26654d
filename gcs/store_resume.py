"""Resuming a named job, as a transaction on Postgres.

What ended well stays and is found again by its id. What failed, or was cancelled when the last
driver went, is taken out, so that the next driver's submissions run it again; or goes on at once,
if its parent ended well and will therefore not submit it again.
"""

from __future__ import annotations

from regrow.gcs.operations import JobResumed, ReadJobCode, RestartingActor, ResumeJob
from regrow.gcs.store_jobs import LOCK_NODES
from regrow.gcs.store_session import Connection, Row, run
from regrow.gcs.store_values import JOB_ENDED
from regrow.ids import driver_task_id
from regrow.messages import JobCode, encode, spec_that_goes_on

#: Two drivers of one name are one after the other.
_LOCK_NAME = "SELECT pg_advisory_xact_lock(hashtext('regrow.job'), hashtext(:name))"
_OPEN_RUN = """
SELECT job, job_root, driver_id, part, status, driver, runtime, opener FROM regrow.jobs
WHERE name = :name AND status <> 'finished' ORDER BY run DESC LIMIT 1
"""
_NEW_RUN = """
INSERT INTO regrow.jobs (
    job_root, driver_id, part, entrypoint, pid, started_at, name, run, driver, runtime,
    detached, opener, on_changed_code)
SELECT :job_root, :driver_id, 0, :entrypoint, :pid, regrow.now(), :name,
    1 + coalesce(max(run), 0), 1, :runtime, :detached, :job_root, :on_changed_code
FROM regrow.jobs WHERE name = :name
RETURNING job
"""
#: A named job has partitions of its own, so deleting it is dropping them.
_OWN_PART = """
UPDATE regrow.jobs SET part = regrow.part_of_job(job) WHERE job = :job RETURNING part
"""
_ENSURE_PARTITION = "SELECT regrow.ensure_partition(:part)"
_NEXT_DRIVER = """
UPDATE regrow.jobs SET status = 'running', finished_at = NULL, driver = driver + 1,
    entrypoint = :entrypoint, pid = :pid, detached = :detached, opener = :opener,
    on_changed_code = :on_changed_code
WHERE job = :job RETURNING driver
"""
#: A name that another actor has meanwhile stays with that one.
_RESTART_ACTORS = """
UPDATE regrow.actors a SET state = 'restarting', error = NULL, died_at = NULL,
    name = CASE WHEN NOT EXISTS (
        SELECT FROM regrow.actors o
        WHERE o.namespace = a.namespace AND o.name = a.name AND o.state <> 'dead') THEN a.name END
WHERE a.job = :job AND a.state = 'dead' AND a.error = :job_ended AND a.node_id IS NOT NULL
    AND coalesce(a.max_restarts, 0) <> 0 AND EXISTS (
        SELECT FROM regrow.task_log t
        WHERE t.part = :part AND t.task_id = a.actor_id AND t.status = 1)
"""
#: Actors without their state whose ids their creators would make again: a driver's creations have
#: its number in their ids, those of tasks have not.
_FORGOTTEN_ACTORS = """
SELECT c.task_id FROM regrow.task_log c
WHERE c.part = :part AND c.job = :job AND c.kind = 1 AND c.max_retries = 0
    AND c.parent_id <> :driver_id
"""
_DELETE_ACTORS = f"""
DELETE FROM regrow.actors a WHERE a.job = :job AND a.state <> 'restarting' AND (
    a.actor_id IN ({_FORGOTTEN_ACTORS}) OR NOT EXISTS (
        SELECT FROM regrow.task_log t
        WHERE t.part = :part AND t.task_id = a.actor_id AND t.status = 1))
"""
#: An exception that a method raised belongs to the history of an actor which may come back; or, if
#: its arguments are trimmed, of one that ended since.
_DISCARD = f"""
WITH gone AS (
    DELETE FROM regrow.task_log t WHERE t.part = :part AND t.job = :job AND (
        t.status IN (3, 4)
        OR t.status = 2 AND t.spec IS NOT NULL AND NOT (t.kind = 2 AND EXISTS (
            SELECT FROM regrow.actors a WHERE a.actor_id = t.actor_id
                AND a.state <> 'dead' AND coalesce(a.max_restarts, 0) <> 0))
        OR t.actor_id IN ({_FORGOTTEN_ACTORS}))
    RETURNING t.task_id, t.status)
INSERT INTO regrow.discarded_tasks (task_id, job)
SELECT task_id, :job FROM gone WHERE status = 4
ON CONFLICT DO NOTHING
"""
#: What failed or was cancelled, and whose parent ended well: nobody will submit it again.
_LEFT_BEHIND = f"""
SELECT t.task_id, t.spec, t.attempt, t.max_retries FROM regrow.task_log t
WHERE t.part = :part AND t.job = :job AND t.status IN (2, 3, 4) AND t.spec IS NOT NULL
    AND NOT (t.status = 2 AND t.kind = 2 AND EXISTS (
        SELECT FROM regrow.actors a WHERE a.actor_id = t.actor_id
            AND a.state <> 'dead' AND coalesce(a.max_restarts, 0) <> 0))
    AND (t.actor_id IS NULL OR t.actor_id NOT IN ({_FORGOTTEN_ACTORS}))
    AND EXISTS (
        SELECT FROM regrow.task_log p
        WHERE p.part = :part AND p.task_id = t.parent_id AND p.status = 1
            AND (p.actor_id IS NULL OR p.actor_id NOT IN ({_FORGOTTEN_ACTORS})))
ORDER BY t.task_id
"""
#: They have no holder until the next sweep, and descend from the new driver.
_GO_ON = """
UPDATE regrow.task_log t SET status = 0, attempt = attempt + 1, holder = 0, holder_incarnation = 0,
    spec = v.spec, error = NULL, finished_at = NULL, given_at = NULL, duration_us = NULL,
    result = NULL, result_size = NULL, result_digest = NULL, result_refs = NULL, actor_seq = NULL
FROM unnest(CAST(:ids AS bytea[]), CAST(:specs AS bytea[])) AS v (task_id, spec)
WHERE t.part = :part AND t.task_id = v.task_id
"""
_NOTE_DISCARDED = """
INSERT INTO regrow.discarded_tasks (task_id, job)
SELECT task_id, :job FROM unnest(CAST(:ids AS bytea[])) AS v (task_id)
ON CONFLICT DO NOTHING
"""
_RESTARTING = """
SELECT a.actor_id, a.job, a.node_id, a.incarnation, t.resources
FROM regrow.actors a
JOIN regrow.task_log t ON t.task_id = a.actor_id AND t.part = :part
WHERE a.job = :job AND a.state = 'restarting' ORDER BY a.actor_id
"""
_CODE = """
SELECT job, part, coalesce(name, '') AS name, on_changed_code FROM regrow.jobs WHERE job = :job
"""
_VERSIONS = """
SELECT f.name, f.fingerprint
FROM (
    SELECT function_id, min(submitted_at) AS first FROM regrow.task_log
    WHERE part = :part AND job = :job AND kind <> 2 AND status = 1 GROUP BY function_id
) AS t JOIN regrow.functions f ON f.function_id = t.function_id
WHERE f.fingerprint IS NOT NULL ORDER BY t.first, f.name, f.fingerprint
"""


def resume_job(connection: Connection, op: ResumeJob) -> JobResumed:
    """The same root again is the same driver: it may be sent again."""
    run(connection, _LOCK_NAME, name=op.name)
    rows = run(connection, _OPEN_RUN, name=op.name)
    if not rows:
        return _begin(connection, op)
    [job] = rows
    if job.opener == op.job_root:
        return _answer(connection, job, job.driver)
    if job.status == "running":
        return JobResumed(0)
    return _answer(connection, job, _resume(connection, op, job))


def _begin(connection: Connection, op: ResumeJob) -> JobResumed:
    [(job,)] = run(
        connection,
        _NEW_RUN,
        job_root=op.job_root,
        driver_id=driver_task_id(op.job_root),
        entrypoint=op.entrypoint,
        pid=op.pid,
        name=op.name,
        runtime=op.runtime,
        detached=op.detached,
        on_changed_code=op.on_changed_code,
    )
    [(part,)] = run(connection, _OWN_PART, job=job)
    run(connection, _ENSURE_PARTITION, part=part)
    return JobResumed(job, op.job_root, 1, op.runtime)


def _resume(connection: Connection, op: ResumeJob, job: Row) -> int:
    """The number of the driver.

    The nodes' rows are locked first, as at the end of a job: a batch is before this or after.
    """
    run(connection, LOCK_NODES)
    which = {"job": job.job, "part": job.part}
    [(driver,)] = run(
        connection,
        _NEXT_DRIVER,
        job=job.job,
        entrypoint=op.entrypoint,
        pid=op.pid,
        detached=op.detached,
        opener=op.job_root,
        on_changed_code=op.on_changed_code,
    )
    run(connection, _RESTART_ACTORS, **which, job_ended=encode(JOB_ENDED))
    run(connection, _DELETE_ACTORS, **which, driver_id=job.driver_id)
    _let_go_on(connection, which, job.driver_id, driver)
    run(connection, _DISCARD, **which, driver_id=job.driver_id)
    return int(driver)


def _let_go_on(
    connection: Connection, which: dict[str, int], driver_id: bytes, driver: int
) -> None:
    """Tasks that ended badly, and whose parents are found and not run again, go on by
    themselves."""
    rows = run(connection, _LEFT_BEHIND, **which, driver_id=driver_id)
    if not rows:
        return
    ids = [row.task_id for row in rows]
    specs = [spec_that_goes_on(row.spec, driver, row.attempt, row.max_retries) for row in rows]
    run(connection, _GO_ON, part=which["part"], ids=ids, specs=specs)
    run(connection, _NOTE_DISCARDED, job=which["job"], ids=ids)


def _answer(connection: Connection, job: Row, driver: int) -> JobResumed:
    if driver == 1:
        return JobResumed(job.job, job.job_root, driver, job.runtime)
    which = {"job": job.job, "part": job.part}
    restarting = [
        RestartingActor(row.actor_id, row.job, (row.node_id, row.incarnation), row.resources)
        for row in run(connection, _RESTARTING, **which)
    ]
    versions = _versions(connection, which)
    return JobResumed(job.job, job.job_root, driver, job.runtime, restarting, versions)


def _versions(connection: Connection, which: dict[str, int]) -> list[tuple[str, bytes]]:
    found = [(row.name, row.fingerprint) for row in run(connection, _VERSIONS, **which)]
    return list(dict.fromkeys(found))


def read_job_code(connection: Connection, op: ReadJobCode) -> JobCode:
    rows = run(connection, _CODE, job=op.job)
    if not rows:  # it was deleted meanwhile
        return JobCode("", "error", [])
    [job] = rows
    versions = _versions(connection, {"job": job.job, "part": job.part})
    return JobCode(job.name, job.on_changed_code, versions)
