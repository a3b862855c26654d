"""regrow beside Ray on the same machine: both in turn, row by row, as ratios.

Each side runs `workloads.py` in a process of its own, regrow then Ray and over again, so that a
drift of the machine meets both. The floors are multiples of Ray in the same run, or absolute.
Without Ray the absolute floors and regrow's own figures remain.

Run: python benchmarks/compare.py [--quick] [--million] [--ray-python PATH] [--json FILE]
"""

import argparse
import importlib.util
import json
import math
import os
import statistics
import subprocess
import sys
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

HERE = Path(__file__).parent
SIDE_TIMEOUT_S = 1800.0


@dataclass(frozen=True)
class Row:
    """A line of the table and what regrow must reach in it."""

    name: str
    title: str
    unit: str
    #: At least (rates) or at most (times, memory) this multiple of Ray's figure.
    ratio_floor: float | None = None
    #: At most this figure, whatever Ray does.
    limit: float | None = None
    lower_is_better: bool = False
    durability: str = "commit"
    #: The workload measured, where the row is a variant of another.
    workload: str = ""
    quick: bool = True

    @property
    def measures(self) -> str:
        """Return the name of the workload that this row runs."""
        return self.workload or self.name


ROWS = [
    Row("init_cold", "init, nothing there yet", "s", lower_is_better=True),
    Row("init_first_task", "init and one task, nothing there yet", "s", lower_is_better=True),
    Row("init_warm", "init on existing data", "s", limit=2.0, lower_is_better=True),
    Row("idle_memory", "idle memory (PSS)", "MB", ratio_floor=1.0, lower_is_better=True),
    Row("ten_actors", "ten actors from nothing", "s", limit=0.6, lower_is_better=True),
    Row("tasks_batch_1k", "no-op tasks, batch of 1,000", "/s", ratio_floor=5),
    Row("tasks_batch_10k", "no-op tasks, batch of 10,000", "/s", ratio_floor=5, quick=False),
    Row("tasks_batch_100k", "no-op tasks, batch of 100,000", "/s", ratio_floor=5, quick=False),
    Row("tasks_one_at_a_time", "no-op task, one at a time", "/s", ratio_floor=1.5),
    Row(
        "tasks_one_at_a_time_async",
        'no-op task, one at a time, durability="async"',
        "/s",
        ratio_floor=4,
        durability="async",
        workload="tasks_one_at_a_time",
    ),
    Row("tasks_nested", "nested: four tasks submit 250 each", "/s", ratio_floor=4),
    Row("chain_300", "chain of 300 tasks", "/s", ratio_floor=3),
    Row("actor_calls_batch", "actor calls, batch of 1,000", "/s", ratio_floor=4),
    Row("actor_calls_one_at_a_time", "actor call, one at a time", "/s", ratio_floor=2),
    Row("put_small", "put of a small value", "/s", ratio_floor=5),
    Row("get_local", "get of a local value", "/s", ratio_floor=2),
    Row("wait_1000", "wait down 1,000 refs", "refs/s", ratio_floor=5),
    Row("put_100mb", "put of a 100 MB array, steady", "GB/s", ratio_floor=3),
    Row("put_800mb", "put of an 800 MB array, steady", "GB/s", ratio_floor=3, quick=False),
    Row("task_results_8mib", "8 MiB task results", "GB/s"),
    Row("get_10k_refs", "get of an object with 10,000 refs", "/s"),
]


@dataclass(frozen=True)
class Figures:
    """What one side measured: the values of each run, and the rows committed in the last."""

    #: Empty if a run failed.
    values: tuple[float, ...]
    committed: int | None = None

    @property
    def median(self) -> float:
        """Return the median over the runs; NaN, which reaches no floor, if one failed."""
        return statistics.median(self.values) if self.values else math.nan

    def __str__(self) -> str:
        return f"{self.median:,.4g}" if self.values else "failed"


def run_side(
    python: str, impl: str, workloads: Sequence[str], durability: str, quick: bool
) -> dict[str, dict[str, float]]:
    """Run one side once in a fresh process.

    Raises:
        subprocess.CalledProcessError: the side failed; its errors have been printed.
        subprocess.TimeoutExpired: it took longer than half an hour.
    """
    command = [python, str(HERE / "workloads.py"), "--impl", impl, "--rows", ",".join(workloads)]
    command += ["--durability", durability] + (["--quick"] if quick else [])
    environment = {**os.environ, "REGROW_BENCHMARK_RUN": uuid.uuid4().hex}
    finished = subprocess.run(
        command,
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
        timeout=SIDE_TIMEOUT_S,
        check=True,
    )
    results: dict[str, dict[str, float]] = json.loads(finished.stdout.splitlines()[-1])
    return results


def alternate(
    rows: Sequence[Row], pairs: int, ray_python: str | None, quick: bool
) -> tuple[dict[str, Figures], dict[str, Figures]]:
    """Run both sides in turn ``pairs`` times; return regrow's and Ray's figures by row."""
    regrow: dict[str, list[dict[str, float]]] = {row.name: [] for row in rows}
    ray: dict[str, list[dict[str, float]]] = {row.name: [] for row in rows}
    for pair in range(pairs):
        print(f"pair {pair + 1} of {pairs}", file=sys.stderr)
        for durability in ("commit", "async"):
            chosen = [row for row in rows if row.durability == durability]
            if not chosen:
                continue
            workloads = list(dict.fromkeys(row.measures for row in chosen))
            results = run_side(sys.executable, "regrow", workloads, durability, quick)
            for row in chosen:
                regrow[row.name].append(results[row.measures])
        if ray_python is not None:
            workloads = list(dict.fromkeys(row.measures for row in rows))
            results = run_side(ray_python, "ray", workloads, "commit", quick)
            for row in rows:
                ray[row.name].append(results[row.measures])
    return _figures(regrow), _figures(ray)


def _figures(runs: Mapping[str, Sequence[Mapping[str, float]]]) -> dict[str, Figures]:
    figures: dict[str, Figures] = {}
    for name, values in runs.items():
        if any("error" in run for run in values):
            figures[name] = Figures(())
        elif values:
            committed = values[-1].get("committed")
            figures[name] = Figures(
                tuple(run["value"] for run in values),
                None if committed is None else int(committed),
            )
    return figures


def verdict(row: Row, regrow: Figures, ray: Figures | None) -> str:
    """Return "pass" or "FAIL", or "" where there is no floor or nothing to compare with."""
    if row.limit is not None:
        return "pass" if regrow.median <= row.limit else "FAIL"
    if row.ratio_floor is None or ray is None:
        return ""
    ratio = regrow.median / ray.median
    held = ratio <= row.ratio_floor if row.lower_is_better else ratio >= row.ratio_floor
    return "pass" if held else "FAIL"


def floor_text(row: Row) -> str:
    """Return the floor as the table shows it."""
    if row.limit is not None:
        return f"<= {row.limit:g} {row.unit}"
    if row.ratio_floor is None:
        return ""
    return f"{'<=' if row.lower_is_better else '>='} {row.ratio_floor:g} x"


def table(rows: Sequence[Row], regrow: Mapping[str, Figures], ray: Mapping[str, Figures]) -> Table:
    """Return the figures as a table."""
    result = Table("workload", title="regrow beside Ray, medians of alternating runs")
    for heading in ("regrow", "Ray", "unit", "ratio", "floor", "", "rows committed"):
        result.add_column(heading, justify="left" if heading == "unit" else "right")
    for row in rows:
        ours, theirs = regrow[row.name], ray.get(row.name)
        held = verdict(row, ours, theirs)
        result.add_row(
            row.title,
            str(ours),
            str(theirs) if theirs else "-",
            row.unit,
            f"{ours.median / theirs.median:.2f}" if theirs else "-",
            floor_text(row),
            {"pass": "[green]pass[/]", "FAIL": "[red]FAIL[/]"}.get(held, ""),
            f"{ours.committed:,}" if ours.committed is not None else "",
        )
    return result


def find_ray(path: str | None) -> str | None:
    """Return the interpreter to run Ray with: the one given, this one if it has Ray, or None."""
    if path is not None:
        return path
    return sys.executable if importlib.util.find_spec("ray") is not None else None


def main() -> int:
    """Run the comparison; return 1 with --check if a floor was missed, else 0."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="short windows, one pair, no 100 k")
    parser.add_argument("--pairs", type=int, help="runs of each side (default 3; quick: 1)")
    parser.add_argument("--rows", help="only these rows, comma-separated")
    parser.add_argument("--ray-python", help="an interpreter that has Ray")
    parser.add_argument("--million", action="store_true", help="also 1 M tasks, regrow alone")
    parser.add_argument("--json", type=Path, help="write the figures here too")
    parser.add_argument("--check", action="store_true", help="exit 1 if a floor is missed")
    arguments = parser.parse_args()
    rows = [row for row in ROWS if row.quick or not arguments.quick]
    if arguments.rows:
        wanted = arguments.rows.split(",")
        unknown = sorted(set(wanted) - {row.name for row in ROWS})
        if unknown:
            parser.error(f"unknown rows: {', '.join(unknown)}")
        rows = [row for row in ROWS if row.name in wanted]
    pairs = arguments.pairs or (1 if arguments.quick else 3)
    ray_python = find_ray(arguments.ray_python)
    regrow, ray = alternate(rows, pairs, ray_python, arguments.quick)
    # Wide enough for every column when the output goes to a file.
    console = Console() if sys.stdout.isatty() else Console(width=140)
    console.print(table(rows, regrow, ray))
    if ray_python is None:
        console.print("Ray is not installed here: --ray-python PATH names an interpreter with it.")
    missed = [
        row.name for row in rows if verdict(row, regrow[row.name], ray.get(row.name)) == "FAIL"
    ]
    if arguments.json:
        arguments.json.write_text(
            json.dumps(
                {
                    row.name: {
                        "regrow": regrow[row.name].values,
                        "ray": ray[row.name].values if row.name in ray else None,
                        "committed": regrow[row.name].committed,
                    }
                    for row in rows
                },
                indent=2,
            )
        )
    if arguments.million:
        subprocess.run([sys.executable, str(HERE / "growth.py")], check=True)
    return 1 if arguments.check and missed else 0


if __name__ == "__main__":
    sys.exit(main())
