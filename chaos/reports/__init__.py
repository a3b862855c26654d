"""Reports of runs: a page for people, JUnit XML for CI services, JSON for programs."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from regrow.chaos.reports.index import index
from regrow.chaos.reports.junit import junit
from regrow.chaos.reports.page import page
from regrow.chaos.result import RunResult, as_json

PAGE_FILE: Final = "report.html"
RESULT_FILE: Final = "result.json"
JUNIT_FILE: Final = "junit.xml"
INDEX_FILE: Final = "index.html"


def folder_name(result: RunResult) -> str:
    """Of one run among several."""
    return f"{result.scenario.name}-{result.seed}"


def write(result: RunResult, folder: Path) -> None:
    """The reports of one run, in its folder."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / RESULT_FILE).write_bytes(as_json(result))
    (folder / PAGE_FILE).write_text(page(result), encoding="utf-8")
    (folder / JUNIT_FILE).write_bytes(junit([result]))


def write_all(results: list[RunResult], folder: Path) -> None:
    """What tells of several runs: an index of their pages, and all of them as JUnit XML."""
    folder.mkdir(parents=True, exist_ok=True)
    linked = [(result, f"{folder_name(result)}/{PAGE_FILE}") for result in results]
    (folder / INDEX_FILE).write_text(index(linked), encoding="utf-8")
    (folder / JUNIT_FILE).write_bytes(junit(results))
