"""Large puts that nobody could make again go to storage by themselves."""

from __future__ import annotations

import pytest
from msgspec import msgpack

from regrow.ids import driver_task_id, object_id, put_object_id
from regrow.messages import (
    OK,
    TASK_ERROR,
    Borrow,
    Create,
    Done,
    Drop,
    JobClosed,
    Return,
    Run,
    Seal,
    TaskDone,
    TaskSpec,
)
from regrow.objectstore.layout import digest
from regrow.scheduler import events
from tests.unit.scheduler.harness import DRIVER, ROOT, Harness, first

BIG = 100_000
DELAY_MS = 1000.0


def running(arena: int = 1 << 20) -> tuple[Harness, int]:
    """A node with a driver and one worker."""
    node = Harness(arena=arena, write_behind_delay_s=DELAY_MS / 1000)
    node.driver()
    node.core.pool.start(1)
    return node, node.worker()


def tick(node: Harness, at_ms: float) -> None:
    node.core.now_ms = at_ms
    node.say(events.Tick(at_ms))


def put(node: Harness, client: int, parent: bytes) -> bytes:
    """The client puts something large, in this task; the driver has a reference to it."""
    oid = put_object_id(node.ids.next_id())
    node.client(client, Create(oid, 0, BIG))
    node.write_spills()
    node.client(client, Seal(oid, parent, 1, BIG, digest(b"bytes")))
    node.client(DRIVER, Borrow([oid]))
    return oid


def put_in_task(node: Harness, worker: int, spec: TaskSpec, status: int = OK) -> bytes:
    """A task puts something large, and ends."""
    node.submit(spec)
    assert [run.task_id for run in ran(node, worker)][-1] == spec.task_id
    oid = put(node, worker, spec.task_id)
    node.finish(worker, spec, status=status)
    return oid


def ran(node: Harness, worker: int) -> list[TaskSpec]:
    specs = [run.spec for message in node.messages(worker, Run) for run in message.tasks]
    return [msgpack.decode(spec, type=TaskSpec) for spec in specs]


def stored(node: Harness) -> list[bytes]:
    """What was to be written to storage so far."""
    return [effect.key[0] for effect in node.of(events.StoreBytes)]


@pytest.mark.parametrize(("retries", "status", "written"), [
    (3, OK, False),  # it can be run again
    (3, TASK_ERROR, True),
    (-1, TASK_ERROR, True),
    (0, OK, True),
    (0, TASK_ERROR, True),
])  # fmt: skip
def test_a_put_of_a_task_that_does_not_run_again_is_written_behind(
    retries: int, status: int, written: bool
) -> None:
    node, worker = running()
    oid = put_in_task(node, worker, node.spec(max_retries=retries), status)
    tick(node, DELAY_MS + 1)
    assert stored(node) == ([oid] if written else [])


def test_a_put_that_nobody_holds_is_not_written_behind() -> None:
    node, worker = running()
    oid = put_in_task(node, worker, node.spec(), TASK_ERROR)
    for client in (worker, DRIVER):
        node.client(client, Drop([oid]))
    tick(node, DELAY_MS + 1)
    assert stored(node) == []


def test_a_put_that_was_spilled_first_is_brought_back_to_be_written_behind() -> None:
    """One at a time: what is brought back drives others out."""
    node, worker = running(arena=512 * 1024)
    puts = [put(node, DRIVER, driver_task_id(ROOT)) for _ in range(2)]
    for _ in range(6):
        spec = node.spec()
        node.submit(spec)
        node.client(worker, Create(first(spec), 1, BIG))
        node.write_spills()
        returned = Return(BIG, digest(b"r"), None)
        node.client(worker, Done([TaskDone(spec.task_id, 1, OK, [returned], 1)]))
    for number, oid in enumerate(puts, 1):
        for at in range(3):
            tick(node, DELAY_MS * number * 10 + at)
        node.write_spills()
        restores = node.of(events.RestoreBytes)
        assert [r.restore.key[0] for r in restores] == puts[:number]
        node.say(events.Restored((oid, 0), ok=True))
        assert stored(node) == puts[:number]
        node.say(events.Stored(oid, "storage/x"))
    node.commit_all()
    assert [s for b in node.batches() for s in b.stored] == [(oid, "storage/x") for oid in puts]


def test_what_a_result_refers_to_is_held_while_the_task_waits_for_storage() -> None:
    node, worker = running()
    spec = node.spec(num_returns=2, max_retries=0)
    node.submit(spec)
    oid, large = put_object_id(node.ids.next_id()), object_id(spec.task_id, 1)
    node.client(worker, Create(oid, 0, BIG))
    node.client(worker, Seal(oid, spec.task_id, 1, BIG, digest(b"bytes")))
    node.client(worker, Create(large, 1, BIG))
    returns = [Return(1, digest(b"x"), b"x", [oid]), Return(BIG, digest(b"bytes"), None)]
    node.client(worker, Done([TaskDone(spec.task_id, 1, OK, returns, 1000)]))
    node.client(worker, Drop([oid]))
    assert node.core.transport.store.lookup((oid, 0)) is not None
    node.say(events.Stored(large, "storage/x"))
    node.commit_all()
    assert node.core.transport.store.lookup((oid, 0)) is not None, "the driver's value has it"
    node.client(DRIVER, Drop([first(spec), large]))
    assert node.core.transport.store.lookup((oid, 0)) is None
    assert oid not in node.core.objects.entries


def test_what_a_result_referred_to_is_let_go_where_its_job_ended_before_storage_answered() -> None:
    node, worker = running()
    spec = node.spec(max_retries=0)
    node.submit(spec)
    oid = put(node, worker, spec.task_id)
    node.client(worker, Create(first(spec), 1, BIG))
    returned = Return(BIG, digest(b"bytes"), None, [oid])
    node.client(worker, Done([TaskDone(spec.task_id, 1, OK, [returned], 1000)]))
    node.client(worker, Drop([oid]))
    node.say(events.StoreSaid(JobClosed(1, 0)))
    node.say(events.Stored(first(spec), "storage/x"))
    node.commit_all()
    assert oid not in node.core.objects.entries
