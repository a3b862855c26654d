"""Reports of runs: JSON for programs."""

from __future__ import annotations

from pathlib import Path

from regrow.chaos.harness import RunResult, as_json

RESULT_FILE = "result.json"


def write(result: RunResult, folder: Path) -> None:
    """The reports of one run, in its folder."""
    (folder / RESULT_FILE).write_bytes(as_json(result))


def write_all(results: list[RunResult], folder: Path) -> None:
    """What tells of several runs."""
