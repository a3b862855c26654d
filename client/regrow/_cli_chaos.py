"""``regrow chaos simulate``: seeds of the simulator, and what is told of them.

What is run and checked, and how a failing seed is made small, is in ``regrow.chaos.simulation``.
"""

from __future__ import annotations

import os
import time
from contextlib import closing
from pathlib import Path
from typing import Any, Final

import msgspec
import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from regrow.chaos.simulation.cluster import Scale
from regrow.chaos.simulation.faults import KINDS
from regrow.chaos.simulation.mutants import MUTANTS
from regrow.chaos.simulation.runner import Report, never_fired, run_in_processes, run_seed
from regrow.chaos.simulation.shrink import Case, Shrunk, load, save, shrink

#: Failing seeds after which a run ends, and those of them that are shrunk.
FAILURES_MAX: Final = 10
SHRUNK_MAX: Final = 3
#: Each kind of fault is to strike so often in so many seeds.
STRIKES_WANTED: Final = 1000
SEEDS_OF_THAT: Final = 10_000
#: Lines of a shrunk trace that are shown, the last ones; and what is left out of them.
TRACE_LINES: Final = 60
_NOISE: Final = ("<- Tick(", "<- FlushDue(", "Lead(", "Leadership(")
#: In larger clusters the invariants of the cores are sampled.
ALL_CHECKED_TO: Final = 50


def scale_of(nodes: int | None, faults: str | None) -> Scale:
    """From the options of the command. Raises typer.BadParameter."""
    kinds = None if faults is None else [kind for kind in faults.split(",") if kind]
    unknown = [kind for kind in kinds or () if kind not in KINDS]
    if unknown:
        raise typer.BadParameter(f"there are: {', '.join(KINDS)}", param_hint="--faults")
    sampled = nodes if nodes is not None and nodes > ALL_CHECKED_TO else 1
    return Scale(nodes=nodes, faults=kinds, check_every=sampled)


def known_mutant(mutant: str) -> str:
    """Raises typer.BadParameter."""
    if mutant and mutant not in MUTANTS:
        raise typer.BadParameter(f"there are: {', '.join(MUTANTS)}", param_hint="--mutant")
    return mutant


def replay_file(path: Path) -> int:
    """Repeat a case that was shrunk, with its trace. Raises typer.BadParameter."""
    try:
        case = load(path.read_bytes())
    except (OSError, msgspec.DecodeError) as error:
        raise typer.BadParameter(f"{path}: {error}", param_hint="--replay") from None
    return replay(case)


def one_seed(seed: int, mutant: str, scale: Scale, shrinks: bool) -> int:
    """Replay a seed, or make it small; the exit status."""
    case = Case(seed, mutant, scale)
    return shrink_case(case) if shrinks else replay(case)


def replay(case: Case) -> int:
    """Print the trace of a case; the exit status."""
    cluster, error = run_seed(case.seed, case.mutant, case.scale, show=print)
    print(f"faults: {', '.join(cluster.faults.plan.enabled) or 'none'}")
    print(error or f"passed; trace {cluster.world.digest()}")
    return 1 if error else 0


def shrink_case(case: Case) -> int:
    """Make a failing seed small, and print what is left of it; the exit status."""
    with _progress("{task.fields[done]} runs, {task.completed} of {task.total} events left") as bar:
        task = bar.add_task("shrinking", total=None, done=0)

        def told(best: Shrunk) -> None:
            bar.update(task, total=best.steps_before, completed=best.steps, done=best.runs)

        shrunk = shrink(case, told)
    if shrunk is None:
        print(f"seed {case.seed} passes")
        return 0
    path = Path(f"chaos-seed-{case.seed}.json")
    path.write_bytes(save(shrunk.case))
    _print_shrunk(shrunk)
    print(f"    shrunk from {shrunk.steps_before:,} events to {shrunk.steps:,}: {shrunk.error}")
    print(f"    replay: regrow chaos simulate --replay {path}")
    return 1


def _print_shrunk(shrunk: Shrunk) -> None:
    """The end of its trace."""
    lines: list[str] = []
    case = shrunk.case
    run_seed(case.seed, case.mutant, case.scale, show=lines.append)
    lines = [line for line in lines if not any(noise in line for noise in _NOISE)]
    for line in lines[-TRACE_LINES:]:
        print("   ", line)


def simulate(
    seeds: range, mutant: str = "", jobs: int | None = None, scale: Scale | None = None,
    shrinks: bool = True,
) -> int:  # fmt: skip
    """Run seeds, showing how far it is; print what came of them; the exit status."""
    started = time.monotonic()
    scale = scale or Scale()
    total = Report()
    most = 1 if mutant else FAILURES_MAX
    processes = jobs or len(os.sched_getaffinity(0))
    with (
        _progress("{task.completed}/{task.total} seeds, {task.fields[failed]} failed") as progress,
        closing(run_in_processes(seeds, processes, mutant, scale, most)) as reports,
    ):
        task = progress.add_task("seeds", total=len(seeds), failed=0)
        for report in reports:
            total.add(report)
            progress.update(task, completed=total.seeds, failed=len(total.failures))
            if len(total.failures) >= most:
                break
    unfired = never_fired(total, scale)
    _summary(total, time.monotonic() - started)
    for failure in total.failures[:most]:
        print(failure)
    for failure in total.failures[:SHRUNK_MAX] if shrinks else []:
        shrink_case(Case(failure.seed, mutant, scale))
    if unfired:
        print(f"never struck, so nothing was shown about them: {', '.join(unfired)}")
    return 1 if total.failures or unfired else 0


def _progress(text: str) -> Progress:
    """On standard error; only where that is a terminal."""
    console = Console(stderr=True)
    columns: list[Any] = [TextColumn(text), BarColumn(), TimeElapsedColumn(), TimeRemainingColumn()]
    return Progress(*columns, console=console, transient=True, disable=not console.is_terminal)


def _summary(total: Report, spent_s: float) -> None:
    """How often each kind of fault struck, and where that is less than in ten thousand seeds it
    should be."""
    wanted = STRIKES_WANTED * total.seeds // SEEDS_OF_THAT
    for kind in KINDS:
        few = f"  (fewer than {wanted:,})" if total.fired[kind] < wanted else ""
        print(f"{kind:>24} {total.fired[kind]:>9,}{few}")
    print(
        f"{total.seeds:,} seeds, {total.operations:,} operations (at least {total.least:,} each), "
        f"{total.steps:,} events, {len(total.failures)} failed, {spent_s:.0f} s"
    )
