"""Wrong arguments are refused where the call is made, and right ones never."""

from __future__ import annotations

import functools
import pickle
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import cloudpickle
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

import regrow
from regrow._driver import Driver
from regrow._signatures import Signature, signature_of
from regrow.exceptions import UnsupportedOptionError
from tests.unit.client.fake_node import FakeNode

Function = Callable[..., None]


def wrapped(function: Function) -> Function:
    """Takes another number of arguments than what it wraps."""

    @functools.wraps(function)
    def wrapper(first: Any, /, *rest: Any) -> None:
        function(*rest)

    return wrapper


FUNCTIONS: list[Function] = [
    lambda: None,
    lambda a: None,
    lambda a, b=1: None,
    lambda a, /, b, c=2: None,
    lambda *args: None,
    lambda a, *args, b: None,
    lambda a, *, b=1: None,
    lambda *, b: None,
    lambda a=1, **others: None,
    lambda *args, **others: None,
    wrapped(lambda a: None),
]


@given(
    st.sampled_from(FUNCTIONS),
    st.lists(st.none(), max_size=4),
    st.dictionaries(st.sampled_from("abcd"), st.none(), max_size=3),
)
def test_what_python_takes_is_taken_and_what_it_refuses_is_refused(
    function: Function, args: list[None], kwargs: dict[str, None]
) -> None:
    signature = signature_of(function)
    try:
        function(*args, **kwargs)
        fits = True
    except TypeError:
        fits = False
    packed = msgspec.msgpack.encode(signature)
    for same in (signature, msgspec.msgpack.decode(packed, type=Signature)):
        complaint = _complaint(same, args, kwargs)
        assert complaint == "" or (not fits and complaint.startswith("f(): "))
        # A wrapper takes what it says; what it wraps is called, and complains, elsewhere.
        assert complaint or fits or function is FUNCTIONS[-1]


def _complaint(signature: Signature, args: list[None], kwargs: dict[str, None]) -> str:
    try:
        signature.check("f", args, kwargs)
    except TypeError as error:
        return str(error)
    return ""


@regrow.remote
def add(a: int, b: int = 0) -> int:
    return a + b


class Shelf:
    def __init__(self, size: int) -> None:
        self.size = size

    def take(self, item: str, *, count: int = 1) -> None: ...

    @staticmethod
    def weigh(item: str) -> None: ...

    @classmethod
    def build(cls, size: int) -> None: ...


def test_a_remote_function_refuses_wrong_arguments_and_submits_nothing(
    node: FakeNode, driver: Driver
) -> None:
    f: Any = add
    for function in (f, f.options(name="other"), pickle.loads(cloudpickle.dumps(f))):
        with pytest.raises(TypeError, match=r"^add\(\): missing a required argument: 'a'"):
            function.remote()
        with pytest.raises(TypeError, match=r"^add\(\): too many positional arguments"):
            function.remote(1, 2, 3)
        with pytest.raises(TypeError, match=r"^add\(\): got an unexpected keyword argument 'c'"):
            function.remote(1, c=2)
    ref = f.remote(b=1, a=2)
    assert [spec.name for spec in node.specs(1)] == ["add"]
    del ref


def test_constructors_and_methods_refuse_wrong_arguments(node: FakeNode, driver: Driver) -> None:
    remote: Any = regrow.remote(Shelf)
    with pytest.raises(TypeError, match=r"^Shelf\(\): missing a required argument: 'size'"):
        remote.remote()
    shelf = remote.remote(1)
    for handle in (shelf, pickle.loads(pickle.dumps(shelf))):
        with pytest.raises(TypeError, match=r"^Shelf\.take\(\): missing .* 'item'"):
            handle.take.remote()
        with pytest.raises(TypeError, match=r"^Shelf\.take\(\): too many"):
            handle.take.options(num_returns=2).remote("a", 2)
        with pytest.raises(TypeError, match=r"^Shelf\.weigh\(\): too many"):
            handle.weigh.remote("a", 2)
        with pytest.raises(TypeError, match=r"^Shelf\.build\(\): missing .* 'size'"):
            handle.build.remote()
    refs = [shelf.take.remote("a", count=2), shelf.weigh.remote("a"), shelf.build.remote(3)]
    names = [spec.name for spec in node.specs(4)]
    assert names == ["Shelf.__init__", "Shelf.take", "Shelf.weigh", "Shelf.build"]
    del refs


def test_a_generator_says_how_many_values_it_has(node: FakeNode, driver: Driver) -> None:
    def letters(count: int) -> Iterator[str]:
        yield from "abc"[:count]

    class Letters:
        def some(self, count: int) -> Iterator[str]:
            yield from "abc"[:count]

        async def later(self) -> AsyncIterator[str]:
            yield "a"

    function = regrow.remote(letters)
    for number in ("dynamic", "streaming"):
        with pytest.raises(UnsupportedOptionError, match="generators"):
            function.options(num_returns=number)  # type: ignore[call-overload]
    handle = regrow.remote(Letters).remote()
    for wrong in (
        function,
        function.options(num_returns=1),
        pickle.loads(cloudpickle.dumps(function.options(name="x"))),
    ):
        with pytest.raises(UnsupportedOptionError, match=r"letters is a generator: .*num_returns"):
            wrong.remote(2)
    with pytest.raises(UnsupportedOptionError, match=r"Letters\.some is a generator"):
        handle.some.remote(2)
    with pytest.raises(UnsupportedOptionError, match=r"Letters\.later is a generator"):
        handle.later.remote()
    refs = function.options(num_returns=3).remote(3)
    refs += handle.some.options(num_returns=2).remote(2)
    assert [spec.num_returns for spec in node.specs(3)] == [1, 3, 2]
    del refs


def test_a_handle_checks_what_its_class_does_not_tell_nowhere(
    node: FakeNode, driver: Driver
) -> None:
    """Functions of extension modules have no signature that Python knows."""
    handle: Any = regrow.remote(dict).remote(a=1)
    refs = [handle.update.remote({"b": 2}), handle.__ray_ready__.remote()]
    assert len(node.specs(3)) == 3
    del refs
