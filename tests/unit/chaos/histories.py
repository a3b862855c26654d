"""Histories and logs for the tests of checkers, made by hand."""

from __future__ import annotations

from typing import Any

from regrow.chaos.checkers.checker import Evidence
from regrow.chaos.checkers.logbook import CALL, CREATION, Logbook, LoggedNode, LoggedTask
from regrow.chaos.driver import DONE, READY
from regrow.chaos.history import History, Kind, Line
from regrow.chaos.scenario import NemesisPlan, Scenario
from regrow.chaos.workloads import WORKLOADS
from regrow.chaos.workloads.workload import ACKNOWLEDGED, SUBMITTED


class Writer:
    """Writes lines; a line is a second later than the one before."""

    def __init__(self) -> None:
        self.lines: list[Line] = []
        self._number = 0

    def line(self, kind: Kind, at: float | None = None, **fields: Any) -> None:
        moment = float(len(self.lines)) if at is None else at
        self.lines.append(Line(moment, kind, **fields))

    def note(self, name: str, value: Any = None) -> None:
        self.line(Kind.NOTE, name=name, value=value)

    def fault(self, name: str) -> None:
        self.line(Kind.FAULT, name=name, value="it")

    def operation(
        self, name: str, value: Any, result: Any = None, *, kind: Kind | None = Kind.OK,
        process: str = "driver1/client1", error: str = "", at: tuple[float, float] | None = None,
    ) -> None:  # fmt: skip
        """Begin and end; ``kind`` None: it has no end."""
        self._number += 1
        begin, end = at or (None, None)
        common: dict[str, Any] = {"process": process, "number": self._number, "name": name}
        self.line(Kind.INVOKE, begin, value=value, **common)
        if kind is not None:
            self.line(kind, end, value=result, error=error, **common)

    def finished(self) -> History:
        """With the driver's notes around it."""
        first = Line(-1.0, Kind.NOTE, name=READY, value=1)
        last = Line(len(self.lines) + 1000.0, Kind.NOTE, name=DONE, value=1)
        return History([first, *self.lines, last])


def evidence(workload: str, writer: Writer, log: Logbook | None = None, **changes: Any) -> Evidence:
    """Of a run of this workload that ended well, but for the changes."""
    made = WORKLOADS[workload].made_from({}, 1, 2)
    scenario = Scenario("test", workload, nemesis=[NemesisPlan("node_crash")])
    given: dict[str, Any] = {
        "scenario": scenario, "workload": made, "history": writer.finished(),
        "rows": _no_database, "driver_status": 0, "log": log or Logbook(),
    }  # fmt: skip
    return Evidence(**{**given, **changes})


def _no_database(query: str, *arguments: Any) -> list[tuple[Any, ...]]:
    raise AssertionError(f"this checker is not to ask {query}")


DRIVER = b"d" * 16
ACTOR = b"a" * 16


def task_id(number: int) -> bytes:
    return number.to_bytes(16, "big")


def object_of(number: int) -> bytes:
    """The first return value of a task."""
    return task_id(number) + bytes(4)


def good_log() -> Logbook:
    """A task, one that needs it, and an actor with three calls on two nodes."""
    common: dict[str, Any] = {"function_id": b"f"}
    tasks = [
        LoggedTask(task_id(1), DRIVER, "one", "task", "FINISHED", finished_s=10.0, **common),
        LoggedTask(
            task_id(2), DRIVER, "two", "task", "FINISHED", deps=[object_of(1)], finished_s=11.0,
            **common,
        ),
        LoggedTask(
            ACTOR, DRIVER, "A.__init__", CREATION, "FINISHED", actor_id=ACTOR, finished_s=11.0,
            **common,
        ),
        *(
            LoggedTask(
                task_id(10 + seq), DRIVER, "A.call", CALL, "FINISHED", actor_id=ACTOR,
                actor_seq=seq, node=1 if seq < 3 else 2, finished_s=11.0 + seq, **common,
            )
            for seq in (1, 2, 3)
        ),
    ]  # fmt: skip
    nodes = [
        LoggedNode(1, 1, alive=False, registered_s=1.0, died_s=13.5),
        LoggedNode(1, 2, registered_s=14.0),
        LoggedNode(2, 1, registered_s=1.0),
    ]
    return Logbook(tasks, [], nodes, drivers={DRIVER}, functions={b"f"}, max_restarts={ACTOR: -1})


def good_queue(log: Logbook) -> Writer:
    """All of its tasks were submitted by a client, and their results seen."""
    writer = Writer()
    for task in log.tasks:
        writer.note(SUBMITTED, task.task_id.hex())
        writer.note(ACKNOWLEDGED, task.task_id.hex())
    return writer
