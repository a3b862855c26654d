"""Postgres does not take what this node logs: since when, why, and who is told.

Decides only what is said, to the drivers of this node and in ``regrow.events``. The shell goes on
trying, and nothing leaves the node meanwhile. One sentence at the beginning, one at the end: the
events are in the log when it works again.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from regrow.scheduler.core import Core
    from regrow.scheduler.events import LogFailed

#: Told of when a batch waits for so long; a refusal for lack of something, at once.
PATIENCE_MS: Final = 3_000.0

#: What is to be done where a server lacks something (SQLSTATE class 53).
_REMEDIES: Final = {
    "53100": "Make room on the disk of the Postgres server",
    "53200": "Give the Postgres server more memory",
    "53300": "Raise max_connections of the Postgres server, or end other connections to it",
}
_LACKING: Final = "53"


class Outage:
    """See the module."""

    def __init__(self, core: Core) -> None:
        self._core = core
        #: When the oldest batch that is not answered was first seen; negative: there is none.
        self._since_ms = -1.0
        #: Of the last failure since the last answer.
        self._reason = ""
        self._sqlstate = ""
        #: It has been told of.
        self.told = False

    @property
    def lacking(self) -> bool:
        """Whether Postgres answers, and refuses batches because it lacks something."""
        return self._sqlstate.startswith(_LACKING)

    def failed(self, event: LogFailed) -> None:
        """A try to write the log failed."""
        self._reason = (event.reason.splitlines() or [""])[0].removeprefix("ERROR:").strip()
        self._sqlstate = event.sqlstate
        if self.lacking and not self.told:
            self._tell()

    def answered(self) -> None:
        """A batch is in."""
        began_ms, self._since_ms = self._since_ms, -1.0
        self._reason = self._sqlstate = ""
        if not self.told:
            return
        self.told = False
        seconds = max(0.0, self._core.now_ms - began_ms) / 1000
        message = f"Postgres is back after {seconds:.0f} s; everything goes on"
        self._core.journal.event("postgres_works", b"", message)
        self._core.tell_drivers(message)

    def tick(self) -> None:
        """Time has passed."""
        if not self._core.journal.in_flight:
            self._since_ms = -1.0
        elif self._since_ms < 0:
            self._since_ms = self._core.now_ms
        elif self._core.now_ms - self._since_ms > PATIENCE_MS and not self.told:
            self._tell()

    def _tell(self) -> None:
        self.told = True
        if self._since_ms < 0:
            self._since_ms = self._core.now_ms
        meanwhile = "Nothing is lost: tasks go on, their results and new submissions wait."
        if self.lacking:
            kind = "postgres_full"
            remedy = _REMEDIES.get(self._sqlstate, "Give the Postgres server what it lacks")
            message = (
                f"Postgres refuses what is to be committed: {self._reason}. {meanwhile} "
                f"{remedy}; everything then goes on by itself."
            )
        else:
            kind = "postgres_lost"
            reason = f": {self._reason}" if self._reason else ""
            message = (
                f"Postgres does not answer{reason}. {meanwhile} Everything goes on by itself when "
                "it answers again; a server of the cluster's own is started again, and says why "
                "it cannot be in gcs.log."
            )
        self._core.journal.event(kind, b"", message)
        self._core.tell_drivers(message)
