"""The demo as a whole, and each way in which it must not succeed."""

import importlib.util
import re
from io import StringIO
from pathlib import Path
from typing import Any

import psycopg
import pytest
from rich.console import Console

from regrow import _home, demo, demo_faults
from regrow.cluster_utils import Cluster, Node
from regrow.gcs import embedded


def recording() -> Console:
    return Console(file=StringIO(), width=140, no_color=True)


def text(console: Console) -> str:
    assert isinstance(console.file, StringIO)
    return console.file.getvalue()


@pytest.mark.slow
def test_demo_loses_a_node_and_ends_with_the_same_bits(tmp_path: Path) -> None:
    console = recording()
    home = tmp_path / "home"
    try:
        status = demo.run_demo(home=home, console=console)
        assert status == demo.SUCCESS, text(console)
        assert re.search(r"node \d+ SIGKILLed", text(console))
        assert float(re.search(r"total ([\d.]+) s", text(console))[1]) < 60  # type: ignore[index]
        assert rebuilt_in(home) > 0
    finally:
        embedded.destroy(_home.postgres_directory(home))


def rebuilt_in(home: Path) -> int:
    """The rebuilds that made the committed bytes again, as the log that was kept has them."""
    server = embedded.start(_home.postgres_directory(home))
    with psycopg.connect(server.url) as connection:
        [[count]] = connection.execute(
            "SELECT count(*) FROM regrow.rebuilds WHERE NOT differs"
        ).fetchall()
    return int(count)


@pytest.mark.slow
def test_demo_fails_where_no_node_was_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    def spare(self: Cluster, node: Node, allow_graceful: bool = True) -> None:
        """Kill nobody."""

    monkeypatch.setattr(Cluster, "remove_node", spare)
    console = recording()
    assert demo.run_demo(console=console) == demo.FAILURE
    assert "NO  objects lost and made again: 0" in text(console)
    assert "yes weights equal" in text(console)


@pytest.mark.slow
@pytest.mark.parametrize("kill", ["worker", "actor", "gcs", "postgres", "driver", "everything"])
def test_demo_ends_with_the_same_bits_whatever_is_killed(kill: str) -> None:
    console = recording()
    assert demo.run_demo(kill=kill, console=console) == demo.SUCCESS, text(console)
    said = text(console)
    assert "SIGKILLed" in said
    noticed = "nobody was left to notice" if kill == "everything" else "noticed after"
    assert noticed in said
    [recovered] = re.findall(r"recovered after ([\d.]+) s", said)
    assert float(recovered) < 30
    [attempts, replays] = re.findall(r"run again: (\d+) unfinished tasks, (\d+) finished", said)[0]
    [work] = re.findall(r"work amplification ([\d.]+)", said)
    assert (float(work) > 1) == (int(attempts) + int(replays) > 0)


@pytest.mark.slow
def test_demo_fails_where_the_actor_was_not_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    strike = demo_faults.Blow.strike
    monkeypatch.setattr(demo_faults.Blow, "strike", lambda self, _, what: strike(self, [], what))
    monkeypatch.setattr(demo_faults, "NOTICED_WITHIN_S", 0.1)
    console = recording()
    assert demo.run_demo(kill="actor", console=console) == demo.FAILURE
    assert "NO  the actor is back" in text(console)
    assert "yes weights equal" in text(console)


def test_demo_without_scikit_learn_says_so_in_one_sentence(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    find = importlib.util.find_spec

    def without(name: str, *rest: Any) -> Any:
        return None if name == "sklearn" else find(name, *rest)

    monkeypatch.setattr(importlib.util, "find_spec", without)
    console = recording()
    assert demo.run_demo(console=console) == demo.UNUSABLE
    assert text(console).count("\n") == 1
    assert "pip install 'regrow[demo]'" in text(console)
