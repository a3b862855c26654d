"""Which objects make room for an allocation: a pure choice over the arena's map.

An allocation needs one contiguous run, so victims must lie side by side. First objects are taken
in the order given (the caller's order of cost and age) until some of them and the free extents
between them form a long enough run. Where that takes far more than the size asked for (a large
allocation among many small objects), the whole map is searched for the run that is cheapest to
spill instead.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from regrow.objectstore.copies import CopyState, ObjectCopy
from regrow.objectstore.extents import Extents, rounded

# How much the first search may take before the second: this many times the size asked for, and
# a part of the arena at least, since the second looks at every object (50 ms at 50 000).
_LIMIT_FACTOR = 2
_LIMIT_FRACTION = 16


def needs_spill(copy: ObjectCopy) -> bool:
    """Whether a spill has to be begun before the object's memory can be reused."""
    return not (copy.spilled or copy.droppable or copy.state is CopyState.SPILLING)


def spill_cost(copy: ObjectCopy) -> int:
    """Bytes of storage that evicting the object would take. An empty object takes none."""
    return copy.size if needs_spill(copy) else 0


def choose_victims(
    size: int,
    extents: Extents,
    by_offset: Mapping[int, ObjectCopy],
    order: Iterable[ObjectCopy],
    reclaimable: Callable[[ObjectCopy], bool],
    spill_room: int,
) -> list[ObjectCopy] | None:
    """Objects, ascending by offset, without which a run of ``size`` bytes is free.

    ``order`` gives the reclaimable objects, best victim first. The victims' ``spill_cost`` sums to
    ``spill_room`` at most. None: no such run, because of what is not reclaimable or of that limit.
    """
    limit = max(_LIMIT_FACTOR * size, extents.capacity // _LIMIT_FRACTION)
    run = _first_run(size, extents, order, spill_room, limit)
    if run is None:
        run = _cheapest_run(size, extents, by_offset, reclaimable, spill_room)
    if run is None:
        return None
    victims = _objects_between(*run, extents, by_offset)
    return _without_needless(victims, *run, size)


def _without_needless(
    victims: list[ObjectCopy], start: int, end: int, size: int
) -> list[ObjectCopy]:
    """Spare objects at both ends of a run that is longer than ``size``."""
    first, last = 0, len(victims)
    while end - _end(victims[first]) >= size:
        start = _end(victims[first])
        first += 1
    while _start(victims[last - 1]) - start >= size:
        last -= 1
    return victims[first:last]


def _first_run(
    size: int, extents: Extents, order: Iterable[ObjectCopy], spill_room: int, limit: int
) -> tuple[int, int] | None:
    start_of: dict[int, int] = {}  # end of a run of victims and free extents -> its start
    end_of: dict[int, int] = {}
    taken = 0
    for copy in order:
        cost = spill_cost(copy)
        if cost > spill_room:
            continue
        spill_room -= cost
        start, end = _start(copy), _end(copy)
        taken += end - start
        while True:  # join the neighbours; each run is joined once, so this is O(1) a victim
            if end in end_of:
                joined = end_of.pop(end)
                del start_of[joined]
                end = joined
            elif free := extents.free_run_at(end):
                end += free
            else:
                break
        while True:
            if start in start_of:
                joined = start_of.pop(start)
                del end_of[joined]
                start = joined
            elif free := extents.free_run_before(start):
                start -= free
            else:
                break
        if end - start >= size:
            return start, end
        if taken > limit:
            return None
        start_of[end] = start
        end_of[start] = end
    return None


def _cheapest_run(
    size: int,
    extents: Extents,
    by_offset: Mapping[int, ObjectCopy],
    reclaimable: Callable[[ObjectCopy], bool],
    spill_room: int,
) -> tuple[int, int] | None:
    best: tuple[int, int] | None = None
    best_cost = spill_room + 1
    # A window over the used extents, [first, next); it also covers the free space around them.
    used = sorted(by_offset.items())
    low = 0  # end of the last extent before the window
    cost = 0
    first = 0
    for index, (_, copy) in enumerate(used):
        if not reclaimable(copy):
            low, cost, first = _end(copy), 0, index + 1
            continue
        cost += spill_cost(copy)
        high = used[index + 1][0] if index + 1 < len(used) else extents.capacity
        while first <= index:
            left = used[first][1]
            if high - _end(left) < size:
                break
            low, cost, first = _end(left), cost - spill_cost(left), first + 1
        if high - low >= size and cost < best_cost:
            best, best_cost = (low, high), cost
    return best


def _objects_between(
    start: int, end: int, extents: Extents, by_offset: Mapping[int, ObjectCopy]
) -> list[ObjectCopy]:
    objects = []
    while start < end:
        copy = by_offset.get(start)
        if copy is None:
            free = extents.free_run_at(start)
            assert free, f"neither used nor free at {start}"
            start += free
        else:
            objects.append(copy)
            start = _end(copy)
    return objects


def _start(copy: ObjectCopy) -> int:
    assert copy.offset is not None
    return copy.offset


def _end(copy: ObjectCopy) -> int:
    return _start(copy) + rounded(copy.size)
