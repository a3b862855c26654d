"""Named jobs: one driver at a time, and the next one goes on where the last one stopped."""

from __future__ import annotations

import pytest

from regrow.gcs import operations as ops
from regrow.gcs.core_events import Settings
from regrow.gcs.jobs import CLAIM_S
from regrow.messages import CloseJob, JobClosed, JobDropped, JobOpened, OpenJob, RestoreActor
from tests.unit.gcs.harness import Bench, tid

NAME = "nightly"


def ask(bench: Bench, conn: int, number: int = 11, *, takeover: bool = False) -> None:
    bench.say(conn, OpenJob(number, 0, "train.py", 4711, NAME, takeover))


def opened(bench: Bench, conn: int, number: int = 11, *, takeover: bool = False) -> JobOpened:
    ask(bench, conn, number, takeover=takeover)
    answer = bench.last(conn, JobOpened)
    assert answer.number == number
    return answer


def refused(answer: JobOpened) -> str:
    assert answer.error is not None
    assert answer.error.code == "job_already_running"
    return answer.error.message


def test_a_name_has_one_driver_at_a_time() -> None:
    bench = Bench()
    one, two = bench.join(), bench.join()
    first = opened(bench, one)
    assert (first.job, first.driver, first.error) == (1, 1, None)
    assert "takeover" in refused(opened(bench, two, 12))
    bench.say(one, CloseJob(1, failed=True, driver=1))
    second = opened(bench, two, 13)
    assert (second.job, second.job_root, second.driver) == (1, first.job_root, 2)


def test_a_clean_end_closes_the_run() -> None:
    bench = Bench()
    one = bench.join()
    opened(bench, one)
    bench.say(one, CloseJob(1, failed=False, driver=1))
    assert bench.store.ended == {1: "finished"}
    again = opened(bench, one, 12)
    assert (again.job, again.driver) == (2, 1)


def test_two_at_once_are_one() -> None:
    bench = Bench()
    one, two = bench.join(), bench.join()
    bench.hold = (ops.ResumeJob,)
    ask(bench, one, 11)
    assert refused(opened(bench, two, 12))
    bench.hold = ()
    bench.release()
    assert bench.last(one, JobOpened).job == 1


def test_a_node_that_asks_again_for_a_driver_is_answered_the_same() -> None:
    """Its session broke, and it does not know whether its question or the answer was lost."""
    bench = Bench()
    one, two = bench.join(), bench.join()
    bench.hold = (ops.ResumeJob,)
    ask(bench, one, 11)
    ask(bench, one, 11)
    bench.hold = ()
    bench.release()
    (answer,) = bench.of(one, JobOpened)
    assert answer.job == 1
    assert opened(bench, one, 11) == answer
    assert refused(opened(bench, two, 11))
    assert refused(opened(bench, one, 12))


def test_who_takes_a_job_over_is_its_only_driver() -> None:
    bench = Bench()
    one, two = bench.join(), bench.join()
    opened(bench, one)
    second = opened(bench, two, 12, takeover=True)
    assert (second.job, second.driver) == (1, 2)
    assert set(bench.of(one, JobClosed)) == {JobClosed(1, 1)}, "its tasks end with the first driver"
    bench.say(one, OpenJob(13, 1, "train.py", 4711, NAME, False, 1))
    assert "taken over" in refused(bench.last(one, JobOpened))
    for lost in (True, False):
        bench.say(one, CloseJob(1, failed=False, lost=lost, driver=1))
    bench.tick(20.0)
    assert bench.store.ended == {}, "the first driver has no say any more"
    assert bench.of(one, JobClosed)[-2:] == [JobClosed(1, 1)] * 2, (
        "its node may have missed the end"
    )
    bench.say(two, OpenJob(14, 1, "train.py", 4711, NAME, False, 2))
    assert bench.last(two, JobOpened).error is None


@pytest.mark.parametrize("how", ["connection", "node"])
def test_a_lost_driver_is_not_waited_for(how: str) -> None:
    bench = Bench()
    one, two = bench.join(), bench.join()
    opened(bench, one)
    if how == "node":
        bench.kill(one)
    else:
        bench.say(one, CloseJob(1, failed=True, lost=True, driver=1))
    assert opened(bench, two, 12).driver == 2
    bench.say(two, OpenJob(13, 1, "train.py", 4711, NAME, False, 1))
    assert "taken over" in refused(bench.last(two, JobOpened)), "it came back too late"


def test_a_new_leader_lets_the_driver_say_that_it_is_there() -> None:
    first = Bench()
    opened(first, first.join())
    for claimed in (True, False):
        first.store.leader = ""
        bench = Bench(first.store, Settings(holder="two"), leading=False)
        bench.tick()
        one, two = bench.resume(1), bench.join()
        ask(bench, two, 12)
        bench.tick(CLAIM_S / 2)
        assert bench.of(two, JobOpened) == []
        if claimed:
            bench.say(one, OpenJob(13, 1, "train.py", 4711, NAME, False, 1))
        bench.tick(CLAIM_S)
        answer = bench.last(two, JobOpened)
        assert refused(answer) if claimed else answer.driver == 2


def test_a_driver_that_asks_before_the_jobs_are_read_waits() -> None:
    first = Bench()
    opened(first, first.join())
    first.store.leader = ""
    bench = Bench(first.store, Settings(holder="two"), leading=False)
    bench.hold = (ops.ReadJobs,)
    bench.tick()
    one = bench.resume(1)
    ask(bench, one, 12)
    assert bench.operations(ops.ResumeJob) == []
    bench.hold = ()
    bench.release()
    bench.tick(CLAIM_S + 1)
    assert bench.last(one, JobOpened).driver == 2


def test_actors_of_a_resumed_job_are_restored() -> None:
    bench = Bench()
    one = bench.join()
    opened(bench, one)
    bench.say(one, CloseJob(1, failed=True, driver=1))
    bench.store.restarting[tid(7)] = ops.RestartingActor(tid(7), 1, (1, 1))
    assert opened(bench, one, 12).driver == 2
    assert bench.last(one, RestoreActor).actor_id == tid(7)


def test_a_detached_job_outlives_its_driver_until_nothing_in_it_is_unfinished() -> None:
    bench = Bench()
    one, two = bench.join(), bench.join()
    bench.store.unfinished.add(1)
    bench.say(one, OpenJob(11, 0, "", 1, NAME, detached=True))
    bench.say(one, CloseJob(1, failed=False, driver=1))
    bench.kill(one)
    bench.tick(30.0)
    assert bench.store.ended == {}
    assert refused(opened(bench, two, 12)), "it runs"
    bench.store.unfinished.clear()
    bench.tick(2.0)
    assert bench.store.ended == {1: "finished"}
    assert bench.of(two, JobClosed) == [JobClosed(1, 1)]


def test_a_detached_job_is_stopped_by_who_takes_it_over() -> None:
    bench = Bench()
    one = bench.join()
    bench.store.unfinished.add(1)
    bench.say(one, OpenJob(11, 0, "", 1, NAME, detached=True))
    bench.say(one, CloseJob(1, failed=False, driver=1))
    assert opened(bench, one, 12, takeover=True).driver == 2
    bench.say(one, CloseJob(1, failed=False, driver=2))
    assert bench.store.ended == {1: "finished"}


def test_a_node_without_its_driver_does_not_end_a_detached_job() -> None:
    bench = Bench()
    one, two = bench.join(), bench.join()
    bench.say(one, OpenJob(11, 0, "", 1, NAME, detached=True))
    bench.say(two, CloseJob(1, failed=True, lost=True))
    bench.tick(5.0)
    assert bench.store.ended == {}, "its driver is about to submit"
    bench.say(one, CloseJob(1, failed=False, driver=1))
    bench.tick(5.0)
    assert bench.store.ended == {1: "finished"}


def test_a_late_word_of_the_end_of_an_earlier_driver_ends_no_job_for_a_new_leader() -> None:
    before = Bench()
    one = before.join()
    opened(before, one)
    before.say(one, CloseJob(1, failed=True, driver=1))
    assert opened(before, one, 12).driver == 2
    before.store.leader = ""
    bench = Bench(before.store, leading=False)
    bench.hold = (ops.ReadJobs,)
    bench.tick(3.0)
    conn = bench.join()
    bench.say(conn, CloseJob(1, failed=True, driver=1))
    bench.hold = ()
    bench.release()
    assert not [op for op in bench.executed if isinstance(op, ops.EndJob)]
    bench.say(conn, CloseJob(1, failed=True, driver=2))
    assert [op.job for op in bench.executed if isinstance(op, ops.EndJob)] == [1]


def _waiting() -> tuple[Bench, int, int]:
    """Two nodes, whose job's second driver has asked for it; neither has dropped the first one."""
    bench = Bench()
    one, two = bench.join(), bench.join()
    opened(bench, one)
    bench.nodes_drop = False
    bench.store.restarting[tid(7)] = ops.RestartingActor(tid(7), 1, (1, 1))
    bench.say(one, CloseJob(1, failed=True, driver=1))
    ask(bench, one, 12)
    return bench, one, two


def has_begun(bench: Bench, conn: int) -> bool:
    """Its driver is told, and its actors are restored."""
    told = bench.last(conn, JobOpened).driver == 2
    assert told == bool(bench.operations(ops.RestoreActor))
    return told


def test_the_next_driver_begins_when_every_node_has_dropped_the_last_one() -> None:
    """What a node had logged of the last one would be taken for the next one's."""
    bench, one, two = _waiting()
    assert not has_begun(bench, one)
    bench.say(one, JobDropped(1, 1))
    assert not has_begun(bench, one)
    assert refused(opened(bench, two, 13)), "it is the other one's"
    bench.say(two, JobDropped(1, 1))
    assert has_begun(bench, one)


def test_a_node_that_dies_is_not_waited_for() -> None:
    bench, one, two = _waiting()
    bench.say(one, JobDropped(1, 1))
    bench.kill(two)
    assert has_begun(bench, one)


def test_a_node_whose_session_broke_is_told_again() -> None:
    bench, one, two = _waiting()
    bench.say(one, JobDropped(1, 1))
    bench.drop(two)
    again = bench.resume(2)
    assert bench.of(again, JobClosed) == [JobClosed(1, 1)]
    bench.say(again, JobDropped(1, 1))
    assert has_begun(bench, one)


def test_a_node_that_does_not_answer_is_waited_for_only_so_long() -> None:
    bench, one, _ = _waiting()
    bench.say(one, JobDropped(1, 1))
    bench.tick(1.0)
    assert not has_begun(bench, one)
    bench.tick(5.0)
    assert has_begun(bench, one)
