"""Values to bytes and back, the references inside, and errors that name the culprit."""

from __future__ import annotations

import pickle
import subprocess
import sys
import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from regrow.objectstore import pickling, serialization
from regrow.objectstore.errors import ObjectCorruptedError, SerializationError
from regrow.objectstore.serialization import collecting_refs, deserialize, note_ref, serialize

scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text()
    | st.binary()
    | st.complex_numbers(allow_nan=False)
)
values = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner)
        | st.tuples(inner, inner)
        | st.dictionaries(st.text(), inner)
        | st.sets(st.integers() | st.text())
    ),
    max_leaves=20,
)


def round_trip(value: object) -> Any:
    return deserialize(serialize(value).layout.to_bytes())


class Ref:
    """A reference as the client has one."""

    def __init__(self, object_id: bytes) -> None:
        self.object_id = object_id

    def __reduce__(self) -> tuple[type[Ref], tuple[bytes]]:
        note_ref(self.object_id)
        return Ref, (self.object_id,)


@dataclass
class Point:
    x: Any
    y: Any = 0


@settings(deadline=None)
@given(values)
def test_a_value_comes_back_equal_and_of_its_type(value: object) -> None:
    read = round_trip(value)
    assert read == value
    assert type(read) is type(value)


@pytest.fixture
def plain_only(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **kwargs: object) -> bytes:
        raise AssertionError("not on the fast path")

    monkeypatch.setattr(pickling, "dumps", refuse)


@pytest.mark.usefixtures("plain_only")
@pytest.mark.parametrize(
    "value",
    [
        None, 1, 2.5, "text", b"bytes", b"x" * 100_000, 1j,
        (1, "a"), [1, 2], {"a": 1}, {1, 2}, frozenset({3}), (), {},
        np.arange(3), [np.ones(2), 1], {"w": np.zeros((2, 2))},
        [[1], {"a": (np.ones(1),)}], {(1,): 2},
    ],
)  # fmt: skip
def test_plain_values_do_not_need_cloudpickle(value: object) -> None:
    read = round_trip(value)
    assert type(read) is type(value)
    assert str(read) == str(value)


@pytest.mark.usefixtures("plain_only")
def test_references_do_not_need_cloudpickle() -> None:
    found = serialize([Ref(b"1"), 2], ref_types=frozenset({Ref})).contained_refs
    assert found == [b"1"]


@pytest.mark.parametrize(
    "value",
    [
        lambda: 1,
        Point(1),
        [[[[[[1]]]]]],
        {"a": [(lambda: 1,)]},
        OrderedDict(a=1),
        np.array([lambda: 1]),
        (Ref(b"1"),),
        {(len,): 2},
    ],
)
def test_values_that_may_hold_code_go_through_cloudpickle(
    value: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []
    dumps = pickling.dumps

    def count(*args: Any, **kwargs: Any) -> bytes:
        calls.append(args)
        return dumps(*args, **kwargs)

    monkeypatch.setattr(pickling, "dumps", count)
    serialize(value)
    assert len(calls) == 1


def test_functions_and_classes_of_main_are_read_in_a_process_without_them(tmp_path: Any) -> None:
    program = (
        "import sys\n"
        "from regrow.objectstore.serialization import serialize\n"
        "class Local:\n    def f(self): return 'by value'\n"
        "sys.stdout.buffer.write(serialize((Local(), lambda: 7)).layout.to_bytes())\n"
    )
    written = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, timeout=60, check=True
    ).stdout
    instance, function = deserialize(written)
    assert (instance.f(), function()) == ("by value", 7)


@pytest.mark.parametrize("size", [0, 10, 65_535, 65_536, 1_000_000])
def test_bytes_of_any_size_come_back_as_bytes(size: int) -> None:
    value = bytes(range(256)) * (size // 256 + 1)
    assert round_trip(value[:size]) == value[:size]
    assert type(round_trip(value[:size])) is bytes


def test_large_contents_are_not_copied_into_the_pickle() -> None:
    for value in (np.zeros(100_000), b"x" * 800_000, pa.table({"x": np.zeros(100_000)})):
        layout = serialize(value).layout
        assert len(layout.pickled) < 2000
        assert sum(map(len, layout.buffers)) >= 800_000


@pytest.mark.parametrize(
    "array",
    [
        np.arange(10), np.zeros((3, 4), order="F"), np.arange(20)[::3], np.array(5.0),
        np.zeros((0, 3)), np.array(["a", "bc"]), np.array([(1, 2.0)], dtype="i4,f8"),
        np.array([1, None]), np.arange(3, dtype=">i4"), np.array("2026-01-01", "M8[D]"),
        np.ma.masked_array([1, 2], [True, False]),
    ],
)  # fmt: skip
def test_arrays_of_every_kind_come_back(array: Any) -> None:
    read = round_trip(array)
    assert type(read) is type(array)
    assert (read.dtype, read.shape) == (array.dtype, array.shape)
    assert np.array_equal(read, array)


def test_small_arrays_are_as_read_only_as_large_ones() -> None:
    for size in (1, 100_000):
        assert not round_trip(np.zeros(size)).flags.writeable


def test_equal_values_serialize_to_equal_bytes() -> None:
    for make in (lambda: {"a": (1, 2)}, lambda: np.arange(10), lambda: [1.5, "x"]):
        assert serialize(make()).layout.to_bytes() == serialize(make()).layout.to_bytes()


def test_references_are_collected_once_each_and_in_order() -> None:
    a, b = Ref(b"a"), Ref(b"b")
    found = serialize({"x": [b, a], "y": Point(Ref(b"a"), b)}).contained_refs
    assert found == [b"b", b"a"]
    assert serialize(1).contained_refs == []


def test_a_nested_serialization_keeps_its_references_to_itself() -> None:
    inner: list[list[bytes]] = []

    class Nested:
        def __reduce__(self) -> tuple[type[int], tuple[int]]:
            inner.append(serialize(Ref(b"inner")).contained_refs)
            return int, (1,)

    assert serialize([Ref(b"outer"), Nested()]).contained_refs == [b"outer"]
    assert inner == [[b"inner"]]


def test_a_failed_serialization_leaves_no_collector_behind() -> None:
    with pytest.raises(SerializationError):
        serialize([Ref(b"1"), threading.Lock()])
    assert note_ref(b"1") is False


def test_a_reference_pickled_by_the_user_is_noticed_by_nobody() -> None:
    assert note_ref(b"1") is False
    with collecting_refs() as refs:
        pickle.dumps(Ref(b"1"))
    assert refs.ids == [b"1"]


def test_collectors_of_threads_are_separate() -> None:
    with collecting_refs() as refs:
        answers: list[bool] = []
        thread = threading.Thread(target=lambda: answers.append(note_ref(b"1")))
        thread.start()
        thread.join()
    assert (refs.ids, answers) == ([], [False])


def with_lock(lock: Any) -> Callable[[], None]:
    def task() -> None:
        lock.acquire()

    return task


class Slotted:
    __slots__ = ("lock",)

    def __init__(self) -> None:
        self.lock = threading.Lock()


class Broken:
    def __reduce__(self) -> str:
        raise ZeroDivisionError("my own bug")


@pytest.mark.parametrize(
    ("value", "where"),
    [
        (threading.Lock(), "the value: an instance of _thread.lock"),
        ([1, {"a": threading.Lock()}], "value[1]['a']"),
        (Point(1, Point(threading.Lock())), "value.y.x"),
        ({"f": with_lock(threading.Lock())}, "value['f'].<captured lock>"),
        (Slotted(), "value.lock"),
        ((i for i in range(3)), "generator"),
        (Point(Broken()), "value.x, an instance of"),
        (Point(Broken()), "ZeroDivisionError: my own bug"),
    ],
)
def test_an_unpicklable_value_is_told_by_its_part(value: object, where: str) -> None:
    with pytest.raises(SerializationError) as caught:
        serialize(value)
    assert where in str(caught.value)
    assert isinstance(caught.value, TypeError)
    assert caught.value.__cause__ is not None


def test_endless_nesting_is_a_serialization_error() -> None:
    nested: list[Any] = []
    for _ in range(200_000):
        nested = [nested]
    with pytest.raises(SerializationError, match="nested"):
        serialize(nested)
    while nested:  # its destructor would recurse as deeply
        nested = nested.pop()


def test_a_damaged_object_is_told() -> None:
    run = serialize([1, 2, 3]).layout.to_bytes()
    with pytest.raises(ObjectCorruptedError):
        deserialize(run[:-1])


def test_importing_the_module_loads_neither_numpy_nor_pyarrow() -> None:
    """A fork server must stay single-threaded, and a worker's start must stay short."""
    program = (
        "import sys\n"
        "from regrow.objectstore import arena, pins, serialization, core, spill, transfer\n"
        "assert serialization.deserialize(serialization.serialize([1]).layout.to_bytes()) == [1]\n"
        "print({'numpy', 'pyarrow', 'grpc', 'sqlalchemy'} & set(sys.modules))\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True
    )
    assert run.stdout == "set()\n"


def test_the_out_of_band_limit_is_what_the_tests_above_straddle() -> None:
    assert serialization._LARGE_BYTES == 65_536
