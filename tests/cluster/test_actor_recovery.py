"""Actors with ``max_restarts``: whatever kills them, their state, results and the order of calls
are those of a run in which nothing died, and each call takes effect once."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import regrow as ray
from regrow.cluster_utils import Cluster
from regrow.exceptions import ActorDiedError, RayError
from tests.cluster.watching import rows, wait_until


@pytest.fixture
def pair() -> Iterator[Cluster]:
    """The driver's node, and two others that actors can be on."""
    with Cluster(initialize_head=True, head_node_args={"num_cpus": 1}) as cluster:
        cluster.connect()
        for _ in range(2):
            cluster.add_node(num_cpus=1, resources={"away": 4})
        cluster.wait_for_nodes()
        yield cluster


class Account:
    """Its state depends on the order of its calls; it writes down that it ran."""

    def __init__(self, path: str, start: int = 0) -> None:
        self.path = path
        self.value = start
        self.history: list[int] = []
        Path(path).with_suffix(".pid").write_text(str(os.getpid()))

    def add(self, amount: int) -> int:
        self._note(f"add {amount}")
        self.value = self.value * 3 + amount
        self.history.append(amount)
        return self.value

    def large(self, amount: int) -> Any:
        self.value = self.value * 3 + amount
        return np.full(30_000, self.value % 1000)

    def fail(self, amount: int) -> None:
        self.value += amount
        raise KeyError(amount)

    def die_once(self, mark: str) -> str:
        if not Path(mark).exists():
            Path(mark).touch()
            os.kill(os.getpid(), signal.SIGKILL)
        self.value += 1
        return "lived"

    def die(self) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def state(self) -> tuple[int, list[int]]:
        return self.value, self.history

    def _note(self, line: str) -> None:
        with open(self.path, "a") as file:
            file.write(line + "\n")


def expected(amounts: list[int], value: int = 0) -> int:
    for amount in amounts:
        value = value * 3 + amount
    return value


def process(path: Path) -> int:
    """The process of the actor, as it wrote down itself."""
    return int(path.with_suffix(".pid").read_text())


def home_of(cluster: Cluster, account: Any) -> int:
    """The node on which the actor lives."""
    ray.get(account.state.remote(), timeout=30)
    actor_id = f"'\\x{account._ray_actor_id.hex()}'"
    query = f"SELECT node_id FROM regrow.actors WHERE actor_id = {actor_id}"
    return int(rows(cluster.home, query)[0][0])


def kill_node(cluster: Cluster, node_id: int) -> None:
    node = next(node for node in cluster.worker_nodes if node.node_id == node_id)
    cluster.remove_node(node, allow_graceful=False)


def replayed(cluster: Cluster) -> int:
    return int(rows(cluster.home, "SELECT count(*) FROM regrow.rebuilds")[0][0])


def test_state_and_order_survive_the_death_of_the_process(pair: Cluster, tmp_path: Path) -> None:
    account = ray.remote(Account).options(max_restarts=1).remote(str(tmp_path / "log"), 5)
    refs = [account.add.remote(i) for i in range(50)]
    assert ray.get(refs[-1], timeout=30) == expected(list(range(50)), 5)
    pid = process(tmp_path / "log")
    os.kill(pid, signal.SIGKILL)
    more = [account.add.remote(i) for i in range(50, 80)]
    assert ray.get(more[-1], timeout=30) == expected(list(range(80)), 5)
    state = ray.get(account.state.remote(), timeout=30)
    assert state == (expected(list(range(80)), 5), list(range(80)))
    assert process(tmp_path / "log") != pid
    assert ray.get(refs, timeout=30) == [expected(list(range(i + 1)), 5) for i in range(50)]
    assert replayed(pair) == 51, "the creation and 50 calls"


def test_state_survives_the_death_of_the_node(pair: Cluster, tmp_path: Path) -> None:
    made = ray.remote(Account).options(max_restarts=-1, resources={"away": 1})
    account = made.remote(str(tmp_path / "log"))
    home = home_of(pair, account)
    refs = [account.add.remote(i) for i in range(30)]
    with pytest.raises(KeyError):
        ray.get(account.fail.remote(7), timeout=30)
    kill_node(pair, home)
    more = [account.add.remote(i) for i in range(30)]
    values = ray.get(more, timeout=60)
    start = expected(list(range(30))) + 7
    assert values == [expected(list(range(i + 1)), start) for i in range(30)]
    assert ray.get(refs, timeout=30) == [expected(list(range(i + 1))) for i in range(30)]
    assert home_of(pair, account) != home


def test_calls_in_flight_take_effect_once(pair: Cluster, tmp_path: Path) -> None:
    made = ray.remote(Account).options(max_restarts=-1, resources={"away": 1})
    account = made.remote(str(tmp_path / "log"))
    home = home_of(pair, account)
    refs = [account.add.remote(i) for i in range(2000)]
    ray.wait(refs, num_returns=300, timeout=30)
    kill_node(pair, home)
    value, history = ray.get(account.state.remote(), timeout=60)
    assert history == list(range(2000))
    assert value == expected(list(range(2000)))
    assert ray.get(refs[-1], timeout=30) == value


def test_large_results_come_back_with_their_actor(pair: Cluster, tmp_path: Path) -> None:
    made = ray.remote(Account).options(max_restarts=-1, resources={"away": 1})
    account = made.remote(str(tmp_path / "log"))
    home = home_of(pair, account)
    refs = [account.large.remote(i) for i in range(5)]
    ray.wait(refs, num_returns=5, timeout=30, fetch_local=False)
    kill_node(pair, home)
    for i, ref in enumerate(refs):
        value = expected(list(range(i + 1))) % 1000
        assert np.array_equal(ray.get(ref, timeout=60), np.full(30_000, value))


def test_large_arguments_are_there_when_the_calls_run_again(pair: Cluster, tmp_path: Path) -> None:
    class Sum:
        def __init__(self) -> None:
            self.total = 0.0

        def push(self, array: Any) -> float:
            self.total = self.total * 2 + float(array.sum())
            return self.total

    made = ray.remote(Sum).options(max_restarts=-1, resources={"away": 1})
    summing = made.remote()
    values = [ray.get(summing.push.remote(np.full(50_000, i)), timeout=30) for i in range(4)]
    [[home]] = rows(pair.home, "SELECT node_id FROM regrow.actors")
    stored = "SELECT count(*) FROM regrow.stored_objects"
    wait_until(lambda: rows(pair.home, stored)[0][0] == 4, "they are stored, though let go of", 30)
    kill_node(pair, int(home))
    assert ray.get(summing.push.remote(np.ones(2)), timeout=60) == values[-1] * 2 + 2


def test_a_call_that_kills_its_process_is_tried_again_and_then_skipped(
    pair: Cluster, tmp_path: Path
) -> None:
    account = ray.remote(Account).options(max_restarts=-1).remote(str(tmp_path / "log"))
    assert ray.get(account.add.remote(1), timeout=30) == 1
    assert ray.get(account.die_once.remote(str(tmp_path / "mark")), timeout=30) == "lived"
    doomed = account.die.remote()
    after = account.add.remote(5)
    assert ray.get(after, timeout=60) == 2 * 3 + 5
    with pytest.raises(RayError, match="3 times"):
        ray.get(doomed, timeout=30)


def test_an_actor_that_comes_back_where_it_was_called_from_lives_on(tmp_path: Path) -> None:
    """The node that called it held it elsewhere; then it is held there, for the driver."""

    class Caller:
        def ask(self, account: Any, amount: int) -> int:
            return int(ray.get(account.add.remote(amount)))

    with Cluster(initialize_head=True, head_node_args={"num_cpus": 1}) as cluster:
        cluster.connect()
        first = cluster.add_node(num_cpus=1, resources={"away": 4, "caller": 1})
        second = cluster.add_node(num_cpus=1, resources={"away": 4})
        cluster.wait_for_nodes()
        there = SimpleNamespace(node_id=str(second.node_id), soft=True)
        made = ray.remote(Account).options(max_restarts=-1, resources={"away": 1})
        account = made.options(scheduling_strategy=there).remote(str(tmp_path / "log"))
        caller = ray.remote(Caller).options(resources={"caller": 1}).remote()
        assert home_of(cluster, account) == second.node_id
        assert ray.get(caller.ask.remote(account, 1), timeout=30) == 1
        cluster.remove_node(second, allow_graceful=False)
        assert ray.get(caller.ask.remote(account, 2), timeout=60) == 5
        assert home_of(cluster, account) == first.node_id
        ray.kill(caller)
        for amount in range(20):  # its worker lets go of the handle meanwhile
            ray.get(account.add.remote(amount), timeout=30)
        assert ray.get(account.state.remote(), timeout=30)[1] == [1, 2, *range(20)]


def test_an_actor_that_used_up_its_restarts_is_dead(pair: Cluster, tmp_path: Path) -> None:
    account = ray.remote(Account).options(max_restarts=1).remote(str(tmp_path / "log"))
    for _ in range(2):
        ray.get(account.add.remote(1), timeout=30)
        os.kill(process(tmp_path / "log"), signal.SIGKILL)
    with pytest.raises(ActorDiedError):
        ray.get(account.add.remote(1), timeout=30)


def test_an_actor_whose_calls_differ_when_they_run_again_is_dead_and_says_so(
    pair: Cluster,
) -> None:
    class Random:
        def pid(self) -> int:
            return os.getpid()

    actor = ray.remote(Random).options(max_restarts=-1).remote()
    os.kill(ray.get(actor.pid.remote(), timeout=30), signal.SIGKILL)
    with pytest.raises(RayError, match="deterministic"):
        ray.get(actor.pid.remote(), timeout=30)


def reruns(cluster: Cluster, name: str) -> int:
    query = (
        "SELECT count(*) FROM regrow.rebuilds r JOIN regrow.tasks t USING (task_id) WHERE t.name"
    )
    return int(rows(cluster.home, f"{query} = '{name}'")[0][0])


class Heavy(Account):
    """Its state is too large for the log."""

    def __init__(self, path: str) -> None:
        super().__init__(path)
        self.weights = np.zeros(20_000)

    def train(self, amount: int) -> float:
        self.weights += amount
        self.weights[amount] *= 2
        return float(self.weights.sum())


class Own(Heavy):
    """Saves itself; its constructor makes what cannot be saved."""

    def __init__(self, path: str) -> None:
        super().__init__(path)
        self.lock = threading.Lock()

    def save_checkpoint(self) -> Any:
        return self.weights, self.value

    def load_checkpoint(self, state: Any) -> None:
        weights, self.value = state
        self.weights = weights.copy()


@pytest.mark.parametrize("kind", [Heavy, Own])
def test_only_the_calls_after_the_checkpoint_run_again(
    pair: Cluster, tmp_path: Path, kind: type[Heavy]
) -> None:
    made = ray.remote(kind).options(max_restarts=-1, checkpoint_every=10, resources={"away": 1})
    heavy = made.remote(str(tmp_path / "log"))
    home = home_of(pair, heavy)
    model = kind(str(tmp_path / "model"))
    wanted = [model.train(i) for i in range(44)]
    assert ray.get([heavy.train.remote(i) for i in range(44)], timeout=30) == wanted
    saved = "SELECT max(actor_seq) FROM regrow.checkpoints"
    wait_until(lambda: rows(pair.home, saved)[0][0] == 40, "the checkpoint is committed", 30)
    assert rows(pair.home, "SELECT count(*) FROM regrow.checkpoints")[0][0] == 2
    kill_node(pair, home)
    more = [heavy.train.remote(i) for i in range(44, 48)]
    assert ray.get(more, timeout=60) == [model.train(i) for i in range(44, 48)]
    assert 1 <= reruns(pair, f"{kind.__qualname__}.train") <= 5


def test_a_checkpoint_that_cannot_be_read_falls_back_to_the_one_before(
    pair: Cluster, tmp_path: Path
) -> None:
    made = ray.remote(Heavy).options(max_restarts=-1, checkpoint_every=10)
    heavy = made.remote(str(tmp_path / "log"))
    model = Heavy(str(tmp_path / "model"))
    wanted = [model.train(i) for i in range(25)]
    assert ray.get([heavy.train.remote(i) for i in range(25)], timeout=30) == wanted
    saved = "SELECT max(actor_seq) FROM regrow.checkpoints"
    wait_until(lambda: rows(pair.home, saved)[0][0] == 20, "the checkpoint is committed", 30)
    home = home_of(pair, heavy)
    [[path]] = rows(
        pair.home,
        "SELECT path FROM regrow.stored_objects JOIN regrow.checkpoints USING (object_id) "
        "WHERE actor_seq = 20",
    )
    file = Path(path.removeprefix("file://"))
    file.write_bytes(b"\0" * file.stat().st_size)
    pid = process(tmp_path / "log")
    if home != pair.head_node.node_id:  # type: ignore[union-attr]
        kill_node(pair, home)
    else:
        os.kill(pid, signal.SIGKILL)
    assert ray.get(heavy.train.remote(25), timeout=60) == model.train(25)


def test_with_a_checkpoint_after_each_call_every_method_is_exact(
    pair: Cluster, tmp_path: Path
) -> None:
    class Random:
        def __init__(self) -> None:
            self.drawn: list[bytes] = []

        def draw(self, size: int) -> tuple[bytes, int]:
            self.drawn.append(os.urandom(size))
            return self.drawn[-1], os.getpid()

        def all(self) -> list[bytes]:
            return self.drawn

    made = ray.remote(Random).options(max_restarts=-1, checkpoint_every=1)
    random = made.remote()
    seen = []
    for size in (10, 20_000, 10, 30_000):
        drawn, pid = ray.get(random.draw.remote(size), timeout=30)
        seen.append(drawn)
        os.kill(pid, signal.SIGKILL)
        assert ray.get(random.all.remote(), timeout=30) == seen
    assert reruns(pair, "Random.draw") == 0


def test_kill_ends_it_for_good_and_kill_without_no_restart_does_not(
    pair: Cluster, tmp_path: Path
) -> None:
    account = ray.remote(Account).options(max_restarts=-1).remote(str(tmp_path / "log"))
    ray.get(account.add.remote(4), timeout=30)
    ray.kill(account, no_restart=False)
    assert ray.get(account.add.remote(1), timeout=30) == 13
    ray.kill(account)
    with pytest.raises(ActorDiedError):
        ray.get(account.add.remote(1), timeout=30)
