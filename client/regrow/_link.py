"""The connection of a client to its node: batching, the commit window, reconnecting.

Messages queue up and leave together: when enough are pending, when somebody is about to wait
(``flush``), or a millisecond later.  Submissions (specs, small puts, seals) are kept until the node
says that they are committed, and are sent again over a new connection.  Decides when bytes leave
and in which order; what messages mean is the client's business.

Order within a batch: new borrows, then the queue, then drops and releases.  Dropped ids are
collected first and borrowed ids last, so that nothing is dropped before what needs it has left.
"""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Final, Protocol

import msgspec
from msgspec import Raw

from regrow._reader import Awaited, Reader
from regrow.exceptions import BY_CODE, ClusterConnectionError, RayError
from regrow.messages import (
    Committed,
    DefineFunctions,
    Done,
    Hello,
    NodeMessage,
    Put,
    PutValue,
    Refused,
    Seal,
    Submit,
    TaskDone,
    Welcome,
    encode,
    node_decoder,
)
from regrow.scheduler.last_words import LastWords
from regrow.wire import FrameError, FrameReader, frame

#: Submissions that make a batch leave at once.
BATCH_MAX: Final = 128
_READ_SIZE: Final = 256 * 1024
_FLUSH_INTERVAL_S: Final = 0.001
#: A signal's handler may raise between queueing and waking: so the flusher looks by itself, too.
_LOOK_INTERVAL_S: Final = 1.0
_CONNECT_TIMEOUT_S: Final = 20.0

#: What the node counts in ``Committed``.
Submission = Raw | PutValue | Seal
_SUBMISSIONS: Final = (Raw, PutValue, Seal)
Message = msgspec.Struct


class Peer(Protocol):
    """Who owns the link."""

    def receive(self, message: NodeMessage) -> None:
        """A message came; on any thread that waits, but one at a time."""

    def collect_drops(self) -> list[bytes]:
        """References that died."""

    def collect(self, dropped: list[bytes]) -> tuple[list[Message], list[Message]]:
        """What else must be told now, before and after the queue."""

    def disconnected(self) -> bool:
        """The connection broke. True: it was made anew (``attach``); False: there is none."""

    def unsent(self) -> None:
        """Something could not be sent."""

    def failed(self, error: Exception) -> None:
        """Handling a message raised: an error of ours. Nothing is read any more."""


class Connection:
    """A socket that has been welcomed. Raises the node's refusal as an error of ours."""

    def __init__(self, path: str, hello: Hello) -> None:
        self.path = path
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.frames = FrameReader()
        try:
            self.socket.settimeout(_CONNECT_TIMEOUT_S)
            self.socket.connect(path)
            self.socket.sendall(frame(encode(hello)))
            self.welcome, self.early = self._await_welcome()
            self.socket.settimeout(None)
        except RayError:  # the node's answer
            self.socket.close()
            raise
        except (OSError, FrameError, msgspec.MsgspecError) as error:
            self.socket.close()
            raise ClusterConnectionError(
                f"cannot talk to the node at {path}: {error}. Is the cluster running "
                f"(`regrow status`)?"
            ) from error
        except BaseException:
            self.socket.close()
            raise

    def shut_down(self) -> None:
        """End it from this side; whoever reads notices."""
        with contextlib.suppress(OSError):  # it may be closed already
            self.socket.shutdown(socket.SHUT_RDWR)

    def _await_welcome(self) -> tuple[Welcome, list[bytes]]:
        while True:
            data = self.socket.recv(_READ_SIZE)
            if not data:
                raise ConnectionError("it closed the connection")
            bodies = self.frames.feed(data)
            if not bodies:
                continue
            message = node_decoder.decode(bodies[0])
            if isinstance(message, Refused):
                raise refusal(message)
            if not isinstance(message, Welcome):
                raise ConnectionError(f"it answered with {type(message).__name__}")
            return message, bodies[1:]


def refusal(refused: Refused) -> RayError:
    """The error that it stands for."""
    kind: type[RayError] = BY_CODE.get(refused.code, ClusterConnectionError)
    return kind(refused.message)


class Link:
    """See the module. All methods may be called from any thread."""

    def __init__(
        self, connection: Connection, peer: Peer, last_words: LastWords | None = None
    ) -> None:
        self._connection = connection
        self._peer = peer
        self._window = max(connection.welcome.window, BATCH_MAX)
        self._queue: deque[Submission | Message] = deque()
        self._uncommitted: deque[Submission] = deque()
        self._sending = threading.Lock()
        #: Results at the front of the queue that the node finds there, should this process die.
        self._last_words = last_words
        self._keeping = threading.Lock()
        #: The thread that holds it, for finalizers, which may run in the middle of a flush.
        self._sender = 0
        self._armed = False
        self._wake = threading.Lock()
        self._wake.acquire()
        self._credit = _Credit(self)
        self._closed = False
        #: Counts connections: what was written for one node is no use to another.
        self.generation = 0
        self._failure: RayError | None = None
        self._reader = Reader(connection, self._handle, self._renew, peer.failed)
        self._flusher = threading.Thread(target=self._tick, name="regrow-flusher", daemon=True)

    def start(self) -> None:
        """Begin to read and to send."""
        self._reader.start()
        self._flusher.start()

    @property
    def path(self) -> str:
        """The socket of the node."""
        return self._connection.path

    # --- sending ----------------------------------------------------------------------------------

    def submit(self, item: Submission | TaskDone | Message) -> bool:
        """Queue ``item``. True if it is time to flush, and to look at the window."""
        queue = self._queue
        queue.append(item)
        if not self._armed:
            self.arm()
        return len(queue) >= BATCH_MAX or len(self._uncommitted) >= self._window

    def submit_seal(self, seal: Seal, generation: int, sealed: Callable[[], None]) -> bool:
        """Queue a seal, unless its node is gone; ``sealed`` is called in the same moment."""
        with self._sending:
            if generation != self.generation:
                return False
            sealed()
            self.submit(seal)
            return True

    def finish(self, done: TaskDone) -> bool:
        """Queue a result. False if it has to be sent at once to outlive this process: what it
        may refer to is in front of it and is not sent, or there is no room to keep it. Hot path."""
        words = self._last_words
        if words is None:
            self.submit(done)
            return False
        with self._keeping:
            kept = len(self._queue) == words.count and words.keep(frame(encode(done)))
            self._queue.append(done)
        if not self._armed:
            self.arm()
        return kept

    def post(self, message: Message) -> None:
        """Queue ``message``; it leaves with the next batch, a millisecond from now at most."""
        self._queue.append(message)
        if not self._armed:
            self.arm()

    def arm(self) -> None:
        """Make sure that a flush happens soon. Safe anywhere, also in a finalizer."""
        if not self._armed:
            self._armed = True
            try:
                self._wake.release()
            except RuntimeError:  # another thread has just done it
                return

    def flush(self) -> None:
        """Send everything that is queued. Raises ClusterConnectionError when the node is gone."""
        self.check()
        me = threading.get_ident()
        if self._sender == me and self._sending.locked():
            return  # a finalizer that runs in the middle of a flush
        with self._sending:
            self._sender = me
            items = list(self._queue)
            submissions = [item for item in items if isinstance(item, _SUBMISSIONS)]
            try:
                dropped = self._peer.collect_drops()
                self._uncommitted.extend(submissions)
                batch = self._make_batch(items, dropped)
                if batch:
                    self._send(batch)
            except BaseException:  # Ctrl-C: nobody knows what has left
                if submissions and submissions[-1] not in self._uncommitted:
                    self._uncommitted.extend(submissions)
                self._connection.shut_down()
                raise
            finally:
                self._sender = 0
                self._forget(len(items))

    def _forget(self, count: int) -> None:
        """The first ``count`` of the queue have left."""
        queue, words = self._queue, self._last_words
        with self._keeping:
            if words is not None and words.count:
                words.forget(min(count, words.count))
            for _ in range(count):
                queue.popleft()

    def _make_batch(self, items: list[Submission | Message], dropped: list[bytes]) -> bytes:
        before, after = self._peer.collect(dropped)
        if not items and not before and not after:
            return b""
        out = [frame(encode(message)) for message in before]
        self._pack(items, out, False)
        out.extend(frame(encode(message)) for message in after)
        return b"".join(out)

    def _pack(self, items: Sequence[Submission | Message], out: list[bytes], resent: bool) -> None:
        """Pack runs of equal items into one message each."""
        start, end = 0, len(items)
        while start < end:
            kind = type(items[start])
            stop = start + 1
            if kind is Raw or kind is PutValue or kind is TaskDone:
                while stop < end and type(items[stop]) is kind:
                    stop += 1
            run = items[start:stop]
            message: Message
            if kind is Raw:
                message = Submit(run, resent)  # type: ignore[arg-type]
            elif kind is PutValue:
                message = Put(run)  # type: ignore[arg-type]
            elif kind is TaskDone:
                message = Done(run)  # type: ignore[arg-type]
            else:
                message = run[0]  # type: ignore[assignment]
            out.append(frame(encode(message)))
            start = stop

    def _send(self, data: bytes) -> None:
        try:
            self._connection.socket.sendall(data)
        except OSError:
            # The reading thread sees the end of the connection too and makes a new one, over which
            # the submissions are sent again and everything else is told anew.
            self._peer.unsent()

    # --- the window -------------------------------------------------------------------------------

    @property
    def over_window(self) -> bool:
        """Whether the next submission has to wait for a commit."""
        return len(self._uncommitted) >= self._window

    def await_credit(self) -> None:
        """Wait until the window has room again; raises ClusterConnectionError if it never will."""
        self.flush()
        while self.over_window:
            self.check()
            self._reader.wait(self._credit, None)

    def check(self) -> None:
        """Raises ClusterConnectionError if the node is gone for good."""
        if self._failure is not None:
            raise self._failure

    @property
    def is_over(self) -> bool:
        """Whether the node is gone for good."""
        return self._failure is not None

    def _committed(self, count: int) -> None:
        uncommitted = self._uncommitted
        was_over = len(uncommitted) >= self._window
        for _ in range(min(count, len(uncommitted))):
            uncommitted.popleft()
        if was_over:
            self._credit.notify()

    # --- receiving --------------------------------------------------------------------------------

    @property
    def closed(self) -> bool:
        """Whether ``close`` was called."""
        return self._closed

    def wait(self, awaited: Awaited, timeout_s: float | None) -> bool:
        """Wait for something that the node will say; the caller has flushed."""
        return self._reader.wait(awaited, timeout_s)

    def _handle(self, message: NodeMessage) -> None:
        if type(message) is Committed:
            self._committed(message.count)
        else:
            self._peer.receive(message)

    def _renew(self) -> Connection | None:
        if self._closed:
            return None
        self._connection.socket.close()
        return self._connection if self._peer.disconnected() else None

    def _tick(self) -> None:
        while not self._closed:
            self._wake.acquire(timeout=_LOOK_INTERVAL_S)
            quiet = 0
            # Stays awake a little longer than needed: waking costs more than looking.
            while quiet < 10 and not self._closed:
                time.sleep(_FLUSH_INTERVAL_S)
                quiet = 0 if self._queue else quiet + 1
                try:
                    self.flush()
                except RayError:
                    return
            self._armed = False
            if self._queue:
                self.arm()

    # --- the end of a connection ------------------------------------------------------------------

    def attach(
        self, connection: Connection,
        declare: Callable[[], tuple[list[Message], list[Message]]],
    ) -> list[Seal]:  # fmt: skip
        """Go on over ``connection``: with what ``declare`` says is to come before and after the
        uncommitted submissions.

        Returns the seals among those, which are not sent: what they seal lies with the node that
        died.  Called from ``disconnected``, on the reader's own thread.
        """
        with self._sending:
            first, last = declare()
            # Whatever else is queued is declared anew, too.
            items = [*self._uncommitted, *self._queue]
            again = [item for item in items if isinstance(item, (Raw, PutValue, DefineFunctions))]
            self._queue.clear()
            self._uncommitted = deque(i for i in again if isinstance(i, _SUBMISSIONS))
            self._connection = connection
            self._window = max(connection.welcome.window, BATCH_MAX)
            self.generation += 1
            out = [frame(encode(message)) for message in first]
            self._pack(again, out, True)
            out.extend(frame(encode(message)) for message in last)
            self._send(b"".join(out))
            return [item for item in items if isinstance(item, Seal)]

    def fail(self, failure: RayError) -> None:
        """There will be no connection any more."""
        self._failure = failure
        self._credit.notify()

    def close(self, last: Message | None = None) -> None:
        """Send what is queued, and ``last``, and end both threads."""
        if last is not None and self._failure is None:
            self._queue.append(last)
            self.flush()
        self._closed = True
        if self._failure is None:
            self.fail(ClusterConnectionError("the connection was closed by regrow.shutdown()"))
        self._connection.shut_down()
        self.arm()
        self._reader.close()
        if self._flusher.is_alive() and self._flusher is not threading.current_thread():
            self._flusher.join()
        self._connection.socket.close()

    def abandon(self) -> None:
        """In a forked child: the connection is the parent's."""
        self._closed = True
        self._failure = ClusterConnectionError(
            "this process was forked from one that is connected; call regrow.init() here"
        )
        os.close(self._connection.socket.detach())


class _Credit:
    """Room in the window, as something to wait for."""

    def __init__(self, link: Link) -> None:
        self._link = link
        self._news = threading.Condition(threading.Lock())

    def is_done(self) -> bool:
        return not self._link.over_window or self._link.is_over

    def sleep(self, timeout_s: float | None) -> bool:
        with self._news:
            return self._news.wait_for(self.is_done, timeout_s)

    def notify(self) -> None:
        with self._news:
            self._news.notify_all()
