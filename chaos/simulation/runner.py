"""Runs seeds, here or in several processes, and reports the failing ones.

Each failing seed comes with the one command that replays it. ``regrow chaos simulate`` is the
command line.
"""

from __future__ import annotations

import multiprocessing
import signal
import traceback
from collections import Counter
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from typing import Final

from msgspec import Struct, field

from regrow.chaos.simulation.cluster import Cluster, Scale
from regrow.chaos.simulation.faults import KINDS
from regrow.chaos.simulation.mutants import MUTANTS, Mutation

#: Seeds that a process is given at a time: few, so that progress shows and none is idle for long.
CHUNK: Final = 20
#: In so many seeds every kind of fault has to strike.
SEEDS_ENOUGH: Final = 1000


class Failure(Struct, frozen=True):
    """A seed that failed, and how."""

    seed: int
    error: str
    command: str

    def __str__(self) -> str:
        return f"seed {self.seed}: {self.error}\n    replay: {self.command}"


class Report(Struct):
    """What came of some seeds."""

    seeds: int = 0
    operations: int = 0
    #: Of the seed with the fewest.
    least: int = 0
    steps: int = 0
    #: How often each kind of fault struck.
    fired: Counter[str] = field(default_factory=Counter)
    failures: list[Failure] = []

    def add(self, other: Report) -> None:
        self.least = min(self.least, other.least) if self.seeds else other.least
        self.seeds += other.seeds
        self.operations += other.operations
        self.steps += other.steps
        self.fired += other.fired
        self.failures = sorted(self.failures + other.failures, key=lambda failure: failure.seed)


def run_seed(
    seed: int,
    mutant: str = "",
    scale: Scale | None = None,
    show: Callable[[str], None] | None = None,
) -> tuple[Cluster, str]:
    """Runs one seed; the second is what went wrong, empty if nothing did."""
    mutation = MUTANTS[mutant]() if mutant else Mutation()
    cluster = Cluster(seed, scale, mutation, show)
    try:
        cluster.run()
    except Exception as error:
        return cluster, f"{type(error).__name__}: {error} {_place(error)}"
    return cluster, ""


def run_seeds(
    seeds: Iterable[int], mutant: str = "", stop_at: int = 10, scale: Scale | None = None
) -> Report:
    """Runs seeds until ``stop_at`` of them have failed."""
    report = Report()
    for seed in seeds:
        cluster, error = run_seed(seed, mutant, scale)
        failures = [Failure(seed, error, replay_command(seed, mutant, scale))] if error else []
        operations, steps = cluster.operations, cluster.world.steps
        report.add(Report(1, operations, operations, steps, cluster.faults.fired, failures))
        if error and len(report.failures) >= stop_at:
            break
    return report


def run_in_processes(
    seeds: range, jobs: int, mutant: str = "", scale: Scale | None = None, stop_at: int = CHUNK
) -> Generator[Report, None, None]:
    """Runs seeds in ``jobs`` processes; reports of a few seeds each, as they come. A caller that
    has seen enough closes the iterator: what has begun is awaited, nothing else begins."""
    chunks = [seeds[i : i + CHUNK] for i in range(0, len(seeds), CHUNK)]
    if jobs == 1:
        for chunk in chunks:
            yield run_seeds(chunk, mutant, stop_at, scale)
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, context, initializer=_in_process) as pool:
        running: set[Future[Report]] = set()
        try:
            while chunks or running:
                while chunks and len(running) < 2 * jobs:
                    chunk = chunks.pop(0)
                    running.add(pool.submit(run_seeds, chunk, mutant, stop_at, scale))
                done, running = wait(running, return_when=FIRST_COMPLETED)
                for future in done:
                    yield future.result()
        finally:
            for future in running:
                future.cancel()


def _in_process() -> None:
    """Control-C is for the process that the user sees."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def replay_command(seed: int, mutant: str = "", scale: Scale | None = None) -> str:
    """Prints the trace of a seed."""
    words = [f"regrow chaos simulate --seed {seed}"]
    words += [f"--mutant {mutant}"] if mutant else []
    if scale is not None and scale.nodes is not None:
        words.append(f"--nodes {scale.nodes}")
    if scale is not None and scale.faults is not None:
        words.append(f"--faults {','.join(scale.faults)}")
    return " ".join(words)


def never_fired(report: Report, scale: Scale) -> list[str]:
    """Kinds of faults that never struck although there were seeds enough."""
    kinds = KINDS if scale.faults is None else scale.faults
    if report.seeds < SEEDS_ENOUGH:
        return []
    return [kind for kind in kinds if not report.fired[kind]]


def _place(error: Exception) -> str:
    """Where in the code it was raised."""
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return f"({frame.name}, line {frame.lineno} of {frame.filename.rsplit('/', 1)[-1]})"
