"""How long an embedded server that starts is waited for: as long as its log says it comes on.

After a crash Postgres first syncs its data directory and then redoes its log, which takes as long
as the disk takes; every ten seconds (from version 15 on) it says how far it has come. Reads that
log, and decides nothing else.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from regrow.gcs.postgres_binaries import EmbeddedPostgresError
from regrow.gcs.postgres_home import find_home, resolved

#: The log is read so often.
_LOOK_S: Final = 0.25
#: What a server says only while it starts.
_PROGRESS: Final = re.compile(
    rb"LOG: +((?:syncing data directory|resetting unlogged relations|redo |database system was ).*)"
)


def _log_of(data_dir: Path) -> Path | None:
    """None: there is no server's data yet, or it is another user's."""
    try:
        home = find_home(resolved(data_dir))
    except EmbeddedPostgresError:
        return None
    return home.log if home is not None else None


class Patience:
    """Ends when for ``silence_s`` the server of ``data_dir`` has said nothing new of its start.

    ``tell`` is given what it says, a line at a time.
    """

    def __init__(
        self, data_dir: Path, silence_s: float, tell: Callable[[str], None] | None = None
    ) -> None:
        self._data_dir = data_dir
        self._silence_s = silence_s
        self._tell = tell
        self._until = time.monotonic() + silence_s
        self._look_at = 0.0
        self._read = 0
        self._read = len(self._said())

    def is_over(self) -> bool:
        """Whether to give up now."""
        now = time.monotonic()
        if now < min(self._until, self._look_at):
            return False
        self._look_at = now + _LOOK_S
        said = self._said()
        whole = said.rfind(b"\n") + 1
        self._read += whole
        for line in _PROGRESS.findall(said[:whole]):
            self._until = now + self._silence_s
            if self._tell is not None:
                self._tell(line.decode(errors="replace"))
        return now > self._until

    def _said(self) -> bytes:
        """What the log has had since it was read last; all of it where it was begun anew."""
        path = _log_of(self._data_dir)
        if path is None:
            return b""
        try:
            with path.open("rb") as log:
                if log.seek(0, 2) < self._read:
                    self._read = 0
                log.seek(self._read)
                return log.read()
        except FileNotFoundError:
            return b""
