"""The allocator: best fit among warm pages, then pages never touched."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from regrow.objectstore.extents import GRANULE, Extents, rounded


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.booleans(), st.integers(1, 1000), st.integers(0, 10**6)), max_size=80),
    st.sampled_from([GRANULE, 4096, 100_000]),
)
def test_extents_never_overlap_and_free_ones_are_merged(
    steps: list[tuple[bool, int, int]], capacity: int
) -> None:
    extents = Extents(capacity)
    used: list[tuple[int, int]] = []
    for is_allocation, size, choice in steps:
        if is_allocation:
            size = rounded(size)
            start = extents.allocate(size)
            if start is None:
                holes = extents.warm()
                tail = extents.free_run_at(extents.high_water) + extents.free_run_before(
                    extents.high_water
                )
                assert all(hole < size for _, hole in holes)
                assert tail < size
            else:
                used.append((start, size))
        elif used:
            extents.free(*used.pop(choice % len(used)))
        extents.check(sorted(used))
    for start, size in used:
        extents.free(start, size)
    extents.check([])
    assert extents.free_bytes == extents.capacity
    assert extents.allocate(extents.capacity) == 0


def test_warm_pages_are_reused_before_new_ones_are_touched() -> None:
    extents = Extents(100 * GRANULE)
    first = extents.allocate(10 * GRANULE)
    second = extents.allocate(GRANULE)
    assert (first, second) == (0, 10 * GRANULE)
    extents.free(0, 10 * GRANULE)
    for _ in range(10):
        start = extents.allocate(GRANULE)
        assert start is not None
        assert start < 10 * GRANULE
    assert extents.high_water == 11 * GRANULE


def test_the_best_fitting_hole_is_taken() -> None:
    extents = Extents(100 * GRANULE)
    big, _, small, _ = (extents.allocate(n * GRANULE) for n in (8, 1, 3, 1))
    assert big is not None
    assert small is not None
    extents.free(big, 8 * GRANULE)
    extents.free(small, 3 * GRANULE)
    assert extents.allocate(3 * GRANULE) == small


def test_a_warm_tail_is_extended_rather_than_left_behind() -> None:
    extents = Extents(100 * GRANULE)
    start = extents.allocate(4 * GRANULE)
    assert start == 0
    extents.free(0, 4 * GRANULE)
    assert extents.allocate(6 * GRANULE) == 0
    assert extents.high_water == 6 * GRANULE


@settings(deadline=None)
@given(st.integers(0, 10_000))
def test_rounding_gives_whole_granules(size: int) -> None:
    assert rounded(size) % GRANULE == 0
    assert max(size, 1) <= rounded(size) < max(size, 1) + GRANULE
