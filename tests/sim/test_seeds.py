"""Three thousand seeds: nodes, control store and database under random faults.

A failing seed names the command that replays it with its trace.
"""

from __future__ import annotations

import os

import pytest

from regrow.chaos.simulation.faults import KINDS
from regrow.chaos.simulation.runner import run_seeds

SEEDS = int(os.environ.get("REGROW_SIM_SEEDS", "3000"))
#: Cases, so that progress shows.
CASES = 10


@pytest.mark.slow
@pytest.mark.parametrize("case", range(CASES))
def test_every_task_ends_once_with_the_golden_result_whatever_fails(case: int) -> None:
    share = SEEDS // CASES
    report = run_seeds(range(case * share, (case + 1) * share))
    assert not report.failures, "\n" + "\n".join(map(str, report.failures))
    assert report.operations > 200 * share
    assert [kind for kind in KINDS if not report.fired[kind]] == [], "they never struck"
