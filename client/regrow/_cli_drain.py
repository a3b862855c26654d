"""``regrow drain``: asks a node to give its work away and go, and waits until it has gone.

The question goes through a node on this machine to the control store, which passes it on.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Final

import msgspec

from regrow import _bootstrap, config
from regrow._cli_database import connected
from regrow._home import token
from regrow._link import Connection
from regrow.exceptions import ClusterConnectionError
from regrow.messages import (
    PROTOCOL_VERSION,
    Answer,
    Ask,
    DrainNode,
    Hello,
    encode,
    node_decoder,
)
from regrow.wire import frame

ANSWER_S: Final = 20.0
POLL_S: Final = 0.1
#: After its deadline a node still has to say that it goes.
LEAVES_WITHIN_S: Final = 15.0

_STATE = "SELECT alive, reason FROM regrow.nodes WHERE node_id = %s AND incarnation = %s"
_NEWEST = "SELECT max(incarnation) FROM regrow.nodes WHERE node_id = %s AND alive"


def run(node_id: int, deadline_s: float, reason: str) -> bool:
    """Print what became of the node; whether it has left. Raises ClusterConnectionError."""
    home = Path(os.path.realpath(config.home()))
    with connected(home) as database:
        newest = database.execute(_NEWEST, [node_id]).fetchone()
        if newest is None or newest[0] is None:
            print(f"There is no node {node_id}; `regrow list nodes` shows those there are.")
            return False
        if not _ask(home, DrainNode(node_id, deadline_s, reason)):
            print(f"Node {node_id} is not connected to the control store; it cannot be asked.")
            return False
        print(f"Node {node_id} drains, and leaves within {deadline_s:g} s.", flush=True)
        until = time.monotonic() + deadline_s + LEAVES_WITHIN_S
        while time.monotonic() < until:
            row = database.execute(_STATE, [node_id, newest[0]]).fetchone()
            if row is None or not row[0]:
                print(f"Node {node_id} has left: {row[1] if row is not None else 'unknown'}.")
                return True
            time.sleep(POLL_S)
    print(f"Node {node_id} has not left; its log says why.")
    return False


def _ask(home: Path, order: DrainNode) -> bool:
    """Whether there was such a node to ask."""
    nodes = _bootstrap.look(home).nodes
    if not nodes:
        raise ClusterConnectionError(f"no node of the cluster in {home} runs on this machine")
    hello = Hello(PROTOCOL_VERSION, token(home), "operator", os.getpid(), 0)
    connection = Connection(nodes[0].socket, hello)
    try:
        connection.socket.settimeout(ANSWER_S)
        connection.socket.sendall(frame(encode(Ask(1, "drain", encode(order)))))
        while data := connection.socket.recv(65536):
            for body in connection.frames.feed(data):
                message = node_decoder.decode(body)
                if isinstance(message, Answer):
                    return msgspec.msgpack.decode(message.body, type=bool)
    except TimeoutError:
        pass
    finally:
        connection.socket.close()
    raise ClusterConnectionError(
        f"the control store did not answer within {ANSWER_S:g} s; is it running (`regrow status`)?"
    )
