"""References, and what this process knows of the objects behind them.

Decides which object ids the process holds (a reference is unique per id: Python's own count of it
is the reference count), who waits for what, and when a node must be told.  It does no I/O: the
client carries what ``take_*`` returns to the node and feeds in what the node says.

A reference holds the bytes of a small object itself.  Large ones are read through the arena when
somebody gets them.
"""

from __future__ import annotations

import threading
import weakref
from collections import deque
from collections.abc import Callable, Generator, Iterable
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar

from regrow.exceptions import RaySystemError
from regrow.ids import producer
from regrow.messages import OK, PENDING, SYSTEM_ERROR, SystemFailure, Value, encode
from regrow.objectstore.serialization import note_ref

if TYPE_CHECKING:
    import asyncio
    import concurrent.futures

    # For type checkers a reference fits wherever a value does, so that `f.remote(ref)` is accepted
    # while the other arguments are checked; that is how it is at run time too.
    _Argument = Any

    import typing_extensions

    # With a default, so that annotations may say `ObjectRef` alone.
    T_co = typing_extensions.TypeVar("T_co", covariant=True, default=Any)
else:
    T_co = TypeVar("T_co", covariant=True)

    class _Argument:
        __slots__ = ()


# Flags of a reference.
#: The node was asked to tell of it, or does so unasked.
_TOLD: Final = 1
#: Its bytes were asked for with ``Read``.
_READING: Final = 2
#: Its bytes have been on this node.
_LOCAL: Final = 4
#: Somebody pickled it where nobody counts references: it is kept for as long as the client.
_KEPT: Final = 8


class ObjectRef(_Argument, Generic[T_co]):  # type: ignore[misc]  # its base is Any, see there
    """A reference to an object that exists or will. Hashable, picklable, awaitable."""

    __slots__ = (
        "__weakref__", "_data", "_flags", "_id", "_status", "_table", "_view", "_waiters",
    )  # fmt: skip

    _id: bytes
    _status: int
    _data: bytes | None
    _waiters: Waiter | list[Waiter] | None

    def __init__(self, object_id: bytes, table: RefTable, flags: int) -> None:
        self._id = object_id
        self._table = table
        self._flags = flags
        self._status = PENDING
        self._data = None
        self._view = None
        self._waiters = None

    def binary(self) -> bytes:
        """The object's id, 20 bytes."""
        return self._id

    def hex(self) -> str:
        """The object's id in hexadecimal."""
        return self._id.hex()

    def task_id(self) -> bytes:
        """The id of the task that returns the object (of a put: the put's own id)."""
        return producer(self._id)

    def future(self) -> concurrent.futures.Future[T_co]:
        """A future that gets the value, or the exception, once it is there."""
        return self._table.future(self)

    def as_future(self, _internal: bool = False) -> asyncio.Future[T_co]:
        """The same for asyncio."""
        import asyncio

        return asyncio.wrap_future(self.future())

    def __await__(self) -> Generator[Any, None, T_co]:
        return self.as_future().__await__()

    def __hash__(self) -> int:
        return hash(self._id)

    def __eq__(self, other: object) -> bool:
        # Two instances of one id exist only across a shutdown.
        return self is other or (isinstance(other, ObjectRef) and self._id == other._id)

    def __repr__(self) -> str:
        return f"ObjectRef({self._id.hex()})"

    def __copy__(self) -> ObjectRef[T_co]:
        return self

    def __deepcopy__(self, memo: object) -> ObjectRef[T_co]:
        return self

    def __reduce__(self) -> tuple[Callable[[bytes], ObjectRef[Any]], tuple[bytes]]:
        if not note_ref(self._id):
            self._table.keep(self)
        return ref_from_id, (self._id,)


class _Weak(weakref.ref[ObjectRef[Any]]):
    """Tells the table when its reference has died.

    Not ``__del__``: while that runs, another thread could still get at the reference through the
    table, and it would never be told of its death again."""

    __slots__ = ("object_id",)

    object_id: bytes


class Waiter:
    """Somebody who sleeps until ``missing`` references are ready, told under the table's lock."""

    __slots__ = ("_lock", "fetch", "missing", "views")

    def __init__(self, missing: int, fetch: bool) -> None:
        self.missing = missing
        #: Large objects are ready when their bytes are here.
        self.fetch = fetch
        #: The bytes of large objects, by id.
        self.views: dict[bytes, memoryview] = {}
        self._lock = threading.Lock()
        self._lock.acquire()

    def arrived(self, ref: ObjectRef[Any], view: memoryview | None) -> None:
        """One of the references is ready."""
        if view is not None:
            self.views[ref._id] = view
        self.missing -= 1
        if self.missing == 0:
            self._lock.release()

    def is_done(self) -> bool:
        """Whether all are ready."""
        return self.missing <= 0

    def sleep(self, timeout_s: float | None) -> bool:
        """Whether all were ready in time."""
        return self._lock.acquire(timeout=-1 if timeout_s is None else max(timeout_s, 0))


class RefTable:
    """The references of this process. ``on_news`` is called, from anywhere, when one has
    died."""

    def __init__(self, on_news: Callable[[], None]) -> None:
        # Reentrant: a finalizer that a garbage collection runs in here may use references too.
        self.lock = threading.RLock()
        self._refs: dict[bytes, _Weak] = {}
        self._dead: deque[bytes] = deque()
        self._told_of_death = self._died
        self._on_news = on_news
        self._borrowed: list[bytes] = []
        self._subscribing: list[bytes] = []
        self._reading: list[bytes] = []
        self._kept: list[ObjectRef[Any]] = []
        self._failure: SystemFailure | None = None
        #: Makes futures of references (set by the client).
        self.future: Callable[[ObjectRef[Any]], concurrent.futures.Future[Any]]

    def _died(self, weak: weakref.ref[ObjectRef[Any]]) -> None:
        """Runs anywhere, also inside a garbage collection under the table's own lock."""
        assert isinstance(weak, _Weak)
        self._dead.append(weak.object_id)
        self._on_news()

    def _remember(self, ref: ObjectRef[Any]) -> None:
        weak = self._refs[ref._id] = _Weak(ref, self._told_of_death)
        weak.object_id = ref._id

    # --- making references ------------------------------------------------------------------------

    def fresh(self, object_id: bytes) -> ObjectRef[Any]:
        """The reference of a new id of our own submission."""
        ref: ObjectRef[Any] = ObjectRef(object_id, self, _TOLD)
        self._remember(ref)
        return ref

    def own(self, object_id: bytes) -> ObjectRef[Any]:
        """The reference of an object of our own submission, which may be known already."""
        with self.lock:
            ref = self._living(object_id)
            if ref is None:
                return self.fresh(object_id)
            ref._flags |= _TOLD
            return ref

    def borrowed(self, object_id: bytes) -> ObjectRef[Any]:
        """The reference of an object whose id arrived in a value."""
        with self.lock:
            ref = self._living(object_id)
            if ref is None:
                ref = ObjectRef(object_id, self, 0)
                self._remember(ref)
                self._borrowed.append(object_id)
                if self._failure is not None:
                    self._settle(ref, SYSTEM_ERROR, encode(self._failure))
                self._on_news()
            return ref

    def known(self, ref: ObjectRef[Any], data: bytes | None) -> None:
        """We have just put this object: ``data`` where it is small."""
        with self.lock:
            if ref._status == PENDING:
                self._settle(ref, OK, data)

    def fail(self, object_id: bytes, failure: SystemFailure) -> None:
        """An object of ours is lost for good."""
        with self.lock:
            ref = self._living(object_id)
            if ref is not None:
                self._settle(ref, SYSTEM_ERROR, encode(failure))

    def is_held(self, object_id: bytes) -> bool:
        """Whether a reference to it lives."""
        return self._living(object_id) is not None

    def keep(self, ref: ObjectRef[Any]) -> None:
        """Never drop ``ref``: a copy of it may exist where nobody counts."""
        with self.lock:
            if not ref._flags & _KEPT:
                ref._flags |= _KEPT
                self._kept.append(ref)

    def _living(self, object_id: bytes) -> ObjectRef[Any] | None:
        weak = self._refs.get(object_id)
        return None if weak is None else weak()

    # --- waiting ----------------------------------------------------------------------------------

    def register(self, refs: Iterable[ObjectRef[Any]], waiter: Waiter) -> int:
        """Tell ``waiter`` of each of these distinct references; how many are ready already.

        Those are not told. The caller flushes, so that what must be asked for is.
        """
        ready = 0
        with self.lock:
            for ref in refs:
                if self._is_ready(ref, waiter.fetch):
                    ready += 1
                    continue
                if ref._status != PENDING:
                    self._ask_to_read(ref)
                elif not ref._flags & _TOLD:
                    self._subscribing.append(ref._id)  # first: a signal's handler may raise
                    ref._flags |= _TOLD
                waiters = ref._waiters
                if waiters is None:
                    ref._waiters = waiter
                elif isinstance(waiters, list):
                    waiters.append(waiter)
                else:
                    ref._waiters = [waiters, waiter]
            waiter.missing -= ready
        return ready

    def forget(self, refs: Iterable[ObjectRef[Any]], waiter: Waiter) -> None:
        """``waiter`` waits no longer."""
        with self.lock:
            for ref in refs:
                waiters = ref._waiters
                if waiters is waiter:
                    ref._waiters = None
                elif isinstance(waiters, list):
                    ref._waiters = [other for other in waiters if other is not waiter] or None

    def _is_ready(self, ref: ObjectRef[Any], fetch: bool) -> bool:
        if ref._status == PENDING:
            return False
        # A getter needs the bytes in its hands (see ``view``); whoever waits, only on this node.
        return not fetch or ref._data is not None

    def _ask_to_read(self, ref: ObjectRef[Any]) -> None:
        if not ref._flags & _READING:
            self._reading.append(ref._id)
            ref._flags |= _READING

    # --- what the node says -----------------------------------------------------------------------

    def handle_values(self, values: Iterable[Value]) -> bool:
        """Objects are there. True if some must be read now (``take_asked``)."""
        refs = self._refs
        with self.lock:
            for value in values:  # hot path: every result of a driver
                weak = refs.get(value.object_id)
                ref = None if weak is None else weak()
                if ref is not None and (ref._status == PENDING or ref._data is None):
                    self._settle(ref, value.status, value.data)
            return bool(self._reading)

    def handle_located(
        self, object_id: bytes, view: memoryview, track: Callable[[memoryview], Any]
    ) -> None:
        """The bytes of an object, pinned for as long as ``view`` or anything made of it lives.

        ``track`` makes a weak reference to what keeps the bytes pinned.
        """
        with self.lock:
            ref = self._living(object_id)
            if ref is None:
                return
            ref._flags = (ref._flags | _LOCAL) & ~_READING
            if ref._status == PENDING:
                ref._status = OK
            ref._view = track(view)
            waiters, ref._waiters = ref._waiters, None
            for waiter in _each(waiters):
                waiter.arrived(ref, view)

    def _settle(self, ref: ObjectRef[Any], status: int, data: bytes | None) -> None:
        ref._data = data
        ref._status = status
        waiters = ref._waiters
        if data is not None:
            ref._flags &= ~_READING
            ref._waiters = None
            for waiter in _each(waiters):
                waiter.arrived(ref, None)
            return
        if waiters is None:
            return
        reading: list[Waiter] = []
        for waiter in _each(waiters):
            if waiter.fetch:
                reading.append(waiter)
            else:
                waiter.arrived(ref, None)
        ref._waiters = reading or None
        if reading:
            self._ask_to_read(ref)

    def fail_all(self, failure: SystemFailure) -> None:
        """The node is gone for good: nothing that is not here will ever come."""
        data = encode(failure)
        with self.lock:
            self._failure = failure
            for weak in list(self._refs.values()):
                ref = weak()
                if ref is not None and (ref._status == PENDING or ref._waiters is not None):
                    self._settle(ref, SYSTEM_ERROR, data)

    # --- what the node must be told ---------------------------------------------------------------

    def take_dropped(self) -> list[bytes]:
        """Ids of which no reference is left."""
        dead = self._dead
        if not dead:
            return []
        refs = self._refs
        gone: list[bytes] = []
        with self.lock:
            for _ in range(len(dead)):
                object_id = dead.popleft()
                weak = refs.get(object_id)
                # It may have been referred to again, and that reference may have died as well.
                if weak is not None and weak() is None:
                    del refs[object_id]
                    gone.append(object_id)
        return gone

    @property
    def has_borrowed(self) -> bool:
        """Whether the node has to be told of ids that are held anew."""
        return bool(self._borrowed)

    def take_borrowed(self, dropped: list[bytes]) -> tuple[list[bytes], list[bytes]]:
        """Ids held anew, to be told before and after the ``dropped`` ones (taken before this)."""
        if not self._borrowed:
            return [], []
        with self.lock:
            borrowed, self._borrowed = self._borrowed, []
            if not dropped:
                return borrowed, []
            gone = frozenset(dropped)
            before = [object_id for object_id in borrowed if object_id not in gone]
            after = [oid for oid in borrowed if oid in gone and self._living(oid) is not None]
        return before, after

    def take_asked(self) -> tuple[list[bytes], list[bytes]]:
        """Ids to subscribe to, and ids to read."""
        if not self._subscribing and not self._reading:
            return [], []
        with self.lock:
            subscribing, self._subscribing = self._subscribing, []
            reading, self._reading = self._reading, []
        return subscribing, reading

    def held(self) -> tuple[list[bytes], list[bytes], list[bytes]]:
        """For a new connection: all ids held, those awaited, those whose bytes are awaited."""
        holding: list[bytes] = []
        pending: list[bytes] = []
        reading: list[bytes] = []
        with self.lock:
            self._borrowed, self._subscribing, self._reading = [], [], []
            for object_id, weak in self._refs.items():
                ref = weak()
                if ref is None:
                    continue
                holding.append(object_id)
                if ref._data is not None and ref._waiters is not None:
                    self._settle(ref, ref._status, ref._data)  # telling of it was interrupted
                if ref._status == PENDING and (ref._flags & _TOLD or ref._waiters is not None):
                    pending.append(object_id)
                elif ref._flags & _READING:
                    reading.append(object_id)
        return holding, pending, reading


def is_ready(ref: ObjectRef[Any], fetch: bool) -> bool:
    """Whether ``wait`` counts this reference as ready; ``fetch``: its bytes are on this node."""
    return ref._status != PENDING and (
        not fetch or ref._data is not None or bool(ref._flags & _LOCAL)
    )


def _each(waiters: Waiter | list[Waiter] | None) -> Iterable[Waiter]:
    if waiters is None:
        return ()
    return waiters if isinstance(waiters, list) else (waiters,)


_table: RefTable | None = None


def set_table(table: RefTable | None) -> None:
    """The table to which references belong that are unpickled from now on."""
    global _table
    _table = table


def ref_from_id(object_id: bytes) -> ObjectRef[Any]:
    """What an unpickled reference becomes. Raises RaySystemError without a connection."""
    if _table is None:
        raise RaySystemError(
            "an ObjectRef was unpickled in a process that is not connected; "
            "call regrow.init() first"
        )
    return _table.borrowed(object_id)
