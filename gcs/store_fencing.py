"""Deaths of nodes, and who is given what they held, as transactions on Postgres.

The row of a node is locked by whoever fences it before anything else is read, as ``regrow.append``
locks it first: so a batch is either wholly before its node's death, and what it logged is
reassigned, or it is refused.

Giving tasks away is stamped (``given_at``) with a time that the caller chose before it began: an
operation whose answer was lost can be sent again and answers with what the first try gave away.
"""

from __future__ import annotations

from datetime import datetime

from msgspec import Raw

from regrow.gcs.operations import (
    Fence,
    GivenRows,
    NodeFenced,
    NodeLeft,
    ReadGiven,
    RestartingActor,
    Sweep,
)
from regrow.gcs.store_jobs import functions_of
from regrow.gcs.store_session import Connection, Row, run, running_parts
from regrow.gcs.store_values import ACTOR_LOST, LEFT
from regrow.messages import OK, HeldTask, encode

_NOW = "SELECT regrow.now()"
_FENCE = """
UPDATE regrow.nodes SET alive = false, died_at = :at, reason = :reason
WHERE node_id = :node_id AND incarnation = :incarnation AND alive
    AND (NOT :only_expired OR lease_expires_at < :at)
RETURNING died_at
"""
_DIED = """
SELECT died_at FROM regrow.nodes
WHERE node_id = :node_id AND incarnation = :incarnation AND NOT alive
"""
#: An heir is used if it is alive; the submitter's node in its present incarnation. All calls of an
#: actor go to one heir, so that those of a caller stay in its order.
_REASSIGN = """
WITH living AS (
    SELECT node_id, max(incarnation) AS incarnation FROM regrow.nodes WHERE alive GROUP BY node_id
), heirs AS (
    SELECT node_id, incarnation, row_number() OVER (ORDER BY h.place) - 1 AS place
    FROM unnest(CAST(:heir_nodes AS int[]), CAST(:heir_incarnations AS int[]))
        WITH ORDINALITY AS h (node_id, incarnation, place)
    JOIN regrow.nodes n USING (node_id, incarnation) WHERE n.alive
), orphans AS (
    SELECT t.part, t.task_id, l.node_id, l.incarnation, CASE WHEN t.kind = 2
        THEN get_byte(t.actor_id, 14) * 256 + get_byte(t.actor_id, 15)
        ELSE row_number() OVER (
            PARTITION BY l.node_id IS NULL, t.kind = 2 ORDER BY t.task_id) - 1 END AS place
    FROM regrow.task_log t LEFT JOIN living l ON l.node_id = t.submitter
    WHERE t.status = 0 AND t.part = ANY (CAST(:parts AS int[])) AND NOT EXISTS (
        SELECT FROM regrow.nodes n
        WHERE n.node_id = t.holder AND n.incarnation = t.holder_incarnation AND n.alive)
)
UPDATE regrow.task_log t
SET holder = coalesce(o.node_id, h.node_id),
    holder_incarnation = coalesce(o.incarnation, h.incarnation),
    attempt = attempt + :attempts, given_at = :at
FROM orphans o LEFT JOIN heirs h
    ON o.node_id IS NULL AND h.place = o.place % nullif((SELECT count(*) FROM heirs), 0)
WHERE t.part = o.part AND t.part = ANY (CAST(:parts AS int[]))
    AND t.task_id = o.task_id AND t.status = 0
    AND coalesce(o.node_id, h.node_id) IS NOT NULL
"""
#: Those that restart keep their dead home until one is found: every later death tells them again.
_BURY_ACTORS = """
UPDATE regrow.actors a SET
    state = CASE WHEN v.restarts THEN 'restarting' ELSE 'dead' END,
    restarts = a.restarts + (v.restarts AND a.state = 'alive')::int * :counted,
    error = CASE WHEN v.restarts THEN NULL ELSE CAST(:error AS bytea) END,
    died_at = :at
FROM regrow.actors b
CROSS JOIN LATERAL (
    SELECT b.state = 'restarting' OR regrow.may_restart(b) OR (
        :counted = 0 AND b.state = 'alive' AND coalesce(b.max_restarts, 0) > 0
        AND EXISTS (SELECT FROM regrow.jobs j WHERE j.job = b.job AND j.status = 'running'))
) AS v (restarts)
WHERE a.actor_id = b.actor_id AND a.state IN ('alive', 'restarting') AND NOT EXISTS (
    SELECT FROM regrow.nodes n
    WHERE n.node_id = a.node_id AND n.incarnation = a.incarnation AND n.alive)
"""
_CLOSE_REBUILDS = """
UPDATE regrow.rebuilds r SET finished_at = :at
WHERE r.finished_at IS NULL AND NOT EXISTS (
    SELECT FROM regrow.nodes n
    WHERE n.node_id = r.node_id AND n.incarnation = r.incarnation AND n.alive)
"""
_GIVEN_AT = """
SELECT task_id, holder, function_id, spec, attempt, submitter FROM regrow.task_log
WHERE status = 0 AND given_at = :at AND part = ANY (CAST(:parts AS int[]))
ORDER BY task_id
"""
_GIVEN_TO = """
SELECT task_id, holder, function_id, spec, attempt, submitter FROM regrow.task_log
WHERE status = 0 AND part = ANY (CAST(:parts AS int[]))
    AND (given_at IS NOT NULL OR submitter <> :node_id
        OR task_id = ANY (CAST(:asked AS bytea[])))
    AND holder = :node_id AND holder_incarnation = :incarnation
ORDER BY task_id
"""
_ACTORS_LOST = """
SELECT actor_id, job FROM regrow.actors WHERE died_at = :at AND state = 'dead' ORDER BY actor_id
"""
_RESTARTING = """
SELECT a.actor_id, a.job, a.node_id, a.incarnation, t.resources
FROM regrow.actors a
LEFT JOIN regrow.task_log t ON t.task_id = a.actor_id AND t.part = ANY (CAST(:parts AS int[]))
WHERE a.state = 'restarting' AND (a.died_at = CAST(:at AS timestamptz)
    OR a.node_id = :node_id AND a.incarnation = :incarnation)
ORDER BY a.actor_id
"""

Heirs = list[tuple[int, int]]


def now(connection: Connection) -> datetime:
    """Postgres's clock: the stamp of one operation that gives tasks away."""
    [(at,)] = run(connection, _NOW)
    stamp: datetime = at
    return stamp


def fence(connection: Connection, op: Fence, at: datetime) -> NodeFenced:
    return _end(connection, op, op.reason, op.only_expired, at, attempts=1)


def node_left(connection: Connection, op: NodeLeft, at: datetime) -> NodeFenced:
    return _end(connection, op, op.reason or LEFT, False, at, attempts=0)


def sweep(connection: Connection, op: Sweep, at: datetime) -> NodeFenced:
    _reap(connection, op.heirs, at, attempts=1)
    return _given(connection, True, at)


def _end(
    connection: Connection,
    op: Fence | NodeLeft,
    reason: str,
    only_expired: bool,
    at: datetime,
    attempts: int,
) -> NodeFenced:
    """Not landed, because it was dead already: with what its death gave away, for a caller that
    does not know the answer of an earlier try."""
    node = {"node_id": op.node_id, "incarnation": op.incarnation}
    if run(connection, _FENCE, **node, at=at, reason=reason, only_expired=only_expired):
        _reap(connection, op.heirs, at, attempts)
        return _given(connection, True, at)
    died = run(connection, _DIED, **node)
    if not died:
        return NodeFenced(False, {}, [])
    return _given(connection, died[0][0] == at, died[0][0])


def _reap(connection: Connection, heirs: Heirs, at: datetime, attempts: int) -> None:
    """Reassigns what nodes that are not alive hold, and notes that their actors are dead."""
    run(
        connection,
        _REASSIGN,
        heir_nodes=[node for node, _ in heirs],
        heir_incarnations=[incarnation for _, incarnation in heirs],
        at=at,
        attempts=attempts,
        parts=running_parts(connection),
    )
    # A node that left in good order costs its tasks no attempt and its actors no restart.
    run(connection, _BURY_ACTORS, at=at, error=encode(ACTOR_LOST), counted=attempts)
    run(connection, _CLOSE_REBUILDS, at=at)


def _given(connection: Connection, landed: bool, at: datetime) -> NodeFenced:
    rows = run(connection, _GIVEN_AT, at=at, parts=running_parts(connection))
    reassigned: dict[int, list[HeldTask]] = {}
    for row in rows:
        reassigned.setdefault(row.holder, []).append(held_task(row))
    actors = [(actor_id, job) for actor_id, job in run(connection, _ACTORS_LOST, at=at)]
    restarting = _restarting(connection, at, (0, 0))
    return NodeFenced(landed, reassigned, functions_of(connection, rows), actors, restarting)


def _restarting(
    connection: Connection, at: datetime | None, home: tuple[int, int]
) -> list[RestartingActor]:
    rows = run(
        connection,
        _RESTARTING,
        at=at,
        node_id=home[0],
        incarnation=home[1],
        parts=running_parts(connection),
    )
    return [
        RestartingActor(row.actor_id, row.job, (row.node_id, row.incarnation), row.resources)
        for row in rows
    ]


def read_given(connection: Connection, op: ReadGiven) -> GivenRows:
    parts, node = running_parts(connection), {"node_id": op.node_id, "incarnation": op.incarnation}
    rows = run(connection, _GIVEN_TO, parts=parts, asked=op.asked, **node)
    restarting = _restarting(connection, None, (op.node_id, op.incarnation))
    tasks = [held_task(row) for row in rows]
    return GivenRows(tasks, functions_of(connection, rows), restarting)


def held_task(
    row: Row, digests: list[bytes] | None = None, status: int = OK, answers: bytes = b"",
    driver: int = 0,
) -> HeldTask:  # fmt: skip
    """From a row with ``spec``, ``attempt`` and ``submitter``."""
    made = digests or []
    return HeldTask(Raw(row.spec), row.attempt, row.submitter, made, status, answers, driver)
