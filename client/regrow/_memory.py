"""Large objects as a client sees them: bytes in the node's arena, or in a fallback file.

Decides nothing: the node says where an object lies and pins it; this module makes views of it that
say when the last of them has died.
"""

from __future__ import annotations

import socket
import weakref
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

from regrow.exceptions import ClusterConnectionError
from regrow.messages import Location
from regrow.objectstore.arena import Arena, receive_fd
from regrow.objectstore.fallback import map_file
from regrow.objectstore.pins import pinned_view

Pin = tuple[bytes, int]


class ArenaClosedError(ValueError):
    """The node of this memory is gone."""


class Memory:
    """The arena of one node, mapped. ``on_news`` is called, from anywhere, when a pin is
    free."""

    def __init__(self, arena: Arena, on_news: Callable[[], None]) -> None:
        self._arena = arena
        self._on_news = on_news
        self._released: deque[Pin] = deque()

    @classmethod
    def connect(cls, arena_path: str, on_news: Callable[[], None]) -> Memory:
        """Get the arena's descriptor over the Unix socket at ``arena_path`` and map it."""
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
                sock.settimeout(20)
                sock.connect(arena_path)
                _, fd = receive_fd(sock)
        except OSError as error:
            raise ClusterConnectionError(
                f"cannot get the node's shared memory from {arena_path}: {error}"
            ) from error
        return cls(Arena.attach(fd, writable=True), on_news)

    def view(self, location: Location) -> memoryview:
        """A read-only view of an object that is pinned for us; the pin goes with its last view."""
        pin = (location.object_id, location.attempt)

        def release() -> None:  # runs anywhere, also inside a garbage collection
            self._released.append(pin)
            self._on_news()

        if not location.path:
            return pinned_view(self._arena, location.offset, location.size, release)
        file = map_file(Path(location.path), writable=False)
        try:
            return pinned_view(file, location.offset, location.size, release)
        finally:
            file.close()  # the mapping lives as long as the view

    def writable(self, location: Location) -> memoryview:
        """Where to write an object for which ``Create`` has made room."""
        if not location.path:
            try:
                return self._arena.view(location.offset, location.size)
            except ValueError as error:
                raise ArenaClosedError(str(error)) from None
        file = map_file(Path(location.path), writable=True)
        try:
            return file.view(location.offset, location.size)
        finally:
            file.close()

    def bytes_at(self, location: Location) -> memoryview | None:
        """What lies there now, pinned or not; None if that can no longer be seen."""
        return None if location.path else self._arena.view(location.offset, location.size)

    def give_back(self, location: Location) -> None:
        """Unpin an object of which no view was made."""
        self._released.append((location.object_id, location.attempt))
        self._on_news()

    def take_released(self) -> list[Pin]:
        """Pins that are free since the last call."""
        released = self._released
        return [released.popleft() for _ in range(len(released))]

    def close(self) -> None:
        """Unmap the arena, as soon as no view of it is left."""
        self._arena.close()


def track(view: memoryview) -> weakref.ref[Any]:
    """A weak reference to what lives as long as anything that was made of ``view``."""
    return weakref.ref(view.obj)


def tracked(weak: weakref.ref[Any] | None) -> memoryview | None:
    """The view again, while something made of it lives."""
    exporter = None if weak is None else weak()
    return None if exporter is None else memoryview(exporter)
