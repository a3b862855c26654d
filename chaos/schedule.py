"""When faults strike and heal: drawn from the seed, and nothing else.

Knows no fault and no clock: it is told what time it is, and says what is due. Each entry of a
scenario has a source of its own for its times and another for its targets, so that the n-th draw of
either is the same in every run with that seed, whatever the other entries and the cluster do.
"""

from __future__ import annotations

import heapq
import random
from collections.abc import Sequence
from typing import Final

import msgspec

from regrow.chaos.scenario import NemesisPlan

#: A fault that found nothing to hit tries again after this.
AGAIN_S: Final = 0.1


class Due(msgspec.Struct, order=True, frozen=True):
    """Something that is to happen: an injection, or a healing."""

    at_s: float
    #: Of the entry.
    number: int
    heals: bool
    #: Of a healing: what was hit.
    target: str = ""


class Schedule:
    """See the module."""

    def __init__(self, plans: Sequence[NemesisPlan], seed: int) -> None:
        self._plans = plans
        self._times = [random.Random(f"{seed} {number}") for number in range(len(plans))]
        #: For each entry, what its targets are drawn from.
        self.targets: Final = [
            random.Random(f"{seed} {number} targets") for number in range(len(plans))
        ]
        self._injected = [0] * len(plans)
        self._due: list[Due] = []

    def begin(self, now_s: float) -> None:
        """The first strike of each entry."""
        for number, plan in enumerate(self._plans):
            if plan.most > 0:
                first_s = plan.every_s / 2 if plan.first_s is None else plan.first_s
                self._push(Due(now_s + first_s * self._around(number), number, heals=False))

    def next_s(self) -> float | None:
        """When something is due; None: never."""
        return self._due[0].at_s if self._due else None

    def take(self, now_s: float) -> Due | None:
        """What is due by now; it is carried out and reported by one of the methods below."""
        if self._due and self._due[0].at_s <= now_s:
            return heapq.heappop(self._due)
        return None

    def struck(self, due: Due, at_s: float, target: str) -> None:
        """A fault was injected; it is to be healed."""
        self._injected[due.number] += 1
        heal_s = at_s + self._plans[due.number].heal_after_s
        self._push(Due(heal_s, due.number, heals=True, target=target))

    def missed(self, due: Due, now_s: float) -> None:
        """There was nothing to hit."""
        self._push(Due(now_s + AGAIN_S, due.number, heals=False))

    def not_healed(self, due: Due, now_s: float) -> None:
        """It could not be mended as long as another fault lasts."""
        self._push(msgspec.structs.replace(due, at_s=now_s + AGAIN_S))

    def healed(self, due: Due, now_s: float) -> None:
        """What was broken works again, so the next strike may come."""
        plan = self._plans[due.number]
        if self._injected[due.number] < plan.most:
            wait_s = plan.every_s * self._around(due.number) - plan.heal_after_s
            self._push(Due(now_s + max(0.0, wait_s), due.number, heals=False))

    def to_heal(self) -> list[Due]:
        """The healings that are still to come, by their time."""
        return sorted(due for due in self._due if due.heals)

    def stop(self) -> list[Due]:
        """No fault strikes any more; the healings that are left to carry out."""
        left = self.to_heal()
        self._due.clear()
        return left

    def _around(self, number: int) -> float:
        return self._times[number].uniform(0.5, 1.5)

    def _push(self, due: Due) -> None:
        heapq.heappush(self._due, due)
