"""What ``wait`` and ``get(timeout=...)`` answered in a method of an actor that restarts is what
they answer when the method runs again to bring it back, whatever is ready by then."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest

import regrow as ray
from regrow.cluster_utils import Cluster
from regrow.exceptions import GetTimeoutError


@ray.remote(num_cpus=0)
def released(fifo: str) -> str:
    """Ends when something is written there."""
    return Path(fifo).read_text()


@ray.remote(num_cpus=0)
def at_once() -> str:
    return "at once"


class Chooser:
    """Its state is what it was answered."""

    def __init__(self, pid: str) -> None:
        self.seen: list[Any] = []
        Path(pid).write_text(str(os.getpid()))

    def first(self, refs: list[Any]) -> list[Any]:
        """Waits for one of them, and looks at it."""
        ready, rest = ray.wait(refs, num_returns=1)
        self.seen.append((refs.index(ready[0]), len(rest), ray.get(ready[0])))
        return self.seen

    def many(self, refs: list[Any]) -> list[Any]:
        """How many are there now, and after the first."""
        now, _ = ray.wait(refs, num_returns=len(refs), timeout=0)
        some, _ = ray.wait(refs, num_returns=1)
        self.seen.append((len(now), len(some)))
        return self.seen

    def patient(self, ref: Any, timeout_s: float) -> list[Any]:
        try:
            self.seen.append(ray.get(ref, timeout=timeout_s))
        except GetTimeoutError:
            self.seen.append("late")
        return self.seen

    def state(self) -> list[Any]:
        return self.seen


class Blocked:
    """A task that goes on when it is told to."""

    def __init__(self, folder: Path) -> None:
        self.fifo = folder / "fifo"
        os.mkfifo(self.fifo)
        self.ref = released.remote(str(self.fifo))

    def release(self) -> None:
        self.fifo.write_text("released")
        assert ray.get(self.ref, timeout=30) == "released"


def chooser(folder: Path) -> Any:
    made = ray.remote(Chooser).options(num_cpus=0, max_restarts=-1)
    return made.remote(str(folder / "pid"))


def killed(actor: Any, folder: Path) -> list[Any]:
    """What it is after its process was killed: what it was."""
    before = ray.get(actor.state.remote(), timeout=30)
    pid = int((folder / "pid").read_text())
    os.kill(pid, signal.SIGKILL)
    after: list[Any] = ray.get(actor.state.remote(), timeout=60)
    assert int((folder / "pid").read_text()) != pid
    assert after == before
    return after


@pytest.fixture
def blocked(tmp_path: Path) -> Any:
    with Cluster(initialize_head=True, head_node_args={"num_cpus": 2}) as cluster:
        cluster.connect()
        blocked = Blocked(tmp_path)
        yield blocked
        ray.shutdown()


def test_which_was_ready_first_stays_so(blocked: Blocked, tmp_path: Path) -> None:
    actor = chooser(tmp_path)
    refs = [blocked.ref, at_once.remote()]
    ray.get(refs[1], timeout=30)
    assert ray.get(actor.first.remote(refs), timeout=30) == [(1, 1, "at once")]
    blocked.release()  # from now on the other one would be taken
    assert killed(actor, tmp_path) == [(1, 1, "at once")]
    assert ray.get(actor.first.remote(refs), timeout=30)[1:] == [(0, 1, "released")]
    assert killed(actor, tmp_path) == [(1, 1, "at once"), (0, 1, "released")]


def test_a_get_that_came_too_late_stays_so(blocked: Blocked, tmp_path: Path) -> None:
    actor = chooser(tmp_path)
    assert ray.get(actor.patient.remote([blocked.ref], 0.01), timeout=30) == ["late"]
    assert ray.get(actor.many.remote([blocked.ref, at_once.remote()]), timeout=30)[0] == "late"
    blocked.release()
    assert ray.get(actor.patient.remote([blocked.ref], 30), timeout=30)[-1] == ["released"]
    before = killed(actor, tmp_path)
    assert before[0] == "late"
    assert killed(actor, tmp_path) == before, "and another time"
