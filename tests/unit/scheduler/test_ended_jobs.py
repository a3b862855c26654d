"""A job ends while its tasks wait: each of them lets go of its arguments once."""

from __future__ import annotations

import pytest
from msgspec import structs

from regrow.ids import object_id, put_object_id
from regrow.messages import (
    ACTOR_CALL,
    ACTOR_CREATION,
    Borrow,
    Bye,
    CloseJob,
    JobClosed,
    Put,
    PutValue,
    Registered,
    TaskSpec,
)
from regrow.objectstore.layout import digest
from regrow.scheduler import events
from tests.unit.scheduler.harness import DRIVER, Harness, view


def a_put(harness: Harness) -> bytes:
    """A small object that the driver holds."""
    oid = put_object_id(harness.ids.next_id())
    harness.client(DRIVER, Put([PutValue(oid, b"p" * 16, 1, digest(b"x"), b"x")]))
    return oid


def as_call(spec: TaskSpec, actor: TaskSpec) -> TaskSpec:
    return structs.replace(spec, kind=ACTOR_CALL, actor_id=actor.task_id, max_retries=0)


@pytest.mark.parametrize("kind", ["tasks", "calls"])
def test_what_waits_for_other_tasks_of_an_ended_job_lets_go_of_its_arguments_once(
    kind: str,
) -> None:
    harness = Harness()
    harness.driver()
    first = harness.spec()
    harness.submit(first)
    # Another client has the put, too: it outlives the job.
    put = a_put(harness)
    harness.client(harness.worker(), Borrow([put]))
    actor = structs.replace(harness.spec(), kind=ACTOR_CREATION, max_retries=0)
    actor = structs.replace(actor, actor_id=actor.task_id)
    if kind == "calls":
        harness.submit(actor)
    waiting = [harness.spec(deps=[object_id(first.task_id, 0), put]) for _ in range(3)]
    harness.submit(*[as_call(spec, actor) if kind == "calls" else spec for spec in waiting])
    harness.say(events.StoreSaid(JobClosed(1)))
    entry = harness.core.objects.entries[put]
    assert entry.pins == 0
    assert not harness.core.tasks.tasks
    assert not harness.core.actors.table


def test_a_call_of_an_ended_job_takes_no_turn_at_an_actor_of_another() -> None:
    harness = Harness()
    harness.driver()
    put = a_put(harness)
    creation = structs.replace(harness.spec(), kind=ACTOR_CREATION, max_retries=0, job=2)
    creation = structs.replace(creation, actor_id=creation.task_id, parent_id=b"o" * 16)
    call = as_call(harness.spec(deps=[put]), creation)
    harness.submit(creation)
    worker = harness.worker()
    harness.client(worker, Borrow([put]))
    harness.submit(call)
    harness.say(events.StoreSaid(JobClosed(1)))
    assert list(harness.core.tasks.tasks) == [creation.task_id]
    assert not any(harness.core.actors.table[creation.task_id].queues.values())
    assert harness.core.objects.entries[put].pins == 0
    harness.finish(worker, creation)
    assert harness.core.objects.entries[put].pins == 0


def closings(harness: Harness) -> list[CloseJob]:
    told = [effect.message for effect in harness.of(events.ToControlStore)]
    return [message for message in told if isinstance(message, CloseJob)]


def comes_back(harness: Harness) -> None:
    """Another control store leads, which knows what it is told."""
    harness.say(events.StoreLost())
    harness.say(events.StoreSaid(Registered(1, 1, 2, [view(1)], "")))


def test_a_clean_end_is_said_until_the_job_has_ended() -> None:
    harness = Harness()
    harness.driver()
    harness.client(DRIVER, Bye())
    harness.say(events.ClientGone(DRIVER))
    harness.commit()
    end = CloseJob(1, failed=False)
    assert closings(harness) == [end]
    comes_back(harness)
    assert closings(harness) == [end, end]
    harness.say(events.StoreSaid(JobClosed(1)))
    comes_back(harness)
    assert closings(harness) == [end, end]
