"""Pinned views: released exactly once, when the last thing that reaches the bytes has died."""

from __future__ import annotations

import gc
import pickle
import threading
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from regrow.objectstore.arena import Arena
from regrow.objectstore.pins import pinned_view
from regrow.objectstore.serialization import deserialize, serialize


@dataclass
class Pinned:
    """An arena that holds bytes 0, 1, 2, ..., and what has been released."""

    arena: Arena
    released: deque[str] = field(default_factory=deque)

    def view(self, size: int = 1024) -> memoryview:
        return pinned_view(self.arena, 0, size, lambda: self.released.append("x"))

    def store(self, value: object) -> Any:
        """The value, read back from the arena through a pin."""
        layout = serialize(value).layout
        layout.write_into(self.arena.view(0, layout.size))
        return deserialize(self.view(layout.size))

    def assert_released_with(self, keep: list[Any]) -> None:
        gc.collect()
        assert list(self.released) == [], "released while something reaches the bytes"
        keep.clear()
        gc.collect()
        assert list(self.released) == ["x"], "not released exactly once"


@pytest.fixture
def pinned() -> Iterator[Pinned]:
    with Arena.create(1 << 20) as arena:
        arena.view(0, 1024)[:] = bytes(range(256)) * 4
        yield Pinned(arena)


def test_a_dropped_view_is_released_at_once(pinned: Pinned) -> None:
    view = pinned.view()
    assert bytes(view[:4]) == b"\0\1\2\3"
    assert (view.readonly, view.format, view.nbytes) == (True, "B", 1024)
    del view
    assert list(pinned.released) == ["x"]


@pytest.mark.parametrize(
    "derive",
    [
        lambda view: view[10:20][2:4],
        lambda view: view[8:].cast("d")[1:3],
        lambda view: memoryview(view).toreadonly(),
        lambda view: np.frombuffer(view, "f8"),
        lambda view: np.frombuffer(view, "f8").reshape(-1, 4)[::2, 1:].T,
        lambda view: np.asarray(view).view("i4")[5:],
        lambda view: np.frombuffer(view, "f8").data[3:],
        lambda view: pa.py_buffer(view).slice(3),
        lambda view: pa.Array.from_buffers(pa.float64(), 64, [None, pa.py_buffer(view)]).slice(2),
        lambda view: pa.Array.from_buffers(pa.float64(), 64, [None, pa.py_buffer(view)]).to_numpy(),
        lambda view: pickle.PickleBuffer(view),
    ],
)
def test_whatever_is_made_of_a_view_keeps_it(
    pinned: Pinned, derive: Callable[[memoryview], Any]
) -> None:
    pinned.assert_released_with([derive(pinned.view())])


def test_a_pinned_view_outlives_a_closed_arena(pinned: Pinned) -> None:
    view = pinned.view()
    array = np.frombuffer(view, "u1")
    del view
    pinned.arena.close()
    assert bytes(array[:4]) == b"\0\1\2\3"
    del array
    assert list(pinned.released) == ["x"]


def test_the_last_of_several_views_releases(pinned: Pinned) -> None:
    view = pinned.view()
    arrays = [np.frombuffer(view[start:], "u1") for start in range(5)]
    del view
    while len(arrays) > 1:
        arrays.pop()
    pinned.assert_released_with(arrays)


def test_an_array_in_the_arena_is_read_only_and_stays_so(pinned: Pinned) -> None:
    array = np.frombuffer(pinned.view(), "u1")
    assert not array.flags.writeable
    with pytest.raises(ValueError, match="WRITEABLE"):
        array.flags.writeable = True
    with pytest.raises(ValueError, match="read-only"):
        array[0] = 1


def test_an_unpickled_array_is_the_store_s_memory_read_only(pinned: Pinned) -> None:
    value = {"weights": np.arange(1000.0), "bias": np.ones((3, 2), order="F")}
    read = pinned.store(value)
    assert np.array_equal(read["weights"], value["weights"])
    memory = np.frombuffer(pinned.arena.view(0, pinned.arena.capacity), "u1")
    for array in read.values():
        assert np.shares_memory(array, memory)
        assert not array.flags.writeable
    keep = [read.pop("weights")[10:20]]
    del read, array, value
    pinned.assert_released_with(keep)


def test_an_unpickled_table_is_the_store_s_memory(pinned: Pinned) -> None:
    table = pinned.store(pa.table({"x": np.arange(1000), "y": np.arange(1000) * 0.5}))
    assert table["x"][7].as_py() == 7
    start = np.frombuffer(pinned.arena.view(0, 1), "u1").ctypes.data
    buffer = table["y"].chunk(0).buffers()[1]
    assert start < buffer.address < start + pinned.arena.capacity
    keep = [table["y"].slice(3).chunk(0)]
    del table, buffer
    pinned.assert_released_with(keep)


def test_a_value_without_buffers_releases_at_once(pinned: Pinned) -> None:
    assert pinned.store({"a": [1, 2, "three"]}) == {"a": [1, 2, "three"]}
    assert list(pinned.released) == ["x"]


def test_a_cycle_is_released_by_the_collector(pinned: Pinned) -> None:
    cycle: list[Any] = [np.frombuffer(pinned.view(), "u1")]
    cycle.append(cycle)
    del cycle
    gc.collect()
    assert list(pinned.released) == ["x"]


def test_a_view_dropped_on_another_thread_is_released_once(pinned: Pinned) -> None:
    box = [np.frombuffer(pinned.view(), "u1")]
    thread = threading.Thread(target=box.clear)
    thread.start()
    thread.join()
    assert list(pinned.released) == ["x"]


def test_pins_of_one_object_are_separate(pinned: Pinned) -> None:
    first, second = pinned.view(), pinned.view()
    del first
    assert len(pinned.released) == 1
    del second
    assert len(pinned.released) == 2


def test_a_pin_that_fails_is_released_too(pinned: Pinned) -> None:
    with pytest.raises(ValueError, match="not inside"):
        pinned.view(1 << 21)
    gc.collect()
    assert list(pinned.released) == ["x"]


def test_an_empty_object_can_be_pinned(pinned: Pinned) -> None:
    pinned.assert_released_with([pinned.view(0)])
