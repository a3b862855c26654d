"""A digest of a value, not of its pickle: the same in every run of a program.

Equal values have other pickles in other processes: sets are in another order (PYTHONHASHSEED), and
cloudpickle gives each class of ``__main__`` a random number.  Here a set is the sorted digests of
its elements, and functions and classes are what ``regrow._fingerprints`` recognizes them by.  What
was built in another order (a list made from a set) is another value.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable
from types import FunctionType
from typing import Any, Final

import cloudpickle
import xxhash

from regrow._fingerprints import captured, fingerprint, qualified_name
from regrow._refs import ObjectRef
from regrow.objectstore.layout import Bytes

#: Without these bytes a pickle is the same in every run: the opcodes of sets (EMPTY_SET and
#: FROZENSET), and what classes, functions, remote ones and handles of actors are made by.
_UNSTEADY: Final = (b"\x8f", b"\x91", b"cloudpickle", b"regrow._actor", b"regrow._remote")
#: Whether two equal ones are one object is no part of a value.
_ATOMIC: Final = (str, bytes)


def is_unsteady(pickled: Bytes) -> bool:
    """Whether a pickle may be another one when the program runs again. Where the answer is no the
    slow way is spared."""
    data = bytes(pickled)
    return any(part in data for part in _UNSTEADY)


def canonical_digest(value: object, *, with_refs: bool = True) -> bytes | None:
    """16 bytes; with ``with_refs`` of which objects references refer to, too. None where it cannot
    be told: then the pickle has to do."""
    try:
        return _digest(value, with_refs)
    except Exception:  # whatever a user's __reduce__ raises, or a set that contains itself
        return None


def _digest(value: object, with_refs: bool) -> bytes:
    hasher = xxhash.xxh3_128()
    with io.BytesIO() as file:
        _Canonical(file, hasher.update, with_refs).dump(value)
        hasher.update(file.getvalue())
    return hasher.digest()


def _stands_for(*_what: object) -> None:
    """Marks what is not pickled as itself; never called."""


class _Canonical(pickle._Pickler):
    """The pickler that is written in Python: the one in C asks nobody how to write a set."""

    dispatch_table = cloudpickle.Pickler.dispatch_table

    def __init__(
        self, file: io.BytesIO, on_buffer: Callable[[pickle.PickleBuffer], None], with_refs: bool
    ) -> None:
        super().__init__(file, protocol=5, buffer_callback=on_buffer)
        self._with_refs = with_refs

    def reducer_override(self, obj: Any) -> Any:
        """Before everything else; NotImplemented: as usual."""
        kind = type(obj)
        if obj is _stands_for:
            return _stands_for.__name__
        if kind is ObjectRef:
            return _stands_for, ("reference", obj._id if self._with_refs else b"")
        if kind is set or kind is frozenset:
            return _stands_for, (kind.__name__, *sorted(map(self._digest_of, obj)))
        if kind is FunctionType:
            return _stands_for, (qualified_name(obj), fingerprint(obj), captured(obj))
        if isinstance(obj, type):
            return _stands_for, (qualified_name(obj), fingerprint(obj))
        known = getattr(kind, "__regrow_identity__", None)
        if known is not None:
            return _stands_for, (kind.__name__, known(obj, self._with_refs))
        return NotImplemented

    def _digest_of(self, element: object) -> bytes:
        return _digest(element, self._with_refs)

    def memoize(self, obj: Any) -> None:
        if type(obj) not in _ATOMIC:
            super().memoize(obj)  # type: ignore[misc]  # typeshed does not know it
