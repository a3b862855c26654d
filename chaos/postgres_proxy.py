"""A proxy in front of Postgres: it can be away, cut, slow, and it can lose the answer to a commit.

An answer is lost after Postgres has given it: the transaction is in, and whoever asked cannot know.
It listens on a Unix socket in a private folder, or on a port of loopback.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Final, Self
from urllib.parse import parse_qs, quote, urlsplit, urlunsplit

#: What asks for a commit: a transaction's end, and the statement of the log, which is one.
COMMITS: Final = (b"COMMIT", b"\0append\0")
#: As libpq names a server's socket.
SOCKET_NAME: Final = ".s.PGSQL.5432"

#: A TCP port of loopback, or the path of a Unix socket.
Address = int | str
_Pair = tuple[socket.socket, socket.socket]


class PostgresProxy:
    """As a context manager; carries bytes from when it is made."""

    def __init__(self, target: Address, near: Address = 0) -> None:
        self._target = target
        self._listener = _listen(near)
        #: Where to connect instead: a port, or a path.
        self.address: Address = near or int(self._listener.getsockname()[1])
        #: Of a proxy in front of a server with an URL: the URL to use instead.
        self.url = ""
        self._lock = threading.Lock()
        self._pairs: set[_Pair] = set()
        self._threads: list[threading.Thread] = []
        self._lose_every = 0
        self._commits = 0
        self._delay_s = 0.0
        #: Answers to commits that were lost; connections that were cut.
        self.lost = 0
        self.cut = 0
        self._start(self._accept, self._listener)

    @classmethod
    def in_front_of(cls, url: str, folder: Path) -> PostgresProxy:
        """A proxy with a socket in ``folder`` for the server with this URL, which names a folder of
        a Unix socket."""
        parts = urlsplit(url)
        query = parse_qs(parts.query)
        target = Path(query["host"][0]) / f".s.PGSQL.{query.get('port', ['5432'])[0]}"
        proxy = cls(str(target), str(folder / SOCKET_NAME))
        host = quote(str(folder), safe="/")
        proxy.url = urlunsplit(parts._replace(query=f"host={host}"))
        return proxy

    @property
    def port(self) -> int:
        """Of one that listens on TCP."""
        assert isinstance(self.address, int)
        return self.address

    # Faults

    def lose_answers(self, every: int) -> None:
        """Each so many commits the connection breaks before the answer arrives; 0: never."""
        self._lose_every = every

    def delay(self, seconds: float) -> None:
        """Every request waits for so long; 0: none does."""
        self._delay_s = seconds

    def cut_all(self) -> int:
        """All connections break, in whatever they are doing; how many did."""
        with self._lock:
            pairs = list(self._pairs)
        for pair in pairs:
            self._cut(pair)
        self.cut += len(pairs)
        return len(pairs)

    def go_away(self) -> None:
        """All connections break, and new ones are refused."""
        self._close_listener()
        self.cut_all()

    def come_back(self) -> None:
        """New connections are accepted again."""
        self._listener = _listen(self.address)
        self._start(self._accept, self._listener)

    # Carrying

    def _close_listener(self) -> None:
        with suppress(OSError):  # wakes the thread that accepts
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        if isinstance(self.address, str):
            Path(self.address).unlink(missing_ok=True)

    def _start(self, work: object, *arguments: object) -> None:
        assert callable(work)
        self._threads = [thread for thread in self._threads if thread.is_alive()]
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
                far = _connect(self._target)
            except OSError:
                near.close()
                continue
            pair = near, far
            with self._lock:
                self._pairs.add(pair)
            lost = threading.Event()
            self._start(self._carry_requests, pair, lost)
            self._start(self._carry_answers, pair, lost)

    def _carry_requests(self, pair: _Pair, lost: threading.Event) -> None:
        near, far = pair
        with suppress(OSError):
            while data := near.recv(1 << 16):
                if any(word in data for word in COMMITS):
                    with self._lock:
                        self._commits += 1
                        if self._lose_every and self._commits % self._lose_every == 0:
                            lost.set()
                if self._delay_s:
                    time.sleep(self._delay_s)
                far.sendall(data)
        self._cut(pair)

    def _carry_answers(self, pair: _Pair, lost: threading.Event) -> None:
        near, far = pair
        with suppress(OSError):
            while data := far.recv(1 << 16):
                if lost.is_set():
                    with self._lock:
                        self.lost += 1
                    break
                near.sendall(data)
        self._cut(pair)

    def _cut(self, pair: _Pair) -> None:
        with self._lock:
            self._pairs.discard(pair)
        for end in pair:
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.go_away()
        for thread in self._threads:
            thread.join(10)


def _listen(address: Address) -> socket.socket:
    if isinstance(address, str):
        Path(address).unlink(missing_ok=True)
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(address)
        os.chmod(address, 0o600)
    else:
        listener = socket.socket()
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", address))
    listener.listen(64)
    return listener


def _connect(address: Address) -> socket.socket:
    if isinstance(address, str):
        far = socket.socket(socket.AF_UNIX)
        try:
            far.connect(address)
        except BaseException:
            far.close()
            raise
        return far
    return socket.create_connection(("127.0.0.1", address))
