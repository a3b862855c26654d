"""Lost objects: what runs again, where, in which order, and what is said when nothing can."""

from __future__ import annotations

from regrow.gcs import operations as ops
from regrow.gcs.core_events import Settings
from regrow.ids import put_object_id
from regrow.messages import (
    ACTOR_CALL,
    PENDING,
    SYSTEM_ERROR,
    CloseJob,
    JobClosed,
    Locate,
    Locations,
    ObjectsHere,
    OpenJob,
    Rebuild,
    Rebuilt,
    SystemFailure,
    WatchFor,
    Whereabouts,
    failure_decoder,
    header_decoder,
)
from tests.unit.gcs.harness import LARGE, Bench, FakeStore, oid, tid, view


def answers(bench: Bench, conn: int) -> list[Whereabouts]:
    return [where for message in bench.of(conn, Locations) for where in message.objects]


def rebuilt(bench: Bench, conn: int) -> list[int]:
    """The tasks that this session was told to run again, in order."""
    return [
        int.from_bytes(header_decoder.decode(held.spec).task_id, "big")
        for message in bench.of(conn, Rebuild)
        for held in message.tasks
    ]


def failure(bench: Bench, conn: int) -> SystemFailure:
    value = answers(bench, conn)[-1].value
    assert value is not None and value.data is not None
    assert value.status == SYSTEM_ERROR
    return failure_decoder.decode(value.data)


def with_victim(objects: list[bytes]) -> tuple[Bench, int, int]:
    """Nodes 1 and 2 live; node 3 held these objects and is killed. Sessions of 1 and 2."""
    bench = Bench()
    one, two, three = bench.join(), bench.join(), bench.join()
    bench.say(three, ObjectsHere([(object_id, LARGE) for object_id in objects]))
    bench.kill(three)
    return bench, one, two


def test_a_lost_object_is_rebuilt_where_it_is_asked_for() -> None:
    bench, one, two = with_victim([oid(1)])
    bench.store.large(1)
    bench.say(two, Locate([oid(1)]))
    assert rebuilt(bench, two) == [1]
    assert answers(bench, two) == [Whereabouts(oid(1), maker=2)]
    assert rebuilt(bench, one) == []


def test_others_who_ask_for_it_meanwhile_wait_for_the_same_rebuild() -> None:
    bench, one, two = with_victim([oid(1)])
    bench.store.large(1)
    bench.hold = (ops.ReadLineage,)
    bench.say(two, Locate([oid(1)]))
    bench.say(one, Locate([oid(1)]))
    bench.release()
    bench.say(one, Locate([oid(1)]))
    assert answers(bench, one) == [Whereabouts(oid(1), maker=2)] * 2
    assert bench.of(two, WatchFor) == [WatchFor([oid(1)], 1)] * 2
    assert rebuilt(bench, two) == [1]


def test_producers_run_before_consumers_and_what_exists_is_not_made_again() -> None:
    bench, one, two = with_victim([oid(n) for n in (2, 3, 4)])
    bench.store.large(1)
    bench.store.large(2, needs=[oid(1)])
    bench.store.large(3, needs=[oid(2), oid(1)])
    bench.store.large(4, needs=[oid(3), oid(9)], stored=[(oid(9), "path")])
    bench.store.objects[oid(4)] = bench.store.objects[oid(4)].__class__(
        oid(4), True, 1, 0, bench.store.objects[oid(3)].value, "", tid(4), 3
    )
    bench.say(two, ObjectsHere([(oid(1), LARGE)]))
    bench.say(one, Locate([oid(4)]))
    assert rebuilt(bench, one) == [2, 3, 4]


def test_a_chain_of_10000_lost_objects_takes_few_round_trips() -> None:
    depth = 10_000
    bench, one, _ = with_victim([oid(n) for n in range(1, depth + 1)])
    for number in range(1, depth + 1):
        bench.store.large(number, needs=[oid(number - 1)] if number > 1 else [])
    before = len(bench.executed)
    bench.say(one, Locate([oid(depth)]))
    assert rebuilt(bench, one) == list(range(1, depth + 1))
    assert max(len(message.tasks) for message in bench.of(one, Rebuild)) <= 500
    assert len(bench.executed) - before < 25


def test_1000_objects_lost_at_once_are_rebuilt_together() -> None:
    ids = [oid(number) for number in range(1, 1001)]
    bench, one, _ = with_victim(ids)
    for number in range(1, 1001):
        bench.store.large(number)
    before = len(bench.executed)
    bench.say(one, Locate(ids))
    assert sorted(rebuilt(bench, one)) == list(range(1, 1001))
    assert [where.maker for where in answers(bench, one)] == [1] * 1000
    assert len(bench.executed) - before <= 4


def test_a_task_that_may_not_run_again_makes_a_typed_error_that_says_why() -> None:
    bench, one, _ = with_victim([oid(1)])
    bench.store.large(1, max_retries=0)
    bench.say(one, Locate([oid(1)]))
    said = failure(bench, one)
    assert said.code == "object_lost"
    assert "max_retries=0" in said.message
    assert "node 3, which had its last copy" in said.message
    assert oid(1).hex() in said.message


def test_an_actors_large_result_does_not_come_back() -> None:
    bench, one, _ = with_victim([oid(1)])
    bench.store.large(1, kind=ACTOR_CALL, made_by="actor_call", max_retries=0)
    bench.say(one, Locate([oid(1)]))
    assert "is an actor's" in failure(bench, one).message


def test_what_only_an_actor_without_restarts_had_is_lost_though_another_is_on_its_way_back() -> (
    None
):
    """That one may wait for just this object: an argument of one of its calls."""
    bench, one, _ = with_victim([oid(1)])
    bench.store.large(1, kind=ACTOR_CALL, made_by="actor_call", max_retries=0)
    bench.store.large(2, kind=ACTOR_CALL, made_by="actor_call", max_retries=-1)
    bench.store.restarting[tid(7)] = ops.RestartingActor(tid(7), 1, (2, 1))
    bench.core.restarts.lost([bench.store.restarting[tid(7)]])
    bench.tick()
    assert bench.core.restarts.under_way
    bench.say(one, Locate([oid(1), oid(2)]))
    assert [where.object_id for where in answers(bench, one)] == [oid(1)]
    assert "is an actor's" in failure(bench, one).message


def test_an_ancestor_that_cannot_come_back_fails_all_that_need_it_and_nothing_else() -> None:
    bench, one, _ = with_victim([oid(n) for n in (1, 2, 3, 4)])
    bench.store.large(1, max_retries=0)
    bench.store.large(2, needs=[oid(1)])
    bench.store.large(3, needs=[oid(2)])
    bench.store.large(4)
    bench.say(one, Locate([oid(3), oid(4)]))
    assert rebuilt(bench, one) == [4]
    value = next(where.value for where in answers(bench, one) if where.object_id == oid(3))
    assert value is not None and value.data is not None
    said = failure_decoder.decode(value.data)
    assert said.code == "object_reconstruction_failed"
    assert f"task {tid(1).hex()}" in said.message


def test_a_drivers_put_that_was_not_stored_is_lost_with_its_node() -> None:
    put = put_object_id(tid(1))
    bench, one, _ = with_victim([put])
    bench.store.objects[put] = ops.ObjectRow(put, True, 1, made_by="driver_put")
    bench.say(one, Locate([put]))
    said = failure(bench, one)
    assert said.code == "object_lost"
    assert "put by the driver" in said.message


def test_a_drivers_put_whose_bytes_in_storage_cannot_be_read_is_read_again_when_asked_for() -> None:
    """It is said to be lost, and why; but what storage cannot give now it may give later."""
    put = put_object_id(tid(1))
    bench, one, _ = with_victim([put])
    bench.store.objects[put] = ops.ObjectRow(put, True, 1, stored="path", made_by="driver_put")
    bench.say(one, Locate([put]))
    assert answers(bench, one) == [Whereabouts(put, stored="path")]
    bench.say(one, Locate([put], gone=[(put, 0)]))
    said = failure(bench, one)
    assert said.code == "object_lost"
    assert "its bytes in storage cannot be read" in said.message
    bench.say(one, Locate([put]))
    assert answers(bench, one)[-1] == Whereabouts(put, stored="path")


def test_a_put_is_made_again_by_the_task_that_put_it() -> None:
    put = put_object_id(tid(77))
    bench, one, _ = with_victim([put, oid(2)])
    bench.store.large(1)
    bench.store.objects[put] = ops.ObjectRow(
        put, True, 1, producer=tid(1), max_retries=3, made_by="put"
    )
    bench.store.large(2, needs=[put])
    bench.say(one, Locate([oid(2)]))
    assert rebuilt(bench, one) == [1, 2]


def test_a_put_whose_task_still_runs_is_waited_for() -> None:
    put = put_object_id(tid(77))
    bench, one, two = with_victim([put])
    bench.store.large(1, status=PENDING)
    bench.store.objects[put] = ops.ObjectRow(
        put, True, 1, producer=tid(1), max_retries=3, made_by="put"
    )
    bench.say(one, Locate([put]))
    bench.tick(1.0)
    assert answers(bench, one) == []
    bench.say(two, ObjectsHere([(put, LARGE)]))
    assert answers(bench, one) == [Whereabouts(put, nodes=[2], size=LARGE)]
    assert bench.operations(ops.GrantRebuilds) == []


def test_the_node_for_a_rebuild_must_have_what_the_task_asks_for() -> None:
    bench = Bench()
    one = bench.join()
    bench.join()
    special = view()
    special.total["gpu"] = 10_000
    three = bench.join(special)
    bench.store.large(1, resources={"gpu": 10_000})
    bench.say(one, Locate([oid(1)]))
    bench.tick(0.5)
    assert rebuilt(bench, three) == [1]
    assert answers(bench, one) == [Whereabouts(oid(1), maker=3)]


def test_a_rebuild_that_no_node_can_run_waits_for_one_that_can() -> None:
    bench, one, _ = with_victim([oid(n) for n in (1, 2, 3)])
    bench.store.large(1, resources={"gpu": 10_000})
    bench.store.large(2, needs=[oid(1)])
    bench.store.large(3)
    bench.say(one, Locate([oid(2), oid(3)]))
    assert rebuilt(bench, one) == [3]
    walks = len(bench.operations(ops.ReadLineage))
    bench.tick(5.0)
    bench.join()
    special = view()
    special.total["gpu"] = 10_000
    four = bench.join(special)
    assert rebuilt(bench, four) == [1]
    assert rebuilt(bench, one) == [3, 2]
    assert [where.object_id for where in answers(bench, one)] == [oid(3), oid(2)]
    assert len(bench.operations(ops.ReadLineage)) <= walks + 2, "no walks in between"


def test_a_rebuild_whose_node_dies_is_granted_to_another_when_asked_again() -> None:
    bench, one, two = with_victim([oid(1)])
    bench.store.large(1)
    bench.say(two, Locate([oid(1)]))
    bench.kill(two)
    bench.say(one, Locate([oid(1)]))
    bench.tick(0.5)
    assert rebuilt(bench, one) == [1]


def test_a_finished_rebuild_is_forgotten_and_the_object_found() -> None:
    bench, one, two = with_victim([oid(1)])
    bench.store.large(1)
    bench.say(two, Locate([oid(1)]))
    bench.say(two, ObjectsHere([(oid(1), LARGE)]), Rebuilt([(tid(1), False)]))
    bench.say(one, Locate([oid(1)]))
    assert answers(bench, one)[-1].nodes == [2]
    assert bench.core.recovery.rebuilding == 0


def test_rebuilds_of_a_closed_job_are_forgotten() -> None:
    bench, one, _ = with_victim([oid(1)])
    bench.store.large(1)
    bench.say(one, OpenJob(1, 0, "a", 1), Locate([oid(1)]), CloseJob(1, False))
    assert bench.of(one, JobClosed)
    assert bench.core.recovery.rebuilding == 0


def test_a_node_that_resumes_hears_again_what_it_is_to_rebuild() -> None:
    bench, one, _ = with_victim([oid(1)])
    bench.store.large(1)
    bench.say(one, Locate([oid(1)]))
    bench.drop(one)
    again = bench.resume(1)
    assert rebuilt(bench, again) == [1]


def test_a_rebuild_that_an_earlier_leader_granted_is_told_to_its_node_again() -> None:
    store = FakeStore()
    first = Bench(store)
    first.join()
    first.join()
    store.large(1)
    store.rebuilds[tid(1)] = (2, 1)
    store.leader = ""
    bench = Bench(store, Settings(holder="two"), leading=False)
    bench.tick()
    one, two = bench.resume(1), bench.resume(2)
    bench.say(one, Locate([oid(1)]))
    bench.tick(1.0)
    assert answers(bench, one) == [Whereabouts(oid(1), maker=2)]
    assert rebuilt(bench, two) == [1]


def test_an_asker_whose_rebuilding_node_died_before_it_was_told_is_answered_all_the_same() -> None:
    bench, one, two = with_victim([oid(1)])
    bench.store.large(1, resources={"big": 1})
    bench.core.members.nodes[2].view.total["big"] = 1
    bench.hold = (ops.GrantRebuilds,)
    bench.say(one, Locate([oid(1)]))
    bench.kill(two)
    bench.core.members.nodes[1].view.total["big"] = 1
    bench.release()
    bench.tick(1.0)
    assert rebuilt(bench, one) == [1]
    assert answers(bench, one) == [Whereabouts(oid(1), maker=1)]
