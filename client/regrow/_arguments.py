"""The arguments of a call as bytes.

One flat tuple is pickled, so that calls with plain arguments take the fast path of pickle:

    (positional..., values of keywords..., names of the keywords, places of references)

The names are one string joined by NUL, or None; places are pairs (position in the tuple, index of
the dependency) packed as little-endian u32, or None.  Top-level references are replaced by None in
their place and become dependencies, which the task gets as values; those nested deeper stay
references.
"""

from __future__ import annotations

import pickle
import struct
from collections.abc import Callable, Sequence
from typing import Any, Final

from msgspec import Struct

from regrow._refs import ObjectRef
from regrow.config import ARGUMENT_MAX
from regrow.objectstore.errors import SerializationError
from regrow.objectstore.layout import pack
from regrow.objectstore.serialization import SerializedObject, deserialize, serialize

REF_TYPES: Final = frozenset({ObjectRef})

_SCALARS: Final = frozenset({type(None), bool, int, float, complex})


class Arguments(Struct, frozen=True):
    """``data`` for ``TaskSpec.args``; ids of ``deps`` each once, in the order of their first
    use."""

    data: bytes
    deps: list[bytes]
    nested: list[bytes]
    #: References that must live until the spec is queued.
    held: tuple[Any, ...] = ()


def _pickled(values: tuple[Any, ...]) -> bytes:
    return pack(pickle.dumps(values, 5)).to_bytes()


NO_ARGUMENTS: Final = Arguments(_pickled((None, None)), [], [])

Put = Callable[[SerializedObject], ObjectRef[Any]]


def pack_arguments(args: Sequence[Any], kwargs: dict[str, Any], put: Put, name: str) -> Arguments:
    """The arguments of one call of ``name``.

    A value over ``config.ARGUMENT_MAX`` bytes is ``put`` and passed as a dependency.  Raises
    TypeError that says which argument cannot be pickled, and why.
    """
    if not args and not kwargs:
        return NO_ARGUMENTS
    if not kwargs and _SCALARS.issuperset(map(type, args)):  # hot path
        return Arguments(_pickled((*args, None, None)), [], [])
    values = [*args, *kwargs.values()]
    names = "\0".join(kwargs) if kwargs else None
    deps: dict[bytes, int] = {}
    places: list[int] = []
    held: list[Any] = []

    def depend(position: int, ref: ObjectRef[Any]) -> None:
        values[position] = None
        places.extend((position, deps.setdefault(ref._id, len(deps))))
        held.append(ref)

    for position, value in enumerate(values):
        if type(value) is ObjectRef:
            depend(position, value)
    try:
        packed = _serialize(values, names, places)
        if packed.layout.size > ARGUMENT_MAX:
            for position, value in enumerate(values):
                serialized = serialize(value, ref_types=REF_TYPES)
                if serialized.layout.size > ARGUMENT_MAX:
                    depend(position, put(serialized))
            packed = _serialize(values, names, places)
    except SerializationError:
        raise _named(args, kwargs, name) from None
    return Arguments(packed.layout.to_bytes(), list(deps), packed.contained_refs, tuple(held))


def unpack_arguments(data: bytes, values: Sequence[Any]) -> tuple[list[Any], dict[str, Any]]:
    """The arguments of a call; ``values`` are those of its dependencies, in order."""
    *items, names, places = deserialize(data)
    if places is not None:
        numbers = struct.unpack(f"<{len(places) // 4}I", places)
        for position, index in zip(numbers[::2], numbers[1::2], strict=True):
            items[position] = values[index]
    if names is None:
        return items, {}
    keys = names.split("\0")
    split = len(items) - len(keys)
    return items[:split], dict(zip(keys, items[split:], strict=True))


def _serialize(values: list[Any], names: str | None, places: list[int]) -> SerializedObject:
    packed = struct.pack(f"<{len(places)}I", *places) if places else None
    return serialize((*values, names, packed), ref_types=REF_TYPES)


def _named(args: Sequence[Any], kwargs: dict[str, Any], name: str) -> TypeError:
    """The error that names the argument at fault."""
    labelled = [(f"argument {index}", value) for index, value in enumerate(args)]
    labelled += [(f"argument {key!r}", value) for key, value in kwargs.items()]
    for label, value in labelled:
        try:
            serialize(value, ref_types=REF_TYPES)
        except SerializationError as error:
            return TypeError(f"{label} of {name} cannot be sent to a task: {error}")
    return TypeError(f"the arguments of {name} cannot be sent to a task together")
