"""The allocator under ``core``: which bytes of the arena are free.

Best fit among *warm* extents (freed before, so their pages exist: writing there runs at memcpy
speed), and only then pages never touched, which lie above the high-water mark. Knows offsets and
sizes, not objects. Adjacent free extents are always merged.
"""

from __future__ import annotations

from bisect import bisect_left, insort

GRANULE = 64

_OFFSET_BITS = 44  # 16 TiB
_OFFSET_MASK = (1 << _OFFSET_BITS) - 1


def rounded(size: int) -> int:
    """Bytes that an object of ``size`` bytes takes: whole granules, at least one."""
    return (size + GRANULE - 1) // GRANULE * GRANULE or GRANULE


class Extents:
    """Free and used parts of ``[0, capacity)``. Sizes and offsets are multiples of GRANULE."""

    def __init__(self, capacity: int) -> None:
        assert 0 < capacity <= _OFFSET_MASK
        self.capacity = capacity - capacity % GRANULE
        #: Everything from here on has never been allocated.
        self.high_water = 0
        self.free_bytes = self.capacity
        self._size_at: dict[int, int] = {}  # start of a warm free extent -> its size
        self._start_before: dict[int, int] = {}  # end of a warm free extent -> its start
        # size << _OFFSET_BITS | start, ascending: plain ints compare faster than pairs.
        self._by_size: list[int] = []

    def allocate(self, size: int) -> int | None:
        """Take ``size`` bytes; their offset, or None if no free run is that long.

        Hot path: 1 us, and the insertion grows with the number of holes (10 us at 50 000).
        """
        index = bisect_left(self._by_size, size << _OFFSET_BITS)
        if index < len(self._by_size):
            entry = self._by_size.pop(index)
            start = entry & _OFFSET_MASK
            found = entry >> _OFFSET_BITS
            del self._size_at[start], self._start_before[start + found]
            if found > size:
                self._insert(start + size, found - size)
        else:
            tail = self._start_before.get(self.high_water)
            start = self.high_water if tail is None else tail
            if start + size > self.capacity:
                return None
            if tail is not None:
                self._remove(tail, self.high_water - tail)
            self.high_water = start + size
        self.free_bytes -= size
        return start

    def free(self, start: int, size: int) -> None:
        """Give back an extent that ``allocate`` returned."""
        assert start + size <= self.high_water, "not an allocated extent"
        self.free_bytes += size
        before = self._start_before.get(start)
        after = self._size_at.get(start + size)
        if after is not None:
            self._remove(start + size, after)
            size += after
        if before is not None:
            self._remove(before, start - before)
            size += start - before
            start = before
        self._insert(start, size)

    def free_run_at(self, start: int) -> int:
        """Length of the free run that begins at ``start``, warm or not; 0 if none does."""
        if start == self.high_water:
            return self.capacity - start
        size = self._size_at.get(start, 0)
        if size and start + size == self.high_water:
            size = self.capacity - start
        return size

    def free_run_before(self, end: int) -> int:
        """Length of the warm free extent that ends at ``end``; 0 if none does."""
        start = self._start_before.get(end)
        return 0 if start is None else end - start

    def warm(self) -> list[tuple[int, int]]:
        """The (start, size) of every warm free extent, ascending."""
        return sorted(self._size_at.items())

    def _insert(self, start: int, size: int) -> None:
        self._size_at[start] = size
        self._start_before[start + size] = start
        insort(self._by_size, size << _OFFSET_BITS | start)

    def _remove(self, start: int, size: int) -> None:
        del self._size_at[start], self._start_before[start + size]
        del self._by_size[bisect_left(self._by_size, size << _OFFSET_BITS | start)]

    def check(self, used: list[tuple[int, int]]) -> None:
        """Assert the invariants, given the (start, size) of every used extent, ascending."""
        warm = self.warm()
        position = 0
        last_was_free = False
        for start, size, is_free in sorted(
            [(start, size, False) for start, size in used]
            + [(start, size, True) for start, size in warm]
        ):
            assert start == position, f"gap or overlap at {position}: next extent at {start}"
            assert size > 0
            assert size % GRANULE == 0, f"odd size {size} at {start}"
            assert not is_free or not last_was_free, f"free extents not merged at {start}"
            position += size
            last_was_free = is_free
        assert position == self.high_water <= self.capacity
        assert self.free_bytes == self.capacity - sum(size for _, size in used)
        assert self._by_size == sorted(size << _OFFSET_BITS | start for start, size in warm)
        assert self._start_before == {start + size: start for start, size in warm}
