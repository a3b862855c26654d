"""Which jobs need what other jobs have made: these are not to be deleted.

A job that runs, or can be resumed, needs another if a reference to one of the other's objects is in
its arguments, results or puts, for it would be made again from the other's log; or if one of its
actors, not dead, has executed the other's calls, for these are its history.  Decides nothing.
"""

from __future__ import annotations

from collections.abc import Sequence

from regrow._cli_database import Connection

_USERS = """
WITH mine AS (
    SELECT task_id AS maker, job FROM regrow.task_log WHERE job = ANY (%(jobs)s)
    UNION ALL
    SELECT substr(object_id, 1, 16), job FROM regrow.object_log WHERE job = ANY (%(jobs)s)
), others AS (
    SELECT job, part, coalesce(name, 'job ' || job) AS name FROM regrow.jobs
    WHERE job <> ALL (%(jobs)s)
        AND (status = 'running' OR name IS NOT NULL AND status <> 'finished')
), held AS (
    SELECT o.name, regrow.object_ids(r.ids) AS object_id
    FROM others o JOIN regrow.task_log t ON t.part = o.part AND t.job = o.job
    CROSS JOIN LATERAL (VALUES (t.deps), (t.nested), (t.result_refs)) AS r (ids)
    WHERE r.ids IS NOT NULL
    UNION ALL
    SELECT o.name, regrow.object_ids(l.refs)
    FROM others o JOIN regrow.object_log l ON l.part = o.part AND l.job = o.job
    WHERE l.refs IS NOT NULL
)
SELECT m.job, h.name FROM held h JOIN mine m ON m.maker = substr(h.object_id, 1, 16)
UNION
SELECT t.job, o.name FROM regrow.task_log t
JOIN regrow.actors a ON a.actor_id = t.actor_id AND a.state <> 'dead'
JOIN others o ON o.job = a.job
WHERE t.job = ANY (%(jobs)s) AND t.kind = 2 AND t.status IN (1, 2)
ORDER BY 1, 2
"""


def users(connection: Connection, jobs: Sequence[int]) -> dict[int, list[str]]:
    """Of these jobs: those that others need, and the names of these, in order."""
    found: dict[int, list[str]] = {}
    for job, name in connection.execute(_USERS, {"jobs": list(jobs)}).fetchall():
        found.setdefault(job, []).append(name)
    return found
