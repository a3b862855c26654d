"""What clients were answered: everything, in time, as expected, with no other errors."""

from __future__ import annotations

from typing import ClassVar

from regrow.chaos.checkers.checker import Checker, Evidence
from regrow.chaos.driver import DONE
from regrow.chaos.history import Kind, recovery_times


class EverythingEnds(Checker):
    """After the faults have stopped, the driver ends, and every operation has an answer."""

    name: ClassVar[str] = "everything_ends"
    claim: ClassVar[str] = "nothing hangs: after the faults stopped, everything ended"

    def check(self, evidence: Evidence) -> list[str]:
        if evidence.driver_status is None:
            limit = evidence.scenario.patience_s
            waiting = [o for o in evidence.history.operations() if o.ended_s is None]
            return [
                f"the driver had not ended {limit:g} s after the faults stopped; unanswered: "
                + ("; ".join(map(str, waiting[:5])) or "nothing")
            ]
        if evidence.driver_status != 0 or not evidence.history.notes(DONE):
            return [f"the driver ended with status {evidence.driver_status}; see its log"]
        lives = {f"driver{line.value}" for line in evidence.history.notes(DONE)}
        return [
            f"never answered: {one}"
            for one in evidence.history.operations()
            if one.ended_s is None and one.process.split("/")[0] in lives
        ]


class Answers(Checker):
    """Every acknowledged operation returned what it returns without faults."""

    name: ClassVar[str] = "answers"
    claim: ClassVar[str] = "answers are those of a run without faults"

    def check(self, evidence: Evidence) -> list[str]:
        wrong = []
        for one in evidence.history.operations():
            if one.kind is Kind.OK:
                expected = evidence.workload.expected(one)
                if one.result != expected:
                    wrong.append(f"{one}, expected {expected!r}")
        return wrong


class Errors(Checker):
    """Nothing fails but with an error that the workload brings about itself."""

    name: ClassVar[str] = "errors"
    claim: ClassVar[str] = "no operation failed with an unexpected error"

    def check(self, evidence: Evidence) -> list[str]:
        allowed = evidence.workload.expected_errors
        return [
            f"{one}: {one.detail}"
            for one in evidence.history.operations()
            if one.error and one.error not in allowed
        ]


class Progress(Checker):
    """A run in which nothing was acknowledged shows nothing."""

    name: ClassVar[str] = "progress"
    claim: ClassVar[str] = "operations were acknowledged, and some were hit by faults"

    def check(self, evidence: Evidence) -> list[str]:
        operations = evidence.history.operations()
        if not any(one.kind is Kind.OK for one in operations):
            return ["no operation was acknowledged"]
        faults = evidence.history.faults()
        if faults and not any(
            one.invoked_s <= fault.at_s and (one.ended_s is None or fault.at_s < one.ended_s)
            for fault in faults
            for one in operations
        ):
            return ["no fault struck while an operation was under way"]
        return []


class FaultsFired(Checker):
    """Each fault of the scenario struck at least once."""

    name: ClassVar[str] = "faults_fired"
    claim: ClassVar[str] = "every fault of the scenario fired"

    def check(self, evidence: Evidence) -> list[str]:
        fired = {fault.name for fault in evidence.history.faults()}
        planned = dict.fromkeys(plan.name for plan in evidence.scenario.nemesis)
        return [f"{name} never fired" for name in planned if name not in fired]


class Recovery(Checker):
    """What was under way when a fault struck ended in time."""

    name: ClassVar[str] = "recovery"
    claim: ClassVar[str] = "after each fault, what it hit went on in time"

    def check(self, evidence: Evidence) -> list[str]:
        most = evidence.scenario.recovery_max_s
        if not most:
            return []
        history = evidence.history
        times = recovery_times(history.faults(), history.operations())
        return [
            f"a recovery took {seconds:.1f} s, at most {most:g} s are expected"
            for seconds in times
            if seconds > most
        ]
