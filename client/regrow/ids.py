"""Identity: how the ids of tasks, objects, actors and functions are made.

Ids are plain ``bytes`` everywhere, so that they cost nothing to pass on.  A task id is 16 bytes; an
object id is the id of the task that made it and a 4-byte big-endian index.  Ids are deterministic:
a program that runs again makes the same ids, which is how finished work is found.  Nothing here
reads a clock or a random source.
"""

from __future__ import annotations

from collections.abc import Callable
from hashlib import blake2b
from itertools import count
from typing import Final

TASK_ID_SIZE: Final = 16
OBJECT_ID_SIZE: Final = 20
#: Set in the index of an object that ``put`` made: it is no return value of a task.
PUT_INDEX: Final = 0x8000_0000

_FIRST: Final = b"\0\0\0\0"


def driver_task_id(job_root: bytes) -> bytes:
    """The id of the driver, the parent of the tasks it submits. ``job_root`` is 16 bytes."""
    return blake2b(b"driver", key=job_root, digest_size=TASK_ID_SIZE).digest()


def object_id(task_id: bytes, index: int) -> bytes:
    """The id of return value ``index`` of a task."""
    return task_id + index.to_bytes(4, "big") if index else task_id + _FIRST


def producer(oid: bytes) -> bytes:
    """The first 16 bytes of an object id: the task that returns it, or, for a put, the put's own
    id."""
    return oid[:TASK_ID_SIZE]


def is_put(oid: bytes) -> bool:
    """Whether ``put`` made this object (its id then names no task; the log knows who put it)."""
    return oid[TASK_ID_SIZE] >= 0x80


def put_object_id(put_id: bytes) -> bytes:
    """The object id of a put whose own 16-byte id is ``put_id``."""
    return put_id + PUT_INDEX.to_bytes(4, "big")


def answers_object_id(task_id: bytes, attempt: int) -> bytes:
    """The object that says what ``wait`` and timed ``get`` answered during this attempt of an
    actor's call, from 1: a put of that call."""
    return task_id + (PUT_INDEX + attempt).to_bytes(4, "big")


def function_id(pickled: bytes) -> bytes:
    """Functions are content-addressed: stored and sent once."""
    return blake2b(pickled, digest_size=TASK_ID_SIZE, person=b"function").digest()


class CountedIds:
    """Task and put ids of a parent that is never replayed (the driver of an unnamed job).

    The first 8 bytes come from the job's root, the rest is a counter: ids ascend, so that the log's
    index grows at its right edge only, and the parent's memory stays flat.
    """

    def __init__(self, job_root: bytes) -> None:
        self._prefix = job_root[:8]
        self._next: Callable[[], int] = count(1).__next__

    def next_id(self, content: bytes = b"") -> bytes:
        """A new id; ``content`` is ignored. Safe to call from several threads."""
        return self._prefix + self._next().to_bytes(8, "big")


class ContentIds:
    """Task and put ids of a parent that may be replayed.

    The id of a submission is a keyed hash of the parent, its content (function name and digest of
    the arguments, or ``options(key=...)``) and its occurrence: how many *equal* submissions the
    parent made before.  So another order of submissions on a replay never gives one call the result
    of another.
    """

    def __init__(self, job_root: bytes, parent_id: bytes) -> None:
        self._root = job_root
        self._parent = parent_id
        self._seen: dict[bytes, int] = {}

    def next_id(self, content: bytes) -> bytes:
        """The id of the next submission with this content."""
        digest = blake2b(self._parent + content, key=self._root, digest_size=TASK_ID_SIZE).digest()
        occurrence = self._seen.get(digest, 0)
        self._seen[digest] = occurrence + 1
        if not occurrence:
            return digest
        return blake2b(
            digest + occurrence.to_bytes(8, "big"), key=self._root, digest_size=TASK_ID_SIZE
        ).digest()

    def keyed_id(self, key: bytes) -> bytes:
        """The id of a submission with ``options(key=...)``: the same key is the same task."""
        return blake2b(
            self._parent + key, key=self._root, digest_size=TASK_ID_SIZE, person=b"key"
        ).digest()
