"""Which faults a seed has, and when they strike.

Swarm testing (Groce et al., ISSTA'12): each seed enables a random subset, so that some seeds have
much of one thing. What strikes, and when, is drawn before anything runs, each fault with a number
from which it draws its target: so one can be left out of a run, and the others stay what they were.
In the end all of them stop, and everything heals.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable
from typing import TYPE_CHECKING, Final

from msgspec import Struct

from regrow.chaos.simulation.nemeses import Nemeses

if TYPE_CHECKING:
    from regrow.chaos.simulation.cluster import Cluster

#: Faults end after so much virtual time, milliseconds.
FAULTS_MS: Final = 4_000.0

#: Mean time between two faults of a kind that strikes, milliseconds.
INTERVALS: Final = {
    "cut_links": 80.0, "node_crash": 120.0, "node_pause": 150.0, "worker_crash": 15.0,
    "gcs_crash": 150.0, "session_break": 50.0, "log_break": 40.0, "postgres_stop": 200.0,
    "driver_break": 100.0, "driver_kill": 150.0, "gcs_pause": 200.0, "drain": 150.0,
}  # fmt: skip
#: What is so as long as faults last.
LASTING: Final = ("slow_links", "slow_commits")
#: What happens by chance, each time that it can.
CHANCES: Final = {
    "lost_answers": 0.03, "spill_fails": 0.2, "storage_fails": 0.3, "worker_fails_to_start": 0.2,
}  # fmt: skip
#: Every kind, as they are drawn and reported.
KINDS: Final = (*LASTING, *CHANCES, *INTERVALS)
#: Not of every seed: ``draw`` says of which.
_SPECIAL: Final = ("gcs_pause", "driver_kill")
#: Those that excuse no error: whatever they hit is done again, or tried again.
_HARMLESS: Final = frozenset({"slow_links", "cut_links", "drain", "storage_fails"})
#: Of a kind strike so many in a seed at most.
_MOST: Final = 6
_MOST_OF: Final = {"worker_crash": 24, "log_break": 24, "drain": 4}


class Fault(Struct, frozen=True):
    """One that strikes."""

    at_ms: float
    kind: str
    #: Seed of what it draws.
    draw: str


class Plan(Struct):
    """The faults of a seed."""

    enabled: list[str]
    #: Those that strike, in time.
    faults: list[Fault] = []
    #: Nothing that was drawn excuses an error.
    harmless: bool = False
    #: The drivers' jobs have names, and are resumed after their drivers were killed.
    named_jobs: bool = False
    #: There are two control stores, one of which leads.
    standby: bool = False
    #: Large results that would take longer to be made again are stored.
    max_replay_s: float = 60.0


def draw(seed: int, only: Iterable[str] | None = None) -> Plan:
    """One seed in eight has none. ``only``: these kinds, in every seed."""
    rng = random.Random(f"faults {seed}")
    share = 0.0 if rng.random() < 0.125 else rng.choice([0.1, 0.25, 0.5, 0.8])
    plan = Plan([kind for kind in KINDS if kind not in _SPECIAL and rng.random() < share])
    plan.named_jobs = rng.random() < 0.35
    if rng.random() < 0.3:
        plan.max_replay_s = rng.choice([0.005, 0.02])
    plan.standby = rng.random() < 0.3
    if plan.standby:
        more = [kind for kind in ("gcs_pause", "gcs_crash") if rng.random() < 0.7]
        plan.enabled += [kind for kind in more if kind not in plan.enabled]
    if plan.named_jobs and rng.random() < 0.6:
        plan.enabled.append("driver_kill")
    if only is not None:
        plan.enabled = list(only)
        plan.named_jobs = plan.named_jobs or "driver_kill" in plan.enabled
    plan.harmless = _HARMLESS.issuperset(plan.enabled)
    for kind in plan.enabled:
        plan.faults += _strikes(seed, kind)
    plan.faults.sort(key=lambda fault: (fault.at_ms, fault.kind))
    return plan


def _strikes(seed: int, kind: str) -> list[Fault]:
    """When a kind strikes."""
    if kind not in INTERVALS:
        return []
    rng = random.Random(f"{kind} {seed}")
    faults: list[Fault] = []
    at_ms = rng.expovariate(1 / INTERVALS[kind])
    while at_ms < FAULTS_MS and len(faults) < _MOST_OF.get(kind, _MOST):
        faults.append(Fault(at_ms, kind, f"{kind} {seed} {len(faults)}"))
        at_ms += rng.expovariate(1 / INTERVALS[kind])
    return faults


class Faults:
    """Strikes until ``stop``."""

    def __init__(self, cluster: Cluster, plan: Plan) -> None:
        self._cluster = cluster
        self._rng = random.Random(f"chances {cluster.world.seed}")
        self._nemeses = Nemeses(cluster)
        self.plan = plan
        self.active = True
        #: How often each kind struck something; a slowness of the whole seed counts once.
        self.fired: Counter[str] = Counter()

    def has(self, kind: str) -> bool:
        return self.active and kind in self.plan.enabled

    @property
    def may_fail(self) -> bool:
        """Whether tasks that may not be repeated for ever can fail."""
        return not _HARMLESS.issuperset(self.plan.enabled)

    def start(self) -> None:
        self.fired.update(kind for kind in LASTING if kind in self.plan.enabled)
        for fault in self.plan.faults:
            self._cluster.world.at(fault.at_ms, self._strike, fault)

    def _strike(self, fault: Fault) -> None:
        if self.active and self._nemeses.strike(fault.kind, random.Random(fault.draw)):
            self.fired[fault.kind] += 1

    def stop(self) -> None:
        """From now on everything works."""
        self.active = False

    # what happens by chance, each time

    def append_is_lost(self) -> bool:
        return self.happens("lost_answers", 0.01)

    def happens(self, kind: str, probability: float | None = None) -> bool:
        """Whether one of ``CHANCES`` comes true now."""
        if not self.has(kind) or self._rng.random() >= (probability or CHANCES[kind]):
            return False
        self.fired[kind] += 1
        return True
