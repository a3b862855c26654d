"""What a node knows of each object that something on it needs.

An *entry* lives as long as somebody here, or a peer that was told of it, holds the object; nobody
else's death can take it away, and dropping it too early costs a replay, never data.  An entry has a
value (small bytes, an error, or the news that a large object exists), perhaps a copy in this node's
object store, and *sources*: peers that have one.  What is expected from a peer that dies is located
anew through the control store.

How bytes get here is ``transport``'s business, how tasks make objects ``tasks``'.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from msgspec.structs import replace

from regrow.messages import (
    ACTOR_CREATION,
    OK,
    PENDING,
    SYSTEM_ERROR,
    Located,
    PeerDrop,
    SystemFailure,
    Value,
    Watch,
    Whereabouts,
    encode,
    failure_decoder,
)
from regrow.objectstore.effects import ObjectKey

if TYPE_CHECKING:
    from regrow.scheduler.core import Core
    from regrow.scheduler.tasks import Task


class Entry:
    """An object, as seen from this node."""

    __slots__ = (
        "awaiting_room", "byte_waiters", "containers", "dependents", "key", "locating", "maker",
        "object_id", "others", "owner", "peers", "pins", "put_at_ms", "readers",
        "sources", "stored",
        "task", "teller", "value", "waiters",
    )  # fmt: skip

    def __init__(self, object_id: bytes) -> None:
        self.object_id = object_id
        #: None while nobody has made it.
        self.value: Value | None = None
        #: The copy in this node's object store, sealed.
        self.key: ObjectKey | None = None
        #: A copy that is being fetched, loaded or allocated.
        self.awaiting_room: ObjectKey | None = None
        #: The task on this node that makes it.
        self.task: Task | None = None
        #: The peer that makes it, or is said to know of it, and was asked to tell.
        self.maker = 0
        #: The peer that told of it and keeps it for us.
        self.teller = 0
        #: Peers that have a copy.
        self.sources: list[int] = []
        #: Its path in storage.
        self.stored = ""
        #: The control store was asked and has not answered.
        self.locating = False
        #: The client that made it and holds it; others that hold it.
        self.owner = 0
        self.others: set[int] | None = None
        #: Unfinished tasks of which it is an argument.
        self.pins = 0
        #: Objects here whose values contain it.
        self.containers = 0
        #: Peers that hold it and are to be told of it.
        self.peers: dict[int, None] | None = None
        #: Tasks that wait for its value, and for its bytes.
        self.dependents: list[Task] | None = None
        self.byte_waiters: list[Task] | None = None
        #: Clients that wait for its value, and for its bytes.
        self.waiters: list[int] | None = None
        self.readers: list[int] | None = None
        #: When a driver put it, if it is to be written behind.
        self.put_at_ms = -1.0

    @property
    def wanted_here(self) -> bool:
        """Whether somebody waits for the bytes."""
        return bool(self.byte_waiters or self.readers)

    @property
    def held(self) -> bool:
        return bool(
            self.owner
            or self.pins
            or self.task is not None
            or self.containers
            or self.others
            or self.peers
            or self.dependents
            or self.byte_waiters
            or self.waiters
            or self.readers
        )


def failure_value(object_id: bytes, code: str, message: str) -> Value:
    """The value of an object that will never be."""
    data = encode(SystemFailure(code, message))
    return Value(object_id, SYSTEM_ERROR, len(data), data)


class ObjectTable:
    """See the module."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self.entries: dict[bytes, Entry] = {}
        #: (until when, object): made again a moment ago, for whoever is about to ask.
        self._kept: deque[tuple[float, bytes]] = deque()

    def entry(self, object_id: bytes) -> Entry:
        """The entry, made if need be."""
        entry = self.entries.get(object_id)
        if entry is None:
            entry = self.entries[object_id] = Entry(object_id)
        return entry

    # --- what clients say -------------------------------------------------------------------------

    def subscribe(self, client: int, object_ids: Iterable[bytes]) -> None:
        """The client is told of each value, at once or when it is there."""
        for object_id in object_ids:
            entry = self.entry(object_id)
            if entry.value is not None:
                self._core.tell(client, entry.value)
                self.free_unheld(entry)
            else:
                if entry.waiters is None:
                    entry.waiters = []
                if client not in entry.waiters:
                    entry.waiters.append(client)
                self.need_value(entry)

    def borrow(self, client: int, object_ids: Iterable[bytes]) -> None:
        for object_id in object_ids:
            entry = self.entry(object_id)
            if entry.owner == client:
                continue
            if entry.others is None:
                entry.others = set()
            entry.others.add(client)
            self._hold_at_maker(entry)

    def drop(self, client: int, object_ids: Iterable[bytes]) -> None:
        entries = self.entries
        for object_id in object_ids:
            entry = entries.get(object_id)
            if entry is None:
                continue
            if entry.owner == client:
                entry.owner = 0
            elif entry.others is not None:
                entry.others.discard(client)
            if not entry.held:
                self._free(entry)

    def client_gone(self, client: int) -> None:
        """The client holds and awaits nothing any more."""
        for entry in list(self.entries.values()):
            if entry.owner == client:
                entry.owner = 0
            if entry.others is not None:
                entry.others.discard(client)
            if entry.waiters:
                entry.waiters = [c for c in entry.waiters if c != client]
            if entry.readers:
                entry.readers = [c for c in entry.readers if c != client]
            self.free_unheld(entry)

    def stop_waiting(self, client: int) -> None:
        """The client is away: it is told nothing, but holds what it held."""
        for entry in list(self.entries.values()):
            if entry.waiters and client in entry.waiters:
                entry.waiters.remove(client)
            if entry.readers and client in entry.readers:
                entry.readers.remove(client)
            self.free_unheld(entry)

    def read(self, client: int, object_ids: Iterable[bytes]) -> None:
        """The client wants the bytes here, and pinned."""
        for object_id in object_ids:
            entry = self.entry(object_id)
            if entry.readers is None:
                entry.readers = []
            if client not in entry.readers:
                entry.readers.append(client)
            self.need_bytes(entry)

    # --- values -----------------------------------------------------------------------------------

    def set_value(self, entry: Entry, value: Value, ungated: bool = False) -> None:
        """The object is made (or never will be): tells all who wait. Hot path: once per result."""
        first = entry.value is None
        self._take(entry, value)
        entry.task = None
        entry.maker = 0
        entry.locating = False
        core = self._core
        if entry.owner and first:
            core.tell(entry.owner, value, ungated)
        if entry.waiters:
            waiters, entry.waiters = entry.waiters, None
            for client in waiters:
                if client != entry.owner or not first:
                    core.tell(client, value, ungated)
        if entry.peers:
            for node_id in entry.peers:
                core.tell_peer(node_id, value)
            if value.data is not None and not value.refs and not self._is_actor(entry):
                entry.peers = None  # they have all there is to have
        if entry.dependents:
            dependents, entry.dependents = entry.dependents, None
            for task in dependents:
                core.tasks.value_arrived(task)
        if core.actors.call_order.awaited:
            core.actors.call_order.ended(entry.object_id[:16])
        if entry.wanted_here:
            self.need_bytes(entry)
        self.free_unheld(entry)  # a dependent that ended at once may have been the last holder

    def forget_errors(self, object_ids: Iterable[bytes]) -> None:
        """The log is asked what became of them, which pins each once: its answer counts, since what
        failed or was cancelled runs again when a job is resumed. What tasks here have as arguments
        is of the present driver."""
        for object_id in object_ids:
            entry = self.entries[object_id]
            if entry.value is not None and entry.value.status != OK and entry.pins == 1:
                entry.value = None

    def _take(self, entry: Entry, value: Value) -> None:
        """The entry has this value now, and holds what it refers to."""
        before, entry.value = entry.value, value
        if value.refs:
            for ref in value.refs:
                self.entry(ref).containers += 1
        if before is not None and before.refs:
            self._let_go_of(before.refs)

    def _let_go_of(self, refs: list[bytes]) -> None:
        """A value that contained these is here no more."""
        for ref in refs:
            inner = self.entries.get(ref)
            if inner is not None:
                inner.containers -= 1
                self.free_unheld(inner)

    def need_value(self, entry: Entry) -> None:
        """Somebody waits for the value: sees to it that it will come."""
        if entry.value is not None or entry.task is not None or entry.maker or entry.locating:
            return
        if self._core.tasks.is_looking_up(entry.object_id[:16]):
            return
        self._locate(entry)

    def need_bytes(self, entry: Entry) -> None:
        """Somebody waits for the bytes: answers if they are here, else gets them here."""
        value = entry.value
        if value is None:
            self.need_value(entry)
            return
        if value.data is not None or value.status != OK:
            self._bytes_settled(entry)
            return
        if entry.key is not None:
            self.bytes_here(entry)
        elif entry.awaiting_room is not None or entry.task is not None:
            return
        elif entry.sources or entry.stored:
            self._core.transport.fetch(entry)
        elif not entry.maker and not entry.locating:
            self._locate(entry)

    def made_again(self, entry: Entry) -> None:
        """It was only the bytes that were lost: those who wait for them go on."""
        assert entry.value is not None
        entry.task = None
        for node_id in entry.peers or ():
            self._core.tell_peer(node_id, entry.value)
        self.bytes_here(entry)

    def bytes_here(self, entry: Entry) -> None:
        """A sealed copy is in this node's store: those who wait for it go on."""
        self._core.transport.answer_readers(entry)
        if entry.byte_waiters:
            waiters, entry.byte_waiters = entry.byte_waiters, None
            for task in waiters:
                self._core.tasks.bytes_arrived(task, entry.key)
        self.free_unheld(entry)

    def _bytes_settled(self, entry: Entry) -> None:
        """There are no bytes to wait for: the value is small, or an error."""
        value = entry.value
        assert value is not None
        if entry.readers:
            readers, entry.readers = entry.readers, None
            for client in readers:
                self._core.send_client(client, Located([], [value]))
        if entry.byte_waiters:
            waiters, entry.byte_waiters = entry.byte_waiters, None
            for task in waiters:
                self._core.tasks.bytes_arrived(task)
        self.free_unheld(entry)

    def relocate_value(self, entry: Entry) -> None:
        """What was being made again here is not: who waits for it asks where it is."""
        if entry.value is None and entry.held:
            self.need_value(entry)
        elif entry.wanted_here:
            self.need_bytes(entry)
        self.free_unheld(entry)

    def source_failed(self, entry: Entry, node_id: int) -> None:
        """A peer turned out not to have the object (node 0: storage had not)."""
        if node_id:
            entry.sources = [source for source in entry.sources if source != node_id]
        else:
            entry.stored = ""
        if entry.key is not None or not entry.wanted_here:
            return
        if entry.sources or entry.stored:
            self.need_bytes(entry)
        else:
            self._locate(entry, [(entry.object_id, node_id)])

    def copy_lost(self, entry: Entry) -> None:
        """This node's own copy was dropped, or its bytes turned out to be damaged."""
        entry.key = None
        self._core.transport.report_removed(entry.object_id)
        if entry.wanted_here:
            self.need_bytes(entry)

    # --- peers and the control store --------------------------------------------------------------

    def watch(self, node_id: int, object_ids: Iterable[bytes]) -> None:
        """A peer holds these objects and wants to be told of them."""
        for object_id in object_ids:
            entry = self.entry(object_id)
            if entry.peers is None:
                entry.peers = {}
            entry.peers[node_id] = None
            if entry.value is not None:
                if entry.task is None:
                    # Where the bytes are elsewhere, the peer finds that out when it needs them.
                    self._core.tell_peer(node_id, entry.value)
            else:
                self.need_value(entry)

    def peer_drop(self, node_id: int, object_ids: Sequence[bytes]) -> None:
        # Nor is it told of what it let go of before the commit: if its job was closed, the next
        # driver makes the same object anew, perhaps another way.
        self._core.journal.withdraw(node_id, object_ids)
        for object_id in object_ids:
            entry = self.entries.get(object_id)
            if entry is not None and entry.peers is not None:
                entry.peers.pop(node_id, None)
                self.free_unheld(entry)

    def peer_values(self, node_id: int, values: Iterable[Value]) -> None:
        """A peer tells of objects that this node expects from it."""
        for value in values:
            entry = self.entries.get(value.object_id)
            if entry is None or self._core.actors.is_home_of(value.object_id):
                # Nobody here wants it; or an actor that it stands for came back to this node, which
                # others used to hold for us: from now on this node holds it for them.
                self._core.send_peer(node_id, PeerDrop([value.object_id]))
                continue
            if _is_cancelled(value) and (entry.task is not None or entry.value is not None):
                continue  # that was its last driver's job; the next one has submitted it again
            if value.data is None and value.status == OK and node_id not in entry.sources:
                entry.sources.append(node_id)
            if value.data is None or value.refs or not self._is_plain_result(entry):
                self._held_by(entry, node_id)
            known = entry.value is not None
            self._core.tasks.remote_done(entry, value)
            self._settle(entry, value)
            if entry.peers is not None and node_id in entry.peers:
                # It knew, or has asked after it had forgotten. It is told, but nothing is held for
                # it: two nodes that hold an object for each other would never let go.
                if known and entry.value is not None:
                    self._core.tell_peer(node_id, entry.value)
                del entry.peers[node_id]
            self.free_unheld(entry)

    def locations(self, objects: Iterable[Whereabouts]) -> None:
        """The control store's answers."""
        here = self._core.node_id
        for where in objects:
            entry = self.entries.get(where.object_id)
            if entry is None:
                continue
            entry.locating = False
            if entry.task is not None and not self._core.tasks.is_remote(entry.task):
                continue  # it is being made here
            if where.value is not None:
                self._core.tasks.remote_done(entry, where.value)
                self._settle(entry, where.value)
            elif where.nodes or where.stored:
                for gone in set(entry.sources).difference(where.nodes):
                    self._core.send_peer(gone, PeerDrop([where.object_id]))  # it may hold it for us
                entry.sources = [n for n in where.nodes if n != here]
                entry.stored = where.stored
                value = Value(where.object_id, OK, where.size, None, where.digest)
                self._core.tasks.remote_done(entry, value)
                self._settle(entry, value)
            elif where.maker == here:
                # It was made again here and let go: the control store does not know that yet.
                self._core.relocate(entry)
            else:
                entry.maker = where.maker
                self._held_by(entry, where.maker)
                if entry.task is not None:
                    entry.task.node = where.maker
                self._core.relocate_if_dead(entry)

    def _settle(self, entry: Entry, value: Value) -> None:
        """News from elsewhere of an object that may be known already."""
        entry.maker = 0
        self.learn_digest(entry, value.digest)
        known = entry.value
        if known is None or (known.status == OK and value.status != OK):
            self.set_value(entry, value)
        elif entry.wanted_here:
            if value.data is not None:
                self._take(entry, value)
            self.need_bytes(entry)

    def learn_digest(self, entry: Entry, digest: bytes) -> None:
        """What the control store knows of copies in nodes' memory has no digest: that comes with
        the bytes, or with their path in storage, where they are not read without."""
        value = entry.value
        if value is not None and value.status == OK and not value.digest and digest:
            entry.value = replace(value, digest=digest)

    def node_died(self, node_id: int, came_back: bool) -> None:
        """What was expected from the node is located anew. ``came_back``: its next incarnation has
        asked for things already."""
        lost: list[Entry] = []
        for entry in list(self.entries.values()):
            if node_id in entry.sources:
                entry.sources = [source for source in entry.sources if source != node_id]
                if entry.wanted_here and entry.key is None and entry.awaiting_room is None:
                    lost.append(entry)
            if entry.teller == node_id:
                entry.teller = 0
            if entry.maker == node_id:
                entry.maker = 0
                if entry.task is None:
                    lost.append(entry)
            if entry.peers is None or node_id not in entry.peers:
                continue
            if not came_back:
                del entry.peers[node_id]
                self._core.actors.lost_sight(entry)
                self.free_unheld(entry)
            elif entry.value is not None:
                self._core.tell_peer(node_id, entry.value)  # it says whether it wants that
        for entry in lost:
            if entry.value is None:
                if entry.held:
                    self.need_value(entry)
            elif not entry.sources:
                self._locate(entry)
            else:
                self.need_bytes(entry)

    def locate_all(self) -> None:
        """The control store may have forgotten what it was asked: asks again."""
        for entry in list(self.entries.values()):
            if entry.locating:
                self._core.locate(entry.object_id)
            elif entry.maker and entry.value is None and entry.task is None:
                # The maker may not have been told that we wait.
                self._core.send_peer(entry.maker, Watch([entry.object_id]))

    def _locate(self, entry: Entry, gone: list[tuple[bytes, int]] | None = None) -> None:
        entry.locating = True
        self._core.locate(entry.object_id, gone)

    def _hold_at_maker(self, entry: Entry) -> None:
        """Tells the node that has a borrowed object that it is held here, too."""
        if entry.value is None and entry.task is None and entry.maker == 0 and entry.sources:
            source = entry.sources[0]
            entry.maker = source
            entry.sources = []
            self._held_by(entry, source)
            self._core.send_peer(source, Watch([entry.object_id]))

    def expect_from(self, entry: Entry, node_id: int) -> None:
        """A peer is about to make what somebody here, or another peer, waits for."""
        entry.maker = node_id
        self._held_by(entry, node_id)
        self._core.send_peer_held(node_id, Watch([entry.object_id]))

    def _held_by(self, entry: Entry, node_id: int) -> None:
        """The peer keeps the object for this node, until it is told that it need not."""
        before, entry.teller = entry.teller, node_id
        if before not in (0, node_id) and before not in entry.sources:
            self._core.send_peer(before, PeerDrop([entry.object_id]))

    @staticmethod
    def _is_plain_result(entry: Entry) -> bool:
        """Of a task that was handed over, which its runner tells and forgets where it is small."""
        return entry.task is not None and entry.task.header.kind != ACTOR_CREATION

    def _is_actor(self, entry: Entry) -> bool:
        """Whether the object stands for an actor: its holders hold the actor."""
        return entry.object_id[:16] in self._core.actors.table

    def keep_rebuilt(self, entry: Entry) -> None:
        """An object that was made again is kept for a while: the news of who wants it, or of a task
        that needs it, may still be on the way."""
        entry.pins += 1
        until_ms = self._core.now_ms + self._core.config.rebuilt_kept_s * 1000
        self._kept.append((until_ms, entry.object_id))

    def tick(self, now_ms: float) -> None:
        """What was kept long enough is let go."""
        while self._kept and self._kept[0][0] <= now_ms:
            self.unpin((self._kept.popleft()[1],))

    # --- letting go -------------------------------------------------------------------------------

    def unpin(self, object_ids: Iterable[bytes]) -> None:
        """A task that had these as arguments is over."""
        entries = self.entries
        for object_id in object_ids:
            entry = entries.get(object_id)
            if entry is not None:
                entry.pins -= 1
                if not entry.held:
                    self._free(entry)

    def free_unheld(self, entry: Entry) -> None:
        """Forgets the object if nobody holds it."""
        if not entry.held and self.entries.get(entry.object_id) is entry:
            self._free(entry)

    def _free(self, entry: Entry) -> None:
        core = self._core
        object_id = entry.object_id
        del self.entries[object_id]
        if entry.key is not None or entry.awaiting_room is not None:
            core.transport.free(entry)
        if entry.sources or entry.maker or entry.teller:
            for node_id in dict.fromkeys([*entry.sources, entry.maker, entry.teller]):
                if node_id and node_id != core.node_id:
                    core.send_peer(node_id, PeerDrop([object_id]))
        value = entry.value
        if value is not None and value.refs:
            self._let_go_of(value.refs)
        if core.actors.table:
            core.actors.handles_gone(object_id)

    def check(self) -> None:
        """Invariants: every entry has a reason to live, and what is awaited is expected from
        somewhere."""
        for object_id, entry in self.entries.items():
            assert entry.object_id == object_id
            assert entry.held, "an entry that nobody holds"
            assert entry.pins >= 0, "unpinned more often than pinned"
            assert entry.containers >= 0, "released by more containers than hold it"
            waits = entry.waiters or entry.dependents
            if entry.value is None and waits:
                expected = (
                    entry.task is not None
                    or entry.maker
                    or entry.locating
                    or self._core.tasks.is_looking_up(object_id[:16])
                )
                assert expected, "a value is awaited that nobody was asked for"
            if entry.value is not None:
                assert entry.value.status != PENDING
                assert not entry.dependents, "a task waits for a value that is there"


def _is_cancelled(value: Value) -> bool:
    if value.status != SYSTEM_ERROR or value.data is None:
        return False
    return failure_decoder.decode(value.data).code == "cancelled"
