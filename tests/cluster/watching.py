"""What the cluster tests look at: rows of Postgres, what a node holds, and waiting for either."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import psycopg

from regrow._link import Connection
from regrow.messages import PROTOCOL_VERSION, Answer, Ask, Hello, encode, node_decoder
from regrow.wire import frame


def wait_until(condition: Callable[[], object], what: str, timeout_s: float = 30) -> None:
    """Polls: for what happens in other processes there is no event to wait for."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"not within {timeout_s:g} s: {what}"
        time.sleep(0.02)


def postgres_url(home: Path | str) -> str:
    """Of the cluster that lives in this home."""
    return str(json.loads((Path(home) / "gcs.json").read_text())["postgres_url"])


def rows(home: Path | str, query: str, *arguments: Any) -> list[Any]:
    """The answer of the cluster's Postgres."""
    with psycopg.connect(postgres_url(home), autocommit=True) as connection:
        return connection.execute(query, arguments).fetchall()


def node_files(home: Path | str) -> list[dict[str, Any]]:
    """What the nodes of this home announce of themselves, lowest id first."""
    from regrow._home import runtime_directory

    files = sorted(runtime_directory(Path(home)).glob("node-*.json"))
    return [json.loads(file.read_text()) for file in files]


class Spy:
    """A driver of its own at any node of this machine, which asks what the node holds."""

    def __init__(self, home: Path | str, socket: str) -> None:
        token = (Path(home) / "token").read_text().strip()
        self._connection = Connection(
            socket, Hello(PROTOCOL_VERSION, token, "driver", os.getpid(), 0, "commit", "spy")
        )
        self._number = 0

    def stats(self) -> dict[str, int]:
        """See ``Questions._stats``."""
        self._number += 1
        sock = self._connection.socket
        sock.settimeout(20)
        sock.sendall(frame(encode(Ask(self._number, "node_stats"))))
        while True:
            for body in self._connection.frames.feed(sock.recv(65536)):
                message = node_decoder.decode(body)
                if isinstance(message, Answer) and message.number == self._number:
                    return msgspec.msgpack.decode(message.body, type=dict[str, int])

    def close(self) -> None:
        self._connection.socket.close()
