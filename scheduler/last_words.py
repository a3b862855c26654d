"""What a process has finished but not sent yet, where another finds it if the process dies.

A result that waits in a worker for others to leave with it would be lost with the worker: the next
call may crash it.  Sending each by itself was measured to cost calls in batches 40% of their rate
(a system call, and an event for the node, per call); the copy into memory that the node maps as
well costs half a microsecond.  The worker writes here and forgets what it has sent; the node reads
once, when the worker's connection has ended.

Its output, too, is in files that the node can read then.

Decides only where the bytes lie.  It knows neither messages nor sockets.
"""

from __future__ import annotations

import mmap
import os
import struct
from collections import deque
from pathlib import Path
from typing import Final

#: Enough for the results that leave together, unless they are large: then each is sent at once.
_SIZE: Final = 64 * 1024
#: Where the records begin and end.
_BOUNDS: Final = struct.Struct("<II")
#: Of a dead worker's output, which may be large, only the last part is read.
_OUTPUT_MAX: Final = 256 * 1024


def log_path(folder: Path, pid: int, stream: int) -> Path:
    """Where the standard output (1) or error (2) of a worker goes."""
    return folder / f"worker-{pid}.{'err' if stream == 2 else 'out'}"


def last_output(folder: Path, pid: int, stream: int, told: int) -> bytes:
    """What a dead worker had printed after the first ``told`` bytes."""
    try:
        with log_path(folder, pid, stream).open("rb") as log:
            end = log.seek(0, os.SEEK_END)
            log.seek(max(told, end - _OUTPUT_MAX))
            return log.read(_OUTPUT_MAX)
    except OSError:  # it was removed
        return b""


class LastWords:
    """See the module. ``fd`` (from ``create_fd``) may be closed afterwards."""

    def __init__(self, fd: int) -> None:
        self._map = mmap.mmap(fd, _SIZE)
        self._start = self._end = _BOUNDS.size
        #: Of the records that are not sent.
        self._sizes: deque[int] = deque()

    @staticmethod
    def create_fd() -> int:
        """Memory that two processes can map."""
        fd = os.memfd_create("regrow-last-words", os.MFD_CLOEXEC)
        os.ftruncate(fd, _SIZE)
        return fd

    # --- the process that may die -----------------------------------------------------------------

    @property
    def count(self) -> int:
        """Records that are kept."""
        return len(self._sizes)

    def keep(self, record: bytes) -> bool:
        """Keep ``record``; False if there is no room. Hot path: once per call of an actor."""
        end = self._end + len(record)
        if end > _SIZE:
            return False
        self._map[self._end : end] = record
        self._end = end
        self._sizes.append(len(record))
        # Last: whoever is killed before this has kept nothing.
        _BOUNDS.pack_into(self._map, 0, self._start, end)
        return True

    def forget(self, count: int) -> None:
        """The oldest ``count`` records were sent."""
        for _ in range(count):
            self._start += self._sizes.popleft()
        if not self._sizes:
            self._start = self._end = _BOUNDS.size
        _BOUNDS.pack_into(self._map, 0, self._start, self._end)

    # --- the process that survives ----------------------------------------------------------------

    def read(self) -> bytes:
        """The records that the dead process had not sent, or may just have sent."""
        start, end = _BOUNDS.unpack_from(self._map)
        return bytes(self._map[start:end])  # fresh memory has the bounds 0 and 0

    def close(self) -> None:
        self._map.close()
