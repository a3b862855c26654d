"""Errors of the object store.

``regrow.exceptions`` is what users import from; these are the same conditions seen from below.
"""

from __future__ import annotations


class ObjectStoreError(Exception):
    """Base of every error raised by the object store."""


class ObjectCorruptedError(ObjectStoreError):
    """Stored bytes are not what was written. The copy is to be treated as lost."""


class ObjectStoreFullError(ObjectStoreError):
    """No room for an object in the arena nor in the spill storage."""

    def __init__(
        self, size: int, arena_capacity: int, spill_capacity: int | None, spill_used: int
    ) -> None:
        limit = "unlimited" if spill_capacity is None else f"{spill_capacity} bytes"
        super().__init__(
            f"no room for an object of {size} bytes: the arena holds {arena_capacity} bytes and "
            f"what it holds is pinned or cannot be spilled; spill storage: {spill_used} bytes used "
            f"of {limit}. Release references or views, or configure a larger arena or spill limit."
        )
        self.size = size
        self.arena_capacity = arena_capacity
        self.spill_capacity = spill_capacity
        self.spill_used = spill_used


class SerializationError(ObjectStoreError, TypeError):
    """A value cannot be pickled. The message names the part of it that cannot, and why."""
