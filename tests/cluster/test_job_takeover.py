"""A job is taken over while what its driver submitted is still on its way to Postgres."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

import regrow as ray
from regrow._driver import Driver
from regrow.cluster_utils import Cluster, Node
from tests.cluster.watching import rows, wait_until

LOG_BACKENDS = "SELECT pid FROM pg_stat_activity WHERE application_name = 'regrow-node'"
HEAD = {"num_cpus": 2, "resources": {"first": 1}}


@ray.remote(resources={"first": 0.1})
def begins(folder: str) -> str:
    """It ends when the test lets it go."""
    Path(f"{folder}/began").touch()
    wait_until(Path(f"{folder}/go").exists, "the test lets it go", 60)
    return "done"


@ray.remote(resources={"first": 0.1})
def parent(folder: str) -> str:
    """What its child returns."""
    returned: str = ray.get(begins.remote(folder))
    return returned


def driver(cluster: Cluster, node: Node, takeover: bool = False) -> Driver:
    """A driver of the job, at that node and no other."""
    token = (Path(cluster.home) / "token").read_text().strip()
    return Driver(
        node.socket, token, lambda: [node.socket], durability="commit", namespace="",
        log_to_driver=False, reconnect_timeout_s=5.0, job="nightly", takeover=takeover,
    )  # fmt: skip


@pytest.mark.parametrize("task", [begins, parent], ids=["its own", "a child"])
def test_who_takes_a_job_over_does_not_wait_for_what_the_log_had_not_yet(
    task: ray.RemoteFunction[[str], ray.ObjectRef[str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The first driver's tasks reach Postgres when their node has dropped them already."""
    monkeypatch.setenv("REGROW_LEASE_TTL_S", "60")  # the node's log is stopped for a while
    with Cluster(initialize_head=True, head_node_args=HEAD) as cluster:
        there = cluster.head_node
        assert there is not None
        wait_until(lambda: len(rows(cluster.home, LOG_BACKENDS)) == 1, "the head has its log")
        [(log,)] = rows(cluster.home, LOG_BACKENDS)
        here = cluster.add_node(num_cpus=1)
        cluster.wait_for_nodes()
        first = driver(cluster, there)
        os.kill(log, signal.SIGSTOP)
        try:
            first.call(task._prepare(), (str(tmp_path),), {})
            first.link.flush()
            wait_until((tmp_path / "began").exists, "it runs at the first driver's node")
            second = driver(cluster, here, takeover=True)
            assert second.number == 2
        finally:
            os.kill(log, signal.SIGCONT)
        logged = "SELECT last_batch FROM regrow.nodes WHERE node_id = %s"
        before = rows(cluster.home, logged, there.node_id)
        wait_until(lambda: rows(cluster.home, logged, there.node_id) > before, "its log goes on")
        (tmp_path / "go").touch()
        [ref] = second.call(task._prepare(), (str(tmp_path),), {})
        assert second.get([ref], 60) == ["done"]
        ended = "SELECT DISTINCT status FROM regrow.task_log"
        assert rows(cluster.home, ended) == [(1,)], "all is in the log, and nothing pending"
        second.close(None)
        first.close(None)
