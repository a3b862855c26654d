"""A named job is taken over: a node keeps what each of its drivers submitted apart."""

from __future__ import annotations

from msgspec import Raw, structs

from regrow.ids import object_id
from regrow.messages import (
    ACTOR_CREATION,
    DRIVER_SHIFT,
    OK,
    RECOVERABLE,
    CloseJob,
    Committed,
    Exit,
    HandedTask,
    HandOver,
    HeldTask,
    JobClosed,
    JobDropped,
    LookUpTasks,
    Nodes,
    PeerDrop,
    PeerValues,
    Rebuild,
    Registered,
    RestoreActor,
    Run,
    Submit,
    SystemFailure,
    TaskSpec,
    TaskState,
    TaskStates,
    Values,
    encode,
    failure_decoder,
    flags_of_driver,
    header_decoder,
)
from regrow.objectstore.layout import digest
from regrow.scheduler import events
from tests.unit.scheduler.harness import FUNCTION, Harness, view


def node() -> Harness:
    """Node 1 without a driver; there is a node 2."""
    harness = Harness()
    harness.say(events.StoreSaid(Nodes([view(1), view(2)])))
    harness.core.functions[FUNCTION.function_id] = FUNCTION
    return harness


def of_driver(spec: TaskSpec, number: int) -> TaskSpec:
    """The same task, as that driver of the job submits it."""
    return structs.replace(spec, flags=spec.flags & RECOVERABLE | flags_of_driver(number))


def handed(harness: Harness, spec: TaskSpec) -> None:
    """Node 2 hands the task over."""
    task = HandedTask(Raw(encode(spec)), 1, 2, [], [])
    harness.say(events.PeerSaid(2, HandOver([task], []), 1))


def runs(harness: Harness) -> list[tuple[bytes, int]]:
    """What workers were given: the task, and the driver of what it submits."""
    given = [e.message for e in harness.of(events.ToClient) if isinstance(e.message, Run)]
    found = [run for message in given for run in message.tasks]
    return [(header_decoder.decode(run.spec).task_id, run.driver) for run in found]


def test_news_of_an_end_that_come_late_leave_the_next_drivers_tasks_alone() -> None:
    harness = node()
    mine = of_driver(harness.spec(), 2)
    handed(harness, mine)
    harness.say(events.StoreSaid(JobClosed(1, 1)))
    assert list(harness.core.tasks.tasks) == [mine.task_id]
    harness.say(events.StoreSaid(JobClosed(1, 2)))
    assert not harness.core.tasks.tasks


def test_a_node_says_that_it_dropped_a_driver_behind_all_that_it_had_logged_of_it() -> None:
    harness = node()
    spec = of_driver(harness.spec(), 1)
    handed(harness, spec)
    worker = harness.worker()
    harness.finish(worker, spec)
    harness.say(events.StoreSaid(JobClosed(1, 1)))
    said = [e.message for e in harness.of(events.ToControlStore)]
    assert JobDropped(1, 1) not in said
    harness.commit_all()
    said = [e.message for e in harness.of(events.ToControlStore)]
    assert JobDropped(1, 1) in said


def test_a_task_of_the_next_driver_takes_the_place_of_the_same_one_of_the_last() -> None:
    """It is held here in the log: were the old one kept, its end would be dropped there, and were
    it dropped later, nobody would run the new one."""
    harness = node()
    spec, other = of_driver(harness.spec(), 1), of_driver(harness.spec(), 1)
    handed(harness, spec)
    handed(harness, other)
    worker = harness.worker()
    assert runs(harness)[0] == (spec.task_id, 1)
    handed(harness, of_driver(spec, 2))
    assert list(harness.core.tasks.tasks) == [spec.task_id]
    assert harness.core.tasks.tasks[spec.task_id].driver == 2
    assert {kill.number for kill in harness.of(events.KillWorker)} == {1}
    harness.say(events.ClientGone(worker))


def test_what_a_replaced_driver_submitted_is_not_taken_over() -> None:
    harness = node()
    harness.say(events.StoreSaid(JobClosed(1, 1)))
    late = of_driver(harness.spec(), 1)
    handed(harness, late)
    harness.say(events.StoreSaid(Rebuild([])))
    harness.core.tasks.hold(HeldTask(Raw(encode(late)), 1, 2))
    assert not harness.core.tasks.tasks


def test_what_a_replaced_driver_still_submits_fails_and_leaves_no_trace() -> None:
    """An actor of another job may work for it, and is not to wait for ever."""
    harness = node()
    other = structs.replace(harness.spec(), job=2)
    handed(harness, other)
    worker = harness.worker()
    harness.say(events.StoreSaid(JobClosed(1, 1)))
    late = of_driver(harness.spec(), 1)
    harness.client(worker, Submit([Raw(encode(late))]))
    harness.commit_all()
    [value] = harness.messages(worker, Values)[0].values
    assert value.data is not None
    failure: SystemFailure = failure_decoder.decode(value.data)
    assert (failure.code, value.object_id) == ("cancelled", object_id(late.task_id, 0))
    assert sum(message.count for message in harness.messages(worker, Committed)) == 1
    assert list(harness.core.tasks.tasks) == [other.task_id]
    assert object_id(late.task_id, 0) not in harness.core.objects.entries
    # The next driver's is another matter.
    handed(harness, of_driver(late, 2))
    assert list(harness.core.tasks.tasks) == [other.task_id, late.task_id]


def test_what_runs_again_submits_for_the_driver_that_its_job_has_now() -> None:
    harness = node()
    lost = of_driver(harness.spec(), 1)
    held = HeldTask(Raw(encode(lost)), 2, 1, [b"d" * 16], OK, driver=3)
    harness.say(events.StoreSaid(Rebuild([held])))
    harness.worker()
    assert runs(harness) == [(lost.task_id, 3)]


def test_what_runs_again_for_a_driver_is_not_dropped_when_the_first_of_its_tasks_comes() -> None:
    """A node that just started has heard of no driver before; what the earlier ones left here, and
    is dropped with the first word of this one, is not what runs again for it."""
    harness = node()
    lost = of_driver(harness.spec(), 1)
    held = HeldTask(Raw(encode(lost)), 2, 1, [b"d" * 16], OK, driver=3)
    harness.say(events.StoreSaid(Rebuild([held])))
    handed(harness, of_driver(harness.spec(), 3))
    assert lost.task_id in harness.core.tasks.tasks


def test_an_actor_restored_for_a_driver_is_not_dropped_when_the_first_of_its_tasks_comes() -> None:
    harness = node()
    made = of_driver(harness.spec(max_retries=-1, flags=RECOVERABLE), 1)
    creation = structs.replace(made, kind=ACTOR_CREATION, actor_id=made.task_id)
    held = HeldTask(Raw(encode(creation)), 2, 1, [b"d" * 16], OK, driver=3)
    order = RestoreActor(creation.task_id, 1, held, [], 0, [], b"", 0, False)
    harness.say(events.StoreSaid(order))
    handed(harness, of_driver(harness.spec(), 3))
    assert harness.core.actors.table[creation.task_id].restoration is not None


def test_an_actor_that_an_earlier_driver_had_made_lives_as_long_as_its_job() -> None:
    """The node where it was made has dropped that driver, with what it knew of handles."""
    harness = node()
    made = of_driver(harness.spec(max_retries=-1, flags=RECOVERABLE), 1)
    creation = structs.replace(made, kind=ACTOR_CREATION, actor_id=made.task_id)
    held = HeldTask(Raw(encode(creation)), 2, 2, [digest(b"x")], OK, driver=2)
    order = RestoreActor(creation.task_id, 1, held, [], 0, [], b"", 0, False)
    harness.say(events.StoreSaid(order))
    worker = harness.worker()
    harness.finish(worker, creation, attempt=2)
    harness.commit_all()
    harness.say(events.PeerSaid(2, PeerDrop([object_id(creation.task_id, 0)]), 1))
    assert not harness.messages(worker, Exit)
    harness.say(events.StoreSaid(JobClosed(1, 2)))
    assert creation.task_id not in harness.core.actors.table


def test_a_peer_that_let_go_of_a_result_is_not_told_of_it_after_the_commit() -> None:
    """It has dropped the driver; the next one may have the result made anew."""
    harness = node()
    dropped, kept = of_driver(harness.spec(), 1), of_driver(harness.spec(), 1)
    handed(harness, dropped)
    handed(harness, kept)
    worker = harness.worker()
    harness.finish(worker, dropped)
    harness.finish(worker, kept)
    harness.say(events.PeerSaid(2, PeerDrop([object_id(dropped.task_id, 0)]), 1))
    harness.commit_all()
    told = [e.message for e in harness.of(events.ToPeer) if isinstance(e.message, PeerValues)]
    ids = [value.object_id for message in told for value in message.values]
    assert ids == [object_id(kept.task_id, 0)]


def test_what_an_ended_jobs_call_submits_when_it_runs_again_is_looked_up() -> None:
    """An actor of another job comes back: it is to find what it had submitted."""
    harness = node()
    harness.say(events.StoreSaid(JobClosed(1, 1)))
    lost, child = of_driver(harness.spec(), 1), of_driver(harness.spec(), 1)
    child = structs.replace(child, parent_id=lost.task_id)
    held = HeldTask(Raw(encode(lost)), 2, 1, [b"d" * 16], OK, driver=1)
    harness.say(events.StoreSaid(Rebuild([held])))
    worker = harness.worker()
    harness.client(worker, Submit([Raw(encode(child))]))
    asked = [e.message for e in harness.of(events.ToControlStore)]
    [question] = [message for message in asked if isinstance(message, LookUpTasks)]
    assert question.task_ids == [child.task_id]
    harness.say(events.StoreSaid(TaskStates(question.number, [TaskState(child.task_id, False)])))
    assert child.task_id in harness.core.tasks.tasks


def test_a_node_says_of_which_driver_it_last_heard() -> None:
    """The end of its tasks may have been told while it had no session."""
    harness = node()
    handed(harness, of_driver(harness.spec(), 2))
    harness.say(events.StoreLost())
    harness.say(events.StoreSaid(Registered(1, 1, 2, [view(1), view(2)], "")))
    told = [effect.message for effect in harness.of(events.ToControlStore)]
    assert CloseJob(1, True, True, 2) in told


def test_the_number_is_in_the_flags() -> None:
    assert flags_of_driver(0) == 0
    assert flags_of_driver(1) == 1 << DRIVER_SHIFT
    header = structs.replace(node().spec(), flags=flags_of_driver(7) | 5)
    assert header.driver == 7
