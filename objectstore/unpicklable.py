"""Says which part of a value cannot be pickled.

Called after pickling has failed, so it may be slow, but within limits: it looks at most
``MAX_DEPTH`` steps into the value and tries at most ``MAX_TRIES`` parts.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from itertools import islice

from regrow.objectstore import pickling

MAX_DEPTH = 8
MAX_TRIES = 500


def explain(value: object, error: Exception) -> str:
    """One sentence: the path from ``value`` to the innermost part that fails, and its error."""
    if isinstance(error, RecursionError) or isinstance(error.__cause__, RecursionError):
        return f"cannot serialize the value: its {type(value).__qualname__} is nested too deeply"
    path = ""
    tries = MAX_TRIES
    for _ in range(MAX_DEPTH):
        for step, child in _children(value):
            tries -= 1
            failure = _failure(child) if tries >= 0 else None
            if failure is not None:
                path, value, error = path + step, child, failure
                break
        else:
            break
    where = f"its part value{path}, " if path else ""
    return (
        f"cannot serialize the value: {where}an instance of "
        f"{type(value).__module__}.{type(value).__qualname__}, cannot be pickled "
        f"({type(error).__name__}: {error}). Leave it out, make it where it is used, or give its "
        f"class a __reduce__."
    )


def _failure(value: object) -> Exception | None:
    try:
        pickling.dumps(value, lambda _buffer: None)
    except Exception as error:  # whatever it is, it is the answer
        return error
    return None


def _children(value: object) -> Iterator[tuple[str, object]]:
    """The parts pickle would descend into, with the expression that reaches each."""
    if isinstance(value, Mapping):
        for key, item in islice(value.items(), MAX_TRIES):
            yield f"[{key!r:.40}]", item
        for key in islice(value, MAX_TRIES):
            yield f".keys()[{key!r:.40}]", key
    elif isinstance(value, list | tuple | set | frozenset):
        for index, item in enumerate(islice(value, MAX_TRIES)):
            yield f"[{index}]", item
    elif inspect.isfunction(value):
        yield from _captured(value)
    elif inspect.ismethod(value):
        yield ".__self__", value.__self__
    if not inspect.isfunction(value):
        yield from _attributes(value)


def _attributes(value: object) -> Iterator[tuple[str, object]]:
    attributes = getattr(value, "__dict__", None)
    if isinstance(attributes, Mapping):
        for name, item in attributes.items():
            if not (isinstance(value, type) and name.startswith("__")):
                yield f".{name}", item
    for name in _slots(value):
        if hasattr(value, name):
            yield f".{name}", getattr(value, name)


def _captured(function: object) -> Iterator[tuple[str, object]]:
    assert inspect.isfunction(function)
    names = inspect.getclosurevars(function)
    for name, item in names.nonlocals.items():
        yield f".<captured {name}>", item
    for name, item in names.globals.items():
        yield f".<global {name}>", item
    for index, item in enumerate(function.__defaults__ or ()):
        yield f".__defaults__[{index}]", item


def _slots(value: object) -> Iterator[str]:
    for kind in type(value).__mro__:
        slots = kind.__dict__.get("__slots__", ())
        for name in (slots,) if isinstance(slots, str) else slots:
            if name not in ("__dict__", "__weakref__"):
                yield name
