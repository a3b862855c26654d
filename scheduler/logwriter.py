"""The shell of the node's log: carries appends to Postgres, in order, and the answers back.

One pipelined connection.  Where it breaks, or an answer is lost, it connects anew and sends every
unanswered batch again, in order: batches are numbered, so a batch that was applied is answered as
such. While Postgres is away nothing is answered, so nothing leaves the node.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable

from msgspec.structs import replace

from regrow import failpoints
from regrow.gcs.log import LogConnection, LogConnectionLost
from regrow.gcs.operations import Append, Batch
from regrow.scheduler.events import Appended, Event, LogFailed

logger = logging.getLogger(__name__)

_RETRY_MIN_S = 0.05
_RETRY_MAX_S = 1.0
_CONNECT_TIMEOUT_S = 10.0
#: While an answer is awaited, the connection is looked at this often, whatever the loop says.
_LOOK_S = 0.25


def _mutated(append: Append) -> Append:
    """With the bug that the chaos suite put in (`regrow.failpoints.MUTANTS`)."""
    if append.number % 3:
        return append
    match failpoints.MUTANT:
        case "commit-skipped":
            return replace(append, batch=Batch())
        case "lineage-row-dropped":
            kept = append.batch.submitted[1:]
            return replace(append, batch=replace(append.batch, submitted=kept))
        case _:
            return append


class LogWriter:
    """See the module. ``url`` is never logged: it may hold a password."""

    def __init__(self, url: str, on_event: Callable[[Event], None]) -> None:
        self._url = url
        self._on_event = on_event
        self._unanswered: deque[Append] = deque()
        self._connection: LogConnection | None = None
        self._connecting: asyncio.Task[None] | None = None
        self._closed = False
        #: Since the last answer: the first failure is tried again at once, others later and later.
        self._failures = 0
        self._looking: asyncio.TimerHandle | None = None

    async def connect_first(self) -> None:
        """The first connection, however long Postgres is away; the caller has a time limit."""
        while self._connection is None and not self._closed:
            try:
                await self.connect()
            except LogConnectionLost as error:
                logger.warning("Postgres cannot be reached: %s", error)
                await asyncio.sleep(_RETRY_MAX_S)

    async def connect(self) -> None:
        """One try. Raises LogConnectionLost."""
        loop = asyncio.get_running_loop()
        connection = await loop.run_in_executor(
            None, LogConnection.connect, self._url, _CONNECT_TIMEOUT_S
        )
        if self._closed:
            connection.close()
        else:
            self._attach(connection)

    def send(self, append: Append) -> None:
        """Sends a batch; ``Appended`` follows. Hot path: once per batch."""
        if failpoints.ON:
            failpoints.crash_point("node.before_append")
        if failpoints.MUTANT:
            append = _mutated(append)
        self._unanswered.append(append)
        self._look_later()
        connection = self._connection
        if connection is not None:
            try:
                connection.send(append)
                self._flush(connection)
            except LogConnectionLost as error:
                self._lost(error)

    def _look_later(self) -> None:
        if self._looking is None:
            self._looking = asyncio.get_running_loop().call_later(_LOOK_S, self._look)

    def _look(self) -> None:
        """libuv stops watching a socket on which an error is pending (a server that was killed with
        requests unread resets it), and tells nobody."""
        self._looking = None
        self._readable()
        if self._unanswered and not self._closed:
            self._look_later()

    def _attach(self, connection: LogConnection) -> None:
        loop = asyncio.get_running_loop()
        self._connection = connection
        loop.add_reader(connection.fileno(), self._readable)
        try:
            for append in self._unanswered:
                connection.send(append)
            self._flush(connection)
        except LogConnectionLost as error:
            self._lost(error)

    def _flush(self, connection: LogConnection) -> None:
        loop = asyncio.get_running_loop()
        if connection.flush():
            loop.add_writer(connection.fileno(), self._writable)

    def _writable(self) -> None:
        connection = self._connection
        if connection is None:
            return
        try:
            if not connection.flush():
                asyncio.get_running_loop().remove_writer(connection.fileno())
        except LogConnectionLost as error:
            self._lost(error)

    def _readable(self) -> None:
        connection = self._connection
        if connection is None:
            return
        try:
            answers = connection.receive()
        except LogConnectionLost as error:
            self._lost(error)
            return
        if answers:
            self._failures = 0
            if failpoints.ON:
                failpoints.crash_point("node.after_append")
        for number, result in answers:
            append = self._unanswered.popleft()
            assert append.number == number, "answers come in order"
            self._on_event(Appended(number, result.verdict, result.detail))

    def _lost(self, error: LogConnectionLost) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            loop = asyncio.get_running_loop()
            loop.remove_reader(connection.fileno())
            loop.remove_writer(connection.fileno())
            connection.close()
        self._failed("the connection to Postgres broke", error)
        if not self._closed and self._connecting is None:
            self._connecting = asyncio.ensure_future(self._reconnect())

    def _failed(self, what: str, error: LogConnectionLost) -> None:
        self._failures += 1
        logger.warning("%s: %s", what, error)
        self._on_event(LogFailed(str(error), error.sqlstate))

    async def _reconnect(self) -> None:
        while not self._closed and self._connection is None:
            if self._failures > 1:
                # A server that refuses every batch (its disk is full) accepts every connection.
                exponent = min(self._failures - 2, 10)
                await asyncio.sleep(min(_RETRY_MIN_S * 2**exponent, _RETRY_MAX_S))
            try:
                await self.connect()
            except LogConnectionLost as error:
                self._failed("Postgres cannot be reached", error)
        self._connecting = None

    async def drained(self, timeout_s: float) -> None:
        """Waits until every batch is answered, or the time is up."""
        deadline = asyncio.get_running_loop().time() + timeout_s
        while self._unanswered and asyncio.get_running_loop().time() < deadline:
            await asyncio.sleep(0.01)

    def close(self) -> None:
        self._closed = True
        if self._looking is not None:
            self._looking.cancel()
        if self._connecting is not None:
            self._connecting.cancel()
        if self._connection is not None:
            loop = asyncio.get_running_loop()
            loop.remove_reader(self._connection.fileno())
            loop.remove_writer(self._connection.fileno())
            self._connection.close()
            self._connection = None
