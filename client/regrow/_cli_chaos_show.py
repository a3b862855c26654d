"""What ``regrow chaos run`` shows: a run while it goes on, what came of it, and what all came to.

In a terminal the last lines are kept up to date; elsewhere each piece of news is a line. Decides
nothing about the runs.
"""

from __future__ import annotations

import time
from collections import Counter, deque
from types import TracebackType
from typing import Final, Self

from rich.console import Console
from rich.live import Live
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from regrow.chaos.reports.totals import Totals
from regrow.chaos.result import RunResult, percentile

#: Operations per second are those of so many seconds.
WINDOW_S: Final = 2.0
#: Without a terminal, how often it is told how far it is.
LINE_EVERY_S: Final = 10.0
FINDINGS_SHOWN: Final = 5


class Display:
    """A run while it goes on; ``watch`` is what the harness tells. A context manager."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._begun = time.monotonic()
        self._phase = "starting"
        self._ends_s: float | None = None
        self._faults: Counter[str] = Counter()
        self._counts: deque[tuple[float, int]] = deque()
        self._checked: Counter[str] = Counter()
        self._told_s = self._begun
        self._live = Live(get_renderable=self._now, console=console, transient=True)

    def __enter__(self) -> Self:
        if self._console.is_terminal:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:  # fmt: skip
        self._live.stop()

    def watch(self, kind: str, text: str) -> None:
        """News of the run: see `regrow.chaos.harness.run`."""
        if kind == "phase":
            self._phase, self._ends_s, self._told_s = text, None, time.monotonic()
            if not self._console.is_terminal:
                self._line(text)
        elif kind == "ends":
            self._ends_s = time.monotonic() + float(text)
        elif kind == "tick":
            self._tick(int(text))
        elif kind == "fault":
            self._faults[text.partition(":")[0]] += 1
            self._line(f"[red]fault[/]  {escape(text)}")
        elif kind == "heal":
            self._line(f"[green]heal[/]   {escape(text)}")
        elif kind in ("passed", "failed"):
            self._checked[kind] += 1
            if kind == "failed":
                self._line(f"[red]NO[/]     {escape(text)}")
        elif kind == "broken":
            self._line(f"[red]broken[/] {escape(text)}")

    def _tick(self, acknowledged: int) -> None:
        now = time.monotonic()
        self._counts.append((now, acknowledged))
        while now - self._counts[0][0] > WINDOW_S:
            self._counts.popleft()
        if not self._console.is_terminal and now - self._told_s >= LINE_EVERY_S:
            self._told_s = now
            self._line(f"{acknowledged:,} operations acknowledged, {self._rate():.0f} a second")

    def _rate(self) -> float:
        (then, before), (now, after) = self._counts[0], self._counts[-1]
        return (after - before) / (now - then) if now > then else 0.0

    def _line(self, text: str) -> None:
        spent = time.monotonic() - self._begun
        self._console.print(f"  {spent:5.1f} s  {text}", soft_wrap=True, highlight=False)

    def _now(self) -> Text:
        """The lines that are kept up to date."""
        now = time.monotonic()
        parts = [f"{now - self._begun:5.1f} s", self._phase]
        if self._ends_s is not None:
            parts.append(f"{max(self._ends_s - now, 0):.0f} s left at most")
        if self._counts:
            acknowledged = self._counts[-1][1]
            parts.append(f"{acknowledged:,} operations, {self._rate():.0f} a second")
        faults = ", ".join(f"{name} {count}" for name, count in sorted(self._faults.items()))
        parts.append(f"faults: {faults}" if faults else "no fault yet")
        if self._checked:
            parts.append(", ".join(f"{n} {word}" for word, n in sorted(self._checked.items())))
        return Text("  " + "  |  ".join(parts), style="dim")


def tell(console: Console, result: RunResult) -> None:
    """What came of a run."""
    for check in result.checks:
        for finding in check.findings[:FINDINGS_SHOWN]:
            console.print(f"    {check.name}: {finding}", markup=False, soft_wrap=True)
        if check.count > FINDINGS_SHOWN:
            console.print(f"    {check.name}: and {check.count - FINDINGS_SHOWN} more")
    fired = ", ".join(f"{name} {count}" for name, count in result.fired.items()) or "no fault"
    recovery = ""
    if result.recoveries_s:
        p50, p99 = percentile(result.recoveries_s, 0.5), percentile(result.recoveries_s, 0.99)
        recovery = f"; recovery p50 {p50:.2f} s, p99 {p99:.2f} s"
    verdict = "[green]passed[/]" if result.passed else "[red]FAILED[/]"
    if result.broken:
        verdict = f"[red]NO VERDICT[/] ({escape(result.broken)})"
    console.print(
        f"  {verdict} after {result.took_s:.0f} s: {fired}; {result.acknowledged} operations "
        f"acknowledged, {result.failed} failed, {result.unknown} unanswered; {result.lost} lost, "
        f"{result.doubled} doubled{recovery}; work amplification {result.amplification:.3f}",
        highlight=False,
        soft_wrap=True,
    )
    if not result.passed:
        console.print(f"  again: {result.command}", markup=False, soft_wrap=True)


def tell_all(console: Console, results: list[RunResult]) -> None:
    """What several runs came to: the faults that fired, the operations, the recoveries."""
    totals = Totals.of(results)
    table = Table("fault", box=None, pad_edge=False)
    table.add_column("fired", justify="right")
    for name, count in totals.fired.items():
        table.add_row(name, f"{count:,}")
    console.print(table)
    recovery = "no recovery"
    if totals.recoveries_s:
        p50, p99 = percentile(totals.recoveries_s, 0.5), percentile(totals.recoveries_s, 0.99)
        recovery = (
            f"recovery p50 {p50:.2f} s, p99 {p99:.2f} s, max {max(totals.recoveries_s):.2f} s"
        )
    console.print(
        f"{totals.acknowledged:,} operations acknowledged, {totals.failed:,} failed, "
        f"{totals.unknown:,} unanswered; {totals.lost:,} lost, {totals.doubled:,} doubled; "
        f"{recovery}",
        highlight=False,
        soft_wrap=True,
    )
    for result in results:
        if not result.passed:
            console.print(f"failed: {result.command}", markup=False, soft_wrap=True)
    console.print(f"{totals.runs} runs, {totals.failed_runs} failed", highlight=False)
