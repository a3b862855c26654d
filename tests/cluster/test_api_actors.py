"""Ray's semantics of actors, through a real cluster on this machine."""

from __future__ import annotations

import asyncio
import os
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import regrow as ray
from regrow.exceptions import ActorDiedError, RayActorError, RayTaskError, UnsupportedOptionError

TIMEOUT_S = 30.0


@pytest.fixture(scope="module", autouse=True)
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    patch = pytest.MonkeyPatch()
    patch.setenv("REGROW_HOME", str(tmp_path_factory.mktemp("home")))
    ray.init(num_cpus=2, object_store_memory=100 << 20)
    yield
    ray.shutdown()
    patch.undo()


def get(refs: Any) -> Any:
    return ray.get(refs, timeout=TIMEOUT_S)


def until(fits: Any) -> None:
    deadline = time.monotonic() + TIMEOUT_S
    while not fits():
        assert time.monotonic() < deadline, "it did not come about in time"
        time.sleep(0.01)


class _Counter:
    """Counts."""

    def __init__(self, start: int = 0) -> None:
        self.value = start
        self.calls: list[Any] = []

    def add(self, n: int = 1) -> int:
        self.value += n
        return self.value

    def note(self, item: Any) -> None:
        self.calls.append(item)

    def noted(self) -> list[Any]:
        return self.calls

    def pid(self) -> int:
        return os.getpid()

    def fail(self) -> None:
        raise KeyError("from the actor")

    def me(self) -> Any:
        return ray.get_runtime_context().current_actor

    def leave(self) -> None:
        ray.exit_actor()

    @ray.method(num_returns=2)
    def pair(self) -> tuple[int, int]:
        return self.value, -self.value

    def spread(self, other: Any, count: int) -> list[int]:
        return ray.get([other.add.remote() for _ in range(count)])


Counter = ray.remote(_Counter)


def test_calls_run_in_the_order_of_their_caller() -> None:
    counter = Counter.remote(10)
    refs = [counter.add.remote() for _ in range(200)]
    assert get(refs) == list(range(11, 211))


def test_a_call_that_waits_for_its_argument_keeps_its_place(tmp_path: Path) -> None:
    gate = tmp_path / "gate"

    @ray.remote
    def slow() -> str:
        while not gate.exists():
            time.sleep(0.01)
        return "slow"

    counter = Counter.remote()
    counter.note.remote("first")
    counter.note.remote(slow.remote())
    last = counter.note.remote("last")
    assert ray.wait([last], timeout=0.2) == ([], [last])
    gate.touch()
    assert get(counter.noted.remote()) == ["first", "slow", "last"]


def test_handles_may_be_passed_around_and_stored() -> None:
    counter, other = Counter.remote(), Counter.remote()

    @ray.remote
    def use(handles: list[Any]) -> int:
        return int(ray.get(handles[0].add.remote(5)))

    assert get(use.remote([counter])) == 5
    assert get(other.spread.remote(counter, 3)) == [6, 7, 8]
    get(other.note.remote(counter))
    [stored] = get(other.noted.remote())
    assert get(stored.add.remote()) == 9
    assert stored == counter
    assert get(get(counter.me.remote()).add.remote()) == 10


def test_an_actor_holds_references_and_large_state() -> None:
    keeper = Counter.remote()
    ref = ray.put(np.arange(100_000))
    get(keeper.note.remote([ref]))
    del ref
    [[kept]] = get(keeper.noted.remote())
    assert get(kept).sum() == 4999950000


def test_errors_of_a_method_leave_the_actor_alive() -> None:
    counter = Counter.remote()
    with pytest.raises(KeyError, match="from the actor") as caught:
        get(counter.fail.remote())
    assert isinstance(caught.value, RayTaskError)
    assert get(counter.add.remote()) == 1


def test_a_failing_constructor_fails_the_calls() -> None:
    class Broken:
        def __init__(self) -> None:
            raise ValueError("no such thing")

        def method(self) -> None:
            """Never called."""

    broken = ray.remote(Broken).remote()
    with pytest.raises(RayActorError, match="constructor"):
        get(broken.method.remote())


def test_a_killed_actor_is_dead_for_everybody() -> None:
    counter = Counter.remote()
    pid = get(counter.pid.remote())
    ray.kill(counter)
    with pytest.raises(ActorDiedError, match="killed"):
        get(counter.add.remote())
    until(lambda: not Path(f"/proc/{pid}").exists())
    with pytest.raises(ValueError, match="actors only"):
        ray.kill(3)  # type: ignore[arg-type]


def test_an_actor_whose_process_dies_says_so() -> None:
    counter = Counter.remote()
    os.kill(get(counter.pid.remote()), 9)
    with pytest.raises(ActorDiedError, match="died"):
        get(counter.add.remote())


@pytest.mark.parametrize("how", ["exit_actor", "__ray_terminate__"])
def test_an_actor_may_end_in_good_order(how: str) -> None:
    counter = Counter.remote()
    pid = get(counter.pid.remote())
    before = counter.add.remote()
    if how == "exit_actor":
        with pytest.raises(ActorDiedError, match="exit_actor"):
            get(counter.leave.remote())
    else:
        get(counter.__ray_terminate__.remote())
    assert get(before) == 1
    until(lambda: not Path(f"/proc/{pid}").exists())
    with pytest.raises(ActorDiedError):
        get(counter.add.remote())


def test_an_actor_ends_with_its_last_handle() -> None:
    counter, other = Counter.remote(), Counter.remote()
    pid = get(counter.pid.remote())
    get(other.note.remote([counter]))
    last = counter.add.remote()
    del counter
    assert get(last) == 1
    assert get(get(other.noted.remote())[0][0].add.remote()) == 2
    assert Path(f"/proc/{pid}").exists()
    ray.kill(other)
    until(lambda: not Path(f"/proc/{pid}").exists())


def test_named_actors() -> None:
    counter = Counter.options(name="tally").remote(3)
    assert get(ray.get_actor("tally").add.remote()) == 4
    with pytest.raises(ValueError, match="tally"):
        Counter.options(name="tally").remote()
    same = Counter.options(name="tally", get_if_exists=True).remote()
    assert get(same.add.remote()) == 5
    with pytest.raises(ValueError, match="nobody"):
        ray.get_actor("nobody")
    with pytest.raises(ValueError, match="elsewhere"):
        ray.get_actor("tally", namespace="elsewhere")
    other = Counter.options(name="tally", namespace="elsewhere").remote(100)
    assert get(ray.get_actor("tally", "elsewhere").add.remote()) == 101

    @ray.remote
    def find() -> int:
        return int(ray.get(ray.get_actor("tally").add.remote()))

    assert get(find.remote()) == 6
    ray.kill(counter)
    until(lambda: not _exists("tally"))
    again = Counter.options(name="tally").remote()
    assert get(again.add.remote()) == 1
    del other, same


def test_a_handle_by_name_knows_the_methods() -> None:
    class Pair:
        def __init__(self, path: str) -> None:
            until(Path(path).exists)

        @ray.method(num_returns=2)
        def both(self) -> tuple[int, int]:
            return 1, 2

        def me(self) -> Any:
            return ray.get_runtime_context().current_actor

    with tempfile.TemporaryDirectory() as folder:
        gate = Path(folder, "gate")
        first = ray.remote(Pair).options(name="pair").remote(str(gate))
        pair = ray.get_actor("pair")  # while its constructor runs
        with pytest.raises(AttributeError, match="nosuch"):
            pair.nosuch  # noqa: B018
        one, two = pair.both.remote()
        gate.touch()
        assert get([one, two]) == [1, 2]
    itself = get(pair.me.remote())
    assert len(itself.both.remote()) == 2
    with pytest.raises(AttributeError, match="nosuch"):
        itself.nosuch  # noqa: B018
    del first


def _exists(name: str) -> bool:
    try:
        ray.get_actor(name)
    except ValueError:
        return False
    return True


def test_an_actor_knows_the_name_it_was_given() -> None:
    class Named:
        def __init__(self) -> None:
            self.early = ray.get_runtime_context().get_actor_name()

        def names(self) -> list[str | None]:
            return [self.early, ray.get_runtime_context().get_actor_name()]

    remote = ray.remote(Named)
    assert get(remote.remote().names.remote()) == ["", ""]
    named = remote.options(name="somebody", namespace="elsewhere").remote()
    assert get(named.names.remote()) == ["somebody", "somebody"]
    assert ray.get_runtime_context().get_actor_name() is None


def test_an_instance_that_can_be_called_is_called_through_its_handle() -> None:
    class Model:
        def __call__(self, x: int) -> int:
            return x * 2

    model = ray.remote(Model).remote()
    assert get(model.__call__.remote(4)) == 8
    with pytest.raises(TypeError, match=r"Model\.__call__\(\): missing .* 'x'"):
        model.__call__.remote()
    with pytest.raises(AttributeError, match="__call__"):
        Counter.remote().__call__.remote()


def test_methods_may_return_several_values() -> None:
    counter = Counter.remote(4)
    a, b = counter.pair.remote()
    assert get([a, b]) == [4, -4]
    whole = counter.pair.options(num_returns=1).remote()
    assert get(whole) == (4, -4)


def test_actors_hold_their_resources() -> None:
    cpus = ray.cluster_resources()["CPU"]
    until(lambda: ray.available_resources().get("CPU", 0) == cpus)  # actors of before are gone
    counter = Counter.options(num_cpus=1).remote()
    get(counter.add.remote())
    until(lambda: ray.available_resources().get("CPU", 0) == cpus - 1)
    del counter
    until(lambda: ray.available_resources().get("CPU", 0) == cpus)


def test_more_actors_than_cpus() -> None:
    counters = [Counter.remote(i) for i in range(10)]
    assert get([counter.add.remote() for counter in counters]) == list(range(1, 11))
    assert len(set(get([counter.pid.remote() for counter in counters]))) == 10


def test_what_actors_refuse() -> None:
    with pytest.raises(TypeError, match=r"Counter\.remote\(\)"):
        Counter()
    counter = Counter.remote()
    with pytest.raises(TypeError, match=r"object\.add\.remote\(\)"):
        counter.add()
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        counter.nothing.remote()
    with pytest.raises(TypeError, match=r"missing|unexpected|too many"):
        Counter.remote(1, 2, 3)
    with pytest.raises(UnsupportedOptionError):
        Counter.options(max_pending_calls=3)  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="non-actor"):
        ray.exit_actor()


# --- several calls at once ------------------------------------------------------------------------


class _Meeting:
    """Its threads wait for each other."""

    def __init__(self, size: int) -> None:
        self.barrier = threading.Barrier(size)

    def meet(self) -> str:
        self.barrier.wait(TIMEOUT_S)
        return ray.get_runtime_context().get_task_id() or ""

    def submit(self, x: int) -> int:
        self.barrier.wait(TIMEOUT_S)
        return int(ray.get(double.remote(x)))


@ray.remote
def double(x: int) -> int:
    return x * 2


def test_a_threaded_actor_runs_calls_at_once() -> None:
    meeting = ray.remote(max_concurrency=3)(_Meeting).remote(3)
    refs = [meeting.meet.remote() for _ in range(9)]
    assert get(refs) == [ref.task_id().hex() for ref in refs]
    assert get([meeting.submit.remote(i) for i in range(6)]) == [0, 2, 4, 6, 8, 10]


class _Relay:
    """Asynchronous: calls wait for others of the same actor."""

    def __init__(self) -> None:
        self.event = asyncio.Event()
        self.most = self.now = 0

    async def wait(self) -> str:
        self.now += 1
        self.most = max(self.most, self.now)
        await self.event.wait()
        self.now -= 1
        return ray.get_runtime_context().get_task_id() or ""

    async def open(self) -> None:
        self.event.set()

    def plain(self) -> int:
        return self.most

    async def nested(self, x: int) -> int:
        return int(await double.remote(x))

    async def fail(self) -> None:
        raise KeyError("async")

    async def leave(self) -> None:
        ray.exit_actor()


Relay = ray.remote(_Relay)


def test_calls_of_an_asynchronous_actor_interleave() -> None:
    relay = Relay.remote()
    waiting = [relay.wait.remote() for _ in range(100)]
    assert ray.wait(waiting, timeout=0.1)[0] == []
    get(relay.open.remote())
    assert get(waiting) == [ref.task_id().hex() for ref in waiting]
    assert get(relay.plain.remote()) == 100
    assert get([relay.nested.remote(i) for i in range(5)]) == [0, 2, 4, 6, 8]
    with pytest.raises(KeyError, match="async"):
        get(relay.fail.remote())


def test_asynchronous_calls_are_limited_by_max_concurrency() -> None:
    relay = Relay.options(max_concurrency=2).remote()
    waiting = [relay.wait.remote() for _ in range(6)]
    assert ray.wait(waiting, timeout=0.1)[0] == []
    opening = relay.open.remote()  # it has to wait for a place that never comes
    assert ray.wait([opening], timeout=0.2)[0] == []
    ray.kill(relay)
    with pytest.raises(ActorDiedError):
        get(opening)


def test_an_asynchronous_actor_may_end_itself() -> None:
    relay = Relay.remote()
    waiting = relay.wait.remote()
    with pytest.raises(ActorDiedError, match="exit_actor"):
        get(relay.leave.remote())
    with pytest.raises(ActorDiedError):
        get(waiting)
