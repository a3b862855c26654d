"""A worker process: takes tasks from its node, runs them, and tells what came of them.

Decides when results leave: at once when there is nothing else to do, else a few together.  Before
the next call begins a result has left, or lies where the node finds it if that call kills this
process.  It ends at once when its node is gone, so that nothing is orphaned.
"""

from __future__ import annotations

import os
import signal
import sys
from collections import deque
from collections.abc import Callable
from queue import SimpleQueue
from typing import Final

from msgspec import Raw

from regrow import _client
from regrow._client import Client
from regrow._concurrency import Calls, calls_of
from regrow._context import Task
from regrow._execute import Executor
from regrow._link import Connection
from regrow._memory import Memory
from regrow._output import LineSender, LogWatcher
from regrow._refs import set_table
from regrow._saving import StateSaver
from regrow.exceptions import ClusterConnectionError, RayError
from regrow.messages import (
    PROTOCOL_VERSION,
    Bye,
    Exit,
    Hello,
    Output,
    Returned,
    Run,
    RunTask,
    TakeBack,
    TaskDone,
    header_decoder,
)
from regrow.objectstore.arena import Arena
from regrow.scheduler.last_words import LastWords

#: Results that leave together at most.
_RESULTS_MAX: Final = 16


class Worker(Client):
    """The client of a worker process."""

    def __init__(self, connection: Connection, arena_fd: int, last_words: LastWords) -> None:
        memory = Memory(Arena.attach(arena_fd, writable=True), self._on_news)
        super().__init__(connection, "worker", "commit", memory, last_words)
        self.executor = Executor(self)
        self._queue: deque[RunTask] = deque()
        self._news = _News(self)
        self._leaving = False
        #: Of an actor that runs several calls at once.
        self._calls: Calls | None = None
        self.on(Run, self._run)
        self.on(TakeBack, lambda message: self._return_unstarted(message.count))
        self.on(Exit, self._exit)

    # --- on whichever thread reads ----------------------------------------------------------------

    def _run(self, message: Run) -> None:
        if message.functions:
            self.executor.define(message.functions)
        self._queue.extend(message.tasks)
        self._news.tell()

    def _exit(self, _message: Exit) -> None:
        self._leaving = True
        self._news.tell()

    def _return_unstarted(self, count: int) -> None:
        taken: list[bytes] = []
        for _ in range(count):
            try:
                run = self._queue.pop()
            except IndexError:
                break
            taken.append(_task_id(run.spec))
        self.link.post(Returned(taken[::-1]))
        self.link.flush()

    @property
    def has_work(self) -> bool:
        """Whether the main thread has something to do."""
        return bool(self._queue or self._leaving or self.executor.exiting)

    def disconnected(self) -> bool:
        os._exit(0)

    def unsent(self) -> None:
        # Who reads may never see the end: a program that closes all descriptors leaves the thread
        # that waits at the connection waiting, and its node, too.
        os._exit(0)

    def failed(self, error: Exception) -> None:
        sys.excepthook(type(error), error, error.__traceback__)
        os._exit(1)

    # --- on the threads of tasks ------------------------------------------------------------------

    def give_back_unstarted(self) -> None:
        if self.executor.actor is None and self._queue:
            self._return_unstarted(len(self._queue))

    def blocking(self, wait: Callable[[], object]) -> None:
        if self._calls is not None:  # other calls of this process go on: it keeps its CPU
            wait()
        else:
            super().blocking(wait)

    def serve(self, streams: list[LineSender]) -> None:
        """Run tasks until the node, or the actor itself, says that it is over."""
        queue, executor, link = self._queue, self.executor, self.link
        unsent = 0
        while not executor.exiting:  # hot path: once per task
            try:
                run = queue.popleft()
            except IndexError:
                link.flush()
                unsent = 0
                if self._leaving:
                    break
                if self._calls is None:
                    link.wait(self._news, None)
                else:  # other threads make news, too, and cannot wake one that reads
                    self._news.sleep(None)
                continue
            if self._calls is not None:
                self._calls.start(run)
                continue
            was_actor = executor.actor is not None
            done = executor.run(run)
            for stream in streams:
                stream.end_line()
                if not was_actor or not queue:  # all calls of an actor have one label
                    stream.collect(whole_lines=False)
            del run
            if done is None:
                continue
            saver = executor.saver
            if saver is not None and was_actor and saver.count():
                self._save(saver, done)
                unsent = 0
                continue
            unsent += 1
            if not self.finish(done) or unsent >= _RESULTS_MAX:
                link.flush()
                unsent = 0
            if not was_actor and executor.actor is not None:
                self._calls = calls_of(executor, self._tell, link.flush)
        if self._calls is not None:
            self._calls.close()
        for stream in streams:
            stream.end_line()
            stream.collect(whole_lines=False)
        link.flush()

    def _save(self, saver: StateSaver, done: TaskDone) -> None:
        """The state after a call, told in front of its result where they are committed together."""
        if saver.exact:
            saver.save(self.executor.actor)
            self.finish(done)
        else:
            self.finish(done)
            self.link.flush()
            saver.save(self.executor.actor)
        self.link.flush()

    def finish(self, done: TaskDone) -> bool:
        """Queue a result; from any thread. False if it must be sent before anything else is done,
        or it might be lost with this process."""
        return self.link.finish(done) and not self.refs.has_borrowed

    def _tell(self, done: TaskDone | None) -> None:
        """A call of a concurrent actor ended, on any thread."""
        if done is not None and not self.finish(done):
            self.link.flush()
        if self.executor.exiting:
            self._news.tell()

    def source(self) -> tuple[int, str]:
        """Number of the job and label of what runs, for its output."""
        try:
            task: Task | None = self.running.current()
        except RayError:  # a thread that cannot tell; but all calls of an actor have one label
            task = self.running.some()
        if task is None:
            return 0, "worker"
        if task.actor_id:
            return task.job, task.name.rpartition(".")[0]
        return task.job, task.name


class _News:
    """Something to do, as something to wait for. Only the main thread waits."""

    def __init__(self, worker: Worker) -> None:
        self._worker = worker
        self._asleep = False
        self._tokens: SimpleQueue[None] = SimpleQueue()

    def is_done(self) -> bool:
        return self._worker.has_work

    def sleep(self, timeout_s: float | None) -> bool:
        self._asleep = True
        while not self._worker.has_work:
            self._tokens.get(timeout=timeout_s)
        self._asleep = False
        return True

    def tell(self) -> None:
        """There is something to do now; from any thread."""
        if self._asleep:
            self._tokens.put(None)


def run(path: str, token: str, number: int, arena_fd: int, last_words: LastWords) -> int:
    """Be worker ``number`` of the node at the socket ``path``; its exit status."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C at the terminal is the driver's
    try:
        connection = Connection(path, Hello(PROTOCOL_VERSION, token, "worker", os.getpid(), number))
    except ClusterConnectionError as gone:  # its node died as it was made
        print(f"worker {number}: {gone}", file=sys.stderr)
        return 1
    worker = Worker(connection, arena_fd, last_words)
    worker.token = token
    if worker.welcome.home:  # processes that tasks start join this cluster, and start none
        os.environ["REGROW_ADDRESS"] = worker.welcome.home
    _client.set_current(worker)
    set_table(worker.refs)

    def send(output: Output) -> None:
        worker.link.post(output)

    for plain in (sys.stdout, sys.stderr):  # still to be had as sys.__stdout__
        plain.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    streams = [LineSender(stream, worker.source, send) for stream in (1, 2)]
    sys.stdout, sys.stderr = streams
    worker.link.start()
    watcher = LogWatcher(streams)
    worker.serve(streams)
    watcher.close()
    worker.link.close(Bye(reason=worker.executor.exiting))
    return 0


def _task_id(spec: Raw) -> bytes:
    return header_decoder.decode(spec).task_id
