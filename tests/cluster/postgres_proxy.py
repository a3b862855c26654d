"""A TCP proxy in front of Postgres: it can be away, and it can lose the answer to a commit.

An answer is lost after Postgres has given it: the transaction is in, and whoever asked cannot know.
"""

from __future__ import annotations

import socket
import threading
from contextlib import suppress
from typing import Self

#: What asks for a commit: a transaction's end, and the statement of the log, which is one.
COMMITS = (b"COMMIT", b"\0append\0")


class PostgresProxy:
    """Listens on a port of loopback; as a context manager."""

    def __init__(self, target_port: int) -> None:
        self._target = target_port
        self._listener = _listen(0)
        #: Where to connect instead.
        self.port = int(self._listener.getsockname()[1])
        self._lock = threading.Lock()
        self._pairs: set[tuple[socket.socket, socket.socket]] = set()
        self._threads: list[threading.Thread] = []
        self._lose_every = 0
        self._commits = 0
        #: Answers to commits that were lost.
        self.lost = 0
        self._start(self._accept, self._listener)

    def lose_answers(self, every: int) -> None:
        """Each so many commits the connection breaks before the answer arrives; 0: never."""
        self._lose_every = every

    def go_away(self) -> None:
        """All connections break, and new ones are refused."""
        self._close_listener()
        self._cut_all()

    def come_back(self) -> None:
        self._listener = _listen(self.port)
        self._start(self._accept, self._listener)

    def _close_listener(self) -> None:
        with suppress(OSError):  # wakes the thread that accepts
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _start(self, work: object, *arguments: object) -> None:
        assert callable(work)
        thread = threading.Thread(target=work, args=arguments, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                near, _ = listener.accept()
            except OSError:
                return
            try:
                far = socket.create_connection(("127.0.0.1", self._target))
            except OSError:
                near.close()
                continue
            pair = near, far
            with self._lock:
                self._pairs.add(pair)
            lost = threading.Event()
            self._start(self._carry_requests, pair, lost)
            self._start(self._carry_answers, pair, lost)

    def _carry_requests(self, pair: tuple[socket.socket, socket.socket], lost: object) -> None:
        near, far = pair
        assert isinstance(lost, threading.Event)
        with suppress(OSError):
            while data := near.recv(1 << 16):
                if any(word in data for word in COMMITS):
                    with self._lock:
                        self._commits += 1
                        if self._lose_every and self._commits % self._lose_every == 0:
                            lost.set()
                far.sendall(data)
        self._cut(pair)

    def _carry_answers(self, pair: tuple[socket.socket, socket.socket], lost: object) -> None:
        near, far = pair
        assert isinstance(lost, threading.Event)
        with suppress(OSError):
            while data := far.recv(1 << 16):
                if lost.is_set():
                    with self._lock:
                        self.lost += 1
                    break
                near.sendall(data)
        self._cut(pair)

    def _cut(self, pair: tuple[socket.socket, socket.socket]) -> None:
        with self._lock:
            self._pairs.discard(pair)
        for end in pair:
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()

    def _cut_all(self) -> None:
        with self._lock:
            pairs = list(self._pairs)
        for pair in pairs:
            self._cut(pair)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.go_away()
        for thread in self._threads:
            thread.join(10)


def _listen(port: int) -> socket.socket:
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind(("127.0.0.1", port))
    listener.listen(64)
    return listener
