"""What judges the logs of real clusters judges those of simulated ones, too."""

from __future__ import annotations

import pytest

from regrow.chaos.checkers.log import actor_order, fencing, lineage, one_result
from regrow.chaos.checkers.logbook import from_store
from regrow.chaos.simulation.runner import run_seed

SEEDS = 60


@pytest.mark.slow
def test_the_logs_of_simulations_are_well_formed() -> None:
    tasks = calls = 0
    for seed in range(SEEDS):
        cluster, error = run_seed(seed)
        assert not error
        log = from_store(cluster.database.store)
        for judge in (one_result, fencing, actor_order, lineage):
            assert judge(log) == [], f"seed {seed}: regrow chaos simulate --seed {seed}"
        tasks += len(log.tasks)
        calls += sum(bool(task.actor_seq) for task in log.tasks)
    assert tasks > 50 * SEEDS
    assert calls > SEEDS
