"""A caller's calls of an actor that restarts run in its order, by whichever nodes they come."""

from __future__ import annotations

import pytest
from msgspec import Raw
from msgspec.structs import replace

from regrow.ids import object_id
from regrow.messages import (
    OK,
    PENDING,
    ActorAt,
    HandedTask,
    HandOver,
    HeldTask,
    Locate,
    Locations,
    LookUpTasks,
    NodeDied,
    Nodes,
    Reassigned,
    Registered,
    TaskSpec,
    TaskState,
    TaskStates,
    Value,
    Whereabouts,
    encode,
)
from regrow.scheduler import events
from tests.unit.scheduler.harness import Harness, view
from tests.unit.scheduler.test_restoring import Scene, handed_to

CALLER = b"c" * 16


class Home(Scene):
    """The actor's node, with two other nodes, from which its callers call."""

    def __init__(self) -> None:
        super().__init__()
        self.live()
        self.node.say(events.StoreSaid(Nodes([view(1), view(2), view(3)])))

    def calls(self, count: int) -> list[TaskSpec]:
        """Those of one caller, in its order."""
        made: list[TaskSpec] = []
        for order in range(1, count + 1):
            after = made[-1].task_id if made else b""
            call = replace(self.call(), parent_id=CALLER, order=order, after=after)
            made.append(call)
        return made

    def hand(self, node_id: int, *calls: TaskSpec) -> None:
        """A node hands over calls of its client."""
        handed = [HandedTask(Raw(encode(call)), 1, node_id, [], []) for call in calls]
        self.node.say(events.PeerSaid(node_id, HandOver(handed), 1))

    def question(self) -> LookUpTasks:
        """The last one to the log."""
        said = [e.message for e in self.node.of(events.ToControlStore)]
        return [message for message in said if isinstance(message, LookUpTasks)][-1]

    def answer(self, state: TaskState) -> None:
        question = self.question()
        assert question.task_ids == [state.task_id]
        self.node.say(events.StoreSaid(TaskStates(question.number, [state])))

    def ran(self) -> list[bytes]:
        """The calls that the process was given."""
        given = self.given(self.worker)
        return [task_id for task_id in given if task_id != self.creation.task_id]


def ids(calls: list[TaskSpec]) -> list[bytes]:
    return [call.task_id for call in calls]


def test_what_the_caller_sends_through_another_node_waits_for_what_was_reassigned() -> None:
    home = Home()
    calls = home.calls(6)
    home.hand(2, *calls[:2])
    home.hand(3, *calls[4:])  # its node 2 is dead; calls 3 and 4 are given to somebody else
    assert home.ran() == ids(calls[:2])
    home.answer(TaskState(calls[3].task_id, True, PENDING, 3))
    back = [HeldTask(Raw(encode(call)), 2, 2) for call in calls[2:4]]
    home.node.say(events.StoreSaid(Reassigned(back)))
    assert home.ran() == ids(calls)


def test_calls_that_come_in_reverse_run_in_order() -> None:
    home = Home()
    calls = home.calls(5)
    for call in reversed(calls):
        home.hand(2, call)
    assert home.ran() == ids(calls)


def test_other_callers_do_not_wait() -> None:
    home = Home()
    calls = home.calls(2)
    other = replace(home.call(), parent_id=b"o" * 16, order=1)
    home.hand(3, calls[1], other)
    assert home.ran() == [other.task_id]


def test_one_that_ended_where_the_actor_was_before_is_not_waited_for() -> None:
    home = Home()
    calls = home.calls(3)
    home.hand(3, *calls[1:])
    assert home.ran() == []
    home.answer(TaskState(calls[0].task_id, True, OK))
    assert home.ran() == ids(calls[1:])


def test_one_that_nobody_knows_yet_is_waited_for_until_it_has_ended() -> None:
    home = Home()
    calls = home.calls(2)
    home.hand(3, calls[1])
    home.answer(TaskState(calls[0].task_id, False))
    oid = object_id(calls[0].task_id, 0)
    asked = [e.message for e in home.node.of(events.ToControlStore)]
    assert any(isinstance(message, Locate) and oid in message.object_ids for message in asked)
    assert home.ran() == []
    found = Whereabouts(oid, value=Value(oid, OK, 1, b"x"))
    home.node.say(events.StoreSaid(Locations([found])))
    assert home.ran() == [calls[1].task_id]


def test_a_control_store_that_comes_back_is_asked_again() -> None:
    home = Home()
    calls = home.calls(2)
    home.hand(3, calls[1])
    home.node.effects.clear()
    home.node.say(events.StoreLost())
    home.node.say(events.StoreSaid(Registered(1, 1, 1, [view(1), view(2), view(3)], "")))
    home.answer(TaskState(calls[0].task_id, True, OK))
    assert home.ran() == [calls[1].task_id]


@pytest.mark.parametrize("known", [True, False])
def test_a_call_that_waits_goes_with_its_actor(known: bool) -> None:
    """Nothing holds it back where the actor is not; its new home asks anew."""
    home = Home()
    calls = home.calls(2)
    home.hand(3, calls[1])
    if known:
        home.answer(TaskState(calls[0].task_id, True, PENDING, 2))
    home.node.say(events.ClientGone(home.worker))
    home.node.commit_all()
    home.node.say(events.StoreSaid(ActorAt(0, home.creation.task_id, 2, True)))
    home.node.commit_all()
    assert handed_to(home.node, 2) == [calls[1].task_id]
    assert not home.node.core.actors.call_order.awaited


def test_calls_of_a_job_that_ends_wait_no_more() -> None:
    home = Home()
    calls = home.calls(2)
    home.hand(3, calls[1])
    home.node.core.tasks.job_closed(1)
    assert not home.node.core.actors.call_order.awaited
    home.node.core.check()


def test_its_answer_may_come_after_the_death_of_its_node() -> None:
    home = Home()
    calls = home.calls(3)
    home.hand(2, calls[1])
    home.node.say(events.StoreSaid(NodeDied(2, 1, "killed")))
    home.hand(3, calls[2])
    home.answer(TaskState(calls[0].task_id, True, OK))
    assert home.ran() == ids(calls[1:])


def test_the_driver_of_its_own_node_is_not_asked_about() -> None:
    """Hot path: what came in order, or ended here, needs no question."""
    home = Home()
    node: Harness = home.node
    calls = home.calls(4)
    node.submit(*calls[:2])
    node.finish(home.worker, calls[0])
    node.finish(home.worker, calls[1])
    node.submit(*calls[2:])
    assert home.ran() == ids(calls)
    assert not [e for e in node.of(events.ToControlStore) if isinstance(e.message, LookUpTasks)]
