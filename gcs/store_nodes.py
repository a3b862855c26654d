"""Leadership, nodes and their leases, as transactions on Postgres.

Who leads and whose lease has expired is judged by Postgres's clock (``regrow.now()``) only.
"""

from __future__ import annotations

import json

from regrow.gcs.operations import (
    Done,
    Lead,
    Leadership,
    Leases,
    NodeDrains,
    NodeRegistered,
    NodeRows,
    ReadLeases,
    ReadNodes,
    RegisterNode,
    UpdateResources,
    WriteEvent,
)
from regrow.gcs.store_session import Connection, Row, run
from regrow.gcs.store_values import CAME_BACK, DRAINING
from regrow.messages import NodeView

# --- leadership -----------------------------------------------------------------------------------

_RENEW = """
UPDATE regrow.cluster
SET expires_at = regrow.now() + make_interval(secs => :ttl_s), backend_pid = pg_backend_pid()
WHERE epoch = :epoch AND holder = :holder
RETURNING epoch
"""
_END_PREDECESSOR = """
SELECT pg_terminate_backend(a.pid)
FROM regrow.cluster c JOIN pg_stat_activity a ON a.application_name = c.session
WHERE c.expires_at <= regrow.now() AND c.session NOT IN ('', :session)
    AND a.datname = current_database()
"""
_AWAIT_WRITES = """
SELECT 1 FROM regrow.cluster WHERE expires_at <= regrow.now() OR holder = :holder FOR UPDATE
"""
_ACQUIRE = """
UPDATE regrow.cluster
SET epoch = epoch + 1, holder = :holder, session = :session, backend_pid = pg_backend_pid(),
    expires_at = regrow.now() + make_interval(secs => :ttl_s)
WHERE expires_at <= regrow.now() OR holder = :holder
RETURNING epoch
"""
_IDENTITY = "SELECT cluster_id, extract(epoch FROM regrow.now())::float8 FROM regrow.cluster"
#: A long write keeps successors out with this, but not our own renewals, which change no key.
_IS_LEADER = "SELECT 1 FROM regrow.cluster WHERE epoch = :epoch FOR KEY SHARE"


def lead(connection: Connection, op: Lead, session: str) -> Leadership:
    """Renews, or acquires what has expired; then connections of the predecessor are ended, which
    may hold the row. ``session`` is the application_name of ours."""
    if op.epoch:
        rows = run(connection, _RENEW, ttl_s=op.ttl_s, epoch=op.epoch, holder=op.holder)
    else:
        run(connection, _END_PREDECESSOR, session=session)
        run(connection, _AWAIT_WRITES, holder=op.holder)
        rows = run(connection, _ACQUIRE, ttl_s=op.ttl_s, holder=op.holder, session=session)
    [(cluster_id, now)] = run(connection, _IDENTITY)
    return Leadership(rows[0][0] if rows else 0, cluster_id.bytes, now)


def is_leader(connection: Connection, epoch: int) -> bool:
    """Locks the row against a successor until this transaction ends. False: another leads."""
    return bool(run(connection, _IS_LEADER, epoch=epoch))


# --- nodes ----------------------------------------------------------------------------------------

_END_INCARNATIONS = """
UPDATE regrow.nodes SET alive = false, died_at = regrow.now(), reason = :reason
WHERE node_id = :node_id AND alive
RETURNING incarnation
"""
_LAST_INCARNATION = "SELECT max(incarnation) FROM regrow.nodes WHERE node_id = :node_id"
_NEW_NODE_ID = "SELECT nextval('regrow.node_ids')"
_REGISTER = """
INSERT INTO regrow.nodes (
    node_id, incarnation, is_head, lease_expires_at, lease_ttl, registered_at, host, port, hostname,
    socket_path, total, labels, object_store_memory)
VALUES (
    :node_id, :incarnation, :is_head, regrow.now() + make_interval(secs => :ttl_s),
    make_interval(secs => :ttl_s), regrow.now(), :host, :port, :hostname, :socket_path,
    CAST(:total AS jsonb), CAST(:labels AS jsonb), :object_store_memory)
"""
_LEASES = """
SELECT node_id, incarnation, extract(epoch FROM lease_expires_at - regrow.now())::float8
FROM regrow.nodes WHERE alive ORDER BY node_id, incarnation
"""
_UP = "SELECT extract(epoch FROM clock_timestamp() - pg_postmaster_start_time())::float8"
_NODES = """
SELECT DISTINCT ON (node_id) node_id, incarnation, host, port, socket_path, total, labels, alive,
    is_head, hostname, object_store_memory
FROM regrow.nodes ORDER BY node_id, incarnation DESC
"""
_UPDATE_RESOURCES = """
UPDATE regrow.nodes SET total = CAST(:total AS jsonb) WHERE node_id = :node_id AND alive
"""
_NODE_DRAINS = """
WITH draining AS (
    UPDATE regrow.nodes SET reason = :reason
    WHERE node_id = :node_id AND incarnation = :incarnation AND alive AND reason IS NULL
    RETURNING 1
)
INSERT INTO regrow.events (at, kind, message)
SELECT regrow.now(), 'node_draining', :message FROM draining
"""
_EVENT = """
INSERT INTO regrow.events (at, kind, subject, message)
VALUES (regrow.now(), :kind, :subject, :message)
"""


def register_node(connection: Connection, op: RegisterNode) -> NodeRegistered:
    """A node id that is not known (the database is another one) is answered with a new id."""
    view, node_id, fenced, incarnation = op.view, op.view.node_id, 0, 1
    if node_id:
        rows = run(connection, _END_INCARNATIONS, node_id=node_id, reason=CAME_BACK)
        fenced = max((row[0] for row in rows), default=0)
        [(last,)] = run(connection, _LAST_INCARNATION, node_id=node_id)
        incarnation = (last or 0) + 1
    if incarnation == 1:
        [(node_id,)] = run(connection, _NEW_NODE_ID)
    run(
        connection,
        _REGISTER,
        node_id=node_id,
        incarnation=incarnation,
        is_head=view.is_head,
        ttl_s=op.ttl_s,
        host=view.host,
        port=view.port,
        hostname=view.hostname,
        socket_path=view.socket_path,
        total=json.dumps(view.total),
        labels=json.dumps(view.labels),
        object_store_memory=view.object_store_memory,
    )
    return NodeRegistered(node_id, incarnation, fenced)


def read_leases(connection: Connection, op: ReadLeases) -> Leases:
    nodes = [(node, incarnation, left_s) for node, incarnation, left_s in run(connection, _LEASES)]
    [(up_s,)] = run(connection, _UP)
    return Leases(nodes, up_s)


def read_nodes(connection: Connection, op: ReadNodes) -> NodeRows:
    return NodeRows([_node_view(row) for row in run(connection, _NODES)])


def _node_view(row: Row) -> NodeView:
    return NodeView(
        node_id=row.node_id,
        incarnation=row.incarnation,
        host=row.host,
        port=row.port,
        socket_path=row.socket_path,
        total=row.total,
        available=row.total if row.alive else {},
        queued=0,
        labels=row.labels,
        alive=row.alive,
        is_head=row.is_head,
        hostname=row.hostname,
        object_store_memory=row.object_store_memory,
    )


def update_resources(connection: Connection, op: UpdateResources) -> Done:
    run(connection, _UPDATE_RESOURCES, node_id=op.node_id, total=json.dumps(op.total))
    return Done()


def node_drains(connection: Connection, op: NodeDrains) -> Done:
    run(
        connection,
        _NODE_DRAINS,
        node_id=op.node_id,
        incarnation=op.incarnation,
        reason=DRAINING + op.reason,
        message=f"node {op.node_id} drains: {op.reason}",
    )
    return Done()


def write_event(connection: Connection, op: WriteEvent) -> Done:
    event = op.event
    run(connection, _EVENT, kind=event.kind, subject=event.subject or None, message=event.message)
    return Done()
