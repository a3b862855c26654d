"""The node's Unix sockets: drivers and workers, and the handing out of the arena's descriptor.

Shell only: frames in, events out.  Nothing a client sends is decoded before its ``Hello`` with the
cluster's token; bytes that are no frames, or no messages, end that connection and nothing else.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import logging
import os
import socket
import sys
import threading
from collections.abc import Callable
from itertools import count
from pathlib import Path

import msgspec

from regrow import failpoints
from regrow.messages import (
    PROTOCOL_VERSION,
    Hello,
    NodeMessage,
    Refused,
    Run,
    client_decoder,
    encode,
)
from regrow.objectstore.arena import send_fd
from regrow.scheduler.events import ClientArrived, ClientGone, ClientSaid, DriverExited, Event
from regrow.wire import FrameError, FrameReader, frame

logger = logging.getLogger(__name__)

#: Before its ``Hello`` a client may send this much in one frame.
_HELLO_LIMIT = 64 * 1024
_HELLO_TIMEOUT_S = 10.0
_READ_SIZE = 256 * 1024


class ClientProtocol(asyncio.Protocol):
    """One connection. Hot path: ``data_received``."""

    def __init__(self, server: ClientServer) -> None:
        self._server = server
        self._reader = FrameReader(_HELLO_LIMIT)
        self._transport: asyncio.Transport | None = None
        #: To read what it said last: the transport of a peer that has died throws that away if
        #: something is written to it first.
        self._socket: socket.socket | None = None
        self.number = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport) or hasattr(transport, "write")
        self._transport = transport  # type: ignore[assignment]
        loop = asyncio.get_running_loop()
        loop.call_later(_HELLO_TIMEOUT_S, self._check_hello)

    def _check_hello(self) -> None:
        if not self.number and self._transport is not None:
            self._transport.close()

    def data_received(self, data: bytes) -> None:
        try:
            for body in self._reader.feed(data):
                message = client_decoder.decode(body)
                if self.number:
                    self._server.on_event(ClientSaid(self.number, message))
                else:
                    self._greet(message)
        except (FrameError, msgspec.MsgspecError) as error:
            logger.warning("client %d sent what is no message: %s", self.number, error)
            self.close()

    def _greet(self, message: object) -> None:
        refusal = self._server.refusal(message)
        if refusal is not None or not isinstance(message, Hello):
            if refusal is not None:
                self.send(refusal)
            self.close()
            return
        self._reader = _widened(self._reader)
        if self._transport is not None:
            self._socket = self._transport.get_extra_info("socket").dup()
        self.number = self._server.register(self)
        if message.role == "driver":
            self._server.processes.hold(self.number, self._transport)
        self._server.on_event(ClientArrived(self.number, message))

    def send(self, message: NodeMessage) -> None:
        if self._transport is not None:
            self._transport.write(frame(encode(message)))

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        if self._socket is not None:
            self._read_rest(self._socket)
            self._socket.close()
        if self.number:
            self._server.forget(self.number)

    def _read_rest(self, connection: socket.socket) -> None:
        """What came before the end. Never waits: a child of the client may hold the other end."""
        connection.setblocking(False)
        while True:
            try:
                data = connection.recv(_READ_SIZE)
            except OSError:  # nothing is left
                return
            if not data:
                return
            self.data_received(data)


def _widened(reader: FrameReader) -> FrameReader:
    """A reader without the limit of strangers, with what the first one holds."""
    wide = FrameReader()
    rest = reader.rest()
    if rest:
        assert not wide.feed(rest), "a frame was left uncut"
    return wide


class ClientServer:
    """All clients of the node."""

    def __init__(self, token: str, on_event: Callable[[Event], None]) -> None:
        self.on_event = on_event
        self._token = token.encode()
        self._numbers = count(1)
        self._clients: dict[int, ClientProtocol] = {}
        self.processes = DriverProcesses(self._process_ended)
        self._server: asyncio.AbstractServer | None = None

    async def listen(self, path: Path) -> None:
        """Serves at ``path``, in a directory that is 0700."""
        path.unlink(missing_ok=True)
        loop = asyncio.get_running_loop()
        self._server = await loop.create_unix_server(lambda: ClientProtocol(self), str(path))
        os.chmod(path, 0o600)

    def refusal(self, message: object) -> Refused | None:
        """Why this first message is not accepted; None if it is."""
        if not isinstance(message, Hello):
            return Refused("protocol", "the first message has to be Hello")
        if not hmac.compare_digest(message.token.encode(), self._token):
            return Refused("token", "the token is not this cluster's")
        if message.version != PROTOCOL_VERSION:
            return Refused(
                "version",
                f"this node speaks protocol {PROTOCOL_VERSION}, the client {message.version}: "
                "use the same version of regrow on both sides",
            )
        return None

    def register(self, client: ClientProtocol) -> int:
        number = next(self._numbers)
        self._clients[number] = client
        return number

    def forget(self, number: int) -> None:
        self._clients.pop(number, None)
        self.on_event(ClientGone(number))
        self.processes.let_go(number)

    def send(self, number: int, message: NodeMessage) -> None:
        """To a client; one that is gone needs nothing."""
        client = self._clients.get(number)
        if client is not None:
            if failpoints.ON and isinstance(message, Run):
                failpoints.crash_point("node.before_dispatch")
            client.send(message)

    def _process_ended(self, number: int) -> None:
        self.on_event(DriverExited(number))

    def close_client(self, number: int) -> None:
        client = self._clients.get(number)
        if client is not None:
            client.close()

    def close(self) -> None:
        """Ends all connections and the socket."""
        if self._server is not None:
            self._server.close()
        for client in list(self._clients.values()):
            client.close()
        self.processes.close()


class DriverProcesses:
    """The processes of the drivers, each as a descriptor (pidfd), readable once it has ended:
    a number alone may be another process's by then."""

    def __init__(self, ended: Callable[[int], None]) -> None:
        self._ended = ended
        self._held: dict[int, int] = {}
        self._watched: dict[int, int] = {}

    def hold(self, client: int, transport: asyncio.BaseTransport | None) -> None:
        """Takes hold of the process at the other end of the connection."""
        sock = transport.get_extra_info("socket") if transport is not None else None
        if sock is None:
            return
        credentials = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
        pid = int.from_bytes(credentials[:4], sys.byteorder)
        if pid:  # 0: it is in a container of its own, where it cannot be seen
            with contextlib.suppress(OSError):  # it ended, or the kernel is older than 5.3
                self._held[client] = os.pidfd_open(pid)

    def watch(self, client: int) -> None:
        """``ended(client)`` follows when its process has ended, if that can be seen."""
        process = self._held.pop(client, None)
        if process is not None:
            self._watched[client] = process
            asyncio.get_running_loop().add_reader(process, self._readable, client)

    def _readable(self, client: int) -> None:
        process = self._watched.pop(client)
        asyncio.get_running_loop().remove_reader(process)
        os.close(process)
        self._ended(client)

    def let_go(self, client: int) -> None:
        """Nothing is to be known of its process, unless it is watched."""
        process = self._held.pop(client, None)
        if process is not None:
            os.close(process)

    def close(self) -> None:
        """Watches nothing any longer."""
        for process in self._watched.values():
            asyncio.get_running_loop().remove_reader(process)
        for process in [*self._watched.values(), *self._held.values()]:
            os.close(process)
        self._watched, self._held = {}, {}


class ArenaDoor:
    """A thread that hands the arena's descriptor to whoever connects to a 0600 socket in a 0700
    directory. (asyncio's transports cannot send descriptors.)"""

    def __init__(self, path: Path, arena_fd: int) -> None:
        self._fd = arena_fd
        path.unlink(missing_ok=True)
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.bind(str(path))
        os.chmod(path, 0o600)
        self._socket.listen(16)
        threading.Thread(target=self._serve, name="arena-door", daemon=True).start()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return  # closed
            with connection:
                connection.settimeout(5)
                try:
                    send_fd(connection, self._fd)
                except OSError as error:
                    logger.warning("the arena could not be handed out: %s", error)

    def close(self) -> None:
        self._socket.close()
