"""What dies comes back: workers, nodes, objects. Results are larger than the log keeps, and the
re-executions are counted in Postgres."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import psycopg
import pytest

import regrow as ray
from regrow.cluster_utils import Cluster, Node
from regrow.exceptions import (
    GetTimeoutError,
    NodeDiedError,
    ObjectLostError,
    RayTaskError,
    WorkerCrashedError,
)

#: Bytes of an object that only an arena keeps.
LARGE = 16 * 1024


def rows(cluster: Cluster, query: str, *arguments: Any) -> list[Any]:
    """The answer of the cluster's Postgres."""
    url = json.loads((Path(cluster.address) / "gcs.json").read_text())["postgres_url"]
    with psycopg.connect(url, autocommit=True) as connection:
        return connection.execute(query, arguments).fetchall()


def rebuilds(cluster: Cluster) -> int:
    """Re-executions of finished tasks, as Postgres counts them."""
    return int(rows(cluster, "SELECT count(*) FROM regrow.rebuilds")[0][0])


def wait_until(condition: Callable[[], object], what: str, timeout_s: float = 30) -> None:
    """Polls: for what happens in other processes there is no event to wait for."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"not within {timeout_s:g} s: {what}"
        time.sleep(0.02)


@contextmanager
def two_workers() -> Iterator[tuple[Cluster, Node, Node]]:
    """A head without CPUs, on which the driver is, and two nodes that run its tasks."""
    with Cluster(initialize_head=True, head_node_args={"num_cpus": 0}) as cluster:
        first = cluster.add_node(num_cpus=1, resources={"first": 1})
        second = cluster.add_node(num_cpus=1, resources={"second": 1})
        cluster.wait_for_nodes()
        cluster.connect()
        yield cluster, first, second


@ray.remote
def block(index: int) -> np.ndarray[Any, Any]:
    return np.full(LARGE, index, dtype=np.uint8)


@ray.remote
def follow(previous: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    return previous + 1


def on(node: str) -> dict[str, Any]:
    """Options of a task that begins its life on that node, where there is one."""
    return {"resources": {node: 0.001}}


def test_objects_of_a_killed_node_are_rebuilt_once_each() -> None:
    with two_workers() as (cluster, first, _):
        refs = [block.remote(i) for i in range(20)]
        ray.wait(refs, num_returns=20, timeout=60, fetch_local=False)
        lost = {
            bytes(row[0])
            for row in rows(
                cluster,
                "SELECT task_id FROM regrow.task_log WHERE holder = %s AND status = 1",
                first.node_id,
            )
        }
        cluster.remove_node(first, allow_graceful=False)
        values = ray.get(refs, timeout=60)
        assert [int(value[0]) for value in values] == list(range(20))
        assert rebuilds(cluster) == len(lost)


def test_a_task_on_a_killed_node_runs_elsewhere(tmp_path: Path) -> None:
    @ray.remote
    def slow(path: str) -> int:
        attempts = Path(path)
        with attempts.open("a") as file:
            file.write(f"{os.getppid()}\n")
        if len(attempts.read_text().splitlines()) == 1:
            signal.pause()
        return 42

    with two_workers() as (cluster, first, second):
        path = tmp_path / "attempts"
        ref = slow.remote(str(path))
        wait_until(path.exists, "the task starts")
        holder = rows(cluster, "SELECT holder FROM regrow.task_log WHERE status = 0")[0][0]
        victim = first if first.node_id == holder else second
        cluster.remove_node(victim, allow_graceful=False)
        assert ray.get(ref, timeout=60) == 42
        assert rows(cluster, "SELECT attempt FROM regrow.task_log")[0][0] == 2


def test_a_task_that_must_not_run_twice_fails_with_the_reason(tmp_path: Path) -> None:
    @ray.remote(max_retries=0)
    def once(path: str) -> None:
        Path(path).touch()
        signal.pause()

    with two_workers() as (cluster, first, second):
        ref = once.remote(str(tmp_path / "started"))
        wait_until((tmp_path / "started").exists, "the task starts")
        holder = rows(cluster, "SELECT holder FROM regrow.task_log WHERE status = 0")[0][0]
        cluster.remove_node(first if first.node_id == holder else second, allow_graceful=False)
        with pytest.raises(NodeDiedError, match="max_retries=0"):
            ray.get(ref, timeout=60)


@pytest.mark.parametrize("options", [{"max_retries": 0}, {"checkpoint": True}])
def test_a_large_result_that_may_not_be_made_again_is_stored(options: Any) -> None:
    with two_workers() as (cluster, first, second):
        ref = block.options(**options).remote(7)
        ray.wait([ref], timeout=60, fetch_local=False)
        holder = rows(cluster, "SELECT holder FROM regrow.task_log")[0][0]
        cluster.remove_node(first if first.node_id == holder else second, allow_graceful=False)
        assert int(ray.get(ref, timeout=60)[0]) == 7
        assert rebuilds(cluster) == 0


def test_a_crashed_worker_costs_an_attempt(regrow_session: Any, tmp_path: Path) -> None:
    @ray.remote
    def crash_once(path: str) -> str:
        if not Path(path).exists():
            Path(path).touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return "done"

    @ray.remote(max_retries=1)
    def crash_always(path: str) -> None:
        with Path(path).open("a") as file:
            file.write("x")
        os.kill(os.getpid(), signal.SIGSEGV)

    assert ray.get(crash_once.remote(str(tmp_path / "once")), timeout=60) == "done"
    with pytest.raises(WorkerCrashedError, match="max_retries=1"):
        ray.get(crash_always.remote(str(tmp_path / "always")), timeout=60)
    assert (tmp_path / "always").read_text() == "xx"


def fork_server(node: Node) -> psutil.Process:
    """The process of a node that makes its workers."""
    [found] = psutil.Process(node.pid).children()
    assert "regrow._forkserver" in found.cmdline()
    return found


def test_a_node_whose_fork_server_dies_starts_another(tmp_path: Path) -> None:
    """Its workers die with it: what they ran runs again, and actors are restored."""

    @ray.remote
    def wait_for(path: Path, began: Path) -> int:
        began.touch()
        wait_until(path.exists, "the file", 60)
        return os.getpid()

    class Counter:
        def __init__(self) -> None:
            self.count = 0

        def more(self) -> int:
            self.count += 1
            return self.count

    with Cluster(initialize_head=True, head_node_args={"num_cpus": 2}) as cluster:
        cluster.connect()
        assert cluster.head_node is not None
        counter = ray.remote(max_restarts=-1)(Counter).remote()
        assert ray.get(counter.more.remote(), timeout=60) == 1
        for turn in range(3):
            path, began = tmp_path / f"go-{turn}", tmp_path / f"began-{turn}"
            waiting = wait_for.remote(path, began)
            wait_until(began.exists, "the task runs")
            killed = fork_server(cluster.head_node)
            killed.kill()
            wait_until(lambda: not killed.is_running(), "it is gone")  # noqa: B023 (called here)
            path.touch()
            assert ray.get(waiting, timeout=60)
            assert ray.get(counter.more.remote(), timeout=60) == turn + 2


def test_a_deep_chain_comes_back() -> None:
    depth = 10_000

    @ray.remote
    def grow() -> list[Any]:
        ref = block.remote(0)
        for _ in range(depth - 1):
            ref = follow.remote(ref)
        return [ref]

    with Cluster(initialize_head=True, head_node_args={"num_cpus": 0}) as cluster:
        first = cluster.add_node(num_cpus=2)
        cluster.wait_for_nodes()
        cluster.connect()
        (last,) = ray.get(grow.remote(), timeout=120)
        ray.wait([last], timeout=120, fetch_local=False)
        cluster.add_node(num_cpus=2)
        cluster.remove_node(first, allow_graceful=False)
        assert int(ray.get(last, timeout=150)[0]) == (depth - 1) % 256
        assert rebuilds(cluster) == depth


def test_a_thousand_objects_lost_at_once_come_back() -> None:
    with Cluster(initialize_head=True, head_node_args={"num_cpus": 0}) as cluster:
        first = cluster.add_node(num_cpus=2)
        cluster.wait_for_nodes()
        cluster.connect()
        refs = [block.remote(i % 256) for i in range(1000)]
        ray.wait(refs, num_returns=1000, timeout=60, fetch_local=False)
        cluster.add_node(num_cpus=2)
        cluster.remove_node(first, allow_graceful=False)
        values = ray.get(refs, timeout=120)
        assert [int(value[0]) for value in values] == [i % 256 for i in range(1000)]
        assert rebuilds(cluster) == 1000


def test_a_silent_node_is_fenced_by_its_lease_and_returns_as_another_incarnation() -> None:
    with two_workers() as (cluster, first, _):
        refs = [block.remote(i) for i in range(8)]
        ray.wait(refs, num_returns=8, timeout=60, fetch_local=False)

        def alive() -> list[int]:
            query = "SELECT incarnation FROM regrow.nodes WHERE node_id = %s AND alive"
            return [row[0] for row in rows(cluster, query, first.node_id)]

        stopped = time.monotonic()
        os.killpg(first.pid, signal.SIGSTOP)
        try:
            wait_until(lambda: not alive(), "the silent node is fenced")
            assert time.monotonic() - stopped >= 2, "only the lease can have told"
            values = ray.get(refs, timeout=60)
            assert [int(value[0]) for value in values] == list(range(8))
        finally:
            os.killpg(first.pid, signal.SIGCONT)
        wait_until(lambda: alive() and alive()[0] > 1, "the node registers anew")


def test_a_starved_node_is_not_declared_dead() -> None:
    @ray.remote
    def burn(seconds: float) -> int:
        end = time.monotonic() + seconds
        count = 0
        while time.monotonic() < end:
            count += 1
        return count

    with Cluster(initialize_head=True, head_node_args={"num_cpus": 6}) as cluster:
        cluster.connect()
        assert min(ray.get([burn.remote(6) for _ in range(6)], timeout=90)) > 0
        assert rows(cluster, "SELECT count(*) FROM regrow.nodes WHERE NOT alive")[0][0] == 0


def test_a_replayed_parent_finds_its_finished_children(tmp_path: Path) -> None:
    @ray.remote
    def child(path: str, index: int) -> int:
        with Path(path).open("a") as file:
            file.write(f"{index}\n")
        return index

    @ray.remote
    def parent(folder: str) -> int:
        total = sum(ray.get([child.remote(f"{folder}/runs", i) for i in range(10)]))
        first_time = not Path(f"{folder}/parent").exists()
        Path(f"{folder}/parent").touch()
        if first_time:
            os.kill(os.getpid(), signal.SIGKILL)
        return total

    with Cluster(initialize_head=True, head_node_args={"num_cpus": 2}) as cluster:
        cluster.connect()
        assert ray.get(parent.remote(str(tmp_path)), timeout=60) == 45
        runs = (tmp_path / "runs").read_text().split()
        assert sorted(map(int, runs)) == list(range(10)), "a finished child ran again"


def test_a_task_whose_parent_has_finished_still_runs(tmp_path: Path) -> None:
    @ray.remote(num_cpus=0)
    def orphan(folder: str) -> None:
        wait_until(Path(f"{folder}/go").exists, "the test lets it go")
        Path(f"{folder}/ran").touch()

    @ray.remote(num_cpus=1)
    def parent(folder: str) -> None:
        orphan.remote(folder)

    with two_workers() as (cluster, first, second):
        ray.get(parent.remote(str(tmp_path)), timeout=60)
        query = "SELECT holder FROM regrow.task_log WHERE status = 0"
        wait_until(lambda: rows(cluster, query), "the orphan is in the log")
        holder = rows(cluster, query)[0][0]
        victim = next((n for n in (first, second) if n.node_id == holder), None)
        if victim is not None:
            cluster.remove_node(victim, allow_graceful=False)
        (tmp_path / "go").touch()
        wait_until((tmp_path / "ran").exists, "the orphan runs")


def test_an_object_that_cannot_come_back_says_why() -> None:
    class Maker:
        def make(self) -> np.ndarray[Any, Any]:
            return np.ones(LARGE, dtype=np.uint8)

    with two_workers() as (cluster, first, _):
        maker = ray.remote(Maker).options(resources={"first": 0.1}).remote()
        ref = maker.make.remote()
        ray.wait([ref], timeout=60, fetch_local=False)
        cluster.remove_node(first, allow_graceful=False)
        with pytest.raises(ObjectLostError, match="actor"):
            ray.get(ref, timeout=60)


def test_an_error_of_the_program_is_not_retried(regrow_session: Any, tmp_path: Path) -> None:
    @ray.remote
    def fail(path: str) -> None:
        with Path(path).open("a") as file:
            file.write("x")
        raise ValueError("no")

    with pytest.raises(ValueError, match="no") as caught:
        ray.get(fail.remote(str(tmp_path / "runs")), timeout=60)
    assert isinstance(caught.value, RayTaskError)
    assert (tmp_path / "runs").read_text() == "x"


@contextmanager
def held_commits(cluster: Cluster, node_id: int) -> Iterator[None]:
    """No append of the node can commit in here: its row is locked by someone else."""
    url = json.loads((Path(cluster.address) / "gcs.json").read_text())["postgres_url"]
    with psycopg.connect(url) as connection:
        connection.execute("SELECT 1 FROM regrow.nodes WHERE node_id = %s FOR UPDATE", [node_id])
        yield
        connection.rollback()


def test_nothing_leaves_a_node_before_its_commit(tmp_path: Path) -> None:
    """No reply, hand-over, object byte or call of an actor elsewhere."""

    @ray.remote
    def touch(path: str) -> str:
        Path(path).touch()
        return "ran"

    @ray.remote
    def array_after(size: int, gate: str, path: str) -> np.ndarray[Any, Any]:
        wait_until(Path(gate).exists, "the commits are held")
        Path(path).touch()
        return np.ones(size, np.uint8)

    @ray.remote
    def read(refs: list[Any], path: str) -> int:
        total = int(ray.get(refs[0]).sum())
        Path(path).touch()
        return total

    class Toucher:
        def touch(self, path: str) -> str:
            Path(path).touch()
            return "called"

    @ray.remote
    def call(toucher: Any, path: str, done: str) -> str:
        ref = toucher.touch.remote(path)
        Path(done).touch()
        return str(ray.get(ref))

    def path(name: str) -> str:
        return str(tmp_path / name)

    with Cluster(
        initialize_head=True, head_node_args={"num_cpus": 4, "resources": {"here": 8}}
    ) as cluster:
        cluster.add_node(num_cpus=4, resources={"away": 1})
        cluster.wait_for_nodes()
        cluster.connect()
        toucher = ray.remote(Toucher).options(**on("away")).remote()
        assert ray.get(toucher.touch.remote(path("warm")), timeout=60) == "called"
        assert ray.get(touch.options(**on("here")).remote(path("warm")), timeout=60) == "ran"
        totals = []
        for size in (100, 1 << 20):  # told with its bytes; fetched
            made = path(f"made {size}")
            array = array_after.options(**on("here")).remote(size, path("gate"), made)
            totals.append(read.options(**on("away")).remote([array], path(f"read {size}")))
        assert ray.wait(totals, timeout=0.2)[0] == []
        assert cluster.head_node is not None
        with held_commits(cluster, cluster.head_node.node_id):
            here = touch.options(**on("here")).remote(path("here"))
            away = touch.options(**on("away")).remote(path("away"))
            called = call.options(**on("here")).remote(toucher, path("called"), path("submitted"))
            Path(path("gate")).touch()
            for ran in ("here", "made 100", "made 1048576", "submitted"):
                wait_until((tmp_path / ran).exists, f"work runs ahead of the log: {ran}")
            with pytest.raises(GetTimeoutError):  # no reply
                ray.get(here, timeout=1)
            remote = ("away", "read 100", "read 1048576", "called")
            left = [name for name in remote if (tmp_path / name).exists()]
            assert not left, "a hand-over, bytes or a call left before the commit"
        assert ray.get([here, away, called], timeout=60) == ["ran", "ran", "called"]
        assert ray.get(totals, timeout=60) == [100, 1 << 20]
