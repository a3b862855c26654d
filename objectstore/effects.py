"""What the object store's core asks its shell to do. Plain data.

Each is about one object, named by its key (object id, attempt).
"""

from __future__ import annotations

import msgspec

ObjectKey = tuple[bytes, int]


class Grant(msgspec.Struct, frozen=True):
    """Tell the owner to write the object at ``offset``, and then to ``seal`` it."""

    key: ObjectKey
    offset: int
    size: int


class GrantFile(msgspec.Struct, frozen=True):
    """The arena has no room: let the owner write the object to a file of the spill directory."""

    key: ObjectKey
    size: int


class Exists(msgspec.Struct, frozen=True):
    """Nothing was allocated: the object is here already, or (not ``sealed``) being written."""

    key: ObjectKey
    sealed: bool


class Refuse(msgspec.Struct, frozen=True):
    """No place for the object, now or in storage; the sizes are for ``errors.store_full``.

    It is not allocated (if it was to be restored, its copy in storage stays).
    """

    key: ObjectKey
    size: int
    arena_capacity: int
    spill_capacity: int | None
    spill_used: int


class Spill(msgspec.Struct, frozen=True):
    """Write the object to storage, then report ``spilled`` or ``spill_failed``."""

    key: ObjectKey
    offset: int
    size: int


class Drop(msgspec.Struct, frozen=True):
    """This node's copy was dropped to make room (it can be fetched or replayed): tell others."""

    key: ObjectKey


class Restore(msgspec.Struct, frozen=True):
    """Read the object from storage to ``offset``, then report ``restored`` or
    ``restore_failed``."""

    key: ObjectKey
    offset: int
    size: int


class RestoreFile(msgspec.Struct, frozen=True):
    """Like ``Restore``, but to a file of the spill directory: the arena has no room."""

    key: ObjectKey
    size: int


class DeleteSpilled(msgspec.Struct, frozen=True):
    """Delete the object's copy in storage."""

    key: ObjectKey


class DeleteFile(msgspec.Struct, frozen=True):
    """Delete the object's fallback file."""

    key: ObjectKey


Effect = (
    Grant
    | GrantFile
    | Exists
    | Refuse
    | Spill
    | Drop
    | Restore
    | RestoreFile
    | DeleteSpilled
    | DeleteFile
)
