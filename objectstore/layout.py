"""The serialized form of one object, the same in the arena, in files, and in messages.

Decides how a pickle and its out-of-band buffers lie in one run of bytes, and what the digest of
an object is: xxh3-128 of exactly that run. It must not know where the run is stored.

    offset 0   magic (4), number of buffers (u32), length of the pickle (u64)
    16         length of each buffer (u64 each)
    ...        the pickle
    ...        each buffer, at the next multiple of 64 from the start; gaps are zero

Integers are little-endian. The run begins at a multiple of 64 in memory, so every buffer does too.

Copying a 100 MB numpy array into a warm arena (2 cores, best of 9): 7.1 GB/s without a digest;
xxh3 alone 19 GB/s; copy and digest by blocks of 64-256 KiB 6.0, of 1 MiB 5.5, of 2 MiB 5.1 GB/s.
Blocks of 64 KiB stay under the size from which xxhash gives up the interpreter lock: giving it up
for every block could cost a switch interval (5 ms) each time beside a busy thread. Pages never
touched before: 1.6 GB/s.

Large buffers use a second core: a thread digests the buffer, then helps with what is left of the
copy. 9.7 GB/s where blocks give 5.7 (800 MB: 11.5); with one core taken by another process 6.4 to
5.6, with both 5.0 to 5.6, beside a busy Python thread 2.5 to 2.6. In quarters, because memcpy goes
past the caches only from some 200 MB on (then 11.8 GB/s instead of 7.0).
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import msgspec
import xxhash

from regrow.objectstore.errors import ObjectCorruptedError

ALIGNMENT = 64
DIGEST_SIZE = 16
MAGIC = b"rgO\x01"  # the last byte is the version

_HEADER = struct.Struct("<4sIQ")
_BLOCK = 64 * 1024
_LARGE = 16 * 1024 * 1024
_ZEROS = bytes(ALIGNMENT)

Bytes = bytes | bytearray | memoryview


def digest(data: Bytes) -> bytes:
    """The content digest of a serialized object: xxh3-128, 16 bytes."""
    return xxhash.xxh3_128_digest(data)


class Layout(msgspec.Struct, frozen=True):
    """A serialized object that is still scattered over its parts.

    ``buffers`` are flat, contiguous views of bytes that must stay unchanged until written.
    """

    pickled: bytes | memoryview
    buffers: tuple[memoryview, ...]
    #: Bytes of the whole run.
    size: int

    def to_bytes(self) -> bytes:
        """The run as one bytes object: the form of small objects in messages."""
        if not self.buffers:  # hot path: every small result; 0.2 us over the pickle
            return _HEADER.pack(MAGIC, 0, len(self.pickled)) + self.pickled
        run = bytearray(self.size)
        self.write_into(memoryview(run))
        return bytes(run)

    def write_into(self, dest: memoryview) -> bytes:
        """Write the run into the first ``size`` bytes of ``dest`` (writable) in one pass.

        Returns the digest, 16 bytes. ``dest`` may be longer; the rest of it is not touched.
        """
        assert len(dest) >= self.size, "destination is too small"
        hasher = xxhash.xxh3_128()
        head = _HEADER.pack(MAGIC, len(self.buffers), len(self.pickled))
        head += struct.pack(f"<{len(self.buffers)}Q", *map(len, self.buffers))
        dest[: len(head)] = head
        hasher.update(head)
        position = _copy(dest, len(head), memoryview(self.pickled), hasher)
        for buffer in self.buffers:
            gap = -position % ALIGNMENT
            dest[position : position + gap] = _ZEROS[:gap]
            hasher.update(_ZEROS[:gap])
            position = _copy(dest, position + gap, buffer, hasher)
        assert position == self.size, "a buffer changed its length"
        return hasher.digest()


def pack(pickled: bytes | memoryview, buffers: Sequence[memoryview] = ()) -> Layout:
    """Lay out a pickle and its out-of-band buffers (flat views of bytes); copies nothing."""
    if not buffers:
        return Layout(pickled, (), _HEADER.size + len(pickled))
    size = _HEADER.size + 8 * len(buffers) + len(pickled)
    for buffer in buffers:
        assert (buffer.itemsize, buffer.ndim, buffer.c_contiguous) == (1, 1, True)
        size += -size % ALIGNMENT + len(buffer)
    return Layout(pickled, tuple(buffers), size)


def unpack(view: Bytes) -> tuple[memoryview, list[memoryview]]:
    """The pickle and the buffers of a run, as views into it; copies nothing.

    ``view`` is exactly one run. Raises ObjectCorruptedError where its lengths do not add up; the
    contents are not checked, for that there is ``digest``.
    """
    run = memoryview(view)
    size = len(run)
    if size < _HEADER.size:
        raise ObjectCorruptedError(f"object of {size} bytes is shorter than its header")
    magic, count, pickled_size = _HEADER.unpack_from(run)
    if magic != MAGIC:
        raise ObjectCorruptedError(f"object begins with {magic!r} instead of {MAGIC!r}")
    if count == 0:  # hot path: small objects
        if pickled_size != size - _HEADER.size:
            raise ObjectCorruptedError(f"object of {size} bytes claims a pickle of {pickled_size}")
        return run[_HEADER.size :], []
    start = _HEADER.size + 8 * count
    if start + pickled_size > size:
        raise ObjectCorruptedError(
            f"object of {size} bytes claims {count} buffers and a pickle of {pickled_size} bytes"
        )
    position = start + pickled_size
    buffers = []
    for length in struct.unpack_from(f"<{count}Q", run, _HEADER.size):
        position += -position % ALIGNMENT
        if position + length > size:
            raise ObjectCorruptedError(f"object of {size} bytes claims a buffer past its end")
        buffers.append(run[position : position + length])
        position += length
    if position != size:
        raise ObjectCorruptedError(f"object of {size} bytes describes only {position} of them")
    return run[start : start + pickled_size], buffers


def _copy(dest: memoryview, position: int, source: memoryview, hasher: xxhash.xxh3_128) -> int:
    """Copy ``source`` to ``dest[position:]`` and feed it to ``hasher``; returns the end."""
    end = position + len(source)
    target = dest[position:end]
    if len(source) >= _LARGE and _copy_on_two_cores(target, source, hasher):
        return end
    for start in range(0, len(source), _BLOCK):  # hot path; figures at the top
        block = source[start : start + _BLOCK]
        target[start : start + _BLOCK] = block
        hasher.update(block)
    return end


def _copy_on_two_cores(target: memoryview, source: memoryview, hasher: xxhash.xxh3_128) -> bool:
    """Digest in a thread while copying here; False, and nothing done, if there can be none."""
    import numpy as np  # late: most processes never handle an object this large

    # Each takes the next quarter; a list's iterator hands out each item once.
    quarter = -(-len(source) // 4)
    starts = iter(range(0, len(source), quarter))
    to, origin = np.frombuffer(target, np.uint8), np.frombuffer(source, np.uint8)

    def copy() -> None:
        for start in starts:  # copyto gives up the interpreter lock
            np.copyto(to[start : start + quarter], origin[start : start + quarter])

    def digest_and_help() -> None:
        hasher.update(source)
        copy()

    with ThreadPoolExecutor(1) as pool:
        try:
            helping = pool.submit(digest_and_help)
        except RuntimeError:  # the interpreter is shutting down
            return False
        copy()
        helping.result()
    return True
