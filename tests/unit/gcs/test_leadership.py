"""Leadership: only the leader acts, and a new one is patient."""

from __future__ import annotations

from regrow.gcs import operations as ops
from regrow.gcs.core_events import ProbeResult, Settings, StoreFailed, StoreReplied
from regrow.messages import Fenced, Locate, Locations, NodeDied, NodeStatus, ObjectsHere, Registered
from tests.unit.gcs.harness import Bench, FakeStore, oid, view


def test_a_node_that_registers_before_we_lead_is_answered_once_we_do() -> None:
    store = FakeStore()
    store.leader = "another"
    bench = Bench(store, leading=False)
    bench.tick()
    conn = bench.join()
    assert bench.of(conn, Registered) == []
    store.leader = ""
    bench.tick(1.0)
    assert bench.last(conn, Registered).node_id == 1


def test_another_leader_makes_us_close_all_sessions_and_do_nothing_more() -> None:
    bench = Bench()
    conn = bench.join()
    bench.store.epoch += 1
    bench.store.leader = "another"
    bench.tick(1.0)
    assert bench.closed == [conn]
    assert not bench.core.leads
    before = len(bench.executed)
    bench.say(conn, NodeStatus({}, 0), Locate([oid(1)]))
    bench.tick(3.0)
    assert {type(operation) for operation in bench.executed[before:]} == {ops.Lead}


def test_a_write_refused_as_not_leader_steps_down_at_once() -> None:
    bench = Bench()
    conn = bench.join()
    bench.store.epoch += 1
    bench.store.leader = "another"
    bench.join()
    assert conn in bench.closed
    assert bench.core.context.epoch == 0


def test_leadership_that_cannot_be_renewed_begins_nothing() -> None:
    bench = Bench()
    bench.join()
    bench.hold = (ops.Lead,)
    bench.tick(2.5)
    assert not bench.core.leads
    before = len(bench.executed)
    bench.tick(1.0)
    assert bench.executed[before:] == []
    bench.release()
    assert not bench.core.leads, "the lease counts from when the try began"
    bench.tick(1.0)
    assert bench.core.leads


def test_after_leadership_lapsed_nobody_is_fenced_for_a_lease() -> None:
    bench = Bench()
    bench.join()
    bench.hold = (ops.Lead,)
    bench.tick(3.0)
    bench.release()
    bench.store.leases[1] = -1.0
    bench.tick(2.5)
    assert bench.operations(ops.Fence) == []
    bench.tick(2.0)
    assert len(bench.operations(ops.Fence)) == 1


def test_a_leader_cut_off_from_postgres_for_long_ends_its_sessions() -> None:
    bench = Bench()
    conn = bench.join()
    bench.hold = (ops.Lead,)
    bench.tick(7.0)
    assert bench.closed == [conn]
    bench.release()
    bench.tick(1.0)
    assert bench.core.leads
    again = bench.resume(1)
    assert bench.last(again, Registered).incarnation == 1


def _restarted(store: FakeStore) -> Bench:
    store.leader = ""
    bench = Bench(store, Settings(holder="two"), leading=False)
    bench.tick()
    return bench


def test_a_new_leader_keeps_incarnations_that_postgres_says_are_alive() -> None:
    first = Bench()
    first.join()
    bench = _restarted(first.store)
    conn = bench.resume(1)
    registered = bench.last(conn, Registered)
    assert (registered.node_id, registered.incarnation) == (1, 1)
    assert bench.operations(ops.RegisterNode) == []


def test_a_new_leader_fences_nobody_for_a_lease_even_where_a_probe_is_refused() -> None:
    first = Bench()
    first.join()
    first.join()
    first.store.leases[2] = -5.0
    bench = _restarted(first.store)
    bench.resume(1)
    bench.handle(ProbeResult(2, 1, "refused"))
    bench.tick(2.8)
    assert bench.operations(ops.Fence) == []
    bench.tick(1.0)
    assert [fence.node_id for fence in bench.operations(ops.Fence)] == [2]


def test_nobody_is_fenced_for_a_lease_after_postgres_restarted() -> None:
    bench = Bench()
    bench.join()
    bench.store.database_up_s = 0.2
    bench.store.leases[1] = -5.0
    bench.tick(1.0)
    bench.store.database_up_s = 3.5
    bench.tick(1.5)
    assert bench.operations(ops.Fence) == []
    bench.tick(2.0)
    assert len(bench.operations(ops.Fence)) == 1


def test_a_new_leader_calls_nothing_lost_before_every_node_has_reported() -> None:
    first = Bench()
    first.join()
    first.join()
    lost = first.store.large(1)
    bench = _restarted(first.store)
    one = bench.resume(1)
    bench.say(one, Locate([lost]))
    bench.tick(2.0)
    assert bench.operations(ops.GrantRebuilds) == []
    two = bench.join(first.store.nodes[2])
    bench.tick(0.5)
    assert bench.of(one, Locations) == []
    bench.say(two, ObjectsHere([(lost, 5)]))
    assert bench.last(one, Locations).objects[0].nodes == [2]


def test_a_node_that_was_fenced_while_it_had_no_session_is_told() -> None:
    first = Bench()
    first.join()
    one = first.store.nodes[1]
    bench = _restarted(first.store)
    bench.tick(4.0)
    bench.store.leases[1] = -1.0
    bench.tick(1.0)
    conn = bench.join(one)
    assert "incarnation 1 of node 1" in bench.last(conn, Fenced).reason


def test_a_resuming_node_learns_of_deaths_that_it_missed_before_anything_else() -> None:
    first = Bench()
    first.join()
    two = first.join()
    first.kill(two)
    first.join(view(node_id=2))
    bench = _restarted(first.store)
    conn = bench.resume(1)
    died, registered = bench.sent[conn][:2]
    assert isinstance(died, NodeDied)
    assert (died.node_id, died.incarnation) == (2, 1)
    assert isinstance(registered, Registered)


def test_an_operation_whose_answer_was_lost_is_sent_again() -> None:
    bench = Bench()
    conn = bench.connect()
    bench.lose_answers = 1
    conn = bench.join()
    assert bench.of(conn, Registered) == []
    bench.tick(0.5)
    assert bench.last(conn, Registered).node_id == 2, "the first one's lease runs out"
    assert len(bench.operations(ops.RegisterNode)) == 2


def test_a_late_answer_of_an_earlier_leadership_is_dropped() -> None:
    bench = Bench()
    bench.hold = (ops.RegisterNode,)
    bench.join()
    late = bench.held.pop()
    bench.store.leader, bench.store.epoch = "another", 7
    bench.tick(1.0)
    bench.store.leader = ""
    bench.tick(1.0)
    bench.handle(StoreReplied(late.number, ops.NodeRegistered(9, 9, 0)))
    bench.handle(StoreReplied(late.number, StoreFailed("late")))
    assert 9 not in bench.core.members.nodes


def test_nodes_that_wait_while_another_goes_on_leading_are_sent_to_look_for_it() -> None:
    store = FakeStore()
    store.leader = "another"
    bench = Bench(store, leading=False)
    bench.tick()
    conn = bench.join()
    bench.tick(1.5)
    assert bench.closed == [], "it may be our own last process, whose lease runs out"
    bench.tick(1.0)
    assert bench.closed == [conn]
    store.leader = ""
    bench.tick(1.0)
    later = bench.join()
    assert bench.last(later, Registered).node_id == 1
    assert bench.closed == [conn]
