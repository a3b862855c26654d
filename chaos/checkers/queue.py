"""What clients were acknowledged, beside what the log says: nothing lost, nothing invented."""

from __future__ import annotations

from typing import ClassVar

from regrow.chaos.checkers.checker import Checker, Evidence
from regrow.chaos.checkers.logbook import FINISHED, Logbook
from regrow.chaos.driver import DONE
from regrow.chaos.history import History
from regrow.chaos.stage import DRIVER_STARTED
from regrow.chaos.workloads.workload import ACKNOWLEDGED, SUBMITTED


def total_queue(history: History, log: Logbook) -> list[str]:
    """Each result that a client saw is in the log; the drivers' tasks in the log are those that
    clients submitted. Clients write down an id once they have it: what a driver that was killed
    just then had submitted is known only when its next life has submitted it again. A job that is
    resumed takes what had failed out of the log, so what has to be there of what nobody has seen
    are the submissions of its last driver."""
    submitted = {str(line.value) for line in history.notes(SUBMITTED)}
    acknowledged = {str(line.value) for line in history.notes(ACKNOWLEDGED)}
    states = {task.task_id.hex(): task for task in log.tasks}
    wrong = []
    for task_id in sorted(acknowledged):
        task = states.get(task_id)
        if task is None:
            wrong.append(f"task {task_id} was acknowledged, and is not in the log")
        elif task.state != FINISHED:
            wrong.append(f"{task} was acknowledged, and the log says that it is {task.state}")
    if history.notes(DONE):
        begun = history.notes(DRIVER_STARTED)
        last_s = begun[-1].at_s if begun else 0.0
        last = {str(line.value) for line in history.notes(SUBMITTED) if line.at_s >= last_s}
        wrong += [
            f"task {task_id} was submitted, and is not in the log"
            for task_id in sorted(last - states.keys())
        ]
        if submitted:
            wrong += [
                f"{task} is in the log, and no client submitted it"
                for task_id, task in states.items()
                if task.parent_id in log.drivers and task_id not in submitted
            ]
    return wrong


class TotalQueue(Checker):
    """See the module."""

    name: ClassVar[str] = "total_queue"
    claim: ClassVar[str] = "no acknowledged result is lost, and none is invented"

    def check(self, evidence: Evidence) -> list[str]:
        return total_queue(evidence.history, evidence.logbook())
