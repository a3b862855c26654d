"""The control store's shell: gRPC sessions in, operations out to Postgres, a clock.

Feeds the core and carries its effects out in order; decides only who may speak at all (whose first
message is a ``Register`` with the cluster's token). Operations run on threads: leadership on one of
its own, so that it is renewed while a long write runs; writes on another, in order; reads on two.
"""

from __future__ import annotations

import asyncio
import hmac
import itertools
import logging
import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final, Protocol, assert_never

import msgspec

from regrow import failpoints
from regrow.gcs import operations
from regrow.gcs.core import Core
from regrow.gcs.core_events import (
    ANSWERED,
    REFUSED,
    SILENT,
    CloseConnection,
    Effect,
    Event,
    Execute,
    FromNode,
    NodeConnected,
    NodeDisconnected,
    Probe,
    ProbeResult,
    Send,
    Settings,
    StopCluster,
    StoreFailed,
    StoreReplied,
    Tick,
)
from regrow.gcs.operations import Operation, Result
from regrow.gcs.session import (
    SERVER_OPTIONS,
    SERVICE,
    SESSION,
    Outbox,
    encode,
    grpc,
    pack,
    to_store_batch,
)
from regrow.messages import FromStore, OpenJob, Register, Registered, RegisterRefused, ToStore

logger = logging.getLogger(__name__)

BUSY_TICK_S: Final = 0.05
IDLE_TICK_S: Final = 0.25
PROBE_TIMEOUT_S: Final = 1.0
#: A stranger has so long to present the token, in a message of at most so many bytes.
FIRST_MESSAGE_S: Final = 10.0
FIRST_MESSAGE_BYTES: Final = 256 * 1024
#: Nodes have so long to stop before the control store does.
STOP_GRACE_S: Final = 5.0
RESIGN_S: Final = 1.0
#: Operations that are under way at the end have so long.
LANES_S: Final = 5.0

READS: Final = (
    operations.ReadLeases, operations.ReadGiven, operations.ReadJob, operations.ReadJobCode,
    operations.ReadJobs, operations.ReadActor, operations.ReadFunctions, operations.ReadTasks,
    operations.ReadObjects, operations.ReadLineage, operations.ReadNodes,
)  # fmt: skip


class Store(Protocol):
    """Carries operations out; used by several threads."""

    def execute(self, operation: Operation) -> Result:
        """Blocks. Any exception means that the outcome is unknown."""
        ...


def _nothing() -> None:
    """Nobody wants to know."""


def _lane(name: str) -> ThreadPoolExecutor:
    """A thread, which does one operation after the other."""
    return ThreadPoolExecutor(1, thread_name_prefix=f"store-{name}")


class _Session:
    """A node's open stream."""

    def __init__(self) -> None:
        self.outbox = Outbox()
        self.wake = asyncio.Event()
        self.closing = False
        #: As the chaos suite calls the node, once it has a number.
        self.node = "0"

    def close(self) -> None:
        self.closing = True
        self.wake.set()


class ControlStore:
    """``start``, then ``wait_stopped``, then ``close``. The store is the caller's to close."""

    def __init__(
        self,
        settings: Settings,
        token: str,
        store: Store,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.core = Core(settings)
        self._token = token.encode()
        self._store = store
        self._clock = clock
        self._lead_lane = _lane("lead")
        self._write_lane = _lane("write")
        read_lanes = [_lane("read-1"), _lane("read-2")]
        self._next_read_lane = itertools.cycle(read_lanes).__next__
        self._lanes = [self._lead_lane, self._write_lane, *read_lanes]
        self._server: Any = None
        self._sessions: dict[int, _Session] = {}
        self._numbers = itertools.count(1)
        self._tasks: set[asyncio.Future[Any]] = set()
        self._tick_handle: asyncio.TimerHandle | None = None
        self._ticks_fast = False
        self._stopped: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._closed = False
        #: Operations that raised, since the start.
        self.failures = 0
        #: Called when nodes can register, and whenever leadership was renewed: a process that was
        #: stopped may have said meanwhile that it leads.
        self.on_leading: Callable[[], None] = _nothing
        self._leads_until = 0.0

    async def start(self, host: str, port: int) -> str:
        """Listens and begins to seek leadership; port 0 lets the system choose. Returns
        "host:port". Raises OSError if the port cannot be had."""
        self._server = grpc.aio.server(options=SERVER_OPTIONS)
        handler = grpc.stream_stream_rpc_method_handler(self._session)
        generic = grpc.method_handlers_generic_handler(SERVICE, {SESSION: handler})
        self._server.add_generic_rpc_handlers((generic,))
        shown = f"[{host}]" if ":" in host else host
        try:
            bound = self._server.add_insecure_port(f"{shown}:{port}")
        except RuntimeError:
            bound = 0
        if not bound:
            raise OSError(f"cannot listen on {shown}:{port}: the port is taken or not ours")
        await self._server.start()
        self._tick()
        return f"{shown}:{bound}"

    async def wait_stopped(self) -> str:
        """Until the core ends the cluster, and its nodes have gone; the reason."""
        reason = await asyncio.shield(self._stopped)
        deadline = self._clock() + STOP_GRACE_S
        while self._clock() < deadline:
            if not self._sessions and not self.core.context.operations_pending:
                break
            await asyncio.sleep(0.02)
        return reason

    async def close(self) -> None:
        """Ends all sessions, and gives leadership up, so that a successor need not wait."""
        self._closed = True
        if self._tick_handle is not None:
            self._tick_handle.cancel()
        for session in self._sessions.values():
            session.close()
        if self._server is not None:
            await self._server.stop(0.2)
        for task in self._tasks:
            task.cancel()
        await self._resign()
        try:
            async with asyncio.timeout(LANES_S):
                for lane in self._lanes:
                    await asyncio.get_running_loop().run_in_executor(None, lane.shutdown)
        except TimeoutError:
            logger.warning("an operation on Postgres does not end")

    async def _resign(self) -> None:
        context = self.core.context
        if not self.core.leads:
            return
        resign = operations.Lead(context.settings.holder, context.epoch, 0.0)
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(RESIGN_S):
                await loop.run_in_executor(self._lead_lane, self._store.execute, resign)
        except Exception as error:  # it runs out by itself
            self.failures += 1
            logger.warning("leadership was not given up: %s: %s", type(error).__name__, error)

    # events and effects

    def _feed(self, event: Event) -> None:
        if self._closed:
            return
        self._carry(self.core.handle(event))
        core = self.core
        if core.leads_until != self._leads_until and core.leads and core.members.loaded:
            self.on_leading()
            self._leads_until = core.leads_until
        if self.core.busy and not self._ticks_fast:
            self._schedule_tick()

    def _tick(self) -> None:
        self._ticks_fast = False
        self._feed(Tick(self._clock()))
        self._schedule_tick()

    def _schedule_tick(self) -> None:
        if self._tick_handle is not None:
            self._tick_handle.cancel()
        self._ticks_fast = self.core.busy
        delay_s = BUSY_TICK_S if self._ticks_fast else IDLE_TICK_S
        self._tick_handle = asyncio.get_running_loop().call_later(delay_s, self._tick)

    def _carry(self, effects: list[Effect]) -> None:
        said: FromStore | None = None
        body = b""
        for effect in effects:
            match effect:
                case Send(conn, message):
                    if message is not said:  # a broadcast is encoded once
                        said, body = message, encode(message)
                    if failpoints.ON and isinstance(message, Registered) and conn in self._sessions:
                        self._sessions[conn].node = str(message.node_id)
                    self._send(conn, body)
                case Execute(number, operation):
                    self._begin(self._execute(number, operation))
                case Probe():
                    self._begin(self._probe(effect))
                case CloseConnection(conn):
                    if conn in self._sessions:
                        self._sessions[conn].close()
                case StopCluster(reason):
                    if not self._stopped.done():
                        self._stopped.set_result(reason)
                case _:
                    assert_never(effect)

    def _begin(self, work: Any) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # Postgres

    async def _execute(self, number: int, operation: Operation) -> None:
        result: Result | StoreFailed
        try:
            lane = self._lane(operation)
            loop = asyncio.get_running_loop()
            if failpoints.ON:
                self._crash_point("before", operation)
            result = await loop.run_in_executor(lane, self._store.execute, operation)
            if failpoints.ON:
                self._crash_point("after", operation)
        except asyncio.CancelledError:
            raise
        except Exception as error:
            self.failures += 1
            name = type(operation).__name__
            logger.warning("%s failed: %s: %s", name, type(error).__name__, error)
            result = StoreFailed(str(error))
        self._feed(StoreReplied(number, result))

    @staticmethod
    def _crash_point(when: str, operation: Operation) -> None:
        if not isinstance(operation, (*READS, operations.Lead)):
            failpoints.crash_point(f"gcs.{when}_write")
        if when == "after" and isinstance(operation, operations.ReserveActorName):
            failpoints.crash_point("gcs.creating_actor")
        if when == "after" and isinstance(operation, operations.RestoreActor):
            failpoints.crash_point("gcs.restoring_actor")

    def _lane(self, operation: Operation) -> ThreadPoolExecutor:
        if isinstance(operation, operations.Lead):
            return self._lead_lane
        if isinstance(operation, READS):
            return self._next_read_lane()
        return self._write_lane

    # nodes

    async def _probe(self, probe: Probe) -> None:
        outcome = ANSWERED
        try:
            async with asyncio.timeout(PROBE_TIMEOUT_S):
                if failpoints.ON:
                    await failpoints.passage(failpoints.GCS, str(probe.node_id))
                _, writer = await asyncio.open_connection(probe.host, probe.port)
            writer.close()
        except ConnectionRefusedError:
            outcome = REFUSED
        except (OSError, TimeoutError):
            outcome = SILENT
        self._feed(ProbeResult(probe.node_id, probe.incarnation, outcome))

    def _send(self, conn: int, body: bytes) -> None:
        session = self._sessions.get(conn)
        if session is not None and not session.closing:
            session.outbox.add(body)
            session.wake.set()

    async def _session(self, requests: Any, context: Any) -> None:
        """One node's stream, from its first message to its end."""
        try:
            async with asyncio.timeout(FIRST_MESSAGE_S):
                first = await context.read()
        except TimeoutError:
            return
        messages = None if first is grpc.aio.EOF else self._admit(first)
        if messages is None:
            text = "the cluster's token is missing or wrong; nodes read it from the cluster's home"
            await context.write(pack([encode(RegisterRefused("token", text))]))
            return
        conn = next(self._numbers)
        session = self._sessions[conn] = _Session()
        self._feed(NodeConnected(conn))
        reader = asyncio.ensure_future(self._read(conn, session, context, messages))
        try:
            while True:
                while session.outbox:
                    if failpoints.ON:
                        await failpoints.passage(failpoints.GCS, session.node)
                    await context.write(session.outbox.take())
                if session.closing or self._closed:
                    return
                session.wake.clear()
                await session.wake.wait()
        except (grpc.RpcError, ConnectionResetError):
            return  # the stream broke
        finally:
            reader.cancel()
            del self._sessions[conn]
            self._feed(NodeDisconnected(conn))

    def _admit(self, body: bytes) -> list[ToStore] | None:
        """The first messages of a stream, if they begin with the cluster's token."""
        if len(body) > FIRST_MESSAGE_BYTES:
            return None
        try:
            messages = to_store_batch.decode(body)
        except msgspec.MsgspecError:
            return None
        if not messages or not isinstance(messages[0], Register):
            return None
        given = messages[0].token.encode()
        return messages if hmac.compare_digest(given, self._token) else None

    async def _read(
        self, conn: int, session: _Session, context: Any, messages: list[ToStore]
    ) -> None:
        try:
            while True:
                self._feed(Tick(self._clock()))
                for message in messages:
                    self._received(conn, message)
                body = await context.read()
                if body is grpc.aio.EOF:
                    break
                messages = to_store_batch.decode(body)
        except msgspec.MsgspecError as error:
            logger.error("a node sent what is no message, its session is closed: %s", error)
        except grpc.RpcError:
            pass  # the stream broke
        finally:
            session.close()

    def _received(self, conn: int, message: ToStore) -> None:
        entropy = os.urandom(16) if isinstance(message, OpenJob) else b""
        self._feed(FromNode(conn, message, entropy))
