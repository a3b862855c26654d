"""Errors of the object store, in terms of its bytes; users meet ``regrow.exceptions``."""

from __future__ import annotations

from regrow.exceptions import ObjectStoreFullError, RayError


class ObjectCorruptedError(RayError):
    """Stored bytes are not what was written. The copy is to be treated as lost."""

    code = "object_corrupted"


class SerializationError(RayError, TypeError):
    """A value cannot be pickled. The message names the part of it that cannot, and why."""

    code = "serialization"


def store_full(
    size: int, arena_capacity: int, spill_capacity: int | None, spill_used: int
) -> ObjectStoreFullError:
    """The error for an object of ``size`` bytes that has no place; all sizes in bytes."""
    limit = "without limit" if spill_capacity is None else f"of {spill_capacity} bytes"
    return ObjectStoreFullError(
        f"no room for an object of {size} bytes: the arena has {arena_capacity} bytes, and what "
        f"lies in it is being read or written or cannot be spilled; spill storage {limit} holds "
        f"{spill_used} bytes. Let go of references and views, or configure a larger arena or "
        f"spill limit."
    )
