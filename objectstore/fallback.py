"""Objects that have no room in the arena: each in a file of its own, mapped where it is used.

The node makes and deletes the files (``GrantFile``, ``RestoreFile``, ``DeleteFile``); a client maps
one by its path, writes or reads it like the arena, and closes the mapping, which lasts as long as
its views. Unlike spilled copies these files are live memory: there is no digest check on reading.
"""

from __future__ import annotations

import os
from pathlib import Path

from regrow.objectstore.arena import Arena
from regrow.objectstore.effects import ObjectKey
from regrow.objectstore.spill import file_name, key_of


class FallbackFiles:
    """The fallback files of one node, in a folder of their own on a local disk."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def path(self, key: ObjectKey) -> Path:
        return self._folder / file_name(key)

    def create(self, key: ObjectKey, size: int) -> Path:
        """Make the file with its ``size`` bytes reserved on disk.

        Raises OSError (ENOSPC) if the disk is full: with a sparse file a writer would die of
        SIGBUS instead.
        """
        path = self.path(key)
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            os.posix_fallocate(fd, 0, max(size, 1))
        except OSError:
            path.unlink()
            raise
        finally:
            os.close(fd)
        return path

    def delete(self, key: ObjectKey) -> None:
        """Delete the file, if there. Mappings of it live on."""
        self.path(key).unlink(missing_ok=True)

    def remove(self) -> None:
        """Delete all the files and the folder."""
        for entry in self._folder.iterdir():
            if key_of(entry.name) is not None:
                entry.unlink(missing_ok=True)
        self._folder.rmdir()


def map_file(path: Path, writable: bool) -> Arena:
    """Map a fallback file as an arena of its own, whose object is at offset 0.

    Close it as soon as the view is made: the mapping lives as long as the views.
    Raises FileNotFoundError if the object was deleted.
    """
    access = os.O_RDWR if writable else os.O_RDONLY
    fd = os.open(path, access | os.O_CLOEXEC)
    try:
        return Arena.attach(fd, writable)
    except BaseException:
        os.close(fd)
        raise
