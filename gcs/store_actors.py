"""Giving an actor that restarts to a node, with all that it did since it was saved, and trimming
what is not needed for that, as transactions on Postgres."""

from __future__ import annotations

from regrow.gcs.operations import ActorRestored, CallsTrimmed, RestoreActor, TrimCalls
from regrow.gcs.store_fencing import held_task
from regrow.gcs.store_jobs import functions_of
from regrow.gcs.store_recovery import answers_of, digests_of, further_returns
from regrow.gcs.store_session import Connection, run
from regrow.gcs.store_values import NO_RESTART_LEFT, STATE_LOST
from regrow.messages import encode, failure_decoder

_ACTOR = """
SELECT state, job, node_id, incarnation, error, trimmed_seq FROM regrow.actors
WHERE actor_id = :actor_id FOR UPDATE
"""
#: Against its fencing, which locks the row for itself.
_TARGET = """
SELECT 1 FROM regrow.nodes WHERE node_id = :node_id AND incarnation = :incarnation AND alive
FOR SHARE
"""
_CHECKPOINT = """
SELECT actor_seq, object_id, custom FROM regrow.checkpoints WHERE actor_id = :actor_id
ORDER BY actor_seq DESC LIMIT 1
"""
_STATE_LOST = """
UPDATE regrow.actors SET state = 'dead', died_at = regrow.now(), error = :error
WHERE actor_id = :actor_id
"""
_MOVE = """
UPDATE regrow.actors SET node_id = :node_id, incarnation = :incarnation WHERE actor_id = :actor_id
"""
#: What it executed, for whatever job: calls that failed before they reached it have no place in its
#: order.
_EXECUTED = """
SELECT t.task_id FROM regrow.task_log t
WHERE t.actor_id = :actor_id AND t.status IN (1, 2)
    AND (t.kind = 1 OR t.actor_seq > :after)
"""
_CLOSE = f"""
UPDATE regrow.rebuilds r SET finished_at = regrow.now()
WHERE r.finished_at IS NULL AND r.task_id IN ({_EXECUTED})
    AND (r.node_id, r.incarnation) <> (:node_id, :incarnation)
"""
_OPEN = f"""
INSERT INTO regrow.rebuilds (task_id, attempt, node_id, incarnation, started_at)
SELECT t.task_id,
    t.attempt + 1 + (SELECT count(*) FROM regrow.rebuilds b WHERE b.task_id = t.task_id),
    :node_id, :incarnation, regrow.now()
FROM regrow.task_log t WHERE t.task_id IN ({_EXECUTED})
ON CONFLICT (task_id) WHERE finished_at IS NULL DO NOTHING
"""
_CALLS = f"""
SELECT t.task_id, t.kind, t.function_id, t.spec, r.attempt, t.submitter, t.status, t.num_returns,
    t.attempt AS ran, t.result_digest AS digest, coalesce(t.actor_seq, 0) AS actor_seq, j.driver
FROM regrow.task_log t JOIN regrow.rebuilds r ON r.task_id = t.task_id AND r.finished_at IS NULL
JOIN regrow.jobs j ON j.job = t.job
WHERE t.task_id IN ({_EXECUTED})
ORDER BY t.kind, t.actor_seq
"""


def restore_actor(connection: Connection, op: RestoreActor) -> ActorRestored:
    """The same target again is granted again: it may not have heard of it."""
    rows = run(connection, _ACTOR, actor_id=op.actor_id)
    if not rows:
        return ActorRestored(False)
    [actor] = rows
    if actor.state == "dead":
        error = NO_RESTART_LEFT if actor.error is None else failure_decoder.decode(actor.error)
        return ActorRestored(False, actor.job, error=error)
    home = (actor.node_id, actor.incarnation)
    target = {"node_id": op.target[0], "incarnation": op.target[1]}
    if actor.state != "restarting" or home not in (op.home, op.target):
        return ActorRestored(False, actor.job)
    if not run(connection, _TARGET, **target):
        return ActorRestored(False, actor.job)
    saved = run(connection, _CHECKPOINT, actor_id=op.actor_id)
    after = saved[0].actor_seq if saved else 0
    if after < actor.trimmed_seq:
        run(connection, _STATE_LOST, actor_id=op.actor_id, error=encode(STATE_LOST))
        return ActorRestored(False, actor.job, error=STATE_LOST)
    which = {"actor_id": op.actor_id, "after": after}
    run(connection, _MOVE, actor_id=op.actor_id, **target)
    run(connection, _CLOSE, **which, **target)
    run(connection, _OPEN, **which, **target)
    executed = run(connection, _CALLS, **which)
    if not executed or executed[0].kind != 1:
        return ActorRestored(False, actor.job)
    objects = further_returns(connection, executed)
    answers = answers_of(connection, executed)
    held = [
        held_task(
            row, digests_of(row, objects) if row.status == 1 else [], row.status,
            answers.get(row.task_id, b""), row.driver,
        )
        for row in executed
    ]  # fmt: skip
    return ActorRestored(
        True,
        actor.job,
        held[0],
        held[1:],
        max(after, *(row.actor_seq for row in executed)),
        functions_of(connection, executed[:1]),
        saved[0].object_id if saved else b"",
        after,
        bool(saved and saved[0].custom),
    )


# --- trimming -------------------------------------------------------------------------------------

#: Actors of which two states are kept, the older one after calls that are not trimmed.
_TRIMMABLE = """
SELECT a.actor_id FROM regrow.actors a JOIN regrow.checkpoints k USING (actor_id)
WHERE a.state <> 'dead'
GROUP BY a.actor_id, a.trimmed_seq
HAVING count(*) >= 2 AND min(k.actor_seq) > a.trimmed_seq
ORDER BY a.actor_id
"""
#: Locked in this order: the actor, as whoever restores it does; and its states, which a node that
#: cannot read one takes back.
_TRIMMED_SO_FAR = """
SELECT trimmed_seq FROM regrow.actors WHERE actor_id = :actor_id AND state <> 'dead' FOR UPDATE
"""
_KEPT = """
SELECT k.actor_seq, EXISTS (SELECT FROM regrow.stored_objects s WHERE s.object_id = k.object_id)
    OR EXISTS (
        SELECT FROM regrow.object_log o
        WHERE o.object_id = k.object_id AND o.data IS NOT NULL) AS safe
FROM regrow.checkpoints k WHERE k.actor_id = :actor_id ORDER BY k.actor_seq FOR SHARE OF k
"""
#: For whatever job it was called.
_TRIM = """
UPDATE regrow.task_log SET spec = NULL
WHERE actor_id = :actor_id AND kind = 2 AND spec IS NOT NULL
    AND actor_seq > :after AND actor_seq <= :up_to
"""
_NOTE_TRIMMED = "UPDATE regrow.actors SET trimmed_seq = :up_to WHERE actor_id = :actor_id"


def trim_calls(connection: Connection, op: TrimCalls) -> CallsTrimmed:
    """Actors in the order of their ids, each as far as the limit allows."""
    left = op.limit
    for (actor_id,) in run(connection, _TRIMMABLE):
        rows = run(connection, _TRIMMED_SO_FAR, actor_id=actor_id)
        kept = run(connection, _KEPT, actor_id=actor_id)
        if not rows or len(kept) < 2 or not all(row.safe for row in kept):
            continue
        after = rows[0].trimmed_seq
        if kept[0].actor_seq <= after:
            continue
        if not left:
            return CallsTrimmed(True)
        up_to = min(kept[0].actor_seq, after + left)
        run(connection, _TRIM, actor_id=actor_id, after=after, up_to=up_to)
        run(connection, _NOTE_TRIMMED, actor_id=actor_id, up_to=up_to)
        left -= up_to - after
        if up_to < kept[0].actor_seq:
            return CallsTrimmed(True)
    return CallsTrimmed(False)
