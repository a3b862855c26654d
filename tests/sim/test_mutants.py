"""The checks find bugs that were put in: each within a few hundred seeds.

Which seeds catch a mutant is found by ``regrow chaos simulate --mutant NAME``.
"""

from __future__ import annotations

import pytest

from regrow.chaos.simulation.mutants import MUTANTS
from regrow.chaos.simulation.runner import run_seed, run_seeds

#: What its report says, and the seeds to look at.
EXPECTED = {
    "fencing-off": ("was applied after its fencing", range(100)),
    "output-released-early": ("before its commit", range(10)),
    "holder-forgotten": ("is held by a dead node", range(50)),
    "batch-applied-twice": ("was applied twice", range(50)),
    "id-reused": ("is of call", range(300)),
    "calls-not-replayed": ("found another state than the calls before it made", range(300)),
    "calls-replayed-in-another-order": ("of a caller after", range(300)),
    "checkpoint-ahead": ("follows none", range(300)),
    "checkpoint-forgotten": ("found another state than the calls before it made", range(300)),
    "call-applied-twice": ("LivenessViolation", range(100)),
    "trimmed-too-early": ("actor_state_lost", range(100)),
    "commit-skipped": ("before its commit", range(10)),
    "lineage-dropped": ("was handed over before its commit", range(50)),
    "resource-leaked": ("LivenessViolation", range(10)),
}


@pytest.mark.slow
@pytest.mark.parametrize("mutant", sorted(MUTANTS))
def test_a_seeded_bug_is_caught(mutant: str) -> None:
    words, seeds = EXPECTED[mutant]
    for seed in seeds:
        _, error = run_seed(seed, mutant)
        if words in error:
            break
    else:
        pytest.fail(f"{mutant} was not caught in {len(seeds)} seeds")
    _, error = run_seed(seed)
    assert not error, "the seed fails without the mutant, too"


def test_a_failing_seed_names_the_command_that_replays_it() -> None:
    report = run_seeds(range(20), "output-released-early", stop_at=1)
    assert len(report.failures) == 1
    failure = report.failures[0]
    mutant = "output-released-early"
    command = f"regrow chaos simulate --seed {failure.seed} --mutant {mutant}"
    assert command in str(failure)
