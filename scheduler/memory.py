"""How much memory the node has, and what uses it: cgroups, else the machine; its workers.

Shell only: reads /proc and /sys.  What follows is decided in ``regrow.scheduler.pressure``.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final

_PAGE: Final = os.sysconf("SC_PAGE_SIZE")
#: Of a version of cgroups: where it is mounted, its limit, its use, and in the statistics what the
#: kernel takes back before it ends anyone.
_V2: Final = ("", "memory.max", "memory.current", ("inactive_file", "active_file"))
_V1: Final = (
    "memory", "memory.limit_in_bytes", "memory.usage_in_bytes",
    ("total_inactive_file", "total_active_file"),
)  # fmt: skip


class MemoryGauge:
    """See the module. With ``limit`` (bytes) only what the workers use counts, and that is theirs.

    ``proc`` and ``cgroups`` are the file systems.
    """

    def __init__(
        self, limit: int = 0, proc: Path = Path("/proc"), cgroups: Path = Path("/sys/fs/cgroup")
    ) -> None:
        self._limit = limit
        self._proc = proc
        self._cgroups = _cgroup_folders(proc, cgroups)

    def read(self, pids: Iterable[int]) -> tuple[int, int]:
        """Used bytes, and how many there are, where it is tightest. (0, 0): nobody knows."""
        if self._limit:
            return sum(map(self.size, pids)), self._limit
        found = [_cgroup(folder, version) for folder, version in self._cgroups]
        found.append(self._machine())
        return max(
            (one for one in found if one is not None and one[1] > 0),
            key=lambda one: one[0] / one[1],
            default=(0, 0),
        )

    def sizes(self, pids: Mapping[int, int]) -> dict[int, int]:
        """What each worker uses: number -> bytes, of number -> pid."""
        return {number: self.size(pid) for number, pid in pids.items()}

    def size(self, pid: int) -> int:
        """Bytes that only this process, or one that it started, has; 0 of one that has ended."""
        folder = self._proc / str(pid)
        try:
            resident, shared = (folder / "statm").read_text().split()[1:3]
            own = (int(resident) - int(shared)) * _PAGE
            threads = list((folder / "task").iterdir())
        except (OSError, ValueError):
            return 0
        return own + sum(self.size(child) for thread in threads for child in _children(thread))

    def _machine(self) -> tuple[int, int] | None:
        fields = _fields(self._proc / "meminfo")
        total, available = fields.get("MemTotal:"), fields.get("MemAvailable:")
        if total is None or available is None:
            return None
        return (total - available) * 1024, total * 1024


def _children(thread: Path) -> list[int]:
    try:
        return [int(pid) for pid in (thread / "children").read_text().split()]
    except (OSError, ValueError):  # it ended, or the kernel does not tell
        return []


_Version = tuple[str, str, str, tuple[str, ...]]


def _cgroup_folders(proc: Path, root: Path) -> list[tuple[Path, _Version]]:
    """The groups that this process is in, up to the root: each may have a limit."""
    folders: list[tuple[Path, _Version]] = []
    try:
        lines = (proc / "self" / "cgroup").read_text().splitlines()
    except OSError:
        return folders
    for line in lines:
        number, controllers, path = line.split(":", 2)
        if number == "0" and not controllers:
            version = _V2
        elif "memory" in controllers.split(","):
            version = _V1
        else:
            continue
        # A container sees its own group as the root, but may be told its path on the machine.
        base = root / version[0]
        group = base / path.strip("/")
        for folder in dict.fromkeys([group, *group.parents]):
            if folder.is_relative_to(base) and (folder / version[1]).exists():
                folders.append((folder, version))
    return folders


def _cgroup(folder: Path, version: _Version) -> tuple[int, int] | None:
    """Used bytes and the limit; None without one."""
    _, limit_file, use_file, reclaimable = version
    try:
        limit = int((folder / limit_file).read_text())
        used = int((folder / use_file).read_text())
    except (OSError, ValueError):  # "max" is no limit
        return None
    if limit >= 1 << 60:  # nor is what version 1 says instead
        return None
    fields = _fields(folder / "memory.stat")
    return max(0, used - sum(fields.get(name, 0) for name in reclaimable)), limit


def _fields(path: Path) -> dict[str, int]:
    """Of lines ``name number``."""
    try:
        lines = path.read_text().splitlines()
    except OSError:
        return {}
    return {name: int(value) for name, value, *_ in (line.split() for line in lines if line)}
