"""What every store must do, on the one in Postgres and on the simulator's."""

from __future__ import annotations

from typing import Any

import msgspec
from msgspec.structs import replace

from regrow.gcs import operations as ops
from regrow.gcs.operations import (
    APPLIED,
    BEHIND,
    CONFLICT,
    FENCED,
    Append,
    Batch,
    Outcome,
    Submitted,
)
from regrow.gcs.store_values import ACTOR_LOST, JOB_ENDED
from regrow.ids import answers_object_id, driver_task_id, object_id, put_object_id
from regrow.messages import (
    ACTOR_CALL,
    ACTOR_CREATION,
    CHECKPOINT,
    DRIVER_SHIFT,
    OK,
    PENDING,
    SYSTEM_ERROR,
    TASK_ERROR,
    HeldTask,
    JobCode,
    Return,
    SystemFailure,
    TaskHeader,
    encode,
    failure_decoder,
    header_decoder,
    spec_decoder,
)
from tests.store.worlds import (
    FUNCTION,
    TTL_S,
    Cluster,
    Node,
    World,
    large,
    small,
    view,
)


def task_ids(held: list[HeldTask]) -> list[bytes]:
    return [header_decoder.decode(task.spec).task_id for task in held]


# --- leadership -----------------------------------------------------------------------------------


def test_one_leads_until_its_time_is_up(world: World) -> None:
    first = world.execute(ops.Lead("a", 0, TTL_S))
    assert first.epoch == 1
    assert world.execute(ops.Lead("b", 0, TTL_S)).epoch == 0
    world.advance(TTL_S - 1)
    assert world.execute(ops.Lead("a", 1, TTL_S)).epoch == 1
    world.advance(TTL_S - 1)
    assert world.execute(ops.Lead("b", 0, TTL_S)).epoch == 0
    world.advance(2)
    second = world.execute(ops.Lead("b", 0, TTL_S))
    assert second.epoch == 2
    assert second.cluster_id == first.cluster_id
    assert second.now - first.now >= 2 * TTL_S
    assert world.execute(ops.Lead("a", 1, TTL_S)).epoch == 0


def test_a_lapsed_leader_that_nobody_replaced_renews(world: World) -> None:
    assert world.execute(ops.Lead("a", 0, TTL_S)).epoch == 1
    world.advance(10 * TTL_S)
    assert world.execute(ops.Lead("a", 1, TTL_S)).epoch == 1


def test_a_holder_whose_answer_was_lost_acquires_again(world: World) -> None:
    world.execute(ops.Lead("a", 0, TTL_S))
    assert world.execute(ops.Lead("a", 0, TTL_S)).epoch == 2


def test_writes_of_an_old_epoch_change_nothing(cluster: Cluster) -> None:
    task = cluster.task()
    cluster.log(cluster.nodes[0], Batch(submitted=[task]))
    before = cluster.world.tables()
    cluster.world.advance(2 * TTL_S)
    cluster.do(ops.Lead("usurper", 0, TTL_S))
    old, node = cluster.epoch, cluster.nodes[0]
    for write in (
        ops.RegisterNode(old, view(), TTL_S),
        ops.Fence(old, *node, "why", []),
        ops.Sweep(old, []),
        ops.NodeLeft(old, *node, []),
        ops.CreateJob(old, b"another root....", "x", 1),
        ops.EndJob(old, cluster.job, "finished"),
        ops.ReserveActorName(old, b"a" * 16, "name", "", cluster.job, b"f" * 16),
        ops.GrantRebuilds(old, [task.header.task_id], node),
        ops.WriteEvent(old, ops.Event("kind", b"", "message")),
        ops.UpdateResources(old, node[0], {"CPU": 1}),
    ):
        assert cluster.do(write) == ops.NotLeader(), write
    assert cluster.world.tables() == before


# --- nodes ----------------------------------------------------------------------------------------


def test_nodes_are_numbered_from_one_and_lives_too(cluster: Cluster) -> None:
    assert cluster.nodes == [(1, 1), (2, 1)]
    again = cluster.do(ops.RegisterNode(cluster.epoch, view(1), TTL_S))
    assert again == ops.NodeRegistered(1, 2, 1)
    assert cluster.append((1, 1)).verdict == FENCED


def test_a_node_that_was_dead_already_fences_nobody_by_coming_back(cluster: Cluster) -> None:
    cluster.do(ops.Fence(cluster.epoch, 1, 1, "why", []))
    again = cluster.do(ops.RegisterNode(cluster.epoch, view(1), TTL_S))
    assert again == ops.NodeRegistered(1, 2, 0)


def test_a_node_id_of_another_database_is_replaced(cluster: Cluster) -> None:
    assert cluster.do(ops.RegisterNode(cluster.epoch, view(77), TTL_S)) == ops.NodeRegistered(
        3, 1, 0
    )


def test_nodes_are_read_in_their_newest_life(cluster: Cluster) -> None:
    cluster.register(1)
    cluster.do(ops.Fence(cluster.epoch, 2, 1, "why", []))
    cluster.do(ops.UpdateResources(cluster.epoch, 1, {"CPU": 5, "GPU": 1}))
    first, second = cluster.do(ops.ReadNodes()).nodes
    assert (first.node_id, first.incarnation, first.alive) == (1, 2, True)
    assert first.total == {"CPU": 5, "GPU": 1}
    assert (first.labels, first.hostname, first.port) == ({"zone": "a"}, "host", 7000)
    assert (second.node_id, second.incarnation, second.alive) == (2, 1, False)


def test_each_batch_renews_the_lease(cluster: Cluster) -> None:
    one, two = cluster.nodes
    cluster.world.advance(2)
    cluster.log(one, Batch())
    cluster.world.advance(2)
    leases = {(n, i): left_s for n, i, left_s in cluster.do(ops.ReadLeases()).nodes}
    assert leases[one] > 0 > leases[two]


def test_a_renewed_lease_saves_a_node_from_being_fenced_as_expired(cluster: Cluster) -> None:
    one, two = cluster.nodes
    cluster.world.advance(TTL_S + 1)
    cluster.log(one, Batch())
    assert not cluster.do(ops.Fence(cluster.epoch, *one, "late", [two], True)).landed
    assert cluster.do(ops.Fence(cluster.epoch, *two, "late", [one], True)).landed
    assert [n[:2] for n in cluster.do(ops.ReadLeases()).nodes] == [one]


# --- batches --------------------------------------------------------------------------------------


def test_a_batch_sent_again_is_answered_as_applied_and_written_once(cluster: Cluster) -> None:
    node = cluster.nodes[0]
    batch = Batch(submitted=[cluster.task()], events=[ops.Event("kind", b"", "once")])
    cluster.log(node, batch)
    before = cluster.world.tables()
    assert cluster.world.append(Append(*node, 1, batch)).verdict == APPLIED
    assert cluster.world.tables() == before


def test_a_batch_from_the_future_finds_the_database_behind(cluster: Cluster) -> None:
    node = cluster.nodes[0]
    before = cluster.world.tables()
    batch = Batch(submitted=[cluster.task()])
    assert cluster.world.append(Append(*node, 2, batch)).verdict == BEHIND
    assert cluster.world.tables() == before


def test_a_node_the_database_never_heard_of_finds_it_behind(cluster: Cluster) -> None:
    assert cluster.world.append(Append(9, 1, 1, Batch())).verdict == BEHIND


def test_a_fenced_incarnation_writes_nothing(cluster: Cluster) -> None:
    one, two = cluster.nodes
    cluster.do(ops.Fence(cluster.epoch, *two, "why", [one]))
    before = cluster.world.tables()
    assert cluster.append(two, Batch(submitted=[cluster.task(two)])).verdict == FENCED
    assert cluster.world.tables() == before


def test_a_batch_for_an_unknown_job_is_rejected(cluster: Cluster) -> None:
    before = cluster.world.tables()
    batch = Batch(submitted=[cluster.task(), cluster.task(job=99)])
    answer = cluster.append(cluster.nodes[0], batch)
    assert (answer.verdict, answer.detail) == (CONFLICT, "job 99 is not in the log")
    assert cluster.world.tables() == before


def test_a_batch_may_hold_everything_at_once(cluster: Cluster) -> None:
    one, two = cluster.nodes
    other_root = b"another job root"
    other = cluster.do(ops.CreateJob(cluster.epoch, other_root, "other.py", 8)).job
    early = cluster.task()
    cluster.log(one, Batch(submitted=[early]))
    done = cluster.task(num_returns=2, job=other, resources={"GPU": 5000})
    done = replace(
        done,
        outcome=Outcome(
            done.header.task_id, 1, OK, [Return(3, b"a" * 16, b"one"), Return(5, b"b" * 16, None)]
        ),
    )
    moved, actor = cluster.task(), cluster.task(kind=ACTOR_CREATION, outcome=small())
    put = ops.PutRow(cluster.put_id(), cluster.driver, cluster.job, 3, b"p" * 16, b"put", [])
    cluster.log(
        one,
        Batch(
            functions=[FUNCTION, FUNCTION],
            submitted=[done, moved, actor],
            outcomes=[small(task_id=early.header.task_id)],
            holders=[ops.NewHolder(moved.header.task_id, 1, two)],
            puts=[put],
            stored=[(put.object_id, "a/path")],
            actors=[(actor.header.task_id, cluster.job, True, None)],
            events=[ops.Event("one", b"s", "first"), ops.Event("two", b"", "nul \0 in it")],
        ),
    )
    states = cluster.do(
        ops.ReadTasks([early.header.task_id, done.header.task_id, moved.header.task_id])
    ).tasks
    assert [(s.status, s.holder) for s in states] == [(OK, 0), (OK, 0), (PENDING, two[0])]
    assert [(v.data, v.size) for v in states[1].values] == [(b"one", 3), (None, 5)]
    [row] = cluster.do(ops.ReadObjects([put.object_id])).objects
    assert (row.stored, row.made_by, row.value.data) == ("a/path", "driver_put", b"put")
    assert cluster.do(ops.ReadActor(actor.header.task_id)).state == "alive"


def test_a_conflict_rejects_the_whole_batch(cluster: Cluster) -> None:
    one, two = cluster.nodes
    held = cluster.task(two)
    cluster.log(one, Batch(submitted=[held]))
    before = cluster.world.tables()
    answer = cluster.append(
        one,
        Batch(
            submitted=[cluster.task(outcome=small())],
            outcomes=[small(task_id=held.header.task_id)],
            events=[ops.Event("kind", b"", "message")],
        ),
    )
    assert answer.verdict == CONFLICT
    assert held.header.task_id.hex() in answer.detail
    assert cluster.world.tables() == before
    leases = cluster.do(ops.ReadLeases()).nodes
    assert [lease[:2] for lease in leases] == [one, two]


# --- outcomes -------------------------------------------------------------------------------------


def test_an_outcome_of_a_task_logged_before_finishes_it(cluster: Cluster) -> None:
    task = cluster.task()
    task_id = task.header.task_id
    cluster.log(cluster.nodes[0], Batch(submitted=[task]))
    assert cluster.do(ops.ReadTasks([task_id])).tasks[0].status == PENDING
    cluster.log(cluster.nodes[0], Batch(outcomes=[small(b"81", task_id, attempt=3)]))
    [state] = cluster.do(ops.ReadTasks([task_id])).tasks
    assert (state.known, state.status, state.holder) == (True, OK, 0)
    [value] = state.values
    assert (value.object_id, value.data, value.digest) == (
        object_id(task_id, 0), b"81", b"digest of 81",
    )  # fmt: skip
    assert cluster.world.tables()["unfinished"] == []


def test_the_same_outcome_twice_is_no_conflict_and_another_is(cluster: Cluster) -> None:
    node = cluster.nodes[0]
    task = cluster.task(outcome=small())
    task_id = task.header.task_id
    cluster.log(node, Batch(submitted=[task]))
    cluster.log(node, Batch(outcomes=[small(task_id=task_id)]))
    cluster.log(node, Batch(submitted=[task]))
    assert cluster.append(node, Batch(outcomes=[small(b"50", task_id)])).verdict == CONFLICT


def test_another_status_is_another_outcome(cluster: Cluster) -> None:
    node = cluster.nodes[0]
    task = cluster.task(outcome=small())
    cluster.log(node, Batch(submitted=[task]))
    error = Outcome(task.header.task_id, 1, TASK_ERROR, small().returns)
    assert cluster.append(node, Batch(outcomes=[error])).verdict == CONFLICT


def test_without_digests_outcomes_are_compared_by_their_bytes(cluster: Cluster) -> None:
    node = cluster.nodes[0]
    task = cluster.task()
    task_id = task.header.task_id
    same = Outcome(task_id, 1, OK, [Return(2, b"", b"49")])
    other = Outcome(task_id, 1, OK, [Return(2, b"", b"50")])
    cluster.log(node, Batch(submitted=[replace(task, outcome=same)]))
    cluster.log(node, Batch(outcomes=[same]))
    assert cluster.append(node, Batch(outcomes=[other])).verdict == CONFLICT


def test_a_second_return_that_differs_is_a_conflict(cluster: Cluster) -> None:
    node = cluster.nodes[0]
    task = cluster.task(num_returns=2)
    task_id = task.header.task_id
    first = Return(1, b"a" * 16, b"1")
    one = Outcome(task_id, 1, OK, [first, Return(1, b"b" * 16, b"2")])
    other = Outcome(task_id, 1, OK, [first, Return(1, b"c" * 16, b"3")])
    cluster.log(node, Batch(submitted=[task], outcomes=[one]))
    cluster.log(node, Batch(outcomes=[one]))
    assert cluster.append(node, Batch(outcomes=[other])).verdict == CONFLICT


def test_a_spec_sent_again_with_an_outcome_finishes_the_row_that_is_there(
    cluster: Cluster,
) -> None:
    node = cluster.nodes[0]
    task = cluster.task()
    cluster.log(node, Batch(submitted=[task]))
    resent = replace(task, outcome=small(task_id=task.header.task_id))
    cluster.log(node, Batch(submitted=[resent, cluster.task()]))
    [state] = cluster.do(ops.ReadTasks([task.header.task_id])).tasks
    assert state.status == OK


def test_a_spec_sent_again_does_not_move_the_task(cluster: Cluster) -> None:
    one, two = cluster.nodes
    task = cluster.task(one)
    cluster.log(one, Batch(submitted=[task]))
    cluster.log(two, Batch(submitted=[replace(task, holder=two)]))
    [state] = cluster.do(ops.ReadTasks([task.header.task_id])).tasks
    assert (state.status, state.holder) == (PENDING, one[0])


def test_a_spec_with_an_outcome_of_a_task_held_elsewhere_is_a_conflict(cluster: Cluster) -> None:
    one, two = cluster.nodes
    task = cluster.task(one)
    cluster.log(one, Batch(submitted=[task]))
    claimed = replace(task, holder=two, outcome=small(task_id=task.header.task_id))
    assert cluster.append(two, Batch(submitted=[claimed])).verdict == CONFLICT


def test_an_outcome_of_an_unknown_task_is_a_conflict(cluster: Cluster) -> None:
    batch = Batch(outcomes=[small(task_id=b"u" * 16)])
    assert cluster.append(cluster.nodes[0], batch).verdict == CONFLICT


def test_all_objects_of_a_failed_task_share_its_error(cluster: Cluster) -> None:
    task = cluster.task(num_returns=2)
    task_id = task.header.task_id
    data = encode(SystemFailure("worker_crashed", "it crashed"))
    failed = Outcome(task_id, 2, SYSTEM_ERROR, [Return(len(data), b"", data)], error="crashed")
    cluster.log(cluster.nodes[0], Batch(submitted=[replace(task, outcome=failed)]))
    [state] = cluster.do(ops.ReadTasks([task_id])).tasks
    assert [(v.object_id, v.status, v.data) for v in state.values] == [
        (object_id(task_id, index), SYSTEM_ERROR, data) for index in (0, 1)
    ]
    rows = cluster.do(ops.ReadObjects([object_id(task_id, 1), object_id(task_id, 2)])).objects
    assert [(row.known, row.status) for row in rows] == [(True, SYSTEM_ERROR), (False, 0)]


def test_a_task_without_returns_finishes(cluster: Cluster) -> None:
    task = cluster.task(num_returns=0)
    ended = Outcome(task.header.task_id, 1, OK, [])
    cluster.log(cluster.nodes[0], Batch(submitted=[replace(task, outcome=ended)]))
    cluster.log(cluster.nodes[0], Batch(outcomes=[ended]))
    [state] = cluster.do(ops.ReadTasks([task.header.task_id])).tasks
    assert (state.status, state.values) == (OK, [])


# --- holders --------------------------------------------------------------------------------------


def test_a_task_handed_over_is_finished_by_its_new_holder_only(cluster: Cluster) -> None:
    one, two = cluster.nodes
    task = cluster.task(one)
    task_id = task.header.task_id
    cluster.log(one, Batch(submitted=[task]))
    cluster.log(one, Batch(holders=[ops.NewHolder(task_id, 1, two)]))
    assert cluster.append(one, Batch(outcomes=[small(task_id=task_id)])).verdict == CONFLICT
    cluster.log(two, Batch(outcomes=[small(task_id=task_id)]))


def test_only_the_holder_hands_a_task_over(cluster: Cluster) -> None:
    one, two = cluster.nodes
    task = cluster.task(one)
    task_id = task.header.task_id
    cluster.log(one, Batch(submitted=[task]))
    taken = Batch(holders=[ops.NewHolder(task_id, 2, two)])
    assert cluster.append(two, taken).verdict == CONFLICT


def test_a_task_that_moves_twice_in_a_batch_is_with_the_last(cluster: Cluster) -> None:
    one, two = cluster.nodes
    task = cluster.task(one)
    task_id = task.header.task_id
    cluster.log(one, Batch(submitted=[task]))
    moves = [ops.NewHolder(task_id, 2, one), ops.NewHolder(task_id, 3, two)]
    cluster.log(one, Batch(holders=moves))
    assert cluster.world.tables()["tasks"] == [(task_id, PENDING, *two, 3)]


def test_a_finished_task_cannot_be_handed_over(cluster: Cluster) -> None:
    one, two = cluster.nodes
    task = cluster.task(one, outcome=small())
    cluster.log(one, Batch(submitted=[task]))
    moved = Batch(holders=[ops.NewHolder(task.header.task_id, 1, two)])
    assert cluster.append(one, moved).verdict == CONFLICT


# --- deaths ---------------------------------------------------------------------------------------


def test_a_dead_nodes_tasks_go_to_their_submitter_with_the_next_attempt(cluster: Cluster) -> None:
    one, two = cluster.nodes
    third = cluster.register()
    tasks = [cluster.task(two, submitter=one[0], attempt=2) for _ in range(3)]
    done = cluster.task(two, outcome=small())
    cluster.log(two, Batch(functions=[FUNCTION], submitted=[*tasks, done]))
    fenced = cluster.do(ops.Fence(cluster.epoch, *two, "why", [third]))
    assert fenced.landed
    assert list(fenced.reassigned) == [one[0]]
    given = fenced.reassigned[one[0]]
    assert task_ids(given) == [task.header.task_id for task in tasks]
    assert [(task.attempt, task.submitter) for task in given] == [(3, one[0])] * 3
    assert [bytes(task.spec) for task in given] == [task.spec for task in tasks]
    assert fenced.functions == [FUNCTION]
    cluster.log(one, Batch(outcomes=[small(task_id=task.header.task_id) for task in tasks]))


def test_tasks_of_a_submitter_that_is_dead_too_go_to_the_heirs_in_turn(cluster: Cluster) -> None:
    two = cluster.nodes[1]
    third, fourth = cluster.register(), cluster.register()
    tasks = [cluster.task(two, submitter=two[0]) for _ in range(4)]
    cluster.log(two, Batch(submitted=tasks))
    dead_heir = (8, 1)
    fenced = cluster.do(ops.Fence(cluster.epoch, *two, "why", [third, dead_heir, fourth]))
    ids = [task.header.task_id for task in tasks]
    assert {node: task_ids(given) for node, given in fenced.reassigned.items()} == {
        third[0]: ids[0::2],
        fourth[0]: ids[1::2],
    }


def test_the_calls_of_an_actor_go_to_one_heir(cluster: Cluster) -> None:
    one = cluster.nodes[0]
    heirs = [cluster.register(), cluster.register(), cluster.register()]
    actors = [bytes(15) + bytes([number]) for number in range(7, 10)]
    tasks = [
        cluster.task(one, kind=ACTOR_CALL, actor_id=actor) for actor in actors for _ in range(5)
    ]
    cluster.log(one, Batch(submitted=[*tasks, cluster.task(one)]))
    fenced = cluster.do(ops.Fence(cluster.epoch, *one, "why", heirs))
    given = {
        task.task_id: node
        for node, held in fenced.reassigned.items()
        for task in (header_decoder.decode(each.spec) for each in held)
    }
    homes = [{given[task.header.task_id] for task in tasks[n : n + 5]} for n in (0, 5, 10)]
    assert homes == [{heirs[1][0]}, {heirs[2][0]}, {heirs[0][0]}]
    assert len(given) == 16


def test_a_submitter_that_came_back_is_an_heir_in_its_new_life(cluster: Cluster) -> None:
    one, two = cluster.nodes
    task = cluster.task(two, submitter=one[0])
    cluster.log(two, Batch(submitted=[task]))
    again = cluster.register(one[0])
    cluster.do(ops.Fence(cluster.epoch, *two, "why", []))
    assert cluster.world.tables()["tasks"] == [(task.header.task_id, PENDING, *again, 2)]


def test_without_an_heir_tasks_wait_for_a_sweep(cluster: Cluster) -> None:
    one, two = cluster.nodes
    task = cluster.task(two, submitter=two[0])
    task_id = task.header.task_id
    cluster.log(two, Batch(submitted=[task]))
    assert cluster.do(ops.Fence(cluster.epoch, *two, "why", [])).reassigned == {}
    assert cluster.do(ops.ReadTasks([task_id])).tasks[0].holder == 0
    assert cluster.do(ops.ReadObjects([object_id(task_id, 0)])).objects[0].holder == 0
    swept = cluster.do(ops.Sweep(cluster.epoch, [one]))
    assert task_ids(swept.reassigned[one[0]]) == [task_id]
    assert cluster.do(ops.Sweep(cluster.epoch, [one])).reassigned == {}


def test_a_hand_over_to_a_dead_node_is_found_by_a_sweep(cluster: Cluster) -> None:
    one, two = cluster.nodes
    task = cluster.task(one)
    cluster.log(one, Batch(submitted=[task]))
    cluster.do(ops.Fence(cluster.epoch, *two, "why", [one]))
    cluster.log(one, Batch(holders=[ops.NewHolder(task.header.task_id, 1, two)]))
    swept = cluster.do(ops.Sweep(cluster.epoch, []))
    assert task_ids(swept.reassigned[one[0]]) == [task.header.task_id]


def test_fencing_twice_lands_once_and_tells_what_the_first_gave_away(cluster: Cluster) -> None:
    one, two = cluster.nodes
    tasks = [cluster.task(two) for _ in range(2)]
    cluster.log(two, Batch(submitted=tasks))
    fence = ops.Fence(cluster.epoch, *two, "why", [one])
    first = cluster.do(fence)
    second = cluster.do(fence)
    assert (first.landed, second.landed) == (True, False)
    assert task_ids(second.reassigned[one[0]]) == task_ids(first.reassigned[one[0]])
    cluster.log(one, Batch(outcomes=[small(task_id=tasks[0].header.task_id)]))
    assert task_ids(cluster.do(fence).reassigned[one[0]]) == [tasks[1].header.task_id]


def test_fencing_a_node_that_never_was_does_nothing(cluster: Cluster) -> None:
    assert cluster.do(ops.Fence(cluster.epoch, 9, 1, "why", [])) == ops.NodeFenced(False, {}, [])


def test_a_node_that_leaves_uses_no_attempt_up(cluster: Cluster) -> None:
    one, two = cluster.nodes
    task = cluster.task(two)
    cluster.log(two, Batch(submitted=[task]))
    left = cluster.do(ops.NodeLeft(cluster.epoch, *two, [one]))
    assert [held.attempt for held in left.reassigned[one[0]]] == [1]
    assert cluster.append(two).verdict == FENCED


def test_what_others_gave_a_node_is_read_again_until_it_goes_on_or_ends(cluster: Cluster) -> None:
    one, two = cluster.nodes
    third = cluster.register()
    tasks = [cluster.task(two, submitter=one[0]) for _ in range(3)]
    ids = [task.header.task_id for task in tasks]
    own, handed = cluster.task(one), cluster.task(one, submitter=two[0])
    cluster.log(one, Batch(functions=[FUNCTION], submitted=[own, handed]))
    cluster.log(two, Batch(submitted=tasks))
    assert task_ids(cluster.do(ops.ReadGiven(*one)).tasks) == [handed.header.task_id]
    cluster.do(ops.Fence(cluster.epoch, *two, "why", [one]))
    given = cluster.do(ops.ReadGiven(*one))
    assert task_ids(given.tasks) == sorted([handed.header.task_id, *ids])
    assert given.functions == [FUNCTION]
    moved = ops.NewHolder(ids[0], 2, third)
    cluster.log(one, Batch(holders=[moved], outcomes=[small(task_id=ids[1])]))
    left = task_ids(cluster.do(ops.ReadGiven(*one)).tasks)
    assert left == sorted([handed.header.task_id, ids[2]])
    # What an earlier incarnation of it submitted, and another gave back, it may have to be told.
    asked = cluster.do(ops.ReadGiven(*one, [own.header.task_id, ids[0]])).tasks
    assert task_ids(asked) == sorted([*left, own.header.task_id])
    assert task_ids(cluster.do(ops.ReadGiven(*third)).tasks) == [ids[0]]


# --- jobs -----------------------------------------------------------------------------------------


def test_a_job_is_created_once_per_root(cluster: Cluster) -> None:
    again = cluster.do(ops.CreateJob(cluster.epoch, cluster.job_root, "main.py", 7))
    assert again.job == cluster.job
    other = cluster.do(ops.CreateJob(cluster.epoch, b"another job root", "other.py", 8)).job
    assert cluster.do(ops.ReadJobs()).jobs == [
        (cluster.job, cluster.job_root, "", 0, False), (other, b"another job root", "", 0, False),
    ]  # fmt: skip
    assert cluster.do(ops.ReadJob(other)) == ops.JobRow(True, b"another job root", True)
    assert cluster.do(ops.ReadJob(99)) == ops.JobRow(False)


def test_the_end_of_a_job_cancels_its_tasks_and_no_others(cluster: Cluster) -> None:
    node = cluster.nodes[0]
    other = cluster.do(ops.CreateJob(cluster.epoch, b"another job root", "other.py", 8)).job
    mine, done, theirs = cluster.task(), cluster.task(outcome=small()), cluster.task(job=other)
    cluster.log(node, Batch(submitted=[mine, done, theirs]))
    assert cluster.do(ops.EndJob(cluster.epoch, cluster.job, "failed")) == ops.Done()
    assert cluster.do(ops.EndJob(cluster.epoch, cluster.job, "finished")) == ops.Done()
    assert cluster.world.tables()["jobs"] == [(cluster.job, "failed"), (other, "running")]
    states = cluster.do(ops.ReadTasks([t.header.task_id for t in (mine, done, theirs)])).tasks
    assert [state.status for state in states] == [SYSTEM_ERROR, OK, PENDING]
    data = states[0].values[0].data
    assert data is not None
    assert failure_decoder.decode(data).code == "cancelled"
    assert cluster.do(ops.ReadJobs()).jobs == [(other, b"another job root", "", 0, False)]


def resume(cluster: Cluster, root: bytes = b"root of a driver", name: str = "nightly") -> Any:
    return cluster.do(ops.ResumeJob(cluster.epoch, name, root, "main.py", 7, "3.11"))


def test_a_run_of_a_named_job_is_resumed_until_it_ends_well(cluster: Cluster) -> None:
    first = resume(cluster, b"root 1..........")
    assert (first.job_root, first.driver, first.runtime) == (b"root 1..........", 1, "3.11")
    assert resume(cluster, b"root 1..........") == first, "it may be sent again"
    assert resume(cluster, b"root 2..........").job == 0, "it has not ended"
    assert resume(cluster, b"root 3..........", "other").job != first.job
    cluster.do(ops.EndJob(cluster.epoch, first.job, "failed"))
    again = resume(cluster, b"root 2..........")
    assert (again.job, again.job_root, again.driver) == (first.job, first.job_root, 2)
    assert resume(cluster, b"root 2..........") == again, "its answer may have been lost"
    assert resume(cluster, b"root 5..........").job == 0, "it is another's now"
    row = ops.JobRow(True, first.job_root, True, "nightly", 2)
    assert cluster.do(ops.ReadJob(first.job)) == row
    assert cluster.do(ops.ReadJobCode(first.job)).on_changed_code == "error"
    assert cluster.do(ops.ReadJobCode(99)) == JobCode("", "error", [])
    cluster.do(ops.EndJob(cluster.epoch, first.job, "finished"))
    later = resume(cluster, b"root 4..........")
    assert (later.job_root, later.driver) == (b"root 4..........", 1)
    assert later.job != first.job


def test_what_failed_is_taken_out_of_a_job_that_is_resumed(cluster: Cluster) -> None:
    node, other = cluster.nodes
    job = resume(cluster).job
    failed = Outcome(b"", 1, TASK_ERROR, [Return(1, b"", b"x")])
    lost = Outcome(b"", 1, SYSTEM_ERROR, [Return(1, b"", b"x")])
    done = cluster.task(job=job, outcome=small())
    gone = [cluster.task(job=job, outcome=outcome) for outcome in (failed, lost)]
    running = [cluster.task(job=job) for _ in range(2)]
    elsewhere = cluster.task(outcome=failed)
    tasks = [done, *gone, *running, elsewhere]
    function = replace(FUNCTION, fingerprint=b"of its code.....")
    cluster.log(node, Batch(functions=[function], submitted=tasks))
    cluster.do(ops.EndJob(cluster.epoch, job, "failed"))
    resumed = resume(cluster, b"another driver..")
    assert resumed.versions == [(FUNCTION.name, b"of its code.....")]
    code = JobCode("nightly", "error", resumed.versions)
    assert cluster.do(ops.ReadJobCode(job)) == code
    ids = [task.header.task_id for task in tasks]
    states = cluster.do(ops.ReadTasks(ids)).tasks
    assert [state.known for state in states] == [True, False, False, False, False, True]
    # What a node still says of the last driver's tasks is no contradiction ...
    first, second = (task.header.task_id for task in running)
    late = Batch(outcomes=[small(task_id=first)], holders=[ops.NewHolder(second, 1, other)])
    cluster.log(node, late)
    assert not cluster.do(ops.ReadTasks([first])).tasks[0].known
    # ... but of what was never there it is.
    assert cluster.append(node, Batch(outcomes=[small(task_id=b"x" * 16)])).verdict == CONFLICT
    again = cluster.task(job=job, task_id=first, outcome=small(), driver=2)
    cluster.log(node, Batch(submitted=[again]))
    assert cluster.do(ops.ReadTasks([first])).tasks[0].status == OK


def test_specs_of_a_driver_that_was_replaced_are_left_out(cluster: Cluster) -> None:
    """They were on their way when another driver took the job over: it submits the same tasks, and
    must not wait for those of the first, which nobody holds."""
    node, other = cluster.nodes
    job = resume(cluster).job
    logged = cluster.task(job=job)
    cluster.log(node, Batch(submitted=[logged]))
    cluster.do(ops.EndJob(cluster.epoch, job, "failed"))
    assert resume(cluster, b"another driver..").driver == 2
    pending, ended = cluster.task(job=job), cluster.task(job=job, outcome=small())
    new, elsewhere = cluster.task(job=job, driver=2), cluster.task()
    late = [pending, ended, new, elsewhere]
    cluster.log(node, Batch(submitted=late))
    ids = [task.header.task_id for task in late]
    states = cluster.do(ops.ReadTasks(ids)).tasks
    assert [state.known for state in states] == [False, False, True, True]
    # What their node, which has not heard of it, says of them, is no contradiction.
    cluster.log(node, Batch(outcomes=[small(task_id=ids[0])]))
    cluster.log(node, Batch(holders=[ops.NewHolder(ids[0], 1, other)]))
    assert not cluster.do(ops.ReadTasks(ids[:1])).tasks[0].known
    for task in (logged, pending, ended):  # as the second driver submits them, elsewhere
        again = cluster.task(other, job=job, task_id=task.header.task_id, driver=2)
        cluster.log(other, Batch(submitted=[again]))
    said = [small(b"other", task_id=t.header.task_id) for t in (logged, pending, ended)]
    cluster.log(node, Batch(outcomes=said, holders=[ops.NewHolder(ids[0], 1, node)]))
    cluster.log(node, Batch(submitted=[pending, ended]))
    rows = cluster.do(ops.ReadTasks([logged.header.task_id, *ids[:2]])).tasks
    assert [(row.status, row.holder) for row in rows] == [(PENDING, other[0])] * 3
    cluster.log(other, Batch(outcomes=[small(task_id=ids[0])]))
    assert cluster.do(ops.ReadTasks(ids[:1])).tasks[0].status == OK


def test_what_was_submitted_with_a_key_is_told_where_it_is_asked_for(cluster: Cluster) -> None:
    keyed, plain = cluster.task(outcome=small()), cluster.task(outcome=small())
    spec = replace(
        spec_decoder.decode(keyed.spec),
        options=msgspec.msgpack.encode({"key": "k", "content": b"of the call"}),
    )
    cluster.log(cluster.nodes[0], Batch(submitted=[replace(keyed, spec=encode(spec)), plain]))
    ids = [keyed.header.task_id, plain.header.task_id, b"x" * 16]
    states = cluster.do(ops.ReadTasks(ids, ids)).tasks
    assert [state.content for state in states] == [b"of the call", b"", b""]
    assert [state.content for state in cluster.do(ops.ReadTasks(ids)).tasks] == [b""] * 3


def test_an_actor_whose_creation_was_left_out_never_was(cluster: Cluster) -> None:
    node = cluster.nodes[0]
    job = resume(cluster).job
    cluster.do(ops.EndJob(cluster.epoch, job, "failed"))
    resume(cluster, b"another driver..")
    actor_id = cluster.new_id()
    creation = cluster.task(
        task_id=actor_id, actor_id=actor_id, kind=ACTOR_CREATION, job=job, outcome=small()
    )
    alive = (actor_id, job, True, None)
    cluster.log(node, Batch(submitted=[creation], actors=[alive]))
    assert not cluster.do(ops.ReadActor(actor_id)).found
    cluster.log(node, Batch(actors=[alive]))
    assert not cluster.do(ops.ReadActor(actor_id)).found
    cluster.log(node, Batch(submitted=[replace(creation, header=_by(creation, 2))]))
    cluster.log(node, Batch(actors=[alive]))
    assert cluster.do(ops.ReadActor(actor_id)).state == "alive"


def _by(submitted: Submitted, driver: int) -> TaskHeader:
    return replace(submitted.header, flags=driver << DRIVER_SHIFT)


def test_tasks_that_run_again_are_told_who_drives_their_job_now(cluster: Cluster) -> None:
    """What they submit is the present driver's, whoever submitted them."""
    node = cluster.nodes[0]
    job = resume(cluster).job
    done, unnamed = cluster.task(job=job, outcome=large()), cluster.task(outcome=large())
    actor_id = create_actor(cluster, job, max_restarts=-1)
    cluster.log(node, Batch(functions=[FUNCTION], submitted=[done, unnamed]))
    cluster.do(ops.EndJob(cluster.epoch, job, "failed"))
    resume(cluster, b"another driver..")
    ids = [done.header.task_id, unnamed.header.task_id]
    granted = cluster.do(ops.GrantRebuilds(cluster.epoch, ids, node))
    assert [task.driver for task in granted.tasks] == [2, 0]
    restored = cluster.do(ops.RestoreActor(cluster.epoch, actor_id, node, node))
    assert restored.creation is not None
    assert restored.creation.driver == 2


def test_children_whose_parents_are_found_go_on_in_a_job_that_is_resumed(cluster: Cluster) -> None:
    """Nobody submits them again: their references may be in the results that are found."""
    node, other = cluster.nodes
    job = resume(cluster).job
    failed = Outcome(b"", 1, TASK_ERROR, [Return(1, b"", b"x")])
    parent, unfinished = cluster.task(job=job, outcome=small()), cluster.task(job=job)
    left, raised = (
        cluster.task(job=job, parent=parent.header.task_id, outcome=outcome)
        for outcome in (None, failed)
    )
    again = cluster.task(job=job, parent=unfinished.header.task_id)
    tasks = [parent, unfinished, left, raised, again]
    cluster.log(node, Batch(functions=[FUNCTION], submitted=tasks))
    cluster.do(ops.EndJob(cluster.epoch, job, "failed"))
    resume(cluster, b"another driver..")
    ids = [task.header.task_id for task in tasks]
    states = cluster.do(ops.ReadTasks(ids)).tasks
    assert [(state.known, state.status) for state in states] == [
        (True, OK), (False, PENDING), (True, PENDING), (True, PENDING), (False, PENDING),
    ]  # fmt: skip
    # What the node still says of the last driver's task is no contradiction, and is not taken.
    cluster.log(node, Batch(outcomes=[small(task_id=ids[2])]))
    assert cluster.do(ops.ReadTasks([ids[2]])).tasks[0].status == PENDING
    given = cluster.do(ops.Sweep(cluster.epoch, [other])).reassigned
    held = [held for tasks in given.values() for held in tasks]
    assert task_ids(held) == sorted([ids[2], ids[3]])
    assert {header_decoder.decode(task.spec).driver for task in held} == {2}
    assert {task.attempt for task in held} == {3}
    assert list(given) == [node[0]], "the node that submitted them lives"


def test_however_often_a_job_is_resumed_its_tasks_have_all_their_retries(cluster: Cluster) -> None:
    node, other = cluster.nodes
    job = resume(cluster).job
    parent = cluster.task(job=job, outcome=small())
    left = [
        cluster.task(job=job, parent=parent.header.task_id, max_retries=most) for most in (0, 2, -1)
    ]
    cluster.log(node, Batch(functions=[FUNCTION], submitted=[parent, *left]))
    for root in (b"a second driver.", b"a third driver..", b"a fourth driver."):
        cluster.do(ops.EndJob(cluster.epoch, job, "failed"))
        resume(cluster, root)
        given = cluster.do(ops.Sweep(cluster.epoch, [other])).reassigned
        held = {task_ids([task])[0]: task for tasks in given.values() for task in tasks}
        for submitted in left:
            task = held[submitted.header.task_id]
            header = header_decoder.decode(task.spec)
            most = submitted.header.max_retries
            allowed = header.max_retries + 1 - task.attempt
            assert allowed == most if most >= 0 else header.max_retries == -1
            assert bool(header.flags & CHECKPOINT) is (most == 0), "it is never made again"


def test_an_actor_that_is_known_only_after_its_jobs_end_comes_back_with_it(
    cluster: Cluster,
) -> None:
    home = cluster.nodes[0]
    job = resume(cluster).job
    lives, gone = (cluster.new_id() for _ in range(2))
    creations = [
        cluster.task(
            task_id=actor_id, kind=ACTOR_CREATION, actor_id=actor_id, job=job, max_retries=-1,
            parent=driver_task_id(b"root of a driver"), outcome=small(),
        )
        for actor_id in (lives, gone)
    ]  # fmt: skip
    cluster.log(home, Batch(functions=[FUNCTION], submitted=creations))
    cluster.do(ops.EndJob(cluster.epoch, job, "failed"))
    cluster.log(home, Batch(actors=[(lives, job, True, None), (gone, job, False, None)]))
    assert cluster.do(ops.ReadActor(lives)).state == "dead"
    resumed = resume(cluster, b"another driver..")
    assert sorted(one.actor_id for one in resumed.restarting) == sorted([lives, gone])


def test_a_detached_job_ends_when_nothing_in_it_is_unfinished(cluster: Cluster) -> None:
    node = cluster.nodes[0]
    one, two, three = (
        cluster.do(
            ops.ResumeJob(cluster.epoch, name, name.encode() * 16, "main.py", 7, "", True)
        ).job
        for name in "abc"
    )
    assert cluster.do(ops.ReadJob(one)).detached
    task = cluster.task(job=one)
    failed = Outcome(b"", 1, TASK_ERROR, [Return(1, b"", b"x")])
    cluster.log(node, Batch(submitted=[task, cluster.task(job=two, outcome=failed)]))
    actor = (cluster.new_id(), three, True, None)
    cluster.log(node, Batch(actors=[actor]))
    end = ops.EndIdleJobs(cluster.epoch, [one, two, three])
    assert cluster.do(end).jobs == [two]
    cluster.log(node, Batch(outcomes=[small(task_id=task.header.task_id)]))
    assert cluster.do(end).jobs == [one, two]
    jobs = dict(cluster.world.tables()["jobs"])
    assert (jobs[one], jobs[two], jobs[three]) == ("finished", "failed", "running")


def test_actors_of_a_job_that_is_resumed_come_back_if_they_may(cluster: Cluster) -> None:
    home = cluster.nodes[0]
    job = resume(cluster).job
    driver = driver_task_id(b"root of a driver")

    def actor(max_restarts: int, parent: bytes, error: SystemFailure | None = None) -> bytes:
        actor_id = cluster.new_id()
        creation = cluster.task(
            task_id=actor_id, kind=ACTOR_CREATION, actor_id=actor_id, job=job, parent=parent,
            max_retries=max_restarts, outcome=small(),
        )  # fmt: skip
        raised = Outcome(b"", 1, TASK_ERROR, [Return(1, b"", b"x")], actor_seq=1)
        call = cluster.task(
            kind=ACTOR_CALL, actor_id=actor_id, job=job, parent=parent, outcome=raised
        )
        calls[actor_id] = call.header.task_id
        cluster.log(home, Batch(functions=[FUNCTION], submitted=[creation, call]))
        cluster.log(home, Batch(actors=[(actor_id, job, True, None)]))
        if error is not None:
            cluster.log(home, Batch(actors=[(actor_id, job, False, error)]))
        return actor_id

    calls: dict[bytes, bytes] = {}
    killed = SystemFailure("actor_died", "killed")
    back, dead = actor(-1, driver), actor(-1, driver, killed)
    plain_one, nested = actor(0, driver), actor(0, b"some parent task")
    cluster.do(ops.EndJob(cluster.epoch, job, "failed"))
    resumed = resume(cluster, b"another driver..")
    assert [(a.actor_id, a.home) for a in resumed.restarting] == [(back, home)]
    assert cluster.do(ops.ReadActor(back)).state == "restarting"
    assert cluster.do(ops.ReadActor(dead)).error == killed
    assert cluster.do(ops.ReadActor(plain_one)).state == "dead"
    assert not cluster.do(ops.ReadActor(nested)).found, "its creator makes it anew"
    states = cluster.do(ops.ReadTasks([calls[a] for a in (back, dead, plain_one, nested)])).tasks
    assert [state.known for state in states] == [True, False, False, False]
    granted = cluster.do(ops.RestoreActor(cluster.epoch, back, home, home))
    assert granted.granted
    assert [header_decoder.decode(c.spec).task_id for c in granted.calls] == [calls[back]]


def test_outcomes_and_hand_overs_of_cancelled_tasks_are_passed_over(cluster: Cluster) -> None:
    one, two = cluster.nodes
    tasks = [cluster.task(num_returns=2) for _ in range(2)]
    ids = [task.header.task_id for task in tasks]
    cluster.log(one, Batch(submitted=tasks))
    cluster.do(ops.EndJob(cluster.epoch, cluster.job, "finished"))
    late = Outcome(ids[0], 1, OK, [Return(1, b"a" * 16, b"1"), Return(1, b"b" * 16, b"2")])
    cluster.log(one, Batch(outcomes=[late], holders=[ops.NewHolder(ids[1], 1, two)]))
    states = cluster.do(ops.ReadTasks(ids)).tasks
    assert [state.status for state in states] == [SYSTEM_ERROR, SYSTEM_ERROR]
    assert cluster.do(ops.ReadObjects([object_id(ids[0], 1)])).objects[0].status == SYSTEM_ERROR


def test_a_spec_that_arrives_after_its_jobs_end_is_cancelled(cluster: Cluster) -> None:
    cluster.do(ops.EndJob(cluster.epoch, cluster.job, "finished"))
    late, done = cluster.task(), cluster.task(outcome=small())
    cluster.log(cluster.nodes[0], Batch(submitted=[late, done]))
    states = cluster.do(ops.ReadTasks([late.header.task_id, done.header.task_id])).tasks
    assert [state.status for state in states] == [SYSTEM_ERROR, OK]
    assert cluster.world.tables()["unfinished"] == []


# --- functions and actors -------------------------------------------------------------------------


def test_functions_are_stored_once(cluster: Cluster) -> None:
    node = cluster.nodes[0]
    other = replace(FUNCTION, function_id=b"g" * 16, fingerprint=b"code")
    cluster.log(node, Batch(functions=[FUNCTION, other]))
    cluster.log(node, Batch(functions=[replace(FUNCTION, name="renamed")]))
    found = cluster.do(ops.ReadFunctions([b"g" * 16, b"f" * 16, b"h" * 16])).functions
    assert found == [FUNCTION, other]


def create_actor(cluster: Cluster, job: int = 0, max_restarts: int = 0) -> bytes:
    """The id of an actor that lives on the first node."""
    actor_id = cluster.new_id()
    creation = cluster.task(
        task_id=actor_id, actor_id=actor_id, kind=ACTOR_CREATION, outcome=small(), job=job,
        max_retries=max_restarts,
    )  # fmt: skip
    actors = Batch(submitted=[creation], actors=[(actor_id, job or cluster.job, True, None)])
    cluster.log(cluster.nodes[0], actors)
    return actor_id


def test_an_actor_is_found_from_its_creation_on(cluster: Cluster) -> None:
    creation = cluster.task(kind=ACTOR_CREATION)
    actor_id = creation.header.task_id
    assert not cluster.do(ops.ReadActor(actor_id)).found
    cluster.log(cluster.nodes[0], Batch(submitted=[creation]))
    pending = cluster.do(ops.ReadActor(actor_id))
    assert (pending.state, pending.job) == ("pending", cluster.job)
    assert pending.function_id == FUNCTION.function_id
    started = Batch(
        outcomes=[small(task_id=actor_id)], actors=[(actor_id, cluster.job, True, None)]
    )
    cluster.log(cluster.nodes[0], started)
    alive = cluster.do(ops.ReadActor(actor_id))
    assert (alive.state, alive.node_id, alive.incarnation) == ("alive", *cluster.nodes[0])
    assert alive.function_id == FUNCTION.function_id


def test_an_actor_whose_creation_failed_is_dead(cluster: Cluster) -> None:
    creation = cluster.task(kind=ACTOR_CREATION)
    actor_id = creation.header.task_id
    reserve = ops.ReserveActorName(
        cluster.epoch, actor_id, "name", "", cluster.job, FUNCTION.function_id
    )
    assert cluster.do(reserve).state == "pending"
    failed = Outcome(actor_id, 1, TASK_ERROR, [Return(1, b"", b"!")], error="ValueError")
    cluster.log(cluster.nodes[0], Batch(submitted=[replace(creation, outcome=failed)]))
    row = cluster.do(ops.ReadActor(actor_id))
    assert row.state == "dead"
    assert row.error is not None
    assert "ValueError" in row.error.message


def test_death_is_final(cluster: Cluster) -> None:
    actor_id = create_actor(cluster)
    why = SystemFailure("actor_died", "killed")
    cluster.log(cluster.nodes[0], Batch(actors=[(actor_id, cluster.job, False, why)]))
    cluster.log(cluster.nodes[1], Batch(actors=[(actor_id, cluster.job, True, None)]))
    row = cluster.do(ops.ReadActor(actor_id))
    assert (row.state, row.error) == ("dead", why)


def test_an_actor_lives_on_one_node(cluster: Cluster) -> None:
    """Its driver went from one node to another, and both created it."""
    actor_id = create_actor(cluster, max_restarts=-1)
    one, two = cluster.nodes
    again = Batch(actors=[(actor_id, cluster.job, True, None)])
    cluster.log(one, again)
    answer = cluster.append(two, again)
    assert (answer.verdict, answer.detail) == (
        CONFLICT,
        f"actor {actor_id.hex()} lives on another node",
    )
    row = cluster.do(ops.ReadActor(actor_id))
    assert (row.state, row.node_id, row.incarnation) == ("alive", *one)


def test_an_actor_dies_with_its_node(cluster: Cluster) -> None:
    actor_id = create_actor(cluster)
    one, two = cluster.nodes
    fenced = cluster.do(ops.Fence(cluster.epoch, *one, "why", [two]))
    assert fenced.actors == [(actor_id, cluster.job)]
    row = cluster.do(ops.ReadActor(actor_id))
    assert (row.state, row.error) == ("dead", ACTOR_LOST)


def called(cluster: Cluster, actor_id: bytes, seq: int, **changes: Any) -> Submitted:
    """A call that the actor executed as its ``seq``-th; 0: it never reached the actor."""
    outcome = replace(small(), actor_seq=seq, **changes)
    return cluster.task(kind=ACTOR_CALL, actor_id=actor_id, max_retries=-1, outcome=outcome)


def test_what_wait_answered_in_a_call_comes_back_with_it(cluster: Cluster) -> None:
    home, target = cluster.nodes
    actor_id = create_actor(cluster, max_restarts=-1)
    calls = [called(cluster, actor_id, seq) for seq in (1, 2)]
    [one, two] = [call.header.task_id for call in calls]
    said = [
        ops.PutRow(answers_object_id(one, 1), one, cluster.job, 2, b"digest..........", b"ok", []),
        ops.PutRow(answers_object_id(two, 2), two, cluster.job, 2, b"another attempt.", b"no", []),
    ]
    cluster.log(home, Batch(submitted=calls, puts=said))
    cluster.do(ops.Fence(cluster.epoch, *home, "why", [target]))
    restored = restore(cluster, actor_id, home, target)
    assert [call.answers for call in restored.calls] == [b"ok", b""]


def restore(cluster: Cluster, actor_id: bytes, home: Node, target: Node) -> ops.ActorRestored:
    restored: ops.ActorRestored = cluster.do(
        ops.RestoreActor(cluster.epoch, actor_id, home, target)
    )
    return restored


def test_an_actor_that_may_restart_is_given_away_with_what_it_executed_in_order(
    cluster: Cluster,
) -> None:
    actor_id = create_actor(cluster, max_restarts=1)
    one, two = cluster.nodes
    calls = [called(cluster, actor_id, seq) for seq in (2, 3, 1)]
    failed = called(cluster, actor_id, 4, status=TASK_ERROR)
    skipped = called(cluster, actor_id, 0, status=SYSTEM_ERROR)
    pending = cluster.task(kind=ACTOR_CALL, actor_id=actor_id)
    submitted = [*calls, failed, skipped, pending]
    cluster.log(one, Batch(functions=[FUNCTION], submitted=submitted))
    fenced = cluster.do(ops.Fence(cluster.epoch, *one, "why", [two]))
    assert fenced.actors == []
    assert fenced.restarting == [ops.RestartingActor(actor_id, cluster.job, one)]
    assert cluster.do(ops.ReadActor(actor_id)).state == "restarting"
    restored = restore(cluster, actor_id, one, two)
    assert restored.granted
    assert restored.creation is not None
    assert header_decoder.decode(restored.creation.spec).task_id == actor_id
    ran = [header_decoder.decode(held.spec).task_id for held in restored.calls]
    assert ran == [call.header.task_id for call in (calls[2], calls[0], calls[1], failed)]
    assert restored.last_seq == 4
    assert [held.status for held in restored.calls] == [OK, OK, OK, TASK_ERROR]
    assert restored.calls[0].digests == [small().returns[0].digest]
    assert [function.function_id for function in restored.functions] == [FUNCTION.function_id]
    # Asked again, because the answer was lost, it is the same; and the node can ask itself.
    assert restore(cluster, actor_id, one, two) == restored
    given = cluster.do(ops.ReadGiven(*two))
    assert given.restarting == [ops.RestartingActor(actor_id, cluster.job, two)]
    cluster.log(two, Batch(actors=[(actor_id, cluster.job, True, None)]))
    assert cluster.do(ops.ReadActor(actor_id)).state == "alive"
    assert not restore(cluster, actor_id, one, two).granted, "it is back"


def test_an_actor_remembers_the_calls_of_other_jobs(cluster: Cluster) -> None:
    actor_id = create_actor(cluster, max_restarts=-1)
    one, two = cluster.nodes
    other = resume(cluster).job
    outcomes = [small(), Outcome(b"", 1, TASK_ERROR, [Return(1, b"", b"x")]), small()]
    calls = [
        cluster.task(
            kind=ACTOR_CALL, actor_id=actor_id, max_retries=-1, job=job,
            outcome=replace(outcome, actor_seq=seq),
        )
        for seq, (job, outcome) in enumerate(zip((0, other, other), outcomes, strict=True), 1)
    ]  # fmt: skip
    cluster.log(one, Batch(functions=[FUNCTION], submitted=calls))
    cluster.do(ops.EndJob(cluster.epoch, other, "failed"))
    assert resume(cluster, b"another driver..").job == other
    cluster.do(ops.Fence(cluster.epoch, *one, "why", [two]))
    restored = restore(cluster, actor_id, one, two)
    assert task_ids(restored.calls) == [call.header.task_id for call in calls]


def test_calls_before_the_newest_checkpoint_are_not_given_away(cluster: Cluster) -> None:
    actor_id = create_actor(cluster, max_restarts=-1)
    one, two = cluster.nodes
    calls = [called(cluster, actor_id, seq) for seq in range(1, 7)]
    states = [put_object_id(cluster.new_id()) for _ in range(3)]
    saved = [(actor_id, seq, state, seq == 4) for seq, state in zip((2, 3, 4), states, strict=True)]
    cluster.log(one, Batch(functions=[FUNCTION], submitted=calls, checkpoints=saved))
    cluster.do(ops.Fence(cluster.epoch, *one, "why", [two]))

    def ran(restored: ops.ActorRestored) -> list[bytes]:
        return [header_decoder.decode(held.spec).task_id for held in restored.calls]

    newest = restore(cluster, actor_id, one, two)
    assert (newest.checkpoint, newest.checkpoint_seq, newest.custom) == (states[2], 4, True)
    assert ran(newest) == [call.header.task_id for call in calls[4:]]
    assert newest.last_seq == 6
    # It turns out to be unreadable: the one before is there; the oldest is not kept.
    cluster.log(two, Batch(checkpoints=[(actor_id, 4, b"", False)]))
    before = restore(cluster, actor_id, one, two)
    assert (before.checkpoint, before.checkpoint_seq, before.custom) == (states[1], 3, False)
    assert ran(before) == [call.header.task_id for call in calls[3:]]
    cluster.log(two, Batch(checkpoints=[(actor_id, 3, b"", False)]))
    assert len(ran(restore(cluster, actor_id, one, two))) == 6, "from the beginning"


def test_a_state_after_a_call_that_the_log_has_not_is_not_taken(cluster: Cluster) -> None:
    """Its job ended before: the call was cancelled, and runs again when the job is resumed."""
    one, two = cluster.nodes
    actor_id = create_actor(cluster, max_restarts=-1)
    first_call, second = called(cluster, actor_id, 1), called(cluster, actor_id, 2)
    cluster.log(one, Batch(functions=[FUNCTION], submitted=[first_call]))
    state = [(actor_id, seq, put_object_id(cluster.new_id()), False) for seq in (1, 2)]
    cluster.log(two, Batch(checkpoints=[state[0]]))  # it does not live there
    cluster.log(one, Batch(checkpoints=[state[1]]))
    cluster.do(ops.Fence(cluster.epoch, *one, "why", [two]))
    assert restore(cluster, actor_id, one, two).checkpoint == b""
    cluster.log(two, Batch(submitted=[second], checkpoints=[state[1]]))
    assert restore(cluster, actor_id, two, two).checkpoint == state[1][2]


def test_two_nodes_never_restore_one_actor(cluster: Cluster) -> None:
    actor_id = create_actor(cluster, max_restarts=-1)
    one, two = cluster.nodes
    third = cluster.register()
    cluster.do(ops.Fence(cluster.epoch, *one, "why", [two]))
    assert restore(cluster, actor_id, one, two).granted
    assert not restore(cluster, actor_id, one, third).granted, "its home is another by now"
    fenced = cluster.do(ops.Fence(cluster.epoch, *two, "why", [third]))
    assert [actor.home for actor in fenced.restarting] == [two]
    assert restore(cluster, actor_id, two, third).granted
    assert not restore(cluster, actor_id, two, two).granted


def test_an_actor_restarts_as_often_as_it_may(cluster: Cluster) -> None:
    actor_id = create_actor(cluster, max_restarts=2)
    home = cluster.nodes[0]
    gone = Batch(actors=[(actor_id, cluster.job, False, None)])
    for _ in range(2):
        cluster.log(home, gone)
        assert restore(cluster, actor_id, home, home).granted
        cluster.log(home, Batch(actors=[(actor_id, cluster.job, True, None)]))
    cluster.log(home, gone)
    last = restore(cluster, actor_id, home, home)
    assert not last.granted
    assert last.error is not None
    assert "max_restarts" in last.error.message
    assert cluster.do(ops.ReadActor(actor_id)).state == "dead"


def test_an_actor_whose_process_is_gone_in_the_append_that_created_it_restarts_if_it_may(
    cluster: Cluster,
) -> None:
    home = cluster.nodes[0]
    for most, state in ((-1, "restarting"), (1, "restarting"), (0, "dead")):
        actor_id = cluster.new_id()
        created = cluster.task(
            task_id=actor_id, actor_id=actor_id, kind=ACTOR_CREATION, outcome=small(),
            max_retries=most,
        )  # fmt: skip
        batch = Batch(submitted=[created], actors=[(actor_id, cluster.job, False, None)])
        cluster.log(home, batch)
        assert cluster.do(ops.ReadActor(actor_id)).state == state
        assert restore(cluster, actor_id, home, home).granted == (state == "restarting")


def test_no_actor_restarts_in_a_job_that_has_ended(cluster: Cluster) -> None:
    actor_id = create_actor(cluster, max_restarts=-1)
    one, two = cluster.nodes
    cluster.do(ops.EndJob(cluster.epoch, cluster.job, "finished"))
    assert cluster.do(ops.Fence(cluster.epoch, *one, "why", [two])).restarting == []
    assert restore(cluster, actor_id, one, two).error is not None


def test_actors_end_with_their_job_and_none_begins_after_it(cluster: Cluster) -> None:
    actor_id, later = create_actor(cluster), cluster.new_id()
    cluster.do(ops.EndJob(cluster.epoch, cluster.job, "finished"))
    row = cluster.do(ops.ReadActor(actor_id))
    assert (row.state, row.error) == ("dead", JOB_ENDED)
    cluster.log(cluster.nodes[0], Batch(actors=[(later, cluster.job, True, None)]))
    assert cluster.do(ops.ReadActor(later)).state == "dead"


def test_a_name_is_held_by_one_living_actor_per_namespace(cluster: Cluster) -> None:
    def reserve(actor_id: bytes, namespace: str = "space") -> ops.ActorRow:
        row: ops.ActorRow = cluster.do(
            ops.ReserveActorName(
                cluster.epoch, actor_id, "name", namespace, cluster.job, FUNCTION.function_id
            )
        )
        return row

    first, second = create_actor(cluster), cluster.new_id()
    assert reserve(first).actor_id == first
    assert reserve(first).actor_id == first
    assert reserve(second).actor_id == first
    assert reserve(second, "elsewhere").actor_id == second
    named = cluster.do(ops.ReadActor(b"", "name", "space"))
    assert (named.actor_id, named.name, named.state) == (first, "name", "alive")
    assert not cluster.do(ops.ReadActor(b"", "name", "nowhere")).found
    why = SystemFailure("actor_died", "killed")
    cluster.log(cluster.nodes[0], Batch(actors=[(first, cluster.job, False, why)]))
    assert not cluster.do(ops.ReadActor(b"", "name", "space")).found
    third = cluster.new_id()
    assert reserve(third).actor_id == third
    assert reserve(third).state == "pending"


def test_names_of_ended_jobs_are_not_reserved(cluster: Cluster) -> None:
    cluster.do(ops.EndJob(cluster.epoch, cluster.job, "finished"))
    reserve = ops.ReserveActorName(cluster.epoch, b"a" * 16, "name", "", cluster.job, b"f" * 16)
    assert not cluster.do(reserve).found


# --- objects --------------------------------------------------------------------------------------


def test_an_object_says_who_makes_it_again(cluster: Cluster) -> None:
    node = cluster.nodes[0]
    task = cluster.task(outcome=large(), max_retries=5)
    call = cluster.task(kind=ACTOR_CALL, actor_id=b"a" * 16, outcome=large())
    task_id, call_id = task.header.task_id, call.header.task_id
    by_task, by_call, by_driver = cluster.put_id(), cluster.put_id(), cluster.put_id()
    puts = [
        ops.PutRow(put, parent, cluster.job, 9000, b"p" * 16, None, [object_id(task_id, 0)])
        for put, parent in ((by_task, task_id), (by_call, call_id), (by_driver, cluster.driver))
    ]
    cluster.log(node, Batch(submitted=[task, call], puts=puts))
    ids = [object_id(task_id, 0), object_id(call_id, 0), by_task, by_call, by_driver, b"?" * 20]
    rows = cluster.do(ops.ReadObjects(ids)).objects
    assert [row.object_id for row in rows] == ids
    assert [(row.known, row.made_by, row.producer, row.max_retries) for row in rows] == [
        (True, "task", task_id, 5),
        (True, "actor_call", call_id, 0),
        (True, "put", task_id, 5),
        (True, "put", call_id, 0),
        (True, "driver_put", b"", 0),
        (False, "task", b"", 0),
    ]
    assert rows[2].value is not None
    assert rows[2].value.refs == [object_id(task_id, 0)]
    assert (rows[2].value.size, rows[2].value.data) == (9000, None)


def test_a_put_twice_must_be_the_same(cluster: Cluster) -> None:
    node = cluster.nodes[0]
    put = ops.PutRow(cluster.put_id(), cluster.driver, cluster.job, 3, b"p" * 16, b"put", [])
    cluster.log(node, Batch(puts=[put, put]))
    cluster.log(node, Batch(puts=[put]))
    assert cluster.append(node, Batch(puts=[replace(put, digest=b"q" * 16)])).verdict == CONFLICT


def test_the_last_place_of_stored_bytes_counts(cluster: Cluster) -> None:
    node = cluster.nodes[0]
    task = cluster.task(num_returns=2, outcome=large())
    second = object_id(task.header.task_id, 1)
    made = Outcome(task.header.task_id, 1, OK, [large().returns[0], large().returns[0]])
    cluster.log(node, Batch(submitted=[replace(task, outcome=made)], stored=[(second, "a")]))
    cluster.log(node, Batch(stored=[(second, "b"), (second, "c")]))
    [row] = cluster.do(ops.ReadObjects([second])).objects
    assert (row.stored, row.known) == ("c", True)
