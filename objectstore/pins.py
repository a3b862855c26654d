"""Read-only views of an object in the arena that say when the last of them has died.

A reader pins an object at its node, makes its values out of one ``pinned_view``, and unpins it
when ``on_release`` fires. Decides when that is: once, when no memoryview, numpy array, Arrow
buffer or slice of any of them still reaches the bytes. It must not talk to the node itself.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from regrow.objectstore.arena import Arena

# Made at the first pin: loading numpy starts threads, which a fork server must not have.
_pinned_array_type: type[Any] | None = None


class _Token:
    """Calls back when it dies. Dies with the array that holds it, hence with its last view.

    Holds the arena's own view: numpy keeps only the mapping behind it, and a mapping without
    views is unmapped by ``Arena.close``.
    """

    __slots__ = ("_memory", "_on_release")

    def __init__(self, on_release: Callable[[], None]) -> None:
        self._on_release = on_release
        self._memory: memoryview | None = None

    def hold(self, memory: memoryview) -> None:
        self._memory = memory

    def __del__(self) -> None:
        self._on_release()


def pinned_view(arena: Arena, offset: int, size: int, on_release: Callable[[], None]) -> memoryview:
    """A read-only view of ``size`` bytes at ``offset``; ``on_release`` fires exactly once.

    It fires when the last view made of this one dies, on whatever thread drops it and possibly
    inside a garbage collection: it must not block, lock or raise; append to a deque and return.
    It also fires if this call fails. Costs about 1.5 us.
    """
    # Python 3.11 has no __buffer__, and a memoryview keeps only the innermost exporter alive:
    # so the exporter is a numpy array of our own type, and the token is an attribute of it.
    token = _Token(on_release)
    memory = arena.view(offset, size).toreadonly()
    token.hold(memory)
    exporter = _array_type()((size,), "u1", memory)
    exporter.token = token
    return memoryview(exporter)


def _array_type() -> type[Any]:
    global _pinned_array_type
    if _pinned_array_type is None:
        import numpy as np

        class PinnedArray(np.ndarray[Any, Any]):
            """The exporter behind a pinned view; never handed out as an array."""

            token: _Token

        _pinned_array_type = PinnedArray
    return _pinned_array_type
