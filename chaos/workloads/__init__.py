"""The programs that chaos runs put under faults, by name."""

from __future__ import annotations

from typing import Final

from regrow.chaos.workloads.counter import CounterWorkload
from regrow.chaos.workloads.task_tree import TaskTreeWorkload
from regrow.chaos.workloads.workload import Workload

WORKLOADS: Final[dict[str, type[Workload]]] = {
    workload.name: workload for workload in (CounterWorkload, TaskTreeWorkload)
}
