"""What `regrow demo --kill` does to a training that runs, other than to kill a node of it.

It decides which processes die, when, how it is told that somebody has noticed, and what has to be
started again by hand. Whether the result is right is `regrow.demo`'s to say.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from regrow import _bootstrap, _daemons, _home
from regrow.demo_driver import DONE, JOB, SUBMITTED
from regrow.demo_report import Figures, History
from regrow.gcs import embedded

if TYPE_CHECKING:
    from regrow.demo_model import Floats
    from regrow.demo_training import Plan, Step

#: Faults in the run of this very process, which goes on.
HERE: Final = ("worker", "actor", "gcs", "postgres")
#: Faults that end the driver, which has to be run again.
AGAIN: Final = ("driver", "everything")

POLL_S: Final = 0.005
NOTICED_WITHIN_S: Final = 60.0
#: What has not ended by then of a step, the worker that stands still has been given.
GIVEN_WITHIN_S: Final = 1.0
DRIVER_S: Final = 120.0


@dataclass
class Scene:
    """The cluster in which the training runs, and how nodes are started in it."""

    cluster: Any
    workers: list[Any]
    start_nodes: Callable[[], list[Any]]
    say: Callable[[str], None]

    @property
    def home(self) -> Path:
        """Where the cluster lives."""
        return Path(self.cluster.home)

    def history(self) -> History:
        """Return a new connection to the log: an older one may have died with Postgres."""
        running = _home.read_gcs(self.home)
        assert running is not None, "a control store runs"
        return History(running.postgres_url)

    def postgres_pid(self) -> int:
        """Return the pid of the server; 0: none accepts connections."""
        server = embedded.status(_home.postgres_directory(self.home))
        return server.pid if server is not None else 0

    def gcs_pid(self) -> int:
        """Return the pid of the control store that leads."""
        running = _home.read_gcs(self.home)
        return running.pid if running is not None else 0


@dataclass
class Blow:
    """A kill and what it cost so far."""

    scene: Scene
    at: datetime | None = None
    what: str = ""
    sign: str = ""
    noticed_s: float | None = None
    recovered_s: float | None = None
    since: str = "the kill"
    _begun: float = 0.0
    _watching: list[threading.Thread] = field(default_factory=list)

    def strike(self, pids: list[int], what: str) -> None:
        """SIGKILL these processes."""
        with self.scene.history() as history:
            self.at = history.now()
        self.what = what
        self._begun = time.monotonic()
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def watch(self, noticed: Callable[[], bool], sign: str) -> None:
        """Note when somebody has noticed, while the run goes on."""
        self.sign = sign

        def poll() -> None:
            while time.monotonic() < self._begun + NOTICED_WITHIN_S:
                if noticed():
                    self.noticed_s = time.monotonic() - self._begun
                    return
                time.sleep(POLL_S)

        thread = threading.Thread(target=poll, name="regrow-demo-watch", daemon=True)
        thread.start()
        self._watching.append(thread)

    def await_noticed(self) -> None:
        """Wait until it was noticed, or until nobody may be expected to any more."""
        for thread in self._watching:
            thread.join()

    def count_from_now(self, since: str) -> None:
        """What follows is started by hand: recovery counts from here."""
        self._begun = time.monotonic()
        self.since = since

    def step_done(self) -> None:
        """A step of the training is complete; the first one after the kill is the one it hit."""
        if self.at is not None and self.recovered_s is None:
            self.recovered_s = time.monotonic() - self._begun

    def figures(self, tasks: int) -> Figures:
        """Return what it cost, ``tasks`` being those of a run without a fault."""
        self.await_noticed()
        assert self.at is not None, "it was struck"
        assert self.recovered_s is not None, "the training has ended"
        with self.scene.history() as history:
            attempts, replays = history.run_again(self.at)
        return Figures(
            self.noticed_s, self.sign, self.recovered_s, self.since, attempts, replays, tasks
        )


# Faults that the driver lives through


def train_here(
    plan: Plan, scene: Scene, kind: str, on_step: Callable[[], None]
) -> tuple[Any, Blow]:
    """Train in this process while processes of this kind are killed; the weights, and the blow."""
    import regrow as ray
    from regrow import demo_training

    blow = Blow(scene)
    stopped: list[int] = []
    stopped_on = 0
    if kind == "gcs":
        _bootstrap.start_standby(scene.home)

    def prepare(step: Step) -> None:
        nonlocal stopped_on
        if kind == "worker" and step.epoch == plan.kill_epoch:
            with scene.history() as history:
                made = history.made_on([ref.task_id() for ref in step.shards])
            # Tasks go to where their shard is; what it is given now it cannot end.
            node = max(scene.workers, key=lambda node: made[node.node_id])
            stopped_on = node.node_id
            stopped.extend(_daemons.workers_of(node.pid))
            for pid in stopped:
                os.kill(pid, signal.SIGSTOP)

    def strike(step: Step) -> None:
        if step.epoch != plan.kill_epoch or blow.at is not None:
            return
        if kind == "worker":
            count = len(step.gradients)
            done, _ = ray.wait(step.gradients, num_returns=count, timeout=GIVEN_WITHIN_S)
            if len(done) == count:
                return  # it was given nothing; of the next step, perhaps
        _strike(blow, kind, stopped, stopped_on)
        scene.say(f"step {step.number(plan)}: {blow.what} SIGKILLed")

    def stepped() -> None:
        blow.step_done()
        on_step()

    weights: Floats = ray.get(demo_training.train(plan, prepare, strike, stepped)).copy()
    return weights, blow


def _strike(blow: Blow, kind: str, stopped: list[int], stopped_on: int) -> None:
    scene = blow.scene
    if kind == "worker":
        blow.strike(stopped, f"{_processes(stopped)} of node {stopped_on}, with a task,")
        blow.watch(lambda: not any(map(_exists, stopped)), "its node has taken note of its end")
    elif kind == "actor":
        victims = _daemons.workers_of(scene.cluster.head_node.pid)
        blow.strike(victims, f"the parameter server ({_processes(victims)})")
        blow.watch(lambda: not any(map(_exists, victims)), "its node has taken note of its end")
    elif kind == "gcs":
        leader = scene.gcs_pid()
        blow.strike([leader], f"the control store (process {leader})")
        blow.watch(lambda: scene.gcs_pid() not in (0, leader), "the standby leads")
    else:
        server = scene.postgres_pid()
        blow.strike([server], f"Postgres (process {server})")
        blow.watch(lambda: scene.postgres_pid() not in (0, server), "another server is ready")


def _exists(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


def _processes(pids: list[int]) -> str:
    return f"worker process {pids[0]}" if len(pids) == 1 else f"{len(pids)} worker processes"


# Faults that it does not live through


def train_again(
    plan: Plan, scene: Scene, kind: str, on_step: Callable[[], None]
) -> tuple[Any, Blow]:
    """Train in a driver of its own, which is killed, alone or with everything, and run again."""
    import regrow as ray

    ray.shutdown()
    blow = Blow(scene)
    hit = plan.kill_epoch * plan.steps + 1
    file = scene.home / "weights.npy"
    with _driver(scene.home, file) as first:
        for said, step in _said(first):
            if (said, step) == (SUBMITTED, hit):
                break
            if said == DONE:
                on_step()
        if kind == "driver":
            blow.strike([first.pid], "the driver")
            blow.watch(lambda: _job_status(scene) != "running", "its job is marked")
            first.wait()
            blow.await_noticed()
        else:
            _strike_everything(blow, first.pid)
            first.wait()
    scene.say(f"step {hit}: {blow.what} SIGKILLed")
    if kind == "driver":
        blow.count_from_now("the second start of the program")
    else:
        blow.count_from_now("`regrow start`")
        scene.start_nodes()
    with _driver(scene.home, file) as second:
        for said, step in _said(second):
            if said == DONE and step >= hit:
                blow.step_done()
                on_step()
        if second.wait():
            raise RuntimeError(
                f"the driver that was run again ended with status {second.returncode}; its last "
                "words are above"
            )
    return np.load(file), blow


def _strike_everything(blow: Blow, driver: int) -> None:
    scene = blow.scene
    nodes = scene.cluster.list_all_nodes()
    daemons = [found.pid for found in _daemons.find(scene.home)]
    server = scene.postgres_pid()
    sessions = {os.getsid(pid) for pid in [*daemons, server, *(node.pid for node in nodes)]}
    members = _daemons.session_members(sessions)
    blow.strike([driver, *members], f"everything ({len(members) + 1} processes, Postgres too)")
    _daemons.kill_sessions(sessions)
    for node in nodes:
        scene.cluster.remove_node(node, allow_graceful=False)


def _job_status(scene: Scene) -> str:
    with scene.history() as history:
        return history.job_status(JOB)


@contextlib.contextmanager
def _driver(home: Path, file: Path) -> Iterator[subprocess.Popen[str]]:
    """The training as a program; it is gone at the end, and would end by itself if it hung."""
    command = [sys.executable, "-m", "regrow.demo_driver", str(home), str(file)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        timer = threading.Timer(DRIVER_S, process.kill)
        timer.start()
        try:
            yield process
        finally:
            timer.cancel()
            process.kill()


def _said(process: subprocess.Popen[str]) -> Iterator[tuple[str, int]]:
    assert process.stdout is not None
    for line in process.stdout:
        word, _, number = line.partition(" ")
        if word in (SUBMITTED, DONE):
            yield word, int(number)
