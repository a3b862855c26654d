"""What commands print: rich tables for people, JSON for programs.

Decides how a value reads. It neither queries nor knows what the values mean.
"""

from __future__ import annotations

import datetime
import decimal
import json
import math
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

#: Rows that a table shows at most; --json has all.
MAX_ROWS = 1000
TASK_ID_HEX = 32
UNITS = ("B", "kB", "MB", "GB", "TB", "PB")
SPANS = ((86_400, "d"), (3_600, "h"), (60, "min"))

_NOT_FINITE = {"nan": "NaN", "inf": "Infinity", "-inf": "-Infinity"}

Format = Callable[[Any], str]


def console() -> Console:
    """Standard output; where that is no terminal nothing is wrapped, cut or coloured."""
    return (
        Console(highlight=False) if sys.stdout.isatty() else Console(width=10_000, highlight=False)
    )


def print_table(
    names: Sequence[str],
    rows: Sequence[Sequence[Any]],
    formats: Sequence[Format] | None = None,
) -> None:
    """One line per row; ``formats`` say per column how a value reads, numbers go to the right."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    shown = rows[:MAX_ROWS]
    for index, name in enumerate(names):
        values = [row[index] for row in shown if row[index] is not None]
        numeric = bool(values) and all(isinstance(value, (int, float)) for value in values)
        table.add_column(Text(name), justify="right" if numeric else "left", overflow="fold")
    for row in shown:
        reads = formats or [plain] * len(row)
        # Text, not str: what a user's data says is not markup.
        table.add_row(*(Text(read(value)) for read, value in zip(reads, row, strict=True)))
    out = console()
    out.print(table)
    if len(rows) > MAX_ROWS:
        out.print(f"({len(rows) - MAX_ROWS:,} more rows; --json prints all)")


def print_json(names: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """An array with one object per row; bytes are hexadecimal, times ISO 8601."""
    objects = [dict(zip(names, map(jsonable, row), strict=True)) for row in rows]
    print(json.dumps(objects, indent=2, ensure_ascii=False, allow_nan=False))


def print_object(value: dict[str, Any]) -> None:
    """One object, as ``print_json`` prints them."""
    print(json.dumps(jsonable(value), indent=2, ensure_ascii=False, allow_nan=False))


def jsonable(value: Any) -> Any:
    """This value as JSON can hold it: what is not finite is text, as in Postgres's own JSON."""
    match value:
        case float() if not math.isfinite(value):
            return _NOT_FINITE[str(value)]
        case decimal.Decimal() if not value.is_finite():
            return _NOT_FINITE[str(float(value))]
        case bytes() | bytearray() | memoryview():
            return bytes(value).hex()
        case datetime.datetime() | datetime.date() | datetime.time():
            return value.isoformat()
        case datetime.timedelta():
            return value.total_seconds()
        case decimal.Decimal():
            return int(value) if value == value.to_integral_value() else float(value)
        case list() | tuple():
            return [jsonable(element) for element in value]
        case dict():
            return {str(key): jsonable(element) for key, element in value.items()}
        case None | bool() | int() | float() | str():
            return value
        case _:
            return str(value)


def plain(value: Any) -> str:
    """A value as a query returned it."""
    match value:
        case None:
            return ""
        case datetime.datetime():
            return f"{value:%Y-%m-%d %H:%M:%S}.{value.microsecond // 1000:03d}"
        case bytes() | bytearray() | memoryview():
            return bytes(value).hex()
        case dict() | list():
            return json.dumps(jsonable(value), ensure_ascii=False)
        case _:
            return str(value)


def short_id(value: bytes | None) -> str:
    """An id, shortened so that those of one job still differ: their ends count, not their starts.

    An object's is that of its task, and which of its results it is.
    """
    if value is None:
        return ""
    text = bytes(value).hex()
    task, index = text[:TASK_ID_HEX], text[TASK_ID_HEX:]
    short = f"{task[:4]}..{task[-8:]}" if len(task) > 14 else task
    if not index:
        return short
    number = int(index, 16)
    return f"{short}:put" if number >= 0x8000_0000 else f"{short}:{number}"


def full_id(value: bytes | None) -> str:
    """All of an id."""
    return "" if value is None else bytes(value).hex()


def size(value: int | None) -> str:
    """Bytes, in decimal units."""
    if value is None:
        return ""
    amount = float(value)
    for unit in UNITS:
        if amount < 1000 or unit == UNITS[-1]:
            break
        amount /= 1000
    return f"{amount:.0f} {unit}" if unit == "B" or amount >= 100 else f"{amount:.1f} {unit}"


def age(value: datetime.datetime | None) -> str:
    """How long ago."""
    if value is None:
        return ""
    now = datetime.datetime.now(datetime.UTC)
    return f"{span((now - value).total_seconds())} ago"


def span(seconds: float | None) -> str:
    """A length of time."""
    if seconds is None:
        return ""
    for unit_s, unit in SPANS:
        if seconds >= unit_s:
            return f"{seconds / unit_s:.0f} {unit}"
    if seconds >= 1:
        return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"
    return f"{seconds * 1000:.0f} ms" if seconds >= 0.001 else f"{seconds * 1e6:.0f} us"
