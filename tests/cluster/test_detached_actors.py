"""Detached actors outlive their creator, its node, and the whole cluster."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

TIMEOUT_S = 90.0

CLASS = """
import os, signal, sys
import regrow as ray

@ray.remote
class Ledger:
    def __init__(self, first):
        self.entries = [first]
    def enter(self, amount):
        self.entries.append(amount)
        return sum(self.entries)
    def large(self):
        return bytes(100_000)
"""


@pytest.fixture
def running(home: Path) -> Iterator[Path]:
    """A cluster that stays."""
    command("start", "--head", "--num-cpus", "2")
    yield home
    command("stop", "--force")


def command(*arguments: str) -> str:
    line = [sys.executable, "-m", "regrow.cli", *arguments]
    done = subprocess.run(line, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def drive(tmp_path: Path, text: str, code: int = 0, namespace: str = "shared") -> str:
    """Run a driver; what it printed."""
    program = tmp_path / "driver.py"
    start = f"ray.init(namespace={namespace!r}, logging_level='ERROR')\n"
    program.write_text(CLASS + start + textwrap.dedent(text))
    done = subprocess.run(
        [sys.executable, str(program)], capture_output=True, text=True, timeout=TIMEOUT_S,
        check=False,
    )  # fmt: skip
    assert done.returncode == code, done.stderr
    return done.stdout


CREATE = """
    made = Ledger.options(name="ledger", lifetime="detached", max_restarts=-1, {}).remote(1)
    print(ray.get([made.enter.remote(n) for n in range(2, 5)]))
    ray.get(made.large.remote())
"""
GO_ON = """
    ledger = ray.get_actor("ledger")
    print(ray.get(ledger.enter.remote({})))
"""


@pytest.mark.parametrize("options", ["", "checkpoint_every=2"])
def test_a_detached_actor_outlives_everything(
    running: Path, tmp_path: Path, kill_everything: Callable[[], None], options: str
) -> None:
    assert drive(tmp_path, CREATE.format(options)) == "[3, 6, 10]\n"
    assert drive(tmp_path, GO_ON.format(5)) == "15\n"
    # A driver of a named job calls it too: its calls are in a partition of their own.
    named = GO_ON.format(6) + "    os.kill(os.getpid(), signal.SIGKILL)\n"
    named = "    ray.shutdown(); ray.init(job='nightly', namespace='shared')\n" + named
    assert drive(tmp_path, named.replace("))\n", "), flush=True)\n"), -signal.SIGKILL) == "21\n"
    kill_everything()
    command("start", "--head", "--num-cpus", "2")
    assert drive(tmp_path, GO_ON.format(7)) == "28\n"
    assert '"state": "alive"' in command("list", "actors", "--json")


def test_a_detached_actor_is_there_until_it_is_killed(running: Path, tmp_path: Path) -> None:
    assert drive(tmp_path, CREATE.format("")) == "[3, 6, 10]\n"
    again = """
        try:
            Ledger.options(name="ledger", lifetime="detached").remote(1)
        except ValueError as error:
            print(error)
        got = Ledger.options(name="ledger", lifetime="detached", get_if_exists=True).remote(1)
        print(ray.get(got.enter.remote(0)))
        ray.kill(got)
        try:
            ray.get(got.enter.remote(0), timeout=30)
        except ray.exceptions.RayActorError:
            print("dead")
    """
    said = drive(tmp_path, again)
    assert "the name 'ledger' is taken in namespace 'shared' by a detached actor" in said
    assert said.splitlines()[1:] == ["10", "dead"]
    until = """
        import time
        for _ in range(1000):
            try:
                made = Ledger.options(name="ledger", lifetime="detached").remote(5)
                break
            except ValueError:
                time.sleep(0.02)
        print(ray.get(made.enter.remote(1)))
    """
    assert drive(tmp_path, until) == "6\n", "the name is free, and this is another actor"


def test_a_task_makes_a_detached_actor(running: Path, tmp_path: Path) -> None:
    program = """
        @ray.remote
        def make():
            made = Ledger.options(name="ledger", lifetime="detached").remote(ray.put(1))
            return ray.get(made.enter.remote(2))
        print(ray.get(make.remote()))
    """
    assert drive(tmp_path, program) == "3\n"
    assert drive(tmp_path, GO_ON.format(3)) == "6\n"


def test_it_needs_a_name() -> None:
    import regrow as ray

    class Nameless:
        pass

    with pytest.raises(ValueError, match="needs a name"):
        ray.remote(lifetime="detached")(Nameless)


@pytest.mark.parametrize("get_if_exists", [True, False])
def test_who_comes_while_a_detached_actor_is_made_finds_it(
    regrow_session: Any, monkeypatch: pytest.MonkeyPatch, get_if_exists: bool
) -> None:
    """Its maker has opened its job, and has not named it yet."""
    import regrow._actor as module
    from regrow._detached import create_detached

    class Named:
        def __init__(self, maker: int) -> None:
            self.maker = maker

        def who(self) -> int:
            return self.maker

    opened, waiting = threading.Event(), threading.Event()

    def slowly(client: Any, place: str, create: Callable[[Any], Any]) -> Any:
        def when_the_other_waits(maker: Any) -> Any:
            opened.set()
            assert waiting.wait(TIMEOUT_S)
            return create(maker)

        return create_detached(client, place, when_the_other_waits)

    def then_wait(seconds: float) -> None:
        waiting.set()
        time.sleep(seconds)

    actor = regrow_session.remote(Named).options(name="one", lifetime="detached")
    monkeypatch.setattr(module, "create_detached", slowly)
    makers: list[Any] = []
    first = threading.Thread(target=lambda: makers.append(actor.remote(1)))
    first.start()
    assert opened.wait(TIMEOUT_S)
    monkeypatch.setattr(module, "create_detached", create_detached)
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=time.monotonic, sleep=then_wait))
    try:
        if get_if_exists:
            found = actor.options(get_if_exists=True).remote(2)
        else:
            with pytest.raises(ValueError, match="is taken"):
                actor.remote(2)
            found = regrow_session.get_actor("one")
    finally:
        waiting.set()
        first.join()
    assert makers == [found]
    assert regrow_session.get(found.who.remote(), timeout=TIMEOUT_S) == 1
    regrow_session.kill(found)


def test_a_task_that_runs_again_does_not_take_the_detached_actor_of_another_for_its_own(
    regrow_session: Any, tmp_path: Path
) -> None:
    class Named:
        def who(self) -> int:
            return os.getpid()

    actor = regrow_session.remote(Named)

    def make(name: str, dies_after: bool, mark: str) -> str:
        first = not os.path.exists(mark)
        Path(mark).touch()
        if first and not dies_after:
            os.kill(os.getpid(), signal.SIGKILL)
        try:
            handle = actor.options(name=name, lifetime="detached").remote()
        except ValueError:
            return "taken"
        if first:
            os.kill(os.getpid(), signal.SIGKILL)
        return str(handle._ray_actor_id.hex())

    again = regrow_session.remote(max_retries=1)(make)
    theirs = actor.options(name="theirs", lifetime="detached").remote()
    assert "who" in dir(theirs)
    refs = [
        again.remote("theirs", False, str(tmp_path / "one")),
        again.remote("ours", True, str(tmp_path / "two")),
    ]
    other, own = regrow_session.get(refs, timeout=TIMEOUT_S)
    assert other == "taken"
    ours = regrow_session.get_actor("ours")
    assert own == ours._ray_actor_id.hex()
    for handle in (theirs, ours):
        regrow_session.kill(handle)
