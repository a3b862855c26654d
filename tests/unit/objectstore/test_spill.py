"""Spilled copies: whole or lost, on local disk and in a pyarrow file system."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Self

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import fs

from regrow.objectstore import spill
from regrow.objectstore.errors import ObjectCorruptedError
from regrow.objectstore.layout import digest
from regrow.objectstore.spill import (
    ArrowFolder,
    SpillStorage,
    file_name,
    key_of,
    open_storage,
    probe_storage,
)

KEY = (b"k" * 20, 3)
DATA = bytes(range(256)) * 10_000


@pytest.fixture(params=["local", "file-uri", "arrow", "arrow-atomic"])
def storage(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[SpillStorage]:
    if request.param == "local":
        yield open_storage(str(tmp_path / "spill"))
    elif request.param == "file-uri":
        yield open_storage(f"file://{tmp_path}/spill")
    else:
        if request.param == "arrow-atomic":  # as object stores are written: without a rename
            monkeypatch.setattr(spill, "_ATOMIC_STORES", frozenset({"local"}))
        yield SpillStorage(ArrowFolder(fs.LocalFileSystem(), str(tmp_path / "spill")))


def read(storage: SpillStorage, size: int = len(DATA), of: bytes = DATA) -> bytes:
    dest = bytearray(size)
    storage.read_into(KEY, memoryview(dest), digest(of))
    return bytes(dest)


@pytest.mark.parametrize("data", [b"", b"x", DATA])
def test_what_was_written_is_read(storage: SpillStorage, data: bytes) -> None:
    storage.write(KEY, memoryview(data))
    assert read(storage, len(data), data) == data


def test_every_object_is_accounted_until_deleted(storage: SpillStorage) -> None:
    other = (b"o" * 20, 1)
    storage.write(KEY, memoryview(DATA))
    storage.write(other, memoryview(b"other"))
    assert storage.used_bytes == len(DATA) + 5
    assert storage.objects() == {KEY: len(DATA), other: 5}
    storage.write(KEY, memoryview(b"shorter"))
    assert storage.used_bytes == 12
    storage.delete(KEY)
    storage.delete(KEY)
    assert (storage.used_bytes, storage.objects()) == (5, {other: 5})
    storage.remove()
    assert storage.used_bytes == 0


def test_a_missing_copy_is_a_lost_copy(storage: SpillStorage) -> None:
    with pytest.raises(ObjectCorruptedError, match="gone"):
        read(storage)


@settings(deadline=None)
@given(position=st.integers(0, len(DATA) - 1), flip=st.integers(1, 255))
def test_one_altered_byte_is_a_lost_copy(
    tmp_path_factory: pytest.TempPathFactory, position: int, flip: int
) -> None:
    folder = tmp_path_factory.mktemp("spill")
    storage = open_storage(str(folder))
    storage.write(KEY, memoryview(DATA), sync=False)
    with open(folder / file_name(KEY), "r+b") as file:
        file.seek(position)
        file.write(bytes([DATA[position] ^ flip]))
    with pytest.raises(ObjectCorruptedError, match="digest"):
        read(storage)
    storage.remove()


@pytest.mark.parametrize("size", [0, 1, len(DATA) - 1, len(DATA) + 1])
def test_a_copy_of_another_length_is_a_lost_copy(
    storage: SpillStorage, tmp_path: Path, size: int
) -> None:
    storage.write(KEY, memoryview(DATA))
    os.truncate(tmp_path / "spill" / file_name(KEY), size)
    with pytest.raises(ObjectCorruptedError, match="bytes instead of"):
        read(storage)


def test_a_write_that_was_cut_off_is_neither_listed_nor_kept(tmp_path: Path) -> None:
    (tmp_path / (file_name(KEY) + ".tmp")).write_bytes(b"half")
    storage = open_storage(str(tmp_path))
    assert (storage.used_bytes, storage.objects()) == (0, {})
    assert list(tmp_path.iterdir()) == []


def test_a_failed_write_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    storage = open_storage(str(tmp_path))

    def no_space(_fd: int) -> None:
        raise OSError(errno.ENOSPC, "no space")

    monkeypatch.setattr(os, "fsync", no_space)
    with pytest.raises(OSError, match="no space"):
        storage.write(KEY, memoryview(DATA))
    assert list(tmp_path.iterdir()) == []
    assert storage.used_bytes == 0


class FullDisk:
    """A pyarrow file system whose streams fail after the first write, as a full disk does."""

    def __init__(self, path: Path) -> None:
        self.local = fs.LocalFileSystem()
        self.type_name = "s3"
        self.path = path

    def __getattr__(self, name: str) -> object:
        return getattr(self.local, name)

    def open_output_stream(self, path: str) -> FullDisk:
        self.stream = self.local.open_output_stream(path)
        return self

    def write(self, data: memoryview) -> None:
        self.stream.write(data[:100])
        raise OSError(errno.ENOSPC, "no space")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stream.close()


def test_a_failed_write_to_an_object_store_leaves_no_part(tmp_path: Path) -> None:
    storage = SpillStorage(ArrowFolder(FullDisk(tmp_path), str(tmp_path)))
    with pytest.raises(OSError, match="no space"):
        storage.write(KEY, memoryview(DATA))
    assert list(tmp_path.iterdir()) == []
    assert storage.used_bytes == 0


def test_copies_survive_a_restart(tmp_path: Path) -> None:
    open_storage(str(tmp_path)).write(KEY, memoryview(DATA))
    again = open_storage(str(tmp_path))
    assert again.used_bytes == len(DATA)
    assert read(again) == DATA


def test_a_synced_write_syncs_the_file_and_then_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = open_storage(str(tmp_path))
    synced = []

    def note(fd: int) -> None:
        synced.append(os.path.basename(os.readlink(f"/proc/self/fd/{fd}")))

    monkeypatch.setattr(os, "fsync", note)
    storage.write(KEY, memoryview(DATA), sync=True)
    assert synced == [file_name(KEY) + ".tmp", tmp_path.name]
    storage.write(KEY, memoryview(DATA), sync=False)
    assert len(synced) == 2


@settings(deadline=None)
@given(st.binary(min_size=1, max_size=24), st.integers(0, 2**31))
def test_a_file_name_gives_its_key_back(object_id: bytes, attempt: int) -> None:
    assert key_of(file_name((object_id, attempt))) == (object_id, attempt)


@pytest.mark.parametrize("name", ["", "zz.1", "aa", "aa.", "aa.1.tmp", "AA.1", "aa.+1", "aa. 1"])
def test_other_file_names_are_nobody_s(name: str) -> None:
    assert key_of(name) is None


def test_an_unknown_scheme_is_refused() -> None:
    with pytest.raises(ValueError, match="nonsense"):
        open_storage("nonsense://bucket/path")


def test_opening_a_shared_folder_leaves_what_others_are_writing(tmp_path: Path) -> None:
    being_written = tmp_path / (file_name(KEY) + ".tmp")
    being_written.touch()
    assert open_storage(str(tmp_path), shared=True).used_bytes == 0
    assert being_written.exists()


def test_a_probe_leaves_nothing_and_fails_where_nothing_can_be_written(tmp_path: Path) -> None:
    probe_storage(str(tmp_path / "new"))
    assert list((tmp_path / "new").iterdir()) == []
    with pytest.raises(OSError, match="Not a directory"):
        probe_storage("/dev/null/new")
