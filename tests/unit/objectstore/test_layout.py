"""The serialized form of an object."""

from __future__ import annotations

import struct
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from regrow.objectstore import layout
from regrow.objectstore.errors import ObjectCorruptedError

parts = st.tuples(st.binary(max_size=300), st.lists(st.binary(max_size=300), max_size=6))


def packed(pickled: bytes, buffers: list[bytes]) -> layout.Layout:
    return layout.pack(pickled, [memoryview(buffer) for buffer in buffers])


@settings(deadline=None)
@given(parts)
def test_unpack_returns_what_was_packed(parts: tuple[bytes, list[bytes]]) -> None:
    pickled, buffers = parts
    run = packed(pickled, buffers).to_bytes()
    assert len(run) == packed(pickled, buffers).size
    view, views = layout.unpack(run)
    assert bytes(view) == pickled
    assert [bytes(view) for view in views] == buffers


@settings(deadline=None)
@given(parts, st.integers(0, 255))
def test_bytes_and_digest_do_not_depend_on_what_lay_in_memory(
    parts: tuple[bytes, list[bytes]], dirt: int
) -> None:
    packed_parts = packed(*parts)
    memory = bytearray([dirt]) * (packed_parts.size + 5)
    digest = packed_parts.write_into(memoryview(memory))
    run = packed_parts.to_bytes()
    assert memory[: packed_parts.size] == run
    assert memory[packed_parts.size :] == bytes([dirt]) * 5, "wrote past its end"
    assert digest == layout.digest(run)
    assert len(digest) == layout.DIGEST_SIZE


@settings(deadline=None)
@given(parts)
def test_buffers_are_aligned_and_not_copied(parts: tuple[bytes, list[bytes]]) -> None:
    memory = np.zeros(8192 + 64, np.uint8)
    start = -memory.ctypes.data % layout.ALIGNMENT
    packed_parts = packed(*parts)
    view = memory.data[start : start + packed_parts.size]
    packed_parts.write_into(view)
    for buffer in layout.unpack(view)[1]:
        if len(buffer):
            array = np.frombuffer(buffer, np.uint8)
            assert array.ctypes.data % layout.ALIGNMENT == 0
            assert np.shares_memory(array, memory)


@settings(deadline=None)
@given(parts, st.data())
def test_damaged_lengths_are_told_and_never_read_past_the_end(
    parts: tuple[bytes, list[bytes]], data: st.DataObject
) -> None:
    run = packed(*parts).to_bytes()
    header = 16 + 8 * len(parts[1])
    position = data.draw(st.integers(0, header - 1))
    flip = data.draw(st.integers(1, 255))
    damaged = bytearray(run)
    damaged[position] ^= flip
    try:
        view, views = layout.unpack(bytes(damaged))
    except ObjectCorruptedError:
        return
    # Lengths may shift bytes between parts without changing the sum; the digest tells then.
    assert len(view) + sum(map(len, views)) <= len(run)
    assert layout.digest(damaged) != layout.digest(run)


@settings(deadline=None)
@given(parts, st.data())
def test_a_truncated_or_extended_run_is_told(
    parts: tuple[bytes, list[bytes]], data: st.DataObject
) -> None:
    run = packed(*parts).to_bytes()
    cut = data.draw(st.integers(0, len(run) - 1))
    for wrong in (run[:cut], run + b"x"):
        with pytest.raises(ObjectCorruptedError):
            layout.unpack(wrong)


@settings(deadline=None)
@given(st.binary(max_size=200))
def test_arbitrary_bytes_never_raise_anything_else(noise: bytes) -> None:
    for run in (noise, layout.MAGIC + noise):
        try:
            layout.unpack(run)
        except ObjectCorruptedError:
            continue


def test_a_claim_of_four_billion_buffers_allocates_nothing() -> None:
    with pytest.raises(ObjectCorruptedError):
        layout.unpack(struct.pack("<4sIQ", layout.MAGIC, 2**32 - 1, 0) + bytes(100))


@settings(max_examples=10, deadline=None)
@given(st.integers(-2, 2), st.integers(1, 3))
def test_the_blocks_of_the_copy_join_without_a_seam(extra: int, blocks: int) -> None:
    size = blocks * layout._BLOCK + extra
    source = np.arange(size, dtype=np.uint32).view(np.uint8)[:size]
    packed_array = layout.pack(b"pickle", [source.data])
    memory = np.full(packed_array.size, 255, np.uint8)
    digest = packed_array.write_into(memory.data)
    assert digest == layout.digest(memory.data)
    assert np.array_equal(np.frombuffer(layout.unpack(memory.data)[1][0], np.uint8), source)


def test_a_destination_too_small_is_a_programming_error() -> None:
    with pytest.raises(AssertionError, match="too small"):
        packed(b"abc", []).write_into(memoryview(bytearray(3)))


@pytest.mark.parametrize("extra", [-1, 0, 1, 4093])
@pytest.mark.parametrize("threads", [True, False])
def test_large_buffers_are_copied_and_digested_whole(
    extra: int, threads: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_thread(*_: object) -> None:
        raise RuntimeError("cannot schedule new futures after interpreter shutdown")

    if not threads:
        monkeypatch.setattr(ThreadPoolExecutor, "submit", no_thread)
    size = 16 * 1024 * 1024 + extra
    array = np.random.default_rng(extra + 1).integers(0, 256, size, np.uint8)
    packed_parts = layout.pack(b"pickle", [array.data, memoryview(b"small"), array.data])
    memory = bytearray(packed_parts.size)
    digest = packed_parts.write_into(memoryview(memory))
    assert digest == layout.digest(memory)
    _, views = layout.unpack(memory)
    assert [view == array.data for view in views] == [True, False, True]
    assert bytes(views[1]) == b"small"
