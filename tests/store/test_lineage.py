"""Lineage and rebuilds, on the store in Postgres and on the simulator's."""

from __future__ import annotations

import time

from msgspec.structs import replace

from regrow.gcs import operations as ops
from regrow.gcs.operations import Batch, Outcome
from regrow.ids import object_id
from regrow.messages import ACTOR_CALL, ACTOR_CREATION, OK, PENDING, Return, header_decoder
from tests.store.worlds import (
    FUNCTION,
    Cluster,
    PostgresWorld,
    large,
    small,
)

#: For walks that must take well under five seconds.
WALK_LIMIT_S = 5.0


def by_level(lineage: ops.Lineage) -> list[list[bytes]]:
    """Task ids by level."""
    levels: list[list[bytes]] = []
    for task in lineage.tasks:
        assert task.level in (len(levels) - 1, len(levels))
        if task.level == len(levels):
            levels.append([])
        levels[-1].append(task.task_id)
    return levels


def test_the_lineage_of_a_chain_goes_up_to_its_beginning(cluster: Cluster) -> None:
    chain = cluster.chain(5)
    lineage = cluster.do(ops.ReadLineage([chain[-1]]))
    assert lineage.complete
    assert by_level(lineage) == [[task_id] for task_id in reversed(chain)]
    assert [task.needs for task in lineage.tasks] == [
        *([object_id(task_id, 0)] for task_id in reversed(chain[:-1])), [],
    ]  # fmt: skip
    first = lineage.tasks[0]
    assert (first.status, first.kind, first.max_retries) == (OK, 0, 3)
    assert (first.digests, first.resources) == ([b"d" * 16], None)


def test_a_walk_stops_at_small_and_at_stored_arguments(cluster: Cluster) -> None:
    little, stored, big = (
        cluster.task(outcome=small()),
        cluster.task(outcome=large()),
        cluster.task(outcome=large(), resources={"GPU": 10_000}),
    )
    ids = [task.header.task_id for task in (little, stored, big)]
    objects = [object_id(task_id, 0) for task_id in ids]
    last = cluster.task(deps=objects[:2], nested=objects[1:], outcome=large())
    batch = Batch(submitted=[little, stored, big, last], stored=[(objects[1], "a/path")])
    cluster.log(cluster.nodes[0], batch)
    lineage = cluster.do(ops.ReadLineage([last.header.task_id]))
    assert lineage.tasks[0].needs == objects[1:]
    assert lineage.tasks[0].stored == [(objects[1], "a/path")]
    assert by_level(lineage) == [[last.header.task_id], [ids[2]]]
    assert lineage.tasks[1].resources == {"GPU": 10_000}


def test_a_walk_passes_puts_by_the_task_that_put_them(cluster: Cluster) -> None:
    parent = cluster.task(outcome=small())
    parent_id = parent.header.task_id
    put, driver_put = cluster.put_id(), cluster.put_id()
    puts = [
        ops.PutRow(put, parent_id, cluster.job, 9000, b"p" * 16, None, []),
        ops.PutRow(driver_put, cluster.driver, cluster.job, 9000, b"q" * 16, None, []),
    ]
    user = cluster.task(deps=[put, driver_put], outcome=large())
    cluster.log(cluster.nodes[0], Batch(submitted=[parent, user], puts=puts))
    lineage = cluster.do(ops.ReadLineage([user.header.task_id]))
    assert lineage.complete
    assert lineage.tasks[0].needs == sorted([put, driver_put])
    assert by_level(lineage) == [[user.header.task_id], [parent_id]]


def test_an_unfinished_argument_is_part_of_a_lineage(cluster: Cluster) -> None:
    pending = cluster.task()
    pending_id = pending.header.task_id
    user = cluster.task(nested=[object_id(pending_id, 0)], outcome=large())
    cluster.log(cluster.nodes[0], Batch(submitted=[pending, user]))
    lineage = cluster.do(ops.ReadLineage([user.header.task_id]))
    assert [(task.task_id, task.status) for task in lineage.tasks] == [
        (user.header.task_id, OK), (pending_id, PENDING),
    ]  # fmt: skip


def test_a_second_return_is_an_argument_of_its_own(cluster: Cluster) -> None:
    maker = cluster.task(num_returns=2)
    maker_id = maker.header.task_id
    made = Outcome(maker_id, 1, OK, [Return(1, b"", b"1"), Return(9000, b"s" * 16, None)])
    first, second = object_id(maker_id, 0), object_id(maker_id, 1)
    user = cluster.task(deps=[first, second], outcome=large())
    cluster.log(cluster.nodes[0], Batch(submitted=[replace(maker, outcome=made), user]))
    lineage = cluster.do(ops.ReadLineage([user.header.task_id]))
    assert lineage.tasks[0].needs == [second]
    assert lineage.tasks[1].digests == [b"", b"s" * 16]


def test_a_walk_goes_on_in_jobs_that_began_on_other_days(cluster: Cluster) -> None:
    source, put = cluster.task(outcome=large()), cluster.put_id()
    row = ops.PutRow(put, source.header.task_id, cluster.job, 9000, b"p" * 16, None, [])
    cluster.log(cluster.nodes[0], Batch(submitted=[source], puts=[row]))
    cluster.do(ops.EndJob(cluster.epoch, cluster.job, "finished"))
    users: list[ops.Submitted] = []
    for root in (b"root, next day..", b"root, third day."):
        cluster.world.advance(86_400)
        job = cluster.do(ops.CreateJob(cluster.epoch, root, "x.py", 8)).job
        deps = [object_id(users[-1].header.task_id, 0)] if users else [put]
        users.append(cluster.task(job=job, deps=deps, outcome=large()))
    cluster.log(cluster.nodes[0], Batch(submitted=users))
    lineage = cluster.do(ops.ReadLineage([users[-1].header.task_id]))
    walked = [users[1], users[0], source]
    assert by_level(lineage) == [[task.header.task_id] for task in walked]
    assert lineage.complete


def test_a_wide_level_is_read_whole(cluster: Cluster) -> None:
    sources = [cluster.task(outcome=large()) for _ in range(3000)]
    deps = [object_id(task.header.task_id, 0) for task in sources]
    gather = cluster.task(deps=deps, outcome=large())
    last = cluster.task(deps=[object_id(gather.header.task_id, 0)], outcome=large())
    cluster.log(cluster.nodes[0], Batch(submitted=[*sources, gather, last]))
    lineage = cluster.do(ops.ReadLineage([last.header.task_id], limit=100))
    assert [len(level) for level in by_level(lineage)] == [1, 1, 3000]
    assert lineage.complete


def test_a_diamond_is_walked_once(cluster: Cluster) -> None:
    layers = [[cluster.task(outcome=large())]]
    for _ in range(8):
        deps = [object_id(task.header.task_id, 0) for task in layers[-1]]
        layers.append([cluster.task(deps=deps, outcome=large()) for _ in range(3)])
    tasks = [task for layer in layers for task in layer]
    cluster.log(cluster.nodes[0], Batch(submitted=tasks))
    roots = [task.header.task_id for task in layers[-1]]
    lineage = cluster.do(ops.ReadLineage(roots))
    assert by_level(lineage) == [
        [task.header.task_id for task in layer] for layer in reversed(layers)
    ]


def test_a_walk_that_met_its_limit_is_not_complete(cluster: Cluster) -> None:
    chain = cluster.chain(10)
    shallow = cluster.do(ops.ReadLineage([chain[-1]], depth=4))
    assert (len(shallow.tasks), shallow.complete) == (4, False)
    few = cluster.do(ops.ReadLineage([chain[-1]], limit=3))
    assert (len(few.tasks), few.complete) == (3, False)
    exact = cluster.do(ops.ReadLineage([chain[-1]], depth=10))
    assert (len(exact.tasks), exact.complete) == (10, True)


def test_a_chain_of_ten_thousand_is_walked_in_time(cluster: Cluster) -> None:
    chain = cluster.chain(10_000)
    wanted, read, started = [chain[-1]], 0, time.monotonic()
    while wanted:
        lineage = cluster.do(ops.ReadLineage(wanted, depth=2000))
        read += len(lineage.tasks)
        wanted = [oid[:16] for oid in lineage.tasks[-1].needs]
    assert read == 10_000
    assert time.monotonic() - started < WALK_LIMIT_S


def test_a_thousand_lost_objects_are_walked_and_granted_at_once(cluster: Cluster) -> None:
    node = cluster.nodes[0]
    tasks = [cluster.task(outcome=large()) for _ in range(1000)]
    cluster.log(node, Batch(functions=[FUNCTION], submitted=tasks))
    ids = [task.header.task_id for task in tasks]
    started = time.monotonic()
    lineage = cluster.do(ops.ReadLineage(ids))
    granted = cluster.do(ops.GrantRebuilds(cluster.epoch, ids, node))
    assert time.monotonic() - started < WALK_LIMIT_S
    assert (len(lineage.tasks), len(granted.tasks)) == (1000, 1000)
    assert lineage.complete


# --- rebuilds -------------------------------------------------------------------------------------


def test_a_rebuild_is_granted_in_order_with_spec_and_digests(cluster: Cluster) -> None:
    one, two = cluster.nodes
    single, double = cluster.task(outcome=large()), cluster.task(num_returns=2)
    made = Outcome(
        double.header.task_id, 1, OK, [Return(1, b"", b"1"), Return(9000, b"s" * 16, None)]
    )
    double = replace(double, outcome=made)
    cluster.log(one, Batch(functions=[FUNCTION], submitted=[single, double]))
    ids = [double.header.task_id, single.header.task_id]
    granted = cluster.do(ops.GrantRebuilds(cluster.epoch, ids, two))
    assert [header_decoder.decode(task.spec).task_id for task in granted.tasks] == ids
    assert [bytes(task.spec) for task in granted.tasks] == [double.spec, single.spec]
    assert [task.digests for task in granted.tasks] == [[b"", b"s" * 16], [b"d" * 16]]
    assert [task.attempt for task in granted.tasks] == [2, 2]
    assert (granted.functions, granted.elsewhere) == ([FUNCTION], [])


def test_one_rebuild_of_a_task_runs_at_a_time(cluster: Cluster) -> None:
    one, two = cluster.nodes
    [task_id] = cluster.chain(1)
    first = cluster.do(ops.GrantRebuilds(cluster.epoch, [task_id], two))
    again = cluster.do(ops.GrantRebuilds(cluster.epoch, [task_id], two))
    assert [task.attempt for task in again.tasks] == [task.attempt for task in first.tasks]
    other = cluster.do(ops.GrantRebuilds(cluster.epoch, [task_id], one))
    assert (other.tasks, other.elsewhere) == ([], [(task_id, two[0])])
    cluster.log(two, Batch(rebuilt=[(task_id, True)]))
    third = cluster.do(ops.GrantRebuilds(cluster.epoch, [task_id], one))
    assert [task.attempt for task in third.tasks] == [3]
    assert cluster.world.tables()["rebuilds"] == [
        (task_id, 2, *two, False, True),
        (task_id, 3, *one, True, None),
    ]


def test_a_rebuild_ends_with_its_node_and_with_its_job(cluster: Cluster) -> None:
    one, two = cluster.nodes
    [task_id] = cluster.chain(1)
    cluster.do(ops.GrantRebuilds(cluster.epoch, [task_id], two))
    cluster.do(ops.Fence(cluster.epoch, *two, "why", [one]))
    assert cluster.world.tables()["rebuilds"] == [(task_id, 2, *two, False, None)]
    assert cluster.do(ops.GrantRebuilds(cluster.epoch, [task_id], two)).tasks == []
    assert len(cluster.do(ops.GrantRebuilds(cluster.epoch, [task_id], one)).tasks) == 1
    cluster.do(ops.EndJob(cluster.epoch, cluster.job, "finished"))
    assert [row[4] for row in cluster.world.tables()["rebuilds"]] == [False, False]


def test_only_tasks_that_ended_well_are_rebuilt(cluster: Cluster) -> None:
    node = cluster.nodes[0]
    failed = cluster.task(outcome=Outcome(b"", 1, 2, [Return(1, b"", b"!")]))
    pending = cluster.task()
    cluster.log(node, Batch(submitted=[failed, pending]))
    ids = [failed.header.task_id, pending.header.task_id, b"?" * 16]
    assert cluster.do(ops.GrantRebuilds(cluster.epoch, ids, node)) == ops.RebuildsGranted(
        [], [], []
    )


# --- the ancestry people read ---------------------------------------------------------------------


def ancestry(world: PostgresWorld, oid: bytes) -> set[bytes]:
    rows = world.sql.execute("SELECT object_id FROM regrow.ancestry(%s)", (oid,)).fetchall()
    assert len(rows) == len(set(rows)), "each once"
    return {row[0] for row in rows}


def test_the_ancestry_of_an_object_is_all_it_was_made_from(postgres_world: PostgresWorld) -> None:
    cluster = Cluster(postgres_world)
    source, inner, putter, unrelated = (cluster.task(outcome=small()) for _ in range(4))
    put = cluster.put_id()
    row = ops.PutRow(
        put, putter.header.task_id, cluster.job, 3, b"p" * 16, b"put",
        [object_id(inner.header.task_id, 0)],
    )  # fmt: skip
    last = cluster.task(deps=[object_id(source.header.task_id, 0)], nested=[put], outcome=large())
    submitted = [source, inner, putter, unrelated, last]
    cluster.log(cluster.nodes[0], Batch(submitted=submitted, puts=[row]))
    made = {object_id(t.header.task_id, 0) for t in (source, inner, putter, last)}
    assert ancestry(postgres_world, object_id(last.header.task_id, 0)) == made | {put}


def test_the_ancestry_of_an_actors_result_contains_the_calls_before_it(
    postgres_world: PostgresWorld,
) -> None:
    cluster = Cluster(postgres_world)
    argument = cluster.task(outcome=small())
    creation = cluster.task(kind=ACTOR_CREATION, outcome=small())
    actor_id = creation.header.task_id
    calls = []
    for seq in range(1, 5):
        deps = [object_id(argument.header.task_id, 0)] if seq == 2 else []
        outcome = replace(small(), actor_seq=seq)
        calls.append(cluster.task(kind=ACTOR_CALL, actor_id=actor_id, deps=deps, outcome=outcome))
    cluster.log(cluster.nodes[0], Batch(submitted=[argument, creation, *calls]))
    wanted = object_id(calls[2].header.task_id, 0)
    made = (argument, creation, *calls[:3])
    assert ancestry(postgres_world, wanted) == {object_id(t.header.task_id, 0) for t in made}


def test_the_ancestry_of_a_long_chain_is_found_quickly(postgres_world: PostgresWorld) -> None:
    cluster = Cluster(postgres_world)
    chain = cluster.chain(5000)
    started = time.monotonic()
    assert len(ancestry(postgres_world, object_id(chain[-1], 0))) == 5000
    assert time.monotonic() - started < WALK_LIMIT_S
