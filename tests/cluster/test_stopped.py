"""A cluster that is stopped on purpose: its drivers know at once, and wait for nobody."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

import regrow as ray
from regrow import _bootstrap, _daemons
from regrow._daemons import NodeOptions
from regrow.exceptions import ClusterConnectionError
from tests.cluster.watching import wait_until

ONE_CPU = NodeOptions(num_cpus=1)


@ray.remote
def double(number: int) -> int:
    return 2 * number


@ray.remote
def hold(path: str) -> None:
    wait_until(Path(path).exists, "the test lets it go", 60)


@pytest.fixture
def stopped_home(home: Path) -> Iterator[Path]:
    """A home whose cluster is stopped after the test, and left by this driver."""
    yield home
    ray.shutdown()
    _bootstrap.stop(home)


def test_a_driver_of_a_cluster_that_was_stopped_fails_at_once_and_says_so(
    stopped_home: Path, tmp_path: Path
) -> None:
    _bootstrap.start_head(stopped_home, options=ONE_CPU)
    ray.init()
    ref = hold.remote(str(tmp_path / "never"))
    stopping = threading.Thread(target=_bootstrap.stop, args=[stopped_home])
    stopping.start()
    with pytest.raises(ClusterConnectionError, match="was stopped with `regrow stop`"):
        ray.get(ref, timeout=25)
    with pytest.raises(ClusterConnectionError, match="was stopped"):
        ray.get(double.remote(1), timeout=25)
    stopping.join()


def test_a_cluster_that_was_stopped_and_started_again_is_one_to_reconnect_to(
    stopped_home: Path,
) -> None:
    _bootstrap.start_head(stopped_home, options=ONE_CPU)
    _bootstrap.stop(stopped_home)
    session = _bootstrap.start_head(stopped_home, options=ONE_CPU)
    ray.init()
    assert ray.get(double.remote(1), timeout=60) == 2
    assert session.daemon is not None
    _daemons.kill_sessions([session.daemon.pid])
    _bootstrap.await_node(stopped_home, _bootstrap.start_node(stopped_home, ONE_CPU))
    assert ray.get(double.remote(2), timeout=60) == 4
