"""Actors that restart, on the node that runs them: what is given to the process, and what waits."""

from __future__ import annotations

from msgspec import Raw
from msgspec.structs import replace

from regrow.ids import put_object_id
from regrow.messages import (
    ACTOR_CALL,
    ACTOR_CREATION,
    OK,
    RECOVERABLE,
    SYSTEM_ERROR,
    ActorAt,
    ActorHere,
    Checkpoint,
    Create,
    Done,
    HandOver,
    HeldTask,
    NodeDied,
    Nodes,
    Reassigned,
    RestoreActor,
    Return,
    Run,
    Seal,
    TaskDone,
    TaskSpec,
    Values,
    encode,
    failure_decoder,
    header_decoder,
)
from regrow.objectstore.layout import digest
from regrow.scheduler import events
from tests.unit.scheduler.harness import DRIVER, Harness, first, view

STATE = put_object_id(b"s" * 16)
BIG = 100_000


class Scene:
    """A node with a driver, a worker, and an actor that restarts."""

    def __init__(self) -> None:
        node = self.node = Harness()
        node.driver()
        node.core.pool.start(1)
        self.worker = node.worker()
        made = node.spec(max_retries=-1, flags=RECOVERABLE)
        self.creation = replace(made, kind=ACTOR_CREATION, actor_id=made.task_id)

    def call(self) -> TaskSpec:
        made = self.node.spec(max_retries=-1, flags=RECOVERABLE)
        return replace(made, kind=ACTOR_CALL, actor_id=self.creation.task_id)

    def live(self) -> None:
        """The actor is made, and everything about it committed."""
        self.node.submit(self.creation)
        self.node.finish(self.worker, self.creation)
        self.node.commit_all()
        self.node.effects.clear()

    def given(self, worker: int) -> list[bytes]:
        """What the process was told to run, in order."""
        runs = self.node.messages(worker, Run)
        return [header_decoder.decode(t.spec).task_id for run in runs for t in run.tasks]

    def restore(self, calls: list[TaskSpec], results: list[bytes], checkpoint: bytes = b"") -> None:
        """The control store gives the actor to this node."""

        def held(spec: TaskSpec, result: bytes) -> HeldTask:
            return HeldTask(Raw(encode(spec)), 2, 1, [digest(result)], OK)

        order = RestoreActor(
            self.creation.task_id, 1, held(self.creation, b"x"),
            [held(call, result) for call, result in zip(calls, results, strict=True)],
            len(calls), [], checkpoint, 0, False,
        )  # fmt: skip
        self.node.say(events.StoreSaid(order))

    def alive(self) -> bool:
        said = [e.message for e in self.node.of(events.ToControlStore)]
        return any(isinstance(m, ActorHere) and m.alive for m in said)

    def failure(self, spec: TaskSpec) -> str:
        """The code of a call's failure, as the driver was told."""
        values = [v for message in self.node.messages(DRIVER, Values) for v in message.values]
        [value] = [v for v in values if v.object_id == first(spec)]
        assert value.status == SYSTEM_ERROR
        assert value.data is not None
        return failure_decoder.decode(value.data).code


def test_what_it_did_runs_again_in_order_before_anything_new() -> None:
    scene = Scene()
    node, worker = scene.node, scene.worker
    calls = [scene.call() for _ in range(3)]
    new = scene.call()
    scene.restore(calls, [b"1", b"2", b"3"])
    node.submit(new)
    assert scene.given(worker) == [scene.creation.task_id]
    node.finish(worker, scene.creation, attempt=2)
    assert scene.given(worker)[1:] == [call.task_id for call in calls]
    for call, result in zip(calls, (b"1", b"2", b"3"), strict=True):
        assert new.task_id not in scene.given(worker)
        node.finish(worker, call, result, attempt=2)
    assert scene.given(worker)[-1] == new.task_id
    assert not scene.alive(), "others are told after the commit"
    node.commit_all()
    assert scene.alive()
    node.finish(worker, new)
    node.commit_all()
    outcomes = [o for batch in node.batches() for o in batch.outcomes] + [
        s.outcome for batch in node.batches() for s in batch.submitted if s.outcome is not None
    ]
    assert [(o.task_id, o.actor_seq) for o in outcomes] == [(new.task_id, 4)], "nothing twice"


def test_one_that_does_something_else_than_before_is_dead() -> None:
    scene = Scene()
    call, new = scene.call(), scene.call()
    scene.restore([call], [b"1"])
    scene.node.submit(new)
    scene.node.finish(scene.worker, scene.creation, attempt=2)
    scene.node.finish(scene.worker, call, b"another", attempt=2)
    scene.node.commit_all()
    assert scene.failure(new) == "replay_difference"
    assert not scene.alive()


def test_the_order_is_obeyed_once() -> None:
    scene = Scene()
    call = scene.call()
    scene.restore([call], [b"1"])
    scene.restore([call], [b"1"])
    scene.node.finish(scene.worker, scene.creation, attempt=2)
    scene.restore([call], [b"1"])
    scene.node.finish(scene.worker, call, b"1", attempt=2)
    scene.node.commit_all()
    scene.restore([call], [b"1"])
    assert scene.given(scene.worker) == [scene.creation.task_id, call.task_id]


def test_its_results_wait_for_their_commit_on_its_own_node_too() -> None:
    scene = Scene()
    scene.live()
    call = scene.call()
    scene.node.submit(call)
    scene.node.finish(scene.worker, call)
    assert first(call) not in scene.node.values(DRIVER)
    scene.node.commit_all()
    assert first(call) in scene.node.values(DRIVER)


def test_its_process_dies_and_the_control_store_hears_of_it_after_the_commit() -> None:
    scene = Scene()
    scene.live()
    done, lost, later = scene.call(), scene.call(), scene.call()
    scene.node.submit(done, lost)
    scene.node.finish(scene.worker, done)
    scene.node.say(events.ClientGone(scene.worker))
    scene.node.submit(later)
    told = [e.message for e in scene.node.of(events.ToControlStore)]
    assert not any(isinstance(m, ActorHere) for m in told)
    scene.node.commit_all()
    told = [e.message for e in scene.node.of(events.ToControlStore)]
    assert ActorHere(scene.creation.task_id, 1, False) in told
    scene.restore([done], [b"x"])
    worker = scene.node.worker()
    scene.node.finish(worker, scene.creation, attempt=2)
    scene.node.finish(worker, done, attempt=2)
    assert scene.given(worker)[2:] == [lost.task_id, later.task_id]


def test_a_state_that_is_committed_with_its_result_is_stored_first() -> None:
    scene = Scene()
    scene.live()
    node, worker = scene.node, scene.worker
    call, other = scene.call(), scene.call()
    node.submit(call, other)
    node.client(worker, Create(STATE, 0, BIG))
    node.client(worker, Seal(STATE, b"p" * 16, 1, BIG, b"d" * 16))
    node.client(worker, Checkpoint(STATE, False, with_next=True))
    node.finish(worker, call)
    node.finish(worker, other)  # it comes after a state that is not safe yet
    node.commit_all()
    assert not set(node.values(DRIVER)) & {first(call), first(other)}
    node.say(events.Stored(STATE, "path"))
    batch = next(b for b in [*node.batches(), node.core.journal.close()[1]] if b.checkpoints)
    assert batch.checkpoints == [(scene.creation.task_id, 1, STATE, False)]
    assert call.task_id in [o.task_id for o in batch.outcomes], "in one batch"


def test_a_checkpoint_waits_for_the_large_results_before_it() -> None:
    scene = Scene()
    scene.live()
    node, worker = scene.node, scene.worker
    call = scene.call()
    node.submit(call)
    node.client(worker, Create(first(call), 1, BIG))
    large = TaskDone(call.task_id, 1, OK, [Return(BIG, b"r" * 16, None)], 5)
    node.client(worker, Done([large]))
    node.client(worker, Create(STATE, 0, BIG))
    node.client(worker, Seal(STATE, b"p" * 16, 1, BIG, b"d" * 16))
    node.client(worker, Checkpoint(STATE, False))
    node.commit_all()
    assert not any(batch.checkpoints for batch in node.batches())
    node.say(events.Stored(STATE, "path"))
    node.commit_all()
    assert not any(batch.checkpoints for batch in node.batches()), "the result is not safe yet"
    node.say(events.Stored(first(call), "other path"))
    node.commit_all()
    assert any(batch.checkpoints for batch in node.batches())


def test_calls_that_come_back_from_a_dead_home_are_in_front_of_later_ones() -> None:
    """In whatever order the control store gives them back."""
    scene = Scene()
    node, actor_id = scene.node, scene.creation.task_id
    node.say(events.StoreSaid(Nodes([view(1), view(2), view(3)])))
    early = [scene.call() for _ in range(3)]
    node.submit(*early)
    node.say(events.StoreSaid(ActorAt(0, actor_id, 2, True)))
    node.commit_all()
    assert handed_to(node, 2) == [call.task_id for call in early]
    node.say(events.StoreSaid(NodeDied(2, 1, "killed")))
    late, other = scene.call(), replace(scene.call(), parent_id=b"o" * 16)
    node.submit(late, other)
    node.say(events.StoreSaid(ActorAt(0, actor_id, 3, True)))
    node.commit_all()
    assert handed_to(node, 3) == [], "what was called before comes first"
    back = [HeldTask(Raw(encode(call)), 2, 1) for call in reversed(early)]
    node.say(events.StoreSaid(Reassigned(back[:1])))
    node.say(events.StoreSaid(Reassigned(back[1:])))
    node.commit_all()
    handed = handed_to(node, 3)
    assert [i for i in handed if i != other.task_id] == [c.task_id for c in [*early, late]]
    assert other.task_id in handed, "the other caller goes on, too"


def handed_to(node: Harness, node_id: int) -> list[bytes]:
    sent = [e.message for e in node.of(events.ToPeer) if e.node_id == node_id]
    handed = [task for message in sent if isinstance(message, HandOver) for task in message.tasks]
    return [header_decoder.decode(task.spec).task_id for task in handed]
