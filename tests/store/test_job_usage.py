"""Which jobs may not be deleted, because others need them."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from regrow._job_usage import users
from regrow.gcs import operations as ops
from regrow.gcs.operations import Batch, PutRow
from regrow.ids import object_id
from regrow.messages import ACTOR_CALL, ACTOR_CREATION, Return
from tests.store.worlds import FUNCTION, Cluster, PostgresWorld, small


@pytest.fixture
def cluster(postgres_world: PostgresWorld) -> Cluster:
    return Cluster(postgres_world)


def used(cluster: Cluster) -> dict[int, list[str]]:
    assert isinstance(cluster.world, PostgresWorld)
    return users(cluster.world.sql, [cluster.job])


def opened(cluster: Cluster, name: str, root: bytes = b"root of a driver") -> int:
    job: int = cluster.do(ops.ResumeJob(cluster.epoch, name, root, "main.py", 7, "")).job
    return job


@pytest.mark.parametrize("where", ["argument", "nested", "result", "put"])
def test_a_job_whose_objects_another_refers_to_is_needed(cluster: Cluster, where: str) -> None:
    mine = cluster.task(outcome=small())
    ref = object_id(mine.header.task_id, 0)
    batch = Batch(functions=[FUNCTION], submitted=[mine])
    cluster.log(cluster.nodes[0], batch)
    other = opened(cluster, "other")
    if where == "put":
        put = PutRow(cluster.put_id(), cluster.driver, other, 1, b"d" * 16, b"x", [ref])
        cluster.log(cluster.nodes[0], Batch(puts=[put]))
    else:
        refs = [ref]
        ended = replace(small(), returns=[Return(1, b"d" * 16, b"x", refs)])
        theirs = cluster.task(
            job=other, deps=refs if where == "argument" else None,
            nested=refs if where == "nested" else None,
            outcome=ended if where == "result" else None,
        )  # fmt: skip
        cluster.log(cluster.nodes[0], Batch(submitted=[theirs]))
    assert used(cluster) == {cluster.job: ["other"]}
    cluster.do(ops.EndJob(cluster.epoch, other, "failed"))
    assert used(cluster) == {cluster.job: ["other"]}, "it can be resumed"
    opened(cluster, "other", b"another driver..")
    cluster.do(ops.EndJob(cluster.epoch, other, "finished"))
    assert used(cluster) == {}


def test_a_job_whose_calls_are_in_the_history_of_anothers_actor_is_needed(
    cluster: Cluster,
) -> None:
    node, other = cluster.nodes[0], opened(cluster, "other")
    actor_id = cluster.new_id()
    creation = cluster.task(
        task_id=actor_id, actor_id=actor_id, kind=ACTOR_CREATION, job=other, outcome=small()
    )
    cluster.log(node, Batch(functions=[FUNCTION], submitted=[creation]))
    cluster.log(node, Batch(actors=[(actor_id, other, True, None)]))
    assert used(cluster) == {}
    call = cluster.task(kind=ACTOR_CALL, actor_id=actor_id, outcome=small())
    cluster.log(node, Batch(submitted=[call]))
    assert used(cluster) == {cluster.job: ["other"]}
    cluster.do(ops.EndJob(cluster.epoch, other, "finished"))
    assert used(cluster) == {}
