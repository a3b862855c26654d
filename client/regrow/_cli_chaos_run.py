"""``regrow chaos run`` and ``scenarios``: scenarios on real processes, shown while they run."""

from __future__ import annotations

import time
from pathlib import Path

from rich.console import Console
from rich.markup import escape

from regrow.chaos import reports
from regrow.chaos.harness import run
from regrow.chaos.result import RunResult, percentile
from regrow.chaos.scenario import Scenario, ScenarioError, load, shipped

#: Exit statuses.
PASSED, FAILED, UNUSABLE = 0, 1, 2


def scenarios() -> None:
    """Print the scenarios that come with regrow."""
    for name in shipped():
        print(f"{name:<24} {load(name).title}")


def run_scenarios(
    names: list[str], seed: int, seeds: int, duration: float | None, nodes: int | None,
    report: Path | None,
) -> int:  # fmt: skip
    """Run each with each seed; the exit status."""
    console = Console()
    try:
        chosen = [_adjusted(load(name), duration, nodes) for name in names]
    except ScenarioError as error:
        Console(stderr=True).print(str(error), markup=False, soft_wrap=True)
        return UNUSABLE
    results = []
    for scenario in chosen:
        for number in range(seed, seed + seeds):
            folder = report / f"{scenario.name}-{number}" if report is not None else None
            results.append(run_one(console, scenario, number, folder))
    if report is not None:
        reports.write_all(results, report)
        console.print(f"reports: {report}", soft_wrap=True)
    failed = [result for result in results if not result.passed]
    if len(results) > 1:
        console.print(f"{len(results)} runs, {len(failed)} failed")
    return FAILED if failed else PASSED


def _adjusted(scenario: Scenario, duration: float | None, nodes: int | None) -> Scenario:
    scenario.duration_s = duration or scenario.duration_s
    scenario.nodes = nodes or scenario.nodes
    return scenario


def run_one(console: Console, scenario: Scenario, seed: int, folder: Path | None) -> RunResult:
    """One run, with what happens in it, and its report if there is a folder for it."""
    console.print(f"[bold]{escape(scenario.name)}[/], seed {seed}: {escape(scenario.title)}")
    begun = time.monotonic()
    with console.status("starting") as status:
        phase = "starting"

        def watch(kind: str, text: str) -> None:
            nonlocal phase
            spent = f"{time.monotonic() - begun:5.1f} s"
            if kind == "phase":
                phase = text
            elif kind in ("fault", "heal"):
                word = "[red]fault[/]" if kind == "fault" else "[green]heal [/]"
                console.print(f"  {spent}  {word}  {escape(text)}", soft_wrap=True)
            elif kind in ("failed", "broken"):
                console.print(f"  {spent}  [red]NO[/]     {escape(text)}", soft_wrap=True)
            status.update(f"{spent}  {phase}")

        result = run(scenario, seed, folder=folder, watch=watch)
    _tell(console, result)
    if folder is not None:
        reports.write(result, folder)
    return result


def _tell(console: Console, result: RunResult) -> None:
    for check in result.checks:
        for finding in check.findings[:5]:
            console.print(f"    {check.name}: {finding}", markup=False, soft_wrap=True)
    fired = ", ".join(f"{name} {count}" for name, count in result.fired.items()) or "no fault"
    recovery = ""
    if result.recoveries_s:
        p50, p99 = percentile(result.recoveries_s, 0.5), percentile(result.recoveries_s, 0.99)
        recovery = f"; recovery p50 {p50:.2f} s, p99 {p99:.2f} s"
    verdict = "[green]passed[/]" if result.passed else "[red]FAILED[/]"
    console.print(
        f"  {verdict} after {result.took_s:.0f} s: {fired}; {result.acknowledged} operations "
        f"acknowledged, {result.failed} failed, {result.unknown} unanswered{recovery}; "
        f"work amplification {result.amplification:.3f}",
        highlight=False,
        soft_wrap=True,
    )
    if not result.passed:
        console.print(f"  again: {result.command}", markup=False, soft_wrap=True)
