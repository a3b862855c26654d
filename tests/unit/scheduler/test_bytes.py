"""The byte mover answers every write to storage, whatever the storage does."""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from regrow.objectstore import spill
from regrow.objectstore.arena import Arena
from regrow.objectstore.fallback import FallbackFiles
from regrow.objectstore.layout import digest
from regrow.scheduler import events
from regrow.scheduler.bytes import ByteMover
from regrow.scheduler.peers import Credentials

KEY = (b"o" * 20, 1)
SIZE = 4096


@pytest.fixture
def arena() -> Iterator[Arena]:
    arena = Arena.create(1 << 20)
    yield arena
    arena.close()


def store(arena: Arena, folder: Path, storage: str) -> events.Stored:
    """What the core is told after one write."""

    async def write() -> events.Event:
        told: asyncio.Future[events.Event] = asyncio.get_running_loop().create_future()
        files = FallbackFiles(folder / "files")
        credentials = Credentials("token", (1, 1))
        spilled = str(folder / "spilled")
        mover = ByteMover(arena, files, spilled, storage, credentials, told.set_result)
        mover.store(events.StoreBytes(KEY, 0, SIZE))
        try:
            async with asyncio.timeout(30):
                return await told
        finally:
            mover.close()

    event = asyncio.run(write())
    assert isinstance(event, events.Stored)
    return event


def load(arena: Arena, folder: Path, retry_s: float) -> events.Fetched:
    """What the core is told after one read."""

    async def read() -> events.Event:
        told: asyncio.Future[events.Event] = asyncio.get_running_loop().create_future()
        files = FallbackFiles(folder / "files")
        credentials = Credentials("token", (1, 1))
        spilled, storage = str(folder / "spilled"), str(folder / "objects")
        mover = ByteMover(arena, files, spilled, storage, credentials, told.set_result, retry_s)
        mover.load(events.LoadBytes(KEY, "path", 0, SIZE, digest(bytes(SIZE))))
        try:
            async with asyncio.timeout(30):
                return await told
        finally:
            mover.close()

    event = asyncio.run(read())
    assert isinstance(event, events.Fetched)
    return event


def test_storage_that_cannot_be_read_just_now_is_read_again(
    arena: Arena, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read_into = spill.SpillStorage.read_into
    failures = [OSError(errno.EIO, os.strerror(errno.EIO)), RuntimeError("of some object store")]

    def failing(self: spill.SpillStorage, *arguments: Any) -> None:
        if failures:
            raise failures.pop()
        read_into(self, *arguments)

    assert store(arena, tmp_path, str(tmp_path / "objects")).path
    monkeypatch.setattr(spill.SpillStorage, "read_into", failing)
    assert load(arena, tmp_path, 30).ok
    assert not failures


def test_storage_that_cannot_be_read_for_long_is_told(arena: Arena, tmp_path: Path) -> None:
    (tmp_path / "objects").touch()
    assert not load(arena, tmp_path, 0).ok


def test_a_copy_in_storage_that_is_gone_is_told_at_once(arena: Arena, tmp_path: Path) -> None:
    assert not load(arena, tmp_path, 3600).ok


def test_what_was_stored_has_a_path(arena: Arena, tmp_path: Path) -> None:
    told = store(arena, tmp_path, str(tmp_path / "objects"))
    assert Path(told.path).read_bytes() == bytes(arena.view(0, SIZE))


def test_a_full_disk_is_told_as_such(
    arena: Arena, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    told = store(arena, tmp_path, str(tmp_path / "objects"))
    assert (told.path, told.code) == ("", "out_of_disk")
    assert "No space left" in told.detail


def test_a_storage_that_cannot_be_opened_is_told(arena: Arena, tmp_path: Path) -> None:
    told = store(arena, tmp_path, "bogus://x")
    assert (told.path, told.code) == ("", "storage")
    assert "bogus" in told.detail


def test_an_error_that_nobody_expected_is_told(
    arena: Arena, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise KeyError("of a driver of some object store")

    monkeypatch.setattr(spill.SpillStorage, "write", broken)
    told = store(arena, tmp_path, str(tmp_path / "objects"))
    assert (told.path, told.code) == ("", "storage")
