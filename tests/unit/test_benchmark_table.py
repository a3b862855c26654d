"""What the benchmark's table makes of figures."""

import sys
from io import StringIO

import pytest
from rich.console import Console

from benchmarks.compare import ROWS, Figures, Row, find_ray, table, verdict

RATE = Row("rate", "a rate", "/s", ratio_floor=5)
MEMORY = Row("memory", "memory", "MB", ratio_floor=1, lower_is_better=True)
TIME = Row("time", "a time", "s", limit=2.0, lower_is_better=True)
PLAIN = Row("plain", "no floor", "/s")


def figures(*values: float) -> Figures:
    return Figures(values)


@pytest.mark.parametrize(
    ("row", "regrow", "ray", "expected"),
    [
        (RATE, figures(500, 510, 1), figures(100), "pass"),
        (RATE, figures(499), figures(100), "FAIL"),
        (RATE, figures(500), None, ""),
        (RATE, figures(), figures(100), "FAIL"),
        (MEMORY, figures(99), figures(100), "pass"),
        (MEMORY, figures(101), figures(100), "FAIL"),
        (TIME, figures(2.0), None, "pass"),
        (TIME, figures(2.1), figures(90), "FAIL"),
        (TIME, figures(), None, "FAIL"),
        (PLAIN, figures(1), figures(100), ""),
    ],
)
def test_floors_are_multiples_of_the_other_side_or_absolute(
    row: Row, regrow: Figures, ray: Figures | None, expected: str
) -> None:
    assert verdict(row, regrow, ray) == expected


def test_table_shows_ratio_floor_and_committed_rows() -> None:
    console = Console(file=StringIO(), width=140, no_color=True)
    console.print(table([RATE], {"rate": Figures((600.0,), 12_000)}, {"rate": figures(100)}))
    assert isinstance(console.file, StringIO)
    [line] = [line for line in console.file.getvalue().splitlines() if "a rate" in line]
    for shown in ("600", "100", "6.00", ">= 5 x", "pass", "12,000"):
        assert shown in line


def test_every_row_is_one_that_the_workloads_know() -> None:
    from benchmarks import workloads

    assert {row.measures for row in ROWS} == {*workloads.ROWS, *workloads.START_ROWS}


def test_the_interpreter_given_is_used_for_ray() -> None:
    assert find_ray("/some/python") == "/some/python"
    assert find_ray(None) in {None, sys.executable}
