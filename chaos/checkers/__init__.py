"""What chaos runs assert, by name."""

from __future__ import annotations

from typing import Final

from regrow.chaos.checkers.checker import Checker
from regrow.chaos.checkers.counters import Counters
from regrow.chaos.checkers.deaths import NoFalseDeaths
from regrow.chaos.checkers.log import (
    ActorOrder,
    Amplification,
    AtRest,
    CleanLogs,
    DatabaseAtRest,
    DifferencesTold,
    Fencing,
    Lineage,
    NothingLeft,
    OneResult,
    ReplaysAgree,
)
from regrow.chaos.checkers.objects import Fifo, Linearizable
from regrow.chaos.checkers.operations import (
    Answers,
    Errors,
    EverythingEnds,
    FaultsFired,
    Progress,
    Recovery,
)
from regrow.chaos.checkers.program import ProgramOutputs
from regrow.chaos.checkers.programs import Bank, NotAgain, OneWinner, Stable
from regrow.chaos.checkers.queue import TotalQueue

#: Those that look at every run.
ALWAYS: Final[tuple[type[Checker], ...]] = (
    EverythingEnds,
    Progress,
    FaultsFired,
    Errors,
    TotalQueue,
    OneResult,
    Fencing,
    ActorOrder,
    Lineage,
    ReplaysAgree,
    AtRest,
    DatabaseAtRest,
    Recovery,
    Amplification,
    CleanLogs,
    NothingLeft,
)

_ALL: Final[tuple[type[Checker], ...]] = (
    *ALWAYS,
    Answers,
    Bank,
    Counters,
    DifferencesTold,
    Fifo,
    Linearizable,
    NoFalseDeaths,
    NotAgain,
    OneWinner,
    ProgramOutputs,
    Stable,
)

CHECKERS: Final[dict[str, type[Checker]]] = {checker.name: checker for checker in _ALL}
