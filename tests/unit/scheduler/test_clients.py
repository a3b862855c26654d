"""The node's Unix socket, with a client that is a plain socket of the test's own."""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path

import pytest
import uvloop

from regrow.messages import PROTOCOL_VERSION, Bye, Exit, Hello, Output, encode
from regrow.scheduler.clients import ClientServer
from regrow.scheduler.events import ClientArrived, ClientGone, ClientSaid, Event
from regrow.wire import frame


@pytest.mark.parametrize("role", ["worker", "driver"])
def test_what_a_client_said_last_is_read_though_the_node_writes_to_it_after_its_death(
    tmp_path: Path, role: str
) -> None:
    """A driver's last word is whether its job has ended well."""
    told: list[Event] = []
    last = Output(1, 1, "f", ["said"])

    async def serve() -> None:
        news: asyncio.Queue[Event] = asyncio.Queue()
        server = ClientServer("t", news.put_nowait)
        await server.listen(tmp_path / "socket")
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(tmp_path / "socket"))
            client.sendall(frame(encode(Hello(PROTOCOL_VERSION, "t", role, 1, 1))))
            told.append(await asyncio.wait_for(news.get(), 10))
            server.send(1, Exit())  # never read, so that its death resets the connection
            client.sendall(frame(encode(last)) + frame(encode(Bye())))
        server.send(1, Exit())
        while not isinstance(told[-1], ClientGone):
            told.append(await asyncio.wait_for(news.get(), 10))
        server.close()

    uvloop.run(serve())
    assert isinstance(told[0], ClientArrived)
    assert told[1:] == [ClientSaid(1, last), ClientSaid(1, Bye()), ClientGone(1)]
