"""Files for what has no room in the arena."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from regrow.objectstore.fallback import FallbackFiles, map_file
from regrow.objectstore.pins import pinned_view

KEY = (b"k" * 20, 1)


def test_a_file_is_written_and_read_like_the_arena(tmp_path: Path) -> None:
    files = FallbackFiles(tmp_path / "files")
    path = files.create(KEY, 100_000)
    with map_file(path, writable=True) as mapping:
        mapping.view(0, 100_000)[:] = b"x" * 100_000
    with map_file(path, writable=False) as mapping:
        assert bytes(mapping.view(0, 100_000)) == b"x" * 100_000
    files.remove()
    assert list(tmp_path.iterdir()) == []


def test_a_deleted_file_lives_until_its_last_view(tmp_path: Path) -> None:
    files = FallbackFiles(tmp_path)
    released: list[bool] = []
    descriptors = len(os.listdir("/proc/self/fd"))
    mapping = map_file(files.create(KEY, 1000), writable=True)
    mapping.view(0, 4)[:] = b"live"
    view = pinned_view(mapping, 0, 1000, lambda: released.append(True))
    mapping.close()
    files.delete(KEY)
    files.delete(KEY)
    assert bytes(view[:4]) == b"live"
    del view, mapping
    assert released == [True]
    assert len(os.listdir("/proc/self/fd")) == descriptors


def test_a_full_disk_is_told_before_anyone_writes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = FallbackFiles(tmp_path)

    def no_space(_fd: int, _offset: int, _size: int) -> None:
        raise OSError(errno.ENOSPC, "no space")

    monkeypatch.setattr("regrow.objectstore.fallback.os.posix_fallocate", no_space)
    with pytest.raises(OSError, match="no space"):
        files.create(KEY, 1000)
    assert list(tmp_path.iterdir()) == []


def test_the_bytes_are_reserved_at_once(tmp_path: Path) -> None:
    path = FallbackFiles(tmp_path).create(KEY, 1 << 20)
    assert path.stat().st_blocks * 512 >= 1 << 20


def test_a_deleted_object_cannot_be_mapped(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        map_file(FallbackFiles(tmp_path).path(KEY), writable=False)
