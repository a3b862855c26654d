"""Arguments and functions as bytes: what comes back, and what identifies a call."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from regrow._arguments import NO_ARGUMENTS, pack_arguments, unpack_arguments
from regrow._fingerprints import fingerprint
from regrow._functions import define, identity, load
from regrow._refs import ObjectRef, RefTable
from regrow.config import ARGUMENT_MAX
from regrow.objectstore.serialization import SerializedObject

scalars = (
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary()
)
values = st.recursive(
    scalars, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=10
)


def no_put(serialized: SerializedObject) -> ObjectRef[Any]:
    raise AssertionError(f"nothing is to be put, least of all {serialized.layout.size} bytes")


@given(st.lists(values, max_size=5), st.dictionaries(st.text(), values, max_size=4))
def test_arguments_come_back_as_they_were(args: list[Any], kwargs: dict[str, Any]) -> None:
    kwargs = {key.replace("\0", "_"): value for key, value in kwargs.items()}
    packed = pack_arguments(args, kwargs, no_put, "f")
    assert (packed.deps, packed.nested) == ([], [])
    assert unpack_arguments(packed.data, ()) == (args, kwargs)


def test_no_arguments_cost_nothing() -> None:
    assert pack_arguments((), {}, no_put, "f") is NO_ARGUMENTS
    assert unpack_arguments(NO_ARGUMENTS.data, ()) == ([], {})


def test_references_are_replaced_by_values_where_they_stood() -> None:
    table = RefTable(lambda: None)
    a, b, c = (table.fresh(bytes([i]) * 20) for i in range(3))
    packed = pack_arguments((1, a, b, a), {"x": b, "y": [c]}, no_put, "f")
    assert packed.deps == [a.binary(), b.binary()]
    assert packed.nested == [c.binary()]
    # Only a connected process can make references of ids, so the nested one is taken out here.
    packed = pack_arguments((1, a, b, a), {"x": b}, no_put, "f")
    assert unpack_arguments(packed.data, ["A", "B"]) == ([1, "A", "B", "A"], {"x": "B"})


def test_only_large_values_are_put() -> None:
    table = RefTable(lambda: None)
    sizes: list[int] = []

    def put(serialized: SerializedObject) -> ObjectRef[Any]:
        sizes.append(serialized.layout.size)
        return table.fresh(bytes([len(sizes)]) * 20)

    packed = pack_arguments((1, np.zeros(100_000), "x" * 50_000), {"big": "y" * 200_000}, put, "f")
    assert len(sizes) == 2
    assert min(sizes) > ARGUMENT_MAX
    args, kwargs = unpack_arguments(packed.data, ["zeros", "ys"])
    assert (args, kwargs) == ([1, "zeros", "x" * 50_000], {"big": "ys"})


def test_what_cannot_be_pickled_is_named() -> None:
    with pytest.raises(TypeError, match=r"argument 1 of train cannot be sent.*value\['in'\].*lock"):
        pack_arguments((0, {"in": threading.Lock()}), {}, no_put, "train")
    with pytest.raises(TypeError, match="argument 'key' of train"):
        pack_arguments((0,), {"key": threading.Lock()}, no_put, "train")


def maker(captured: Any) -> Callable[[], Any]:
    def made() -> Any:
        return captured

    return made


def test_calls_are_told_apart_by_captured_values_not_by_pickles() -> None:
    one, same, other = maker(1), maker(1), maker(2)
    assert identity(one, define(one)) == identity(same, define(same))
    assert identity(one, define(one)) != identity(other, define(other))
    lists = maker([1]), maker([2])
    assert len({identity(f, define(f)) for f in lists}) == 2


def test_a_fingerprint_is_that_of_the_code_only() -> None:
    before: dict[str, Any] = {}
    after: dict[str, Any] = {}
    moved: dict[str, Any] = {}
    exec(compile("def f(x):\n    return x + 1\n", "a.py", "exec"), before)
    exec(compile("# a comment\n\ndef f(x):\n    return x + 1\n", "b.py", "exec"), moved)
    exec(compile("def f(x):\n    return x + 2\n", "a.py", "exec"), after)
    assert fingerprint(before["f"]) == fingerprint(moved["f"])
    assert fingerprint(before["f"]) != fingerprint(after["f"])


def test_a_class_is_fingerprinted_by_its_methods() -> None:
    def cls(body: str) -> Any:
        names: dict[str, Any] = {"__name__": "m"}
        exec(f"class C:\n    def a(self):\n        return {body}\n", names)
        return names["C"]

    assert fingerprint(cls("1")) == fingerprint(cls("1"))
    assert fingerprint(cls("1")) != fingerprint(cls("2"))


def test_functions_load_again_and_say_why_they_cannot_be_sent() -> None:
    assert load(define(maker("x")))() == "x"
    with pytest.raises(TypeError, match=r"made cannot be sent to a worker: .*lock"):
        define(maker(threading.Lock()))


def test_a_fingerprint_tells_modules_apart() -> None:
    def made(module: str) -> Any:
        names: dict[str, Any] = {"__name__": module}
        exec("def f(x):\n    return x + 1\n", names)
        return names["f"]

    assert fingerprint(made("one")) == fingerprint(made("one"))
    assert fingerprint(made("one")) != fingerprint(made("two"))
