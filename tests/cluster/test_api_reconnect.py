"""A driver whose node is killed goes on with another node of its machine."""

from __future__ import annotations

import os
import signal
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import regrow as ray
from regrow import _bootstrap, _client
from regrow._driver import Driver
from regrow._home import read_gcs
from regrow.cluster_utils import Cluster
from regrow.exceptions import ObjectLostError
from tests.cluster.watching import rows, wait_until

TIMEOUT_S = 60.0


@ray.remote
def square(x: int) -> int:
    return x * x


@ray.remote
def total(array: np.ndarray) -> int:
    return int(array.sum())


def test_a_driver_outlives_its_node(tmp_path: Path) -> None:
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    try:
        cluster.add_node(num_cpus=1)
        cluster.connect()
        cluster.wait_for_nodes()
        before = ray.get_runtime_context().get_node_id()
        small, large = ray.put("small"), ray.put(np.arange(100_000))
        view = ray.get(large)
        done = [square.remote(i) for i in range(200)]
        assert ray.get(done[:50], timeout=TIMEOUT_S) == [i * i for i in range(50)]
        submitting = threading.Event()
        refs: list[ray.ObjectRef[int]] = []

        def submit() -> None:
            for i in range(2000):
                refs.append(square.remote(i))
                if i == 500:
                    submitting.set()

        thread = threading.Thread(target=submit)
        thread.start()
        assert submitting.wait(TIMEOUT_S)
        assert cluster.head_node is not None
        assert str(cluster.head_node.node_id) == before
        cluster.remove_node(cluster.head_node, allow_graceful=False)
        thread.join(TIMEOUT_S)
        assert ray.get(refs, timeout=TIMEOUT_S) == [i * i for i in range(2000)]
        assert ray.get(done, timeout=TIMEOUT_S) == [i * i for i in range(200)]
        assert ray.get_runtime_context().get_node_id() != before
        assert ray.get(small, timeout=TIMEOUT_S) == "small"
        assert ray.get(large, timeout=TIMEOUT_S).sum() == 4999950000
        assert ray.get(total.remote(large), timeout=TIMEOUT_S) == 4999950000
        assert view[-1] == 99_999
    finally:
        ray.shutdown()
        cluster.shutdown()


def test_a_driver_whose_node_dies_as_it_joins_joins_through_another(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    attach = _bootstrap.attach
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    attached: list[str] = []

    def attach_and_kill(*arguments: Any, **more: Any) -> _bootstrap.Session:
        session = attach(*arguments, **more)
        if not attached:
            for node in cluster.list_all_nodes():
                if node.socket == session.node_socket:
                    cluster.remove_node(node, allow_graceful=False)
        attached.append(session.node_socket)
        return session

    monkeypatch.setattr(_bootstrap, "attach", attach_and_kill)
    try:
        cluster.add_node(num_cpus=1)
        cluster.connect()
        assert len(set(attached)) == 2
        assert ray.get(square.remote(3), timeout=TIMEOUT_S) == 9
    finally:
        ray.shutdown()
        cluster.shutdown()


def test_a_driver_without_another_node_fails_in_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REGROW_RECONNECT_TIMEOUT_S", "0.5")
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    try:
        cluster.connect()
        ref = square.remote(3)
        assert ray.get(ref, timeout=TIMEOUT_S) == 9
        assert cluster.head_node is not None
        cluster.remove_node(cluster.head_node, allow_graceful=False)
        with pytest.raises(ConnectionError, match="no other was found"):
            ray.get(square.remote(4), timeout=TIMEOUT_S)
        assert ray.get(ref) == 9
    finally:
        ray.shutdown()
        cluster.shutdown()


def test_ctrl_c_while_values_arrive_loses_none() -> None:
    """Handling interrupted anywhere, over and over: what is lost is sent again."""
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2})
    try:
        cluster.connect()
        ray.get([square.remote(i) for i in range(100)], timeout=TIMEOUT_S)
        refs = [square.remote(i) for i in range(5000)]
        interrupted = 0
        getting = threading.Event()

        def interrupt(*_: object) -> None:
            if getting.is_set():  # once: this function itself is not to be interrupted
                getting.clear()
                raise KeyboardInterrupt

        before = signal.signal(signal.SIGALRM, interrupt)
        signal.setitimer(signal.ITIMER_REAL, 0.003, 0.003)
        try:
            while interrupted < 20:
                try:
                    getting.set()
                    ray.get(refs, timeout=TIMEOUT_S)
                    getting.clear()
                except KeyboardInterrupt:
                    interrupted += 1
                else:
                    break
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)
        assert interrupted
        assert ray.get(refs, timeout=TIMEOUT_S) == [i * i for i in range(5000)]
    finally:
        ray.shutdown()
        cluster.shutdown()


@pytest.mark.parametrize("durable", [True, False])
def test_a_durable_put_outlives_its_node(monkeypatch: pytest.MonkeyPatch, durable: bool) -> None:
    """Whatever the driver has in memory: it puts nothing again here, and nothing is written behind
    that nobody asks for."""
    monkeypatch.setattr(Driver, "_put_again", lambda *_: None)
    monkeypatch.setenv("REGROW_WRITE_BEHIND_DELAY_S", "3600")
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    try:
        cluster.add_node(num_cpus=1)
        cluster.connect()
        cluster.wait_for_nodes()
        ref = ray.put(np.arange(131_072), durable=durable)  # 1 MiB
        _client.current().await_commits()
        assert cluster.head_node is not None
        cluster.remove_node(cluster.head_node, allow_graceful=False)
        if durable:
            assert ray.get(total.remote(ref), timeout=TIMEOUT_S) == 131_071 * 65_536
            assert ray.get(ref, timeout=TIMEOUT_S)[-1] == 131_071
        else:
            with pytest.raises(ObjectLostError):
                ray.get(total.remote(ref), timeout=TIMEOUT_S)
    finally:
        ray.shutdown()
        cluster.shutdown()


def test_a_durable_put_is_read_though_the_control_store_names_its_dead_node_first(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The control store is stopped while the node dies, so that it is asked where the put is before
    it has noticed: it says the dead node, and the second time the path in storage."""
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    moving = threading.Event()
    move_to = Driver._move_to

    def note_and_move(driver: Driver, path: str) -> None:
        moving.set()
        move_to(driver, path)

    monkeypatch.setattr(Driver, "_put_again", lambda *_: None)
    monkeypatch.setattr(Driver, "_move_to", note_and_move)
    gcs = 0
    try:
        cluster.add_node(num_cpus=1)
        cluster.connect()
        cluster.wait_for_nodes()
        ref = ray.put(np.arange(131_072), durable=True)  # 1 MiB
        note = read_gcs(cluster.home)
        assert note is not None and cluster.head_node is not None
        gcs = note.pid
        os.kill(gcs, signal.SIGSTOP)
        cluster.remove_node(cluster.head_node, allow_graceful=False)
        assert moving.wait(TIMEOUT_S)
        os.kill(gcs, signal.SIGCONT)
        assert ray.get(total.remote(ref), timeout=TIMEOUT_S) == 131_071 * 65_536
        assert ray.get(ref, timeout=TIMEOUT_S)[-1] == 131_071
    finally:
        if gcs:
            os.kill(gcs, signal.SIGCONT)
        ray.shutdown()
        cluster.shutdown()


def test_a_durable_put_goes_on_at_another_node_when_its_own_dies(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Killed while its storage is away, so that nothing is stored yet."""
    storage = tmp_path / "objects"
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1}, storage=str(storage))
    try:
        cluster.add_node(num_cpus=1)
        cluster.connect()
        cluster.wait_for_nodes()
        storage.rmdir()
        storage.touch()
        with ThreadPoolExecutor(1) as pool:
            putting = pool.submit(ray.put, np.arange(131_072), durable=True)
            failed = "SELECT 1 FROM regrow.events WHERE kind = 'storage_failed'"
            wait_until(lambda: rows(cluster.address, failed), "storage failed")
            assert cluster.head_node is not None
            cluster.remove_node(cluster.head_node, allow_graceful=False)
            storage.unlink()
            storage.mkdir()
            ref = putting.result(TIMEOUT_S)
        assert ray.get(total.remote(ref), timeout=TIMEOUT_S) == 131_071 * 65_536
        assert len(list(storage.glob("*.0"))) == 1
    finally:
        ray.shutdown()
        cluster.shutdown()
