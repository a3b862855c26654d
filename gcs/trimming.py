"""When the log of actors' calls is trimmed behind their saved states.

Part of the control store's core: no I/O, no clock. What may go is decided in Postgres, where the
saved states are (``TrimCalls``); here is only how often it is looked for, and that one look is
under way at a time. It goes in chunks beside the appends of nodes, which never wait for it.
"""

from __future__ import annotations

from typing import ClassVar, Final

from regrow.gcs.core_context import Context, Continuation, Reply
from regrow.gcs.core_events import StoreFailed
from regrow.gcs.operations import CallsTrimmed, TrimCalls

#: Where a look left something, the next one comes so soon.
TRIM_MORE_S: Final = 0.2
#: Calls in one transaction.
CALLS_PER_TRIM: Final = 2000


class _Trimming(Continuation):
    #: The next look does it.
    RETRIED: ClassVar[bool] = False


class Trimming:
    """See the module."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._under_way = False
        #: When to look; None: it has just begun to lead.
        self._at: float | None = None
        context.on(_Trimming, self._trimmed)

    def tick(self) -> None:
        now = self._context.now
        if self._at is None:
            self._at = now + self._context.settings.trim_every_s
        if not self._under_way and self._at <= now:
            self._under_way = True
            self._at = now + self._context.settings.trim_every_s
            self._context.execute(TrimCalls(self._context.epoch, CALLS_PER_TRIM), _Trimming())

    def _trimmed(self, then: _Trimming, reply: Reply) -> None:
        result: CallsTrimmed | StoreFailed = reply.result
        self._under_way = False
        if isinstance(result, CallsTrimmed) and result.more:
            self._at = self._context.now + TRIM_MORE_S
