"""Where objects are: every question has one answer, now or later."""

from __future__ import annotations

import msgspec

from regrow.gcs import operations as ops
from regrow.messages import (
    OK,
    PENDING,
    SYSTEM_ERROR,
    CloseJob,
    Locate,
    Locations,
    LookUpTasks,
    ObjectsHere,
    OpenJob,
    Reassigned,
    TaskState,
    TaskStates,
    Value,
    WatchFor,
    Whereabouts,
    failure_decoder,
)
from tests.unit.gcs.harness import LARGE, Bench, held, oid, tid


def answers(bench: Bench, conn: int) -> list[Whereabouts]:
    return [where for message in bench.of(conn, Locations) for where in message.objects]


def test_copies_are_known_from_reports_and_forgotten_with_their_node() -> None:
    bench = Bench()
    one, two, three = bench.join(), bench.join(), bench.join()
    bench.say(two, ObjectsHere([(oid(1), LARGE)]))
    bench.say(three, ObjectsHere([(oid(1), LARGE)]))
    bench.say(one, Locate([oid(1)]))
    assert answers(bench, one) == [Whereabouts(oid(1), nodes=[2, 3], size=LARGE)]
    bench.kill(two)
    bench.say(one, Locate([oid(1)]))
    assert answers(bench, one)[-1].nodes == [3]
    bench.say(three, ObjectsHere([], [oid(1)]))
    assert bench.core.directory.size == (0, 0)


def test_a_copy_that_an_asker_found_gone_is_not_named_again() -> None:
    bench = Bench()
    one, two, three = bench.join(), bench.join(), bench.join()
    for conn in (two, three):
        bench.say(conn, ObjectsHere([(oid(1), LARGE)]))
    bench.say(one, Locate([oid(1)], gone=[(oid(1), 2)]))
    assert answers(bench, one)[-1].nodes == [3]


def test_small_values_errors_and_stored_objects_are_answered_from_postgres() -> None:
    bench = Bench()
    one = bench.join()
    small = Value(oid(1), OK, 3, b"abc")
    error = Value(oid(2), SYSTEM_ERROR, 3, b"why")
    bench.store.objects[oid(1)] = ops.ObjectRow(oid(1), True, OK, value=small)
    bench.store.objects[oid(2)] = ops.ObjectRow(oid(2), True, SYSTEM_ERROR, value=error)
    bench.store.large(3, stored="s3://bucket/x")
    bench.say(one, Locate([oid(1), oid(2), oid(3)]))
    assert len(bench.of(one, Locations)) == 1, "one message for all"
    assert answers(bench, one) == [
        Whereabouts(oid(1), value=small),
        Whereabouts(oid(2), value=error),
        Whereabouts(oid(3), stored="s3://bucket/x", size=LARGE, digest=b"d"),
    ]


def test_a_pending_object_is_its_holders_who_is_told_whom_to_inform() -> None:
    bench = Bench()
    one, two = bench.join(), bench.join()
    first, second = bench.store.pending(1, holder=2), bench.store.pending(2, holder=2)
    bench.say(one, Locate([first, second]))
    assert [where.maker for where in answers(bench, one)] == [2, 2]
    assert bench.of(two, WatchFor) == [WatchFor([first, second], 1)]


def test_a_holder_that_asks_for_what_it_should_make_is_told_of_its_task_again() -> None:
    bench = Bench()
    one = bench.join()
    wanted = bench.store.pending(1, holder=1)
    bench.store.given = {1: [held(tid(1))]}
    bench.say(one, Locate([wanted]))
    assert len(bench.last(one, Reassigned).tasks) == 1
    (read,) = [op for op in bench.executed if isinstance(op, ops.ReadGiven)]
    assert read.asked == [tid(1)]
    assert answers(bench, one) == []
    value = Value(wanted, OK, 1, b"x")
    bench.store.objects[wanted] = ops.ObjectRow(wanted, True, OK, value=value)
    bench.tick(1.0)
    assert answers(bench, one) == [Whereabouts(wanted, value=value)]


def test_a_pending_object_of_a_dead_holder_is_answered_after_a_sweep() -> None:
    bench = Bench()
    one, two = bench.join(), bench.join()
    lost = bench.store.pending(1, holder=0)
    bench.hold = (ops.Sweep,)
    bench.say(one, Locate([lost]))
    assert answers(bench, one) == []
    bench.store.pending(1, holder=2)
    bench.release()
    assert answers(bench, one) == [Whereabouts(lost, maker=2)]
    assert bench.of(two, WatchFor) == [WatchFor([lost], 1)]


def test_an_unknown_object_is_answered_once_its_task_is_committed() -> None:
    bench = Bench()
    one = bench.join()
    bench.join()
    bench.say(one, Locate([oid(1)]))
    bench.tick(5.0)
    reads = len(bench.operations(ops.ReadObjects))
    assert 6 <= reads <= 9, "at most once a second in the end"
    bench.store.pending(1, holder=2)
    bench.tick(1.0)
    assert answers(bench, one) == [Whereabouts(oid(1), maker=2)]


def test_an_unknown_object_is_answered_once_a_node_reports_it() -> None:
    bench = Bench()
    one, two = bench.join(), bench.join()
    bench.say(one, Locate([oid(1)]))
    bench.say(two, ObjectsHere([(oid(1), LARGE)]))
    assert answers(bench, one) == [Whereabouts(oid(1), nodes=[2], size=LARGE)]


def test_an_unknown_object_is_given_up_some_time_after_a_job_ended() -> None:
    bench = Bench()
    one = bench.join()
    bench.say(one, OpenJob(1, 0, "a", 1), Locate([oid(1)]))
    bench.tick(30.0)
    assert answers(bench, one) == []
    bench.say(one, CloseJob(1, False))
    bench.tick(12.0)
    value = answers(bench, one)[0].value
    assert value is not None and value.data is not None
    assert failure_decoder.decode(value.data).code == "object_lost"
    assert bench.core.directory.size == (0, 0)


def test_a_finished_object_whose_copy_is_not_reported_yet_is_waited_for_not_rebuilt() -> None:
    bench = Bench()
    one, two = bench.join(), bench.join()
    bench.store.large(1)
    bench.say(one, Locate([oid(1)]))
    bench.tick(0.1)
    bench.say(two, ObjectsHere([(oid(1), LARGE)]))
    bench.tick(1.0)
    assert answers(bench, one)[0].nodes == [2]
    assert bench.operations(ops.GrantRebuilds) == []


def test_two_askers_of_one_object_cost_one_read_and_both_are_answered() -> None:
    bench = Bench()
    one, two = bench.join(), bench.join()
    bench.hold = (ops.ReadObjects,)
    bench.say(one, Locate([oid(1)]))
    bench.say(two, Locate([oid(1)]))
    bench.store.objects[oid(1)] = ops.ObjectRow(oid(1), True, OK, value=Value(oid(1), OK, 1, b"x"))
    bench.release()
    assert len(bench.operations(ops.ReadObjects)) == 1
    assert len(answers(bench, one)) == len(answers(bench, two)) == 1


def test_whom_to_inform_is_repeated_to_a_maker_whose_session_broke_just_then() -> None:
    bench = Bench()
    one, two = bench.join(), bench.join()
    wanted = bench.store.pending(1, holder=2)
    bench.say(one, Locate([wanted]))
    bench.drop(two)
    again = bench.resume(2)
    assert bench.of(again, WatchFor) == [WatchFor([wanted], 1)]


def test_the_questions_of_a_dead_node_are_forgotten() -> None:
    bench = Bench()
    one, two = bench.join(), bench.join()
    bench.say(one, Locate([oid(1), oid(2)]))
    bench.say(two, Locate([oid(2)]))
    bench.kill(one)
    assert bench.core.directory.size == (0, 1)


def test_lookups_of_tasks_wait_for_a_sweep_where_a_holder_is_dead() -> None:
    bench = Bench()
    one = bench.join()
    bench.store.pending(1, holder=0)
    done = TaskState(tid(2), True, OK, 0, [Value(oid(2), OK, 1, b"x")])
    bench.store.states[tid(2)] = done
    bench.hold = (ops.Sweep,)
    bench.say(one, LookUpTasks(5, [tid(1), tid(2), tid(3)]))
    assert bench.of(one, TaskStates) == []
    bench.store.pending(1, holder=1)
    bench.release()
    states = bench.last(one, TaskStates)
    assert states.number == 5
    pending = TaskState(tid(1), True, PENDING, 1)
    assert states.tasks == [pending, done, TaskState(tid(3), False)]


def test_what_no_node_has_is_not_named_even_if_the_asker_reported_it_once() -> None:
    bench = Bench()
    one = bench.join()
    bench.store.large(1, stored="file")
    bench.say(one, ObjectsHere([(oid(1), LARGE)]))
    bench.say(one, Locate([oid(1)]))
    assert answers(bench, one)[0].stored == "file"


def test_the_first_report_of_a_resumed_session_is_the_whole_truth() -> None:
    bench = Bench()
    one, two = bench.join(), bench.join()
    bench.say(two, ObjectsHere([(oid(1), LARGE), (oid(2), LARGE)]))
    bench.drop(two)
    again = bench.resume(2, oid(2), oid(3))
    assert bench.core.directory.size[0] == 2
    bench.say(again, ObjectsHere([(oid(4), LARGE)]))
    assert bench.core.directory.size[0] == 3, "later ones are changes"
    bench.say(one, Locate([oid(2)]))
    assert answers(bench, one)[0].nodes == [2]


def test_sizes_of_batches_do_not_multiply_reads() -> None:
    bench = Bench()
    one = bench.join()
    bench.join()
    ids = [bench.store.pending(n, holder=2) for n in range(5000)]
    bench.say(one, Locate(ids))
    assert len(bench.operations(ops.ReadObjects)) == 3
    assert {where.object_id for where in answers(bench, one)} == set(ids)
    assert msgspec.msgpack.encode(bench.last(one, Locations))
