"""Files that are corrupted, truncated or deleted, and folders that are away or full."""

from __future__ import annotations

import contextlib
import random
from pathlib import Path
from typing import ClassVar, Literal

import msgspec

from regrow.chaos.nemeses.nemesis import Nemesis
from regrow.chaos.stage import Stage

Place = Literal["storage", "spill"]


def _folder(stage: Stage, place: Place) -> Path:
    return stage.storage() if place == "storage" else stage.home / "spill"


class FilesDamaged(Nemesis):
    """Some files of the storage, or of the nodes' spill folders, are not what was written.

    Files that are mapped in place of the arena (`regrow.objectstore.fallback`) are spared: they are
    live memory, which nobody checks at each read.
    """

    name: ClassVar[str] = "files_damaged"

    class Options(msgspec.Struct, forbid_unknown_fields=True):
        """Where, how ("any": drawn for each), and which share of what is there."""

        place: Place = "storage"
        how: Literal["corrupt", "truncate", "delete", "any"] = "any"
        share: float = 0.3

    def inject(self, stage: Stage, rng: random.Random) -> str:
        folder = _folder(stage, self.options.place)
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        files = [p for p in files if not p.name.startswith(".") and p.parent.name != "files"]
        if not files:
            return ""
        count = max(1, int(len(files) * self.options.share))
        for path in rng.sample(files, count):
            how = self.options.how
            if how == "any":
                how = rng.choice(["corrupt", "truncate", "delete"])
            with contextlib.suppress(FileNotFoundError):  # deleted by its owner meanwhile
                _damage(path, how, rng)
        return f"{count} of {len(files)} files in {self.options.place}"


def _damage(path: Path, how: str, rng: random.Random) -> None:
    if how == "delete":
        path.unlink()
        return
    with path.open("r+b") as file:
        size = file.seek(0, 2)
        if how == "truncate":
            file.truncate(size // 2)
        elif size:
            place = rng.randrange(size)
            file.seek(place)
            byte = file.read(1)[0]
            file.seek(place)
            file.write(bytes([byte ^ 0xFF]))


class DiskFull(Nemesis):
    """The disk with the cluster's home, and so with what it spills, stores and logs, is full."""

    name: ClassVar[str] = "disk_full"
    needs_disk: ClassVar[bool] = True

    def __init__(self, options: dict[str, object]) -> None:
        super().__init__(options)
        self._filler: Path | None = None

    def inject(self, stage: Stage, rng: random.Random) -> str:
        if self._filler is not None:
            return ""
        assert stage.disk is not None, "the scenario has a disk"
        self._filler = stage.disk / "filler"
        written = 0
        with self._filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
            for size in (1 << 20, 1 << 12, 1):
                with contextlib.suppress(OSError):
                    while count := file.write(bytes(size)):
                        written += count
        return f"{written >> 20} MiB were left"

    def heal(self, stage: Stage) -> None:
        if self._filler is not None:
            self._filler.unlink()
            self._filler = None


class StorageAway(Nemesis):
    """The folder of the storage is not there, and cannot be made."""

    name: ClassVar[str] = "storage_away"

    def __init__(self, options: dict[str, object]) -> None:
        super().__init__(options)
        #: Where it was, and where it is; None: it had not been made yet.
        self._moved: tuple[Path, Path | None] | None = None

    def inject(self, stage: Stage, rng: random.Random) -> str:
        folder = stage.storage()
        if self._moved is not None:
            return ""
        aside = folder.with_name(f"{folder.name}-away") if folder.is_dir() else None
        if aside is not None:
            folder.rename(aside)
        folder.touch()  # a file in its place
        self._moved = folder, aside
        return str(folder.name)

    def heal(self, stage: Stage) -> None:
        if self._moved is not None:
            folder, aside = self._moved
            self._moved = None
            folder.unlink()
            if aside is not None:
                aside.rename(folder)
