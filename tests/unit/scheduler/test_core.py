"""The node's core: lists of events, and the effects that must (or must not yet) follow."""

from __future__ import annotations

from msgspec import Raw, structs

from regrow.gcs.operations import CONFLICT, FENCED
from regrow.ids import driver_task_id, object_id, put_object_id
from regrow.messages import (
    OK,
    PENDING,
    RESUMED,
    SYSTEM_ERROR,
    TASK_ERROR,
    Answer,
    Ask,
    Blocked,
    Committed,
    Create,
    Created,
    Done,
    Drop,
    HandedTask,
    HandOver,
    HeldTask,
    Locate,
    Located,
    Locations,
    LookUpTasks,
    NodeDied,
    Nodes,
    PeerValues,
    Put,
    PutValue,
    Read,
    Reassigned,
    Rebuild,
    Release,
    Return,
    Run,
    Seal,
    Submit,
    TaskDone,
    TaskSpec,
    TaskState,
    TaskStates,
    Unblocked,
    Value,
    Values,
    Watch,
    Whereabouts,
    encode,
    failure_decoder,
    flags_of_driver,
)
from regrow.objectstore.layout import digest
from regrow.scheduler import events
from tests.unit.scheduler.harness import DRIVER, ROOT, Harness, first, view

BIG = 100_000


def running(cpus: int = 1, arena: int = 1 << 20) -> tuple[Harness, int]:
    """A node with a driver and one worker, everything committed."""
    node = Harness(cpus, arena)
    node.driver()
    node.core.pool.start(1)
    worker = node.worker()
    node.commit_all()
    node.effects.clear()
    return node, worker


def test_a_task_that_finished_before_its_flush_is_one_record() -> None:
    node, worker = running()
    spec = node.spec()
    node.submit(spec)
    assert node.messages(worker, Run)
    node.finish(worker, spec)
    (batch,) = node.batches()
    assert [record.header.task_id for record in batch.submitted] == [spec.task_id]
    assert batch.submitted[0].outcome is not None
    assert not batch.outcomes


def test_a_driver_sees_a_result_only_after_its_commit() -> None:
    node, worker = running()
    spec = node.spec()
    node.submit(spec)
    node.finish(worker, spec)
    assert node.values(DRIVER) == []
    node.commit()
    assert node.values(DRIVER) == [first(spec)]


def test_an_async_driver_does_not_wait_for_the_commit() -> None:
    node = Harness()
    node.driver(durability="async")
    spec = node.spec()
    node.submit(spec)
    worker = node.worker()
    node.finish(worker, spec)
    assert node.values(DRIVER) == [first(spec)]
    assert not any(batch.submitted for batch in node.batches())


def test_a_worker_is_told_at_once() -> None:
    node, worker = running(cpus=2)
    outer, inner = node.spec(), node.spec()
    node.submit(outer)
    node.client(worker, Submit([Raw(encode(inner))]))
    other = node.worker()
    node.finish(other, inner)
    assert first(inner) in node.values(worker)


def test_a_specification_alone_is_flushed_when_its_time_has_come() -> None:
    node, _ = running()
    node.submit(node.spec(), node.spec())
    assert node.of(events.ArmFlush)
    assert not node.batches()
    node.say(events.FlushDue())
    assert len(node.batches()) == 1
    node.commit()
    assert [message.count for message in node.messages(DRIVER, Committed)] == [2]


def test_who_asks_for_the_commits_is_answered_after_all_that_was_logged_before() -> None:
    node, worker = running()
    node.submit(node.spec())
    node.client(worker, Ask(1, "commits"))
    node.submit(node.spec())
    assert len(node.batches()) == 1, "the batch is not held back for others"
    assert not node.messages(worker, Answer)
    node.commit()
    assert [answer.number for answer in node.messages(worker, Answer)] == [1]
    node.commit_all()
    node.client(worker, Ask(2, "commits"))
    assert [answer.number for answer in node.messages(worker, Answer)] == [1, 2]


def test_a_task_is_handed_over_after_the_log_names_its_new_holder() -> None:
    node, _ = running()
    node.say(events.StoreSaid(Nodes([view(1), view(2, total={"GPU": 10_000})])))
    spec = node.spec(resources={"GPU": 10_000})
    node.submit(spec)
    assert not node.of(events.ToPeer)
    (batch,) = node.batches()
    assert batch.submitted[0].holder == (2, 1)
    node.commit()
    (sent,) = node.of(events.ToPeer)
    assert sent.node_id == 2
    assert isinstance(sent.message, HandOver)


def test_a_task_that_ended_elsewhere_and_is_lost_is_made_again_here() -> None:
    """Its result is in the log and its node gone, with the bytes and with the news."""
    node, worker = running()
    node.say(events.StoreSaid(Nodes([view(1), view(2)])))
    spec = node.spec(strategy="node:2:soft")
    node.submit(spec)
    node.commit_all()
    assert any(isinstance(sent.message, HandOver) for sent in node.of(events.ToPeer))
    node.say(events.StoreSaid(NodeDied(2, 1, "gone")))
    lost = HeldTask(Raw(encode(spec)), 1, 1, [digest(b"x")], OK)
    node.say(events.StoreSaid(Rebuild([lost])))
    assert runs(node, worker, spec) == 1
    node.say(events.StoreSaid(Rebuild([lost])))
    assert runs(node, worker, spec) == 1, "it is being made"


def test_a_task_from_here_whose_result_comes_as_an_argument_has_ended() -> None:
    node, _ = running()
    node.say(events.StoreSaid(Nodes([view(1), view(2)])))
    dep = node.spec()
    spec = node.spec(deps=[first(dep)], strategy="node:2:soft")
    node.submit(dep, spec)
    node.finish(2, dep)
    node.commit_all()
    assert list(node.core.tasks.tasks) == [spec.task_id]
    result = Value(first(spec), OK, 100_000, None, digest(b"x"))
    other = node.spec(deps=[first(spec)])
    handed = HandedTask(Raw(encode(other)), 1, 2, [result], [(first(spec), 2)])
    node.say(events.PeerSaid(2, HandOver([handed], []), 1))
    assert spec.task_id not in node.core.tasks.tasks
    assert first(dep) in node.core.objects.entries
    assert node.core.objects.entries[first(dep)].pins == 0


def test_arguments_that_drive_each_other_out_of_memory_are_all_there_in_the_end() -> None:
    node, worker = running(arena=150_000)
    node.say(events.StoreSaid(Nodes([view(1), view(2)])))
    deps = [object_id(bytes([n]) * 16, 0) for n in (1, 2)]
    values = [Value(dep, OK, 60_000, None, digest(b"x")) for dep in deps]
    spec = node.spec(deps=deps)
    handed = HandedTask(Raw(encode(spec)), 1, 2, values, [(dep, 2) for dep in deps])
    node.say(events.PeerSaid(2, HandOver([handed], []), 1))
    asked = node.of(events.FetchBytes)
    assert len(asked) == 2
    node.say(events.Fetched(asked[0].key, True))
    # There is room for one of them only.
    node.client(DRIVER, Create(object_id(b"3" * 16, 0), 0, 50_000))
    for number in range(1, 10):
        if runs(node, worker, spec):
            break
        node.say(events.Fetched(node.of(events.FetchBytes)[number].key, True))
    assert number == 3, "it was fetched a second time, and then found room elsewhere"


def test_a_task_is_not_handed_to_the_next_incarnation() -> None:
    node, _ = running()
    node.say(events.StoreSaid(Nodes([view(1), view(2, total={"GPU": 10_000})])))
    node.submit(node.spec(resources={"GPU": 10_000}))
    node.say(events.StoreSaid(NodeDied(2, 1, "gone")))
    node.say(events.StoreSaid(Nodes([view(1), view(2, 2, total={"GPU": 10_000})])))
    node.commit_all()
    assert not [e for e in node.of(events.ToPeer) if isinstance(e.message, HandOver)]


def test_an_answer_that_the_incarnation_is_over_ends_it() -> None:
    for verdict in (FENCED, CONFLICT):
        node, worker = running()
        spec = node.spec()
        node.submit(spec)
        node.finish(worker, spec)
        (ended,) = node.say(events.Appended(node.core.journal.in_flight[0].number, verdict, "why"))
        assert isinstance(ended, events.Restart)
        assert node.say(events.FlushDue()) == []
        assert node.values(DRIVER) == []


def test_submissions_are_acknowledged_in_their_order() -> None:
    """What is looked up is acknowledged after the answer; what came later must not be before it."""
    node, _ = running()
    spec = node.spec()
    node.submit(spec, resent=True)
    put = PutValue(put_object_id(node.ids.next_id()), driver_task_id(ROOT), 1, digest(b"p"), b"p")
    node.client(DRIVER, Put([put]))
    node.commit_all()
    assert node.messages(DRIVER, Committed) == []
    (asked,) = [
        e.message for e in node.of(events.ToControlStore) if isinstance(e.message, LookUpTasks)
    ]
    node.say(events.StoreSaid(TaskStates(asked.number, [TaskState(spec.task_id, False)])))
    node.commit_all()
    assert sum(message.count for message in node.messages(DRIVER, Committed)) == 2
    assert any(
        record.header.task_id == spec.task_id for b in node.batches() for record in b.submitted
    )


def test_a_replayed_parent_ends_only_when_its_children_are_in_the_log() -> None:
    """Its result may refer to them, and once it has ended it is not run again."""
    node, worker = running(cpus=2)
    parent = node.spec(flags=RESUMED)
    node.submit(parent)
    node.commit_all()
    node.say(events.StoreSaid(TaskStates(1, [TaskState(parent.task_id, False, PENDING, 0, [])])))
    node.commit_all()
    assert runs(node, worker, parent) == 1
    child = structs.replace(node.spec(flags=RESUMED), parent_id=parent.task_id)
    node.client(worker, Submit([Raw(encode(child))]))
    node.finish(worker, parent)
    node.commit_all()
    assert not [o for batch in node.batches() for o in batch.outcomes]
    assert node.values(DRIVER) == []
    node.say(events.StoreSaid(TaskStates(2, [TaskState(child.task_id, False, PENDING, 0, [])])))
    node.commit_all()
    logged = [s.header.task_id for batch in node.batches() for s in batch.submitted]
    assert child.task_id in logged
    assert first(parent) in node.values(DRIVER)


def test_what_ends_while_it_is_looked_up_is_not_started_again() -> None:
    node, worker = running()
    spec = node.spec()
    node.submit(spec)
    node.submit(spec, resent=True)
    node.commit_all()
    node.finish(worker, spec)
    node.effects.clear()
    node.say(events.StoreSaid(TaskStates(1, [TaskState(spec.task_id, True, holder=1)])))
    assert not node.messages(worker, Run)
    assert spec.task_id not in node.core.tasks.tasks


def test_a_long_chain_fails_with_its_first_task() -> None:
    """No recursion: each task fails because its argument did."""
    node, worker = running()
    specs = [node.spec()]
    for _ in range(5_000):
        specs.append(node.spec(deps=[first(specs[-1])]))
    node.submit(*specs)
    node.finish(worker, specs[0], b"error", TASK_ERROR)
    assert not node.core.tasks.tasks
    node.commit_all()
    assert node.values(DRIVER)[-1] == first(specs[-1])


def large_result(node: Harness, worker: int, max_retries: int = 3) -> bytes:
    """Runs a task whose result lies in the arena; its object id."""
    spec = node.spec(max_retries=max_retries)
    node.submit(spec)
    oid = first(spec)
    node.client(worker, Create(oid, 1, BIG))
    node.write_spills()
    assert node.messages(worker, Created)[-1].location is not None
    returned = Return(BIG, digest(b"bytes"), None)
    node.client(worker, Done([TaskDone(spec.task_id, 1, OK, [returned], 1000)]))
    return oid


def test_a_large_result_that_cannot_be_made_again_is_stored_before_it_is_released() -> None:
    node, worker = running()
    oid = large_result(node, worker, max_retries=0)
    (store,) = node.of(events.StoreBytes)
    assert not any(b.outcomes or (b.submitted and b.submitted[0].outcome) for b in node.batches())
    node.say(events.Stored(oid, "storage/x"))
    node.commit_all()
    assert node.values(DRIVER) == [oid]
    assert store.key == (oid, 1)
    assert any(stored == (oid, "storage/x") for b in node.batches() for stored in b.stored)


def tick(node: Harness, at_ms: float) -> None:
    node.core.now_ms = at_ms
    node.say(events.Tick(at_ms))


def refuse_store(node: Harness, oid: bytes, code: str = "storage") -> None:
    node.say(events.Stored(oid, "", code, "it says no"))


def test_storage_that_refuses_once_is_asked_again() -> None:
    node, worker = running()
    oid = large_result(node, worker, max_retries=0)
    refuse_store(node, oid)
    assert len(node.of(events.StoreBytes)) == 1
    tick(node, 1000)
    assert len(node.of(events.StoreBytes)) == 2
    tick(node, 1500)
    assert len(node.of(events.StoreBytes)) == 2, "one write at a time"
    node.say(events.Stored(oid, "storage/x"))
    node.commit_all()
    assert node.values(DRIVER) == [oid]
    assert [e.kind for b in node.batches() for e in b.events] == ["storage_failed", "storage_works"]


def test_a_result_that_storage_keeps_refusing_is_a_typed_error_and_holds_nothing() -> None:
    node, worker = running()
    oid = large_result(node, worker, max_retries=0)
    at_ms = 0.0
    for _ in range(100):
        refuse_store(node, oid, "out_of_disk")
        if node.values(DRIVER) or not node.core.tasks.tasks:
            break
        at_ms += 2000.0
        tick(node, at_ms)
    assert at_ms / 1000 >= node.core.config.storage_retry_s
    node.commit_all()
    (value,) = [v for message in node.messages(DRIVER, Values) for v in message.values]
    assert value.object_id == oid
    assert value.status == SYSTEM_ERROR
    assert value.data is not None
    failure = failure_decoder.decode(value.data)
    assert failure.code == "out_of_disk"
    assert "it says no" in failure.message
    assert node.core.transport.store.lookup((oid, 1)) is None


def test_a_put_that_storage_refused_is_written_behind_later() -> None:
    node, _ = running()
    oid = put_object_id(node.ids.next_id())
    node.client(DRIVER, Create(oid, 0, BIG))
    node.client(DRIVER, Seal(oid, driver_task_id(ROOT), 1, BIG, digest(b"bytes")))
    at_ms = 0.0
    for attempt in range(1, 4):
        at_ms += 60_000
        tick(node, at_ms)
        tick(node, at_ms + 1)
        assert len(node.of(events.StoreBytes)) == attempt
        refuse_store(node, oid)
    tick(node, at_ms + 60_000)
    node.say(events.Stored(oid, "storage/x"))
    tick(node, at_ms + 120_000)
    assert len(node.of(events.StoreBytes)) == 4
    node.commit_all()
    assert any(stored == (oid, "storage/x") for b in node.batches() for stored in b.stored)


def put(node: Harness) -> bytes:
    """The driver puts something large."""
    oid = put_object_id(node.ids.next_id())
    node.client(DRIVER, Create(oid, 0, BIG))
    node.write_spills()
    node.client(DRIVER, Seal(oid, driver_task_id(ROOT), 1, BIG, digest(b"bytes")))
    return oid


def test_a_durable_put_is_answered_after_the_commit_of_its_place_in_storage() -> None:
    node, _ = running()
    oid = put(node)
    node.client(DRIVER, Ask(1, "store_put", oid))
    assert len(node.of(events.StoreBytes)) == 1, "it does not wait for its turn"
    node.commit_all()
    node.say(events.Stored(oid, "storage/x"))
    assert not node.messages(DRIVER, Answer)
    node.commit_all()
    assert node.messages(DRIVER, Answer) == [Answer(1, b"")]
    node.client(DRIVER, Ask(2, "store_put", oid))
    assert node.messages(DRIVER, Answer)[1:] == [Answer(2, b"")]
    tick(node, 60_000)
    assert len(node.of(events.StoreBytes)) == 1, "it is not written behind again"


def test_a_durable_put_that_is_being_written_behind_is_answered_with_that() -> None:
    node, _ = running()
    oid = put(node)
    tick(node, 60_000)
    node.client(DRIVER, Ask(1, "store_put", oid))
    refuse_store(node, oid)
    assert not node.messages(DRIVER, Answer), "somebody waits: it is tried again at once"
    tick(node, 61_000)
    assert len(node.of(events.StoreBytes)) == 2
    node.say(events.Stored(oid, "storage/x"))
    node.commit_all()
    assert node.messages(DRIVER, Answer) == [Answer(1, b"")]


def test_a_durable_put_that_was_spilled_is_brought_back_to_be_stored() -> None:
    node, worker = running(arena=512 * 1024)
    oid = put(node)
    others = [large_result(node, worker) for _ in range(6)]
    node.write_spills()
    node.client(DRIVER, Ask(1, "store_put", oid))
    assert not node.of(events.StoreBytes)
    node.write_spills()
    assert node.of(events.RestoreBytes)
    node.say(events.Restored((oid, 0), ok=True))
    assert len(node.of(events.StoreBytes)) == 1
    node.say(events.Stored(oid, "storage/x"))
    node.commit_all()
    assert node.messages(DRIVER, Answer) == [Answer(1, b"")]
    node.client(DRIVER, Drop([oid, *others]))
    assert node.core.transport.store.lookup((oid, 0)) is None, "a pin was left"


def test_a_durable_put_that_cannot_be_stored_is_a_typed_error() -> None:
    node, _ = running()
    oid = put(node)
    node.client(DRIVER, Ask(1, "store_put", oid))
    refuse_store(node, oid)
    tick(node, 60_000)
    refuse_store(node, oid, "out_of_disk")
    node.client(DRIVER, Ask(2, "store_put", b"?" * 20))
    node.commit_all()
    refused, unknown = [answer.error for answer in node.messages(DRIVER, Answer)]
    assert refused is not None
    assert unknown is not None
    assert (refused.code, unknown.code) == ("out_of_disk", "object_lost")
    assert "it says no" in refused.message


def test_a_copy_that_is_brought_back_is_pinned_once_for_each_reader() -> None:
    node, worker = running(arena=512 * 1024)
    oid = large_result(node, worker)
    node.commit_all()
    others = [large_result(node, worker) for _ in range(6)]
    node.write_spills()
    node.commit_all()
    key = (oid, 1)
    node.client(DRIVER, Drop(others))
    node.client(DRIVER, Read([oid]))
    node.client(worker, Read([oid]))
    assert node.of(events.RestoreBytes)
    node.say(events.Restored(key, ok=True))
    for client in (DRIVER, worker):
        assert [m.locations[0].object_id for m in node.messages(client, Located)] == [oid]
        node.client(client, Release([key]))
    node.client(DRIVER, Drop([oid]))
    assert node.core.transport.store.lookup(key) is None


def test_a_copy_whose_last_reader_let_go_while_it_was_brought_back_is_freed() -> None:
    node, worker = running(arena=512 * 1024)
    oid = large_result(node, worker)
    node.commit_all()
    others = [large_result(node, worker) for _ in range(6)]
    node.write_spills()
    node.commit_all()
    node.client(DRIVER, Drop(others))
    node.client(DRIVER, Read([oid]))
    node.client(DRIVER, Drop([oid]))
    node.say(events.Restored((oid, 1), ok=True))
    node.client(DRIVER, Release([(oid, 1)]))
    assert oid not in node.core.objects.entries
    assert node.core.transport.store.lookup((oid, 1)) is None


def test_a_task_that_waits_gives_its_cpu_back() -> None:
    node, worker = running()
    outer, inner = node.spec(), node.spec()
    node.submit(outer)
    node.client(worker, Submit([Raw(encode(inner))]))
    assert node.core.ledger.available["CPU"] == 0
    node.client(worker, Blocked(outer.task_id))
    other = node.worker()
    assert node.messages(other, Run)
    node.finish(other, inner)
    node.client(worker, Unblocked(outer.task_id))
    node.finish(worker, outer)
    assert node.core.ledger.available == node.core.ledger.total


def test_a_worker_that_dies_costs_an_attempt_until_none_is_left() -> None:
    node, worker = running()
    spec = node.spec(max_retries=0)
    node.submit(spec)
    node.say(events.ClientGone(worker))
    node.commit_all()
    (told,) = [v for m in node.messages(DRIVER, Values) for v in m.values]
    assert (told.object_id, told.status) == (first(spec), 3)


def test_a_peer_that_asks_for_what_it_told_of_is_answered() -> None:
    node, _ = running()
    node.say(events.StoreSaid(Nodes([view(1), view(2, total={"GPU": 10_000})])))
    spec = node.spec(resources={"GPU": 10_000})
    node.submit(spec)
    node.commit_all()
    oid = object_id(spec.task_id, 0)
    node.say(events.PeerSaid(2, Watch([oid]), 1))
    node.effects.clear()
    value = Value(oid, OK, 1, b"x", digest(b"x"))
    node.say(events.PeerSaid(2, PeerValues([value]), 1))
    node.commit_all()
    assert [e.message for e in node.of(events.ToPeer) if isinstance(e.message, PeerValues)]


def handed_from_a_peer(node: Harness) -> TaskSpec:
    """A task of node 2, which this node now holds."""
    spec = node.spec()
    node.say(events.StoreSaid(Nodes([view(1), view(2)])))
    handed = HandedTask(Raw(encode(spec)), 1, 2, [], [])
    node.say(events.PeerSaid(2, HandOver([handed], []), 1))
    return spec


def runs(node: Harness, client: int, spec: TaskSpec) -> int:
    """How often the worker was told to run it."""
    tasks = [task for message in node.messages(client, Run) for task in message.tasks]
    return sum(bytes(task.spec) == encode(spec) for task in tasks)


def test_a_task_that_has_ended_here_is_not_run_again_for_a_reminder_that_is_out_of_date() -> None:
    """The control store read that it was unfinished just before its outcome was committed."""
    node, worker = running()
    spec = handed_from_a_peer(node)
    node.finish(worker, spec)
    node.commit_all()
    node.say(events.StoreSaid(Reassigned([HeldTask(Raw(encode(spec)), 1, 2)])))
    assert runs(node, worker, spec) == 1


def test_a_task_that_ended_here_is_run_again_for_the_next_driver_of_its_job() -> None:
    """What its first driver left behind was moved about, in more attempts than it needs now."""
    node, worker = running()
    node.say(events.StoreSaid(Nodes([view(1), view(2)])))
    first_one = node.spec(flags=flags_of_driver(1))
    node.say(
        events.PeerSaid(2, HandOver([HandedTask(Raw(encode(first_one)), 3, 2, [], [])], []), 1)
    )
    node.finish(worker, first_one, attempt=3)
    node.commit_all()
    second = structs.replace(first_one, flags=flags_of_driver(2))
    node.say(events.PeerSaid(2, HandOver([HandedTask(Raw(encode(second)), 1, 2, [], [])], []), 1))
    assert runs(node, worker, second) == 1


def test_who_hands_over_what_has_ended_here_already_is_told_of_the_result() -> None:
    """A driver went from node 3 to node 2, and node 3 could not reach Postgres meanwhile."""
    node, worker = running()
    spec = handed_from_a_peer(node)
    node.finish(worker, spec)
    node.commit_all()
    node.say(events.StoreSaid(Nodes([view(1), view(2), view(3)])))
    node.say(events.PeerSaid(3, HandOver([HandedTask(Raw(encode(spec)), 1, 3, [], [])], []), 1))
    assert runs(node, worker, spec) == 1
    asked = [sent.message for sent in node.of(events.ToControlStore)]
    assert Locate([first(spec)]) in asked
    value = Value(first(spec), OK, 1, b"x", digest(b"x"))
    node.say(events.StoreSaid(Locations([Whereabouts(first(spec), value)])))
    told = [sent.message for sent in node.of(events.ToPeer) if sent.node_id == 3]
    assert told == [PeerValues([value])]


def test_a_task_that_ended_here_is_run_again_in_a_new_attempt() -> None:
    node, worker = running()
    spec = handed_from_a_peer(node)
    node.finish(worker, spec)
    node.commit_all()
    node.say(events.StoreSaid(Reassigned([HeldTask(Raw(encode(spec)), 2, 2)])))
    assert runs(node, worker, spec) == 2
