"""Nodes: joining, resuming, returning, leaving, dying, and what each is told."""

from __future__ import annotations

import msgspec

from regrow.gcs import operations as ops
from regrow.gcs.core_events import ProbeResult
from regrow.messages import (
    PROTOCOL_VERSION,
    Fenced,
    HeldTask,
    Leave,
    Locate,
    Locations,
    LookUpTasks,
    NodeDied,
    Nodes,
    NodeStatus,
    ObjectsHere,
    Reassigned,
    Register,
    Registered,
    RegisterRefused,
    Suspect,
    header_decoder,
)
from tests.unit.gcs.harness import LARGE, Bench, call, held, oid, tid, view


def test_a_node_that_joins_is_told_of_all_and_all_are_told_of_it() -> None:
    bench = Bench()
    one = bench.join()
    two = bench.join()
    assert [node.node_id for node in bench.last(two, Registered).nodes] == [1, 2]
    assert [node.node_id for node in bench.last(one, Nodes).nodes] == [1, 2]


def test_another_version_of_the_protocol_is_refused_in_words() -> None:
    bench = Bench()
    conn = bench.connect()
    bench.say(conn, Register(PROTOCOL_VERSION + 1, "token", view()))
    assert bench.last(conn, RegisterRefused).code == "version"
    assert bench.closed == [conn]


def test_status_changes_are_told_together_and_no_more_often_than_every_50_ms() -> None:
    bench = Bench()
    one, two = bench.join(), bench.join()
    bench.tick(0.2)
    before = len(bench.of(one, Nodes))
    for free in range(20):
        bench.say(two, NodeStatus({"CPU": free}, free))
    assert len(bench.of(one, Nodes)) == before
    bench.tick(0.05)
    assert len(bench.of(one, Nodes)) == before + 1
    assert bench.last(one, Nodes).nodes[1].queued == 19
    bench.tick(1.0)
    assert len(bench.of(one, Nodes)) == before + 1


def test_a_broken_session_is_probed_and_a_refused_probe_fences_at_once() -> None:
    bench = Bench()
    one, two = bench.join(), bench.join(view(port=7002))
    bench.store.reassigned = {1: [held(tid(5), attempt=2)]}
    bench.drop(two)
    assert [(probe.node_id, probe.port) for probe in bench.probes] == [(2, 7002)]
    bench.handle(ProbeResult(2, 1, "refused"))
    assert bench.operations(ops.Fence)[0].only_expired is False
    assert bench.last(one, NodeDied).node_id == 2
    assert bench.last(one, Reassigned).tasks[0].attempt == 2
    assert [node.alive for node in bench.last(one, Nodes).nodes] == [True, False]


def test_a_node_whose_port_answers_or_is_silent_is_left_to_its_lease() -> None:
    for outcome in ("answered", "silent"):
        bench = Bench()
        conn = bench.join()
        bench.drop(conn)
        bench.handle(ProbeResult(1, 1, outcome))
        bench.tick(2.0)
        assert bench.operations(ops.Fence) == []
        bench.store.leases[1] = -0.1
        bench.tick(0.6)
        assert [fence.only_expired for fence in bench.operations(ops.Fence)] == [True]


def test_a_node_that_renewed_its_lease_in_time_stays_alive() -> None:
    bench = Bench()
    one = bench.join()
    bench.store.leases[1] = -0.1
    bench.hold = (ops.Fence,)
    bench.tick(0.6)
    bench.store.leases[1] = 2.9
    bench.release()
    assert bench.of(one, Fenced) == []
    bench.store.leases[1] = -0.1
    bench.tick(0.6)
    assert len(bench.of(one, Fenced)) == 1, "it can still be fenced later"


def test_a_fence_whose_answer_was_lost_is_found_to_have_landed() -> None:
    bench = Bench()
    one, two = bench.join(), bench.join()
    bench.drop(two)
    bench.lose_answers = 1
    bench.handle(ProbeResult(2, 1, "refused"))
    assert bench.of(one, NodeDied) == []
    bench.tick(0.3)
    assert bench.last(one, NodeDied).node_id == 2


def test_a_peers_suspicion_is_a_reason_to_look_only() -> None:
    bench = Bench()
    one = bench.join()
    bench.join()
    bench.say(
        one, Suspect(2, 1, True), Suspect(2, 1, True), Suspect(2, 9, True), Suspect(7, 1, True)
    )
    assert [(probe.node_id, probe.incarnation) for probe in bench.probes] == [(2, 1)]
    assert bench.operations(ops.Fence) == []


def test_a_probe_of_an_earlier_incarnation_changes_nothing() -> None:
    bench = Bench()
    bench.kill(bench.join())
    bench.join(view(node_id=1))
    bench.handle(ProbeResult(1, 1, "refused"))
    assert len(bench.operations(ops.Fence)) == 1
    assert bench.core.members.is_alive(1, 2)


def test_a_fenced_zombie_is_told_and_its_later_words_change_nothing() -> None:
    bench = Bench()
    one, two = bench.join(), bench.join()
    bench.store.leases[2] = -1.0
    bench.tick(0.6)
    assert "lease" in bench.last(two, Fenced).reason
    bench.store.large(1)
    bench.say(two, ObjectsHere([(oid(1), LARGE)]), NodeStatus({}, 9))
    bench.say(one, Locate([oid(2)]))
    assert bench.core.directory.size[0] == 0


def test_a_fenced_zombie_registers_anew_on_the_same_session() -> None:
    bench = Bench()
    one = bench.join()
    bench.store.leases[1] = -1.0
    bench.tick(0.6)
    bench.store.leases.clear()
    bench.say(one, Register(PROTOCOL_VERSION, "token", view(node_id=1)))
    assert bench.last(one, Registered).incarnation == 2


def test_a_node_that_returns_is_a_new_incarnation_and_its_old_one_is_fenced_first() -> None:
    bench = Bench()
    one, two = bench.join(), bench.join()
    back = bench.join(view(node_id=2))
    assert bench.last(back, Registered).incarnation == 2
    fence = bench.operations(ops.Fence)[0]
    assert (fence.node_id, fence.incarnation, fence.heirs) == (2, 1, [(1, 1)])
    assert bench.last(one, NodeDied).incarnation == 1
    assert bench.of(two, Fenced)


def test_heirs_are_those_alive_with_the_most_free() -> None:
    bench = Bench()
    bench.join(view(cpus=1))
    bench.join(view(cpus=8))
    bench.join(view(cpus=8, queued=50))
    bench.kill(bench.join())
    assert bench.operations(ops.Fence)[0].heirs == [(2, 1), (1, 1), (3, 1)]


def test_tasks_without_an_heir_are_swept_to_the_next_node_that_joins() -> None:
    bench = Bench()
    bench.kill(bench.join())
    assert bench.operations(ops.Fence)[0].heirs == []
    bench.store.reassigned = {2: [held(tid(5))]}
    conn = bench.join()
    assert bench.operations(ops.Sweep)[-1].heirs == [(2, 1)]
    assert len(bench.last(conn, Reassigned).tasks) == 1


def test_tasks_handed_to_a_node_just_after_its_death_are_swept_soon() -> None:
    bench = Bench()
    one = bench.join()
    bench.kill(bench.join())
    bench.store.reassigned = {1: [held(tid(6))]}
    bench.tick(2.1)
    assert len(bench.last(one, Reassigned).tasks) == 1


def test_tasks_of_a_sweep_whose_answer_was_lost_are_told_of_when_it_is_repeated() -> None:
    bench = Bench()
    one = bench.join()
    bench.store.pending(8, holder=0)
    bench.hold = (ops.Sweep,)
    bench.say(one, LookUpTasks(1, [tid(8)]))
    bench.store.pending(8, holder=1)
    bench.store.reassigned = {1: [held(tid(8))]}
    bench.store.given = {1: [held(tid(8))]}
    bench.lose_answers = 1
    bench.release()
    assert bench.of(one, Reassigned) == []
    bench.tick(1.0)
    assert [task.spec for task in bench.last(one, Reassigned).tasks] == [held(tid(8)).spec]


def test_a_resumed_session_keeps_the_incarnation_and_hears_again_what_it_was_given() -> None:
    bench = Bench()
    bench.drop(bench.join())
    bench.store.given = {1: [held(tid(7))]}
    conn = bench.resume(1)
    assert bench.last(conn, Registered).incarnation == 1
    assert len(bench.last(conn, Reassigned).tasks) == 1


def test_a_session_that_resumes_before_the_old_one_is_seen_to_break_replaces_it() -> None:
    bench = Bench()
    old = bench.join()
    new = bench.resume(1)
    assert bench.closed == [old]
    bench.drop(old)
    assert bench.probes == []
    bench.say(new, NodeStatus({}, 3))
    bench.tick(0.1)
    assert bench.last(new, Nodes).nodes[0].queued == 3


def test_what_a_node_says_while_its_registration_is_under_way_is_heard_after() -> None:
    bench = Bench()
    bench.store.large(1)
    holder = bench.join()
    bench.say(holder, ObjectsHere([(oid(1), LARGE)]))
    bench.hold = (ops.RegisterNode,)
    conn = bench.join()
    bench.say(conn, Locate([oid(1)]))
    bench.release()
    assert bench.last(conn, Locations).objects[0].nodes == [1]


def test_leaving_hands_tasks_over_without_a_fence_and_ends_the_session() -> None:
    bench = Bench()
    one, two = bench.join(), bench.join()
    bench.store.reassigned = {1: [held(tid(8))]}
    bench.say(two, Leave())
    assert len(bench.operations(ops.NodeLeft)) == 1
    assert bench.operations(ops.Fence) == []
    assert bench.closed == [two]
    assert len(bench.last(one, Reassigned).tasks) == 1
    assert bench.of(two, Fenced) == []
    bench.drop(two)
    assert bench.probes == []


def test_many_reassigned_tasks_are_told_in_several_messages() -> None:
    bench = Bench()
    one = bench.join()
    two = bench.join()
    bench.store.reassigned = {1: [held(tid(n)) for n in range(1200)]}
    bench.kill(two)
    assert [len(message.tasks) for message in bench.of(one, Reassigned)] == [500, 500, 200]


def test_reassigned_calls_are_told_in_the_order_of_their_caller() -> None:
    """Their ids are hashes; a node with them has nothing else to tell which comes first."""
    bench = Bench()
    one = bench.join()
    two = bench.join()
    orders = {tid(1): 3, tid(2): 1, tid(4): 2}
    calls = [HeldTask(msgspec.Raw(call(task_id, order)), 2, 1) for task_id, order in orders.items()]
    bench.store.reassigned = {1: [*calls, held(tid(3))]}
    bench.kill(two)
    told = [header_decoder.decode(task.spec).task_id for task in bench.last(one, Reassigned).tasks]
    assert told == [tid(3), tid(2), tid(4), tid(1)]


def test_a_node_without_a_session_is_listed_with_nothing_free_until_it_resumes() -> None:
    first = Bench()
    first.join()
    first.join()
    first.store.leader = ""
    bench = Bench(first.store, leading=False)
    bench.tick()
    one = bench.resume(1)
    listed = bench.last(one, Registered).nodes
    assert [(node.alive, bool(node.available)) for node in listed] == [(True, True), (True, False)]
    bench.join(msgspec.structs.replace(first.store.nodes[2], queued=1))
    assert all(node.available for node in bench.last(one, Nodes).nodes)


def test_a_node_whose_log_is_refused_is_not_fenced_for_its_lease_while_it_says_so() -> None:
    bench = Bench()
    one = bench.join()
    bench.store.leases[1] = -0.1
    for _ in range(8):  # longer than a lease
        bench.say(one, NodeStatus({}, 0, log_refused=True))
        bench.tick(0.5)
    assert bench.operations(ops.Fence) == []
    for _ in range(8):  # it falls silent
        bench.tick(0.5)
    assert bench.operations(ops.Fence)[0].only_expired


def test_what_a_dead_node_had_handed_over_is_told_again_to_its_holder() -> None:
    """The log says who has it, and the message died with the node: nobody else would ask."""
    bench = Bench()
    one = bench.join()
    two = bench.join()
    other, theirs = held(tid(1)), msgspec.structs.replace(held(tid(2)), submitter=2)
    bench.store.given = {1: [other, theirs]}
    bench.kill(two)
    assert [message.tasks for message in bench.of(one, Reassigned)] == [[theirs]]
