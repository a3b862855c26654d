"""A node that is silent for longer than its lease and comes back; and a node that is lost while it
recovers what another lost."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import psutil

import regrow as ray
from regrow.cluster_utils import Cluster, Node
from tests.cluster.watching import rows, wait_until

#: Elements of an array that only an arena keeps.
LARGE = 4_000


class Account:
    """Its state depends on the order of its calls."""

    def __init__(self) -> None:
        self.value = 0

    def add(self, amount: int) -> int:
        self.value = self.value * 3 + amount
        return self.value


def expected(amounts: range) -> list[int]:
    value, values = 0, []
    for amount in amounts:
        value = value * 3 + amount
        values.append(value)
    return values


@contextmanager
def nodes(count: int) -> Iterator[tuple[Cluster, list[Node]]]:
    """A head without CPUs, on which the driver is, and so many nodes that run its tasks."""
    with Cluster(initialize_head=True, head_node_args={"num_cpus": 0}) as cluster:
        first = cluster.add_node(num_cpus=1, resources={"away": 4, "first": 1})
        others = [cluster.add_node(num_cpus=1, resources={"away": 4}) for _ in range(count - 1)]
        cluster.wait_for_nodes()
        cluster.connect()
        yield cluster, [first, *others]


def incarnations(cluster: Cluster, node: Node) -> list[tuple[int, bool]]:
    query = "SELECT incarnation, alive FROM regrow.nodes WHERE node_id = %s ORDER BY 1"
    return [(row[0], row[1]) for row in rows(cluster.home, query, node.node_id)]


@ray.remote(resources={"away": 0.1}, max_retries=1)
def where(folder: str) -> int:
    """On which node it ran; it ends when the test lets it go."""
    node = int(ray.get_runtime_context().get_node_id())
    Path(f"{folder}/began-{node}").touch()
    wait_until(Path(f"{folder}/go").exists, "the test lets it go", 60)
    Path(f"{folder}/ended-{node}").touch()
    return node


def test_the_late_results_of_a_node_that_was_silent_are_refused_and_it_works_again(
    tmp_path: Path,
) -> None:
    with nodes(1) as (cluster, [first]):
        account = ray.remote(Account).options(max_restarts=1, resources={"first": 0.1}).remote()
        made = [account.add.remote(i) for i in range(20)]
        assert ray.get(made, timeout=60) == expected(range(20))
        ref = where.remote(str(tmp_path))
        began = tmp_path / f"began-{first.node_id}"
        wait_until(began.exists, "the task runs on the first node", 60)
        second = cluster.add_node(num_cpus=1, resources={"away": 4})
        os.killpg(first.pid, signal.SIGSTOP)
        try:
            fenced = [(1, False)]
            wait_until(lambda: incarnations(cluster, first) == fenced, "it is fenced")
            (tmp_path / "go").touch()
            assert ray.get(ref, timeout=60) == second.node_id
            workers = psutil.Process(first.pid).children(recursive=True)
            for process in workers:
                process.resume()
            late = tmp_path / f"ended-{first.node_id}"
            wait_until(late.exists, "the task ends there too, and says so to its daemon")
        finally:
            os.killpg(first.pid, signal.SIGCONT)
        again = [(1, False), (2, True)]
        wait_until(lambda: incarnations(cluster, first) == again, "it registers anew")
        attempts = "SELECT node_id, attempt, status FROM regrow.tasks WHERE name = 'where'"
        assert rows(cluster.home, attempts) == [(second.node_id, 2, 1)], "once, and by the second"
        assert ray.get(ref, timeout=60) == second.node_id
        more = [account.add.remote(i) for i in range(20, 40)]
        assert ray.get(more, timeout=60) == expected(range(40))[20:], "its actor came back to it"
        there = where.options(resources={"first": 0.1}).remote(str(tmp_path))
        assert ray.get(there, timeout=60) == first.node_id
        assert incarnations(cluster, second) == [(1, True)]


@ray.remote(resources={"away": 0.1})
def block(folder: str, index: int) -> Any:
    """Where it runs once more, it waits for the test."""
    mark = Path(f"{folder}/{index}")
    if mark.exists():
        wait_until(Path(f"{folder}/go").exists, "the test lets it go", 120)
    mark.touch()
    return np.full(LARGE, index)


def test_a_node_that_is_lost_while_it_recovers_another_costs_only_what_it_had_begun(
    tmp_path: Path,
) -> None:
    with nodes(1) as (cluster, [first]):
        account = ray.remote(Account).options(max_restarts=-1, resources={"away": 0.1}).remote()
        assert ray.get([account.add.remote(i) for i in range(30)], timeout=60) == expected(
            range(30)
        )
        refs = [block.remote(str(tmp_path), i) for i in range(12)]
        ray.wait(refs, num_returns=12, timeout=60, fetch_local=False)
        second = cluster.add_node(num_cpus=2, resources={"away": 4})
        cluster.remove_node(first, allow_graceful=False)
        values: list[Any] = []
        reading = threading.Thread(target=lambda: values.extend(ray.get(refs, timeout=120)))
        reading.start()
        more = [account.add.remote(i) for i in range(30, 60)]
        under_way = (
            "SELECT count(*) FROM regrow.rebuilds JOIN regrow.tasks USING (task_id) "
            "WHERE tasks.name = 'block' AND rebuilds.node_id = %s AND rebuilds.finished_at IS NULL"
        )
        try:
            wait_until(
                lambda: rows(cluster.home, under_way, second.node_id)[0][0] == 12,
                "the second node is to make them again", 60,
            )  # fmt: skip
            third = cluster.add_node(num_cpus=2, resources={"away": 4})
            cluster.remove_node(second, allow_graceful=False)
        finally:
            (tmp_path / "go").touch()
            reading.join(120)
        assert [int(value[0]) for value in values] == list(range(12))
        assert ray.get(more, timeout=60) == expected(range(60))[30:]
        assert ray.get(account.add.remote(60), timeout=60) == expected(range(61))[-1]
        counted = (
            "SELECT rebuilds.node_id, count(*), count(DISTINCT task_id), bool_or(differs), "
            "count(*) FILTER (WHERE rebuilds.finished_at IS NULL) "
            "FROM regrow.rebuilds JOIN regrow.tasks USING (task_id) "
            "WHERE tasks.name = 'block' GROUP BY 1 ORDER BY 1"
        )
        found = rows(cluster.home, counted)
        assert [tuple(row[:3]) for row in found] == [
            (second.node_id, 12, 12), (third.node_id, 12, 12),
        ]  # fmt: skip
        assert not any(row[3] for row in found), "made again, and the same"
        assert not any(row[4] for row in found), "all have ended"
        tries = "SELECT max(attempt), bool_and(status = 1) FROM regrow.task_log WHERE kind = 0"
        assert rows(cluster.home, tries)[0] == (1, True), "no retry was used up"
