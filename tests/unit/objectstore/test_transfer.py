"""Bytes between two arenas over a socket."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

import pytest
import uvloop

from regrow.objectstore.arena import Arena
from regrow.objectstore.layout import digest
from regrow.objectstore.transfer import recv_object, send_object

Run = Callable[[Coroutine[Any, Any, Any]], Any]
Sockets = tuple[socket.socket, socket.socket]


@pytest.fixture(params=["asyncio", "uvloop"])
def run(request: pytest.FixtureRequest) -> Run:
    return asyncio.run if request.param == "asyncio" else uvloop.run


@pytest.fixture(params=["unix", "tcp"])
def sockets(request: pytest.FixtureRequest) -> Iterator[Sockets]:
    if request.param == "unix":
        left, right = socket.socketpair()
    else:
        with socket.create_server(("127.0.0.1", 0)) as server:
            left = socket.create_connection(server.getsockname())
            right, _ = server.accept()
    with left, right:
        left.setblocking(False)
        right.setblocking(False)
        yield left, right


@pytest.mark.parametrize("size", [0, 1, 4097, 20 << 20])
def test_the_bytes_arrive_with_their_digest(run: Run, sockets: Sockets, size: int) -> None:
    """20 MiB do not fit into any socket buffer, so both sides have to wait for each other."""
    sender, receiver = sockets
    with Arena.create(32 << 20) as source, Arena.create(32 << 20) as target:
        content = os.urandom(4096) * (size // 4096 + 1)
        source.view(4096, size)[:] = content[:size]
        target.view(0, 32 << 20)[:] = b"\xff" * (32 << 20)

        async def move() -> bytes:
            loop = asyncio.get_running_loop()
            _, received = await asyncio.gather(
                send_object(loop, sender, source.fd, 4096, size),
                recv_object(loop, receiver, target.view(64, size)),
            )
            return received

        assert run(move()) == digest(content[:size])
        assert target.view(64, size) == content[:size]
        assert bytes(target.view(64 + size, 8)) == b"\xff" * 8, "wrote past its end"
        assert bytes(target.view(0, 64)) == b"\xff" * 64


def test_several_objects_pass_one_after_another(run: Run, sockets: Sockets) -> None:
    sender, receiver = sockets
    with Arena.create(1 << 20) as source:
        source.view(0, 1000)[:] = os.urandom(1000)

        async def move() -> list[bytes]:
            loop = asyncio.get_running_loop()
            for offset in (0, 200, 500):
                await send_object(loop, sender, source.fd, offset, 100)
            dest = memoryview(bytearray(100))
            return [await recv_object(loop, receiver, dest) for _ in range(3)]

        assert run(move()) == [digest(source.view(at, 100)) for at in (0, 200, 500)]


def test_a_sender_that_dies_is_a_connection_error(run: Run, sockets: Sockets) -> None:
    sender, receiver = sockets

    async def receive() -> None:
        sender.send(b"only a part")
        sender.close()
        await recv_object(asyncio.get_running_loop(), receiver, memoryview(bytearray(100)))

    with pytest.raises(ConnectionError, match="after 11 of 100"):
        run(receive())


def test_a_receiver_that_dies_is_a_connection_error(run: Run, sockets: Sockets) -> None:
    sender, receiver = sockets
    with Arena.create(64 << 20) as source:

        async def send() -> None:
            task = asyncio.create_task(
                send_object(asyncio.get_running_loop(), sender, source.fd, 0, 64 << 20)
            )
            await asyncio.get_running_loop().sock_recv(receiver, 1000)
            receiver.close()
            await task

        with pytest.raises(ConnectionError):
            run(send())


def test_a_peer_that_stalls_is_a_timeout(run: Run, sockets: Sockets) -> None:
    sender, receiver = sockets
    with Arena.create(64 << 20) as source:

        async def send() -> None:
            loop = asyncio.get_running_loop()
            await send_object(loop, sender, source.fd, 0, 64 << 20, idle_timeout_s=0.05)

        async def receive() -> None:
            loop = asyncio.get_running_loop()
            await recv_object(loop, sender, memoryview(bytearray(10)), idle_timeout_s=0.05)

        with pytest.raises(TimeoutError):
            run(send())
        with pytest.raises(TimeoutError):
            run(receive())
    receiver.close()


def test_a_file_shorter_than_the_object_is_told(run: Run, sockets: Sockets) -> None:
    sender, _ = sockets
    with Arena.create(4096) as source:

        async def send() -> None:
            await send_object(asyncio.get_running_loop(), sender, source.fd, 4000, 200)

        with pytest.raises(ConnectionError, match="104 bytes before"):
            run(send())
