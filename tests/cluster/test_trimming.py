"""The log of an actor's calls is trimmed behind its saved states, and nobody notices."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import regrow as ray
from regrow.cluster_utils import Cluster
from regrow.exceptions import ActorStateLostError
from tests.cluster.watching import rows, wait_until

TIMEOUT_S = 60.0


@pytest.fixture
def pair() -> Iterator[Cluster]:
    """The driver's node, and two others that actors can be on."""
    with Cluster(initialize_head=True, head_node_args={"num_cpus": 1}) as cluster:
        cluster.connect()
        for _ in range(2):
            cluster.add_node(num_cpus=1, resources={"away": 4})
        cluster.wait_for_nodes()
        yield cluster


class Ledger:
    """Its state depends on the order of its calls; ``size`` makes it small or large."""

    def __init__(self, size: int = 0) -> None:
        self.ballast = np.zeros(size)
        self.value = 0
        self.calls: list[int] = []
        self.kept: list[Any] = []

    def add(self, amount: int, _: bytes = b"") -> int:
        self.value = self.value * 3 + amount
        self.calls.append(amount)
        return self.value

    def large(self, amount: int) -> Any:
        self.add(amount)
        return np.full(30_000, amount)

    def keep(self, boxes: list[Any]) -> int:
        self.kept += boxes
        return len(self.kept)

    def held(self) -> list[float]:
        return [float(array.sum()) for array in ray.get(self.kept)]

    def history(self) -> list[int]:
        return self.calls

    def pid(self) -> int:
        return os.getpid()


def expected(amounts: list[int]) -> int:
    value = 0
    for amount in amounts:
        value = value * 3 + amount
    return value


def made(size: int = 0, **options: Any) -> Any:
    where = {"max_restarts": -1, "checkpoint_every": 10, "resources": {"away": 1}}
    return ray.remote(Ledger).options(**{**where, **options}).remote(size)


def trimmed_up_to(cluster: Cluster, seq: int) -> None:
    query = "SELECT max(trimmed_seq) FROM regrow.actors"
    wait_until(lambda: rows(cluster.home, query)[0][0] == seq, f"it is trimmed up to {seq}", 60)


def kill_home(cluster: Cluster) -> None:
    [[node_id]] = rows(cluster.home, "SELECT node_id FROM regrow.actors WHERE state = 'alive'")
    node = next(node for node in cluster.worker_nodes if node.node_id == int(node_id))
    cluster.remove_node(node, allow_graceful=False)


def spoil(cluster: Cluster, how: str, seqs: str) -> None:
    """The saved states after these calls cannot be read any more."""
    chosen = f"object_id IN (SELECT object_id FROM regrow.checkpoints WHERE actor_seq IN ({seqs}))"
    if how == "in the log":
        middle = "octet_length(data) / 2"
        change = f"data = set_byte(data, {middle}, get_byte(data, {middle}) # 1)"
        assert rows(
            cluster.home, f"UPDATE regrow.object_log SET {change} WHERE {chosen} RETURNING 1"
        )
        return
    for [path] in rows(cluster.home, f"SELECT path FROM regrow.stored_objects WHERE {chosen}"):
        file = Path(path.removeprefix("file://"))
        content = bytearray(file.read_bytes())
        if how == "truncated":
            del content[len(content) // 2 :]
        elif how == "flipped":
            content[len(content) // 2] ^= 1
        else:
            file.unlink()
            continue
        file.write_bytes(content)


def test_a_trimmed_actor_comes_back_and_its_callers_are_answered(pair: Cluster) -> None:
    ledger = made()
    refs = [ledger.add.remote(i, bytes(1000)) for i in range(35)]
    assert ray.get(refs[-1], timeout=TIMEOUT_S) == expected(list(range(35)))
    trimmed_up_to(pair, 20)
    query = "SELECT trimmed, count(*), count(spec) FROM regrow.tasks WHERE name = 'Ledger.add' "
    assert rows(pair.home, query + "GROUP BY 1 ORDER BY 1") == [(False, 15, 15), (True, 20, 0)]
    kill_home(pair)
    assert ray.get(ledger.add.remote(35), timeout=TIMEOUT_S) == expected(list(range(36)))
    assert ray.get(ledger.history.remote(), timeout=TIMEOUT_S) == list(range(36))
    assert ray.get(refs, timeout=TIMEOUT_S) == [expected(list(range(i + 1))) for i in range(35)]


def test_a_caller_that_runs_again_long_after_the_trimming_finds_its_results(
    pair: Cluster, tmp_path: Path
) -> None:
    """Each of its calls took effect once."""
    ledger = made()

    @ray.remote(max_retries=-1)
    def caller(ledger: Any, mark: str, go: str) -> list[int]:
        values = ray.get([ledger.add.remote(i) for i in range(30)])
        arrays = ray.get([ledger.large.remote(i) for i in range(30, 35)])
        values += [int(array[0]) for array in arrays]
        if not Path(mark).exists():
            Path(mark).touch()
            wait_until(Path(go).exists, "the log is trimmed", TIMEOUT_S)
            os.kill(os.getpid(), signal.SIGKILL)
        return [*values, ray.get(ledger.add.remote(35))]

    mark, go = tmp_path / "mark", tmp_path / "go"
    result = caller.remote(ledger, str(mark), str(go))
    wait_until(mark.exists, "it has called", TIMEOUT_S)
    more = [ledger.add.remote(i) for i in range(100, 120)]
    ray.get(more, timeout=TIMEOUT_S)
    trimmed_up_to(pair, 40)
    kill_home(pair)  # what it returned is recovered too
    go.touch()
    called = list(range(35))
    wanted = [expected(called[: i + 1]) for i in range(30)] + called[30:]
    wanted.append(expected([*called, *range(100, 120), 35]))
    assert ray.get(result, timeout=TIMEOUT_S) == wanted
    history = ray.get(ledger.history.remote(), timeout=TIMEOUT_S)
    assert history == [*called, *range(100, 120), 35]


@pytest.mark.parametrize("where", ["in the log", "truncated", "flipped", "gone"])
def test_a_newest_state_that_is_damaged_falls_back_to_the_one_before(
    pair: Cluster, where: str
) -> None:
    ledger = made(0 if where == "in the log" else 20_000)
    assert ray.get([ledger.add.remote(i) for i in range(35)], timeout=TIMEOUT_S)
    trimmed_up_to(pair, 20)
    spoil(pair, where, "30")
    kill_home(pair)
    assert ray.get(ledger.add.remote(35), timeout=TIMEOUT_S) == expected(list(range(36)))
    assert ray.get(ledger.history.remote(), timeout=TIMEOUT_S) == list(range(36))
    told = "SELECT count(*) FROM regrow.events WHERE kind = 'checkpoint_unreadable'"
    assert rows(pair.home, told) == [(1,)]


@pytest.mark.parametrize("where", ["in the log", "flipped"])
def test_an_actor_without_a_readable_state_is_dead_and_says_why(pair: Cluster, where: str) -> None:
    ledger = made(0 if where == "in the log" else 20_000)
    assert ray.get([ledger.add.remote(i) for i in range(35)], timeout=TIMEOUT_S)
    trimmed_up_to(pair, 20)
    spoil(pair, where, "20, 30")
    kill_home(pair)
    with pytest.raises(ActorStateLostError, match="trimmed"):
        ray.get(ledger.add.remote(35), timeout=TIMEOUT_S)
    assert rows(pair.home, "SELECT state FROM regrow.actors") == [("dead",)]


def test_what_the_state_refers_to_stays_when_the_calls_that_brought_it_are_trimmed(
    pair: Cluster,
) -> None:
    """And is made again with its lineage when its node is lost."""

    @ray.remote(resources={"away": 1}, num_cpus=0)
    def make(number: int) -> Any:
        return np.full(40_000, float(number))

    ledger = made()
    boxes = [make.remote(i) for i in range(4)]
    put = ray.put(np.full(40_000, 10.0), durable=True)
    assert ray.get(ledger.keep.remote([*boxes, put]), timeout=TIMEOUT_S) == 5
    del boxes, put
    assert ray.get([ledger.add.remote(i) for i in range(34)], timeout=TIMEOUT_S)
    trimmed_up_to(pair, 20)
    kill_home(pair)
    wanted = [40_000.0 * number for number in (0, 1, 2, 3, 10)]
    assert ray.get(ledger.held.remote(), timeout=TIMEOUT_S) == wanted
