"""The programs that chaos runs put under faults, by name."""

from __future__ import annotations

from typing import Final

from regrow.chaos.workloads.bank import BankWorkload
from regrow.chaos.workloads.borrowed import BorrowedWorkload
from regrow.chaos.workloads.chains import ChainsWorkload
from regrow.chaos.workloads.counter import CounterWorkload
from regrow.chaos.workloads.dice import DiceWorkload
from regrow.chaos.workloads.fan_in import FanInWorkload
from regrow.chaos.workloads.generators import GeneratorsWorkload
from regrow.chaos.workloads.lists import ListsWorkload
from regrow.chaos.workloads.names import NamesWorkload
from regrow.chaos.workloads.nightly import NightlyWorkload
from regrow.chaos.workloads.parameter_server import ParameterServerWorkload
from regrow.chaos.workloads.poison import PoisonWorkload
from regrow.chaos.workloads.program import ProgramWorkload
from regrow.chaos.workloads.puts import PutsWorkload
from regrow.chaos.workloads.random_programs import RandomProgramsWorkload
from regrow.chaos.workloads.registers import RegistersWorkload
from regrow.chaos.workloads.shuffle import ShuffleWorkload
from regrow.chaos.workloads.task_tree import TaskTreeWorkload
from regrow.chaos.workloads.workload import Workload

_ALL: Final[tuple[type[Workload], ...]] = (
    BankWorkload,
    BorrowedWorkload,
    ChainsWorkload,
    CounterWorkload,
    DiceWorkload,
    FanInWorkload,
    GeneratorsWorkload,
    ListsWorkload,
    NamesWorkload,
    NightlyWorkload,
    ParameterServerWorkload,
    PoisonWorkload,
    ProgramWorkload,
    PutsWorkload,
    RandomProgramsWorkload,
    RegistersWorkload,
    ShuffleWorkload,
    TaskTreeWorkload,
)

WORKLOADS: Final[dict[str, type[Workload]]] = {workload.name: workload for workload in _ALL}
