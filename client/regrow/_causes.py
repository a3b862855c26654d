"""How a user's exception travels: as its type, its ``args`` and its attributes.

Decides how an exception is taken apart and put together again.  The user's constructor is never
called for a copy, as pickle would do with ``args`` alone: it may want others, or do with them what
was done already.  A type that says itself how it is pickled is left to that.
"""

from __future__ import annotations

import copyreg
from collections.abc import Callable
from types import MemberDescriptorType
from typing import Any, Final, TypeVar

E = TypeVar("E", bound=BaseException)

#: Py_TPFLAGS_HEAPTYPE: made at run time, by a class statement or an extension module.
_MADE_AT_RUN_TIME: Final = 1 << 9
_PROTOCOL: Final = (
    "__reduce__", "__reduce_ex__", "__getstate__", "__setstate__", "__getnewargs__",
    "__getnewargs_ex__",
)  # fmt: skip

#: ``args`` of Python's own constructor; the instance's dictionary; what lies beside it.
_Parts = tuple[tuple[Any, ...], dict[str, Any], dict[str, Any]]


class Carried:
    """Is pickled in place of an exception; what is unpickled is the exception."""

    __slots__ = ("_error",)

    def __init__(self, error: BaseException) -> None:
        self._error = error

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        args, attributes, members = _parts(self._error)
        state = {name: carried(value) for name, value in attributes.items()}
        return _put_together, (type(self._error), tuple(map(carried, args)), state, members)


def carried(value: Any) -> Any:
    """What to pickle in place of ``value``; exceptions may be nested in lists, as in groups."""
    if isinstance(value, BaseException):
        return value if _pickles_itself(type(value)) else Carried(value)
    if type(value) in (list, tuple):
        return type(value)(map(carried, value))
    return value


def as_type(error: BaseException, kind: type[E]) -> E:
    """A copy of ``error`` of another type that is derived from its own. Raises TypeError."""
    return _put_together(kind, *_parts(error))


def _pickles_itself(kind: type) -> bool:
    return kind in copyreg.dispatch_table or any(
        name in vars(base) for base in _made_at_run_time(kind) for name in _PROTOCOL
    )


def _made_at_run_time(kind: type) -> list[type]:
    return [base for base in kind.__mro__ if base.__flags__ & _MADE_AT_RUN_TIME]


def _built_in(kind: type[BaseException]) -> Any:
    """Python's own type from which ``kind`` is derived."""
    return next(base for base in kind.__mro__ if not base.__flags__ & _MADE_AT_RUN_TIME)


def _parts(error: BaseException) -> _Parts:
    _, args, *rest = _built_in(type(error)).__reduce__(error)
    attributes = dict(vars(error))
    state = rest[0] if rest and rest[0] else {}
    members = {name: value for name, value in state.items() if name not in attributes}
    for base in _made_at_run_time(type(error)):
        for name, member in vars(base).items():
            if isinstance(member, MemberDescriptorType) and hasattr(error, name):  # a slot
                members[name] = getattr(error, name)
    return args, attributes, members


def _put_together(
    kind: type[E], args: tuple[Any, ...], attributes: dict[str, Any], members: dict[str, Any]
) -> E:
    built_in = _built_in(kind)
    error: E = built_in.__new__(kind, *args)
    built_in.__init__(error, *args)
    for name, value in members.items():
        object.__setattr__(error, name, value)  # the type itself may forbid it
    vars(error).update(attributes)
    return error
