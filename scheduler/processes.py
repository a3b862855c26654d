"""The shell of the worker pool: the warm fork server and the processes it makes.

The fork server is started by module name, so the node never imports the client.  It tells of every
worker that ends; workers end by themselves when their node does.  When it ends itself, its workers
do too, and another is started.  What a worker had finished but not sent when it died is read here.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path

import msgspec

from regrow.messages import TaskDone
from regrow.scheduler.events import Event, WorkerExited
from regrow.scheduler.last_words import LastWords, last_output
from regrow.wire import FrameReader, frame

logger = logging.getLogger(__name__)

_MODULE = "regrow._forkserver"
#: A fork server that has ended is followed by the next at once; by one after it that soon ends too
#: after a pause, which doubles.
_PAUSE_FIRST_S = 0.1
_PAUSE_MAX_S = 5.0
#: So long it has to live for the next not to wait.
_LIVES_S = 10.0
#: Descriptors that come with one read.
_FDS_MAX = 16
_done_decoder = msgspec.msgpack.Decoder(TaskDone)


class WorkerProcesses:
    """See the module. ``environment`` is what every worker gets besides the node's own."""

    def __init__(
        self,
        environment: Mapping[str, str],
        arena_fd: int,
        log_dir: Path,
        on_event: Callable[[Event], None],
    ) -> None:
        self._environment = dict(environment)
        self._arena_fd = arena_fd
        self._log_dir = log_dir
        self._on_event = on_event
        self._pids: dict[int, int] = {}
        #: Workers that were asked for and have not ended; requests that no fork server has yet.
        self._asked: dict[int, None] = {}
        self._unsent: list[bytes] = []
        self._started_at = 0.0
        self._pause_s = 0.0
        self._restart: asyncio.TimerHandle | None = None
        self._last_words: dict[int, LastWords] = {}
        #: Of workers whose message is not read yet.
        self._fds: deque[int] = deque()
        self._worker_env: dict[str, str] = {}
        self._reader = FrameReader()
        self._process: subprocess.Popen[bytes] | None = None
        self._socket: socket.socket | None = None

    def set_socket(self, path: str, token: str) -> None:
        """Where workers find their node, and what they prove themselves with."""
        self._worker_env = {"REGROW_NODE_SOCKET": path, "REGROW_TOKEN": token}

    def start(self) -> None:
        """Starts the fork server; it warms up while the node goes on."""
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        self._socket = ours
        environment = {**os.environ, **self._environment, "PYTHONHASHSEED": "0"}
        log = open(self._log_dir / f"workers-{os.getpid()}.log", "ab")  # noqa: SIM115
        with theirs, log:
            self._process = subprocess.Popen(
                [
                    sys.executable, "-m", _MODULE,
                    "--fd", str(theirs.fileno()), "--arena-fd", str(self._arena_fd),
                ],
                pass_fds=(theirs.fileno(), self._arena_fd),
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )  # fmt: skip
        loop = asyncio.get_running_loop()
        loop.add_reader(ours.fileno(), self._readable)
        self._started_at = loop.time()
        unsent, self._unsent = self._unsent, []
        for request in unsent:
            self._send(ours, request)

    def fork(self, number: int, env: Mapping[str, str]) -> None:
        """Asks for a worker."""
        body = {"number": number, "env": {**self._worker_env, **env}, "log": str(self._log_dir)}
        request = frame(msgspec.msgpack.encode(body))
        self._asked[number] = None
        if self._socket is None:
            self._unsent.append(request)
        else:
            self._send(self._socket, request)

    @staticmethod
    def _send(connection: socket.socket, request: bytes) -> None:
        connection.setblocking(True)  # a few hundred bytes: the fork server always reads
        try:
            connection.sendall(request)
        except OSError as error:
            # Its end is about to be read, and the worker told as one that ended.
            logger.error("the fork server is gone: %s", error)
        finally:
            connection.setblocking(False)

    @property
    def pids(self) -> Mapping[int, int]:
        """Of the workers, by their numbers."""
        return self._pids

    def connected(self, number: int, pid: int) -> None:
        """A worker said who it is."""
        self._pids[number] = pid

    def last_words(self, number: int) -> list[TaskDone]:
        """What a worker whose connection has ended had finished but not sent; asked once."""
        words = self._last_words.pop(number, None)
        if words is None:
            return []
        bodies = FrameReader().feed(words.read())
        words.close()
        return [_done_decoder.decode(body) for body in bodies]

    def last_output(self, pid: int, stream: int, told: int) -> bytes:
        """What a dead worker had printed, but not told."""
        return last_output(self._log_dir, pid, stream, told)

    def kill(self, number: int) -> None:
        """SIGKILL."""
        pid = self._pids.get(number)
        if pid is not None:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                self._pids.pop(number, None)

    def _readable(self) -> None:
        assert self._socket is not None
        try:
            data, fds, _, _ = socket.recv_fds(
                self._socket, 65536, _FDS_MAX, socket.MSG_CMSG_CLOEXEC
            )
            self._fds.extend(fds)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._ended()
            return
        for body in self._reader.feed(data):
            told = msgspec.msgpack.decode(body)
            number = told["number"]
            if "status" in told:
                self._pids.pop(number, None)
                self._asked.pop(number, None)
                self._on_event(WorkerExited(number, told["status"]))
            else:
                self._pids[number] = told["pid"]
                if self._fds:
                    fd = self._fds.popleft()
                    self._last_words[number] = LastWords(fd)
                    os.close(fd)

    def _ended(self) -> None:
        """The fork server is no more, and its workers with it; the next one is started."""
        loop = asyncio.get_running_loop()
        self._end_server()
        lived_s = loop.time() - self._started_at
        longer_s = min(max(2 * self._pause_s, _PAUSE_FIRST_S), _PAUSE_MAX_S)
        self._pause_s = 0.0 if lived_s >= _LIVES_S else longer_s
        logger.error("the fork server ended, after %.1f s; another is started", lived_s)
        while self._fds:
            os.close(self._fds.popleft())
        self._reader = FrameReader()
        self._restart = loop.call_later(self._pause_s, self.start)
        ended, self._asked = self._asked, {}
        for number in ended:
            self.kill(number)
            self._pids.pop(number, None)
            self._on_event(WorkerExited(number, signal.SIGKILL))

    def _end_server(self) -> None:
        if self._socket is not None:
            asyncio.get_running_loop().remove_reader(self._socket.fileno())
            self._socket.close()
            self._socket = None
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def close(self) -> None:
        """Kills all workers and the fork server."""
        if self._restart is not None:
            self._restart.cancel()
        for number in list(self._pids):
            self.kill(number)
        self._end_server()
