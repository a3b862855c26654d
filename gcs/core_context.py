"""What the parts of the control store's core share: time, epoch, effects and pending operations.

An operation is sent with a *continuation*: a small struct that says what its result is for. The
part that declared the struct's type is called with it. Decides nothing itself, except that an
operation whose outcome is unknown is sent again, the same and under the same number.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, Final

from msgspec import Struct

from regrow.gcs.core_events import (
    CloseConnection,
    Effect,
    Execute,
    Probe,
    Send,
    Settings,
    StopCluster,
    StoreFailed,
)
from regrow.gcs.operations import NotLeader, Operation, Result
from regrow.messages import SYSTEM_ERROR, FromStore, SystemFailure, Value, encode

RETRY_FIRST_S: Final = 0.1
RETRY_MAX_S: Final = 2.0


class Continuation(Struct):
    """Base of what is remembered about an operation until its result is there."""

    #: False: a failure is passed on as the result (``StoreFailed``), not tried again here.
    RETRIED: ClassVar[bool] = True


class _Pending(Struct):
    operation: Operation
    then: Continuation
    attempts: int = 1
    #: When to send it again; None while it is under way.
    retry_at: float | None = None


class Reply(Struct):
    """A result with what it is for. ``repeated``: an earlier try may have been carried out."""

    result: Any
    operation: Any
    repeated: bool


Handler = Callable[[Any, Reply], None]


class Context:
    """One per core; handed to each part."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.now = 0.0
        #: Of our leadership; 0 while another leads.
        self.epoch = 0
        self.effects: list[Effect] = []
        #: The nodes were told to stop.
        self.stopping = False
        self._handlers: dict[type[Continuation], Handler] = {}
        self._pending: dict[int, _Pending] = {}
        self._last_number = 0

    # effects

    def send(self, conn: int, message: FromStore) -> None:
        """Nothing is sent to conn 0, which stands for a node without a session."""
        if conn:
            self.effects.append(Send(conn, message))

    def close(self, conn: int) -> None:
        if conn:
            self.effects.append(CloseConnection(conn))

    def probe(self, node_id: int, incarnation: int, host: str, port: int) -> None:
        self.effects.append(Probe(node_id, incarnation, host, port))

    def stop_cluster(self, reason: str) -> None:
        self.stopping = True
        self.effects.append(StopCluster(reason))

    # operations

    def on(self, continuation: type[Continuation], handler: Handler) -> None:
        """Results for continuations of this type go to ``handler``."""
        assert continuation not in self._handlers
        self._handlers[continuation] = handler

    def execute(self, operation: Operation, then: Continuation) -> None:
        self._last_number += 1
        self._pending[self._last_number] = _Pending(operation, then)
        self.effects.append(Execute(self._last_number, operation))

    def store_replied(self, number: int, result: Result | StoreFailed) -> bool:
        """Passes a result on. False: it is ``NotLeader``, and we must step down."""
        pending = self._pending.get(number)
        if pending is None:  # of an epoch that is over
            return True
        if isinstance(result, StoreFailed) and pending.then.RETRIED:
            delay = min(RETRY_FIRST_S * 2 ** (pending.attempts - 1), RETRY_MAX_S)
            pending.retry_at = self.now + delay
            return True
        del self._pending[number]
        if isinstance(result, NotLeader):
            return False
        reply = Reply(result, pending.operation, pending.attempts > 1)
        self._handlers[type(pending.then)](pending.then, reply)
        return True

    def retry_due(self) -> None:
        """Sends operations again whose outcome is unknown."""
        for number, pending in self._pending.items():
            if pending.retry_at is not None and pending.retry_at <= self.now:
                pending.retry_at = None
                pending.attempts += 1
                self.effects.append(Execute(number, pending.operation))

    def forget_operations(self) -> None:
        """Results still under way are of no use any more, nor are those who asked."""
        self._pending.clear()
        self._handlers.clear()

    @property
    def operations_pending(self) -> int:
        return len(self._pending)

    @property
    def retries_pending(self) -> bool:
        return any(pending.retry_at is not None for pending in self._pending.values())


def failed_value(object_id: bytes, code: str, message: str) -> Value:
    """An object that will never be there, as the value that says why."""
    data = encode(SystemFailure(code, message))
    return Value(object_id, SYSTEM_ERROR, len(data), data)
