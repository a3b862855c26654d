"""One chaos run: a safety phase under faults, a liveness phase without, then the verdict.

Decides when faults strike and heal (drawn from the seed), when the run is over, and what counts as
passed. The phases are TigerBeetle's: first anything may happen and nothing may be wrong, then
everything heals and everything has to end. How it is shown is `regrow.chaos.reports`'.
"""

from __future__ import annotations

import heapq
import random
import re
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import msgspec
import psycopg

from regrow.chaos import checkers, nemeses, workloads
from regrow.chaos.checkers.checker import FINDINGS_MAX, Evidence
from regrow.chaos.checkers.log import amplification
from regrow.chaos.driver import READY
from regrow.chaos.history import History, Kind, Recorder, recovery_times
from regrow.chaos.nemeses.nemesis import Nemesis
from regrow.chaos.scenario import NemesisPlan, Scenario
from regrow.chaos.spy import Spy
from regrow.chaos.stage import DriverSpec, Stage, run_folder, wait_until
from regrow.cluster_utils import Node
from regrow.exceptions import RayError

HISTORY_FILE: Final = "history.jsonl"
READY_S: Final = 60.0
POLL_S: Final = 0.02
#: Nodes let go of what nobody wants some time after.
REST_S: Final = 30.0
GONE_S: Final = 10.0
#: What a node's stats have to be at rest: nothing.
RESTING: Final = ("arena_used", "spill_used", "copies", "pinned", "objects", "tasks")
#: Lines of logs that tell of a failure of a daemon itself, not of what it met.
TRACEBACK: Final = re.compile(r"^Traceback \(most recent call|^AssertionError|^\S*Error: ")


class CheckResult(msgspec.Struct):
    """What one checker found."""

    name: str
    claim: str
    #: At most FINDINGS_MAX of them.
    findings: list[str]
    #: How many there were.
    count: int

    @property
    def passed(self) -> bool:
        """Whether nothing was wrong."""
        return not self.count


class RunResult(msgspec.Struct):
    """All that is known of a run, for reports."""

    scenario: Scenario
    seed: int
    #: The command that repeats the run: same workload, same order of faults and targets drawn.
    command: str
    took_s: float = 0.0
    checks: list[CheckResult] = []
    #: How often each fault fired.
    fired: dict[str, int] = {}
    acknowledged: int = 0
    failed: int = 0
    unknown: int = 0
    #: Seconds, one for each fault that hit an operation.
    recoveries_s: list[float] = []
    amplification: float = 1.0
    #: Tasks and calls by name that ran again: (name, new attempts, made again).
    run_again: list[tuple[str, int, int]] = []
    #: Why there is no verdict, if there is none.
    broken: str = ""

    @property
    def passed(self) -> bool:
        """Whether every checker found nothing, and there was a verdict."""
        return not self.broken and all(check.passed for check in self.checks)


#: Is told of what happens: a kind of news and a text.
Watch = Callable[[str, str], None]


def run(
    scenario: Scenario, seed: int, *, folder: Path | None = None, watch: Watch | None = None
) -> RunResult:
    """Run a scenario once. Its history, logs and drivers' output stay in ``folder``, if given."""
    with run_folder(folder) as place:
        return Run(scenario, seed, place, watch or (lambda kind, text: None)).run()


class _Due(msgspec.Struct, order=True):
    """Something that is to happen: an injection, or a healing."""

    at_s: float
    number: int
    heals: bool
    target: str = ""


class Run:
    """One run; see the module."""

    def __init__(self, scenario: Scenario, seed: int, folder: Path, watch: Watch) -> None:
        self._scenario = scenario
        self._seed = seed
        self._folder = folder
        self._watch = watch
        self._workload = workloads.WORKLOADS[scenario.workload].made_from(
            scenario.parameters, seed, scenario.clients
        )
        self._nemeses: list[tuple[NemesisPlan, Nemesis]] = [
            (plan, nemeses.NEMESES[plan.name](plan.options)) for plan in scenario.nemesis
        ]
        self._rngs = [random.Random(f"{seed} {i}") for i in range(len(self._nemeses))]
        self._injected = [0] * len(self._nemeses)
        self._due: list[_Due] = []
        command = f"regrow chaos run {scenario.name} --seed {seed}"
        self._result = RunResult(scenario, seed, command)

    def run(self) -> RunResult:
        """Set up, faults, healing, checks. What keeps it from a verdict is in ``broken``."""
        begun = time.monotonic()
        try:
            self._run()
        except (OSError, RuntimeError, AssertionError, psycopg.Error, RayError) as error:
            self._result.broken = f"{type(error).__name__}: {error}"
            self._watch("broken", self._result.broken)
        self._result.took_s = time.monotonic() - begun
        return self._result

    def _run(self) -> None:
        path = self._folder / HISTORY_FILE
        path.unlink(missing_ok=True)
        with Recorder(path) as recorder:
            self._recorder = recorder
            self._watch("phase", "starting the cluster")
            with Stage(self._scenario, self._seed, recorder, self._folder) as stage:
                for _, nemesis in self._nemeses:
                    nemesis.set_up(stage)
                self._start_driver(stage, path)
                self._safety(stage)
                status = self._liveness(stage)
                self._watch("phase", "checking")
                evidence = self._evidence(stage, path, status)
                self._check(evidence, afterwards=False)
                self._figures(evidence)
            self._what_is_left(stage, evidence)
            self._check(evidence, afterwards=True)

    # Faults

    def _start_driver(self, stage: Stage, history: Path) -> None:
        scenario = self._scenario
        resumes = any(nemesis.kills_driver for _, nemesis in self._nemeses)
        spec = DriverSpec(
            str(stage.home), scenario.workload, scenario.parameters, self._seed, scenario.clients,
            str(history), time.monotonic() + READY_S + scenario.duration_s,
            job="chaos" if resumes else "",
        )  # fmt: skip
        # The clients' time begins now; the faults' when the driver is ready.
        spec.ends_at_s = time.monotonic() + scenario.duration_s
        stage.start_driver(spec)
        wait_until(lambda: self._noted(READY), READY_S, lambda: _check_driver(stage))

    def _safety(self, stage: Stage) -> None:
        """Faults strike until the time is up; then all is healed."""
        spec = stage.driver_spec
        self._recorder.note("phase", "safety")
        self._watch("phase", "faults strike")
        now = time.monotonic()
        for number, (plan, _) in enumerate(self._nemeses):
            first = plan.every_s / 2 if plan.first_s is None else plan.first_s
            self._push(number, now + first * self._rngs[number].uniform(0.5, 1.5), heals=False)
        while (now := time.monotonic()) < spec.ends_at_s:
            self._watch("tick", "")
            if not stage.driver_runs() and not self._driver_is_to_come():
                break
            if self._due and self._due[0].at_s <= now:
                self._carry_out(stage, heapq.heappop(self._due))
            else:
                until = min(spec.ends_at_s, self._due[0].at_s if self._due else spec.ends_at_s)
                time.sleep(max(0.0, min(until - now, 0.1)))
        self._recorder.note("phase", "liveness")
        self._watch("phase", "faults stop, everything has to end")
        for due in sorted(self._due):
            if due.heals:
                self._carry_out(stage, due)
        self._due.clear()
        for _, nemesis in self._nemeses:
            nemesis.heal(stage)

    def _push(self, number: int, at_s: float, *, heals: bool, target: str = "") -> None:
        heapq.heappush(self._due, _Due(at_s, number, heals, target))

    def _driver_is_to_come(self) -> bool:
        return any(due.heals and self._nemeses[due.number][1].kills_driver for due in self._due)

    def _carry_out(self, stage: Stage, due: _Due) -> None:
        plan, nemesis = self._nemeses[due.number]
        rng = self._rngs[due.number]
        if due.heals:
            nemesis.heal(stage)
            self._recorder.heal(plan.name, due.target)
            self._watch("heal", f"{plan.name}: {due.target}")
            if self._injected[due.number] < plan.most:
                wait_s = max(0.0, plan.every_s * rng.uniform(0.5, 1.5) - plan.heal_after_s)
                self._push(due.number, time.monotonic() + wait_s, heals=False)
            return
        before = time.monotonic()
        target = nemesis.inject(stage, rng)
        if not target:  # nothing to hit just now
            self._push(due.number, time.monotonic() + 0.1, heals=False)
            return
        self._injected[due.number] += 1
        self._recorder.fault(max(before, nemesis.struck_s), plan.name, target)
        self._watch("fault", f"{plan.name}: {target}")
        self._push(due.number, before + plan.heal_after_s, heals=True, target=target)

    # The end

    def _liveness(self, stage: Stage) -> int | None:
        """The status with which the driver ended; None: it did not, and was ended."""
        deadline = time.monotonic() + self._scenario.patience_s
        while stage.driver_runs():
            self._watch("tick", "")
            if time.monotonic() > deadline:
                stage.save_stacks()
                stage.end_driver()
                return None
            time.sleep(POLL_S)
        assert stage.driver is not None
        return stage.driver.returncode

    def _evidence(self, stage: Stage, path: Path, status: int | None) -> Evidence:
        evidence = Evidence(self._scenario, self._workload, History.read(path), stage.rows, status)
        if status is not None:
            evidence.node_stats = self._stats_at_rest(stage)
        return evidence

    def _stats_at_rest(self, stage: Stage) -> dict[int, dict[str, int]]:
        """What nodes still hold, once it is nothing or long after. One that cannot be asked, which
        may just be beginning anew, is asked again; at last it says so itself."""
        deadline = time.monotonic() + REST_S
        while True:
            found = {node.node_id: _held_by(stage, node) for node in stage.nodes()}
            held = any(count for stats in found.values() for count in stats.values())
            if not held or time.monotonic() > deadline:
                return found
            time.sleep(10 * POLL_S)

    def _check(self, evidence: Evidence, *, afterwards: bool) -> None:
        names = (*self._workload.checkers, *self._scenario.checkers)
        chosen = [*checkers.ALWAYS, *(checkers.CHECKERS[name] for name in dict.fromkeys(names))]
        for kind in chosen:
            if kind.afterwards is afterwards:
                found = kind().check(evidence)
                one = CheckResult(kind.name, kind.claim, found[:FINDINGS_MAX], len(found))
                self._result.checks.append(one)
                self._watch("passed" if one.passed else "failed", kind.claim)

    def _figures(self, evidence: Evidence) -> None:
        result, history = self._result, evidence.history
        operations = history.operations()
        kinds = Counter(one.kind for one in operations)
        result.acknowledged = kinds[Kind.OK]
        result.failed, result.unknown = kinds[Kind.FAIL], kinds[Kind.UNKNOWN]
        faults = history.faults()
        result.fired = dict(sorted(Counter(fault.name for fault in faults).items()))
        result.recoveries_s = recovery_times(faults, operations)
        result.amplification = amplification(evidence)
        result.run_again = [
            (name, int(attempts), int(rebuilds))
            for name, attempts, rebuilds in evidence.rows(
                "SELECT t.name, sum(t.attempt - 1), sum(coalesce(r.count, 0)) FROM regrow.tasks t "
                "LEFT JOIN (SELECT task_id, count(*) FROM regrow.rebuilds GROUP BY 1) r "
                "USING (task_id) WHERE t.attempt > 1 OR r.count > 0 GROUP BY 1 ORDER BY 1"
            )
        ]

    def _what_is_left(self, stage: Stage, evidence: Evidence) -> None:
        """After the end: processes and files of the run, and what its logs complain of."""
        deadline = time.monotonic() + GONE_S
        while (left := stage.left_behind()) and time.monotonic() < deadline:
            time.sleep(POLL_S)
        evidence.left_behind = left
        for log in sorted((self._folder / "logs").glob("*.log*")):
            evidence.log_errors += [
                f"{log.name}: {line}"
                for line in log.read_text(errors="replace").splitlines()
                if TRACEBACK.match(line)
            ]

    def _noted(self, name: str) -> bool:
        return bool(History.read(self._folder / HISTORY_FILE).notes(name))


def _held_by(stage: Stage, node: Node) -> dict[str, int]:
    try:
        spy = Spy(stage.home, node.socket)
        try:
            stats = spy.stats()
        finally:
            spy.close()
    except OSError:  # also ClusterConnectionError
        return {"answer missing": 1}
    return {what: stats[what] for what in RESTING}


def _check_driver(stage: Stage) -> None:
    if not stage.driver_runs():
        raise RuntimeError(
            f"the driver ended before it was ready; see {stage.folder}/driver-1.log: "
            + stage.driver_said()
        )


def percentile(values: list[float], share: float) -> float:
    """Of a list that is not empty, by nearest rank."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def as_json(result: RunResult) -> bytes:
    """The result as a JSON document."""
    fields: dict[str, Any] = msgspec.to_builtins(result)
    fields["passed"] = result.passed
    return msgspec.json.format(msgspec.json.encode(fields), indent=2)
