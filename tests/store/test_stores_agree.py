"""The simulated store and Postgres answer alike, whatever is asked in whatever order.

Hypothesis draws sequences of operations over a few tasks, nodes, jobs and objects, so that they
often meet; the same is done to both stores, and after each step the answers, in the end the tables,
are compared. Examples are derived from the test, so that a run is the same each time.
"""

from __future__ import annotations

from itertools import count
from random import Random
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from regrow.gcs import operations as ops
from regrow.gcs.operations import Append, Batch, Outcome, Submitted
from regrow.ids import driver_task_id, object_id, put_object_id
from regrow.messages import (
    ACTOR_CALL,
    ACTOR_CREATION,
    OK,
    SYSTEM_ERROR,
    TASK,
    TASK_ERROR,
    FunctionDef,
    Return,
    SystemFailure,
    TaskHeader,
    TaskSpec,
    encode,
)
from tests.store.worlds import TTL_S, Node, PostgresWorld, SimWorld, plain, view

TASKS = [bytes([65 + n]) * 16 for n in range(10)]
#: The last of these tasks concern an actor: its creation, and calls.
ACTOR_TASKS = 4
ACTOR = TASKS[-ACTOR_TASKS]
PUTS = [put_object_id(bytes([97 + n]) * 16) for n in range(4)]
ROOTS = [b"root of job one.", b"root of job two."]
FUNCTIONS = [FunctionDef(bytes([n]) * 16, f"function {n}", b"pickled") for n in (1, 2)]
NAMES = ["", "name"]
FAILURE = encode(SystemFailure("worker_crashed", "it crashed"))


class Player:
    """Makes operations out of draws, and knows what of the answers later ones need."""

    def __init__(self) -> None:
        self.epoch = 1
        self.batches: dict[Node, int] = {}
        self.jobs = [1, 2]

    def node(self, r: Random) -> Node:
        return r.choice(sorted(self.batches)) if self.batches else (1, 1)

    def operation(self, draw: int) -> ops.Operation | Append:
        """The operation that this draw stands for."""
        r = Random(draw)
        if r.random() < 0.55:
            return self.append(r)
        makers = [
            self.register, self.fence, self.sweep, self.left, self.end_job, self.reserve,
            self.grant, self.lineage, self.lead, self.reads, self.restore, self.trim,
        ]  # fmt: skip
        weights = [3, 2, 2, 1, 1, 2, 4, 3, 1, 6, 4, 3]
        return r.choices(makers, weights)[0](r)

    # operations of the control store

    def register(self, r: Random) -> ops.Operation:
        return ops.RegisterNode(self.epoch, view(r.choice([0, 0, 1, 2, 3, 50])), TTL_S)

    def fence(self, r: Random) -> ops.Operation:
        heirs = [self.node(r) for _ in range(r.randrange(3))]
        return ops.Fence(self.epoch, *self.node(r), "why", heirs, r.random() < 0.2)

    def sweep(self, r: Random) -> ops.Operation:
        return ops.Sweep(self.epoch, [self.node(r) for _ in range(r.randrange(3))])

    def left(self, r: Random) -> ops.Operation:
        return ops.NodeLeft(self.epoch, *self.node(r), [self.node(r)])

    def end_job(self, r: Random) -> ops.Operation:
        return ops.EndJob(self.epoch, r.choice([2, 2, 2, 1, 9]), r.choice(["finished", "failed"]))

    def reserve(self, r: Random) -> ops.Operation:
        return ops.ReserveActorName(
            self.epoch, r.choice([*TASKS[-2:], ACTOR]), r.choice(["name", "other"]), "",
            r.choice(self.jobs), FUNCTIONS[0].function_id,
        )  # fmt: skip

    def grant(self, r: Random) -> ops.Operation:
        return ops.GrantRebuilds(self.epoch, r.sample(TASKS, 4), self.node(r))

    def restore(self, r: Random) -> ops.Operation:
        return ops.RestoreActor(self.epoch, ACTOR, self.node(r), self.node(r))

    def trim(self, r: Random) -> ops.Operation:
        return ops.TrimCalls(self.epoch, r.choice([1, 100]))

    def lineage(self, r: Random) -> ops.Operation:
        return ops.ReadLineage(r.sample(TASKS, 2), r.choice([1, 2, 200]), r.choice([1, 5000]))

    def lead(self, r: Random) -> ops.Operation:
        return ops.Lead(r.choice(["leader", "rival"]), r.choice([0, self.epoch]), TTL_S)

    def reads(self, r: Random) -> ops.Operation:
        node = self.node(r)
        reads: list[ops.Operation] = [
            ops.ReadTasks(TASKS),
            ops.ReadObjects(
                [object_id(task, index) for task in TASKS for index in (0, 1, 2)] + PUTS
            ),
            ops.ReadActor(ACTOR),
            ops.ReadActor(b"", "name", ""),
            ops.ReadGiven(*node),
            ops.ReadJobs(),
            ops.ReadNodes(),
            ops.ReadFunctions([f.function_id for f in FUNCTIONS]),
        ]
        return r.choice(reads)

    # batches

    def append(self, r: Random) -> Append:
        node = self.node(r)
        number = self.batches.get(node, 0) + r.choices([1, 0, 2], [20, 1, 1])[0]
        batch = Batch(
            functions=r.sample(FUNCTIONS, r.randrange(2)),
            submitted=[self.submitted(r, node) for _ in range(r.randrange(4))],
            outcomes=[self.outcome(r, r.choice(TASKS)) for _ in range(r.choice([0, 0, 1, 2]))],
            holders=[self.holder(r) for _ in range(r.choice([0, 0, 0, 1, 2]))],
            puts=[self.put(r) for _ in range(r.choice([0, 0, 1]))],
            stored=[self.stored(r) for _ in range(r.choice([0, 0, 1]))],
            actors=[self.actor(r) for _ in range(r.choice([0, 0, 1]))],
            checkpoints=[self.checkpoint(r) for _ in range(r.choice([0, 0, 1, 2]))],
            events=[ops.Event("kind", b"s", str(r.randrange(9)))][: r.randrange(2)],
            rebuilt=[(r.choice(TASKS), r.random() < 0.5) for _ in range(r.choice([0, 0, 1]))],
        )
        return Append(*node, max(number, 1), batch)

    def submitted(self, r: Random, node: Node) -> Submitted:
        """What a task is follows from its id, as it does in programs."""
        place = r.randrange(len(TASKS))
        task_id = TASKS[place]
        of_actor = place >= len(TASKS) - ACTOR_TASKS
        kind = TASK if not of_actor else ACTOR_CREATION if task_id == ACTOR else ACTOR_CALL
        job = 1 + place % 2
        deps = [object_id(TASKS[n], n % 2) for n in range(place) if n % 3 == place % 3]
        spec = TaskSpec(
            task_id, driver_task_id(ROOTS[job - 1]), job, FUNCTIONS[place % 2].function_id,
            f"function {place}", kind, ACTOR if of_actor else b"", deps, PUTS[: place % 3],
            {"GPU": 1} if place % 4 == 1 else None, 1 + place % 2, place - 1, 0, "", args=b"args",
        )  # fmt: skip
        header = TaskHeader(*[getattr(spec, name) for name in TaskHeader.__struct_fields__])
        outcome = self.outcome(r, task_id) if r.random() < 0.5 else None
        holder = node if r.random() < 0.8 else self.node(r)
        submitter = self.node(r)[0]
        return Submitted(header, encode(spec), submitter, holder, r.randint(1, 3), outcome)

    def outcome(self, r: Random, task_id: bytes) -> Outcome:
        """Mostly the same for a task each time, so that conflicts are the exception."""
        place = TASKS.index(task_id)
        salt = b"x" if r.random() < 0.1 else b"d"
        status = OK if place < 7 else (TASK_ERROR, SYSTEM_ERROR, OK)[place - 7]
        seq = place - 6 if place > 6 and status != SYSTEM_ERROR else 0
        if status != OK:
            returns = [Return(len(FAILURE), b"", FAILURE)]
            return Outcome(task_id, r.randint(1, 3), status, returns, 0, seq, "why")
        made = Return(3, salt * 16, b"abc") if place % 3 else Return(10_000, salt * 16, None)
        returns = [made] * (1 + place % 2)
        return Outcome(task_id, r.randint(1, 3), OK, returns, 5, actor_seq=seq)

    def holder(self, r: Random) -> ops.NewHolder:
        return ops.NewHolder(r.choice(TASKS), r.randint(1, 3), self.node(r))

    def put(self, r: Random) -> ops.PutRow:
        place = r.randrange(len(PUTS))
        parent = TASKS[place] if place % 2 else driver_task_id(ROOTS[0])
        digest = (b"q" if r.random() < 0.1 else b"p") * 16
        data = None if place < 2 else b"put"
        return ops.PutRow(PUTS[place], parent, 1, 9000 if data is None else 3, digest, data, [])

    def stored(self, r: Random) -> tuple[bytes, str]:
        return r.choice([object_id(TASKS[0], 0), object_id(TASKS[3], 1), PUTS[0]]), "a/path"

    def actor(self, r: Random) -> tuple[bytes, int, bool, SystemFailure | None]:
        alive = r.random() < 0.6
        error = None if alive or r.random() < 0.6 else SystemFailure("actor_died", "killed")
        return r.choice([ACTOR, ACTOR, ACTOR, TASKS[-1]]), r.choice([1, 1, 1, 2]), alive, error

    def checkpoint(self, r: Random) -> tuple[bytes, int, bytes, bool]:
        saved = r.choice([PUTS[0], PUTS[3], b""])
        return ACTOR, r.randrange(4), saved, bool(saved) and r.random() < 0.5

    def learn(self, op: ops.Operation | Append, answer: Any) -> None:
        """Remembers what later operations need."""
        if isinstance(answer, ops.NodeRegistered):
            self.batches[answer.node_id, answer.incarnation] = 0
        elif isinstance(answer, ops.Leadership) and answer.epoch:
            self.epoch = answer.epoch
        elif isinstance(op, Append) and answer.verdict == ops.APPLIED:
            key = (op.node, op.incarnation)
            self.batches[key] = max(self.batches.get(key, 0), op.number)


def an_actor_lives() -> Append:
    """On the first node, before anything else happens."""
    player, home = Player(), (1, 1)
    drawn = (player.submitted(Random(n), home) for n in count())
    creation = next(s for s in drawn if s.header.task_id == ACTOR and s.outcome is not None)
    creation = replace(creation, holder=home)
    return Append(*home, 1, Batch(submitted=[creation], actors=[(ACTOR, 1, True, None)]))


def act(world: PostgresWorld | SimWorld, op: ops.Operation | Append) -> Any:
    return world.append(op) if isinstance(op, Append) else world.execute(op)


def comparable(answer: Any) -> Any:
    """Without clocks, identities, and the wording of conflicts, whose first task may differ."""
    if isinstance(answer, ops.Leadership):
        return answer.epoch
    if isinstance(answer, ops.AppendResult):
        return answer.verdict
    return plain(answer)


@settings(
    max_examples=50,
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(draws=st.lists(st.integers(0, 2**20), min_size=20, max_size=50))
def test_both_stores_answer_alike(postgres_world: PostgresWorld, draws: list[int]) -> None:
    postgres_world.clear()
    worlds: list[PostgresWorld | SimWorld] = [postgres_world, SimWorld()]
    player = Player()
    opening: list[ops.Operation | Append] = [
        ops.Lead("leader", 0, TTL_S),
        *(ops.CreateJob(1, root, "main.py", 7) for root in ROOTS),
        *(ops.RegisterNode(1, replace(view(), port=n), TTL_S) for n in range(3)),
    ]
    opening.append(an_actor_lives())
    for op in [*opening, *draws]:
        made = player.operation(op) if isinstance(op, int) else op
        answers = [act(world, made) for world in worlds]
        assert comparable(answers[0]) == comparable(answers[1]), made
        player.learn(made, answers[0])
    assert worlds[0].tables() == worlds[1].tables()
