"""A node's side of its session with the control store.

Keeps a stream open, connecting anew whenever it breaks, and batches what is sent. What was sent
before a break may be lost: when the stream is up again the node registers, and after ``Registered``
it reports its objects and asks anew whatever it has no answer to. Decides nothing else.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable
from typing import Any

from regrow import failpoints
from regrow.gcs.session import CLIENT_OPTIONS, METHOD, Outbox, encode, from_store_batch, grpc
from regrow.messages import CloseJob, FromStore, Leave, Rebuilt, Register, ToStore

logger = logging.getLogger(__name__)

RETRY_MIN_S = 0.05
RETRY_MAX_S = 0.5
#: A channel that does not connect for so long is made anew, from a fresh address.
CONNECT_S = 2.0


class ControlStoreLink:
    """``run`` until cancelled; ``send`` at any time, from the loop's thread only.

    ``address`` is "host:port", or a callable that gives it, asked before each connection.
    """

    def __init__(
        self, address: str | Callable[[], str], name: Callable[[], str] = lambda: "0"
    ) -> None:
        self._address = address
        #: As the chaos suite calls this node.
        self._name = name
        self._outbox = Outbox()
        self._wake = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()
        self._down = asyncio.Event()
        self._down.set()
        self._leaving = False
        #: The registration, until something came back for it.
        self._register: Register | None = None

    def send(self, message: ToStore) -> None:
        """Queues a message; never waits. While the stream is down, what the node reports or asks
        anew after it registered is not kept."""
        if isinstance(message, Register):
            self._register = message
            return  # sent when the stream is up, first of all
        if self._down.is_set() and not isinstance(message, CloseJob | Rebuilt | Leave):
            return
        self._leaving |= isinstance(message, Leave)
        self._outbox.add(encode(message))
        self._idle.clear()
        self._wake.set()

    async def drained(self, timeout_s: float) -> bool:
        """Waits until everything was sent, and after ``Leave`` until the control store has heard it
        and ended the session. False if that took too long."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._idle.wait()
                if self._leaving:
                    await self._down.wait()
        except TimeoutError:
            return False
        return True

    async def run(
        self,
        on_messages: Callable[[list[FromStore]], None],
        on_up: Callable[[], None],
        on_down: Callable[[], None],
    ) -> None:
        """Until cancelled. ``on_up`` is to send a ``Register``; one that was sent before the first
        connection is sent again until something came back."""
        delay_s = RETRY_MIN_S
        while True:
            async with grpc.aio.insecure_channel(self._target(), options=CLIENT_OPTIONS) as channel:
                try:
                    async with asyncio.timeout(CONNECT_S):
                        await channel.channel_ready()
                except TimeoutError:
                    continue
                if failpoints.ON:
                    with contextlib.suppress(ConnectionResetError):
                        await failpoints.passage(self._name(), failpoints.GCS)
                started = asyncio.get_running_loop().time()
                await self._session(channel, on_messages, on_up, on_down)
                if asyncio.get_running_loop().time() - started > RETRY_MAX_S:
                    delay_s = RETRY_MIN_S
            if self._leaving:
                await asyncio.Future()  # nothing is left to be said
            await asyncio.sleep(delay_s)
            delay_s = min(delay_s * 2, RETRY_MAX_S)

    def _target(self) -> str:
        return self._address if isinstance(self._address, str) else self._address()

    async def _session(
        self,
        channel: Any,
        on_messages: Callable[[list[FromStore]], None],
        on_up: Callable[[], None],
        on_down: Callable[[], None],
    ) -> None:
        """One stream, from its start to its end."""
        call = channel.stream_stream(METHOD)()
        on_up()
        self._down.clear()
        if self._register is not None:
            self._put_first(self._register)
        writer = asyncio.ensure_future(self._write(call))
        try:
            while (body := await call.read()) is not grpc.aio.EOF:
                self._register = None
                on_messages(from_store_batch.decode(body))
        except grpc.RpcError as error:
            logger.warning("the session with the control store broke: %s", _describe(error))
        finally:
            self._down.set()
            writer.cancel()
            call.cancel()
            on_down()

    def _put_first(self, message: Register) -> None:
        queued, self._outbox = self._outbox, Outbox()
        self._outbox.add(encode(message))
        self._outbox.extend(queued)
        self._idle.clear()
        self._wake.set()

    async def _write(self, call: Any) -> None:
        try:
            while True:
                while self._outbox:
                    if failpoints.ON:
                        await failpoints.passage(self._name(), failpoints.GCS)
                    await call.write(self._outbox.take())
                self._idle.set()
                self._wake.clear()
                await self._wake.wait()
        except (grpc.RpcError, asyncio.InvalidStateError):
            return  # the reader sees why
        except ConnectionResetError:
            call.cancel()


def _describe(error: Any) -> str:
    """Without the stack of the transport."""
    return f"{error.code().name}: {error.details()}" if hasattr(error, "code") else str(error)
