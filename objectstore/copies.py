"""The copies of objects on one node, and who uses them: the book that ``core`` keeps.

Everything here keeps the indexes of one change in step (by offset, by client, by eviction order,
sums of bytes); it decides nothing. No clock, no I/O.
"""

from __future__ import annotations

import enum
from collections import OrderedDict
from collections.abc import Hashable, Iterator
from dataclasses import dataclass
from itertools import chain

from regrow.objectstore.effects import ObjectKey
from regrow.objectstore.extents import Extents, rounded

#: A process that reads or writes: its worker id, or whatever the shell names it by.
ClientId = Hashable


class CopyState(enum.Enum):
    WAITING = "waiting"
    CREATING = "creating"
    SEALED = "sealed"
    SPILLING = "spilling"
    SPILLED = "spilled"
    RESTORING = "restoring"


@dataclass(slots=True, eq=False)
class ObjectCopy:
    """One object of this node. Outside the core: read only."""

    key: ObjectKey
    #: Bytes.
    size: int
    state: CopyState
    #: The process that writes it; None once sealed.
    owner: ClientId | None
    #: Where it lies in the arena; None if it is not there.
    offset: int | None = None
    #: It lies in a fallback file of the spill directory.
    in_file: bool = False
    #: Storage has a copy.
    spilled: bool = False
    #: It may be dropped to make room.
    droppable: bool = False
    #: Storage refused it; not tried again until another spill succeeds.
    spill_failed: bool = False
    #: Freed while in use; goes with its last use.
    doomed: bool = False
    #: Pins of all clients.
    pins: int = 0

    @property
    def readable(self) -> bool:
        return self.state is CopyState.SEALED or self.state is CopyState.SPILLING


@dataclass(frozen=True, slots=True)
class Location:
    """Where a pinned object is read: at ``offset`` of the arena, or, if None, in its file."""

    key: ObjectKey
    offset: int | None
    size: int


class CopyBook:
    """See the module."""

    def __init__(self, capacity: int) -> None:
        self.extents = Extents(capacity)
        self.copies: dict[ObjectKey, ObjectCopy] = {}
        self.by_offset: dict[int, ObjectCopy] = {}
        # In the arena, sealed, unpinned; least recently used first. Evicting a clean one is free.
        self.clean: OrderedDict[ObjectKey, None] = OrderedDict()
        self.dirty: OrderedDict[ObjectKey, None] = OrderedDict()
        self.spilling: OrderedDict[ObjectKey, None] = OrderedDict()
        self.clean_bytes = 0
        self.spilling_bytes = 0
        #: Storage used: spilled copies, spills under way, fallback files.
        self.spill_used = 0
        self.pins_of: dict[ClientId, dict[ObjectKey, int]] = {}
        self.writes_of: dict[ClientId, dict[ObjectKey, None]] = {}

    def add(self, copy: ObjectCopy) -> None:
        """Note a copy that ``copy.owner`` wants to write."""
        self.copies[copy.key] = copy
        self.writes_of.setdefault(copy.owner, {})[copy.key] = None

    def disown(self, copy: ObjectCopy) -> None:
        """Its owner no longer writes it."""
        if copy.owner is not None:
            writes = self.writes_of[copy.owner]
            del writes[copy.key]
            if not writes:
                del self.writes_of[copy.owner]
            copy.owner = None

    def place(self, copy: ObjectCopy, offset: int) -> None:
        """It gets the extent at ``offset``, which the allocator has given out."""
        copy.offset = offset
        self.by_offset[offset] = copy

    def place_in_file(self, copy: ObjectCopy) -> None:
        copy.in_file = True
        self.spill_used += copy.size

    def displace(self, copy: ObjectCopy) -> None:
        """It no longer lies in the arena."""
        if copy.offset is not None:
            del self.by_offset[copy.offset]
            self.extents.free(copy.offset, rounded(copy.size))
            copy.offset = None

    def remove(self, copy: ObjectCopy) -> None:
        """Forget it altogether. It has no pins, and no spill is under way."""
        assert not copy.pins, "removed while pinned"
        assert copy.state is not CopyState.SPILLING, "removed while being spilled"
        self.disown(copy)
        self.leave_queue(copy)
        self.displace(copy)
        self.spill_used -= copy.size * (copy.in_file + copy.spilled)
        del self.copies[copy.key]

    def join_queue(self, copy: ObjectCopy) -> None:
        """It has become evictable, as the most recently used."""
        assert copy.state is CopyState.SEALED
        assert not copy.pins
        assert copy.offset is not None
        if copy.spilled or copy.droppable:
            self.clean[copy.key] = None
            self.clean_bytes += rounded(copy.size)
        elif not copy.spill_failed:
            self.dirty[copy.key] = None

    def leave_queue(self, copy: ObjectCopy) -> bool:
        """It is no longer evictable. False if it was not."""
        if copy.key in self.clean:
            del self.clean[copy.key]
            self.clean_bytes -= rounded(copy.size)
        elif copy.key in self.dirty:
            del self.dirty[copy.key]
        else:
            return False
        return True

    def begin_spill(self, copy: ObjectCopy) -> None:
        self.leave_queue(copy)
        copy.state = CopyState.SPILLING
        self.spilling[copy.key] = None
        self.spilling_bytes += rounded(copy.size)
        self.spill_used += copy.size

    def end_spill(self, copy: ObjectCopy, written: bool) -> None:
        assert copy.state is CopyState.SPILLING, f"spill ended while {copy.state.value}"
        del self.spilling[copy.key]
        self.spilling_bytes -= rounded(copy.size)
        copy.state = CopyState.SEALED
        copy.spilled = written
        if not written:
            self.spill_used -= copy.size

    def reclaimable(self, copy: ObjectCopy) -> bool:
        """Whether its memory can be had without waiting for any client."""
        if copy.state is CopyState.SPILLING:
            return not copy.pins
        return copy.key in self.clean or copy.key in self.dirty

    def eviction_order(self) -> Iterator[ObjectCopy]:
        """The reclaimable copies, best victim first."""
        for key in chain(self.clean, self.spilling, self.dirty):
            copy = self.copies[key]
            if not copy.pins:
                yield copy

    def add_pin(self, copy: ObjectCopy, client: ClientId) -> None:
        pins = self.pins_of.setdefault(client, {})
        pins[copy.key] = pins.get(copy.key, 0) + 1
        copy.pins += 1
        if copy.pins == 1:
            self.leave_queue(copy)

    def remove_pins(self, key: ObjectKey, client: ClientId, count: int) -> int:
        """Take away up to ``count`` pins; how many there were to take."""
        pins = self.pins_of.get(client)
        if pins is None:
            return 0
        held = pins.get(key, 0)
        count = min(count, held)
        if count == 0:
            return 0
        if count < held:
            pins[key] = held - count
        else:
            del pins[key]
            if not pins:
                del self.pins_of[client]
        self.copies[key].pins -= count
        return count

    def remove_all_pins(self, copy: ObjectCopy) -> None:
        """Take away every client's pins (a copy that turned out to be lost): O(clients)."""
        if copy.pins:
            for client in [c for c, pins in self.pins_of.items() if copy.key in pins]:
                self.remove_pins(copy.key, client, copy.pins)

    def check(self) -> None:
        """Assert that all indexes agree with the copies."""
        copies = self.copies.values()
        placed = {copy.offset: copy for copy in copies if copy.offset is not None}
        assert placed == self.by_offset
        self.extents.check(sorted((at, rounded(copy.size)) for at, copy in placed.items()))
        pins: dict[ObjectKey, int] = {}
        for held in self.pins_of.values():
            assert held, "a client without pins is still listed"
            for key, count in held.items():
                assert count > 0
                pins[key] = pins.get(key, 0) + count
        writes = {key for keys in self.writes_of.values() for key in keys}
        storage = 0
        for copy in copies:
            self._check_copy(copy)
            assert copy.pins == pins.pop(copy.key, 0)
            assert (copy.owner is not None) == (copy.key in writes)
            in_storage = copy.in_file + (copy.spilled or copy.state is CopyState.SPILLING)
            storage += in_storage * copy.size
        assert not pins, f"pins on unknown objects: {pins}"
        assert self.spill_used == storage
        assert self.clean_bytes == sum(rounded(self.copies[key].size) for key in self.clean)
        assert self.spilling_bytes == sum(rounded(self.copies[key].size) for key in self.spilling)

    def _check_copy(self, copy: ObjectCopy) -> None:
        state, key = copy.state, copy.key
        has_place = copy.offset is not None or copy.in_file
        assert copy.offset is None or not copy.in_file
        assert (copy.owner is not None) == (state in (CopyState.WAITING, CopyState.CREATING))
        assert (state is CopyState.SPILLING) == (key in self.spilling)
        evictable = state is CopyState.SEALED and not copy.pins and copy.offset is not None
        free = copy.spilled or copy.droppable
        assert (key in self.clean) == (evictable and free)
        assert (key in self.dirty) == (evictable and not free and not copy.spill_failed)
        if state is CopyState.WAITING:
            assert not has_place
            assert not copy.pins
        elif state is CopyState.SPILLED:
            assert copy.spilled
            assert not has_place
            assert not copy.pins
        elif state is CopyState.RESTORING:
            assert copy.spilled
        else:
            assert has_place
        if copy.doomed:
            assert copy.pins or state not in (CopyState.SEALED, CopyState.SPILLED)
