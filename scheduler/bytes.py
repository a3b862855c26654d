"""Moving bytes for the core: between nodes, and between memory and disks.

Shell only: carries out the core's effects about large objects, in threads where they block, and
reports each with one event.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import socket
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from regrow import failpoints
from regrow.exceptions import OutOfDiskError, StorageError
from regrow.messages import Fetch, Fetched, PeerHello, encode, peer_decoder
from regrow.objectstore.arena import Arena
from regrow.objectstore.effects import DeleteFile, ObjectKey, Restore
from regrow.objectstore.errors import ObjectCorruptedError
from regrow.objectstore.fallback import FallbackFiles, map_file
from regrow.objectstore.spill import SpillStorage, file_name, open_storage
from regrow.objectstore.transfer import recv_object, send_object
from regrow.scheduler import events
from regrow.scheduler.events import Event
from regrow.scheduler.peers import Credentials, PeerNetwork, dial, read_frame
from regrow.wire import FrameReader, frame

logger = logging.getLogger(__name__)


#: Storage that could not be read is read again so much later.
_READ_AGAIN_S = 0.5


class ByteMover:
    """See the module. ``retry_s``: for so long storage that cannot be read is read again."""

    def __init__(
        self,
        arena: Arena,
        files: FallbackFiles,
        spill_uri: str,
        storage_uri: str,
        credentials: Credentials,
        on_event: Callable[[Event], None],
        retry_s: float = 0.0,
    ) -> None:
        self._arena = arena
        self._files = files
        self._spill_uri = spill_uri
        self._storage_uri = storage_uri
        self._spill: SpillStorage | None = None
        self._storage: SpillStorage | None = None
        self._credentials = credentials
        self._on_event = on_event
        self._retry_s = retry_s
        self._pool = ThreadPoolExecutor(4, thread_name_prefix="disk")
        self._tasks: set[asyncio.Task[None]] = set()
        self._serving: dict[int, asyncio.Future[events.ServeBytes]] = {}
        self._number = 0
        self.network: PeerNetwork | None = None

    # --- effects ----------------------------------------------------------------------------------

    def make_file(self, key: ObjectKey, size: int) -> None:
        """Creates a fallback file. Raises OSError if the disk is full."""
        self._files.create(key, size)

    def fetch(self, effect: events.FetchBytes) -> None:
        self._spawn(self._fetch(effect))

    def load(self, effect: events.LoadBytes) -> None:
        self._spawn(self._load(effect))

    def store(self, effect: events.StoreBytes) -> None:
        self._spawn(self._store(effect))

    def spill(self, effect: events.SpillBytes) -> None:
        self._spawn(self._spill_object(effect))

    def restore(self, effect: events.RestoreBytes) -> None:
        self._spawn(self._restore(effect))

    def delete(self, effect: events.DeleteBytes) -> None:
        if isinstance(effect.what, DeleteFile):
            self._files.delete(effect.what.key)
        else:
            key = effect.what.key
            self._pool.submit(lambda: self._spill_storage().delete(key))

    def delete_stored(self, effect: events.DeleteStored) -> None:
        """Deletes what nobody will read again. What cannot be deleted stays."""
        key = (effect.object_id, 0)
        self._spawn(self._in_thread_quietly(lambda: self._durable().delete(key)))

    async def _in_thread_quietly(self, work: Callable[[], None]) -> None:
        await self._in_thread(work, "deleting from storage")

    def serve(self, effect: events.ServeBytes) -> None:
        """The core's answer to ``FetchAsked``."""
        waiting = self._serving.pop(effect.number, None)
        if waiting is not None and not waiting.done():
            waiting.set_result(effect)

    # --- bulk connections -------------------------------------------------------------------------

    async def serve_bulk(self, sock: socket.socket, hello: PeerHello, rest: bytes) -> None:
        """A peer fetches objects over ``sock``, one after the other."""
        loop = asyncio.get_running_loop()
        reader = FrameReader()
        bodies = reader.feed(rest) if rest else []
        while True:
            body = bodies.pop(0) if bodies else await read_frame(sock, reader)
            asked = peer_decoder.decode(body)
            if not isinstance(asked, Fetch):
                raise ConnectionAbortedError("only Fetch travels on a bulk connection")
            self._number += 1
            number = self._number
            waiting: asyncio.Future[events.ServeBytes] = loop.create_future()
            self._serving[number] = waiting
            self._on_event(events.FetchAsked(number, hello.node_id, asked.object_id))
            effect = await waiting
            try:
                await self._send(sock, asked.object_id, effect)
            finally:
                if effect.offset != -2:
                    self._on_event(events.BytesServed(number))

    async def _send(self, sock: socket.socket, oid: bytes, effect: events.ServeBytes) -> None:
        loop = asyncio.get_running_loop()
        answer = Fetched(oid, effect.size, effect.digest)
        await loop.sock_sendall(sock, frame(encode(answer)))
        if effect.offset == -2:
            return
        if effect.offset == -1:
            with open(self._files.path(effect.key), "rb") as file:
                await send_object(loop, sock, file.fileno(), 0, effect.size)
        else:
            await send_object(loop, sock, self._arena.fd, effect.offset, effect.size)

    async def _fetch(self, effect: events.FetchBytes) -> None:
        ok, detail, digest = False, "", b""
        try:
            assert self.network is not None
            view = self.network.view(effect.node_id)
            if view is None:
                raise ConnectionRefusedError("the node is not alive")
            loop = asyncio.get_running_loop()
            sock = await dial(view, self._credentials, "bulk")
            try:
                await loop.sock_sendall(sock, frame(encode(Fetch(effect.key[0]))))
                answer = await self._read_answer(sock)
                if answer.size != effect.size:
                    raise ConnectionAbortedError("the object is not there")
                with self._place(effect.key, effect.offset, effect.size) as view_:
                    digest = await recv_object(loop, sock, view_)
            finally:
                sock.close()
            expected = effect.digest or answer.digest
            ok = digest == expected
            detail = "" if ok else "the bytes are not those that were committed"
        except (OSError, TimeoutError) as error:
            detail = str(error) or type(error).__name__
        if not ok:
            logger.warning(
                "fetching %s from node %d: %s", effect.key[0].hex(), effect.node_id, detail
            )
        self._on_event(events.Fetched(effect.key, ok, detail, digest if ok else b""))

    async def _read_answer(self, sock: socket.socket) -> Fetched:
        """The frame before the bytes, and not one byte more."""
        loop = asyncio.get_running_loop()
        head = await _exactly(loop, sock, 4)
        body = await _exactly(loop, sock, int.from_bytes(head, "little"))
        answer = peer_decoder.decode(body)
        if not isinstance(answer, Fetched):
            raise ConnectionAbortedError("an answer was expected")
        return answer

    # --- disks ------------------------------------------------------------------------------------

    async def _load(self, effect: events.LoadBytes) -> None:
        """A copy that is gone or damaged is lost; one that cannot be reached may only be late."""

        def load() -> None:
            with self._place(effect.key, effect.offset, effect.size) as dest:
                self._durable().read_into((effect.key[0], 0), dest, effect.digest)

        loop = asyncio.get_running_loop()
        until = loop.time() + self._retry_s
        error = await self._in_thread(load, "load")
        while error is not None and not isinstance(error, ObjectCorruptedError):
            if loop.time() >= until:
                break
            await asyncio.sleep(_READ_AGAIN_S)
            error = await self._in_thread(load, "load")
        self._on_event(events.Fetched(effect.key, error is None))

    async def _store(self, effect: events.StoreBytes) -> None:
        name = file_name((effect.key[0], 0))

        def store() -> None:
            with self._place(effect.key, effect.offset, effect.size) as source:
                self._durable().write((effect.key[0], 0), source)

        error = await self._in_thread(store, "store")
        if error is None:
            path = f"{self._storage_uri.rstrip('/')}/{name}"
            if failpoints.ON:
                failpoints.crash_point("node.checkpoint_stored")
            self._on_event(events.Stored(effect.key[0], path))
        else:
            detail = str(error) or type(error).__name__
            self._on_event(events.Stored(effect.key[0], "", _failure_code(error), detail))

    async def _spill_object(self, effect: events.SpillBytes) -> None:
        spill = effect.spill

        def write() -> None:
            with self._place(spill.key, spill.offset, spill.size) as source:
                self._spill_storage().write(spill.key, source, sync=False)

        error = await self._in_thread(write, "spill")
        self._on_event(events.Spilled(spill.key, error is None))

    async def _restore(self, effect: events.RestoreBytes) -> None:
        restore = effect.restore
        offset = restore.offset if isinstance(restore, Restore) else -1

        def read() -> None:
            if offset < 0:
                self._files.create(restore.key, restore.size)
            with self._place(restore.key, offset, restore.size) as dest:
                self._spill_storage().read_into(restore.key, dest, effect.digest)

        error = await self._in_thread(read, "restore")
        self._on_event(events.Restored(restore.key, error is None))

    async def _in_thread(self, work: Callable[[], None], what: str) -> Exception | None:
        """Does it there; the error, if any. Every effect is answered: somebody waits for it."""
        loop = asyncio.get_running_loop()
        try:
            await loop.run_in_executor(self._pool, work)
        except (OSError, ObjectCorruptedError) as error:
            logger.warning("%s failed: %s", what, error)
            return error
        except Exception as error:  # what a file system of pyarrow raises is its own affair
            logger.exception("%s failed", what)
            return error
        return None

    def _place(self, key: ObjectKey, offset: int, size: int) -> memoryview:
        if offset >= 0:
            return self._arena.view(offset, size)
        mapped = map_file(self._files.path(key), writable=True)
        view = mapped.view(0, size)
        mapped.close()
        return view

    def _spill_storage(self) -> SpillStorage:
        if self._spill is None:
            self._spill = open_storage(self._spill_uri)
        return self._spill

    def _durable(self) -> SpillStorage:
        if self._storage is None:
            self._storage = open_storage(self._storage_uri, shared=True)
        return self._storage

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            logger.error("moving bytes failed", exc_info=task.exception())

    def close(self) -> None:
        """Ends what is under way and removes this node's files."""
        for task in list(self._tasks):
            task.cancel()
        self._pool.shutdown(wait=False, cancel_futures=True)
        if self._spill is not None:
            self._spill.remove()
        elif Path(self._spill_uri).is_dir():
            os.rmdir(self._spill_uri)
        self._files.remove()


def _failure_code(error: Exception) -> str:
    full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
    return OutOfDiskError.code if full else StorageError.code


async def _exactly(loop: asyncio.AbstractEventLoop, sock: socket.socket, size: int) -> bytes:
    data = bytearray()
    while len(data) < size:
        piece = await loop.sock_recv(sock, size - len(data))
        if not piece:
            raise ConnectionResetError("the peer closed the connection")
        data += piece
    return bytes(data)
