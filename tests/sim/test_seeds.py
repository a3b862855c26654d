"""Three thousand seeds: nodes, control store and database under random faults.

A failing seed names the command that replays it with its trace.
"""

from __future__ import annotations

import os

import pytest

from regrow.chaos.simulation.faults import KINDS
from regrow.chaos.simulation.runner import Report, run_in_processes, run_seed

SEEDS = int(os.environ.get("REGROW_SIM_SEEDS", "3000"))
#: Cases, so that progress shows.
CASES = 10
#: Defects that are known and not mended yet: seed, and how it fails.
KNOWN = {203: "a task that runs again waits for its own put, which was spilled and cannot be read"}


@pytest.mark.slow
@pytest.mark.parametrize("case", range(CASES))
def test_every_task_ends_once_with_the_golden_result_whatever_fails(case: int) -> None:
    share = SEEDS // CASES
    report = Report()
    cores = len(os.sched_getaffinity(0))
    for part in run_in_processes(range(case * share, (case + 1) * share), cores, ""):
        report.add(part)
    unknown = [failure for failure in report.failures if failure.seed not in KNOWN]
    assert not unknown, "\n" + "\n".join(map(str, unknown))
    assert report.operations > 200 * share
    assert [kind for kind in KINDS if not report.fired[kind]] == [], "they never struck"


@pytest.mark.xfail(strict=True, reason="known, see KNOWN; once mended it is to go from there")
@pytest.mark.parametrize("seed", KNOWN)
def test_a_seed_that_is_known_to_fail(seed: int) -> None:
    _, error = run_seed(seed)
    assert not error
