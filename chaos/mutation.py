"""``python -m regrow.chaos.mutation``: puts bugs in, one at a time, and sees that they are found.

Those of the simulated tier are `regrow.chaos.simulation.mutants`, each looked for by seeds until
one fails; those of real processes are `regrow.failpoints.MUTANTS`, each looked for by a scenario. A
bug that is not found is a hole in the suite: the exit status is 1.
"""

from __future__ import annotations

import argparse
import os
import sys
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Final

import msgspec
from rich.console import Console
from rich.table import Table

from regrow import failpoints
from regrow.chaos.harness import run
from regrow.chaos.result import RunResult
from regrow.chaos.scenario import Scenario
from regrow.chaos.simulation.mutants import MUTANTS
from regrow.chaos.simulation.runner import run_seed

#: Seeds that a simulated bug may hide from.
SEEDS_MAX: Final = 1_000

#: The real bugs: the workload that is to meet each, and a checker that has to find it.
REAL: Final = {
    "call-applied-twice": ("counter", "counters"),
    "commit-skipped": ("task_tree", "one_result"),
    "lineage-row-dropped": ("task_tree", "lineage"),
}


class Found(msgspec.Struct):
    """What found a bug, and what it said; "": nothing did."""

    mutant: str
    does: str
    where: str = ""
    finding: str = ""


def simulated(mutant: str, seeds: int = SEEDS_MAX) -> Found:
    """Look for a bug of the simulated tier."""
    does = " ".join((MUTANTS[mutant].__doc__ or "").split())
    for seed in range(seeds):
        _, error = run_seed(seed, mutant)
        if error:
            return Found(mutant, does, f"simulated, seed {seed}", error)
    return Found(mutant, does)


def real(mutant: str) -> Found:
    """Look for a bug in real processes, without any fault: the checkers have to see it."""
    workload, checker = REAL[mutant]
    scenario = Scenario(
        f"The bug {mutant} is put in", workload, name=mutant, nodes=2, clients=2, duration_s=6.0,
        patience_s=10.0, environment={"REGROW_MUTANT": mutant},
    )  # fmt: skip
    result = run(scenario, 1)
    return Found(mutant, failpoints.MUTANTS[mutant], f"real, {workload}", _said(result, checker))


def _said(result: RunResult, checker: str) -> str:
    for check in result.checks:
        if check.name == checker and check.findings:
            return f"{checker}: {check.findings[0]}"
    return ""


def main(arguments: list[str] | None = None) -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(prog="regrow.chaos.mutation", description=__doc__)
    parser.add_argument("--tier", choices=["simulated", "real", "both"], default="both")
    given = parser.parse_args(arguments)
    found: list[Found] = []
    if given.tier != "real":
        jobs = len(os.sched_getaffinity(0))
        with ProcessPoolExecutor(jobs, get_context("spawn")) as pool:
            found += pool.map(simulated, MUTANTS)
    if given.tier != "simulated":
        found += map(real, REAL)
    table = Table("bug", "what it does", "found by", "which said")
    for one in found:
        table.add_row(one.mutant, one.does, one.where if one.finding else "NOTHING", one.finding)
    Console(width=160).print(table)
    survivors = [one.mutant for one in found if not one.finding]
    print(f"{len(found)} bugs, {len(found) - len(survivors)} found", *survivors)
    return 1 if survivors else 0


if __name__ == "__main__":
    sys.exit(main())
