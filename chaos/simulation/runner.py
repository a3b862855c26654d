"""Runs seeds and reports the failing ones, each with the one command that replays it."""

from __future__ import annotations

import argparse
import sys
import time
import traceback
from collections.abc import Iterable

from msgspec import Struct

from regrow.chaos.simulation.cluster import Cluster, Scale
from regrow.chaos.simulation.mutants import MUTANTS, Mutation


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
    steps: int = 0
    failures: list[Failure] = []


def run_seed(seed: int, mutant: str = "", scale: Scale | None = None) -> tuple[Cluster, str]:
    """Runs one seed; the second is what went wrong, empty if nothing did."""
    mutation = MUTANTS[mutant]() if mutant else Mutation()
    cluster = Cluster(seed, scale, mutation)
    try:
        cluster.run()
    except Exception as error:
        return cluster, f"{type(error).__name__}: {error} {_place(error)}"
    return cluster, ""


def run_seeds(seeds: Iterable[int], mutant: str = "", stop_at: int = 10) -> Report:
    """Runs seeds until ``stop_at`` of them have failed."""
    report = Report()
    for seed in seeds:
        cluster, error = run_seed(seed, mutant)
        report.seeds += 1
        report.operations += cluster.operations
        report.steps += cluster.world.steps
        if error:
            report.failures.append(Failure(seed, error, replay_command(seed, mutant)))
            if len(report.failures) >= stop_at:
                break
    return report


def replay_command(seed: int, mutant: str = "") -> str:
    """Prints the trace of a seed."""
    suffix = f" --mutant {mutant}" if mutant else ""
    return f"python -m regrow.chaos.simulation --seed {seed}{suffix}"


def _place(error: Exception) -> str:
    """Where in the code it was raised."""
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return f"({frame.name}, line {frame.lineno} of {frame.filename.rsplit('/', 1)[-1]})"


def _replay(seed: int, mutant: str) -> int:
    mutation = MUTANTS[mutant]() if mutant else Mutation()
    cluster = Cluster(seed, None, mutation, show=print)
    print(f"seed {seed}: {len(cluster.nodes)} nodes, faults {cluster.faults.plan.enabled}")
    try:
        cluster.run()
    except Exception:
        traceback.print_exc()
        return 1
    print(f"passed; trace {cluster.world.digest()}")
    return 0


def main(argv: list[str] | None = None) -> int:
    """The command line; the exit status is 1 if a seed failed."""
    parser = argparse.ArgumentParser(
        prog="python -m regrow.chaos.simulation",
        description="Simulates a cluster under faults, once per seed.",
    )
    parser.add_argument("--seeds", type=int, default=1000, help="how many (default: 1000)")
    parser.add_argument("--start", type=int, default=0, help="the first one (default: 0)")
    parser.add_argument("--seed", type=int, help="replay this one, with its trace")
    parser.add_argument("--mutant", default="", choices=["", *MUTANTS], help="with a seeded bug")
    arguments = parser.parse_args(argv)
    if arguments.seed is not None:
        return _replay(arguments.seed, arguments.mutant)
    started = time.monotonic()
    total = Report()
    last = arguments.start + arguments.seeds
    for first in range(arguments.start, last, 100):
        report = run_seeds(range(first, min(first + 100, last)), arguments.mutant)
        total.seeds += report.seeds
        total.operations += report.operations
        total.steps += report.steps
        total.failures += report.failures
        for failure in report.failures:
            print(failure)
        spent = time.monotonic() - started
        print(
            f"{total.seeds} seeds, {total.operations} operations, {total.steps} steps, "
            f"{len(total.failures)} failed, {spent:.0f} s",
            flush=True,
        )
        if arguments.mutant and total.failures:
            break
    return 1 if total.failures else 0


if __name__ == "__main__":
    sys.exit(main())
