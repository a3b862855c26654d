"""Workers that use up the memory are ended, with a reason, before the kernel ends the node. The
limit is set far below what the machine has."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import regrow as ray
from regrow.exceptions import ActorDiedError, OutOfMemoryError
from tests.cluster.watching import rows, wait_until

MIB = 1 << 20
LIMIT = 1024 * MIB


@pytest.fixture
def node(home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A node with two CPUs whose workers may use 1 GiB together: one large task, and not two."""
    monkeypatch.setenv("REGROW_MEMORY_LIMIT", str(LIMIT))
    monkeypatch.setenv("REGROW_MEMORY_MONITOR_REFRESH_MS", "50")
    monkeypatch.setenv("REGROW_TASK_OOM_RETRIES", "1")
    ray.init(num_cpus=2)
    yield home
    ray.shutdown()


def note_run(path: str) -> int:
    """How often this was called with the path."""
    with open(path, "a") as runs:
        runs.write("x")
    return len(Path(path).read_text())


def use(amount: int) -> None:
    """Fill memory, and wait to be ended."""
    held = b"x" * amount
    threading.Event().wait()
    del held


def test_the_task_that_came_last_is_ended_and_runs_again(node: Path, tmp_path: Path) -> None:
    @ray.remote
    def old(path: str) -> int:
        held = b"x" * (500 * MIB)
        runs = note_run(path + "/old")
        wait_until(Path(path, "go").exists, "the test is over")
        return runs * len(held)

    @ray.remote(max_retries=1)
    def young(path: str) -> int:
        runs = note_run(path + "/young")
        if runs == 1:
            use(500 * MIB)
        return runs

    first = old.remote(str(tmp_path))
    wait_until((tmp_path / "old").exists, "the first one has its memory")
    assert ray.get(young.remote(str(tmp_path)), timeout=60) == 2
    (tmp_path / "go").touch()
    assert ray.get(first, timeout=60) == 500 * MIB, "it was run more than once"
    told = rows(node, "SELECT message FROM regrow.events WHERE kind = 'out_of_memory'")
    assert len(told) == 1
    assert "young was ended: node 1" in told[0][0]


@pytest.mark.parametrize(("max_retries", "runs"), [(3, 2), (0, 1)])
def test_a_task_that_needs_more_than_there_is_fails_in_words(
    node: Path, tmp_path: Path, max_retries: int, runs: int
) -> None:
    @ray.remote(max_retries=max_retries)
    def hog(path: str) -> None:
        note_run(path)
        use(LIMIT)

    with pytest.raises(OutOfMemoryError) as caught:
        ray.get(hog.remote(str(tmp_path / "runs")), timeout=60)
    for part in ("hog was ended", "node 1", "of 1.00 GiB in use", "hog (pid", "num_cpus"):
        assert part in str(caught.value), part
    assert len((tmp_path / "runs").read_text()) == runs


def test_an_actor_that_uses_the_memory_dies_of_that(node: Path) -> None:
    class Hog:
        def use(self) -> None:
            use(LIMIT)

    hog: Any = ray.remote(Hog).remote()
    with pytest.raises(ActorDiedError, match="running out of memory"):
        ray.get(hog.use.remote(), timeout=60)
    told = rows(node, "SELECT message FROM regrow.events WHERE kind = 'out_of_memory'")
    assert len(told) == 1
    assert "Hog was ended: node 1" in told[0][0]
