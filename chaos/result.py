"""What is known of a run when it is over: verdict, figures, and what reports show. Data only."""

from __future__ import annotations

import math
from typing import Any

import msgspec

from regrow.chaos.scenario import Scenario


class CheckResult(msgspec.Struct):
    """What one checker found."""

    name: str
    claim: str
    #: At most ``FINDINGS_MAX`` of them.
    findings: list[str]
    #: How many there were.
    count: int

    @property
    def passed(self) -> bool:
        """Whether nothing was wrong."""
        return not self.count


class Struck(msgspec.Struct):
    """A fault that struck. Seconds since the run's history begins."""

    name: str
    target: str
    at_s: float
    healed_s: float | None = None
    #: Until all operations under way at that moment had ended; None: it hit none, or one never did.
    recovery_s: float | None = None
    #: Until the log says that the node is dead; None: no node died of it.
    detection_s: float | None = None


class Phase(msgspec.Struct):
    """A part of the run, from this second on."""

    name: str
    at_s: float


class Replay(msgspec.Struct):
    """A finished task that was run again because what it had made was lost."""

    task_id: str
    name: str
    node_id: int
    #: Since the log's clock said that the first of them was granted.
    at_s: float
    #: None: its node or job ended before it did.
    took_s: float | None
    #: Whether it made something else than before; None: it did not end by itself.
    differs: bool | None
    #: The tasks among them that had it as an argument, or that had submitted it.
    needed_by: list[str] = []


class RunResult(msgspec.Struct):
    """All that is known of a run, for reports."""

    scenario: Scenario
    seed: int
    #: The command that repeats the run: same workload, same order of faults and targets drawn.
    command: str
    #: When it began: ISO 8601, UTC.
    begun_at: str = ""
    took_s: float = 0.0
    checks: list[CheckResult] = []
    #: How often each fault fired.
    fired: dict[str, int] = {}
    acknowledged: int = 0
    failed: int = 0
    unknown: int = 0
    #: Tasks and calls in the log that have no result in the end; that have two.
    lost: int = 0
    doubled: int = 0
    #: Seconds, one for each fault that hit an operation.
    recoveries_s: list[float] = []
    #: Seconds, one for each node that died of a fault.
    detections_s: list[float] = []
    amplification: float = 1.0
    #: Tasks and calls by name that ran again: (name, new attempts, made again).
    run_again: list[tuple[str, int, int]] = []
    #: Of those that were made again, the first ones.
    replays: list[Replay] = []
    faults: list[Struck] = []
    phases: list[Phase] = []
    #: Seconds of the history.
    span_s: float = 0.0
    #: What ``slices`` counts.
    counted: str = "operations"
    #: So many acknowledged and failed in each slice of this many seconds.
    slice_s: float = 1.0
    slices: list[tuple[int, int]] = []
    #: Files of the run's folder that people may want to read.
    logs: list[str] = []
    #: Why there is no verdict, if there is none.
    broken: str = ""

    @property
    def passed(self) -> bool:
        """Whether every checker found nothing, and there was a verdict."""
        return not self.broken and all(check.passed for check in self.checks)


def percentile(values: list[float], share: float) -> float:
    """Of a list that is not empty, by nearest rank."""
    ordered = sorted(values)
    return ordered[max(math.ceil(share * len(ordered)) - 1, 0)]


def as_json(result: RunResult) -> bytes:
    """The result as a JSON document."""
    fields: dict[str, Any] = msgspec.to_builtins(result)
    fields["passed"] = result.passed
    return msgspec.json.format(msgspec.json.encode(fields), indent=2)
