"""References as futures, for asyncio and for threads.

Values are made, and callbacks run, on a thread of their own: never on the one that reads from the
node, which a callback that calls ``get`` would then wait for in vain.
"""

from __future__ import annotations

import threading
from concurrent.futures import Future
from queue import SimpleQueue
from typing import Any, Protocol

from regrow._link import Link
from regrow._refs import ObjectRef, RefTable, Waiter
from regrow.exceptions import RayTaskError


class Values(Protocol):
    """What is needed of a client."""

    refs: RefTable
    link: Link

    def value_of(self, ref: ObjectRef[Any], view: memoryview | None) -> Any:
        """The value of a ready reference, or its error raised."""


_Ready = tuple["Future[Any]", ObjectRef[Any], memoryview | None]


class _Notice(Waiter):
    """Passes a reference on when it is ready."""

    __slots__ = ("_future", "_queue", "_ref")

    def __init__(
        self, future: Future[Any], ref: ObjectRef[Any], queue: SimpleQueue[_Ready | None]
    ) -> None:
        super().__init__(1, fetch=True)
        self._future = future
        self._ref = ref  # keeps it alive while its future may be waited for
        self._queue = queue

    def arrived(self, ref: ObjectRef[Any], view: memoryview | None) -> None:
        self._queue.put((self._future, ref, view))


class Futures:
    """See the module."""

    def __init__(self, client: Values) -> None:
        self._client = client
        self._queue: SimpleQueue[_Ready | None] = SimpleQueue()
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()

    def future(self, ref: ObjectRef[Any]) -> Future[Any]:
        """A future of ``ref``; it cannot be cancelled."""
        with self._lock:
            if self._thread is None:
                self._thread = threading.Thread(
                    target=self._run, name="regrow-futures", daemon=True
                )
                self._thread.start()
        future: Future[Any] = Future()
        future.set_running_or_notify_cancel()
        notice = _Notice(future, ref, self._queue)
        if self._client.refs.register([ref], notice):
            notice.arrived(ref, None)
        else:
            self._client.link.arm()  # what has to be asked for leaves soon
        return future

    def _run(self) -> None:
        while (ready := self._queue.get()) is not None:
            future, ref, view = ready
            try:
                value = self._client.value_of(ref, view)
            except BaseException as error:  # a user's exception may be of any kind
                future.set_exception(_awaitable(error))
            else:
                future.set_result(value)
            del future, ref, view, ready

    def close(self) -> None:
        """End the thread, after what is ready."""
        self._queue.put(None)
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join()


def _awaitable(error: BaseException) -> BaseException:
    """The error as a coroutine may raise it.

    A StopIteration would end the coroutine that awaits, as if it had returned: here the task's
    error is no instance of it, and has it as its ``cause`` only.
    """
    if not isinstance(error, StopIteration):
        return error
    if isinstance(error, RayTaskError):
        plain: Exception = RayTaskError(error.function_name, error.traceback_str, error.cause)
        plain.__cause__ = error.cause
    else:
        plain = RuntimeError(f"unpickling the value raised {error!r}")
        plain.__cause__ = error
    return plain
