"""The page of several runs: each with a link to its own, and what they come to together."""

from __future__ import annotations

from regrow.chaos.reports.markup import Markup, element
from regrow.chaos.reports.page import document, seconds, verdict
from regrow.chaos.reports.totals import Totals
from regrow.chaos.result import RunResult

HEAD = (
    "", "scenario", "seed", "faults", "acknowledged", "failed", "unanswered", "lost", "doubled",
    "recovery p50", "p99",
)  # fmt: skip


def index(results: list[tuple[RunResult, str]]) -> str:
    """The document; each run with the address of its page."""
    totals = Totals.of([result for result, _ in results])
    failed = sum(not result.passed for result, _ in results)
    word, kind = ("all passed", "good") if not failed else (f"{failed} FAILED", "bad")
    badge = element("span", word, class_=f"verdict {kind}")
    body = [
        element("h1", badge, f"{len(results)} chaos runs"),
        element("h2", "Runs"),
        _table(list(HEAD), [_row(result, address) for result, address in results], _sum(totals)),
        element("h2", "Faults fired"),
        _table(["fault", "times"], [_cells([name, f"{count:,}"], 1) for name, count in
                                    totals.fired.items()]),
    ]  # fmt: skip
    return document("runs", body)


def _row(result: RunResult, address: str) -> Markup:
    name = element("a", result.scenario.name, href=address)
    return _cells([verdict(result), name, str(result.seed), f"{len(result.faults):,}",
                   *_counts(result)], 2)  # fmt: skip


def _sum(totals: Totals) -> Markup:
    return _cells(["", "together", "", f"{sum(totals.fired.values()):,}", *_counts(totals)], 2)


def _counts(of: RunResult | Totals) -> list[str]:
    times = of.recoveries_s
    counts = (of.acknowledged, of.failed, of.unknown, of.lost, of.doubled)
    return [*(f"{count:,}" for count in counts), seconds(times, 0.5), seconds(times, 0.99)]


def _cells(values: list[str], words: int) -> Markup:
    """A row; after the first ``words`` columns come numbers."""
    return element("tr", *[
        element("td", value, class_="number" if place >= words else None)
        for place, value in enumerate(values)
    ])  # fmt: skip


def _table(head: list[str], rows: list[Markup], *foot: Markup) -> Markup:
    words = 1 if len(head) == 2 else 2
    cells = [
        element("th", text, class_="number" if place >= words else None)
        for place, text in enumerate(head)
    ]
    parts = [element("thead", element("tr", *cells)), element("tbody", *rows)]
    kind = "scroll" if words > 1 else "narrow"
    return element("div", element("table", *parts, *foot), class_=kind)
