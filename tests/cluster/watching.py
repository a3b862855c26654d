"""What the cluster tests look at: rows of Postgres, what a node holds, and waiting for either."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psycopg


def wait_until(condition: Callable[[], object], what: str, timeout_s: float = 30) -> None:
    """Polls: for what happens in other processes there is no event to wait for."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"not within {timeout_s:g} s: {what}"
        time.sleep(0.02)


def postgres_url(home: Path | str) -> str:
    """Of the cluster that lives in this home."""
    return str(json.loads((Path(home) / "gcs.json").read_text())["postgres_url"])


def rows(home: Path | str, query: str, *arguments: Any) -> list[Any]:
    """The answer of the cluster's Postgres."""
    with psycopg.connect(postgres_url(home), autocommit=True) as connection:
        return connection.execute(query, arguments).fetchall()


def node_files(home: Path | str) -> list[dict[str, Any]]:
    """What the nodes of this home announce of themselves, lowest id first."""
    from regrow._home import runtime_directory

    files = sorted(runtime_directory(Path(home)).glob("node-*.json"))
    return [json.loads(file.read_text()) for file in files]
