"""The two stores as tests use them: one interface, a clock that tests move, and small programs.

``PostgresWorld`` is the real thing: appends through ``LogConnection``, other operations through
``PostgresStore``. ``SimWorld`` is the simulator's.
"""

from __future__ import annotations

import select
import time
from typing import Any

import msgspec
import psycopg

from regrow.chaos.sim_store import SimStore
from regrow.gcs import operations as ops
from regrow.gcs.log import LogConnection
from regrow.gcs.operations import Append, AppendResult, Batch, Outcome, Submitted
from regrow.gcs.store import PostgresStore
from regrow.ids import CountedIds, driver_task_id, object_id, put_object_id
from regrow.messages import (
    DRIVER_SHIFT,
    OK,
    TASK,
    FunctionDef,
    NodeView,
    Resources,
    Return,
    TaskHeader,
    TaskSpec,
    encode,
)

ANSWER_TIMEOUT_S = 10.0
TTL_S = 3.0
FUNCTION = FunctionDef(b"f" * 16, "square", b"pickled square")
Node = tuple[int, int]


def answers(log: LogConnection, count: int) -> list[AppendResult]:
    """The next so many answers; fails if they take too long."""
    found: list[AppendResult] = []
    deadline = time.monotonic() + ANSWER_TIMEOUT_S
    while len(found) < count:
        writing = [log] if log.flush() else []
        left_s = deadline - time.monotonic()
        assert left_s > 0, "Postgres did not answer in time"
        select.select([log], writing, [], left_s)
        found += [answer for _, answer in log.receive()]
    return found


class PostgresWorld:
    """A database with the schema."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.store = PostgresStore(url, connections=2)
        self.sql = psycopg.connect(url, autocommit=True)
        self._logs: dict[Node, LogConnection] = {}
        self._offset_s = 0.0

    def execute(self, op: ops.Operation) -> Any:
        return self.store.execute(op)

    def append(self, append: Append) -> AppendResult:
        """Over a connection of the node's own; a conflict ends that, as it ends the node."""
        key = (append.node, append.incarnation)
        if key not in self._logs:
            self._logs[key] = LogConnection.connect(self.url)
        log = self._logs[key]
        log.send(append)
        [answer] = answers(log, 1)
        if answer.verdict == ops.CONFLICT:
            self._logs.pop(key).close()
        return answer

    def advance(self, seconds: float) -> None:
        """Moves the database's clock on."""
        self._offset_s += seconds
        self.sql.execute(
            "CREATE OR REPLACE FUNCTION regrow.now() RETURNS timestamptz LANGUAGE sql VOLATILE AS "
            f"'SELECT pg_catalog.clock_timestamp() + make_interval(secs => {self._offset_s})'"
        )

    def tables(self) -> dict[str, list[Any]]:
        """What the log says, for comparison with the other store."""
        queries = {
            "tasks": "SELECT task_id, status, holder, holder_incarnation, attempt FROM"
            " regrow.task_log ORDER BY task_id",
            "trimmed": "SELECT task_id FROM regrow.task_log WHERE spec IS NULL ORDER BY task_id",
            "unfinished": "SELECT task_id FROM regrow.task_log WHERE status = 0 ORDER BY task_id",
            "nodes": "SELECT node_id, incarnation, alive, last_batch FROM regrow.nodes"
            " ORDER BY node_id, incarnation",
            "puts": "SELECT object_id, digest FROM regrow.object_log"
            " WHERE get_byte(object_id, 16) >= 128 ORDER BY object_id",
            "stored": "SELECT object_id, path FROM regrow.stored_objects ORDER BY object_id",
            "actors": "SELECT actor_id, job, state, coalesce(name, ''), namespace, max_restarts,"
            " restarts, coalesce(node_id, 0), trimmed_seq FROM regrow.actors ORDER BY actor_id",
            "checkpoints": "SELECT actor_id, actor_seq, object_id, custom FROM regrow.checkpoints"
            " ORDER BY actor_id, actor_seq",
            "jobs": "SELECT job, status FROM regrow.jobs ORDER BY job",
            "rebuilds": "SELECT task_id, attempt, node_id, incarnation, finished_at IS NULL,"
            " differs FROM regrow.rebuilds ORDER BY task_id, attempt",
            "events": "SELECT coalesce(node_id, 0), kind, message FROM regrow.events ORDER BY id",
        }
        return {
            name: [tuple(row) for row in self.sql.execute(query)] for name, query in queries.items()
        }

    def clear(self) -> None:
        """Empties the database."""
        self.close_logs()
        self.sql.execute(
            "TRUNCATE regrow.jobs, regrow.functions, regrow.nodes, regrow.task_log,"
            " regrow.object_log, regrow.stored_objects, regrow.actors, regrow.checkpoints,"
            " regrow.rebuilds, regrow.events, regrow.discarded_tasks RESTART IDENTITY"
        )
        self.sql.execute("ALTER SEQUENCE regrow.node_ids RESTART")
        self._offset_s = 0.0
        self.advance(0.0)
        self.sql.execute(
            "UPDATE regrow.cluster SET epoch = 0, holder = '', expires_at = '-infinity'"
        )

    def close_logs(self) -> None:
        for log in self._logs.values():
            log.close()
        self._logs.clear()

    def close(self) -> None:
        self.close_logs()
        self.sql.close()
        self.store.close()


class SimWorld:
    """The simulated store on a clock of its own."""

    def __init__(self) -> None:
        self._now_s = 1000.0
        self.clear()

    def execute(self, op: ops.Operation) -> Any:
        return self.store.execute(op)

    def append(self, append: Append) -> AppendResult:
        return self.store.append(append)

    def advance(self, seconds: float) -> None:
        self._now_s += seconds

    def tables(self) -> dict[str, list[Any]]:
        s = self.store
        return {
            "tasks": [(k, r.status, *r.holder, r.attempt) for k, r in sorted(s.tasks.items())],
            "trimmed": [(key,) for key, row in sorted(s.tasks.items()) if not row.spec],
            "unfinished": [(key,) for key in sorted(s.unfinished)],
            "nodes": [(*k, r.view.alive, r.last_batch) for k, r in sorted(s.nodes.items())],
            "puts": [(key, row.value.digest or None) for key, row in sorted(s.puts.items())],
            "stored": sorted(s.stored.items()),
            "actors": [
                (
                    key,
                    a.job,
                    a.state,
                    a.name,
                    a.namespace,
                    a.max_restarts,
                    a.restarts,
                    a.node[0],
                    a.trimmed_seq,
                )
                for key, a in sorted(s.actors.items())
            ],
            "checkpoints": [
                (key, seq, *state)
                for key, saved in sorted(s.checkpoints.items())
                for seq, state in sorted(saved.items())
            ],
            "jobs": [(job, row.status) for job, row in sorted(s.jobs.items())],
            "rebuilds": sorted(
                (r.task_id, r.attempt, *r.holder, r.open, r.differs) for r in s.rebuilds.values()
            ),
            "events": [(node[0], e.kind, e.message) for _, (node, e) in sorted(s.events.items())],
        }

    def clear(self) -> None:
        self.store = SimStore(lambda: self._now_s)

    def close(self) -> None:
        pass


World = PostgresWorld | SimWorld


class Cluster:
    """A leader, nodes and a job in a world, and the records that their programs make."""

    def __init__(self, world: World, nodes: int = 2) -> None:
        self.world = world
        self.epoch: int = self.do(ops.Lead("leader", 0, TTL_S)).epoch
        self._batches: dict[Node, int] = {}
        self.nodes = [self.register() for _ in range(nodes)]
        self.job_root = b"root of the job."
        self.job: int = self.do(ops.CreateJob(self.epoch, self.job_root, "main.py", 7)).job
        self.driver = driver_task_id(self.job_root)
        self._ids = CountedIds(self.job_root)

    def do(self, op: ops.Operation) -> Any:
        return self.world.execute(op)

    def register(self, node_id: int = 0) -> Node:
        """A new node, or a new incarnation of one."""
        answer = self.do(ops.RegisterNode(self.epoch, view(node_id), TTL_S))
        key = (answer.node_id, answer.incarnation)
        self._batches[key] = 0
        return key

    def append(self, node: Node, batch: Batch | None = None) -> AppendResult:
        """The node's next batch."""
        number = self._batches[node] + 1
        answer = self.world.append(Append(*node, number, batch or Batch()))
        if answer.verdict == ops.APPLIED:
            self._batches[node] = number
        return answer

    def log(self, node: Node, batch: Batch) -> None:
        """Appends what must be applied."""
        answer = self.append(node, batch)
        assert answer.verdict == ops.APPLIED, answer

    def batches(self, node: Node) -> int:
        return self._batches[node]

    def new_id(self) -> bytes:
        return self._ids.next_id()

    def put_id(self) -> bytes:
        return put_object_id(self._ids.next_id())

    def task(
        self,
        holder: Node | None = None,
        *,
        task_id: bytes = b"",
        deps: list[bytes] | None = None,
        nested: list[bytes] | None = None,
        kind: int = TASK,
        actor_id: bytes = b"",
        num_returns: int = 1,
        max_retries: int = 3,
        parent: bytes = b"",
        submitter: int = 0,
        job: int = 0,
        attempt: int = 1,
        resources: Resources | None = None,
        outcome: Outcome | None = None,
        driver: int = 1,
    ) -> Submitted:
        """A spec of the first driver; held and awaited by the first node unless told otherwise."""
        task_id = task_id or self.new_id()
        holder = holder or self.nodes[0]
        if outcome is not None:
            outcome = msgspec.structs.replace(outcome, task_id=task_id)
        spec = TaskSpec(
            task_id, parent or self.driver, job or self.job, FUNCTION.function_id, "square", kind,
            actor_id, deps or [], nested or [], resources, num_returns, max_retries,
            driver << DRIVER_SHIFT, "", args=b"arguments",
        )  # fmt: skip
        header = TaskHeader(*[getattr(spec, name) for name in TaskHeader.__struct_fields__])
        return Submitted(
            header, encode(spec), submitter or self.nodes[0][0], holder, attempt, outcome
        )

    def chain(self, length: int, node: Node | None = None) -> list[bytes]:
        """Finished tasks, each with the large result of the one before; their ids."""
        made: list[Submitted] = []
        for _ in range(length):
            deps = [object_id(made[-1].header.task_id, 0)] if made else []
            made.append(self.task(node, deps=deps, outcome=large()))
        for start in range(0, length, 2000):
            batch = Batch(functions=[FUNCTION], submitted=made[start : start + 2000])
            self.log(node or self.nodes[0], batch)
        return [submitted.header.task_id for submitted in made]


def view(node_id: int = 0) -> NodeView:
    """Of a node with two CPUs."""
    cpus = {"CPU": 20_000}
    return NodeView(
        node_id, 0, "127.0.0.1", 7000, "/run/node", cpus, cpus, 0, {"zone": "a"}, True, False,
        "host", 1 << 20,
    )  # fmt: skip


def small(data: bytes = b"49", task_id: bytes = b"", attempt: int = 1) -> Outcome:
    """A result that the log keeps."""
    made = Return(len(data), b"digest of " + data, data)
    return Outcome(task_id, attempt, OK, [made], duration_us=120)


def large(digest: bytes = b"d" * 16, task_id: bytes = b"", attempt: int = 1) -> Outcome:
    """A result that lies in an arena."""
    return Outcome(task_id, attempt, OK, [Return(1_000_000, digest, None)], duration_us=120)


def plain(result: Any) -> Any:
    """A result without types, as it would travel: comparable also where it has raw specs."""
    return msgspec.msgpack.decode(msgspec.msgpack.encode(result), strict=False)
