"""Everything around the driver dies or falls silent while its tasks are in flight; the driver goes
on, no result is missing, and nothing that was finished is run again."""

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

import msgspec
import psutil
import pytest

import regrow as ray
from regrow import _bootstrap, _client, _daemons
from regrow.cluster_utils import Cluster
from regrow.exceptions import GetTimeoutError
from tests.cluster.watching import rows, wait_until

TASKS = 1000


@ray.remote
def step(path: str, index: int) -> int:
    """Writes down that it ran, in one write, which is whole or not there."""
    fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(fd, f"{index}\n".encode())
    os.close(fd)
    return index * 3


@ray.remote
def hold(path: str) -> str:
    wait_until(Path(path).exists, "the test lets it go", 60)
    return "held"


def runs(path: Path) -> dict[int, int]:
    """How often each task ran."""
    counted: dict[int, int] = {}
    for line in path.read_text().split():
        counted[int(line)] = counted.get(int(line), 0) + 1
    return counted


def finished(cluster: Cluster) -> set[bytes]:
    """Tasks that were committed as finished."""
    found = rows(cluster.home, "SELECT task_id FROM regrow.task_log WHERE status = 1")
    return {bytes(row[0]) for row in found}


@contextmanager
def driver_on_a_node(**options: Any) -> Iterator[Cluster]:
    with Cluster(initialize_head=True, head_node_args={"num_cpus": 1, **options}) as cluster:
        cluster.connect()
        yield cluster


def submit_until_some_are_done(cluster: Cluster, path: Path) -> list[Any]:
    refs = [step.remote(str(path), i) for i in range(TASKS)]
    ray.wait(refs, num_returns=TASKS // 10, timeout=60)
    return refs


def check_all(cluster: Cluster, refs: list[Any], path: Path, before: set[bytes]) -> None:
    """All results are right; what was committed before the death did not run again."""
    assert ray.get(refs, timeout=60) == [i * 3 for i in range(TASKS)]
    task_ids = [bytes(ref.binary())[:16] for ref in refs]
    assert set(task_ids) <= finished(cluster)
    counted = runs(path)
    assert set(counted) == set(range(TASKS))
    twice = {task_ids[i] for i, count in counted.items() if count > 1}
    assert not twice & before, "a task that was finished ran again"
    again = "SELECT task_id FROM regrow.task_log WHERE attempt > 1"
    assert not {bytes(row[0]) for row in rows(cluster.home, again)} & before


def test_a_driver_outlives_its_node_and_goes_on_with_another(tmp_path: Path) -> None:
    with driver_on_a_node() as cluster:
        cluster.add_node(num_cpus=1)
        cluster.wait_for_nodes()
        path = tmp_path / "runs"
        refs = submit_until_some_are_done(cluster, path)
        assert cluster.head_node is not None
        before = finished(cluster)
        cluster.remove_node(cluster.head_node, allow_graceful=False)
        assert len(before) >= TASKS // 10
        check_all(cluster, refs, path, before)
        more = [step.remote(str(path), i) for i in range(TASKS)]
        assert ray.get(more, timeout=60) == [i * 3 for i in range(TASKS)]


def test_a_driver_outlives_its_only_node_and_goes_on_with_the_next(tmp_path: Path) -> None:
    with driver_on_a_node() as cluster:
        path = tmp_path / "runs"
        refs = submit_until_some_are_done(cluster, path)
        assert cluster.head_node is not None
        before = finished(cluster)
        cluster.remove_node(cluster.head_node, allow_graceful=False)
        cluster.add_node(num_cpus=2)
        check_all(cluster, refs, path, before)


def test_a_driver_outlives_one_node_after_the_other(tmp_path: Path) -> None:
    with driver_on_a_node() as cluster:
        path = tmp_path / "runs"
        refs = submit_until_some_are_done(cluster, path)
        before = finished(cluster)
        for _ in range(2):
            (node,) = cluster.list_all_nodes()
            cluster.add_node(num_cpus=1)
            cluster.remove_node(node, allow_graceful=False)
            ray.get(step.remote(str(path), 0), timeout=60)
        check_all(cluster, refs, path, before - {bytes(refs[0].binary())[:16]})


# --- Postgres -------------------------------------------------------------------------------------


def postgres_processes(cluster: Cluster) -> list[psutil.Process]:
    """The postmaster of the cluster's own server, then its children."""
    query = "SELECT pid FROM pg_stat_activity WHERE backend_type = 'client backend'"
    postmaster = psutil.Process(rows(cluster.home, query)[0][0]).parent()
    assert postmaster is not None
    return [postmaster, *postmaster.children(recursive=True)]


def test_while_postgres_is_silent_work_goes_on_and_nothing_is_lost(tmp_path: Path) -> None:
    """Stopped for longer than a lease lasts; nobody is declared dead for it."""
    with driver_on_a_node(num_cpus=2) as cluster:
        path = tmp_path / "runs"
        ray.get(hold.remote(os.devnull), timeout=60)
        stopped = postgres_processes(cluster)
        for process in stopped:
            process.suspend()
        began = time.monotonic()
        try:
            refs = [step.remote(str(path), i) for i in range(TASKS)]
            wait_until(lambda: path.exists() and len(runs(path)) == TASKS, "work runs ahead")
            assert ray.wait(refs, timeout=0)[0] == [], "a result left before its commit"
            wait_until(lambda: time.monotonic() - began > 5, "5 seconds")
        finally:
            for process in reversed(stopped):
                process.resume()
        assert ray.get(refs, timeout=60) == [i * 3 for i in range(TASKS)]
        assert set(runs(path).values()) == {1}
        assert rows(cluster.home, "SELECT count(*) FROM regrow.nodes")[0][0] == 1
        assert rows(cluster.home, "SELECT bool_and(alive) FROM regrow.nodes")[0][0]


def test_when_postgres_is_killed_it_comes_back_and_nothing_is_lost(tmp_path: Path) -> None:
    with driver_on_a_node(num_cpus=2) as cluster:
        path = tmp_path / "runs"
        refs = submit_until_some_are_done(cluster, path)
        before = finished(cluster)
        for process in postgres_processes(cluster):
            try:
                process.kill()
            except psutil.NoSuchProcess:
                continue
        check_all(cluster, refs, path, before)
        more = [step.remote(str(path), i) for i in range(TASKS)]
        assert ray.get(more, timeout=60) == [i * 3 for i in range(TASKS)]


# --- the control store ----------------------------------------------------------------------------


@pytest.mark.parametrize("pause_s", [0.0, 4.0], ids=["at once", "after the lease"])
def test_no_task_fails_when_the_control_store_is_killed(tmp_path: Path, pause_s: float) -> None:
    with driver_on_a_node(num_cpus=1) as cluster:
        cluster.add_node(num_cpus=1, resources={"away": 1})
        cluster.wait_for_nodes()
        path = tmp_path / "runs"
        refs = submit_until_some_are_done(cluster, path)
        gcs = psutil.Process(int(gcs_field(cluster, "pid")))
        gcs.kill()
        killed = time.monotonic()
        while_away = [step.remote(str(path), i) for i in range(TASKS)]
        assert ray.get(while_away, timeout=30) == [i * 3 for i in range(TASKS)]
        there = [step.options(resources={"away": 0.1}).remote(str(path), 1) for _ in range(20)]
        wait_until(lambda: time.monotonic() - killed > pause_s, "it is away for so long")
        with control_store(cluster):
            assert ray.get(refs, timeout=60) == [i * 3 for i in range(TASKS)]
            assert ray.get(there, timeout=60) == [3] * 20
            late = step.options(resources={"away": 0.1}).remote(str(path), 2)
            assert ray.get(late, timeout=60) == 6
            assert rows(cluster.home, "SELECT bool_and(alive) FROM regrow.nodes")[0][0]
            failed = "SELECT count(*) FROM regrow.task_log WHERE status <> 1"
            assert rows(cluster.home, failed)[0][0] == 0


def test_the_driver_is_told_that_the_control_store_is_away_and_what_to_do(
    capfd: pytest.CaptureFixture[str],
) -> None:
    heard = ""

    def told(text: str) -> bool:
        nonlocal heard
        heard += capfd.readouterr().err
        return text in heard

    with driver_on_a_node() as cluster:
        psutil.Process(int(gcs_field(cluster, "pid"))).kill()
        wait_until(lambda: told("control store does not answer"), "the driver is told", 30)
        assert "regrow start --head" in heard
        with pytest.raises(GetTimeoutError, match=r"'get_actor'.*regrow start --head"):
            _client.current().ask("get_actor", msgspec.msgpack.encode(["x", ""]), 0.2)
        with control_store(cluster):
            wait_until(lambda: told("control store is back"), "and that it is back", 30)
            with pytest.raises(ValueError, match="x"):
                ray.get_actor("x")


def test_a_standby_takes_over_and_no_task_fails(tmp_path: Path) -> None:
    with driver_on_a_node(num_cpus=1) as cluster:
        cluster.add_node(num_cpus=1, resources={"away": 1})
        cluster.wait_for_nodes()
        path = tmp_path / "runs"
        pid = start_standby(cluster)
        refs = submit_until_some_are_done(cluster, path)
        psutil.Process(int(gcs_field(cluster, "pid"))).kill()
        # Names are given by the control store: this waits for the next.
        named = ray.remote(Named).options(name="counter").remote()
        assert ray.get(named.add.remote(2), timeout=30) == 2
        assert int(gcs_field(cluster, "pid")) == pid, "the standby leads"
        there = [step.options(resources={"away": 0.1}).remote(str(path), 1) for _ in range(20)]
        assert ray.get(there, timeout=30) == [3] * 20
        assert ray.get(refs, timeout=60) == [i * 3 for i in range(TASKS)]
        failed = "SELECT count(*) FROM regrow.task_log WHERE status <> 1"
        assert rows(cluster.home, failed)[0][0] == 0
        assert rows(cluster.home, "SELECT bool_and(alive) FROM regrow.nodes")[0][0]
        assert ray.get(ray.get_actor("counter").add.remote(3), timeout=30) == 5


class Named:
    def __init__(self) -> None:
        self.value = 0

    def add(self, amount: int) -> int:
        self.value += amount
        return self.value


def start_standby(cluster: Cluster) -> int:
    """Its pid."""
    done = subprocess.run(
        [sys.executable, "-m", "regrow.cli", "start", "--gcs-standby"],
        env={**os.environ, "REGROW_HOME": str(cluster.home)},
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return int(done.stdout.rpartition("pid ")[2].split(")")[0])


def gcs_field(cluster: Cluster, name: str) -> Any:
    import json

    return json.loads((cluster.home / "gcs.json").read_text())[name]


@contextmanager
def control_store(cluster: Cluster) -> Iterator[None]:
    """Started by hand, as its supervisor would."""
    old = gcs_field(cluster, "pid")
    environment = {**os.environ, "REGROW_HOME": str(cluster.home)}
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", "regrow.gcs.main", "--home", str(cluster.home)],
        env=environment,
        start_new_session=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        wait_until(lambda: gcs_field(cluster, "pid") not in (old, None), "it serves")
        yield
    finally:
        cluster.shutdown()
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
        process.wait(20)


PROGRAM = """
import os, signal, sys, time
import regrow as ray
from tests.cluster.test_reconnect import hold
from tests.cluster.watching import wait_until
ray.init(address=sys.argv[2] or None, num_cpus=None if sys.argv[2] else 1)

@ray.remote
def begin(path):
    open(path, "w").close()
    return ray.get(hold.remote(path + "-never"))

ref = begin.remote(sys.argv[1])
wait_until(lambda: os.path.exists(sys.argv[1]), "its task runs", 60)
os.kill(os.getpid(), signal.SIGKILL)
"""


def run_killed_driver(tmp_path: Path, address: str = "") -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(tmp_path / "began"), address],
        capture_output=True, text=True, timeout=90, check=False,
    )  # fmt: skip
    assert done.returncode == -signal.SIGKILL, done.stderr


def test_a_driver_whose_process_has_ended_is_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REGROW_DRIVER_GRACE_S", "600")
    with driver_on_a_node() as cluster:
        run_killed_driver(tmp_path, cluster.address)
        assert ray.get(step.remote(str(tmp_path / "runs"), 1), timeout=30) == 3, "the CPU is free"
        ended = "SELECT count(*) FROM regrow.jobs WHERE status = 'failed'"
        wait_until(lambda: rows(cluster.home, ended)[0][0] == 1, "its job has ended")


def test_the_cluster_of_a_killed_driver_ends_and_its_job_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REGROW_DRIVER_GRACE_S", "600")
    home = tmp_path / "home"
    monkeypatch.setenv("REGROW_HOME", str(home))
    run_killed_driver(tmp_path)
    wait_until(lambda: not processes_at(home), "the cluster has ended", 30)
    asked = subprocess.run(
        [sys.executable, "-m", "regrow.cli", "sql", "SELECT status FROM regrow.jobs", "--json"],
        capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    assert "failed" in asked.stdout
    _bootstrap.stop(home)  # the folder of its sockets stays for the next one


def processes_at(home: Path) -> list[int]:
    """Daemons of the home."""
    return [found.pid for found in _daemons.find(home)]
