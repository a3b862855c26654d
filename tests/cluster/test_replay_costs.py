"""A long chain of tasks is not replayed from its first step: what would take too long to be made
again is in storage."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import pytest

import regrow as ray
from regrow.cluster_utils import Cluster
from tests.cluster.watching import rows, wait_until

STEPS = 36
STEP_S = 0.04


@ray.remote(resources={"spare": 0.01}, max_retries=-1)
def step(before: Any) -> Any:
    end = time.perf_counter() + STEP_S
    while time.perf_counter() < end:
        pass
    return before + 1


@ray.remote(resources={"spare": 0.01}, max_retries=-1)
def first() -> Any:
    return np.zeros(5_000)


def count(cluster: Cluster, table: str) -> int:
    return int(rows(cluster.home, f"SELECT count(*) FROM regrow.{table}")[0][0])


@pytest.mark.parametrize("limit_s", ["0.4", "0"])
def test_a_chain_is_replayed_from_its_last_stored_step(
    limit_s: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REGROW_MAX_REPLAY_S", limit_s)
    with Cluster(initialize_head=True, head_node_args={"num_cpus": 0}) as cluster:
        victim = cluster.add_node(num_cpus=1, resources={"spare": 1})
        cluster.connect()
        cluster.wait_for_nodes()
        last = first.remote()
        for _ in range(STEPS):
            last = step.remote(last)
        ray.wait([last], timeout=60, fetch_local=False)
        if limit_s != "0":
            wait_until(lambda: count(cluster, "stored_objects") >= 2, "steps are stored")
        cluster.add_node(num_cpus=1, resources={"spare": 1})
        cluster.wait_for_nodes()
        cluster.remove_node(victim, allow_graceful=False)
        assert ray.get(last, timeout=60)[0] == STEPS
        again = count(cluster, "rebuilds")
        if limit_s == "0":
            assert again == STEPS + 1
            assert count(cluster, "stored_objects") == 0
        else:
            # 10 steps take 0.4 s; what comes until one is stored is added.
            assert 1 <= again <= 15
        ray.shutdown()
