"""The object store of one node: where each object lies, who reads it, what makes room.

Everything that decides this lives here (``copies`` keeps the books); nothing here waits, reads a
clock, or does I/O. Methods are the events. They return effects (see ``effects``), which the shell
carries out in order. The core knows sizes and offsets, never contents.

A copy's states:

    WAITING    no room yet                           -> CREATING; refused
    CREATING   its owner writes it                   -> SEALED by ``seal``; gone by ``abort``
    SEALED     readable                              -> SPILLING; SPILLED; dropped
    SPILLING   readable, being written to storage    -> SEALED, whether that worked or not
    SPILLED    only in storage                       -> RESTORING by ``restore``
    RESTORING  waiting for room, or being read back  -> SEALED; SPILLED if refused; gone if lost

Room is made in the order of cost: objects that storage has already, or that are *droppable* (there
is another copy, or a replay is cheap), cost nothing; then those whose spill is under way; others
are spilled first. Within each, the least recently used go first. When little is left that costs
nothing, spilling begins ahead of need. An allocation waits for spills, never for readers: where
pins prevent room it gets a file instead. Allocations are served in order, so that small ones do
not starve a large one.

An object in a file is readable like any other; it leaves only by being freed.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

from regrow.objectstore.copies import ClientId, CopyBook, CopyState, Location, ObjectCopy
from regrow.objectstore.effects import (
    DeleteFile,
    DeleteSpilled,
    Drop,
    Effect,
    Exists,
    Grant,
    GrantFile,
    ObjectKey,
    Refuse,
    Restore,
    RestoreFile,
    Spill,
)
from regrow.objectstore.eviction import choose_victims, needs_spill
from regrow.objectstore.extents import rounded


@dataclass(frozen=True, slots=True)
class StoreStats:
    """Bytes, but for the last four, which count."""

    capacity: int
    used: int
    high_water: int
    reclaimable: int
    spilling: int
    spill_used: int
    objects: int
    pinned: int
    creating: int
    waiting: int


class StoreCore:
    """See the module.

    ``capacity``, ``spill_capacity``: bytes; None: storage has no limit.
    ``spill_ahead``: the fraction of the arena that is kept free or reclaimable without I/O.
    """

    def __init__(
        self, capacity: int, spill_capacity: int | None = None, spill_ahead: float = 0.2
    ) -> None:
        self._book = CopyBook(capacity)
        self._extents = self._book.extents
        self._spill_capacity = spill_capacity
        self._spill_ahead_bytes = int(self._extents.capacity * spill_ahead)
        self._waiting: OrderedDict[ObjectKey, None] = OrderedDict()
        # The spills that the first of the waiting waits for.
        self._awaited: set[ObjectKey] = set()
        self._failed: dict[ObjectKey, None] = {}

    # Writing

    def allocate(self, key: ObjectKey, size: int, owner: ClientId) -> list[Effect]:
        """``owner`` (not None) wants to write an object of ``size`` bytes.

        The answer (Grant, GrantFile, Exists or Refuse) is among the effects returned, or, where
        it has to wait for spills, among those of a later event. Hot path: 5 us.
        """
        existing = self._book.copies.get(key)
        if existing is not None:
            return [Exists(key, existing.state not in (CopyState.WAITING, CopyState.CREATING))]
        self._book.add(ObjectCopy(key, size, CopyState.WAITING, owner))
        self._waiting[key] = None
        return self._serve([])

    def seal(self, key: ObjectKey, droppable: bool = False) -> list[Effect]:
        """The owner has written the object; from now on it is read-only.

        ``droppable``: it may be dropped to make room, since it is not the only way to its value.
        """
        copy = self._book.copies[key]
        assert copy.state is CopyState.CREATING, f"sealed while {copy.state.value}"
        self._book.disown(copy)
        copy.state = CopyState.SEALED
        copy.droppable = droppable
        return self._settle(copy)

    def abort(self, key: ObjectKey) -> list[Effect]:
        """The owner gives up an object it has not sealed. Its memory is reused at once."""
        copy = self._book.copies[key]
        assert copy.owner is not None, f"aborted while {copy.state.value}"
        return self._serve(self._remove(copy))

    # Reading

    def pin(self, key: ObjectKey, client: ClientId) -> Location | None:
        """Keep the object where it is while ``client`` reads it; pins are counted.

        None: unknown, freed, not sealed yet, or in storage only (then ``restore`` it).
        """
        copy = self._book.copies.get(key)
        if copy is None or copy.doomed or not copy.readable:
            return None
        self._book.add_pin(copy, client)
        return Location(key, copy.offset, copy.size)

    def unpin(self, key: ObjectKey, client: ClientId, count: int = 1) -> list[Effect]:
        """``client`` gives back ``count`` of its pins.

        Pins it does not have are ignored: they went with ``abort_client``, or with a restore that
        came to nothing.
        """
        if self._book.remove_pins(key, client, count) == 0:
            return []
        return self._settle(self._book.copies[key])

    def restore(self, key: ObjectKey, client: ClientId) -> list[Effect]:
        """Bring a spilled object back, pinned for ``client`` from now on.

        Where it is being restored already only the pin is added. It is readable at ``restored``;
        Refuse and ``restore_failed`` take all its pins away. Only for objects that ``lookup``
        shows SPILLED or RESTORING and not doomed.
        """
        copy = self._book.copies[key]
        assert not copy.doomed, "restored after it was freed"
        if copy.state is CopyState.RESTORING:
            self._book.add_pin(copy, client)
            return []
        assert copy.state is CopyState.SPILLED, f"restored while {copy.state.value}"
        copy.state = CopyState.RESTORING
        self._book.add_pin(copy, client)
        self._waiting[key] = None
        return self._serve([])

    def restored(self, key: ObjectKey) -> list[Effect]:
        """The bytes are back and verified: the object is readable."""
        copy = self._restoring(key)
        copy.state = CopyState.SEALED
        return self._settle(copy)

    def restore_failed(self, key: ObjectKey) -> list[Effect]:
        """Storage has lost or corrupted the copy: this node no longer has the object."""
        copy = self._restoring(key)
        self._book.remove_all_pins(copy)
        return self._serve(self._remove(copy))

    # Letting go

    def free(self, key: ObjectKey) -> list[Effect]:
        """Nobody refers to the object any more: delete it here, once unused.

        From now on it cannot be pinned. An unknown key is ignored.
        """
        copy = self._book.copies.get(key)
        if copy is None:
            return []
        copy.doomed = True
        return self._settle(copy)

    def set_droppable(self, key: ObjectKey, droppable: bool) -> list[Effect]:
        """Another way to the value came to be, or was lost. An unknown key is ignored."""
        copy = self._book.copies.get(key)
        if copy is None:
            return []
        self._book.leave_queue(copy)
        copy.droppable = droppable
        return self._settle(copy)

    def abort_client(self, client: ClientId) -> list[Effect]:
        """The process is dead: its unsealed objects and its pins go.

        To be called only when the process cannot write any more: its memory is reused at once.
        """
        effects: list[Effect] = []
        for key in list(self._book.writes_of.get(client, ())):
            effects += self._remove(self._book.copies[key])
        for key, count in list(self._book.pins_of.get(client, {}).items()):
            self._book.remove_pins(key, client, count)
            effects += self._requeue(self._book.copies[key])
        return self._serve(effects)

    # Spilling

    def spilled(self, key: ObjectKey) -> list[Effect]:
        """Storage has the object; its room in the arena may be reused."""
        copy = self._book.copies[key]
        self._book.end_spill(copy, written=True)
        self._awaited.discard(key)
        failed, self._failed = self._failed, {}
        effects = self._requeue(copy)
        for other_key in failed:  # storage works again
            other = self._book.copies.get(other_key)
            if other is not None:
                other.spill_failed = False
                effects += self._requeue(other)
        return self._serve(effects)

    def spill_failed(self, key: ObjectKey) -> list[Effect]:
        """Storage did not take the object; it stays where it is."""
        copy = self._book.copies[key]
        self._book.end_spill(copy, written=False)
        self._awaited.discard(key)
        copy.spill_failed = True
        self._failed[key] = None
        return self._settle(copy)

    # Looking

    def lookup(self, key: ObjectKey) -> ObjectCopy | None:
        """The object's copy here, doomed ones included; not to be changed."""
        return self._book.copies.get(key)

    def object_keys(self) -> list[ObjectKey]:
        """Every object of this node, oldest first."""
        return list(self._book.copies)

    def stats(self) -> StoreStats:
        """The figures of this moment: O(objects)."""
        book = self._book
        copies = book.copies.values()
        return StoreStats(
            capacity=self._extents.capacity,
            used=self._extents.capacity - self._extents.free_bytes,
            high_water=self._extents.high_water,
            reclaimable=book.clean_bytes,
            spilling=book.spilling_bytes,
            spill_used=book.spill_used,
            objects=len(copies),
            pinned=sum(1 for copy in copies if copy.pins),
            creating=sum(1 for copy in copies if copy.state is CopyState.CREATING),
            waiting=len(self._waiting),
        )

    def check(self) -> None:
        """Assert the invariants. O(objects)."""
        book = self._book
        book.check()
        for key in self._waiting:
            copy = book.copies[key]
            assert copy.state in (CopyState.WAITING, CopyState.RESTORING)
            assert copy.offset is None
            assert not copy.in_file
        for copy in book.copies.values():
            assert copy.state is not CopyState.WAITING or copy.key in self._waiting
        assert self._awaited <= set(book.spilling)
        if self._waiting:
            assert self._awaited, "an allocation waits for nothing"
        else:
            assert not self._awaited
        if self._spill_capacity is not None:
            assert book.spill_used <= self._spill_capacity

    # Decisions

    def _settle(self, copy: ObjectCopy) -> list[Effect]:
        """The copy's use has changed: what follows for it and for others."""
        return self._serve(self._requeue(copy))

    def _requeue(self, copy: ObjectCopy) -> list[Effect]:
        """If nobody uses the copy: delete it if it is doomed, else make it evictable."""
        if copy.pins == 0:
            if copy.doomed and copy.state in (CopyState.SEALED, CopyState.SPILLED):
                return self._remove(copy)
            if copy.state is CopyState.SEALED and copy.offset is not None:
                self._book.leave_queue(copy)
                self._book.join_queue(copy)
        return []

    def _serve(self, effects: list[Effect]) -> list[Effect]:
        """Place what waits, first come first served, as far as there is room."""
        while self._waiting:
            copy = self._book.copies[next(iter(self._waiting))]
            if not self._try_place(copy, effects):
                break
            self._stop_waiting(copy)
        self._spill_ahead(effects)
        return effects

    def _try_place(self, copy: ObjectCopy, effects: list[Effect]) -> bool:
        """False: it has to wait for the spills in ``_awaited``."""
        offset = self._extents.allocate(rounded(copy.size))
        if offset is None:
            if self._awaited:
                return False
            victims = self._victims(rounded(copy.size))
            if victims is not None:
                for victim in victims:
                    if needs_spill(victim):
                        self._begin_spill(victim, effects)
                self._awaited.update(v.key for v in victims if v.state is CopyState.SPILLING)
                if self._awaited:
                    return False
                for victim in victims:
                    self._evict(victim, effects)
                offset = self._extents.allocate(rounded(copy.size))
                assert offset is not None, "the victims did not make room"
        if offset is not None:
            self._grant(copy, offset, effects)
        elif copy.size <= self._spill_room():
            self._grant_file(copy, effects)
        else:
            self._refuse(copy, effects)
        return True

    def _victims(self, size: int) -> list[ObjectCopy] | None:
        if size > self._extents.capacity:
            return None
        book = self._book
        return choose_victims(
            size,
            self._extents,
            book.by_offset,
            book.eviction_order(),
            book.reclaimable,
            self._spill_room(),
        )

    def _grant(self, copy: ObjectCopy, offset: int, effects: list[Effect]) -> None:
        self._book.place(copy, offset)
        if copy.state is CopyState.WAITING:
            copy.state = CopyState.CREATING
            effects.append(Grant(copy.key, offset, copy.size))
        else:
            effects.append(Restore(copy.key, offset, copy.size))

    def _grant_file(self, copy: ObjectCopy, effects: list[Effect]) -> None:
        self._book.place_in_file(copy)
        if copy.state is CopyState.WAITING:
            copy.state = CopyState.CREATING
            effects.append(GrantFile(copy.key, copy.size))
        else:
            effects.append(RestoreFile(copy.key, copy.size))

    def _refuse(self, copy: ObjectCopy, effects: list[Effect]) -> None:
        book = self._book
        limits = (self._extents.capacity, self._spill_capacity, book.spill_used)
        effects.append(Refuse(copy.key, copy.size, *limits))
        if copy.state is CopyState.WAITING:
            book.remove(copy)
            return
        book.remove_all_pins(copy)
        copy.state = CopyState.SPILLED
        if copy.doomed:
            effects += self._remove(copy)

    def _evict(self, victim: ObjectCopy, effects: list[Effect]) -> None:
        """Free its memory at once; storage has it, or it may be dropped."""
        if victim.spilled:
            self._book.leave_queue(victim)
            self._book.displace(victim)
            victim.state = CopyState.SPILLED
        else:
            assert victim.droppable
            self._book.remove(victim)
            effects.append(Drop(victim.key))

    def _begin_spill(self, copy: ObjectCopy, effects: list[Effect]) -> None:
        assert copy.offset is not None
        self._book.begin_spill(copy)
        effects.append(Spill(copy.key, copy.offset, copy.size))

    def _spill_ahead(self, effects: list[Effect]) -> None:
        book = self._book
        if not book.dirty:
            return
        ready = self._extents.free_bytes + book.clean_bytes + book.spilling_bytes
        while ready < self._spill_ahead_bytes and book.dirty:
            copy = book.copies[next(iter(book.dirty))]
            if copy.size > self._spill_room():
                return
            self._begin_spill(copy, effects)
            ready += rounded(copy.size)

    def _remove(self, copy: ObjectCopy) -> list[Effect]:
        """Forget the object, with its file and its copy in storage."""
        effects: list[Effect] = []
        if copy.in_file:
            effects.append(DeleteFile(copy.key))
        if copy.spilled:
            effects.append(DeleteSpilled(copy.key))
        self._stop_waiting(copy)
        self._book.remove(copy)
        return effects

    def _stop_waiting(self, copy: ObjectCopy) -> None:
        if copy.key in self._waiting:
            if next(iter(self._waiting)) == copy.key:
                self._awaited.clear()
            del self._waiting[copy.key]

    def _restoring(self, key: ObjectKey) -> ObjectCopy:
        copy = self._book.copies[key]
        assert copy.state is CopyState.RESTORING, f"restore ended while {copy.state.value}"
        assert key not in self._waiting, "restore ended before it began"
        return copy

    def _spill_room(self) -> int:
        if self._spill_capacity is None:
            return 1 << 62
        return self._spill_capacity - self._book.spill_used
