"""Who runs when and where: nesting on one CPU, pipelining, resources, several nodes, actors."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest

import regrow as ray
from regrow.chaos.spy import Spy
from regrow.cluster_utils import Cluster, Node
from regrow.exceptions import RayActorError
from tests.cluster.watching import node_files, rows, wait_until

CHILDREN = 100_000


@contextmanager
def cluster_of(**head: Any) -> Iterator[Cluster]:
    with Cluster(initialize_head=True, head_node_args=head) as cluster:
        cluster.connect()
        yield cluster


@contextmanager
def two_nodes() -> Iterator[tuple[Cluster, Node]]:
    """The driver's node, and another with a resource of its own."""
    with cluster_of(num_cpus=1) as cluster:
        other = cluster.add_node(num_cpus=1, resources={"away": 1})
        cluster.wait_for_nodes()
        yield cluster, other


@pytest.fixture(scope="module")
def node_with_one_cpu(own_environment: Path) -> Iterator[Cluster]:
    """One CPU, and GPUs that nobody looks at."""
    options = {"num_cpus": 1, "num_gpus": 2, "resources": {"token": 2}}
    with Cluster(initialize_head=True, head_node_args=options) as cluster:
        yield cluster


@pytest.fixture
def one_cpu(node_with_one_cpu: Cluster) -> Iterator[Cluster]:
    """The same, and this process is a driver of it for one test."""
    ray.init(address=node_with_one_cpu.address)
    yield node_with_one_cpu
    ray.shutdown()


# --- one CPU --------------------------------------------------------------------------------------


@ray.remote
def nested(depth: int) -> int:
    if depth == 0:
        return 1
    return 1 + int(ray.get(nested.remote(depth - 1)))


@ray.remote
def fib(n: int) -> int:
    if n < 2:
        return n
    return int(sum(ray.get([fib.remote(n - 1), fib.remote(n - 2)])))


@ray.remote
def identity(x: Any) -> Any:
    return x


def test_nesting_does_not_deadlock_on_one_cpu(one_cpu: Cluster) -> None:
    assert ray.get(nested.remote(25), timeout=90) == 26


def test_branching_recursion_does_not_deadlock_on_one_cpu(one_cpu: Cluster) -> None:
    assert ray.get(fib.remote(7), timeout=90) == 13


def test_tasks_that_wait_in_wait_do_not_deadlock(one_cpu: Cluster) -> None:
    @ray.remote
    def waits(depth: int) -> int:
        if depth == 0:
            return 0
        ready, _ = ray.wait([waits.remote(depth - 1)])
        return 1 + int(ray.get(ready[0]))

    assert ray.get([waits.remote(4) for _ in range(3)], timeout=60) == [4, 4, 4]


@ray.remote
def spawn(count: int) -> tuple[int, int]:
    """The sum of its children's results, and its own peak memory in bytes."""
    refs = [identity.remote(1) for _ in range(count)]
    total = sum(ray.get(refs))
    import resource

    return total, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


@pytest.mark.slow
def test_a_parent_gets_a_hundred_thousand_children_on_one_cpu() -> None:
    with cluster_of(num_cpus=1) as cluster:
        assert cluster.head_node is not None
        node = psutil.Process(cluster.head_node.pid)
        ray.get(spawn.remote(1000), timeout=60)
        before = node.memory_info().rss
        ref = spawn.remote(CHILDREN)
        peak = before
        while not ray.wait([ref], timeout=0.2)[0]:
            peak = max(peak, node.memory_info().rss)
        total, worker_peak = ray.get(ref, timeout=10)
        assert total == CHILDREN
        # The values are held by the parent; what is bounded is what waits for its commit.
        assert worker_peak < 400 << 20
        assert peak - before < 300 << 20
        assert rows(cluster.home, "SELECT count(*) FROM regrow.task_log")[0][0] == CHILDREN + 1002


def test_a_short_task_does_not_wait_behind_a_long_one() -> None:
    @ray.remote
    def nap(path: str) -> str:
        """Short, unless a file tells it to wait."""
        if path:
            Path(path + ".begun").touch()
            wait_until(Path(path).exists, "the test lets it go", 60)
        return "done"

    with cluster_of(num_cpus=2) as cluster:
        ray.get([nap.remote("") for _ in range(500)], timeout=30)  # it is known as short now
        path = str(cluster.home / "go")
        refs = [nap.remote("") for _ in range(200)]
        long = nap.remote(path)
        refs += [nap.remote("") for _ in range(200)]
        assert ray.get(refs, timeout=30) == ["done"] * 400
        wait_until(Path(path + ".begun").exists, "the long one begins")
        assert ray.wait([long], timeout=0)[0] == []
        Path(path).touch()
        assert ray.get(long, timeout=30) == "done"


def test_what_is_queued_behind_a_task_that_waits_goes_elsewhere(one_cpu: Cluster) -> None:
    @ray.remote
    def maybe(inner: int) -> int:
        return int(ray.get(identity.remote(inner))) if inner else 0

    ray.get([maybe.remote(0) for _ in range(300)], timeout=30)
    found = ray.get([maybe.remote(i % 7) for i in range(210)], timeout=60)
    assert found == [i % 7 for i in range(210)]


# --- resources ------------------------------------------------------------------------------------


@ray.remote
def alone(path: str) -> int:
    """How many others run at the same time, as seen in a folder."""
    mine = Path(path) / str(os.getpid())
    mine.touch()
    seen = len(list(Path(path).iterdir()))
    for _ in range(20_000):
        pass
    seen = max(seen, len(list(Path(path).iterdir())))
    mine.unlink()
    return seen


@pytest.mark.parametrize(
    ("options", "most"),
    [
        ({"num_cpus": 1}, 1),
        ({"num_cpus": 0.5}, 2),
        ({"num_cpus": 0, "resources": {"token": 1}}, 2),
        ({"num_cpus": 0, "resources": {"token": 1.5}}, 1),
        ({"num_cpus": 0, "num_gpus": 1}, 2),
    ],
)
def test_no_more_run_than_the_resources_allow(
    one_cpu: Cluster, options: dict[str, Any], most: int, tmp_path: Path
) -> None:
    task = alone.options(**options)
    assert max(ray.get([task.remote(str(tmp_path)) for _ in range(40)], timeout=60)) <= most


@pytest.mark.parametrize(
    ("options", "count"),
    [
        ({"num_cpus": 0.25}, 4),
        ({"num_cpus": 0}, 6),
        ({"num_cpus": 0, "num_gpus": 0.5}, 4),
        ({"num_cpus": 0, "resources": {"token": 0.5}}, 4),
    ],
)
def test_as_many_run_as_the_resources_allow(
    one_cpu: Cluster, options: dict[str, Any], count: int, tmp_path: Path
) -> None:
    @ray.remote
    def gather(path: str, wanted: int) -> int:
        """Stays, without giving anything back, until so many are here."""
        (Path(path) / str(os.getpid())).touch()
        wait_until(lambda: len(list(Path(path).iterdir())) >= wanted, "the others", 30)
        return 1

    task = gather.options(**options)
    refs = [task.remote(str(tmp_path), count) for _ in range(count)]
    assert ray.get(refs, timeout=60) == [1] * count


def test_resources_are_whole_again_after_all_kinds_of_ends(one_cpu: Cluster) -> None:
    @ray.remote(max_retries=0)
    def end(how: str) -> int:
        if how == "raise":
            raise ValueError
        if how == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        if how == "nested":
            return int(ray.get(identity.remote(1)))
        return 1

    shapes: list[dict[str, Any]] = [
        {"num_cpus": 0.3}, {"num_gpus": 0.7}, {"num_gpus": 2}, {"resources": {"token": 0.1}}, {},
    ]  # fmt: skip
    refs = [
        end.options(**shape).remote(how)
        for shape in shapes
        for how in ("raise", "die", "nested", "return")
    ]
    ray.wait(refs, num_returns=len(refs), timeout=60)
    total = ray.cluster_resources()
    wait_until(lambda: ray.available_resources() == total, f"all is free: {total}")


def test_tasks_and_actors_see_their_gpus_only(one_cpu: Cluster, tmp_path: Path) -> None:
    @ray.remote
    def visible(path: str, wanted: int) -> str:
        (Path(path) / f"{os.getpid()}").touch()
        wait_until(lambda: len(list(Path(path).iterdir())) >= wanted, "the others", 30)
        return os.environ["CUDA_VISIBLE_DEVICES"]

    class Holder:
        def visible(self) -> str:
            return os.environ["CUDA_VISIBLE_DEVICES"]

    def folder(name: str) -> str:
        (tmp_path / name).mkdir()
        return str(tmp_path / name)

    assert ray.get(visible.remote(folder("none"), 1), timeout=30) == ""
    assert ray.get(visible.options(num_gpus=2).remote(folder("both"), 1), timeout=30) == "0,1"
    one_each = visible.options(num_gpus=1, num_cpus=0)
    path = folder("each")
    assert sorted(ray.get([one_each.remote(path, 2) for _ in range(2)], timeout=30)) == ["0", "1"]
    halves = visible.options(num_gpus=0.5, num_cpus=0)
    path = folder("halves")
    seen = sorted(ray.get([halves.remote(path, 4) for _ in range(4)], timeout=30))
    assert seen == ["0", "0", "1", "1"]
    holder = ray.remote(num_gpus=1, num_cpus=0)(Holder).remote()
    mine = ray.get(holder.visible.remote(), timeout=30)
    assert mine in ("0", "1")
    other = ray.get(one_each.remote(folder("other"), 1), timeout=30)
    assert {mine, other} == {"0", "1"}
    assert ray.get(holder.visible.remote(), timeout=30) == mine


# --- several nodes --------------------------------------------------------------------------------


@ray.remote
def where() -> int:
    return int(ray.get_runtime_context().get_node_id())


class Affinity:
    """As Ray's NodeAffinitySchedulingStrategy."""

    def __init__(self, node_id: int, soft: bool) -> None:
        self.node_id = node_id
        self.soft = soft


def test_tasks_go_where_they_ask_to() -> None:
    with two_nodes() as (cluster, other):
        assert cluster.head_node is not None
        here, away = cluster.head_node.node_id, other.node_id
        on_resource = where.options(resources={"away": 0.1})
        assert set(ray.get([on_resource.remote() for _ in range(20)], timeout=30)) == {away}
        for node_id in (here, away):
            pinned = where.options(scheduling_strategy=Affinity(node_id, soft=False))
            assert set(ray.get([pinned.remote() for _ in range(20)], timeout=30)) == {node_id}
        spread = where.options(scheduling_strategy="SPREAD", num_cpus=1)
        assert set(ray.get([spread.remote() for _ in range(20)], timeout=30)) == {here, away}

        @ray.remote(resources={"away": 0.1})
        def nested_there() -> tuple[int, int]:
            child = where.options(scheduling_strategy=Affinity(here, soft=False)).remote()
            return int(ray.get_runtime_context().get_node_id()), int(ray.get(child))

        assert ray.get(nested_there.remote(), timeout=30) == (away, here)


def test_an_overloaded_node_hands_over(tmp_path: Path) -> None:
    @ray.remote
    def meet_at(path: str) -> int:
        (Path(path) / str(ray.get_runtime_context().get_node_id())).touch()
        wait_until(lambda: len(list(Path(path).iterdir())) == 2, "one on each node", 30)
        return 1

    with two_nodes():
        assert ray.get([meet_at.remote(str(tmp_path)) for _ in range(2)], timeout=60) == [1, 1]


def test_what_was_short_before_is_handed_over_once_it_is_long(tmp_path: Path) -> None:
    @ray.remote
    def sometimes(gate: str) -> int:
        if gate:
            wait_until(Path(gate).exists, "the test lets it go", 60)
        return int(ray.get_runtime_context().get_node_id())

    with cluster_of(num_cpus=1) as cluster:
        other = cluster.add_node(num_cpus=1)
        cluster.wait_for_nodes()
        ray.get([sometimes.remote("") for _ in range(200)], timeout=60)
        gate = tmp_path / "gate"
        both = [sometimes.remote(str(gate)), sometimes.remote("")]
        [done], [waits] = ray.wait(both, timeout=20)
        gate.touch()
        assert {ray.get(done), ray.get(waits, timeout=60)} == {1, other.node_id}


def test_a_node_that_joins_gets_what_could_not_run_before() -> None:
    with cluster_of(num_cpus=1) as cluster:
        ref = where.options(resources={"late": 1}).remote()
        assert ray.wait([ref], timeout=0.3)[0] == []
        late = cluster.add_node(num_cpus=1, resources={"late": 1})
        assert ray.get(ref, timeout=30) == late.node_id


# --- actors ---------------------------------------------------------------------------------------


class _Log:
    def __init__(self) -> None:
        self.entries: list[tuple[str, int]] = []

    def add(self, who: str, number: int, _argument: Any = None) -> int:
        self.entries.append((who, number))
        return os.getpid()

    def read(self) -> list[tuple[str, int]]:
        return self.entries

    def where(self) -> int:
        return int(ray.get_runtime_context().get_node_id())

    def crash(self) -> None:
        os.kill(os.getpid(), signal.SIGKILL)


Log = ray.remote(_Log)


@ray.remote
def caller(log: Any, who: str, count: int) -> int:
    for number in range(count):
        # Every third argument is late, which must not let the next call pass.
        log.add.remote(who, number, identity.remote(number) if number % 3 == 0 else None)
    return len(ray.get(log.read.remote()))


def in_order(entries: list[tuple[str, int]], who: str) -> list[int]:
    return [number for name, number in entries if name == who]


def test_each_caller_is_served_in_its_order_on_every_node() -> None:
    with two_nodes() as (_cluster, other):
        log = Log.options(resources={"away": 0.1}).remote()
        assert ray.get(log.where.remote(), timeout=30) == other.node_id
        names = [f"caller {i}" for i in range(4)]
        refs = [
            caller.options(resources={"away": 0.1} if i % 2 else None).remote(log, name, 30)
            for i, name in enumerate(names)
        ]
        for number in range(30):
            log.add.remote("driver", number, identity.remote(0) if number % 3 == 0 else None)
        ray.get(refs, timeout=60)
        entries = ray.get(log.read.remote(), timeout=30)
        for name in (*names, "driver"):
            assert in_order(entries, name) == list(range(30)), name


def test_ten_actors_live_on_two_cpus() -> None:
    with cluster_of(num_cpus=2):
        logs = [Log.remote() for _ in range(10)]
        pids = ray.get([log.add.remote("driver", i) for i, log in enumerate(logs)], timeout=60)
        assert len(set(pids)) == 10
        assert ray.get(identity.remote(5), timeout=30) == 5, "the CPUs are free"


def test_calls_in_flight_of_an_actor_that_dies_fail_and_later_ones_too() -> None:
    with two_nodes():
        for away in (0, 0.1):
            log = Log.options(resources={"away": away}).remote()
            ray.get(log.read.remote(), timeout=30)
            refs = [log.crash.remote(), *(log.add.remote("x", i) for i in range(50))]
            for ref in (*refs, log.read.remote()):
                with pytest.raises(RayActorError, match="died"):
                    ray.get(ref, timeout=30)


def test_an_actor_can_be_killed_from_another_node_and_before_it_is_there() -> None:
    with two_nodes():

        @ray.remote(resources={"away": 0.1})
        def kill(log: Any) -> None:
            ray.kill(log)

        log = Log.remote()
        ray.get(log.read.remote(), timeout=30)
        ray.get(kill.remote(log), timeout=30)
        with pytest.raises(RayActorError):
            ray.get(log.read.remote(), timeout=30)
        for options in ({"num_cpus": 1}, {"resources": {"away": 0.1}}, {"resources": {"never": 1}}):
            early = Log.options(**options).remote()
            call = early.read.remote()
            ray.kill(early)
            with pytest.raises(RayActorError):
                ray.get(call, timeout=20)
        assert ray.get(identity.remote(1), timeout=30) == 1


def test_callers_on_every_node_learn_what_the_constructor_raised() -> None:
    class Broken:
        def __init__(self) -> None:
            raise ValueError("no such thing")

        def method(self) -> None:
            """Never called."""

    def why(actor: Any) -> str:
        with pytest.raises(RayActorError) as caught:
            ray.get(actor.method.remote(), timeout=30)
        return str(caught.value)

    with two_nodes():
        away: dict[str, Any] = {"resources": {"away": 0.1}}
        elsewhere = ray.remote(**away)(why)
        for options in ({}, away):
            broken = ray.remote(Broken).options(**options).remote()
            texts = [why(broken), *ray.get([elsewhere.remote(broken)] * 2, timeout=30), why(broken)]
            for text in texts:
                assert 'raise ValueError("no such thing")' in text


def test_the_name_of_an_actor_that_was_killed_on_another_node_is_free_at_once() -> None:
    with two_nodes():
        away: dict[str, Any] = {"resources": {"away": 0.1}, "name": "log"}
        for wait in (True, False, True, True):
            log = Log.options(**away).remote()
            if wait:
                ray.get(log.read.remote(), timeout=30)
            ray.kill(log)
            del log
            with pytest.raises(ValueError, match="log"):
                ray.get_actor("log")
        last = Log.options(**away).remote()
        ray.get(last.read.remote(), timeout=30)


def test_actors_without_handles_end_wherever_they_are() -> None:
    with two_nodes() as (cluster, _other):
        spies = [Spy(cluster.home, file["socket"]) for file in node_files(cluster.home)]
        try:

            def actors() -> list[int]:
                return [spy.stats()["actors"] for spy in spies]

            away: dict[str, Any] = {"resources": {"away": 0.1}}
            for _ in range(3):
                Log.remote()  # gone before it was there
                Log.options(**away).remote()
            used = [Log.remote(), Log.options(**away).remote()]
            ray.get([log.read.remote() for log in used], timeout=30)

            @ray.remote
            def borrows(logs: list[Any]) -> int:
                return len(ray.get([log.read.remote() for log in logs]))

            assert ray.get(borrows.options(**away).remote(used), timeout=30) == 2
            assert sum(actors()) >= 2
            del used
            wait_until(lambda: actors() == [0, 0], "no actor is left", 20)
        finally:
            for spy in spies:
                spy.close()
