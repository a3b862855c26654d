"""Storage that cannot be used: refused before anything starts; later, an error and never a hang."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import regrow as ray
from regrow import _bootstrap
from regrow.exceptions import StorageError
from tests.cluster.watching import rows, wait_until

RETRY_S = 2.0


@ray.remote(max_retries=0)
def block(seed: int) -> Any:
    return np.full(100_000, seed)


@pytest.fixture(autouse=True)
def disconnected(home: Path) -> Iterator[None]:
    """Whatever fails, the next test starts without a cluster."""
    yield
    ray.shutdown()


@pytest.fixture
def place(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The storage of a cluster that runs."""
    monkeypatch.setenv("REGROW_STORAGE_RETRY_S", str(RETRY_S))
    folder = tmp_path / "objects"
    ray.init(num_cpus=1, storage=str(folder))
    return folder


@pytest.mark.parametrize(
    ("storage", "said"),
    [
        ("bogus://x", "none that pyarrow.fs knows"),
        ("", "is empty"),
        ("/dev/null/objects", "cannot be written"),
        ("file:///dev/null/objects", "cannot be written"),
    ],
)
def test_storage_that_cannot_be_used_is_refused_before_anything_starts(
    home: Path, storage: str, said: str
) -> None:
    with pytest.raises(StorageError, match=said) as caught:
        ray.init(storage=storage)
    assert "name" in str(caught.value), "it says what to do"
    assert "\n" not in str(caught.value)
    assert not ray.is_initialized()
    assert not _bootstrap.look(home).nodes


def test_the_probe_of_the_storage_leaves_nothing_in_it(place: Path) -> None:
    assert list(place.iterdir()) == []


def test_a_relative_folder_is_one_for_all_processes(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    ray.init(num_cpus=1, storage="relative")
    ref = block.remote(1)
    ray.wait([ref], timeout=60)
    assert len(list((tmp_path / "relative").iterdir())) == 1


def test_a_result_that_storage_refuses_is_a_typed_error_and_no_hang(place: Path) -> None:
    place.rmdir()
    place.touch()  # a file where the folder was: every write fails
    started = time.monotonic()
    with pytest.raises(StorageError, match="max_retries=0"):
        ray.get(block.remote(1), timeout=60)
    assert time.monotonic() - started >= RETRY_S


def test_storage_that_works_again_in_time_costs_nothing_but_time(home: Path, place: Path) -> None:
    place.rmdir()
    place.touch()
    ref = block.remote(2)
    failed = "SELECT 1 FROM regrow.events WHERE kind = 'storage_failed'"
    wait_until(lambda: rows(home, failed), "storage failed")
    place.unlink()
    place.mkdir()
    assert int(ray.get(ref, timeout=60)[0]) == 2
    assert rows(home, "SELECT 1 FROM regrow.events WHERE kind = 'storage_works'")


def test_a_put_is_written_behind_when_storage_works_again(home: Path, place: Path) -> None:
    place.rmdir()
    place.touch()
    ref = ray.put(np.arange(100_000))
    failed = "SELECT 1 FROM regrow.events WHERE kind = 'storage_failed'"
    wait_until(lambda: rows(home, failed), "storage failed")
    place.unlink()
    place.mkdir()
    wait_until(lambda: list(place.glob("*.0")), "the put is in storage")
    del ref


def test_a_durable_put_is_in_storage_when_it_returns(home: Path, place: Path) -> None:
    stored = "SELECT count(*) FROM regrow.objects WHERE stored_path IS NOT NULL"
    ref = ray.put(np.arange(100_000), durable=True)
    assert rows(home, stored) == [(1,)]
    small = ray.put("small", durable=True)
    assert rows(home, "SELECT count(*) FROM regrow.objects WHERE data IS NOT NULL") == [(1,)]

    @ray.remote
    def puts() -> list[Any]:
        return [ray.put(np.arange(50_000), durable=True)]

    (inner,) = ray.get(puts.remote(), timeout=60)
    assert rows(home, stored) == [(2,)]
    assert len(list(place.glob("*.0"))) == 2
    del ref, small, inner


def test_a_durable_put_that_storage_refuses_is_a_typed_error_and_no_hang(place: Path) -> None:
    place.rmdir()
    place.touch()
    started = time.monotonic()
    with pytest.raises(StorageError, match="refused the value"):
        ray.put(np.arange(100_000), durable=True)
    assert time.monotonic() - started >= RETRY_S
    place.unlink()
    place.mkdir()
    assert int(ray.get(ray.put(np.arange(100_000), durable=True))[7]) == 7
