"""The pictures of a report, as SVG inside the page: they need no script and no other file."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

from regrow.chaos.reports.markup import Markup, element, join
from regrow.chaos.result import RunResult, Struck

WIDTH: Final = 1000.0
LEFT: Final = 128.0
RIGHT: Final = 12.0
TOP: Final = 22.0
PLOT: Final = 150.0
LANE: Final = 24.0
#: Of a fault that was healed at once.
BAR_MIN: Final = 3.0
#: Upper ends of the bars of the histogram, in seconds.
BINS_S: Final = (0.1, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0)
#: So many are shown at least.
BARS_MIN: Final = 7


def timeline(result: RunResult) -> Markup:
    """Acknowledged operations per second, and below them when each fault struck and was healed."""
    names = list(dict.fromkeys(struck.name for struck in result.faults))
    bottom = TOP + PLOT + 8 + LANE * len(names)
    span_s = max(result.span_s, result.slice_s)

    def x(at_s: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * min(max(at_s / span_s, 0.0), 1.0)

    parts = [_calm(result, x(_calm_from(result)), bottom)]
    parts += _bars(result, x)
    for struck in result.faults:
        parts.append(_line(x(struck.at_s), TOP, x(struck.at_s), bottom, "strike"))
    for row, name in enumerate(names):
        top = TOP + PLOT + 8 + LANE * row
        parts.append(_rect(LEFT, top + 4, WIDTH - LEFT - RIGHT, LANE - 8, "lane"))
        parts.append(element("text", name, x=LEFT - 10, y=top + 16, class_="label right"))
        for struck in result.faults:
            if struck.name == name:
                until = x(span_s if struck.healed_s is None else struck.healed_s)
                width = max(until - x(struck.at_s), BAR_MIN)
                title = element("title", describe(struck))
                parts.append(
                    _rect(x(struck.at_s), top + 4, width, LANE - 8, "fault", title, rx=2.0)
                )
    step = round_step(span_s, 10)
    for number in range(int(span_s / step) + 1):
        at_s = number * step
        text = f"{at_s:g} s" if number else "0"
        parts.append(_line(x(at_s), bottom, x(at_s), bottom + 4, "grid"))
        parts.append(element("text", text, x=x(at_s), y=bottom + 17, class_="middle"))
    return _svg(WIDTH, bottom + 24, "Operations per second, and the faults under them", parts)


def _calm_from(result: RunResult) -> float:
    """When the faults stopped."""
    return next((one.at_s for one in result.phases if one.name == "liveness"), result.span_s)


def _calm(result: RunResult, left: float, bottom: float) -> Markup:
    width = WIDTH - RIGHT - left
    if width < 1 or not result.faults:
        return Markup("")
    shade = _rect(left, TOP, width, bottom - TOP, "calm")
    return join([shade, element("text", "no more faults", x=WIDTH - RIGHT, y=14, class_="right")])


def _bars(result: RunResult, x: object) -> list[Markup]:
    assert callable(x)
    most = max((ok + failed for ok, failed in result.slices), default=0) / result.slice_s
    step = round_step(most, 4) if most else 1.0
    top_rate = step * max(math.ceil(most / step), 1)
    parts = []
    for number in range(round(top_rate / step) + 1):
        y = TOP + PLOT * (1 - number * step / top_rate)
        parts.append(_line(LEFT, y, WIDTH - RIGHT, y, "grid"))
        parts.append(element("text", f"{number * step:g}", x=LEFT - 10, y=y + 4, class_="right"))
    parts.append(element("text", f"{result.counted} per second", x=LEFT, y=14))
    for number, (ok, failed) in enumerate(result.slices):
        left = x(number * result.slice_s) + 0.5
        width = max(x((number + 1) * result.slice_s) - left - 0.5, 0.5)
        base = TOP + PLOT
        for count, kind, word in ((ok, "work", "acknowledged"), (failed, "failed", "failed")):
            if count:
                height = PLOT * count / result.slice_s / top_rate
                base -= height
                begin, end = number * result.slice_s, (number + 1) * result.slice_s
                title = element("title", f"{begin:g} to {end:g} s: {count} {word}")
                parts.append(_rect(left, base, width, height, kind, title))
    return parts


def histogram(values_s: Sequence[float]) -> Markup:
    """How many recoveries took how long; the ends of the bars double."""
    last = next((n for n, end in enumerate(BINS_S) if max(values_s) <= end), len(BINS_S))
    counts = [0] * (last + 1)
    for value in values_s:
        counts[next((n for n, end in enumerate(BINS_S) if value <= end), last)] += 1
    shown = range(max(last + 1, BARS_MIN))
    counts += [0] * (len(shown) - len(counts))
    width, height, base = 520.0, 130.0, 110.0
    slot = (width - 20) / len(shown)
    parts = [_line(10, base, width - 10, base, "grid")]
    for place, number in enumerate(shown):
        left, count = 10 + place * slot, counts[number]
        tall = (base - 22) * count / max(counts)
        text = f"≤ {BINS_S[number]:g} s" if number < len(BINS_S) else f"> {BINS_S[-1]:g} s"
        if count:
            parts.append(_rect(left + 3, base - tall, slot - 6, tall, "work", rx=2.0))
            middle = left + slot / 2
            label = element("text", str(count), x=middle, y=base - tall - 5, class_="label middle")
            parts.append(label)
        parts.append(element("text", text, x=left + slot / 2, y=base + 15, class_="middle"))
    return _svg(width, height, "Recovery times", parts)


def describe(struck: Struck) -> str:
    """A fault in words."""
    text = f"{struck.name}: {struck.target}, at {struck.at_s:.1f} s"
    if struck.healed_s is not None:
        text += f", healed after {struck.healed_s - struck.at_s:.1f} s"
    if struck.detection_s is not None:
        text += f"; noticed after {struck.detection_s:.2f} s"
    if struck.recovery_s is not None:
        text += f"; all that it hit had ended after {struck.recovery_s:.2f} s"
    return text


def round_step(span: float, parts: int) -> float:
    """1, 2 or 5 times a power of ten, so that there are at most so many steps in the span."""
    power = 10.0 ** math.floor(math.log10(span / parts)) if span > 0 else 1.0
    return next(power * factor for factor in (1, 2, 5, 10) if power * factor * parts >= span)


def _svg(width: float, height: float, label: str, parts: Sequence[Markup]) -> Markup:
    return element(
        "svg", *parts, viewBox=f"0 0 {width:g} {height:g}", role="img", aria_label=label
    )  # fmt: skip


def _line(x1: float, y1: float, x2: float, y2: float, kind: str) -> Markup:
    return element("line", x1=x1, y1=y1, x2=x2, y2=y2, class_=kind)


def _rect(
    x: float, y: float, width: float, height: float, kind: str, *content: Markup,
    rx: float | None = None,
) -> Markup:  # fmt: skip
    return element("rect", *content, x=x, y=y, width=width, height=height, rx=rx, class_=kind)
