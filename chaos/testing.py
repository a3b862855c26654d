"""Clusters and faults for tests of users' own: what `regrow.chaos.pytest_plugin` hands out.

The test's process is the driver, so whatever kills drivers cannot be asked for here.
"""

from __future__ import annotations

import contextlib
import random
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import msgspec

from regrow.chaos.checkers.checker import Evidence
from regrow.chaos.checkers.log import Fencing, Lineage
from regrow.chaos.faults import need_proxy, plans, resolve
from regrow.chaos.history import History, Recorder
from regrow.chaos.nemeses import NEMESES
from regrow.chaos.nemeses.nemesis import Nemesis
from regrow.chaos.scenario import NemesisPlan, Scenario, ScenarioError
from regrow.chaos.stage import Stage, wait_until
from regrow.chaos.strikes import Strikes
from regrow.chaos.workloads.workload import Workload
from regrow.cluster_utils import Node

#: A fault that finds nothing to hit is tried so long.
HIT_S: Final = 10.0
GONE_S: Final = 10.0
PAUSE_S: Final = 5.0


class Wanted(msgspec.Struct, forbid_unknown_fields=True):
    """What ``@pytest.mark.chaos`` takes."""

    #: A fault or several; see `regrow.chaos.faults`.
    kill: str | tuple[str, ...] = ("node",)
    every_s: float = 3.0
    #: So many seeds from 0 on, or these.
    seeds: int | tuple[int, ...] = 1
    nodes: int = 3
    cpus: float = 2.0
    object_store_memory: int = 150 * 1024 * 1024
    #: A standby of the control store.
    standby: bool = False
    #: Postgres is reached through a proxy, for faults that need one; those of ``kill`` bring it.
    proxy: bool = False

    @classmethod
    def of(cls, arguments: Mapping[str, Any]) -> Wanted:
        """Raises ScenarioError for what makes no sense."""
        try:
            return msgspec.convert(dict(arguments), cls)
        except msgspec.ValidationError as error:
            raise ScenarioError(f"the marker chaos: {error}") from None

    def plans(self) -> list[NemesisPlan]:
        """Of the faults. Raises ScenarioError."""
        names = (self.kill,) if isinstance(self.kill, str) else self.kill
        found = plans(names, self.every_s)
        for plan in found:
            _spare_the_driver(plan.name)
        return found

    def all_seeds(self) -> Sequence[int]:
        """One by one."""
        return range(self.seeds) if isinstance(self.seeds, int) else self.seeds


def _spare_the_driver(name: str) -> None:
    if NEMESES[name].kills_driver:
        raise ScenarioError(
            f"{name} kills the driver, which here is the test itself; run a program of its own "
            "with: regrow chaos run --kill driver -- python PROGRAM.py"
        )


class ChaosCluster:
    """A private cluster, of which the process of the test is a driver."""

    def __init__(self, stage: Stage) -> None:
        #: For what is not here.
        self.stage = stage
        #: Held by whoever breaks or mends something.
        self.lock = threading.RLock()

    @property
    def home(self) -> Path:
        """Where it lives; ``regrow.init(address=...)`` of another process takes it."""
        return self.stage.home

    def nodes(self) -> list[Node]:
        """Those that run."""
        return self.stage.nodes()

    def rows(self, query: str, *arguments: Any) -> list[tuple[Any, ...]]:
        """What its log answers to a query: ``select name, attempt from regrow.tasks``."""
        return self.stage.rows(query, *arguments)


@contextlib.contextmanager
def cluster(wanted: Wanted, seed: int, folder: Path) -> Iterator[ChaosCluster]:
    """A cluster that this process has joined. Raises RuntimeError if something of it is left."""
    import regrow

    scenario = Scenario(
        "a test", "", name="test", nodes=wanted.nodes, cpus=wanted.cpus,
        object_store_memory=wanted.object_store_memory, standby=wanted.standby,
        proxy=wanted.proxy or need_proxy(wanted.plans()),
    )  # fmt: skip
    with Recorder(folder / "history.jsonl") as recorder:
        with Stage(scenario, seed, recorder, folder) as stage:
            regrow.init(address=str(stage.home))
            try:
                yield ChaosCluster(stage)
            finally:
                regrow.shutdown()
        with contextlib.suppress(TimeoutError):
            wait_until(lambda: not stage.left_behind(), GONE_S)
        if left := stage.left_behind():
            raise RuntimeError(f"left of the cluster: {'; '.join(left)}")


class Nemeses:
    """Faults by hand, each until ``heal`` or the end of the test. The victims follow the seed."""

    def __init__(self, cluster: ChaosCluster, seed: int) -> None:
        self._cluster = cluster
        self._rng = random.Random(f"{seed} by hand")
        self._struck: list[tuple[str, str, Nemesis]] = []

    def strike(self, name: str, **options: Any) -> str:
        """Inject any fault that scenarios know; what was hit.

        Raises ScenarioError for a fault or option that there is not, or that kills the driver;
        RuntimeError if there was nothing to hit within ten seconds.
        """
        known = resolve(name)
        _spare_the_driver(known)
        stage = self._cluster.stage
        if NEMESES[known].needs_proxy and stage.proxy is None:
            raise ScenarioError(
                f"{known} reaches Postgres through a proxy; ask for one with "
                "@pytest.mark.chaos(kill=[], proxy=True)"
            )
        nemesis = NEMESES[known](options)
        deadline = time.monotonic() + HIT_S
        with self._cluster.lock:
            nemesis.set_up(stage)
            while not (target := nemesis.inject(stage, self._rng)):
                if time.monotonic() > deadline:
                    raise RuntimeError(f"{known} found nothing to hit within {HIT_S:g} s")
                time.sleep(0.05)
            stage.recorder.fault(time.monotonic(), known, target)
            self._struck.append((known, target, nemesis))
        return target

    def heal(self) -> None:
        """Mend all that was broken by hand: start what was killed, open what was cut."""
        with self._cluster.lock:
            while self._struck:
                name, target, nemesis = self._struck.pop()
                nemesis.heal(self._cluster.stage)
                self._cluster.stage.recorder.heal(name, target)

    def kill_worker(self) -> str:
        """SIGKILL of a worker."""
        return self.strike("worker_crash")

    def kill_node(self, count: int = 1) -> str:
        """SIGKILL of nodes, all their processes; ``heal`` starts as many new ones."""
        return self.strike("node_crash", count=count)

    def kill_gcs(self) -> str:
        """SIGKILL of the control store; ``heal`` starts it again."""
        return self.strike("gcs_crash")

    def pause_node(self, seconds: float = PAUSE_S) -> str:
        """A node stands still for so long, by default past its lease; returns after that."""
        target = self.strike("node_pause")
        time.sleep(seconds)
        self.heal()
        return target

    def drain_node(self) -> str:
        """A node is asked to leave; ``heal`` waits until it has, and starts another."""
        return self.strike("node_drain")

    def partition(self) -> str:
        """A node is cut off from all others and the control store, both ways, until ``heal``."""
        return self.strike("cut_links", what="all", one_way=False)

    def restart_postgres(self) -> str:
        """The server ends as in a crash and is started again; returns after that."""
        target = self.strike("postgres_stop")
        self.heal()
        return target


class InBackground:
    """Faults that strike while the body of a ``with`` runs; all is healed at its end."""

    def __init__(self, cluster: ChaosCluster, wanted: Wanted, seed: int) -> None:
        self._cluster = cluster
        #: What has happened, a line each.
        self.news: list[str] = []
        self._strikes = Strikes(wanted.plans(), seed, self._note)
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="chaos", daemon=True)
        self._error: BaseException | None = None
        self._begun = time.monotonic()

    @property
    def fired(self) -> dict[str, int]:
        """How often each fault has struck."""
        return dict(self._strikes.fired)

    @property
    def took_s(self) -> float:
        """Since the body began."""
        return time.monotonic() - self._begun

    def __enter__(self) -> Self:
        self._strikes.set_up(self._cluster.stage, self._cluster.stage.recorder)
        self._begun = time.monotonic()
        self._strikes.begin()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:  # fmt: skip
        self._over.set()
        self._thread.join()
        with self._cluster.lock:
            self._strikes.end()
        if self._error is not None and error is None:
            raise self._error

    def _run(self) -> None:
        wait_s = 0.0
        try:
            while not self._over.wait(wait_s):
                with self._cluster.lock:
                    wait_s = self._strikes.step()
        except BaseException as error:  # raised where the body ends
            self._error = error

    def _note(self, kind: str, text: str) -> None:
        self.news.append(f"{self.took_s:6.1f} s  {kind:<5}  {text}")


def contradictions(cluster: ChaosCluster, seed: int) -> list[str]:
    """What the log says that cannot be, whatever the program: fenced commits, lost lineage."""
    stage = cluster.stage
    workload = Workload(None, seed, 1)
    evidence = Evidence(stage.scenario, workload, History([]), stage.rows, 0)
    return [finding for kind in (Fencing, Lineage) for finding in kind().check(evidence)]
