"""Copies of objects outside the arena: on a local disk or in object storage.

Stores and returns runs of bytes under an object's key, and refuses to return other bytes than
were stored: what is missing, truncated or altered raises ObjectCorruptedError, so a corrupt copy
is simply a lost one. Decides nothing about what is spilled or kept.

All functions block; the node calls them in a thread pool. They may run in several threads at once,
on different objects. A node spills to a folder of its own; durable storage is one for all nodes.
"""

from __future__ import annotations

import os
import secrets
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol
from urllib.parse import unquote, urlsplit

import xxhash

from regrow.objectstore.effects import ObjectKey
from regrow.objectstore.errors import ObjectCorruptedError

if TYPE_CHECKING:
    from pyarrow.fs import FileSystem

_BLOCK = 1 << 20
_TEMPORARY = ".tmp"
# There, a file appears whole when its stream is closed; a rename would copy it.
_ATOMIC_STORES = frozenset({"s3", "gcs", "abfs"})


def file_name(key: ObjectKey) -> str:
    """The name of an object's file: ``<object id in hex>.<attempt>``."""
    object_id, attempt = key
    return f"{object_id.hex()}.{attempt}"


def key_of(name: str) -> ObjectKey | None:
    """The key behind a file name; None for a name that ``file_name`` does not make."""
    object_id, dot, attempt = name.partition(".")
    try:
        key = bytes.fromhex(object_id), int(attempt)
    except ValueError:
        return None
    return key if dot and file_name(key) == name else None


class Folder(Protocol):
    """A folder of some storage. Names are flat; errors of the storage are OSError."""

    def write(self, name: str, data: memoryview, sync: bool) -> None:
        """Make or replace the file as a whole: no reader ever sees a part of it."""

    def blocks(self, name: str, dest: memoryview) -> Iterator[memoryview]:
        """Read the file into ``dest`` and yield each part of it once filled; stop at its end."""

    def delete(self, name: str) -> None:
        """Delete the file, if there."""

    def sizes(self) -> dict[str, int]:
        """Every file, temporary ones included, with its bytes."""

    def remove(self) -> None:
        """Delete the folder and all in it, if there."""


class SpillStorage:
    """Objects in one folder, with the sum of their bytes.

    ``shared``: other nodes use the folder too, and only what this process wrote is counted.
    """

    def __init__(self, folder: Folder, *, shared: bool = False) -> None:
        self._folder = folder
        self._lock = threading.Lock()
        self._sizes: dict[str, int] = {}
        if shared:
            return  # it may be large, and an unfinished write may be another node's
        for name, size in folder.sizes().items():
            if key_of(name) is None:
                folder.delete(name)  # a write that was cut off
            else:
                self._sizes[name] = size

    @property
    def used_bytes(self) -> int:
        """Bytes of the stored objects, by this process's own count."""
        with self._lock:
            return sum(self._sizes.values())

    def write(self, key: ObjectKey, data: memoryview, sync: bool = True) -> None:
        """Store ``data`` (flat bytes, unchanged until this returns) under ``key``.

        ``sync``: on a local disk, return only when a power cut can no longer undo it (costs 1 ms
        or more an object; a copy that need not outlive its node can do without).
        Raises OSError, and then stores nothing.
        """
        name = file_name(key)
        self._folder.write(name, data, sync)
        with self._lock:
            self._sizes[name] = len(data)

    def read_into(self, key: ObjectKey, dest: memoryview, digest: bytes) -> None:
        """Fill ``dest``, which has exactly the object's size, and verify it.

        Raises ObjectCorruptedError if the copy is gone, of another size, or of another digest;
        OSError if the storage cannot be reached.
        """
        hasher = xxhash.xxh3_128()
        size = 0
        try:
            for block in self._folder.blocks(file_name(key), dest):
                hasher.update(block)
                size += len(block)
        except FileNotFoundError as error:
            raise ObjectCorruptedError(f"spilled copy {file_name(key)} is gone") from error
        if size != len(dest):
            raise ObjectCorruptedError(
                f"spilled copy {file_name(key)} has {size} bytes instead of {len(dest)}"
            )
        if hasher.digest() != digest:
            raise ObjectCorruptedError(
                f"spilled copy {file_name(key)} has digest {hasher.hexdigest()} instead of "
                f"{digest.hex()}"
            )

    def delete(self, key: ObjectKey) -> None:
        """Delete the copy, if there. Raises OSError if the storage cannot be reached."""
        name = file_name(key)
        self._folder.delete(name)
        with self._lock:
            self._sizes.pop(name, None)

    def objects(self) -> dict[ObjectKey, int]:
        """The stored objects and their bytes, as the storage itself lists them."""
        listed = self._folder.sizes().items()
        return {key: size for name, size in listed if (key := key_of(name)) is not None}

    def remove(self) -> None:
        """Delete the folder and everything in it."""
        self._folder.remove()
        with self._lock:
            self._sizes.clear()


def open_storage(uri: str, *, shared: bool = False) -> SpillStorage:
    """The storage at ``uri``: a path, ``file://``, or what pyarrow knows (``s3://``, ``gs://``...).

    The folder is made if missing; what an earlier process left in it is kept, but for unfinished
    writes where it is not ``shared``. Raises OSError, and ValueError for a URI that pyarrow does
    not know.
    """
    return SpillStorage(_folder_at(uri), shared=shared)


def probe_storage(uri: str) -> None:
    """Write, read and delete a small file at ``uri``. Raises as ``open_storage`` does."""
    folder = _folder_at(uri)
    name = f"probe-{secrets.token_hex(8)}"
    data = name.encode()
    folder.write(name, memoryview(data), sync=False)
    try:
        read = b"".join(folder.blocks(name, memoryview(bytearray(len(data)))))
    finally:
        folder.delete(name)
    if read != data:
        raise OSError("what was written there reads otherwise")


def _folder_at(uri: str) -> Folder:
    parts = urlsplit(uri)
    if parts.scheme == "file":
        return LocalFolder(Path(unquote(parts.path)))
    if "://" not in uri:
        return LocalFolder(Path(uri))
    from pyarrow import fs  # costs 100 ms and starts threads: only where it is used

    filesystem, path = fs.FileSystem.from_uri(uri)
    return ArrowFolder(filesystem, path)


class LocalFolder:
    """A folder of this machine. Not through pyarrow, which can neither fsync nor read into
    memory that is given to it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.mkdir(parents=True, exist_ok=True)

    def write(self, name: str, data: memoryview, sync: bool) -> None:
        temporary = self.path / (name + _TEMPORARY)
        try:
            with open(temporary, "wb", buffering=0) as file:
                written = 0
                while written < len(data):
                    written += file.write(data[written:])
                if sync:
                    os.fsync(file.fileno())
            temporary.rename(self.path / name)
        except OSError:
            with suppress(OSError):  # the first error is the one to report
                temporary.unlink(missing_ok=True)
            raise
        if sync:
            self._sync_folder()

    def blocks(self, name: str, dest: memoryview) -> Iterator[memoryview]:
        with open(self.path / name, "rb", buffering=0) as file:
            position = 0
            while position < len(dest):
                count = file.readinto(dest[position : position + _BLOCK])
                if not count:
                    return
                yield dest[position : position + count]
                position += count
            if excess := file.read(1):
                yield memoryview(excess)  # longer than it should be

    def delete(self, name: str) -> None:
        (self.path / name).unlink(missing_ok=True)

    def sizes(self) -> dict[str, int]:
        sizes = {}
        with os.scandir(self.path) as entries:
            for entry in entries:
                with suppress(FileNotFoundError):  # deleted meanwhile
                    sizes[entry.name] = entry.stat().st_size
        return sizes

    def remove(self) -> None:
        for name in self.sizes():
            self.delete(name)
        self.path.rmdir()

    def _sync_folder(self) -> None:
        fd = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)


class ArrowFolder:
    """A folder of a pyarrow file system."""

    def __init__(self, filesystem: FileSystem, path: str) -> None:
        self._filesystem: Any = filesystem
        self._path = path.rstrip("/")
        self._atomic = filesystem.type_name in _ATOMIC_STORES
        filesystem.create_dir(self._path, recursive=True)

    def write(self, name: str, data: memoryview, sync: bool) -> None:
        del sync  # object stores answer when the object is durable
        path = f"{self._path}/{name}"
        target = path if self._atomic else path + _TEMPORARY
        try:
            with self._filesystem.open_output_stream(target) as stream:
                for start in range(0, len(data), 8 * _BLOCK):
                    stream.write(data[start : start + 8 * _BLOCK])
            if not self._atomic:
                self._filesystem.move(target, path)
        except OSError:
            # Leaving the stream has closed it, which makes a part of the object visible.
            with suppress(OSError):  # the first error is the one to report
                self._filesystem.delete_file(target)
            raise

    def blocks(self, name: str, dest: memoryview) -> Iterator[memoryview]:
        with self._filesystem.open_input_file(f"{self._path}/{name}") as file:
            position = 0
            while position < len(dest):
                count = file.readinto(dest[position : position + 8 * _BLOCK])
                if not count:
                    return
                yield dest[position : position + count]
                position += count
            if excess := file.read(1):
                yield memoryview(excess)

    def delete(self, name: str) -> None:
        with suppress(FileNotFoundError):
            self._filesystem.delete_file(f"{self._path}/{name}")

    def sizes(self) -> dict[str, int]:
        from pyarrow import fs

        infos = self._filesystem.get_file_info(fs.FileSelector(self._path, allow_not_found=True))
        return {info.base_name: info.size for info in infos if info.type == fs.FileType.File}

    def remove(self) -> None:
        with suppress(FileNotFoundError):
            self._filesystem.delete_dir(self._path)
