"""The page of one run: one file that needs no other, readable without scripts."""

from __future__ import annotations

from regrow.chaos.reports.charts import describe, histogram, timeline
from regrow.chaos.reports.markup import Markup, element, join
from regrow.chaos.reports.style import STYLE
from regrow.chaos.result import CheckResult, Replay, RunResult, percentile

#: So many are listed; the rest is counted.
LISTED_MAX = 60


def page(result: RunResult) -> str:
    """The whole document."""
    scenario = result.scenario
    title = f"{scenario.name}, seed {result.seed}"
    body = [
        element("h1", verdict(result), title),
        element("p", scenario.title),
        element("p", _about(result), class_="muted"),
        *([element("pre", result.broken, class_="bad")] if result.broken else []),
        _tiles(result),
        element("h2", "What happened when"),
        _timeline(result),
        element("h2", "Recovery"),
        _recovery(result),
        element("h2", "What was checked"),
        _checks(result.checks),
        element("h2", "What was run again"),
        _run_again(result),
        element("h2", "Run it again"),
        element("pre", element("code", result.command)),
        element("p", "The same seed draws the same faults and targets in the same order; when "
                "they meet the program is up to the machine.", class_="muted"),
        element("h2", "Files"),
        _files(result),
    ]  # fmt: skip
    return document(title, body)


def document(title: str, body: list[Markup]) -> str:
    """An HTML document with the reports' look."""
    head = [
        Markup('<meta charset="utf-8">'),
        Markup('<meta name="viewport" content="width=device-width, initial-scale=1">'),
        element("title", f"{title} - regrow chaos"),
        element("style", Markup(STYLE)),
    ]
    content = [element("head", *head), element("body", *body)]
    return f"<!doctype html>\n{element('html', *content, lang='en')}\n"


def verdict(result: RunResult) -> Markup:
    """One word, as a badge."""
    if result.broken:
        return element("span", "no verdict", class_="verdict bad")
    word, kind = ("passed", "good") if result.passed else ("FAILED", "bad")
    return element("span", word, class_=f"verdict {kind}")


def seconds(values: list[float], share: float) -> str:
    """A percentile in words; the largest for 1."""
    return f"{percentile(values, share):.2f} s" if values else "-"


def _about(result: RunResult) -> str:
    scenario = result.scenario
    parts = [
        f"workload {scenario.workload}", _many(scenario.nodes, "node"),
        _many(scenario.clients, "client"), f"faults for {scenario.duration_s:.0f} s at most",
        f"took {result.took_s:.0f} s", result.begun_at,
    ]  # fmt: skip
    return " · ".join(part for part in parts if part)


def _many(count: int, what: str) -> str:
    return f"{count} {what}" if count == 1 else f"{count} {what}s"


def _tiles(result: RunResult) -> Markup:
    figures: list[tuple[str, str, str]] = [
        ("acknowledged", f"{result.acknowledged:,}", ""),
        ("failed", f"{result.failed:,}", ""),
        ("unanswered", f"{result.unknown:,}", ""),
        ("lost", f"{result.lost:,}", "bad" if result.lost else "good"),
        ("doubled", f"{result.doubled:,}", "bad" if result.doubled else "good"),
        ("faults fired", f"{len(result.faults):,}", ""),
        ("recovery p50", seconds(result.recoveries_s, 0.5), ""),
        ("recovery p99", seconds(result.recoveries_s, 0.99), ""),
        ("recovery max", seconds(result.recoveries_s, 1.0), ""),
        ("death noticed p50", seconds(result.detections_s, 0.5), ""),
        ("death noticed max", seconds(result.detections_s, 1.0), ""),
        ("work amplification", f"{result.amplification:.3f}", ""),
    ]
    tiles = [
        element("div", element("dt", name), element("dd", value, class_=kind or None))
        for name, value, kind in figures
    ]
    return element("dl", *tiles, class_="tiles")


def _timeline(result: RunResult) -> Markup:
    if not result.slices:
        return element("p", "Nothing was recorded.")
    caption = (
        f"Bars are {result.counted} per second that ended well, red ones on top those that failed. "
        "Below, each fault from its injection until it was healed, with a line through the bars "
        "where it struck. In the shaded end nothing strikes any more, and everything has to end."
    )
    figure = element("figure", timeline(result), element("figcaption", caption))
    listed = [element("li", describe(struck)) for struck in result.faults[:LISTED_MAX]]
    more = len(result.faults) - LISTED_MAX
    if more > 0:
        listed.append(element("li", f"and {more} more; see history.jsonl"))
    details = element("details", element("summary", "The faults in words"), element("ul", *listed))
    return join([element("div", figure, class_="scroll"), details if listed else Markup("")])


def _recovery(result: RunResult) -> Markup:
    if not result.recoveries_s:
        return element("p", "No fault hit an operation under way.")
    caption = (
        "From the moment of a fault until every operation that was under way had ended, for the "
        f"{len(result.recoveries_s)} faults that hit one."
    )
    return element(
        "figure", histogram(result.recoveries_s), element("figcaption", caption), class_="narrow"
    )  # fmt: skip


def _checks(checks: list[CheckResult]) -> Markup:
    rows = [
        element(
            "tr",
            element("td", "passed" if one.passed else "FAILED",
                    class_="good" if one.passed else "bad"),
            element("td", one.claim, _findings(one)),
            element("td", element("code", one.name)),
        )
        for one in checks
    ]  # fmt: skip
    return _table(["", "claim", "checker"], rows)


def _findings(check: CheckResult) -> Markup:
    if check.passed:
        return Markup("")
    items = [element("li", finding) for finding in check.findings]
    if check.count > len(items):
        items.append(element("li", f"and {check.count - len(items)} more"))
    return element("ul", *items)


def _run_again(result: RunResult) -> Markup:
    if not result.run_again:
        return element("p", "Nothing had to be run again.")
    rows = [
        element("tr", element("td", element("code", name)),
                element("td", f"{attempts:,}", class_="number"),
                element("td", f"{rebuilds:,}", class_="number"))
        for name, attempts, rebuilds in result.run_again
    ]  # fmt: skip
    head = ["task or call", "begun anew", "made again"]
    text = (
        "Begun anew: its worker or node died before it had ended. "
        "Made again: it had ended, and what it had made was lost while somebody wanted it: "
        "the only copy of its result, or its part of an actor's state."
    )
    parts = [element("p", text, class_="muted"), _table(head, rows, numbers=2)]
    if result.replays:
        parts.append(_lineage(result.replays))
    return join(parts)


def _lineage(replays: list[Replay]) -> Markup:
    """A tree: below each task that was made again, those that it needed and that were lost too."""
    by_id: dict[str, Replay] = {}
    needs: dict[str, list[str]] = {}
    for one in replays:
        by_id[one.task_id] = one
        for other in one.needed_by:
            known = needs.setdefault(other, [])
            if one.task_id not in known:
                known.append(one.task_id)
    told: set[str] = set()

    def entry(task_id: str) -> Markup:
        again = task_id in told
        told.add(task_id)
        below = [] if again else [entry(needed) for needed in needs.get(task_id, [])]
        children = element("ul", *below) if below else Markup("")
        return element("li", _replay(by_id[task_id]), " (as above)" if again else "", children)

    roots = [one for one in by_id.values() if not any(other in by_id for other in one.needed_by)]
    tree = element("ul", *[entry(root.task_id) for root in roots])
    summary = f"Lineage of what was made again ({len(by_id)} tasks)"
    return element("details", element("summary", summary), tree, class_="lineage", open="")


def _replay(one: Replay) -> Markup:
    if one.took_s is None or one.differs is None:
        end = "did not end by itself"
    else:
        end = f"{one.took_s * 1000:.0f} ms, " + ("OTHER bytes" if one.differs else "same bytes")
    kind = "bad" if one.differs else "muted"
    about = element("span", f" {one.task_id[-8:]} on node {one.node_id}, {end}", class_=kind)
    return join([element("code", one.name), about])


def _files(result: RunResult) -> Markup:
    names = ["history.jsonl", "result.json", "junit.xml", *result.logs[:LISTED_MAX]]
    items = [element("li", element("a", name, href=name)) for name in names]
    if len(result.logs) > LISTED_MAX:
        items.append(element("li", f"and {len(result.logs) - LISTED_MAX} more"))
    return element("ul", *items)


def _table(head: list[str], rows: list[Markup], numbers: int = 0) -> Markup:
    """The last ``numbers`` columns are of numbers."""
    begin = len(head) - numbers
    cells = [
        element("th", text, class_="number" if place >= begin else None)
        for place, text in enumerate(head)
    ]
    table = element("table", element("thead", element("tr", *cells)), element("tbody", *rows))
    return element("div", table, class_="scroll")
