"""How actors end, and what becomes of their calls, their callers and their names."""

from __future__ import annotations

import asyncio
import os
import re
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import regrow as ray
from regrow.exceptions import ActorDiedError, RayTaskError

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


class _Fragile:
    """Counts until it crashes."""

    def __init__(self) -> None:
        self.value = 0

    def inc(self) -> int:
        self.value += 1
        return self.value

    def crash(self) -> None:
        os._exit(1)


class _AsyncFragile(_Fragile):
    async def inc(self) -> int:  # type: ignore[override]
        return super().inc()

    async def crash(self) -> None:  # type: ignore[override]
        os._exit(1)


Fragile = ray.remote(_Fragile)
AsyncFragile = ray.remote(_AsyncFragile)


@pytest.mark.parametrize("cls", [Fragile, AsyncFragile])
def test_calls_that_ended_before_the_actor_crashed_have_their_results(cls: Any) -> None:
    for _ in range(5):
        actor = cls.remote()
        get(actor.__ray_ready__.remote())
        ended = [actor.inc.remote() for _ in range(5)]
        crash = actor.crash.remote()
        # More is written to the process when it is dead, perhaps before its last words are read.
        late = [actor.inc.remote() for _ in range(50)]
        assert get(ended) == [1, 2, 3, 4, 5]
        for ref in (crash, *late):
            with pytest.raises(ActorDiedError):
                get(ref)


class _Broken:
    def __init__(self, _argument: Any = None) -> None:
        raise ValueError("no such thing")

    def method(self) -> None:
        """Never called."""


Broken = ray.remote(_Broken)


@ray.remote
def call_it(actor: Any) -> str:
    with pytest.raises(ActorDiedError) as caught:
        get(actor.method.remote())
    return str(caught.value)


def test_every_caller_of_an_actor_learns_what_its_constructor_raised() -> None:
    broken = Broken.remote()
    for _ in range(2):
        with pytest.raises(ActorDiedError, match="no such thing") as caught:
            get(broken.method.remote())
        assert 'raise ValueError("no such thing")' in str(caught.value)
        assert "_execute.py" not in str(caught.value)
    assert "ValueError: no such thing" in get(call_it.remote(broken))


def test_an_actor_whose_argument_is_an_error_says_which() -> None:
    @ray.remote
    def fail() -> None:
        raise KeyError("from the argument")

    broken = Broken.remote(fail.remote())
    with pytest.raises(ActorDiedError, match="from the argument"):
        get(broken.method.remote())


class _Leaver:
    def __init__(self, how: str = "") -> None:
        self.leave(how)

    def leave(self, how: str) -> None:
        if how == "exit_actor":
            ray.actor.exit_actor()
        elif how:
            sys.exit(3 if how == "sys.exit(3)" else None)

    def pid(self) -> int:
        return os.getpid()


class _AsyncLeaver(_Leaver):
    async def pid(self) -> int:  # type: ignore[override]
        return os.getpid()


Leavers: list[Any] = [
    ray.remote(_Leaver),
    ray.remote(max_concurrency=2)(_Leaver),
    ray.remote(_AsyncLeaver),
]
HOWS = ["exit_actor", "sys.exit(3)", "sys.exit(None)"]


@pytest.mark.parametrize("cls", Leavers)
@pytest.mark.parametrize("how", HOWS)
def test_an_actor_that_ends_itself_is_dead_for_all_its_callers_and_says_how(
    cls: Any, how: str
) -> None:
    actor = cls.remote()
    pid = get(actor.pid.remote())
    refs = [actor.leave.remote(how)]
    if cls is Leavers[0]:  # of the others two calls run at once
        refs.append(actor.pid.remote())
    for ref in refs:
        with pytest.raises(ActorDiedError, match=re.escape(how)):
            get(ref)
    with pytest.raises(ActorDiedError, match=re.escape(how)):
        get(actor.pid.remote())
    until(lambda: not Path(f"/proc/{pid}").exists())


@pytest.mark.parametrize("how", HOWS)
def test_an_actor_may_end_itself_in_its_constructor(how: str) -> None:
    with pytest.raises(ActorDiedError, match=re.escape(how)):
        get(Leavers[0].remote(how).pid.remote())


@ray.remote
def leave_as_a_task() -> None:
    ray.actor.exit_actor()


def test_only_actors_can_exit_as_actors() -> None:
    with pytest.raises(TypeError, match="non-actor"):
        ray.actor.exit_actor()
    with pytest.raises(TypeError, match="non-actor"):
        get(leave_as_a_task.remote())


@pytest.mark.parametrize("cls", [Fragile, AsyncFragile])
def test_a_name_is_nobodys_once_its_actor_was_killed_or_said_to_be_dead(cls: Any) -> None:
    for how in ["kill", "crash", "exit_actor", "kill and forget", "kill at once"] * 3:
        actor = cls.options(name="tally").remote()
        if how != "kill at once":
            assert get(actor.inc.remote()) == 1
        if how.startswith("kill"):
            ray.kill(actor)
        else:
            call = actor.crash if how == "crash" else actor.__ray_call__
            with pytest.raises(ActorDiedError):
                get(call.remote() if how == "crash" else call.remote(_leave))
        if how == "kill and forget":
            del actor
        with pytest.raises(ValueError, match="tally"):
            ray.get_actor("tally")
    again = cls.options(name="tally").remote()
    assert get(ray.get_actor("tally").inc.remote()) == 1
    ray.kill(again)


def _leave(_actor: Any) -> None:
    ray.actor.exit_actor()


@ray.remote
def wait_for(path: str) -> None:
    until(Path(path).exists)


@pytest.mark.parametrize("how", ["kill", "crash"])
def test_calls_that_wait_for_an_argument_fail_with_their_actor(tmp_path: Path, how: str) -> None:
    actor = Fragile.remote()
    assert get(actor.inc.remote()) == 1
    gate = tmp_path / "gate"
    never = wait_for.remote(str(gate))
    waiting = [actor.__ray_call__.remote(_take, never) for _ in range(3)]
    behind = actor.inc.remote()
    if how == "kill":
        ray.kill(actor)
    else:
        ray.wait([crash_it.remote(actor)], timeout=TIMEOUT_S)  # another caller: it does not queue
    try:
        for ref in [*waiting, behind, actor.__ray_call__.remote(_take, never)]:
            with pytest.raises(ActorDiedError):
                ray.get(ref, timeout=5)
    finally:
        gate.touch()
    get(never)


@ray.remote
def crash_it(actor: Any) -> None:
    with pytest.raises(ActorDiedError):
        get(actor.crash.remote())


def _take(_actor: Any, _argument: Any) -> None:
    """Never called."""


class _Canceller:
    async def wait(self) -> None:
        await asyncio.sleep(1000)

    async def cancel_all(self) -> None:
        while len(asyncio.all_tasks()) < 3:
            await asyncio.sleep(0.01)
        for task in asyncio.all_tasks() - {asyncio.current_task()}:
            task.cancel()


def test_calls_of_an_asynchronous_actor_that_cancels_them_before_they_begin_fail() -> None:
    actor = ray.remote(max_concurrency=2)(_Canceller).remote()
    begun = actor.wait.remote()
    cancelling = actor.cancel_all.remote()
    queued = actor.wait.remote()  # two run at once
    get(cancelling)
    for ref in (begun, queued):
        with pytest.raises(RayTaskError, match="CancelledError"):
            get(ref)
    get(actor.__ray_ready__.remote())
