"""Frames: how messages travel on every stream socket.

A frame is a 4-byte little-endian length and a msgpack body.  ``FrameReader`` cuts a byte stream
into bodies, whatever the sizes in which it arrives; a length over ``MAX_FRAME`` is garbage from a
stranger and raises before anything is allocated.  This module knows nothing of what the bodies
mean.
"""

from __future__ import annotations

from typing import Final

#: No frame is larger: big objects travel through the arena or the bulk connection.
MAX_FRAME: Final = 256 * 1024 * 1024


class FrameError(Exception):
    """The peer sent bytes that are no frame; the connection cannot be used further."""


def frame(body: bytes) -> bytes:
    """``body`` with its length in front."""
    return len(body).to_bytes(4, "little") + body


class FrameReader:
    """Cuts a stream into frame bodies."""

    def __init__(self, limit: int = MAX_FRAME) -> None:
        self._buffer = bytearray()
        self._limit = limit

    def feed(self, data: bytes) -> list[bytes]:
        """The bodies completed by ``data``, in order. Raises FrameError on an absurd length."""
        buffer = self._buffer
        # Hot path: most reads hold whole frames only, which then are cut without the buffer.
        source: bytes | bytearray
        if buffer:
            buffer += data
            source = buffer
        else:
            source = data
        bodies: list[bytes] = []
        start, end = 0, len(source)
        while end - start >= 4:
            length = int.from_bytes(source[start : start + 4], "little")
            if length > self._limit:
                raise FrameError(f"a frame of {length} bytes is over the limit of {self._limit}")
            stop = start + 4 + length
            if stop > end:
                break
            bodies.append(bytes(source[start + 4 : stop]))
            start = stop
        if source is buffer:
            del buffer[:start]
        elif start < end:
            buffer += source[start:]
        return bodies

    def rest(self) -> bytes:
        """What was fed and is no whole frame yet; the reader is empty then."""
        rest = bytes(self._buffer)
        self._buffer.clear()
        return rest
