"""``regrow chaos run`` and ``scenarios``: scenarios, or a user's program, on real processes.

Decides which runs there are and what the exit status is. What a run does is the harness's, what is
shown of it `regrow._cli_chaos_show`'s.
"""

from __future__ import annotations

import itertools
import shlex
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import msgspec
from rich.console import Console
from rich.markup import escape

from regrow import _cli_chaos_show as show
from regrow.chaos import harness, program, reports
from regrow.chaos.result import RunResult
from regrow.chaos.scenario import Scenario, ScenarioError, load, shipped

#: Exit statuses.
PASSED, FAILED, UNUSABLE = 0, 1, 2


class Plan(msgspec.Struct):
    """Which runs are wanted."""

    #: Scenarios by name or file.
    names: list[str]
    seed: int = 0
    #: How many, from ``seed`` on.
    seeds: int = 1
    duration_s: float | None = None
    nodes: int | None = None
    report: Path | None = None
    #: No run begins after so many minutes.
    limit_min: float | None = None
    #: Instead of ``seeds``: until every fault has fired so often.
    until_fired: int | None = None


def names() -> list[str]:
    """Of the scenarios that come with regrow."""
    return list(shipped())


def scenarios() -> None:
    """Print the scenarios that come with regrow."""
    for name in shipped():
        print(f"{name:<24} {load(name).title}")


def run_scenarios(plan: Plan) -> int:
    """Run each with each seed; the exit status. It is FAILED, too, if there was no time for one of
    the scenarios, or for a fault to fire as often as it should."""
    console = Console()
    try:
        chosen = [_adjusted(load(name), plan) for name in plan.names]
    except ScenarioError as error:
        return _unusable(error)
    commands = dict(zip((one.name for one in chosen), plan.names, strict=True))
    results: list[RunResult] = []
    began = time.monotonic()
    for scenario, seed in _runs(chosen, plan, results):
        if plan.limit_min is not None and time.monotonic() - began > 60 * plan.limit_min:
            console.print(f"no further run after {plan.limit_min:g} minutes")
            break
        command = _command(commands[scenario.name], seed, plan)
        results.append(_run_one(console, scenario, seed, command, plan.report))
        if plan.report is not None:
            reports.write_all(results, plan.report)
    return _end(console, chosen, plan, results)


def _runs(
    chosen: list[Scenario], plan: Plan, results: list[RunResult]
) -> Iterator[tuple[Scenario, int]]:
    """All scenarios with the first seed, then with the next; ``results`` are those so far."""
    for number in itertools.count():
        missing = _missing(chosen, plan, results)
        if not missing if plan.until_fired is not None else number >= plan.seeds:
            return
        for scenario in chosen:
            faults = {one.name for one in scenario.nemesis}
            if plan.until_fired is None or number == 0 or faults & missing.keys():
                yield scenario, plan.seed + number
                missing = _missing(chosen, plan, results)


def _missing(chosen: list[Scenario], plan: Plan, results: list[RunResult]) -> dict[str, int]:
    """Faults that have not fired as often as they should, and how often they have."""
    fired: Counter[str] = Counter()
    for result in results:
        fired.update(result.fired)
    names = dict.fromkeys(one.name for scenario in chosen for one in scenario.nemesis)
    return {name: fired[name] for name in names if fired[name] < (plan.until_fired or 0)}


def _end(console: Console, chosen: list[Scenario], plan: Plan, results: list[RunResult]) -> int:
    if len(results) > 1:
        show.tell_all(console, results)
    if plan.report is not None:
        console.print(f"reports: {plan.report / reports.INDEX_FILE}", soft_wrap=True)
    ran = {result.scenario.name for result in results}
    complaints = [f"there was no time for {one.name}" for one in chosen if one.name not in ran] + [
        f"{name} fired {count} times, not {plan.until_fired}"
        for name, count in _missing(chosen, plan, results).items()
    ]
    for complaint in complaints:
        console.print(complaint, markup=False, highlight=False)
    passed = all(result.passed for result in results) and not complaints
    return PASSED if passed else FAILED


def _adjusted(scenario: Scenario, plan: Plan) -> Scenario:
    scenario.duration_s = plan.duration_s or scenario.duration_s
    scenario.nodes = plan.nodes or scenario.nodes
    return scenario


def _command(name: str, seed: int, plan: Plan) -> str:
    words = ["regrow", "chaos", "run", name, "--seed", str(seed)]
    if plan.duration_s is not None:
        words += ["--duration", f"{plan.duration_s:g}"]
    if plan.nodes is not None:
        words += ["--nodes", str(plan.nodes)]
    return shlex.join(words)


def _run_one(
    console: Console, scenario: Scenario, seed: int, command: str, report: Path | None
) -> RunResult:
    """One run, with what happens in it, and its report if there is a folder for it."""
    console.print(f"[bold]{escape(scenario.name)}[/], seed {seed}: {escape(scenario.title)}")
    folder = report / f"{scenario.name}-{seed}" if report is not None else None
    with show.Display(console) as display:
        result = harness.run(
            scenario, seed, folder=folder, watch=display.watch, command=command
        )  # fmt: skip
    show.tell(console, result)
    if folder is not None:
        reports.write(result, folder)
    return result


def run_program(wanted: program.Program, seed: int, seeds: int, report: Path | None) -> int:
    """A user's program without faults and with, for each seed; the exit status."""
    console = Console()
    results: list[RunResult] = []
    for number in range(seed, seed + seeds):
        folder = report / f"{wanted.name}-{number}" if report is not None else None
        console.print(
            f"[bold]{escape(shlex.join(wanted.command))}[/], seed {number}: once without faults, "
            "then with",
            soft_wrap=True,
        )
        try:
            with show.Display(console) as display:
                result = program.run(wanted, number, folder, display.watch)
        except ScenarioError as error:
            return _unusable(error)
        results.append(result)
        show.tell(console, result)
        if folder is not None:
            reports.write(result, folder)
    if report is not None:
        reports.write_all(results, report)
        console.print(f"reports: {report / reports.INDEX_FILE}", soft_wrap=True)
    if len(results) > 1:
        show.tell_all(console, results)
    return PASSED if all(result.passed for result in results) else FAILED


def _unusable(error: ScenarioError) -> int:
    Console(stderr=True).print(str(error), markup=False, highlight=False, soft_wrap=True)
    return UNUSABLE
