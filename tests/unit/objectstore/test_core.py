"""Decisions of the object store's core: placing, pinning, evicting, spilling, freeing."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count

import pytest

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

MB = 1 << 20


def key(number: int) -> ObjectKey:
    return number.to_bytes(20, "big"), 1


class Store:
    """A core, and a check of its invariants after each test."""

    def __init__(self) -> None:
        self.cores: list[StoreCore] = []

    def make(
        self, capacity: int, spill_capacity: int | None = None, spill_ahead: float = 0.0
    ) -> StoreCore:
        core = StoreCore(capacity, spill_capacity, spill_ahead)
        self.cores.append(core)
        return core


@pytest.fixture
def store() -> Iterator[Store]:
    store = Store()
    yield store
    for core in store.cores:
        core.check()


def fill(core: StoreCore, numbers: range, size: int = MB) -> None:
    for number in numbers:
        [grant] = core.allocate(key(number), size, "writer")
        assert isinstance(grant, Grant)
        assert core.seal(key(number)) == []


def names(effects: list[Effect]) -> list[str]:
    return [type(effect).__name__ for effect in effects]


def test_an_object_can_be_read_only_once_it_is_sealed(store: Store) -> None:
    core = store.make(MB)
    assert core.allocate(key(1), 100, "writer") == [Grant(key(1), 0, 100)]
    assert core.pin(key(1), "reader") is None
    assert core.seal(key(1)) == []
    location = core.pin(key(1), "reader")
    assert location is not None
    assert (location.offset, location.size) == (0, 100)


def test_an_object_is_allocated_once(store: Store) -> None:
    core = store.make(MB)
    core.allocate(key(1), 100, "writer")
    assert core.allocate(key(1), 100, "other") == [Exists(key(1), sealed=False)]
    core.seal(key(1))
    assert core.allocate(key(1), 100, "other") == [Exists(key(1), sealed=True)]


def test_attempts_of_one_object_are_separate_copies(store: Store) -> None:
    core = store.make(MB)
    [first] = core.allocate((b"x" * 20, 1), 100, "writer")
    [second] = core.allocate((b"x" * 20, 2), 100, "writer")
    assert isinstance(first, Grant)
    assert isinstance(second, Grant)
    assert first.offset != second.offset


def test_a_full_arena_spills_the_least_recently_used_and_then_grants(store: Store) -> None:
    core = store.make(4 * MB)
    fill(core, range(4))
    core.pin(key(0), "reader")
    core.unpin(key(0), "reader")  # 0 is now the most recently used, 1 the least
    assert core.allocate(key(9), MB, "writer") == [Spill(key(1), MB, MB)]
    assert core.spilled(key(1)) == [Grant(key(9), MB, MB)]
    copy = core.lookup(key(1))
    assert copy is not None
    assert copy.state is CopyState.SPILLED


def test_a_large_object_evicts_neighbours_only(store: Store) -> None:
    core = store.make(8 * MB)
    fill(core, range(8))
    effects = core.allocate(key(9), 3 * MB, "writer")
    assert effects == [Spill(key(n), n * MB, MB) for n in range(3)]
    assert core.spilled(key(1)) == []
    assert core.spilled(key(0)) == []
    assert core.spilled(key(2)) == [Grant(key(9), 0, 3 * MB)]


def test_a_large_object_among_pins_takes_the_cheapest_run(store: Store) -> None:
    """Ages alternate through the arena, so taking the oldest first would spill nearly all."""
    core = store.make(32 * MB)
    fill(core, range(32))
    for number in [*range(0, 32, 2), *range(1, 32, 2)]:
        core.pin(key(number), "reader")
        core.unpin(key(number), "reader")
    core.pin(key(5), "reader")
    for number in (11, 12):
        assert core.set_droppable(key(number), True) == []
    effects = core.allocate(key(99), 4 * MB, "writer")
    assert names(effects) == ["Spill", "Spill"]
    victims = {effect.key for effect in effects if isinstance(effect, Spill)} | {key(11), key(12)}
    numbers = sorted(int.from_bytes(victim[0], "big") for victim in victims)
    assert numbers == list(range(numbers[0], numbers[0] + 4))


def test_droppable_objects_go_before_others_are_spilled(store: Store) -> None:
    core = store.make(4 * MB)
    fill(core, range(4))
    core.set_droppable(key(2), True)
    assert core.allocate(key(9), MB, "writer") == [Drop(key(2)), Grant(key(9), 2 * MB, MB)]
    assert core.lookup(key(2)) is None


def test_pins_never_make_an_allocation_wait(store: Store) -> None:
    core = store.make(4 * MB)
    fill(core, range(4))
    for number in range(4):
        core.pin(key(number), "reader")
    assert core.allocate(key(9), MB, "writer") == [GrantFile(key(9), MB)]
    core.seal(key(9))
    location = core.pin(key(9), "reader")
    assert location is not None
    assert location.offset is None
    core.unpin(key(9), "reader")
    assert core.free(key(9)) == [DeleteFile(key(9))]
    assert core.stats().spill_used == 0


def test_a_pinned_object_in_the_middle_sends_a_large_allocation_to_a_file(store: Store) -> None:
    core = store.make(4 * MB)
    fill(core, range(4))
    core.pin(key(1), "reader")
    assert core.allocate(key(9), 3 * MB, "writer") == [GrantFile(key(9), 3 * MB)]


def test_an_object_larger_than_the_arena_gets_a_file(store: Store) -> None:
    core = store.make(MB)
    assert core.allocate(key(1), 2 * MB, "writer") == [GrantFile(key(1), 2 * MB)]


def test_what_fits_nowhere_is_refused_with_the_sizes(store: Store) -> None:
    core = store.make(MB, spill_capacity=3 * MB)
    refusal = Refuse(key(1), 4 * MB, MB, 3 * MB, 0)
    assert core.allocate(key(1), 4 * MB, "writer") == [refusal]
    assert core.lookup(key(1)) is None


def test_a_full_storage_refuses_what_pins_keep_out_of_the_arena(store: Store) -> None:
    core = store.make(2 * MB, spill_capacity=MB)
    fill(core, range(2))
    core.pin(key(0), "reader")
    core.pin(key(1), "reader")
    assert names(core.allocate(key(2), MB, "writer")) == ["GrantFile"]
    assert names(core.allocate(key(3), MB, "writer")) == ["Refuse"]
    core.unpin(key(0), "reader")
    assert names(core.allocate(key(3), MB, "writer")) == ["Refuse"], "no storage to spill to"
    core.free(key(0))
    assert names(core.allocate(key(3), MB, "writer")) == ["Grant"]


def test_storage_is_never_overcommitted_by_spills(store: Store) -> None:
    core = store.make(4 * MB, spill_capacity=2 * MB)
    fill(core, range(4))
    assert names(core.allocate(key(9), 2 * MB, "writer")) == ["Spill", "Spill"]
    assert core.allocate(key(10), 2 * MB, "writer") == []
    core.spilled(key(0))
    assert names(core.spilled(key(1))) == ["Grant", "Refuse"]


def test_an_empty_object_is_spilled_like_any_other(store: Store) -> None:
    """It takes no storage, but dropping it would lose it."""
    core = store.make(64)
    fill(core, range(1), size=0)
    assert core.allocate(key(9), 0, "writer") == [Spill(key(0), 0, 0)]
    assert core.spilled(key(0)) == [Grant(key(9), 0, 0)]


def test_a_pinned_spill_does_not_count_as_room(store: Store) -> None:
    core = store.make(64 * MB)
    fill(core, range(64))
    for number in range(2, 64):
        core.pin(key(number), "reader")
    assert names(core.allocate(key(98), 2 * MB, "writer")) == ["Spill", "Spill"]
    core.abort(key(98))
    core.pin(key(1), "reader")
    core.spilled(key(0))
    assert core.allocate(key(99), 2 * MB, "writer") == [GrantFile(key(99), 2 * MB)]
    core.spilled(key(1))


def test_an_object_pinned_while_it_is_spilled_stays(store: Store) -> None:
    core = store.make(2 * MB)
    fill(core, range(2))
    assert core.allocate(key(9), MB, "writer") == [Spill(key(0), 0, MB)]
    assert core.pin(key(0), "reader") is not None
    assert core.spilled(key(0)) == [Spill(key(1), MB, MB)], "another victim is chosen"
    assert core.spilled(key(1)) == [Grant(key(9), MB, MB)]
    core.seal(key(9))
    core.unpin(key(0), "reader")
    # Storage has it already, so the next allocation does not wait.
    assert core.allocate(key(10), MB, "writer") == [Grant(key(10), 0, MB)]


def test_a_failed_spill_takes_another_victim_and_is_tried_again_later(store: Store) -> None:
    core = store.make(2 * MB)
    fill(core, range(2))
    assert core.allocate(key(9), MB, "writer") == [Spill(key(0), 0, MB)]
    assert core.spill_failed(key(0)) == [Spill(key(1), MB, MB)]
    assert core.spilled(key(1)) == [Grant(key(9), MB, MB)]
    core.seal(key(9))
    core.pin(key(9), "reader")
    assert core.allocate(key(10), MB, "writer") == [Spill(key(0), 0, MB)]
    core.spilled(key(0))


def test_where_all_spills_fail_allocation_falls_back_to_a_file(store: Store) -> None:
    core = store.make(2 * MB)
    fill(core, range(2))
    core.allocate(key(9), MB, "writer")
    core.spill_failed(key(0))
    assert core.spill_failed(key(1)) == [GrantFile(key(9), MB)]


def test_a_spilled_object_comes_back_pinned(store: Store) -> None:
    core = store.make(2 * MB)
    fill(core, range(2))
    core.allocate(key(9), MB, "writer")
    core.spilled(key(0))
    core.seal(key(9))
    assert core.pin(key(0), "reader") is None
    assert core.restore(key(0), "reader") == [Spill(key(1), MB, MB)]
    assert core.restore(key(0), "other") == []
    assert core.spilled(key(1)) == [Restore(key(0), MB, MB)]
    assert core.restored(key(0)) == []
    copy = core.lookup(key(0))
    assert copy is not None
    assert copy.pins == 2
    core.unpin(key(0), "reader")
    core.unpin(key(0), "other")
    assert core.allocate(key(10), MB, "writer") == [Grant(key(10), MB, MB)], "evicted at no cost"
    assert core.free(key(0)) == [DeleteSpilled(key(0))]


def spilled_object(core: StoreCore) -> None:
    """Leave object 0 in storage only, and object 9 in its place."""
    fill(core, range(1))
    core.allocate(key(9), MB, "writer")
    core.spilled(key(0))
    core.seal(key(9))


def test_a_restore_among_pins_goes_to_a_file(store: Store) -> None:
    core = store.make(MB)
    spilled_object(core)
    core.pin(key(9), "reader")
    assert core.restore(key(0), "reader") == [RestoreFile(key(0), MB)]
    core.restored(key(0))
    core.unpin(key(0), "reader")
    assert core.free(key(0)) == [DeleteFile(key(0)), DeleteSpilled(key(0))]


def test_a_refused_restore_leaves_the_object_in_storage(store: Store) -> None:
    core = store.make(MB, spill_capacity=MB)
    spilled_object(core)
    core.pin(key(9), "reader")
    assert core.restore(key(0), "reader") == [Refuse(key(0), MB, MB, MB, MB)]
    copy = core.lookup(key(0))
    assert copy is not None
    assert (copy.state, copy.pins) == (CopyState.SPILLED, 0)


def test_a_corrupt_spilled_copy_is_a_lost_copy(store: Store) -> None:
    core = store.make(MB)
    spilled_object(core)
    core.free(key(9))
    assert core.restore(key(0), "reader") == [Restore(key(0), 0, MB)]
    assert core.restore_failed(key(0)) == [DeleteSpilled(key(0))]
    assert core.lookup(key(0)) is None
    assert core.unpin(key(0), "reader") == [], "the reader's pin went with the object"
    assert core.stats().used == 0


def test_a_freed_object_goes_with_its_last_pin(store: Store) -> None:
    core = store.make(MB)
    fill(core, range(1))
    core.pin(key(0), "reader")
    core.pin(key(0), "reader")
    assert core.free(key(0)) == []
    assert core.pin(key(0), "other") is None
    core.unpin(key(0), "reader")
    assert core.stats().objects == 1
    core.unpin(key(0), "reader")
    assert core.stats().objects == 0
    assert core.stats().used == 0


def test_an_object_freed_while_written_goes_when_it_is_sealed(store: Store) -> None:
    core = store.make(MB)
    core.allocate(key(0), 100, "writer")
    assert core.free(key(0)) == []
    assert core.stats().objects == 1
    core.seal(key(0))
    assert core.stats().objects == 0


def test_an_object_freed_while_spilled_is_deleted_from_storage_too(store: Store) -> None:
    core = store.make(MB)
    fill(core, range(1))
    core.allocate(key(9), MB, "writer")
    assert core.free(key(0)) == []
    assert core.spilled(key(0)) == [DeleteSpilled(key(0)), Grant(key(9), 0, MB)]


def test_a_dead_writer_leaks_nothing(store: Store) -> None:
    core = store.make(4 * MB)
    core.allocate(key(0), MB, "dead")
    core.allocate(key(1), MB, "alive")
    assert core.abort_client("dead") == []
    assert core.lookup(key(0)) is None
    assert core.stats().used == MB
    assert core.allocate(key(0), MB, "alive") == [Grant(key(0), 0, MB)], "its memory is reused"


def test_a_dead_reader_leaks_no_pins(store: Store) -> None:
    core = store.make(MB)
    fill(core, range(1))
    for _ in range(3):
        core.pin(key(0), "dead")
    core.free(key(0))
    core.abort_client("dead")
    assert core.stats().objects == 0


def test_a_dead_process_stops_waiting_and_lets_others_in(store: Store) -> None:
    core = store.make(4 * MB)
    fill(core, range(2))
    core.allocate(key(2), 2 * MB, "dead")  # unsealed: neither spilled nor evicted
    assert names(core.allocate(key(3), 2 * MB, "dead")) == ["Spill", "Spill"]
    assert core.allocate(key(4), MB, "alive") == [], "waits behind it"
    assert core.abort_client("dead") == [Grant(key(4), 2 * MB, MB)]
    core.spilled(key(0))
    core.spilled(key(1))


def test_small_allocations_do_not_overtake_a_large_one(store: Store) -> None:
    core = store.make(4 * MB)
    fill(core, range(3))
    assert names(core.allocate(key(8), 3 * MB, "writer")) == ["Spill", "Spill"]
    assert core.allocate(key(9), MB, "writer") == []
    core.spilled(key(1))
    assert core.spilled(key(2)) == [Grant(key(8), MB, 3 * MB), Spill(key(0), 0, MB)]
    assert core.spilled(key(0)) == [Grant(key(9), 0, MB)]


def test_spilling_begins_before_the_arena_is_full(store: Store) -> None:
    core = store.make(10 * MB, spill_ahead=0.3)
    fill(core, range(7))
    assert names(core.allocate(key(7), MB, "writer")) == ["Grant", "Spill"]
    core.seal(key(7))
    core.spilled(key(0))
    copy = core.lookup(key(0))
    assert copy is not None
    assert copy.state is CopyState.SEALED, "it stays readable until its room is needed"
    assert core.stats().reclaimable == MB


@pytest.mark.parametrize("capacity", [1, 8, 64])
def test_a_stream_of_objects_passes_through_an_arena_of_any_size(
    store: Store, capacity: int
) -> None:
    core = store.make(capacity * MB, spill_ahead=0.2)
    spills = count()
    for number in range(3 * capacity):
        pending = core.allocate(key(number), MB, "writer")
        while pending:
            effect = pending.pop(0)
            if isinstance(effect, Spill):
                next(spills)
                pending += core.spilled(effect.key)
            else:
                assert isinstance(effect, Grant)
                pending += core.seal(effect.key)
    stats = core.stats()
    assert stats.objects == 3 * capacity
    assert next(spills) * MB == stats.spill_used
    assert stats.spill_used >= 2 * capacity * MB
    assert stats.used <= stats.capacity
