"""What a checker is: it reads the recorded history and the log, and says what is wrong.

Checkers look at evidence only, never at the inside of a process. Each returns sentences; none means
that it found nothing wrong. Those that read the log run while the cluster stands, after everything
has ended; those that look for what was left behind run after it was shut down.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import msgspec

from regrow.chaos.checkers.logbook import Logbook, from_postgres
from regrow.chaos.history import History
from regrow.chaos.scenario import Scenario
from regrow.chaos.workloads.workload import Workload

#: A query and its parameters; the rows.
Rows = Callable[..., list[tuple[Any, ...]]]
#: So many findings are told of each checker.
FINDINGS_MAX = 20


class Evidence(msgspec.Struct):
    """All that a checker may look at."""

    scenario: Scenario
    workload: Workload
    history: History
    #: The log, while the cluster stands.
    rows: Rows
    #: What the driver ended with, of its last life; None: it had to be ended.
    driver_status: int | None
    #: What the nodes say that they still hold, by their ids.
    node_stats: dict[int, dict[str, int]] = {}
    #: What was still there after the cluster had been shut down.
    left_behind: list[str] = []
    #: Lines of the daemons' logs that tell of an error nobody expected.
    log_errors: list[str] = []
    #: Read once; see ``logbook``.
    log: Logbook | None = None

    def logbook(self) -> Logbook:
        """The log as rows."""
        if self.log is None:
            self.log = from_postgres(self.rows)
        return self.log


class Checker:
    """The base."""

    name: ClassVar[str]
    #: What it asserts, for reports.
    claim: ClassVar[str]
    #: Whether it runs after the cluster was shut down.
    afterwards: ClassVar[bool] = False

    def check(self, evidence: Evidence) -> list[str]:
        """What is wrong, a sentence each."""
        raise NotImplementedError
