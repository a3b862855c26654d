"""A node that does only what a test tells it: for the client's side of the protocol.

It speaks real frames over a real Unix socket, keeps every message it was sent, and answers by rules
that a test may replace.
"""

from __future__ import annotations

import contextlib
import itertools
import socket
import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Self, TypeVar

from regrow.messages import (
    OK,
    Ask,
    Committed,
    Create,
    Created,
    Hello,
    Located,
    Location,
    NodeMessage,
    Put,
    Read,
    Seal,
    Submit,
    SystemFailure,
    TaskSpec,
    Value,
    Values,
    Welcome,
    client_decoder,
    encode,
    spec_decoder,
)
from regrow.objectstore.arena import Arena, send_fd
from regrow.objectstore.layout import digest
from regrow.objectstore.serialization import deserialize, serialize
from regrow.wire import FrameReader, frame

M = TypeVar("M")

TIMEOUT_S = 10.0
ARENA_SIZE = 16 << 20
JOB_ROOT = bytes(range(16))


class FakeNode:
    """Serves at ``path``, and talks to the client that came last; a context manager."""

    def __init__(self, folder: Path, *, window: int = 1000, node_id: int = 1) -> None:
        self.path = str(folder / f"node-{node_id}.sock")
        self.arena_path = str(folder / f"arena-{node_id}.sock")
        self.window = window
        self.node_id = node_id
        self.arena = Arena.create(ARENA_SIZE)
        self.received: list[Any] = []
        #: Whether submissions are acknowledged at once.
        self.commits = True
        #: Task -> its value, for answering submissions at once; None: not at all.
        self.runs: Callable[[TaskSpec], Any] | None = None
        self.handlers: dict[type, Callable[[Any], None]] = {
            Submit: self._submitted,
            Put: lambda message: self._counted(len(message.values)),
            Create: self._create,
            Seal: self._sealed,
            Read: self._read,
        }
        self._news = threading.Condition()
        self._free = itertools.count(0, 1 << 20)
        self._created: dict[bytes, Location] = {}
        self._client: socket.socket | None = None
        self._connections: list[socket.socket] = []
        self._sending = threading.Lock()
        self._sockets = [self._listen(self.path), self._listen(self.arena_path)]
        self._threads = [
            threading.Thread(target=self._serve_clients),
            threading.Thread(target=self._serve_arena),
        ]
        for thread in self._threads:
            thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.die()
        self.arena.close()

    def die(self) -> None:
        """Close every socket, as the kernel does for a process that was killed."""
        for sockets in (self._sockets, self._connections):
            for sock in sockets:
                with contextlib.suppress(OSError):
                    sock.shutdown(socket.SHUT_RDWR)
            for thread in self._threads[:2]:  # then no other connection comes
                thread.join()
        for thread in self._threads:
            thread.join()
        for sock in (*self._sockets, *self._connections):
            sock.close()

    # --- what a test does -------------------------------------------------------------------------

    def send(self, message: NodeMessage) -> None:
        with self._news:
            assert self._news.wait_for(lambda: self._client is not None, TIMEOUT_S)
        assert self._client is not None
        with self._sending, contextlib.suppress(OSError):  # the client may have left
            self._client.sendall(frame(encode(message)))

    def settle(self, object_id: bytes, value: Any) -> None:
        """Tell the client of a small value."""
        data = serialize(value).layout.to_bytes()
        self.send(Values([Value(object_id, OK, len(data), data)]))

    def settle_large(self, object_id: bytes, value: Any) -> None:
        """Put a value into the arena and tell the client that it exists."""
        layout = serialize(value).layout
        location = Location(object_id, 0, next(self._free), layout.size)
        layout.write_into(self.arena.view(location.offset, location.size))
        self._created[object_id] = location
        self.send(Values([Value(object_id, OK, layout.size, None)]))

    def until(self, kind: type[M], fits: Callable[[M], bool] = lambda _: True) -> M:
        """The first message of this kind that fits; waits for it."""
        with self._news:
            found: M | None = None

            def search() -> bool:
                nonlocal found
                found = next((m for m in self.all(kind) if fits(m)), None)
                return found is not None

            assert self._news.wait_for(search, TIMEOUT_S), f"no {kind.__name__} that fits came"
            assert found is not None
            return found

    def all(self, kind: type[M]) -> list[M]:
        return [message for message in self.received if isinstance(message, kind)]

    def specs(self, count: int) -> list[TaskSpec]:
        """The specs that were submitted; waits for so many."""

        def submitted() -> list[TaskSpec]:
            return [spec_decoder.decode(raw) for m in self.all(Submit) for raw in m.specs]

        with self._news:
            assert self._news.wait_for(lambda: len(submitted()) >= count, TIMEOUT_S)
            return submitted()

    # --- answering --------------------------------------------------------------------------------

    def _counted(self, count: int) -> None:
        if self.commits:
            self.send(Committed(count))

    def _submitted(self, message: Submit) -> None:
        self._counted(len(message.specs))
        if self.runs is not None:
            for raw in message.specs:
                spec = spec_decoder.decode(raw)
                self.settle(spec.task_id + bytes(4), self.runs(spec))

    def _create(self, message: Create) -> None:
        location = None
        error = SystemFailure("object_store_full", f"no room for {message.size} bytes")
        if message.size < ARENA_SIZE:
            location = Location(message.object_id, 0, next(self._free), message.size)
            self._created[message.object_id] = location
        self.send(Created(message.object_id, location, None if location else error))

    def _sealed(self, message: Seal) -> None:
        location = self._created[message.object_id]
        written = self.arena.view(location.offset, location.size)
        assert digest(written) == message.digest, "the digest is not that of what was written"
        self._counted(1)

    def _read(self, message: Read) -> None:
        self.send(Located([self._created[oid] for oid in message.object_ids]))

    # --- sockets ----------------------------------------------------------------------------------

    def _listen(self, path: str) -> socket.socket:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        sock.bind(path)
        sock.listen()
        return sock

    def _serve_arena(self) -> None:
        while True:
            try:
                connection, _ = self._sockets[1].accept()
            except OSError:
                return
            with connection:
                send_fd(connection, self.arena.fd)

    def _serve_clients(self) -> None:
        while True:
            try:
                connection, _ = self._sockets[0].accept()
            except OSError:
                return
            self._connections.append(connection)
            thread = threading.Thread(target=self._serve, args=(connection,))
            self._threads.append(thread)
            thread.start()

    def _serve(self, connection: socket.socket) -> None:
        reader = FrameReader()
        while True:
            try:
                data = connection.recv(1 << 20)
            except OSError:
                return
            if not data:
                return
            for body in reader.feed(data):
                self._handle(client_decoder.decode(body), connection)

    def _handle(self, message: Any, connection: socket.socket) -> None:
        if isinstance(message, Hello):
            welcome = Welcome(
                self.node_id, 1, message.number or 7, JOB_ROOT, ARENA_SIZE, self.arena_path, "",
                self.window,
            )  # fmt: skip
            connection.sendall(frame(encode(welcome)))
        with self._news:
            self.received.append(message)
            self._client = connection
            self._news.notify_all()
        handler = self.handlers.get(type(message))
        if handler is not None:
            handler(message)


def arguments(spec: TaskSpec) -> list[Any]:
    """The raw tuple of a spec's arguments."""
    return list(deserialize(spec.args))


def names(asks: Iterable[Ask]) -> list[str]:
    return [ask.what for ask in asks]
