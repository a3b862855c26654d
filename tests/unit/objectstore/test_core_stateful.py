"""Random histories of the core, against a shell that carries out its effects on real bytes."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    invariant,
    multiple,
    precondition,
    rule,
    run_state_machine_as_test,
)

from regrow.objectstore.copies import CopyState
from regrow.objectstore.core import StoreCore
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

CLIENTS = st.sampled_from(["a", "b", "c"])


class Shell(RuleBasedStateMachine):
    """Holds every byte the core places, so that an overlap or an early reuse shows as a wrong
    byte: whatever is pinned must read as it was written."""

    capacity = 4096
    spill_capacity: int | None = None
    keys = Bundle("keys")

    def __init__(self) -> None:
        super().__init__()
        self.core = StoreCore(self.capacity, self.spill_capacity, spill_ahead=0.25)
        self.arena = bytearray(self.capacity)
        self.files: dict[ObjectKey, bytes] = {}
        self.storage: dict[ObjectKey, bytes] = {}
        self.spills: dict[ObjectKey, int] = {}  # under way, with their offsets
        self.restores: dict[ObjectKey, int | None] = {}
        self.granted: dict[ObjectKey, tuple[str, int | None]] = {}  # being written: owner, offset
        self.asked: dict[ObjectKey, str] = {}  # not answered yet
        self.pins: dict[tuple[str, ObjectKey], int] = {}
        self.freed: set[ObjectKey] = set()
        self.next = 0

    def content(self, key: ObjectKey, size: int) -> bytes:
        return (key[0][-2:] * (size // 2 + 1))[:size]

    def carry_out(self, effects: list[Effect]) -> None:
        for effect in effects:
            key = effect.key
            match effect:
                case Grant(offset=offset):
                    self.granted[key] = (self.asked.pop(key), offset)
                case GrantFile():
                    self.granted[key] = (self.asked.pop(key), None)
                case Exists():
                    self.asked.pop(key, None)
                case Refuse():
                    self.asked.pop(key, None)
                    self.forget_pins(key)
                case Spill(offset=offset):
                    assert key not in self.storage
                    self.spills[key] = offset
                case Restore(offset=offset):
                    self.restores[key] = offset
                case RestoreFile():
                    self.restores[key] = None
                case Drop():
                    assert not self.pinned(key)
                case DeleteSpilled():
                    del self.storage[key]
                case DeleteFile():
                    self.files.pop(key, None)

    def pinned(self, key: ObjectKey) -> bool:
        return any(held == key for _, held in self.pins)

    def forget_pins(self, key: ObjectKey) -> None:
        self.pins = {pin: n for pin, n in self.pins.items() if pin[1] != key}

    @rule(target=keys, size=st.just(0) | st.integers(0, 3000), owner=CLIENTS)
    def allocate(self, size: int, owner: str) -> ObjectKey:
        self.next += 1
        key = self.next.to_bytes(20, "big"), 1
        self.asked[key] = owner
        self.carry_out(self.core.allocate(key, size, owner))
        return key

    @rule(target=keys, n=st.integers(2, 12), size=st.integers(0, 400), owner=CLIENTS)
    def allocate_and_seal_many(self, n: int, size: int, owner: str) -> object:
        keys = [self.allocate(size, owner) for _ in range(n)]
        for key in keys:
            self.seal(key, droppable=False)
        return multiple(*keys)

    @rule(key=keys, droppable=st.booleans())
    def seal(self, key: ObjectKey, droppable: bool) -> None:
        if key not in self.granted:
            return
        copy = self.core.lookup(key)
        assert copy is not None
        _, offset = self.granted.pop(key)
        data = self.content(key, copy.size)
        if offset is None:
            self.files[key] = data
        else:
            self.arena[offset : offset + copy.size] = data
        self.carry_out(self.core.seal(key, droppable))

    @rule(key=keys)
    def abort(self, key: ObjectKey) -> None:
        if key in self.granted or key in self.asked:
            self.granted.pop(key, None)
            self.asked.pop(key, None)
            self.carry_out(self.core.abort(key))

    @rule(key=keys, client=CLIENTS)
    def pin(self, key: ObjectKey, client: str) -> None:
        copy = self.core.lookup(key)
        location = self.core.pin(key, client)
        if location is not None:
            assert key not in self.freed
            self.pins[client, key] = self.pins.get((client, key), 0) + 1
        elif copy is None or copy.doomed:
            return
        elif copy.state in (CopyState.SPILLED, CopyState.RESTORING):
            self.pins[client, key] = self.pins.get((client, key), 0) + 1
            self.carry_out(self.core.restore(key, client))

    @rule(key=keys, client=CLIENTS, n=st.integers(1, 3))
    def unpin(self, key: ObjectKey, client: str, n: int) -> None:
        held = self.pins.pop((client, key), 0)
        if held > n:
            self.pins[client, key] = held - n
        self.carry_out(self.core.unpin(key, client, n))

    @rule(key=consumes(keys))
    def free(self, key: ObjectKey) -> None:
        if key not in self.granted and key not in self.asked:
            self.freed.add(key)
        self.carry_out(self.core.free(key))

    @rule(key=keys, droppable=st.booleans())
    def set_droppable(self, key: ObjectKey, droppable: bool) -> None:
        self.carry_out(self.core.set_droppable(key, droppable))

    @precondition(lambda self: self.spills)
    @rule(data=st.data(), works=st.booleans())
    def end_spill(self, data: st.DataObject, works: bool) -> None:
        key = data.draw(st.sampled_from(list(self.spills)))
        offset = self.spills.pop(key)
        copy = self.core.lookup(key)
        assert copy is not None
        if works:
            self.storage[key] = bytes(self.arena[offset : offset + copy.size])
            assert self.storage[key] == self.content(key, copy.size)
            self.carry_out(self.core.spilled(key))
        else:
            self.carry_out(self.core.spill_failed(key))

    @precondition(lambda self: self.restores)
    @rule(data=st.data(), works=st.booleans())
    def end_restore(self, data: st.DataObject, works: bool) -> None:
        key = data.draw(st.sampled_from(list(self.restores)))
        offset = self.restores.pop(key)
        if not works:
            self.forget_pins(key)
            self.carry_out(self.core.restore_failed(key))
            return
        stored = self.storage[key]
        if offset is None:
            self.files[key] = stored
        else:
            self.arena[offset : offset + len(stored)] = stored
        self.carry_out(self.core.restored(key))

    @rule(client=CLIENTS)
    def die(self, client: str) -> None:
        self.granted = {k: g for k, g in self.granted.items() if g[0] != client}
        self.asked = {k: owner for k, owner in self.asked.items() if owner != client}
        self.pins = {pin: n for pin, n in self.pins.items() if pin[0] != client}
        self.carry_out(self.core.abort_client(client))

    @invariant()
    def books_agree(self) -> None:
        self.core.check()
        for key in self.core.object_keys():
            copy = self.core.lookup(key)
            assert copy is not None
            assert copy.pins == sum(n for pin, n in self.pins.items() if pin[1] == key)
            assert (copy.state is CopyState.SPILLING) == (key in self.spills)
            if copy.readable:
                self.read(key, copy.offset, copy.size)
            if copy.spilled:
                assert self.storage[key] == self.content(key, copy.size)
        assert set(self.storage) <= set(self.core.object_keys())
        assert set(self.files) <= set(self.core.object_keys())

    def read(self, key: ObjectKey, offset: int | None, size: int) -> None:
        stored = self.files[key] if offset is None else self.arena[offset : offset + size]
        assert stored == self.content(key, size), "somebody else's bytes"

    def teardown(self) -> None:
        """However it went, once all end well nothing is left and nobody waits."""
        for client in ("a", "b", "c"):
            self.die(client)
        for key in self.core.object_keys():
            self.carry_out(self.core.free(key))
        while self.spills or self.restores:
            for key in list(self.spills):
                offset, copy = self.spills.pop(key), self.core.lookup(key)
                assert copy is not None
                self.storage[key] = bytes(self.arena[offset : offset + copy.size])
                self.carry_out(self.core.spilled(key))
            for key in list(self.restores):
                self.restores.pop(key)
                self.carry_out(self.core.restored(key))
        assert self.core.stats().waiting == 0
        stats = self.core.stats()
        assert (stats.objects, stats.used, stats.spill_used) == (0, 0, 0)
        assert not self.storage
        assert not self.files
        self.core.check()


@pytest.mark.parametrize("capacity", [1024, 4096, 65536])
@pytest.mark.parametrize("spill_capacity", [None, 3000])
def test_no_history_breaks_the_core(capacity: int, spill_capacity: int | None) -> None:
    class Sized(Shell):
        pass

    Sized.capacity, Sized.spill_capacity = capacity, spill_capacity
    run_state_machine_as_test(
        Sized, settings=settings(max_examples=60, stateful_step_count=40, deadline=None)
    )
