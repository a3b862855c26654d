"""What the log says, as plain rows, whichever database it is in.

Read from Postgres or from the simulated store, so that one checker judges both. Judges nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import msgspec

from regrow.chaos.sim_store import SimStore
from regrow.chaos.sim_tables import TaskRow
from regrow.gcs.store_values import CANCELLED
from regrow.ids import object_id
from regrow.messages import ACTOR_CALL, ACTOR_CREATION, OK, PENDING

OBJECT_ID_SIZE: Final = 20
#: Kinds of tasks, as the public view has them.
TASK, CREATION, CALL = "task", "actor_creation", "actor_call"
FINISHED, FAILED = "FINISHED", "FAILED"


class LoggedTask(msgspec.Struct):
    """A task, a creation of an actor or a call of one."""

    task_id: bytes
    parent_id: bytes
    name: str
    kind: str
    #: PENDING, FINISHED, FAILED or CANCELLED.
    state: str
    function_id: bytes = b""
    actor_id: bytes = b""
    #: Place in the order of execution by its actor, from 1; 0: none.
    actor_seq: int = 0
    node: int = 1
    incarnation: int = 1
    attempt: int = 1
    max_retries: int = 3
    num_returns: int = 1
    deps: list[bytes] = []
    nested: list[bytes] = []
    result_refs: list[bytes] = []
    #: Whether the first return value is in the row.
    inline: bool = True
    digest: bytes = b"digest"
    #: Seconds on the database's clock; None: unknown there.
    finished_s: float | None = None

    @property
    def ended(self) -> bool:
        """Whether it has finished or failed."""
        return self.state in (FINISHED, FAILED)

    def __str__(self) -> str:
        return f"{self.kind} {self.task_id.hex()} ({self.name})"


class LoggedObject(msgspec.Struct):
    """A put, or a second or further return value."""

    object_id: bytes
    task_id: bytes
    refs: list[bytes] = []
    inline: bool = True


class LoggedNode(msgspec.Struct):
    """One incarnation of a node."""

    node: int
    incarnation: int
    alive: bool = True
    registered_s: float | None = None
    died_s: float | None = None


class Logbook(msgspec.Struct):
    """The whole log of a run."""

    tasks: list[LoggedTask] = []
    objects: list[LoggedObject] = []
    nodes: list[LoggedNode] = []
    #: The drivers of jobs, as the parents of what they submit; those that are not detached actors.
    drivers: set[bytes] = set()
    detached: set[bytes] = set()
    functions: set[bytes] = set()
    stored: set[bytes] = set()
    #: How often each actor may restart, by the actor's id.
    max_restarts: dict[bytes, int] = {}
    open_rebuilds: int = 0
    #: Names of tasks that made something else when they ran again.
    differing: list[str] = []


Rows = Callable[..., list[tuple[Any, ...]]]

_TASKS: Final = (
    "SELECT task_id, parent_id, name, kind, state, function_id, actor_id, actor_seq, node_id, "
    "incarnation, attempt, max_retries, num_returns, deps, nested, result_refs, "
    "result IS NOT NULL, result_digest, extract(epoch FROM finished_at)::float8 FROM regrow.tasks"
)


def from_postgres(rows: Rows) -> Logbook:
    """The log behind a function that answers queries."""
    tasks = [
        LoggedTask(
            task_id, parent, name, kind, state, function, actor or b"", seq or 0, node, life,
            attempt, retries, returns, _ids(deps), _ids(nested), _ids(refs), inline, digest or b"",
            finished,
        )
        for (
            task_id, parent, name, kind, state, function, actor, seq, node, life, attempt,
            retries, returns, deps, nested, refs, inline, digest, finished,
        ) in rows(_TASKS)
    ]  # fmt: skip
    objects = [
        LoggedObject(oid, task, _ids(refs), inline)
        for oid, task, refs, inline in rows(
            "SELECT object_id, task_id, refs, data IS NOT NULL FROM regrow.object_log"
        )
    ]
    nodes = [
        LoggedNode(*row)
        for row in rows(
            "SELECT node_id, incarnation, alive, extract(epoch FROM registered_at)::float8, "
            "extract(epoch FROM died_at)::float8 FROM regrow.nodes"
        )
    ]
    jobs = rows("SELECT driver_id, detached FROM regrow.jobs")
    [(rebuilds,)] = rows("SELECT count(*) FROM regrow.rebuilds WHERE finished_at IS NULL")
    return Logbook(
        tasks, objects, nodes,
        drivers={driver for driver, detached in jobs if not detached},
        detached={driver for driver, detached in jobs if detached},
        functions={function for (function,) in rows("SELECT function_id FROM regrow.functions")},
        stored={oid for (oid,) in rows("SELECT object_id FROM regrow.stored_objects")},
        max_restarts={
            actor: most or 0
            for actor, most in rows("SELECT actor_id, max_restarts FROM regrow.actors")
        },
        open_rebuilds=rebuilds,
        differing=[
            name
            for (name,) in rows(
                "SELECT t.name FROM regrow.rebuilds r JOIN regrow.tasks t USING (task_id) "
                "WHERE r.differs"
            )
        ],
    )  # fmt: skip


def from_store(store: SimStore) -> Logbook:
    """The log of a simulation. It has no times."""
    book = Logbook(
        nodes=[LoggedNode(*key, alive=row.view.alive) for key, row in store.nodes.items()],
        drivers={job.driver_id for job in store.jobs.values() if not job.detached},
        detached={job.driver_id for job in store.jobs.values() if job.detached},
        functions=set(store.functions),
        stored=set(store.stored),
        max_restarts={key: actor.max_restarts or 0 for key, actor in store.actors.items()},
        open_rebuilds=sum(rebuild.open for rebuild in store.rebuilds.values()),
    )
    for task_id, row in store.tasks.items():
        book.tasks.append(_task_of(task_id, row))
        others = row.outcome.returns[1:] if row.outcome is not None else []
        book.objects += [
            LoggedObject(object_id(task_id, i), task_id, list(made.refs), made.data is not None)
            for i, made in enumerate(others, 1)
        ]
    book.objects += [
        LoggedObject(oid, put.parent_id, list(put.value.refs), put.value.data is not None)
        for oid, put in store.puts.items()
    ]
    return book


_STATES: Final = {PENDING: "PENDING", OK: FINISHED, CANCELLED: "CANCELLED"}
_KINDS: Final = {ACTOR_CREATION: CREATION, ACTOR_CALL: CALL}


def _task_of(task_id: bytes, row: TaskRow) -> LoggedTask:
    header, outcome = row.header, row.outcome
    task = LoggedTask(
        task_id, header.parent_id, header.name, _KINDS.get(header.kind, TASK),
        _STATES.get(row.status, FAILED), header.function_id, header.actor_id, 0, *row.holder,
        row.attempt, header.max_retries, header.num_returns, list(header.deps), list(header.nested),
        inline=False, digest=b"",
    )  # fmt: skip
    if outcome is not None:
        task.actor_seq = outcome.actor_seq
        if outcome.returns:
            first = outcome.returns[0]
            task.result_refs, task.digest = list(first.refs), first.digest
            task.inline = first.data is not None
    return task


def _ids(joined: bytes | None) -> list[bytes]:
    data = joined or b""
    return [data[i : i + OBJECT_ID_SIZE] for i in range(0, len(data), OBJECT_ID_SIZE)]
