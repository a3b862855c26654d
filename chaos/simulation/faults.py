"""Which faults a seed has, and when they strike.

Swarm testing (Groce et al., ISSTA'12): each seed enables a random subset, so that some seeds have
much of one thing. A fault is scheduled by a rate; all of them stop when the drivers' programs have
been given long enough, and everything heals.
"""

from __future__ import annotations

import random
from collections import Counter
from typing import TYPE_CHECKING, Final

from msgspec import Struct

if TYPE_CHECKING:
    from regrow.chaos.simulation.cluster import Cluster

KINDS: Final = (
    "slow_links", "cut_links", "node_crash", "node_pause", "worker_crash", "gcs_crash",
    "session_break", "log_break", "lost_answers", "postgres_stop", "driver_break", "spill_fails",
    "worker_fails_to_start", "slow_commits",
)  # fmt: skip
#: Of seeds in which the control store has a standby. (Drivers are killed where that is asked for:
#: ``Scale.faults``.)
STANDBY_KINDS: Final = ("gcs_pause", "gcs_crash")

#: Every kind, as they are reported.
ALL_KINDS: Final = (*KINDS, "gcs_pause", "driver_kill")
#: Those that last as long as the faults do.
LASTING: Final = ("slow_links", "slow_commits")

#: Mean time between two faults of a kind, milliseconds.
INTERVALS: Final = {
    "cut_links": 80.0, "node_crash": 120.0, "node_pause": 150.0, "worker_crash": 15.0,
    "gcs_crash": 150.0, "session_break": 50.0, "log_break": 40.0, "postgres_stop": 200.0,
    "driver_break": 100.0, "driver_kill": 150.0, "gcs_pause": 200.0,
}  # fmt: skip


class Plan(Struct):
    """The faults of a seed."""

    enabled: list[str]
    #: How many of each kind at most.
    most: int = 6
    #: The drivers' jobs have names, and are resumed after their drivers were killed.
    named_jobs: bool = False
    #: There are two control stores, one of which leads.
    standby: bool = False
    #: Large results that would take longer to be made again are stored.
    max_replay_s: float = 60.0


def draw(rng: random.Random) -> Plan:
    """One seed in eight has none."""
    if rng.random() < 0.125:
        return Plan([])
    share = rng.choice([0.1, 0.25, 0.5, 0.8])
    return Plan([kind for kind in KINDS if rng.random() < share])


def draw_more(plan: Plan, rng: random.Random) -> None:
    """What is drawn apart, so that the other choices of a seed do not depend on it."""
    if rng.random() < 0.35:
        plan.named_jobs = True
    if rng.random() < 0.3:
        plan.max_replay_s = rng.choice([0.005, 0.02])
    if rng.random() < 0.3:
        plan.standby = True
        more = [kind for kind in STANDBY_KINDS if rng.random() < 0.7]
        plan.enabled += [kind for kind in more if kind not in plan.enabled]


class Faults:
    """Strikes until ``stop``."""

    def __init__(self, cluster: Cluster, plan: Plan) -> None:
        self._cluster = cluster
        self._rng = cluster.world.rng
        self.plan = plan
        self.active = True
        #: How often each kind struck; a slowness of the whole seed counts once.
        self.fired: Counter[str] = Counter()
        #: The same, with those that found nothing to strike.
        self._strikes: Counter[str] = Counter()

    def has(self, kind: str) -> bool:
        return self.active and kind in self.plan.enabled

    @property
    def may_fail(self) -> bool:
        """Whether tasks that may not be repeated for ever can fail."""
        return bool(
            {"node_crash", "node_pause", "worker_crash", "postgres_stop", "session_break",
             "gcs_crash", "spill_fails", "log_break", "slow_commits", "lost_answers",
             "worker_fails_to_start", "driver_break", "driver_kill", "gcs_pause"}
            & set(self.plan.enabled)
        )  # fmt: skip

    def start(self) -> None:
        for kind in INTERVALS:
            if kind in self.plan.enabled:
                self._arm(kind)
        self.fired.update(kind for kind in LASTING if kind in self.plan.enabled)

    def _arm(self, kind: str) -> None:
        delay = self._rng.expovariate(1 / INTERVALS[kind])
        self._cluster.world.after(delay, self._strike, kind)

    def _strike(self, kind: str) -> None:
        if not self.active:
            return
        self._strikes[kind] += 1
        if getattr(self._cluster, f"fault_{kind}")():
            self.fired[kind] += 1
        if self._strikes[kind] < self.plan.most * (
            4 if kind in ("worker_crash", "log_break") else 1
        ):
            self._arm(kind)

    def stop(self) -> None:
        """From now on everything works."""
        self.active = False

    # what happens by chance, each time

    def append_is_lost(self) -> bool:
        return self._happens("lost_answers", 0.01)

    def answer_is_lost(self) -> bool:
        return self._happens("lost_answers", 0.03)

    def spill_fails(self) -> bool:
        return self._happens("spill_fails", 0.2)

    def worker_fails_to_start(self) -> bool:
        return self._happens("worker_fails_to_start", 0.2)

    def _happens(self, kind: str, probability: float) -> bool:
        if not self.has(kind) or self._rng.random() >= probability:
            return False
        self.fired[kind] += 1
        return True
