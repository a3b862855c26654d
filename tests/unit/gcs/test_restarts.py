"""Actors that restart: one node is given each, and hears of it whatever gets lost."""

from __future__ import annotations

from regrow.gcs import operations as ops
from regrow.messages import ActorAt, ActorHere, FindActor, RestoreActor
from tests.unit.gcs.harness import Bench, tid, view

ACTOR = tid(50)


def bench_with_a_lost_actor(cpus: int = 4) -> tuple[Bench, int]:
    """Its home, node 1, was killed; the session of node 2."""
    bench = Bench()
    first, second = bench.join(), bench.join(view(cpus=cpus))
    needs = {"CPU": 20_000}
    bench.store.restarting[ACTOR] = ops.RestartingActor(ACTOR, 1, (1, 1), needs)
    bench.kill(first)
    return bench, second


def test_an_actor_of_a_dead_node_is_restored_by_another_and_found_there() -> None:
    bench, second = bench_with_a_lost_actor()
    order = bench.last(second, RestoreActor)
    assert (order.actor_id, len(order.calls), order.last_seq) == (ACTOR, 1, 1)
    bench.say(second, FindActor(0, ACTOR))
    assert not bench.of(second, ActorAt), "not before it is back"
    bench.say(second, ActorHere(ACTOR, 1, True))
    assert bench.last(second, ActorAt).node_id == 2


def test_it_waits_for_a_node_that_has_what_it_asks_for() -> None:
    bench, second = bench_with_a_lost_actor(cpus=1)
    assert not bench.of(second, RestoreActor)
    third = bench.join()
    assert bench.of(third, RestoreActor)


def test_it_is_asked_for_once_while_it_is_being_restored() -> None:
    bench, second = bench_with_a_lost_actor()
    bench.tick(90.0)
    assert len(bench.of(second, RestoreActor)) == 1


def test_a_node_that_may_not_have_heard_of_it_is_told_again() -> None:
    bench, second = bench_with_a_lost_actor()
    bench.drop(second)
    again = bench.resume(2)
    assert bench.of(again, RestoreActor)


def test_the_next_leader_tells_the_node_that_was_given_it() -> None:
    bench, _ = bench_with_a_lost_actor()
    after = Bench(bench.store)
    after.store.leader = ""
    after.tick(3.0)
    conn = after.resume(2)
    assert after.of(conn, RestoreActor)


def test_an_actor_goes_on_to_a_third_node_when_the_second_dies_too() -> None:
    bench, second = bench_with_a_lost_actor()
    third = bench.join()
    bench.kill(second)
    assert bench.of(third, RestoreActor)
    assert bench.store.restarting[ACTOR].home == (3, 1)


def test_an_actor_whose_process_died_restarts_on_its_node() -> None:
    bench = Bench()
    one, two = bench.join(), bench.join()
    bench.say(one, ActorHere(ACTOR, 1, True))
    bench.store.restarting[ACTOR] = ops.RestartingActor(ACTOR, 1, (1, 1))
    bench.say(one, ActorHere(ACTOR, 1, False))
    assert bench.of(one, RestoreActor)
    assert not bench.of(two, RestoreActor)
    bench.say(one, ActorHere(ACTOR, 1, False))  # and again, while it was being restored
    assert len(bench.of(one, RestoreActor)) == 2
