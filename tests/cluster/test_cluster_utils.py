"""Several nodes on one machine."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

import regrow as ray
from regrow import _daemons, _home
from regrow.cluster_utils import Cluster
from regrow.exceptions import UnsupportedOptionError
from tests.cluster.conftest import Traces


def test_nodes_join_and_offer_what_they_were_given(cluster: Cluster) -> None:
    cluster.add_node(num_cpus=1)
    other = cluster.add_node(num_cpus=2, resources={"disk": 1}, labels={"zone": "a"})
    cluster.connect()
    cluster.wait_for_nodes()
    assert ray.cluster_resources()["CPU"] == 3
    (found,) = [node for node in ray.nodes() if node["NodeID"] == str(other.node_id)]
    assert found["Resources"]["disk"] == 1
    assert found["Labels"]["zone"] == "a"
    assert Path(other.socket).is_socket()


def test_a_killed_node_is_gone_whole_and_declared_dead(cluster: Cluster) -> None:
    head = cluster.add_node(num_cpus=1)
    doomed = cluster.add_node(num_cpus=1)
    cluster.wait_for_nodes()
    assert len(_daemons.session_members([doomed.pid])) > 1
    cluster.remove_node(doomed, allow_graceful=False)
    assert _daemons.session_members([doomed.pid]) == []
    assert not doomed.alive()
    cluster.wait_for_nodes()
    assert cluster.list_all_nodes() == [head]
    assert head.alive()


def test_a_node_that_joins_while_the_control_store_is_dead_starts_it_again(
    cluster: Cluster,
) -> None:
    head = cluster.add_node(num_cpus=1)
    running = _home.read_gcs(cluster.home)
    assert running is not None
    _daemons.kill_sessions([running.pid])
    other = cluster.add_node(num_cpus=1)
    cluster.wait_for_nodes()
    assert cluster.list_all_nodes() == [head, other]


def test_a_node_that_is_asked_to_leaves_at_once(cluster: Cluster) -> None:
    cluster.add_node(num_cpus=1)
    leaving = cluster.add_node(num_cpus=1)
    begun = time.monotonic()
    cluster.remove_node(leaving)
    cluster.wait_for_nodes()
    assert time.monotonic() - begun < 3


def test_the_cluster_outlives_its_head_node(cluster: Cluster) -> None:
    head = cluster.add_node(num_cpus=1)
    other = cluster.add_node(num_cpus=1)
    cluster.remove_node(head, allow_graceful=False)
    assert cluster.head_node is None
    cluster.wait_for_nodes()
    cluster.add_node(num_cpus=1)
    cluster.wait_for_nodes()
    assert other in cluster.list_all_nodes()
    assert len(cluster.list_all_nodes()) == 2


def test_nodes_can_be_started_without_waiting_for_each(cluster: Cluster) -> None:
    cluster.add_node(num_cpus=1)
    nodes = [cluster.add_node(wait=False, num_cpus=1) for _ in range(2)]
    cluster.wait_for_nodes()
    assert len({node.node_id for node in nodes}) == 2


def test_a_given_home_is_kept_and_a_private_one_deleted(home: Path) -> None:
    with Cluster(home=home, initialize_head=True) as kept:
        assert kept.address == str(home)
    assert (home / "postgres").exists()
    with Cluster(initialize_head=True) as private:
        place = private.home
        assert _home.read_gcs(place) is not None
    assert not place.exists()
    from regrow.gcs import embedded

    embedded.destroy(home / "postgres")


def test_what_it_does_not_have_is_refused(cluster: Cluster) -> None:
    with pytest.raises(UnsupportedOptionError, match="num_tpus"):
        cluster.add_node(num_tpus=1)
    with pytest.raises(ValueError, match=r"object_store_memory of add_node\(\) must be"):
        cluster.add_node(object_store_memory=10)
    with pytest.raises(ValueError, match="initialize_head"):
        Cluster(connect=True)


def test_a_program_that_fails_leaves_nothing(
    own_environment: Path, system_state: Path, tmp_path: Path
) -> None:
    program = (
        "from regrow.cluster_utils import Cluster\n"
        "cluster = Cluster(initialize_head=True, connect=True)\n"
        "cluster.add_node()\n"
        "print(cluster.home)\n"
        "raise SystemExit('as asked')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 1
    assert done.stderr.endswith("as asked\n")
    home = Path(done.stdout.strip())
    assert not home.exists()
    assert _daemons.find(home) == []
    assert not _home.runtime_directory(home).exists()


def test_the_check_that_nothing_is_left_sees_what_is_left(
    own_environment: Path, tmp_path: Path
) -> None:
    before = Traces.now(own_environment, [str(tmp_path)])
    shared = Path(f"/dev/shm/regrow-test-{os.getpid()}")
    process = subprocess.Popen(["cat"], start_new_session=True, stdin=subprocess.PIPE)
    runtime = _home.create_runtime_directory(tmp_path)
    (own_environment / "left").touch()
    shared.touch()
    left = {str(runtime), str(own_environment / "left"), str(shared)}
    wanted = {f"process {process.pid}: cat ", *left}
    deadline = time.monotonic() + 10
    try:
        while set(Traces.now(own_environment, [str(tmp_path)]).since(before)) != wanted:
            assert time.monotonic() < deadline  # just started, it has no command line yet
    finally:
        process.communicate()
        _home.remove_what_ended(tmp_path)
        (own_environment / "left").unlink()
        shared.unlink()
