"""Actors: who asks is answered once it is known, and told of a death."""

from __future__ import annotations

import msgspec

from regrow.gcs import operations as ops
from regrow.messages import (
    ActorAt,
    ActorHere,
    AskStore,
    CloseJob,
    FindActor,
    NameActor,
    NamedActor,
    OpenJob,
    Reply,
    SystemFailure,
)
from tests.unit.gcs.harness import Bench, tid

ACTOR = tid(50)


def name(bench: Bench, conn: int, actor: bytes = ACTOR) -> Reply:
    bench.say(conn, NameActor(3, actor, "server", "default", 1, b"F" * 16, b"methods"))
    return bench.last(conn, Reply)


def test_a_name_is_one_actors_until_that_is_dead() -> None:
    bench = Bench()
    one = bench.join()
    assert name(bench, one).error is None
    taken = name(bench, one, tid(51))
    assert taken.error is not None
    assert taken.error.code == "actor_name_taken"
    assert taken.body == ACTOR
    bench.store.actors[ACTOR] = ops.ActorRow(True, ACTOR, "dead", name="server")
    assert name(bench, one, tid(51)).error is None


def test_reserving_the_same_name_for_the_same_actor_again_is_no_conflict() -> None:
    bench = Bench()
    one = bench.join()
    name(bench, one)
    assert name(bench, one).error is None


def test_an_unknown_name_is_an_error_at_once() -> None:
    bench = Bench()
    one = bench.join()
    bench.say(one, FindActor(4, b"", "nobody", "default"))
    answer = bench.last(one, Reply)
    assert answer.number == 4
    assert answer.error is not None
    assert answer.error.code == "actor_not_found"


def test_who_asks_before_the_actor_runs_is_answered_when_it_does() -> None:
    bench = Bench()
    one, two = bench.join(), bench.join()
    name(bench, one)
    bench.say(two, FindActor(4, ACTOR), FindActor(5, ACTOR))
    assert bench.of(two, ActorAt) == []
    bench.say(one, ActorHere(ACTOR, 1, True))
    assert bench.of(two, ActorAt) == [ActorAt(4, ACTOR, 1, True), ActorAt(5, ACTOR, 1, True)]


def test_a_name_is_found_before_its_actor_runs() -> None:
    bench = Bench()
    one, two = bench.join(), bench.join()
    name(bench, one)
    bench.say(two, FindActor(4, b"", "server", "default"))
    answer = bench.last(two, Reply)
    found = msgspec.msgpack.decode(answer.body, type=NamedActor)
    assert found == NamedActor(ACTOR, b"F" * 16, b"methods")


def test_an_actor_that_postgres_knows_to_live_is_found_without_its_nodes_word() -> None:
    bench = Bench()
    one = bench.join()
    bench.join()
    bench.say(one, FindActor(4, ACTOR))
    bench.store.actors[ACTOR] = ops.ActorRow(True, ACTOR, "alive", 2, 1)
    bench.tick(1.0)
    assert bench.of(one, ActorAt) == [ActorAt(4, ACTOR, 2, True)]
    reads = len(bench.operations(ops.ReadActor))
    bench.tick(5.0)
    assert len(bench.operations(ops.ReadActor)) == reads


def test_an_actor_on_a_dead_incarnation_is_waited_for_until_postgres_says_more() -> None:
    bench = Bench()
    one = bench.join()
    bench.kill(bench.join())
    bench.store.actors[ACTOR] = ops.ActorRow(True, ACTOR, "alive", 2, 1)
    bench.say(one, FindActor(4, ACTOR))
    assert bench.of(one, ActorAt) == []
    why = SystemFailure("actor_died", "why")
    bench.store.actors[ACTOR] = ops.ActorRow(True, ACTOR, "dead", 2, 1, error=why)
    bench.tick(1.0)
    assert bench.last(one, ActorAt).error == why


def test_nodes_that_asked_are_told_of_a_death_once() -> None:
    bench = Bench()
    one, two, three = bench.join(), bench.join(), bench.join()
    bench.say(two, ActorHere(ACTOR, 1, True))
    bench.say(one, FindActor(4, ACTOR), FindActor(5, ACTOR))
    why = SystemFailure("actor_died", "killed by kill()")
    bench.say(two, ActorHere(ACTOR, 1, False, why))
    assert bench.of(one, ActorAt)[2:] == [ActorAt(0, ACTOR, 2, False, why)]
    assert bench.of(three, ActorAt) == []
    bench.say(three, FindActor(6, ACTOR))
    assert bench.last(three, ActorAt).error == why


def test_an_actor_dies_with_its_node() -> None:
    bench = Bench()
    one, two = bench.join(), bench.join()
    bench.say(two, ActorHere(ACTOR, 1, True))
    bench.say(one, FindActor(4, ACTOR))
    bench.store.actors_of[2] = [(ACTOR, 1)]
    bench.kill(two)
    told = bench.last(one, ActorAt)
    assert (told.number, told.alive) == (0, False)
    assert told.error is not None
    assert told.error.code == "actor_died"
    assert "node 2" in told.error.message


def test_an_actor_whose_creation_was_not_committed_begins_anew_elsewhere() -> None:
    bench = Bench()
    one, two = bench.join(), bench.join()
    bench.say(two, ActorHere(ACTOR, 1, True))
    bench.kill(two)
    bench.say(one, FindActor(4, ACTOR))
    assert bench.of(one, ActorAt) == []
    bench.say(one, ActorHere(ACTOR, 1, True))
    assert bench.of(one, ActorAt) == [ActorAt(4, ACTOR, 1, True)]


def test_a_late_word_from_where_the_actor_was_does_not_kill_it_where_it_is() -> None:
    bench = Bench()
    one, two = bench.join(), bench.join()
    bench.say(two, ActorHere(ACTOR, 1, True))
    bench.say(one, ActorHere(ACTOR, 1, True), FindActor(4, ACTOR))
    bench.say(two, ActorHere(ACTOR, 1, False, SystemFailure("actor_died", "late")))
    assert [at.alive for at in bench.of(one, ActorAt)] == [True]


def test_the_actors_of_a_job_are_forgotten_with_it_and_who_waits_is_told() -> None:
    bench = Bench()
    one = bench.join()
    bench.say(one, OpenJob(1, 0, "a", 1))
    name(bench, one)
    bench.say(one, FindActor(4, ACTOR))
    bench.say(one, CloseJob(1, failed=False))
    told = bench.last(one, ActorAt)
    assert told.error is not None
    assert "ended with its job" in told.error.message


def test_dead_actors_are_remembered_only_so_many() -> None:
    bench = Bench()
    one = bench.join()
    for number in range(1500):
        bench.say(one, ActorHere(tid(number), 1, True))
        bench.say(one, ActorHere(tid(number), 1, False, SystemFailure("actor_died", "it died")))
    assert len(bench.core.actors._actors) == 1000


def test_a_question_that_the_control_store_does_not_know_is_answered_with_an_error() -> None:
    bench = Bench()
    one = bench.join()
    bench.say(one, AskStore(1, "nodes"), AskStore(2, "weather"))
    nodes, weather = bench.of(one, Reply)
    assert nodes.error is None and nodes.body
    assert weather.error is not None
