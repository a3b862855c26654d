"""Faults as people name them in a command or a marker: ``node`` for ``node_crash`` and so on."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from regrow.chaos.nemeses import NEMESES
from regrow.chaos.scenario import NemesisPlan, ScenarioError

#: What to kill, and the nemesis that does.
SHORT: Final = {
    "worker": "worker_crash",
    "node": "node_crash",
    "gcs": "gcs_crash",
    "postgres": "postgres_stop",
    "driver": "driver_kill",
    "everything": "everything_crash",
}
HEAL_AFTER_S: Final = 1.0


def plans(names: Iterable[str], every_s: float) -> list[NemesisPlan]:
    """A plan for each. Raises ScenarioError for a name that no fault has, or no such time."""
    if every_s <= 0:
        raise ScenarioError(f"faults strike every so many seconds, more than 0; not {every_s:g}")
    return [
        NemesisPlan(resolve(name), every_s=every_s, heal_after_s=min(HEAL_AFTER_S, every_s / 2))
        for name in dict.fromkeys(names)
    ]


def resolve(name: str) -> str:
    """The nemesis of this name. Raises ScenarioError."""
    known = SHORT.get(name, name)
    if known not in NEMESES:
        raise ScenarioError(
            f"there is no fault {name!r}; there are {', '.join([*SHORT, *sorted(NEMESES)])}"
        )
    return known


def need_proxy(chosen: Iterable[NemesisPlan]) -> bool:
    """Whether Postgres has to be behind a proxy for them."""
    return any(NEMESES[plan.name].needs_proxy for plan in chosen)
