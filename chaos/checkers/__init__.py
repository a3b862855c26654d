"""What chaos runs assert, by name."""

from __future__ import annotations

from typing import Final

from regrow.chaos.checkers.checker import Checker
from regrow.chaos.checkers.counters import Counters
from regrow.chaos.checkers.deaths import NoFalseDeaths
from regrow.chaos.checkers.log import (
    Amplification,
    AtRest,
    CleanLogs,
    Fencing,
    Lineage,
    NothingLeft,
    OneResult,
    ReplaysAgree,
)
from regrow.chaos.checkers.operations import (
    Answers,
    Errors,
    EverythingEnds,
    FaultsFired,
    Progress,
)

#: Those that look at every run.
ALWAYS: Final[tuple[type[Checker], ...]] = (
    EverythingEnds,
    Progress,
    FaultsFired,
    Errors,
    OneResult,
    Fencing,
    Lineage,
    ReplaysAgree,
    AtRest,
    Amplification,
    CleanLogs,
    NothingLeft,
)

_ALL: Final[tuple[type[Checker], ...]] = (*ALWAYS, Answers, Counters, NoFalseDeaths)

CHECKERS: Final[dict[str, type[Checker]]] = {checker.name: checker for checker in _ALL}
