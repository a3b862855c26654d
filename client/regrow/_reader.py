"""Who reads from the node's socket: the thread that waits for something, or a thread for it.

A value that arrives while its getter sleeps on a lock costs two switches of threads, some 50 us of
a round trip of 400.  So whoever waits reads by itself (it *leads*) and handles what comes, whomever
it is for.  A thread of the reader's own leads while nobody waits, and steps back when it has woken
all who wait: they will probably wait again at once.

Decides only that.  Exactly one thread leads at a time; what is read is handled in order, and whole:
where handling is interrupted (Ctrl-C) the connection counts as lost, and a new one makes up for it.
"""

from __future__ import annotations

import contextlib
import select
import socket
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Final, Protocol

import msgspec

from regrow.messages import NodeMessage, node_decoder
from regrow.wire import FrameError, FrameReader

_READ_SIZE: Final = (256 * 1024,)
#: How long the reader's own thread leaves the socket to others before it looks again.
_REST_MIN_S: Final = 0.004
_REST_MAX_S: Final = 0.02


class Source(Protocol):
    """A connection, as far as it is read from."""

    socket: socket.socket
    frames: FrameReader
    #: What was read together with the welcome.
    early: list[bytes]


class Awaited(Protocol):
    """What a thread can wait for."""

    def is_done(self) -> bool:
        """Whether it has come."""

    def sleep(self, timeout_s: float | None) -> bool:
        """Sleep until another thread has handled it; False if it did not come in time."""


class Reader:
    """See the module.

    ``handle`` gets every message, on any thread but one at a time. ``renew`` is called on the
    reader's own thread when the connection is lost and gives a new one, or None for good;
    ``failed`` when ``handle`` raised.
    """

    def __init__(
        self, source: Source, handle: Callable[[NodeMessage], None],
        renew: Callable[[], Source | None], failed: Callable[[Exception], None],
    ) -> None:  # fmt: skip
        self._source = source
        self._handle = handle
        self._renew = renew
        self._failed = failed
        self._lead = threading.Lock()
        self._inbox: deque[bytes] = deque()
        self._sleeping: list[Awaited] = []
        self._lost = False
        self._closed = False
        self._wake = threading.Lock()
        self._wake.acquire()
        self._thread = threading.Thread(target=self._run, name="regrow-reader", daemon=True)

    def start(self) -> None:
        """Begin to read."""
        self._thread.start()

    def wait(self, awaited: Awaited, timeout_s: float | None) -> bool:
        """Wait, and read meanwhile if nobody else does. False if it did not come in time."""
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        if self._lead.acquire(blocking=False):
            try:
                while not awaited.is_done() and not self._lost:
                    if deadline is not None and not self._readable(deadline):
                        return awaited.is_done()
                    self._read_once()
            finally:
                self._lead.release()
                if self._sleeping or self._lost:
                    self._rouse()
            if awaited.is_done():
                return True
        self._sleeping.append(awaited)
        try:
            return awaited.is_done() or awaited.sleep(_left(deadline))
        finally:
            self._sleeping.remove(awaited)

    def close(self) -> None:
        """End the reader's own thread; the socket is shut down by its owner."""
        self._closed = True
        self._rouse()
        if self._thread.is_alive() and self._thread is not threading.current_thread():
            self._thread.join()

    # --- leading ----------------------------------------------------------------------------------

    def _readable(self, deadline: float) -> bool:
        poll = select.poll()
        poll.register(self._source.socket, select.POLLIN)
        return bool(poll.poll(max(0.0, deadline - time.monotonic()) * 1000))

    def _read_once(self) -> None:
        """Read what is there, or what comes next, and handle it. Only for who leads."""
        try:
            # In one C call, so that nothing is lost if a signal's handler raises before or after.
            self._inbox.extend(map(self._source.socket.recv, _READ_SIZE))
        except OSError:
            self._lost = True
            return
        self._handle_inbox()

    def _handle_inbox(self) -> None:
        frames, inbox, handle = self._source.frames, self._inbox, self._handle
        handled = False
        try:
            while inbox:
                data = inbox.popleft()
                if not data:
                    return  # the end: not handled
                for body in frames.feed(data):
                    handle(node_decoder.decode(body))
            handled = True
        except (FrameError, msgspec.MsgspecError):
            return
        except Exception as error:
            self._failed(error)
        finally:
            if not handled:
                self._lost = True

    # --- the reader's own thread ------------------------------------------------------------------

    def _run(self) -> None:
        with self._lead:
            self._handle_early()
        rest_s = _REST_MIN_S
        while not self._closed:
            if self._lead.acquire(blocking=False):
                try:
                    if self._lost and not self._connect_anew():
                        return
                    self._lead_for_others()
                finally:
                    self._lead.release()
                rest_s = _REST_MIN_S
            else:
                rest_s = min(rest_s * 2, _REST_MAX_S)
            if not self._lost:
                self._wake.acquire(timeout=rest_s)

    def _lead_for_others(self) -> None:
        while not (self._closed or self._lost):
            self._read_once()
            sleeping = self._sleeping.copy()
            if sleeping and all(awaited.is_done() for awaited in sleeping):
                return

    def _connect_anew(self) -> bool:
        source = None if self._closed else self._renew()
        if source is None:
            return False
        self._source = source
        self._inbox.clear()
        self._lost = False
        self._handle_early()
        return True

    def _handle_early(self) -> None:
        for body in self._source.early:
            self._handle(node_decoder.decode(body))

    def _rouse(self) -> None:
        with contextlib.suppress(RuntimeError):  # it is awake already
            self._wake.release()


def _left(deadline: float | None) -> float | None:
    return None if deadline is None else max(0.0, deadline - time.monotonic())
