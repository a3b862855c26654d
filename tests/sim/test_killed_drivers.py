"""Drivers of named jobs are killed, and their programs run again: a sample, with other faults."""

from __future__ import annotations

import pytest

from regrow.chaos.simulation.cluster import Scale
from regrow.chaos.simulation.runner import run_seed

SEEDS = 60


@pytest.mark.slow
@pytest.mark.parametrize("others", [[], ["worker_crash"], ["node_crash"]], ids=lambda o: str(o))
def test_a_job_whose_driver_is_killed_ends_with_the_golden_results(others: list[str]) -> None:
    scale = Scale(faults=["driver_kill", *others])
    killed = 0
    for seed in range(SEEDS):
        cluster, error = run_seed(seed, scale=scale)
        assert not error, f"seed {seed}, {scale.faults}: {error}"
        killed += sum(driver.driver > 1 for driver in cluster.drivers)
    assert killed > SEEDS / 2, "few drivers were killed"
