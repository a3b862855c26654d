"""A node that is drained: its work goes on elsewhere, with nothing run again and nothing lost; it
leaves by itself."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import regrow as ray
from regrow.cluster_utils import Cluster, Node
from regrow.exceptions import ActorDiedError, NodeDiedError
from tests.cluster.watching import rows, wait_until

#: Elements of an array that only an arena keeps.
LARGE = 4_000


class Account:
    """Its state depends on the order of its calls."""

    def __init__(self) -> None:
        self.value = 0

    def add(self, amount: int) -> int:
        self.value = (self.value * 3 + amount) % 1_000_003
        return self.value


def expected(amounts: range) -> list[int]:
    value, values = 0, []
    for amount in amounts:
        value = (value * 3 + amount) % 1_000_003
        values.append(value)
    return values


@ray.remote(resources={"away": 0.1})
def block(index: int) -> Any:
    return np.full(LARGE, index)


@ray.remote(resources={"away": 0.1})
def step(path: str, index: int) -> int:
    fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(fd, f"{index}\n".encode())
    os.close(fd)
    time.sleep(0.02)  # the work: there is some left when the node is drained
    return index * 3


@contextmanager
def cluster_of_two() -> Iterator[tuple[Cluster, Node]]:
    """A head without CPUs, on which the driver is, and the node that is to be drained."""
    with Cluster(initialize_head=True, head_node_args={"num_cpus": 0}) as cluster:
        first = cluster.add_node(num_cpus=2, resources={"away": 4})
        cluster.wait_for_nodes()
        cluster.connect()
        yield cluster, first


def drain(cluster: Cluster, node: Node, *options: str) -> str:
    """``regrow drain``; what it says."""
    done = subprocess.run(
        [sys.executable, "-m", "regrow.cli", "drain", str(node.node_id), *options],
        env={**os.environ, "REGROW_HOME": str(cluster.home)},
        capture_output=True, text=True, timeout=100, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def rebuilds(cluster: Cluster, kind: str) -> int:
    query = "SELECT count(*) FROM regrow.rebuilds JOIN regrow.tasks USING (task_id) WHERE kind = %s"
    return int(rows(cluster.home, query, kind)[0][0])


def test_a_drained_node_costs_no_retry_no_rebuild_and_no_state(tmp_path: Path) -> None:
    with cluster_of_two() as (cluster, first):
        account = ray.remote(Account).options(max_restarts=1, resources={"away": 0.1}).remote()
        calls = [account.add.remote(i) for i in range(50)]
        blocks = [block.remote(i) for i in range(20)]
        ray.wait(blocks, num_returns=20, timeout=60, fetch_local=False)
        path = tmp_path / "ran"
        steps = [step.remote(str(path), i) for i in range(200)]
        ray.wait(steps, num_returns=10, timeout=60)
        second = cluster.add_node(num_cpus=2, resources={"away": 4})
        began = time.monotonic()
        told = drain(cluster, first, "--reason", "a test")
        assert "has left: it was drained (a test)" in told
        assert time.monotonic() - began < 30
        calls += [account.add.remote(i) for i in range(50, 100)]
        assert ray.get(steps, timeout=60) == [i * 3 for i in range(200)]
        assert [int(a[0]) for a in ray.get(blocks, timeout=60)] == list(range(20))
        assert ray.get(calls, timeout=60) == expected(range(100))
        assert sorted(int(line) for line in path.read_text().split()) == list(range(200))
        assert rebuilds(cluster, "task") == 0, "objects were moved, not made again"
        tries = "SELECT max(attempt), bool_and(status = 1) FROM regrow.tasks WHERE kind = 'task'"
        assert rows(cluster.home, tries)[0] == (1, True), "no retry was used up"
        used = "SELECT node_id, restarts, state FROM regrow.actors"
        assert rows(cluster.home, used) == [(second.node_id, 0, "alive")]
        state = "SELECT alive, reason FROM regrow.nodes WHERE node_id = %s"
        assert rows(cluster.home, state, first.node_id) == [(False, "it was drained (a test)")]
        events = "SELECT count(*) FROM regrow.events WHERE kind = 'node_draining'"
        assert rows(cluster.home, events)[0][0] == 1
        wait_until(lambda: not first.alive(), "its process ends")


@ray.remote(resources={"away": 0.1})
def hold(folder: str, name: str) -> str:
    """Waits for the test."""
    Path(f"{folder}/began-{name}-{os.getppid()}").touch()
    wait_until(Path(f"{folder}/go").exists, "the test lets it go", 100)
    return name


def began(folder: Path, name: str) -> int:
    return len(list(folder.glob(f"began-{name}-*")))


def test_at_the_deadline_what_still_runs_is_run_elsewhere_and_what_cannot_says_why(
    tmp_path: Path,
) -> None:
    with cluster_of_two() as (cluster, first):
        plain = ray.remote(Account).options(num_cpus=0, resources={"away": 0.1}).remote()
        assert ray.get(plain.add.remote(1), timeout=60) == 1
        again = hold.options(max_retries=1).remote(str(tmp_path), "again")
        once = hold.options(max_retries=0).remote(str(tmp_path), "once")
        wait_until(lambda: began(tmp_path, "again") == 1, "it runs", 60)
        wait_until(lambda: began(tmp_path, "once") == 1, "it runs", 60)
        cluster.add_node(num_cpus=2, resources={"away": 4})
        told = drain(cluster, first, "--deadline", "2")
        assert "has left" in told
        wait_until(lambda: began(tmp_path, "again") == 2, "it runs once more", 60)
        (tmp_path / "go").touch()
        assert ray.get(again, timeout=60) == "again"
        with pytest.raises(NodeDiedError, match="drained"):
            ray.get(once, timeout=60)
        with pytest.raises(ActorDiedError, match="drained"):
            ray.get(plain.add.remote(2), timeout=60)
        assert began(tmp_path, "once") == 1
        tries = "SELECT attempt FROM regrow.tasks WHERE name = 'hold'"
        assert rows(cluster.home, tries) == [(1,), (1,)], "no retry was used up"


def test_sigterm_drains_and_the_node_is_shown_as_draining_meanwhile(tmp_path: Path) -> None:
    with cluster_of_two() as (cluster, first):
        running = hold.remote(str(tmp_path), "a")
        wait_until(lambda: began(tmp_path, "a") == 1, "it runs", 60)
        second = cluster.add_node(num_cpus=2, resources={"away": 4})
        cluster.wait_for_nodes()
        os.kill(first.pid, signal.SIGTERM)

        def states() -> str:
            return subprocess.run(
                [sys.executable, "-m", "regrow.cli", "list", "nodes"],
                env={**os.environ, "REGROW_HOME": str(cluster.home)},
                capture_output=True, text=True, timeout=60, check=True,
            ).stdout  # fmt: skip

        wait_until(lambda: "DRAINING" in states(), "it is shown as draining")
        late = hold.remote(str(tmp_path), "b")
        wait_until(lambda: began(tmp_path, "b") == 1, "new work begins, on the other", 60)
        query = "SELECT DISTINCT node_id FROM regrow.tasks WHERE task_id = %s"
        held = rows(cluster.home, query, bytes(late.binary())[:16])
        assert held == [(second.node_id,)]
        (tmp_path / "go").touch()
        assert ray.get([running, late], timeout=60) == ["a", "b"]
        wait_until(lambda: not first.alive(), "it leaves when its task has ended")
        assert "DRAINED" in states()
        tries = "SELECT max(attempt), count(*) FROM regrow.tasks"
        assert rows(cluster.home, tries)[0] == (1, 2)
