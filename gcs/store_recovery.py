"""What recovery asks of the log: tasks, objects, lineage, and the right to run a task again."""

from __future__ import annotations

from msgspec.structs import replace

from regrow.gcs.operations import (
    GrantRebuilds,
    Lineage,
    LineageTask,
    ObjectRow,
    ObjectRows,
    ReadLineage,
    ReadObjects,
    ReadTasks,
    RebuildsGranted,
    TaskRows,
)
from regrow.gcs.store_fencing import held_task
from regrow.gcs.store_jobs import functions_of
from regrow.gcs.store_session import Connection, Row, Rows, by_id, run
from regrow.gcs.store_values import CANCELLED, cancelled_value, outward
from regrow.ids import OBJECT_ID_SIZE, TASK_ID_SIZE, answers_object_id, is_put, object_id, producer
from regrow.messages import (
    OK,
    PENDING,
    TASK,
    HeldTask,
    TaskState,
    Value,
    keyed_content,
)

_TASKS = """
SELECT t.task_id, t.status, t.kind, t.num_returns, t.max_retries, t.result, t.result_digest,
    coalesce(t.result_size, octet_length(t.result), 0) AS size, t.result_refs,
    coalesce(n.node_id, 0) AS holder
FROM regrow.task_log t LEFT JOIN regrow.nodes n
    ON n.node_id = t.holder AND n.incarnation = t.holder_incarnation AND n.alive
WHERE t.task_id = ANY (CAST(:ids AS bytea[]))
    AND (CAST(:parts AS int[]) IS NULL OR t.part = ANY (CAST(:parts AS int[])))
"""
_SPECS = """
SELECT task_id, spec FROM regrow.task_log
WHERE task_id = ANY (CAST(:ids AS bytea[])) AND spec IS NOT NULL
    AND (CAST(:parts AS int[]) IS NULL OR part = ANY (CAST(:parts AS int[])))
"""
_OBJECTS = """
SELECT o.object_id, o.task_id, o.size, o.digest, o.data, o.refs,
    o.task_id = j.driver_id AS by_driver
FROM regrow.object_log o JOIN regrow.jobs j ON j.job = o.job
WHERE o.object_id = ANY (CAST(:ids AS bytea[]))
    AND (CAST(:parts AS int[]) IS NULL OR o.part = ANY (CAST(:parts AS int[])))
"""
_STORED = """
SELECT object_id, path FROM regrow.stored_objects WHERE object_id = ANY (CAST(:ids AS bytea[]))
"""


def _split(joined: bytes | None) -> list[bytes]:
    """Object ids from a column that holds 20 bytes for each."""
    if not joined:
        return []
    return [joined[at : at + OBJECT_ID_SIZE] for at in range(0, len(joined), OBJECT_ID_SIZE)]


# --- tasks ----------------------------------------------------------------------------------------


def read_tasks(connection: Connection, op: ReadTasks) -> TaskRows:
    tasks = by_id(connection, _TASKS, set(op.task_ids))
    objects = further_returns(connection, list(tasks.values()))
    states = [_task_state(task_id, tasks.get(task_id), objects) for task_id in op.task_ids]
    specs = by_id(connection, _SPECS, op.keyed)
    return TaskRows(
        [
            replace(state, content=keyed_content(specs[state.task_id].spec)[1])
            if state.task_id in specs
            else state
            for state in states
        ]
    )


def _task_state(task_id: bytes, row: Row | None, objects: dict[bytes, Row]) -> TaskState:
    if row is None:
        return TaskState(task_id, False)
    if row.status == PENDING:
        return TaskState(task_id, True, PENDING, row.holder)
    wanted = [object_id(task_id, index) for index in range(row.num_returns)]
    values = [value for oid in wanted if (value := _value(oid, row, objects)) is not None]
    return TaskState(task_id, True, outward(row.status), values=values)


def _value(oid: bytes, row: Row, objects: dict[bytes, Row]) -> Value | None:
    """A return of a finished task; all of them share an error. None: it has no such return."""
    if row.status == CANCELLED:
        return cancelled_value(oid)
    if int.from_bytes(oid[TASK_ID_SIZE:], "big") >= row.num_returns:
        return None
    if row.status == OK and oid != object_id(row.task_id, 0):
        other = objects.get(oid)
        return None if other is None else _logged_value(other)
    digest, refs = row.result_digest or b"", _split(row.result_refs)
    return Value(oid, row.status, row.size, row.result, digest, refs)


def _logged_value(row: Row) -> Value:
    return Value(row.object_id, OK, row.size, row.data, row.digest or b"", _split(row.refs))


# --- objects --------------------------------------------------------------------------------------


def read_objects(connection: Connection, op: ReadObjects) -> ObjectRows:
    wanted = set(op.object_ids)
    first = {oid for oid in wanted if oid == object_id(producer(oid), 0)}
    objects = by_id(connection, _OBJECTS, wanted - first)
    makers = {row.task_id if is_put(oid) else producer(oid) for oid, row in objects.items()}
    makers |= {producer(oid) for oid in wanted if not is_put(oid)}
    tasks = by_id(connection, _TASKS, makers)
    stored = {row.object_id: row.path for row in run(connection, _STORED, ids=sorted(wanted))}
    return ObjectRows(
        [
            _put(oid, objects.get(oid), tasks, stored.get(oid, ""))
            if is_put(oid)
            else _return(oid, tasks.get(producer(oid)), objects, stored.get(oid, ""))
            for oid in op.object_ids
        ]
    )


def _put(oid: bytes, row: Row | None, tasks: dict[bytes, Row], stored: str) -> ObjectRow:
    if row is None:
        return ObjectRow(oid, False)
    value = _logged_value(row)
    if row.by_driver:
        return ObjectRow(oid, True, OK, value=value, stored=stored, made_by="driver_put")
    return ObjectRow(
        oid,
        True,
        OK,
        value=value,
        stored=stored,
        producer=row.task_id,
        max_retries=_max_retries(tasks.get(row.task_id)),
        made_by="put",
    )


def _return(oid: bytes, row: Row | None, objects: dict[bytes, Row], stored: str) -> ObjectRow:
    if row is None:
        return ObjectRow(oid, False)
    value = None
    if row.status != PENDING:
        value = _value(oid, row, objects)
        if value is None:
            return ObjectRow(oid, False)
    return ObjectRow(
        oid,
        True,
        outward(row.status),
        row.holder if row.status == PENDING else 0,
        value,
        stored,
        row.task_id,
        _max_retries(row),
        "task" if row.kind == TASK else "actor_call",
    )


def _max_retries(producer_row: Row | None) -> int:
    """How often the producer may run again; what actors did is not run again."""
    if producer_row is None or producer_row.kind != TASK:
        return 0
    retries: int = producer_row.max_retries
    return retries


# --- lineage --------------------------------------------------------------------------------------

_LINEAGE = """
SELECT level, task_id, status, kind, max_retries, num_returns, resources, digest, needs, makers,
    paths, unknown
FROM regrow.lineage(CAST(:ids AS bytea[]), CAST(:parts AS int[]), :depth, :limit)
"""
_TASK_PARTS = """
SELECT task_id, part FROM regrow.task_log
WHERE task_id = ANY (CAST(:ids AS bytea[]))
    AND (CAST(:parts AS int[]) IS NULL OR part = ANY (CAST(:parts AS int[])))
"""
_OBJECT_PARTS = """
SELECT DISTINCT part FROM regrow.task_log
WHERE task_id IN (SELECT substr(w, 1, 16) FROM unnest(CAST(:ids AS bytea[])) AS w)
UNION SELECT part FROM regrow.object_log WHERE object_id = ANY (CAST(:ids AS bytea[]))
"""


def read_lineage(connection: Connection, op: ReadLineage) -> Lineage:
    """Levels are read whole: ``limit`` is looked at between them. Within a level, and within
    ``needs``, in the order of the ids."""
    rows = _walk(connection, op)
    objects = further_returns(connection, rows)
    return Lineage([_lineage_task(row, objects) for row in rows], _is_complete(op, rows))


def _walk(connection: Connection, op: ReadLineage) -> Rows:
    """In the partitions of the tasks asked for. If an argument is of another job, which began on
    another day, once more with that job's."""
    parts = {row.part for row in by_id(connection, _TASK_PARTS, op.task_ids).values()}
    while True:
        limits = {"depth": op.depth, "limit": op.limit}
        rows = run(connection, _LINEAGE, ids=op.task_ids, parts=sorted(parts), **limits)
        unknown = sorted({oid for row in rows for oid in row.unknown or ()})
        others = (
            {row.part for row in run(connection, _OBJECT_PARTS, ids=unknown)} if unknown else set()
        )
        if others <= parts:
            return rows
        parts |= others


def _is_complete(op: ReadLineage, rows: Rows) -> bool:
    """Whether the walk ended by itself. Who was asked for and is not there is not in the log."""
    last = [row for row in rows if row.level == rows[-1].level]
    if not last or (last[0].level + 1 < op.depth and len(rows) < op.limit):
        return True
    asked = set(op.task_ids)
    for row in rows[: -len(last)]:
        asked.update(row.makers or ())
    return all(maker is None or maker in asked for row in last for maker in row.makers or ())


def _lineage_task(row: Row, objects: dict[bytes, Row]) -> LineageTask:
    needs: list[bytes] = row.needs or []
    paths = zip(needs, row.paths or (), strict=True)
    return LineageTask(
        row.task_id,
        outward(row.status),
        row.kind,
        row.max_retries,
        needs,
        [(oid, path) for oid, path in paths if path is not None],
        digests_of(row, objects),
        row.level,
        row.resources,
    )


def digests_of(row: Row, objects: dict[bytes, Row]) -> list[bytes]:
    """Of a finished task's returns, by index; empty bytes for what has none."""
    if row.status != OK or not row.num_returns:
        return []
    others = (objects.get(object_id(row.task_id, index)) for index in range(1, row.num_returns))
    return [row.digest or b"", *((other.digest or b"") if other else b"" for other in others)]


def further_returns(connection: Connection, rows: Rows) -> dict[bytes, Row]:
    """The second and further returns of tasks that ended well."""
    further = {
        object_id(row.task_id, index)
        for row in rows
        if row.status == OK
        for index in range(1, row.num_returns)
    }
    return by_id(connection, _OBJECTS, further)


def answers_of(connection: Connection, rows: Rows) -> dict[bytes, bytes]:
    """What ``wait`` and timed ``get`` answered in these calls, where they were called. ``ran``: the
    attempt that ended."""
    ids = {answers_object_id(row.task_id, row.ran) for row in rows}
    found = by_id(connection, _OBJECTS, ids)
    return {producer(oid): row.data for oid, row in found.items() if row.data is not None}


# --- rebuilds -------------------------------------------------------------------------------------

_ALIVE = """
SELECT 1 FROM regrow.nodes WHERE node_id = :node_id AND incarnation = :incarnation AND alive
"""
#: Finished tasks whose rebuild by a living node other than this is not under way.
_OPEN = """
SELECT r.task_id, r.node_id FROM regrow.rebuilds r JOIN regrow.nodes n USING (node_id, incarnation)
WHERE r.task_id = ANY (CAST(:ids AS bytea[])) AND r.finished_at IS NULL AND n.alive
    AND (r.node_id, r.incarnation) <> (:node_id, :incarnation)
"""
_CLOSE = """
UPDATE regrow.rebuilds r SET finished_at = regrow.now()
WHERE r.task_id = ANY (CAST(:ids AS bytea[])) AND r.finished_at IS NULL
    AND (r.node_id, r.incarnation) <> (:node_id, :incarnation)
"""
#: The runs of a task are numbered through: its attempts, then its rebuilds.
_OPEN_REBUILDS = """
INSERT INTO regrow.rebuilds (task_id, attempt, node_id, incarnation, started_at)
SELECT t.task_id,
    t.attempt + 1 + (SELECT count(*) FROM regrow.rebuilds b WHERE b.task_id = t.task_id),
    :node_id, :incarnation, regrow.now()
FROM regrow.task_log t
WHERE t.task_id = ANY (CAST(:ids AS bytea[])) AND t.part = ANY (CAST(:parts AS int[]))
    AND t.status = 1 AND t.spec IS NOT NULL
ORDER BY t.task_id
ON CONFLICT (task_id) WHERE finished_at IS NULL DO NOTHING
"""
_GRANTED = """
SELECT t.task_id, t.function_id, t.spec, r.attempt, t.submitter, t.status, t.num_returns,
    t.result_digest AS digest, j.driver
FROM regrow.rebuilds r JOIN regrow.task_log t USING (task_id) JOIN regrow.jobs j USING (job)
WHERE r.task_id = ANY (CAST(:ids AS bytea[])) AND r.finished_at IS NULL
    AND t.part = ANY (CAST(:parts AS int[]))
    AND (r.node_id, r.incarnation) = (:node_id, :incarnation) AND t.spec IS NOT NULL
"""


def grant_rebuilds(connection: Connection, op: GrantRebuilds) -> RebuildsGranted:
    """Only tasks that ended well are granted, and to a living node only. A rebuild left open by a
    dead node is closed; one of this node is granted again as it is."""
    holder = {"node_id": op.holder[0], "incarnation": op.holder[1]}
    if not run(connection, _ALIVE, **holder):
        return RebuildsGranted([], [], [])
    rebuilt = run(connection, _OPEN, ids=op.task_ids, **holder)
    elsewhere = {row.task_id: row.node_id for row in rebuilt}
    ids = sorted(set(op.task_ids) - elsewhere.keys())
    run(connection, _CLOSE, ids=ids, **holder)
    parts = sorted({row.part for row in by_id(connection, _TASK_PARTS, ids).values()})
    run(connection, _OPEN_REBUILDS, ids=ids, parts=parts, **holder)
    granted = run(connection, _GRANTED, ids=ids, parts=parts, **holder)
    rows = {row.task_id: row for row in granted}
    objects = further_returns(connection, list(rows.values()))
    tasks = _in_order(op.task_ids, rows, objects)
    left_out = [(task_id, elsewhere[task_id]) for task_id in op.task_ids if task_id in elsewhere]
    return RebuildsGranted(tasks, functions_of(connection, list(rows.values())), left_out)


def _in_order(
    task_ids: list[bytes], rows: dict[bytes, Row], objects: dict[bytes, Row]
) -> list[HeldTask]:
    granted = [rows[task_id] for task_id in task_ids if task_id in rows]
    return [held_task(row, digests_of(row, objects), driver=row.driver) for row in granted]
