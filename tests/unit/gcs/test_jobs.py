"""Jobs: they end with their drivers, and not before."""

from __future__ import annotations

import pytest

from regrow.gcs import operations as ops
from regrow.gcs.core_events import Settings
from regrow.messages import CloseJob, JobClosed, JobOpened, OpenJob, Stop
from tests.unit.gcs.harness import Bench, FakeStore


def opened(bench: Bench, conn: int, job: int = 0) -> JobOpened:
    bench.say(conn, OpenJob(11, job, "python train.py", 4711))
    return bench.last(conn, JobOpened)


def test_a_new_job_has_a_number_and_the_root_that_the_shell_drew() -> None:
    bench = Bench()
    answer = opened(bench, bench.join())
    assert (answer.number, answer.job, answer.job_root) == (11, 1, b"r" * 16)


def test_a_driver_that_leaves_ends_its_job_for_all() -> None:
    bench = Bench()
    one, two = bench.join(), bench.join()
    opened(bench, one)
    bench.say(one, CloseJob(1, failed=False))
    assert bench.store.ended == {1: "finished"}
    assert bench.of(two, JobClosed) == bench.of(one, JobClosed) == [JobClosed(1)]


def test_a_driver_that_comes_back_within_the_grace_keeps_its_job() -> None:
    bench = Bench()
    one, two = bench.join(), bench.join()
    root = opened(bench, one).job_root
    bench.say(one, CloseJob(1, failed=True, lost=True))
    bench.tick(9.0)
    back = opened(bench, two, job=1)
    assert (back.job_root, back.error) == (root, None)
    bench.tick(20.0)
    assert bench.store.ended == {}
    bench.say(one, CloseJob(1, failed=True, lost=True))
    bench.tick(20.0)
    assert bench.store.ended == {}, "it is connected through another node now"


@pytest.mark.parametrize("how", ["connection", "node"])
def test_a_driver_that_stays_away_fails_its_job_after_the_grace(how: str) -> None:
    bench = Bench()
    one = bench.join()
    opened(bench, one)
    if how == "node":
        bench.kill(one)
    else:
        bench.say(one, CloseJob(1, failed=True, lost=True))
    bench.tick(9.5)
    assert bench.store.ended == {}
    bench.tick(1.0)
    assert bench.store.ended == {1: "failed"}


def test_a_job_that_has_ended_is_not_continued() -> None:
    bench = Bench()
    one = bench.join()
    opened(bench, one)
    bench.say(one, CloseJob(1, failed=False))
    for job, word in ((1, "it has ended"), (9, "it does not exist")):
        error = opened(bench, one, job=job).error
        assert error is not None
        assert word in error.message


def _restarted(first: Bench, ephemeral: bool = False) -> Bench:
    first.store.leader = ""
    settings = Settings(holder="two", ephemeral=ephemeral)
    bench = Bench(first.store, settings, leading=False)
    bench.tick()
    return bench


def test_a_new_leader_ends_the_jobs_whose_drivers_nobody_claims() -> None:
    first = Bench()
    one = first.join()
    opened(first, one)
    opened(first, one)
    bench = _restarted(first)
    conn = bench.resume(1)
    assert opened(bench, conn, job=2).error is None
    bench.tick(10.5)
    assert bench.store.ended == {1: "failed"}


def test_a_job_closed_before_the_new_leader_has_read_the_jobs_ends_once() -> None:
    first = Bench()
    opened(first, first.join())
    first.store.leader = ""
    bench = Bench(first.store, Settings(holder="two"), leading=False)
    bench.hold = (ops.ReadJobs,)
    bench.tick()
    conn = bench.resume(1)
    bench.say(conn, CloseJob(1, failed=False))
    bench.release()
    bench.tick(12.0)
    assert bench.store.ended == {1: "finished"}
    assert len(bench.operations(ops.EndJob)) == 1


def test_a_driver_that_left_while_its_node_had_no_session_does_not_keep_its_job() -> None:
    bench = Bench()
    one = bench.join()
    opened(bench, one)
    opened(bench, one)
    bench.drop(one)
    again = bench.resume(1)
    opened(bench, again, job=2)
    bench.tick(10.5)
    assert bench.store.ended == {1: "failed"}


def test_an_ephemeral_cluster_ends_with_its_last_job_and_its_nodes_have_left() -> None:
    bench = Bench(settings=Settings(holder="one", ephemeral=True))
    one, two = bench.join(), bench.join()
    bench.tick(5.0)
    assert not bench.stops, "there was no job yet"
    opened(bench, one)
    opened(bench, two)
    bench.say(one, CloseJob(1, failed=False))
    bench.tick(5.0)
    assert not bench.stops
    bench.say(two, CloseJob(2, failed=False))
    bench.tick(1.0)
    assert bench.stops
    assert bench.of(one, Stop) and bench.of(two, Stop)
    bench.drop(one)
    bench.drop(two)
    assert [left.node_id for left in bench.operations(ops.NodeLeft)] == [1, 2]
    assert bench.probes == []


def test_a_job_that_opens_at_the_last_moment_keeps_an_ephemeral_cluster() -> None:
    bench = Bench(settings=Settings(holder="one", ephemeral=True))
    one = bench.join()
    opened(bench, one)
    bench.hold = (ops.CreateJob,)
    bench.say(one, CloseJob(1, failed=False), OpenJob(12, 0, "b", 1))
    bench.tick(5.0)
    assert not bench.stops
    bench.release()
    bench.tick(5.0)
    assert not bench.stops
    assert bench.last(one, JobOpened).job == 2


def test_an_ephemeral_cluster_whose_leader_changed_waits_for_the_jobs_that_run() -> None:
    first = Bench(FakeStore())
    one = first.join()
    opened(first, one)
    opened(first, one)
    bench = _restarted(first, ephemeral=True)
    conn = bench.resume(1)
    bench.say(conn, CloseJob(1, failed=False))
    bench.tick(5.0)
    assert not bench.stops
    bench.tick(6.0)
    assert bench.stops
