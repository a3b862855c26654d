"""What several runs come to together."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Self

import msgspec

from regrow.chaos.result import RunResult


class Totals(msgspec.Struct):
    """Sums over runs; all recovery times."""

    runs: int = 0
    failed_runs: int = 0
    acknowledged: int = 0
    failed: int = 0
    unknown: int = 0
    lost: int = 0
    doubled: int = 0
    #: By the fault's name, in the order of names.
    fired: dict[str, int] = {}
    recoveries_s: list[float] = []

    @classmethod
    def of(cls, results: Iterable[RunResult]) -> Self:
        """The totals of these runs."""
        totals = cls()
        fired: Counter[str] = Counter()
        for result in results:
            totals.runs += 1
            totals.failed_runs += not result.passed
            totals.acknowledged += result.acknowledged
            totals.failed += result.failed
            totals.unknown += result.unknown
            totals.lost += result.lost
            totals.doubled += result.doubled
            fired.update(result.fired)
            totals.recoveries_s += result.recoveries_s
        totals.fired = dict(sorted(fired.items()))
        return totals
