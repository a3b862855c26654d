"""Values to serialized objects and back: cloudpickle with protocol-5 out-of-band buffers.

Decides which pickler a value gets and which references it contains. The bytes of arrays stay
where they are until ``Layout.write_into`` copies them, once, to their final place; they come back
as read-only views of the store. Must not know where objects live, nor what a reference is beyond
its id.

Plain values (exact builtin scalars, numeric arrays, containers of them a few levels deep) go
through the C pickler, in about 1 us; everything else through cloudpickle, in 10 us and more,
because only cloudpickle pickles functions and classes of ``__main__`` by value.
"""

from __future__ import annotations

import pickle
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import msgspec

from regrow.objectstore import pickling
from regrow.objectstore.errors import SerializationError
from regrow.objectstore.layout import Bytes, Layout, pack, unpack
from regrow.objectstore.unpicklable import explain

_PROTOCOL = 5
# A bytes value from this size on travels out of band, which saves one copy of it.
_LARGE_BYTES = 64 * 1024
# Containers nested deeper are left to cloudpickle.
_DEPTH = 4
_SCALARS = frozenset({type(None), bool, int, float, complex, str, bytes})


class SerializedObject(msgspec.Struct, frozen=True):
    """A pickled value whose large buffers have not been copied yet.

    The value's arrays must stay unchanged until the layout has been written.
    """

    layout: Layout
    #: Ids of the references inside the value, each once, in the order pickle met them.
    contained_refs: list[bytes]


class RefCollector:
    """The ids of the references met while something is pickled on this thread."""

    __slots__ = ("_ids",)

    def __init__(self) -> None:
        self._ids: dict[bytes, None] = {}

    def note(self, object_id: bytes) -> None:
        self._ids[object_id] = None

    @property
    def ids(self) -> list[bytes]:
        """Each id once, in the order first noted."""
        return list(self._ids)


class _Collectors(threading.local):
    def __init__(self) -> None:
        self.stack: list[RefCollector] = []


_collectors = _Collectors()


@contextmanager
def collecting_refs() -> Iterator[RefCollector]:
    """Collect what ``note_ref`` is told on this thread. The innermost collector gets it."""
    collector = RefCollector()
    _collectors.stack.append(collector)
    try:
        yield collector
    finally:
        _collectors.stack.pop()


def note_ref(object_id: bytes) -> bool:
    """Called by a reference's ``__reduce__``: tell the current collector of this reference.

    False if nobody is collecting: something pickles the reference behind the store's back, so
    nothing will keep its object alive; the caller decides what to say about that.
    """
    stack = _collectors.stack
    if not stack:
        return False
    stack[-1].note(object_id)
    return True


def serialize(value: object, *, ref_types: frozenset[type] = frozenset()) -> SerializedObject:
    """Pickle ``value``.

    ``ref_types`` are exact types whose ``__reduce__`` gives an importable callable and plain
    arguments (ObjectRef): they do not keep a value from the fast path.
    Raises SerializationError, a TypeError that names the part that cannot be pickled.
    """
    buffers: list[memoryview] = []
    collector = RefCollector()
    stack = _collectors.stack
    stack.append(collector)
    try:
        pickled = _dumps(value, buffers, ref_types)
    except Exception as error:  # anything a user's __reduce__ or __getstate__ may raise
        raise SerializationError(explain(value, error)) from error
    finally:
        stack.pop()
    return SerializedObject(pack(pickled, buffers), collector.ids)


def deserialize(data: Bytes, *, copy: bool = False) -> Any:
    """The value of one serialized object (exactly one layout run).

    Arrays are read-only views of ``data`` and keep it alive; with ``copy`` they are the value's own
    and can be written. Raises ObjectCorruptedError where
    the layout is damaged, and whatever the value's own unpickling raises (ImportError of a module
    that is missing here, for one).
    """
    pickled, buffers = unpack(data)
    if copy:
        return pickle.loads(pickled, buffers=[bytearray(buffer) for buffer in buffers])
    if buffers:
        return pickle.loads(pickled, buffers=[buffer.toreadonly() for buffer in buffers])
    return pickle.loads(pickled)


class _OutOfBandBytes:
    """Pickles as the bytes it wraps, with the contents out of band."""

    __slots__ = ("_contents",)

    def __init__(self, contents: bytes) -> None:
        self._contents = contents

    def __reduce__(self) -> tuple[type[bytes], tuple[pickle.PickleBuffer]]:
        return bytes, (pickle.PickleBuffer(self._contents),)


def _dumps(value: object, buffers: list[memoryview], ref_types: frozenset[type]) -> bytes:
    # Hot path: the first line serves most small results.
    kind = type(value)
    if kind in _SCALARS:
        if kind is bytes and len(value) >= _LARGE_BYTES:  # type: ignore[arg-type]
            value = _OutOfBandBytes(value)  # type: ignore[arg-type]
        else:
            return pickle.dumps(value, _PROTOCOL)
    elif not _is_plain(value, ref_types):
        return pickling.dumps(value, _collect_into(buffers))
    return pickle.dumps(value, _PROTOCOL, buffer_callback=_collect_into(buffers))


def _collect_into(buffers: list[memoryview]) -> Callable[[pickle.PickleBuffer], bool]:
    """A buffer_callback. It keeps every buffer out of band, so that arrays of all sizes come
    back read-only; only what is not contiguous (a custom exporter's) stays in the pickle."""

    def collect(buffer: pickle.PickleBuffer) -> bool:
        try:
            buffers.append(buffer.raw())
        except BufferError:
            return True
        return False

    return collect


def _is_plain(value: object, ref_types: frozenset[type], depth: int = _DEPTH) -> bool:
    """Whether the C pickler pickles ``value`` just as cloudpickle would."""
    kind = type(value)
    if kind is tuple or kind is list or kind is set or kind is frozenset:
        items: Any = value
    elif kind is dict:
        if not _are_plain(value.keys(), ref_types, depth):  # type: ignore[attr-defined]
            return False
        items = value.values()  # type: ignore[attr-defined]
    else:
        return kind in ref_types or _is_numeric_array(value)
    return depth > 0 and _are_plain(items, ref_types, depth)


def _are_plain(items: Any, ref_types: frozenset[type], depth: int) -> bool:
    if _SCALARS.issuperset(map(type, items)):
        return True
    return all(type(item) in _SCALARS or _is_plain(item, ref_types, depth - 1) for item in items)


def _is_numeric_array(value: object) -> bool:
    numpy = sys.modules.get("numpy")  # a value can be an array only if numpy is loaded
    # isbuiltin is 1 for the plain scalar types: neither object nor structured nor a plug-in's.
    return (
        numpy is not None
        and type(value) is numpy.ndarray
        and value.dtype.isbuiltin == 1  # type: ignore[attr-defined]
        and not value.dtype.hasobject  # type: ignore[attr-defined]
    )
