"""Bytes: the object store's errands, for clients, tasks and peers.

Owns the object store's core and carries its effects on.  Decides where a large object is copied
from; what is spilled and where things lie is the object store's decision.  A client that reads is
given the place and a pin; it gives the pin back, or dies, which gives back all it has.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Final

from regrow.gcs.operations import PutRow
from regrow.ids import is_put
from regrow.messages import (
    OK,
    Create,
    Created,
    Located,
    Location,
    ObjectsHere,
    PutValue,
    Seal,
    SystemFailure,
    Value,
)
from regrow.objectstore import effects as store_effects
from regrow.objectstore.copies import CopyState
from regrow.objectstore.core import StoreCore
from regrow.objectstore.effects import ObjectKey
from regrow.objectstore.errors import store_full
from regrow.scheduler import events
from regrow.scheduler.objects import Entry, failure_value
from regrow.scheduler.write_behind import WriteBehind

if TYPE_CHECKING:
    from regrow.scheduler.core import Core

#: As the owner of copies that this node fetches, and of pins for storing and serving.
NODE = "node"
#: A result that storage refused is written again so much later.
STORE_RETRY_MS: Final = 500.0


class _Storing:
    """An object that is being written to storage."""

    __slots__ = ("again_ms", "key", "then", "until_ms")

    def __init__(
        self, key: ObjectKey, then: Callable[[events.Stored], None], until_ms: float
    ) -> None:
        self.key = key
        self.then = then
        #: Until then a failure is not the end.
        self.until_ms = until_ms
        #: When it is written again; negative while it is being written.
        self.again_ms = -1.0


class Transport:
    """See the module. ``file_path`` says where an object's fallback file is."""

    def __init__(self, core: Core, store: StoreCore, file_path: Callable[[ObjectKey], str]) -> None:
        self._core = core
        self.store = store
        self._file_path = file_path
        #: Where the copies come from that are being made: a node, or 0 for storage.
        self._fetching: dict[ObjectKey, int] = {}
        self._digests: dict[ObjectKey, bytes] = {}
        self._serving: dict[int, ObjectKey] = {}
        #: Being restored because a client reads them; pinned by this node until then.
        self._reading: dict[ObjectKey, None] = {}
        #: Clients whose ``Create`` is not answered yet.
        self._creating: dict[ObjectKey, int] = {}
        #: What is being written to storage, and who is told.
        self._storing: dict[bytes, _Storing] = {}
        #: The last write to storage failed.
        self._storage_fails = False
        self._reported: dict[bytes, int] = {}
        self._added: list[tuple[bytes, int]] = []
        self._removed: list[bytes] = []
        self.puts = WriteBehind(core)

    # --- writing ----------------------------------------------------------------------------------

    def create(self, client: int, message: Create) -> None:
        """A client wants room for an object."""
        key = (message.object_id, message.attempt)
        made = self.store.lookup(key) if is_put(message.object_id) else None
        if made is not None and made.state not in (CopyState.WAITING, CopyState.CREATING):
            # By an earlier attempt: this one will not write it, whoever else lets go of it.
            self._core.objects.borrow(client, [message.object_id])
        self._creating[key] = client
        self._carry(self.store.allocate(key, message.size, client))

    def seal(self, key: ObjectKey, digest: bytes, client: int) -> None:
        """The client has written the object."""
        copy = self.store.lookup(key)
        if copy is None:
            return  # made by an earlier attempt whose copy was freed meanwhile
        self._digests[key] = digest
        if copy.state is CopyState.CREATING and copy.owner == client:
            self._carry(self.store.seal(key))

    def put_large(self, client: int, message: Seal, now_ms: float) -> None:
        """A large put is written."""
        key = self._key_of(message.object_id)
        self.seal(key, message.digest, client)
        row = PutRow(
            message.object_id, message.parent_id, message.job, message.size, message.digest, None,
            message.refs,
        )  # fmt: skip
        entry = self._put(client, row)
        if self.store.lookup(key) is None:
            return  # put again over a new connection: the bytes went with the node that had them
        entry.key = key
        self._report_added(entry.object_id, message.size)
        self.puts.put(client, message.parent_id, entry, now_ms)
        worker = self._core.pool.by_client.get(client)
        if worker is not None and worker.actor is not None and worker.actor.recoverable:
            self._core.checkpointer.keep(worker.actor, entry)
        if entry.wanted_here:
            self._core.objects.bytes_here(entry)

    def put_small(self, client: int, values: Iterable[PutValue]) -> None:
        for put in values:
            row = PutRow(
                put.object_id, put.parent_id, put.job, len(put.data), put.digest, put.data, put.refs
            )
            self._put(client, row)

    def _put(self, client: int, row: PutRow) -> Entry:
        core = self._core
        core.journal.put(row, client)
        entry = core.objects.entry(row.object_id)
        if entry.owner == 0:
            entry.owner = client
            if entry.others is not None:
                entry.others.discard(client)
        elif entry.owner != client:
            core.objects.borrow(client, [row.object_id])
        value = Value(row.object_id, OK, row.size, row.data, row.digest, row.refs)
        if entry.value is None:
            owner, entry.owner = entry.owner, 0  # who put it need not be told
            entry.pins += 1
            core.objects.set_value(entry, value)
            entry.pins -= 1
            entry.owner = owner
        return entry

    def _key_of(self, object_id: bytes) -> ObjectKey:
        """Puts are keyed by the attempt under which their room was asked for: the newest."""
        for attempt in range(8):
            if self.store.lookup((object_id, attempt)) is not None:
                return (object_id, attempt)
        return (object_id, 0)

    def result_made(self, entry: Entry, key: ObjectKey, size: int) -> None:
        """A task of this node made a large result; its worker has sealed it."""
        if entry.key not in (None, key):
            self._carry(self.store.free(key))  # only another return of the task was lost
            return
        entry.key = key
        self._report_added(entry.object_id, size)

    def discard(self, key: ObjectKey) -> None:
        """A task of this node made a large result that nobody wants."""
        self._digests.pop(key, None)
        self._carry(self.store.free(key))

    # --- reading ----------------------------------------------------------------------------------

    def answer_readers(self, entry: Entry) -> None:
        """Pins a copy that is here for each client that waits, bringing it back from spill."""
        key = entry.key
        if not entry.readers or key is None:
            return
        copy = self.store.lookup(key)
        if copy is not None and copy.state is CopyState.RESTORING:
            return  # ``restored`` comes back here
        if copy is None or copy.doomed:
            self._core.objects.copy_lost(entry)
        elif copy.state is CopyState.SPILLED:
            self.bring_back(key)
        else:
            readers, entry.readers = entry.readers, None
            for client in readers:
                location = self.pin(key, client)
                assert location is not None, "readable for one client and not for the next"
                self._core.send_client(client, Located([location]))

    def pin(self, key: ObjectKey, client: int | str | bytes) -> Location | None:
        """Pins a readable copy; None if it has to be restored first."""
        place = self.store.pin(key, client)
        if place is None:
            return None
        return self._location(key, place.offset, place.size)

    def unpin(self, client: int | str | bytes, pins: Iterable[tuple[bytes, int]]) -> None:
        for object_id, attempt in pins:
            self._carry(self.store.unpin((object_id, attempt), client))

    def give_back(self, task_id: bytes) -> None:
        """All pins that a task had are given back."""
        self._carry(self.store.abort_client(task_id))

    def restore_for_task(self, entry: Entry, task_id: bytes) -> bool:
        """Pins a spilled copy for a task and brings it back. False: it is no longer here."""
        return entry.key is not None and self._restore(entry.key, task_id)

    def client_gone(self, client: int) -> None:
        """The process is dead: what it wrote and read is free again."""
        self._carry(self.store.abort_client(client))

    def _restore(self, key: ObjectKey, client: int | str | bytes) -> bool:
        copy = self.store.lookup(key)
        if copy is None or copy.doomed:
            return False
        if copy.state in (CopyState.SPILLED, CopyState.RESTORING):
            self._carry(self.store.restore(key, client))
            return True
        return False

    # --- copies from elsewhere --------------------------------------------------------------------

    def fetch(self, entry: Entry) -> None:
        """Gets a copy from one of the entry's sources, or from storage."""
        assert entry.value is not None
        key = (entry.object_id, 0)
        copy = self.store.lookup(key)
        if copy is not None:
            key = (entry.object_id, self._core.next_copy_number())
        entry.awaiting_room = key
        self._fetching[key] = entry.sources[0] if entry.sources else 0
        self._digests[key] = entry.value.digest
        self._carry(self.store.allocate(key, entry.value.size, NODE))

    def _room_for_copy(self, key: ObjectKey, offset: int, size: int) -> None:
        entry = self._core.objects.entries.get(key[0])
        source = self._fetching[key]
        if entry is None or entry.awaiting_room != key:
            del self._fetching[key]
            self._carry(self.store.abort(key))
            return
        digest = self._digests[key]
        if source:
            self._core.emit(events.FetchBytes(key, source, offset, size, digest))
        else:
            self._core.emit(events.LoadBytes(key, entry.stored, offset, size, digest))

    def fetched(self, event: events.Fetched) -> None:
        """A copy is here, or could not be had."""
        key = event.key
        source = self._fetching.pop(key, 0)
        entry = self._core.objects.entries.get(key[0])
        if entry is None or entry.awaiting_room != key:
            self._carry(self.store.abort(key))
            return
        entry.awaiting_room = None
        if entry.key is not None:
            self._carry(self.store.abort(key))  # it was made here meanwhile
        elif event.ok:
            self._carry(self.store.seal(key, droppable=True))
            assert entry.value is not None
            entry.key = key
            if event.digest:
                self._digests[key] = event.digest
                self._core.objects.learn_digest(entry, event.digest)
            self._report_added(entry.object_id, entry.value.size)
            self._core.objects.bytes_here(entry)
        else:
            self._carry(self.store.abort(key))
            self._core.objects.source_failed(entry, source)

    # --- copies for others ------------------------------------------------------------------------

    def serve(self, event: events.FetchAsked) -> None:
        """A peer wants the bytes. They leave when the log so far is committed."""
        core = self._core
        entry = core.objects.entries.get(event.object_id)
        key = entry.key if entry is not None else None
        location = self.pin(key, NODE) if key is not None else None
        if key is None or location is None:
            restorable = key is not None and self._restore(key, NODE)
            if restorable and key is not None:
                self._serving[event.number] = key
                core.await_restore(key, event)
                return
            core.emit(events.ServeBytes(event.number, (event.object_id, 0), -2, -1, b""))
            return
        self._serving[event.number] = key
        digest = self._digests.get(key, b"")
        effect = events.ServeBytes(event.number, key, self._offset(location), location.size, digest)
        if not core.journal.hold(effect):
            core.emit(effect)

    def served(self, number: int) -> None:
        key = self._serving.pop(number, None)
        if key is not None:
            self.unpin(NODE, [key])

    def store_bytes(
        self, entry: Entry, then: Callable[[events.Stored], None], patience_s: float = 0.0
    ) -> None:
        """Writes an object that is here to storage, trying again for so long, and tells ``then``.

        It stays pinned meanwhile.
        """
        key = entry.key
        assert key is not None
        object_id = entry.object_id
        location = None if object_id in self._storing else self.pin(key, NODE)
        if location is None:
            then(events.Stored(object_id, "", "storage", "its copy cannot be read now"))
            return
        until_ms = self._core.now_ms + patience_s * 1000
        self._storing[object_id] = _Storing(key, then, until_ms)
        self._core.emit(events.StoreBytes(key, self._offset(location), location.size))

    def stored(self, event: events.Stored) -> None:
        core = self._core
        storing = self._storing[event.object_id]
        entry = core.objects.entries.get(event.object_id)
        self._note_storage(event)
        if not event.path and entry is not None and core.now_ms < storing.until_ms:
            storing.again_ms = core.now_ms + STORE_RETRY_MS
            return
        del self._storing[event.object_id]
        self.unpin(NODE, [storing.key])
        if entry is not None and event.path:
            entry.stored = event.path
            self._carry(self.store.set_droppable(storing.key, True))
        if event.path:
            core.journal.stored(event.object_id, event.path)
        storing.then(event)

    def _note_storage(self, event: events.Stored) -> None:
        """The first failure and the end of failing are events of the log."""
        if self._storage_fails == (not event.path):
            return
        self._storage_fails = not event.path
        if self._storage_fails:
            self._core.journal.event("storage_failed", event.object_id, event.detail)
        else:
            self._core.journal.event("storage_works", event.object_id, "storage works again")

    def store_again(self, now_ms: float) -> None:
        """What storage refused a while ago is written once more."""
        for storing in self._storing.values():
            if 0 <= storing.again_ms <= now_ms:
                storing.again_ms = -1.0
                copy = self.store.lookup(storing.key)
                assert copy is not None, "pinned, and yet gone"
                offset = -1 if copy.offset is None else copy.offset
                self._core.emit(events.StoreBytes(storing.key, offset, copy.size))

    def is_storing(self, object_id: bytes) -> bool:
        """Whether it is being written to storage."""
        return object_id in self._storing

    def tell_too(
        self, object_id: bytes, then: Callable[[events.Stored], None], patience_s: float
    ) -> None:
        """It is being written to storage: ``then`` is told as well, and it is tried for longer."""
        storing = self._storing[object_id]
        first = storing.then

        def both(event: events.Stored) -> None:
            first(event)
            then(event)

        storing.then = both
        storing.until_ms = max(storing.until_ms, self._core.now_ms + patience_s * 1000)

    def bring_back(self, key: ObjectKey) -> None:
        """Restores a spilled copy, and pins it until those who wait for that have been told."""
        self._reading[key] = None
        self._restore(key, NODE)

    # --- letting go -------------------------------------------------------------------------------

    def free(self, entry: Entry) -> None:
        """Nobody holds the object: its copy here goes."""
        self.puts.forget(entry.object_id)
        if entry.key is not None:
            key, entry.key = entry.key, None
            self._digests.pop(key, None)
            self._carry(self.store.free(key))
            self.report_removed(entry.object_id)
        # A copy that is still being fetched is aborted when it arrives (``fetched``).

    # --- the directory ----------------------------------------------------------------------------

    def _report_added(self, object_id: bytes, size: int) -> None:
        self._reported[object_id] = size
        self._added.append((object_id, size))

    def report_removed(self, object_id: bytes) -> None:
        if self._reported.pop(object_id, None) is not None:
            self._removed.append(object_id)

    def report(self, everything: bool = False) -> ObjectsHere | None:
        """What the control store is to be told; ``everything`` after it came back."""
        if everything:
            self._added, self._removed = [], []
            return ObjectsHere(list(self._reported.items()))
        if not self._added and not self._removed:
            return None
        added = [(oid, size) for oid, size in self._added if oid in self._reported]
        removed = [oid for oid in self._removed if oid not in self._reported]
        self._added, self._removed = [], []
        return ObjectsHere(added, removed) if added or removed else None

    # --- the object store's effects ---------------------------------------------------------------

    def spilled(self, event: events.Spilled) -> None:
        if self.store.lookup(event.key) is not None:
            done = self.store.spilled if event.ok else self.store.spill_failed
            self._carry(done(event.key))

    def restored(self, event: events.Restored) -> None:
        key = event.key
        if self.store.lookup(key) is None:
            return
        if not event.ok:
            self._carry(self.store.restore_failed(key))
            self._lost(key)
            return
        self._carry(self.store.restored(key))
        entry = self._core.objects.entries.get(key[0])
        if entry is not None and entry.key == key:
            self.answer_readers(entry)
            self._core.tasks.restored(entry)
            self.puts.go_on(entry, key)
        self._core.restore_ended(key)
        if key in self._reading:
            del self._reading[key]
            self.unpin(NODE, [key])
        if entry is not None:
            self._core.objects.free_unheld(entry)  # its reader may have been the last to want it

    def _lost(self, key: ObjectKey) -> None:
        """The object store has this copy no longer."""
        self._reading.pop(key, None)
        entry = self._core.objects.entries.get(key[0])
        if entry is not None and entry.key == key:
            self._core.objects.copy_lost(entry)
            self._core.tasks.restored(entry)
            self.puts.lost(key[0])
        self._core.restore_ended(key)

    def _carry(self, effects: list[store_effects.Effect]) -> None:
        emit = self._core.emit
        for effect in effects:
            match effect:
                case store_effects.Grant(key, offset, size):
                    if key in self._fetching:
                        self._room_for_copy(key, offset, size)
                    else:
                        self._created(key, Location(key[0], key[1], offset, size))
                case store_effects.GrantFile(key, size):
                    emit(events.MakeFile(key, size))
                    if key in self._fetching:
                        self._room_for_copy(key, -1, size)
                    else:
                        path = self._file_path(key)
                        self._created(key, Location(key[0], key[1], 0, size, path))
                case store_effects.Exists(key, _):
                    self._created(key, None)
                case store_effects.Refuse(key, size, capacity, spill_capacity, spill_used):
                    self._refused(key, str(store_full(size, capacity, spill_capacity, spill_used)))
                case store_effects.Spill(key):
                    emit(events.SpillBytes(effect))
                case store_effects.Drop(key):
                    self._lost(key)
                case store_effects.Restore(key) | store_effects.RestoreFile(key):
                    emit(events.RestoreBytes(effect, self._digests.get(key, b"")))
                case store_effects.DeleteSpilled() | store_effects.DeleteFile():
                    emit(events.DeleteBytes(effect))

    def _created(self, key: ObjectKey, location: Location | None) -> None:
        """Answers a ``Create``; without a location the object is here already (a replay's)."""
        client = self._creating.pop(key, None)
        if client is not None:
            self._core.send_client(client, Created(key[0], location))

    def _refused(self, key: ObjectKey, message: str) -> None:
        core = self._core
        client = self._creating.pop(key, None)
        if client is not None:
            failure = SystemFailure("object_store_full", message)
            core.send_client(client, Created(key[0], None, failure))
            return
        self._fetching.pop(key, None)
        self._reading.pop(key, None)
        entry = core.objects.entries.get(key[0])
        if entry is not None:
            entry.awaiting_room = None
            core.objects.set_value(entry, failure_value(key[0], "object_store_full", message))

    def _location(self, key: ObjectKey, offset: int | None, size: int) -> Location:
        if offset is None:
            return Location(key[0], key[1], 0, size, self._file_path(key))
        return Location(key[0], key[1], offset, size)

    @staticmethod
    def _offset(location: Location) -> int:
        return -1 if location.path else location.offset
