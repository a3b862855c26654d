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

from regrow.gcs.log import LogConnection, LogConnectionLost
from regrow.gcs.operations import Append
from regrow.scheduler.events import Appended, Event

logger = logging.getLogger(__name__)

_RETRY_MIN_S = 0.05
_RETRY_MAX_S = 1.0
_CONNECT_TIMEOUT_S = 10.0


class LogWriter:
    """See the module. ``url`` is never logged: it may hold a password."""

    def __init__(self, url: str, on_event: Callable[[Event], None]) -> None:
        self._url = url
        self._on_event = on_event
        self._unanswered: deque[Append] = deque()
        self._connection: LogConnection | None = None
        self._connecting: asyncio.Task[None] | None = None
        self._closed = False

    async def connect(self) -> None:
        """The first connection. Raises LogConnectionLost."""
        loop = asyncio.get_running_loop()
        connection = await loop.run_in_executor(
            None, LogConnection.connect, self._url, _CONNECT_TIMEOUT_S
        )
        self._attach(connection)

    def send(self, append: Append) -> None:
        """Sends a batch; ``Appended`` follows. Hot path: once per batch."""
        self._unanswered.append(append)
        connection = self._connection
        if connection is not None:
            try:
                connection.send(append)
                self._flush(connection)
            except LogConnectionLost as error:
                self._lost(error)

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
        for number, result in answers:
            append = self._unanswered.popleft()
            assert append.number == number, "answers come in order"
            self._on_event(Appended(number, result.verdict, result.detail))

    def _lost(self, error: Exception) -> None:
        logger.warning("the connection to Postgres broke: %s", error)
        connection, self._connection = self._connection, None
        if connection is not None:
            loop = asyncio.get_running_loop()
            loop.remove_reader(connection.fileno())
            loop.remove_writer(connection.fileno())
            connection.close()
        if not self._closed and self._connecting is None:
            self._connecting = asyncio.ensure_future(self._reconnect())

    async def _reconnect(self) -> None:
        delay_s = _RETRY_MIN_S
        while not self._closed:
            try:
                await self.connect()
                break
            except LogConnectionLost as error:
                logger.warning("Postgres cannot be reached: %s", error)
                await asyncio.sleep(delay_s)
                delay_s = min(delay_s * 2, _RETRY_MAX_S)
        self._connecting = None
        if self._connection is None and not self._closed:
            self._connecting = asyncio.ensure_future(self._reconnect())

    async def drained(self, timeout_s: float) -> None:
        """Waits until every batch is answered, or the time is up."""
        deadline = asyncio.get_running_loop().time() + timeout_s
        while self._unanswered and asyncio.get_running_loop().time() < deadline:
            await asyncio.sleep(0.01)

    def close(self) -> None:
        self._closed = True
        if self._connecting is not None:
            self._connecting.cancel()
        if self._connection is not None:
            loop = asyncio.get_running_loop()
            loop.remove_reader(self._connection.fileno())
            loop.remove_writer(self._connection.fileno())
            self._connection.close()
            self._connection = None
