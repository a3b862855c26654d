"""``regrow chaos``: clusters under faults. What is run and checked is in ``regrow.chaos``."""

from __future__ import annotations

import os
import time
from contextlib import closing

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from regrow.chaos.simulation.faults import ALL_KINDS
from regrow.chaos.simulation.mutants import MUTANTS
from regrow.chaos.simulation.runner import Report, run_in_processes, run_seed

#: Failing seeds after which a run ends.
FAILURES_MAX = 10


def replay(seed: int, mutant: str) -> int:
    """Print the trace of a seed; the exit status."""
    cluster, error = run_seed(seed, _known(mutant), show=print)
    print(f"faults: {', '.join(cluster.faults.plan.enabled) or 'none'}")
    print(error or f"passed; trace {cluster.world.digest()}")
    return 1 if error else 0


def simulate(seeds: range, mutant: str, jobs: int | None) -> int:
    """Run seeds, showing how far it is; print what came of them; the exit status."""
    started = time.monotonic()
    total = Report()
    most = 1 if _known(mutant) else FAILURES_MAX
    with (
        _progress() as progress,
        closing(run_in_processes(seeds, jobs or len(os.sched_getaffinity(0)), mutant)) as reports,
    ):
        task = progress.add_task("seeds", total=len(seeds), failed=0)
        for report in reports:
            total.add(report)
            progress.update(task, completed=total.seeds, failed=len(total.failures))
            if len(total.failures) >= most:
                break
    _summary(total, time.monotonic() - started)
    return 1 if total.failures else 0


def _known(mutant: str) -> str:
    if mutant and mutant not in MUTANTS:
        raise typer.BadParameter(f"there are: {', '.join(MUTANTS)}", param_hint="--mutant")
    return mutant


def _progress() -> Progress:
    """On standard error; only where that is a terminal."""
    console = Console(stderr=True)
    return Progress(
        TextColumn("{task.completed}/{task.total} seeds"),
        BarColumn(),
        TextColumn("{task.fields[failed]} failed"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )


def _summary(total: Report, spent_s: float) -> None:
    for kind in ALL_KINDS:
        print(f"{kind:>24} {total.fired[kind]:>9,}")
    for failure in total.failures:
        print(failure)
    print(
        f"{total.seeds:,} seeds, {total.operations:,} operations, {total.steps:,} steps, "
        f"{len(total.failures)} failed, {spent_s:.0f} s"
    )
