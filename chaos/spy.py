"""Asks a node what it holds, as a driver of its own that submits nothing."""

from __future__ import annotations

import os
from pathlib import Path

import msgspec

from regrow._link import Connection
from regrow.messages import PROTOCOL_VERSION, Answer, Ask, Hello, encode, node_decoder
from regrow.wire import frame

_ANSWER_S = 20.0


class Spy:
    """Connected to the node behind a socket of this machine. Raises OSError if there is none."""

    def __init__(self, home: Path | str, socket: str) -> None:
        token = (Path(home) / "token").read_text().strip()
        self._connection = Connection(
            socket, Hello(PROTOCOL_VERSION, token, "driver", os.getpid(), 0, "commit", "spy")
        )
        self._number = 0

    def stats(self) -> dict[str, int]:
        """See ``Questions._stats``. Raises OSError if the node does not answer."""
        self._number += 1
        sock = self._connection.socket
        sock.settimeout(_ANSWER_S)
        sock.sendall(frame(encode(Ask(self._number, "node_stats"))))
        while True:
            data = sock.recv(65536)
            if not data:
                raise ConnectionResetError("the node closed the connection")
            for body in self._connection.frames.feed(data):
                message = node_decoder.decode(body)
                if isinstance(message, Answer) and message.number == self._number:
                    return msgspec.msgpack.decode(message.body, type=dict[str, int])

    def close(self) -> None:
        """Leave."""
        self._connection.socket.close()
