"""Trimming the calls of actors behind their saved states, on both stores."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from regrow.gcs import operations as ops
from regrow.gcs.operations import APPLIED, Batch, Submitted
from regrow.ids import put_object_id
from tests.store.test_store_conformance import called, create_actor, restore, task_ids
from tests.store.worlds import FUNCTION, Cluster


def saved_actor(
    cluster: Cluster, seqs: list[int], stored: int = 3
) -> tuple[bytes, list[Submitted], list[bytes]]:
    """An actor of the first node that made six calls and was saved after these; its calls, and its
    states, of which the bytes of so many are in storage."""
    actor_id = create_actor(cluster, max_restarts=-1)
    one, _ = cluster.nodes
    calls = [called(cluster, actor_id, seq) for seq in range(1, 7)]
    states = [put_object_id(cluster.new_id()) for _ in seqs]
    saved = [(actor_id, seq, state, False) for seq, state in zip(seqs, states, strict=True)]
    places = [(state, f"there/{n}") for n, state in enumerate(states[:stored])]
    batch = Batch(functions=[FUNCTION], submitted=calls, checkpoints=saved, stored=places)
    cluster.log(one, batch)
    return actor_id, calls, states


def trimmed(cluster: Cluster) -> list[bytes]:
    return [task_id for (task_id,) in cluster.world.tables()["trimmed"]]


def trim(cluster: Cluster, limit: int = 1000) -> bool:
    return bool(cluster.do(ops.TrimCalls(cluster.epoch, limit)).more)


def test_calls_are_trimmed_behind_the_older_of_two_states(cluster: Cluster) -> None:
    _, calls, _ = saved_actor(cluster, [2, 4])
    assert not trimmed(cluster)
    assert not trim(cluster)
    assert trimmed(cluster) == [call.header.task_id for call in calls[:2]]
    assert not trim(cluster)
    assert len(trimmed(cluster)) == 2, "once"


@pytest.mark.parametrize(("seqs", "stored"), [([4], 1), ([2, 4], 1), ([2, 4], 0)])
def test_calls_are_not_trimmed_ahead_of_two_states_that_are_safe(
    cluster: Cluster, seqs: list[int], stored: int
) -> None:
    saved_actor(cluster, seqs, stored)
    assert not trim(cluster)
    assert not trimmed(cluster)


def test_calls_are_trimmed_in_parts(cluster: Cluster) -> None:
    saved_actor(cluster, [5, 6])
    assert trim(cluster, 2)
    assert len(trimmed(cluster)) == 2
    assert trim(cluster, 2)
    assert not trim(cluster, 2)
    assert len(trimmed(cluster)) == 5


def test_a_call_that_is_sent_again_after_its_trimming_has_its_result(cluster: Cluster) -> None:
    _, calls, _ = saved_actor(cluster, [3, 4])
    _, two = cluster.nodes
    trim(cluster)
    before = cluster.world.tables()
    again = replace(calls[0], outcome=None, holder=two, submitter=two[0])
    assert cluster.append(two, Batch(submitted=[again])).verdict == APPLIED
    after = cluster.world.tables()
    assert (after["tasks"], after["trimmed"]) == (before["tasks"], before["trimmed"])
    [state] = cluster.do(ops.ReadTasks([calls[0].header.task_id])).tasks
    assert calls[0].outcome is not None
    assert [v.data for v in state.values] == [r.data for r in calls[0].outcome.returns]


def test_a_trimmed_actor_falls_back_to_the_older_state_and_not_further(cluster: Cluster) -> None:
    actor_id, calls, states = saved_actor(cluster, [2, 4])
    one, two = cluster.nodes
    trim(cluster)
    cluster.do(ops.Fence(cluster.epoch, *one, "why", [two]))
    newest = restore(cluster, actor_id, one, two)
    assert (newest.checkpoint_seq, task_ids(newest.calls)) == (
        4, [call.header.task_id for call in calls[4:]],
    )  # fmt: skip
    cluster.log(two, Batch(checkpoints=[(actor_id, 4, b"", False)]))
    older = restore(cluster, actor_id, one, two)
    assert (older.checkpoint, task_ids(older.calls)) == (
        states[0], [call.header.task_id for call in calls[2:]],
    )  # fmt: skip
    cluster.log(two, Batch(checkpoints=[(actor_id, 2, b"", False)]))
    none = restore(cluster, actor_id, one, two)
    assert not none.granted
    assert none.error is not None and none.error.code == "actor_state_lost"
    row = cluster.do(ops.ReadActor(actor_id))
    assert (row.state, row.error) == ("dead", none.error), "for good"


def test_trimmed_calls_are_not_run_again_for_their_results(cluster: Cluster) -> None:
    _, calls, _ = saved_actor(cluster, [2, 4])
    _, two = cluster.nodes
    trim(cluster)
    wanted = [call.header.task_id for call in calls]
    granted = cluster.do(ops.GrantRebuilds(cluster.epoch, wanted, two))
    assert task_ids(granted.tasks) == wanted[2:]
