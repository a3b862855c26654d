"""Links to other nodes: control messages one way per connection, and bulk connections for bytes.

Shell only.  Each node dials the peers it has something for.  Frames are numbered and kept until
the peer acknowledges them, so that a connection that breaks between two living nodes loses and
doubles nothing. Both sides prove that they know the cluster's token before anything else is
decoded: the proof is keyed with the token, which itself never travels.
"""

from __future__ import annotations

import asyncio
import hmac
import logging
import socket
from collections import deque
from collections.abc import Awaitable, Callable

import msgspec

from regrow import failpoints
from regrow.messages import (
    PROTOCOL_VERSION,
    HandOver,
    NodeView,
    PeerHello,
    PeerMessage,
    encode,
    peer_decoder,
)
from regrow.scheduler.events import Event, PeerLost, PeerSaid
from regrow.scheduler.incarnations import Incarnations
from regrow.wire import FrameError, FrameReader, frame

logger = logging.getLogger(__name__)

_HELLO_LIMIT = 4096
_HELLO_TIMEOUT_S = 5.0
_DIAL_TIMEOUT_S = 3.0
_RETRY_S = 0.2
_READ = 256 * 1024


class Credentials:
    """How a node proves itself to its peers."""

    def __init__(self, token: str, self_id: tuple[int, int]) -> None:
        self._token = token.encode()
        self.self_id = self_id
        #: As the chaos suite calls this node.
        self.name = str(self_id[0])

    def proof(self, role: str, node_id: int, incarnation: int) -> str:
        """What only a holder of the token can say about itself."""
        text = f"{role}:{node_id}:{incarnation}".encode()
        return hmac.new(self._token, text, "sha256").hexdigest()

    def hello(self, role: str, purpose: str = "control") -> PeerHello:
        return PeerHello(PROTOCOL_VERSION, self.proof(role, *self.self_id), *self.self_id, purpose)

    def accepts(self, role: str, hello: object) -> bool:
        """Whether the other side's ``hello`` is right."""
        if not isinstance(hello, PeerHello) or hello.version != PROTOCOL_VERSION:
            return False
        expected = self.proof(role, hello.node_id, hello.incarnation)
        return hmac.compare_digest(hello.token, expected)


async def read_frame(sock: socket.socket, reader: FrameReader) -> bytes:
    """The next frame of a stream on which the peer sends one at a time."""
    loop = asyncio.get_running_loop()
    while True:
        data = await loop.sock_recv(sock, _READ)
        if not data:
            raise ConnectionResetError("the peer closed the connection")
        bodies = reader.feed(data)
        if bodies:
            assert len(bodies) == 1, "more than one frame where one was expected"
            return bodies[0]


async def dial(view: NodeView, credentials: Credentials, purpose: str) -> socket.socket:
    """A connection to a peer on which both sides have proved themselves. Raises OSError."""
    loop = asyncio.get_running_loop()
    sock = socket.socket(socket.AF_INET6 if ":" in view.host else socket.AF_INET)
    sock.setblocking(False)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    try:
        async with asyncio.timeout(_DIAL_TIMEOUT_S):
            if failpoints.ON:
                await failpoints.passage(credentials.name, str(view.node_id))
            await loop.sock_connect(sock, (view.host, view.port))
            await loop.sock_sendall(sock, frame(encode(credentials.hello("dials", purpose))))
            answer = peer_decoder.decode(await read_frame(sock, FrameReader(_HELLO_LIMIT)))
        if not credentials.accepts("answers", answer):
            raise ConnectionRefusedError("the peer does not know the cluster's token")
        assert isinstance(answer, PeerHello)
        if (answer.node_id, answer.incarnation) != (view.node_id, view.incarnation):
            raise ConnectionRefusedError("another incarnation answers there")
    except TimeoutError as error:
        sock.close()
        raise ConnectionError(f"no answer within {_DIAL_TIMEOUT_S:g} s") from error
    except (FrameError, msgspec.MsgspecError) as error:
        sock.close()
        raise ConnectionRefusedError(f"the peer speaks another language: {error}") from error
    except BaseException:
        sock.close()
        raise
    return sock


class Link:
    """What goes from this node to one incarnation of a peer."""

    def __init__(self, view: NodeView, credentials: Credentials) -> None:
        self.view = view
        self._credentials = credentials
        self._sent = 0
        #: (number, frame) that the peer has not acknowledged.
        self._unacknowledged: deque[tuple[int, bytes]] = deque()
        self._outgoing: deque[bytes] = deque()
        self._wake = asyncio.Event()
        self.task: asyncio.Task[None] | None = None

    def send(self, message: PeerMessage) -> None:
        self._sent += 1
        body = frame(self._sent.to_bytes(8, "little") + encode(message))
        self._unacknowledged.append((self._sent, body))
        self._outgoing.append(body)
        self._wake.set()

    async def run(self, on_lost: Callable[[NodeView, bool], None]) -> None:
        """Connects, sends, and starts over when the connection breaks, until cancelled."""
        while True:
            try:
                sock = await dial(self.view, self._credentials, "control")
            except OSError as error:
                refused = isinstance(error, ConnectionRefusedError)
                on_lost(self.view, refused)
                await asyncio.sleep(_RETRY_S)
                continue
            self._outgoing = deque(body for _, body in self._unacknowledged)
            try:
                async with asyncio.TaskGroup() as group:
                    group.create_task(self._write(sock))
                    group.create_task(self._read_acks(sock))
            except* (OSError, FrameError) as errors:
                logger.info("link to node %d broke: %s", self.view.node_id, errors.exceptions[0])
            finally:
                sock.close()

    async def _write(self, sock: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            while self._outgoing:
                if failpoints.ON:
                    await failpoints.passage(self._credentials.name, str(self.view.node_id))
                outgoing, self._outgoing = self._outgoing, deque()
                await loop.sock_sendall(sock, b"".join(outgoing))
            self._wake.clear()
            if not self._outgoing:
                await self._wake.wait()

    async def _read_acks(self, sock: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        reader = FrameReader(_HELLO_LIMIT)
        while True:
            data = await loop.sock_recv(sock, 4096)
            if not data:
                raise ConnectionResetError("closed by the peer")
            for body in reader.feed(data):
                number = int.from_bytes(body, "little")
                while self._unacknowledged and self._unacknowledged[0][0] <= number:
                    self._unacknowledged.popleft()


class PeerNetwork:
    """All links of this node, and the TCP socket at which peers call.

    ``serve_bulk(sock, hello)`` takes over a connection for bytes."""

    def __init__(
        self,
        credentials: Credentials,
        on_event: Callable[[Event], None],
        serve_bulk: Callable[[socket.socket, PeerHello, bytes], Awaitable[None]],
    ) -> None:
        self._credentials = credentials
        self._on_event = on_event
        self._serve_bulk = serve_bulk
        self._links: dict[int, Link] = {}
        #: (node, incarnation) -> the last frame that was taken from it.
        self._received: dict[tuple[int, int], int] = {}
        self._incarnations = Incarnations()
        self._tasks: set[asyncio.Task[None]] = set()
        self._socket: socket.socket | None = None

    def listen(self, sock: socket.socket) -> None:
        """Serves a socket that listens already."""
        sock.setblocking(False)
        self._socket = sock
        self._spawn(self._accept(sock))

    def update(self, views: list[NodeView]) -> None:
        """The cluster as the control store tells: links to what is gone end."""
        self._incarnations.told(views)
        self._end_stale()
        for node_id, message in self._incarnations.take_kept():
            self.send(node_id, message)

    def node_died(self, node_id: int, incarnation: int) -> None:
        self._incarnations.died(node_id, incarnation)
        self._end_stale()

    def view(self, node_id: int) -> NodeView | None:
        return self._incarnations.view(node_id)

    def send(self, node_id: int, message: PeerMessage) -> None:
        """To a peer; to one that is dead nothing is sent: whoever waits is told of the death."""
        if failpoints.ON and isinstance(message, HandOver):
            failpoints.crash_point("node.before_hand_over")
        link = self._links.get(node_id)
        if link is None:
            view = self._incarnations.view(node_id)
            if view is None:
                self._incarnations.keep(node_id, message)
                return
            link = self._links[node_id] = Link(view, self._credentials)
            link.task = self._spawn(link.run(self._lost))
        link.send(message)

    def _lost(self, view: NodeView, refused: bool) -> None:
        self._on_event(PeerLost(view.node_id, view.incarnation, refused))

    def _end_stale(self) -> None:
        for node_id, link in list(self._links.items()):
            if not self._incarnations.is_current(node_id, link.view.incarnation):
                del self._links[node_id]
                if link.task is not None:
                    link.task.cancel()

    def _spawn(self, work: Awaitable[None]) -> asyncio.Task[None]:
        task = asyncio.ensure_future(work)
        assert isinstance(task, asyncio.Task)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            logger.error("a peer connection failed", exc_info=task.exception())

    async def _accept(self, listening: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            sock, _ = await loop.sock_accept(listening)
            sock.setblocking(False)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._spawn(self._answer(sock))

    async def _answer(self, sock: socket.socket) -> None:
        """A caller proves itself and is served until it hangs up."""
        loop = asyncio.get_running_loop()
        try:
            reader = FrameReader(_HELLO_LIMIT)
            async with asyncio.timeout(_HELLO_TIMEOUT_S):
                hello = peer_decoder.decode(await read_frame(sock, reader))
                if not self._credentials.accepts("dials", hello):
                    logger.warning("a caller without the cluster's token was refused")
                    return
                await loop.sock_sendall(sock, frame(encode(self._credentials.hello("answers"))))
            assert isinstance(hello, PeerHello)
            if hello.purpose == "bulk":
                if failpoints.ON:
                    await failpoints.passage(self._credentials.name, str(hello.node_id))
                await self._serve_bulk(sock, hello, reader.rest())
            else:
                await self._receive(sock, hello, reader.rest())
        except (OSError, TimeoutError) as error:
            logger.info("a peer connection ended: %s", str(error) or type(error).__name__)
        except (FrameError, msgspec.MsgspecError, AssertionError) as error:
            logger.warning("a caller sent what is no message: %s", error)
        finally:
            sock.close()

    async def _receive(self, sock: socket.socket, hello: PeerHello, rest: bytes) -> None:
        loop = asyncio.get_running_loop()
        caller = (hello.node_id, hello.incarnation)
        reader = FrameReader()
        data = rest
        while True:
            if data:
                for body in reader.feed(data):
                    number = int.from_bytes(body[:8], "little")
                    if number > self._received.get(caller, 0):
                        self._received[caller] = number
                        if self._incarnations.called(*caller):
                            self._end_stale()
                        message = peer_decoder.decode(memoryview(body)[8:])
                        self._on_event(PeerSaid(hello.node_id, message, hello.incarnation))
                number = self._received.get(caller, 0)
                if failpoints.ON:
                    await failpoints.passage(self._credentials.name, str(hello.node_id))
                await loop.sock_sendall(sock, frame(number.to_bytes(8, "little")))
            data = await loop.sock_recv(sock, _READ)
            if not data:
                return

    def close(self) -> None:
        """Ends everything."""
        if self._socket is not None:
            self._socket.close()
        for task in list(self._tasks):
            task.cancel()
