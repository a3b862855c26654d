"""Actors that run several calls at once: on threads, or on an asyncio loop.

Calls begin in the order in which they came; they end in any order.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Protocol

from regrow._execute import Executor
from regrow.messages import RunTask, TaskDone

#: Takes the outcome of a call (None: the actor ends with it), on any thread.
Tell = Callable[[TaskDone | None], None]


class Calls(Protocol):
    """Where the calls of an actor run."""

    def start(self, run: RunTask) -> None:
        """Begin a call, as soon as fewer than ``max_concurrency`` run."""

    def close(self) -> None:
        """Wait for the calls that have begun, and begin no other."""


def calls_of(executor: Executor, tell: Tell, flush: Callable[[], None]) -> Calls | None:
    """How this process's actor runs its calls; None: one at a time, on the main thread.

    ``flush`` sends what ``tell`` was given.
    """
    if executor.is_async:
        return AsyncCalls(executor, tell, flush)
    return ThreadedCalls(executor, tell, flush) if executor.concurrency > 1 else None


class ThreadedCalls:
    """Calls on ``max_concurrency`` threads."""

    def __init__(self, executor: Executor, tell: Tell, flush: Callable[[], None]) -> None:
        self._executor = executor
        self._tell = tell
        self._flush = flush
        self._threads = ThreadPoolExecutor(executor.concurrency, "regrow-call")

    def start(self, run: RunTask) -> None:
        self._threads.submit(self._call, run)

    def _call(self, run: RunTask) -> None:
        self._tell(self._executor.run(run))
        self._flush()

    def close(self) -> None:
        self._threads.shutdown(cancel_futures=True)


class AsyncCalls:
    """Calls on one asyncio loop, in a thread of its own; ``max_concurrency`` at once."""

    def __init__(self, executor: Executor, tell: Tell, flush: Callable[[], None]) -> None:
        self._executor = executor
        self._tell = tell
        self._flush = flush
        self._flushing = False
        self._loop = asyncio.new_event_loop()
        self._limit = asyncio.Semaphore(executor.concurrency)
        self._running: set[asyncio.Task[None]] = set()
        self._thread = threading.Thread(target=self._run_loop, name="regrow-loop", daemon=True)
        self._thread.start()

    def _run_loop(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_forever()

    def start(self, run: RunTask) -> None:
        self._loop.call_soon_threadsafe(self._create, run)

    def _create(self, run: RunTask) -> None:
        task = self._loop.create_task(self._call(run))
        self._running.add(task)  # the loop itself holds tasks weakly
        task.add_done_callback(partial(self._ended, run=run))

    async def _call(self, run: RunTask) -> None:
        async with self._limit:
            self._tell(await self._executor.run_async(run))
            self._flush_soon()

    def _ended(self, task: asyncio.Task[None], run: RunTask) -> None:
        self._running.discard(task)
        if task.cancelled():  # by the program, before the call began
            self._tell(self._executor.not_begun(run, asyncio.CancelledError()))
            self._flush_soon()

    def _flush_soon(self) -> None:
        if not self._flushing:  # calls that end together are told together
            self._flushing = True
            self._loop.call_soon(self._flush_now)

    def _flush_now(self) -> None:
        self._flushing = False
        self._flush()

    def close(self) -> None:
        # Others may wait for what never comes: the process ends without them.
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
