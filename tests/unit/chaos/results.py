"""Results of runs as the harness makes them, for tests of what shows them."""

from __future__ import annotations

from regrow.chaos.result import CheckResult, Phase, Replay, RunResult, Struck
from regrow.chaos.scenario import NemesisPlan, Scenario


def result(name: str = "node_crash", seed: int = 3, *, finding: str = "") -> RunResult:
    """A run under two faults; with a finding it has failed."""
    scenario = Scenario(
        title="Nodes die", workload="counter", name=name, nemesis=[NemesisPlan("node_crash")]
    )
    return RunResult(
        scenario,
        seed,
        f"regrow chaos run {name} --seed {seed}",
        begun_at="2026-01-02T03:04:05+00:00",
        took_s=31.25,
        checks=[
            CheckResult("errors", "no operation failed", [], 0),
            CheckResult("answers", "answers are right", [finding], 1)
            if finding
            else CheckResult("answers", "answers are right", [], 0),
        ],
        fired={"node_crash": 1, "worker_crash": 1},
        acknowledged=1200,
        failed=2,
        unknown=1,
        recoveries_s=[0.4, 2.5],
        detections_s=[2.1],
        amplification=1.02,
        run_again=[("branch", 3, 2)],
        replays=[
            Replay("aa" * 16, "leaf", 1, 0.0, 0.02, False, ["bb" * 16]),
            Replay("bb" * 16, "branch", 2, 0.1, None, None),
        ],
        faults=[
            Struck("node_crash", "node 3", 4.0, 6.0, 2.5, 2.1),
            Struck("worker_crash", "worker 12 of node 1", 7.0),
        ],
        phases=[Phase("safety", 1.0), Phase("liveness", 9.0)],
        span_s=10.0,
        slice_s=1.0,
        slices=[(0, 0), (200, 0), (300, 2), (700, 0)],
        logs=["driver-1.log", "logs/gcs.log"],
    )
