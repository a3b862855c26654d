"""Exceptions of tasks come back as what they were, whatever their constructors want."""

from __future__ import annotations

import json
import threading
from typing import Any

import pytest

from regrow._execute import serialize_error
from regrow.exceptions import RayTaskError
from regrow.objectstore.serialization import deserialize


class Priced(Exception):
    """Its arguments are not those of its constructor."""

    def __init__(self, item: str, price: int) -> None:
        super().__init__(f"{item} costs {price}")
        self.price = price


class Prefixed(Exception):
    """Its constructor would take a copy's argument, and prefix it again."""

    def __init__(self, text: str) -> None:
        super().__init__(f"prefix {text}")


class KeywordOnly(OSError):
    def __init__(self, *, path: str) -> None:
        super().__init__(2, "no such file", path)


class Slotted(ValueError):
    __slots__ = ("code",)

    def __init__(self, code: int, **_others: Any) -> None:
        self.code = code


class Frozen(Exception):
    def __init__(self, one: int, two: int) -> None:
        vars(self)["sum"] = one + two

    def __setattr__(self, name: str, value: Any) -> None:
        raise AttributeError("frozen")


class Own(Exception):
    """Says itself how it is pickled."""

    def __init__(self, one: int, two: int) -> None:
        super().__init__(one, two)
        self.made_by = "the constructor"

    def __reduce__(self) -> Any:
        return Own, self.args


class Unwilling(Exception):
    """Pickles; unpickled it raises."""

    def __reduce__(self) -> Any:
        return int, ("no number",)


class Impostor(Exception):
    def __reduce__(self) -> Any:
        return int, ("3",)


def travelled(error: Exception) -> Any:
    """What ``get`` raises where the task raised ``error``."""
    try:
        raise error
    except Exception as raised:
        told = deserialize(serialize_error("shop", raised))
    assert isinstance(told, RayTaskError)
    return told.as_instanceof_cause()


ERRORS: list[tuple[Exception, list[str]]] = [
    (KeyError("x"), []),
    (Priced("tea", 3), ["price"]),
    (Prefixed("text"), []),
    (KeywordOnly(path="/x"), ["errno", "strerror", "filename"]),
    (FileNotFoundError(2, "no such file", "/x"), ["errno", "strerror", "filename"]),
    (UnicodeDecodeError("utf-8", b"\xff", 0, 1, "bad"), ["object", "start", "reason"]),
    (StopIteration(5), ["value"]),
    (ImportError("no", name="n", path="p"), ["name", "path"]),
    (Slotted(7, x=1), ["code"]),
    (Frozen(1, 2), ["sum"]),
    (Own(1, 2), ["made_by"]),
    (json.JSONDecodeError("bad", "doc", 1), ["msg", "doc", "pos"]),
]


@pytest.mark.parametrize(("error", "names"), ERRORS, ids=lambda value: type(value).__name__)
def test_an_error_keeps_its_type_arguments_and_attributes(
    error: Exception, names: list[str]
) -> None:
    told = travelled(error)
    assert isinstance(told, type(error))
    assert isinstance(told, RayTaskError)
    for copied in (told, told.cause, travelled(told).cause):  # also through another task
        assert isinstance(copied, type(error))
        assert copied.args == error.args
        assert [getattr(copied, name) for name in names] == [getattr(error, name) for name in names]
    assert str(told.cause) == str(error)
    assert type(error).__name__ in str(told)


def test_notes_and_grouped_errors_travel_along() -> None:
    error = ExceptionGroup("two", [Priced("tea", 3), KeyError("x")])
    error.add_note("in the shop")
    told = travelled(error)
    assert isinstance(told, ExceptionGroup)
    assert told.__notes__ == ["in the shop"]
    tea, key = told.exceptions
    assert isinstance(tea, Priced)
    assert (tea.price, str(tea), str(key)) == (3, "tea costs 3", "'x'")


def _locked() -> Exception:
    error = Priced("tea", 3)
    error.lock = threading.Lock()  # type: ignore[attr-defined]
    return error


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (_locked(), r"test_causes.Priced, is not here: pickling it raised .*lock"),
        (Unwilling("no"), r"Unwilling, is not here: unpickling it raised ValueError: .*no number"),
        (Impostor("no"), r"Impostor, is not here: unpickled it is a builtins.int"),
        (KeyError("x" * (2 << 20)), r"KeyError, is not here: it has \d+ bytes, more than"),
    ],
    ids=["pickling", "unpickling", "impostor", "size"],
)
def test_an_error_that_cannot_travel_arrives_as_text_that_says_why(
    error: Exception, reason: str
) -> None:
    told = travelled(error)
    assert type(told) is RayTaskError
    assert told.cause is None
    with pytest.raises(RayTaskError, match=reason):
        raise told
