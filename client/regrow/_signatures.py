"""What functions and methods take: wrong arguments are refused where the call is made.

Decides whether arguments fit, of functions that need not be at hand: a signature travels, as names
and kinds of parameters only.  What a decorator's wrapper takes is what counts, for that is called;
where Python cannot tell the signature, everything fits and the call itself will tell.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Sequence
from types import FunctionType
from typing import Any, Final

import msgspec
from msgspec import Struct

_UNLIMITED: Final = 1 << 31
#: In the order in which they travel as numbers.
_KINDS: Final = (
    inspect.Parameter.POSITIONAL_ONLY,
    inspect.Parameter.POSITIONAL_OR_KEYWORD,
    inspect.Parameter.KEYWORD_ONLY,
    inspect.Parameter.VAR_POSITIONAL,
    inspect.Parameter.VAR_KEYWORD,
)
_POSITIONAL: Final = _KINDS[:2]
_VARIADIC: Final = _KINDS[3:]


class Signature(Struct, frozen=True, array_like=True):
    """(name, kind, whether it may be left out) of each parameter; None where it is not known."""

    parameters: tuple[tuple[str, int, bool], ...] | None = None
    #: So many positional arguments fit, and are enough where there are no others.
    least: int = 0
    most: int = _UNLIMITED

    def check(self, name: str, args: Sequence[Any], kwargs: dict[str, Any]) -> None:
        """Raise TypeError, naming the function, where it does not take these arguments."""
        if self.least <= len(args) <= self.most and not kwargs:  # hot path: every call
            return
        if self.parameters is None:
            return
        try:
            _rebuilt(self.parameters).bind(*args, **kwargs)
        except TypeError as error:
            raise TypeError(f"{name}(): {error}") from None


ANYTHING: Final = Signature()


class Method(Struct, frozen=True, array_like=True):
    """What a handle knows of a method."""

    num_returns: int = 1
    signature: Signature = ANYTHING
    is_generator: bool = False


def signature_of(target: Callable[..., Any], *, bound: bool = False) -> Signature:
    """What a function or class takes; ``bound``: without its first parameter."""
    try:
        found = inspect.signature(target, follow_wrapped=False)
    except (TypeError, ValueError):  # of an extension module
        return ANYTHING
    parameters = list(found.parameters.values())
    if bound and parameters and parameters[0].kind in _POSITIONAL:
        del parameters[0]
    kinds = [parameter.kind for parameter in parameters]
    needed = [parameter for parameter in parameters if not _may_be_left_out(parameter)]
    least = len(needed)
    if any(parameter.kind not in _POSITIONAL for parameter in needed):
        least = _UNLIMITED + 1  # a keyword is needed
    unlimited = inspect.Parameter.VAR_POSITIONAL in kinds
    return Signature(
        tuple((p.name, _KINDS.index(p.kind), _may_be_left_out(p)) for p in parameters),
        least,
        _UNLIMITED if unlimited else sum(kind in _POSITIONAL for kind in kinds),
    )


def methods_of(cls: type) -> dict[str, Method]:
    """The methods that a handle offers."""
    return {
        name: Method(
            getattr(function, "__regrow_num_returns__", 1),
            _of_method(cls, name),
            inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function),
        )
        for name, function in inspect.getmembers(cls, callable)
        if not (name.startswith("__") and name in vars(object))
    }


def packed_methods(methods: dict[str, Method]) -> bytes:
    """Methods as handles carry them."""
    return msgspec.msgpack.encode(methods)


@functools.lru_cache(1024)
def unpacked_methods(packed: bytes) -> dict[str, Method]:
    """The methods again, shared by all handles of the class: not to be changed."""
    return msgspec.msgpack.decode(packed, type=dict[str, Method])


def _of_method(cls: type, name: str) -> Signature:
    found = inspect.getattr_static(cls, name)
    if isinstance(found, FunctionType):
        return signature_of(found, bound=True)
    if isinstance(found, staticmethod | classmethod):
        return signature_of(getattr(cls, name))
    return ANYTHING


def _may_be_left_out(parameter: inspect.Parameter) -> bool:
    return parameter.default is not parameter.empty or parameter.kind in _VARIADIC


@functools.lru_cache(1024)
def _rebuilt(parameters: tuple[tuple[str, int, bool], ...]) -> inspect.Signature:
    return inspect.Signature(
        [
            inspect.Parameter(
                name,
                _KINDS[kind],
                default=None
                if optional and _KINDS[kind] not in _VARIADIC
                else inspect.Parameter.empty,
            )
            for name, kind, optional in parameters
        ]
    )
