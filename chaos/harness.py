"""One chaos run: a safety phase under faults, a liveness phase without, then the verdict.

Decides when the run is over, and what counts as passed; when faults strike and heal is
`regrow.chaos.schedule`'s, how it is shown is `regrow.chaos.reports`'. The phases are TigerBeetle's:
first anything may happen and nothing may be wrong, then everything heals and has to end.
"""

from __future__ import annotations

import re
import time
import traceback
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import psycopg

from regrow.chaos import checkers, figures, workloads
from regrow.chaos.checkers.checker import FINDINGS_MAX, Evidence
from regrow.chaos.driver import READY
from regrow.chaos.history import Follower, History, Recorder
from regrow.chaos.result import CheckResult, RunResult
from regrow.chaos.scenario import Scenario
from regrow.chaos.spy import Spy
from regrow.chaos.stage import DriverSpec, Stage, run_folder, wait_until
from regrow.chaos.strikes import STEP_S, Strikes, Watch
from regrow.cluster_utils import Node
from regrow.exceptions import RayError

HISTORY_FILE: Final = "history.jsonl"
READY_S: Final = 60.0
POLL_S: Final = 0.02
#: Nodes let go of what nobody wants some time after.
REST_S: Final = 30.0
GONE_S: Final = 10.0
#: What a node's stats have to be at rest: nothing.
RESTING: Final = (
    "arena_used", "spill_used", "copies", "pinned", "objects", "tasks", "actors", "claimed",
)  # fmt: skip
#: Lines of logs that tell of a failure of a daemon itself, not of what it met.
TRACEBACK: Final = re.compile(r"^Traceback \(most recent call|^AssertionError|^\S*Error: ")


def run(
    scenario: Scenario,
    seed: int,
    *,
    folder: Path | None = None,
    watch: Watch | None = None,
    command: str = "",
) -> RunResult:
    """Run a scenario once. Its history, logs and drivers' output stay in ``folder``, if given.

    ``watch`` is told "phase", "ends" (in how many seconds the faults stop), "tick" (how many
    operations were acknowledged so far), "fault", "heal", "passed", "failed" and "broken".
    ``command`` is what repeats the run, for reports.
    """
    with run_folder(folder) as place:
        return Run(scenario, seed, place, watch or (lambda kind, text: None), command).run()


class Run:
    """One run; see the module."""

    def __init__(
        self, scenario: Scenario, seed: int, folder: Path, watch: Watch, command: str = ""
    ) -> None:
        self._scenario = scenario
        self._seed = seed
        self._folder = folder
        self._watch = watch
        self._workload = workloads.WORKLOADS[scenario.workload].made_from(
            scenario.parameters, seed, scenario.clients
        )
        self._strikes = Strikes(scenario.nemesis, seed, watch)
        self._result = RunResult(
            scenario, seed, command or f"regrow chaos run {scenario.name} --seed {seed}"
        )

    def run(self) -> RunResult:
        """Set up, faults, healing, checks. What keeps it from a verdict is in ``broken``."""
        begun = time.monotonic()
        self._result.begun_at = datetime.now(UTC).isoformat(timespec="seconds")
        try:
            self._run()
        except (OSError, RuntimeError, AssertionError, psycopg.Error, RayError) as error:
            frame = traceback.extract_tb(error.__traceback__)[-1]
            place = f"{frame.name}, line {frame.lineno} of {Path(frame.filename).name}"
            self._result.broken = f"{type(error).__name__}: {error} ({place})"
            self._watch("broken", self._result.broken)
            if self._path.exists():
                figures.collect_history(self._result, History.read(self._path))
        self._result.logs = sorted(
            path.relative_to(self._folder).as_posix()
            for path in self._folder.rglob("*.log*")
            if path.is_file() and path.stat().st_size
        )
        self._result.took_s = time.monotonic() - begun
        return self._result

    def _run(self) -> None:
        self._path.unlink(missing_ok=True)
        with Recorder(self._path) as recorder:
            self._recorder = recorder
            self._watch("phase", "starting the cluster")
            with Stage(self._scenario, self._seed, recorder, self._folder) as stage:
                self._strikes.set_up(stage, recorder)
                self._start_driver(stage)
                with Follower(self._path) as follower:
                    self._safety(stage, follower)
                    status = self._liveness(stage, follower)
                self._watch("phase", "checking")
                evidence = self._evidence(stage, status)
                self._check(evidence, afterwards=False)
                figures.collect(self._result, evidence)
            self._what_is_left(stage, evidence)
            self._check(evidence, afterwards=True)

    @property
    def _path(self) -> Path:
        return self._folder / HISTORY_FILE

    # Faults

    def _start_driver(self, stage: Stage) -> None:
        scenario = self._scenario
        spec = DriverSpec(
            str(stage.home), scenario.workload, scenario.parameters, self._seed, scenario.clients,
            str(self._path), 0.0, scenario.duration_s,
            job="chaos" if self._strikes.kill_driver else "",
        )  # fmt: skip
        stage.start_driver(spec)
        wait_until(lambda: self._noted(READY), READY_S, lambda: self._check_driver(stage))
        spec.ends_at_s = time.monotonic() + scenario.duration_s  # for drivers that are run again

    def _check_driver(self, stage: Stage) -> None:
        if not stage.driver_runs() and not self._noted(READY):
            raise RuntimeError(
                f"the driver ended before it was ready; see {stage.folder}/driver-1.log: "
                + stage.driver_said()
            )

    def _safety(self, stage: Stage, follower: Follower) -> None:
        """Faults strike until the time is up; then all is healed."""
        spec = stage.driver_spec
        self._recorder.note("phase", "safety")
        self._watch("phase", "faults strike" if self._scenario.nemesis else "without faults")
        self._watch("ends", f"{spec.ends_at_s - time.monotonic():.1f}")
        self._strikes.begin()
        while (now := time.monotonic()) < spec.ends_at_s:
            self._watch("tick", str(follower.acknowledged()))
            if not stage.driver_runs() and not self._strikes.driver_is_to_come():
                break
            time.sleep(min(self._strikes.step(), spec.ends_at_s - now))
        self._recorder.note("phase", "liveness")
        self._watch("phase", "no more faults, everything has to end")
        self._watch("ends", f"{self._scenario.patience_s:.1f}")
        self._strikes.end()

    # The end

    def _liveness(self, stage: Stage, follower: Follower) -> int | None:
        """The status with which the driver ended; None: it did not, and was ended."""
        deadline = time.monotonic() + self._scenario.patience_s
        while stage.driver_runs():
            self._watch("tick", str(follower.acknowledged()))
            if time.monotonic() > deadline:
                stage.save_stacks()
                stage.end_driver()
                return None
            time.sleep(STEP_S / 2)
        assert stage.driver is not None
        return stage.driver.returncode

    def _evidence(self, stage: Stage, status: int | None) -> Evidence:
        history = History.read(self._path)
        evidence = Evidence(self._scenario, self._workload, history, stage.rows, status)
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
        return bool(History.read(self._path).notes(name))


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
