"""The search for a linear order, against written examples and against trying all orders."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from regrow.chaos.checkers.linearizability import Call, check
from regrow.chaos.checkers.models import MODELS, Model

REGISTER, COUNTER, APPEND = MODELS["register"], MODELS["counter"], MODELS["append"]


def call(name: str, argument: Any, result: Any, begin: float, end: float | None) -> Call:
    return Call(name, argument, result, begin, end)


@pytest.mark.parametrize(
    ("model", "calls", "holds"),
    [
        (COUNTER, [], True),
        (COUNTER, [call("increment", 0, 1, 0, 1), call("increment", 0, 2, 2, 3)], True),
        # lost: the second one has not seen the first
        (COUNTER, [call("increment", 0, 1, 0, 1), call("increment", 0, 1, 2, 3)], False),
        # doubled: one took effect twice
        (COUNTER, [call("increment", 0, 1, 0, 1), call("read", 0, 2, 2, 3)], False),
        # one without an answer may have been the other effect
        (
            COUNTER,
            [
                call("increment", 0, None, 0, None),
                call("increment", 0, 1, 0, 1),
                call("read", 0, 2, 2, 3),
            ],
            True,
        ),
        # or may have had none
        (
            COUNTER,
            [
                call("increment", 0, None, 0, None),
                call("increment", 0, 1, 0, 1),
                call("read", 0, 1, 2, 3),
            ],
            True,
        ),
        # but not both
        (
            COUNTER,
            [
                call("increment", 0, None, 0, None),
                call("read", 0, 1, 2, 3),
                call("read", 0, 0, 4, 5),
            ],
            False,
        ),
        # it takes no effect before it begins
        (COUNTER, [call("read", 0, 1, 0, 1), call("increment", 0, None, 2, None)], False),
        # overlapping ones have either order
        (COUNTER, [call("increment", 0, 2, 0, 5), call("increment", 0, 1, 1, 4)], True),
        (COUNTER, [call("increment", 0, 2, 0, 1), call("increment", 0, 1, 2, 3)], False),
        # a stale read
        (
            REGISTER,
            [
                call("write", 1, None, 0, 1),
                call("write", 2, None, 2, 3),
                call("read", 0, 1, 4, 5),
            ],
            False,
        ),
        (REGISTER, [call("write", 1, None, 0, 9), call("read", 0, 0, 1, 2)], True),
        # read the new value, then the old one
        (
            REGISTER,
            [
                call("write", 1, None, 0, 9),
                call("read", 0, 1, 1, 2),
                call("read", 0, 0, 3, 4),
            ],
            False,
        ),
        (REGISTER, [call("swap", [0, 5], True, 0, 1), call("swap", [0, 6], True, 2, 3)], False),
        (REGISTER, [call("swap", [0, 5], True, 0, 1), call("swap", [0, 6], False, 2, 3)], True),
        (APPEND, [call("append", "a", 1, 0, 1), call("read", 0, ["a"], 2, 3)], True),
        (APPEND, [call("append", "a", 1, 0, 1), call("read", 0, [], 2, 3)], False),
        # invented
        (APPEND, [call("append", "a", 1, 0, 1), call("read", 0, ["a", "b"], 2, 3)], False),
        # answered the place of another
        (
            APPEND,
            [
                call("append", "a", 1, 0, 5),
                call("append", "b", 2, 0, 5),
                call("read", 0, ["b", "a"], 6, 7),
            ],
            False,
        ),
    ],
)
def test_histories_by_hand(model: Model, calls: list[Call], holds: bool) -> None:
    assert check(calls, model).holds is holds


def brute_force(calls: Sequence[Call], model: Model) -> bool:
    """All orders of all subsets that have the answered operations."""
    unknown = [one for one in calls if one.ended_s is None]
    answered = [one for one in calls if one.ended_s is not None]
    for count in range(len(unknown) + 1):
        for some in itertools.combinations(unknown, count):
            for order in itertools.permutations([*answered, *some]):
                if _fits_time(order) and _fits(order, model):
                    return True
    return False


def _fits_time(order: Sequence[Call]) -> bool:
    return not any(
        later.ended_s is not None and later.ended_s < earlier.invoked_s
        for i, earlier in enumerate(order)
        for later in order[i + 1 :]
    )


def _fits(order: Sequence[Call], model: Model) -> bool:
    state: Any = model.initial
    for one in order:
        step = model.step(state, one.name, one.argument, one.result, one.ended_s is not None)
        if step is None:
            return False
        [state] = step
    return True


@st.composite
def _calls(draw: st.DrawFn, kinds: Sequence[tuple[str, Any, Any]]) -> list[Call]:
    found = []
    for _ in range(draw(st.integers(0, 4))):
        name, arguments, results = draw(st.sampled_from(kinds))
        begin = draw(st.integers(0, 8))
        end = draw(st.none() | st.integers(begin, begin + 5))
        argument = draw(arguments)
        result = draw(results) if end is not None else None
        found.append(Call(name, argument, result, begin, end))
    return found


small = st.integers(0, 2)
items = st.sampled_from("abc")
COUNTER_KINDS = [("increment", st.just(0), st.integers(1, 3)), ("read", st.just(0), small)]
REGISTER_KINDS = [
    ("write", small, st.none()),
    ("read", st.just(0), small),
    ("swap", st.tuples(small, small), st.booleans()),
]
APPEND_KINDS = [
    ("append", items, st.integers(1, 3)),
    ("read", st.just(0), st.lists(items, max_size=2)),
]


@settings(max_examples=300, deadline=None)
@given(_calls(COUNTER_KINDS))
def test_counters_as_by_trying_all_orders(calls: list[Call]) -> None:
    assert check(calls, COUNTER).holds is brute_force(calls, COUNTER)


@settings(max_examples=300, deadline=None)
@given(_calls(REGISTER_KINDS))
def test_registers_as_by_trying_all_orders(calls: list[Call]) -> None:
    assert check(calls, REGISTER).holds is brute_force(calls, REGISTER)


@settings(max_examples=300, deadline=None)
@given(_calls(APPEND_KINDS))
def test_lists_as_by_trying_all_orders(calls: list[Call]) -> None:
    assert check(calls, APPEND).holds is brute_force(calls, APPEND)


def test_a_search_that_takes_too_long_says_so() -> None:
    writes = [call("write", i, None, 0, 100) for i in range(30)]
    reads = [call("read", 0, 1, 101, 102), call("read", 0, 2, 103, 104)]
    verdict = check([*writes, *reads], REGISTER, steps_max=1000)
    assert not verdict.holds
    assert verdict.unknown


def test_a_long_history_takes_little_time_and_the_place_that_fails_is_named() -> None:
    good = [call("append", i, i + 1, i - 3.5, i + 0.25) for i in range(2000)]
    assert check(good, APPEND).holds
    bad = [*good, call("read", 0, [0], 3000, 3001)]
    verdict = check(bad, APPEND)
    assert not verdict.holds
    assert verdict.stuck is not None
    assert verdict.stuck.name == "read"
    assert verdict.placed == 2000
