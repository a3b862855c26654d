"""What objects do when their operations come one after the other.

A model says what state an operation leaves and whether its answer fits; an operation that was not
answered fits any state. States are hashable and never changed.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any, ClassVar, Final


class Model:
    """The base."""

    name: ClassVar[str]
    initial: ClassVar[Hashable]

    def step(
        self, state: Any, name: str, argument: Any, result: Any, answered: bool
    ) -> tuple[Hashable] | None:
        """The state after the operation, in a tuple; None if it cannot have answered that."""
        raise NotImplementedError


class CounterModel(Model):
    """``increment() -> the new count``; ``read() -> the count``."""

    name: ClassVar[str] = "counter"
    initial: ClassVar[Hashable] = 0

    def step(
        self, state: Any, name: str, argument: Any, result: Any, answered: bool
    ) -> tuple[Hashable] | None:
        after = state + (name == "increment")
        return (after,) if not answered or result == after else None


class RegisterModel(Model):
    """``write(value)``; ``read() -> value``; ``swap([old, new]) -> whether it held old``."""

    name: ClassVar[str] = "register"
    initial: ClassVar[Hashable] = 0

    def step(
        self, state: Any, name: str, argument: Any, result: Any, answered: bool
    ) -> tuple[Hashable] | None:
        if name == "read":
            return (state,) if not answered or result == state else None
        if name == "write":
            return (argument,)
        old, new = argument
        if answered and result != (state == old):
            return None
        return (new,) if state == old else (state,)


class AppendModel(Model):
    """``append(item) -> the new length``; ``read() -> all items``."""

    name: ClassVar[str] = "append"
    initial: ClassVar[Hashable] = ()

    def step(
        self, state: Any, name: str, argument: Any, result: Any, answered: bool
    ) -> tuple[Hashable] | None:
        if name == "read":
            return (state,) if not answered or tuple(result) == state else None
        if answered and result != len(state) + 1:
            return None
        return ((*state, argument),)


MODELS: Final[dict[str, Model]] = {
    model.name: model for model in (CounterModel(), RegisterModel(), AppendModel())
}
