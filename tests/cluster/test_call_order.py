"""A caller's calls of an actor that restarts run in its order, whatever becomes of its node."""

from __future__ import annotations

import threading

import pytest

import regrow as ray
from regrow.cluster_utils import Cluster
from tests.cluster.watching import rows, wait_until

TIMEOUT_S = 60.0
CALLS = 3000


class Journal:
    """Writes down its calls in the order in which they come."""

    def __init__(self) -> None:
        self.entries: list[int] = []

    def write(self, number: int) -> int:
        self.entries.append(number)
        return len(self.entries)

    def read(self) -> list[int]:
        return self.entries


@pytest.mark.parametrize("home", ["away", "with the driver"])
def test_calls_made_before_and_after_the_death_of_their_drivers_node_keep_their_order(
    home: str,
) -> None:
    with Cluster(initialize_head=True, head_node_args={"num_cpus": 1}) as cluster:
        cluster.connect()
        for _ in range(2):
            cluster.add_node(num_cpus=1, resources={"away": 1})
        cluster.wait_for_nodes()
        away = {"away": 1.0} if home == "away" else None
        journal = ray.remote(Journal).options(max_restarts=-1, resources=away).remote()
        assert ray.get(journal.read.remote(), timeout=TIMEOUT_S) == []
        refs = []
        under_way = threading.Event()

        def call() -> None:
            for number in range(CALLS):
                refs.append(journal.write.remote(number))
                if number == CALLS // 3:
                    under_way.set()

        caller = threading.Thread(target=call)
        caller.start()
        assert under_way.wait(TIMEOUT_S)
        assert cluster.head_node is not None
        cluster.remove_node(cluster.head_node, allow_graceful=False)
        caller.join(TIMEOUT_S)
        assert ray.get(refs, timeout=TIMEOUT_S) == list(range(1, CALLS + 1))
        assert ray.get(journal.read.remote(), timeout=TIMEOUT_S) == list(range(CALLS))


def test_calls_of_a_task_whose_node_dies_keep_their_order_when_it_runs_again() -> None:
    with Cluster(initialize_head=True, head_node_args={"num_cpus": 1}) as cluster:
        cluster.connect()
        doomed = cluster.add_node(num_cpus=1, resources={"caller": 1})
        cluster.add_node(num_cpus=1, resources={"away": 1})
        cluster.wait_for_nodes()
        away = {"away": 1}
        journal = ray.remote(Journal).options(max_restarts=-1, resources=away).remote()

        @ray.remote(resources={"caller": 1}, max_retries=-1)
        def write(journal: object, count: int) -> list[int]:
            return list(ray.get([journal.write.remote(i) for i in range(count)]))  # type: ignore[attr-defined]

        written = write.remote(journal, CALLS)
        begun = "SELECT count(*) > 500 FROM regrow.actor_calls WHERE actor_seq IS NOT NULL"
        wait_until(lambda: rows(cluster.home, begun)[0][0], "the task calls", TIMEOUT_S)
        cluster.remove_node(doomed, allow_graceful=False)
        cluster.add_node(num_cpus=1, resources={"caller": 1})
        assert ray.get(written, timeout=TIMEOUT_S) == list(range(1, CALLS + 1))
        assert ray.get(journal.read.remote(), timeout=TIMEOUT_S) == list(range(CALLS))
