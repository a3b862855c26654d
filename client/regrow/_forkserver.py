"""The warm fork server: a process that has imported what workers need, and forks them.

Started by the node as ``python -m regrow._forkserver --fd CONTROL --arena-fd ARENA`` with
PYTHONHASHSEED=0 (sets would pickle differently on a replay otherwise).  Single-threaded at every
fork. The node asks for a worker with a frame ``{"number", "env", "log"}`` (a folder); it is told
``{"number", "pid"}``, with the descriptor of the worker's last words beside it, and ``{"number",
"pid", "status"}`` (as of ``waitpid``) when the worker ended. It ends with its node, and its workers
with it.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import os
import select
import signal
import socket
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, NoReturn

import msgspec

from regrow.scheduler.last_words import LastWords, log_path
from regrow.wire import FrameReader, frame

_PR_SET_PDEATHSIG: Final = 1
#: BLAS libraries start a thread per core when they are loaded, and threads do not survive a fork.
_SINGLE_THREADED: Final = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


def main() -> None:
    """Serve until the node is gone."""
    parser = argparse.ArgumentParser(prog="regrow._forkserver")
    parser.add_argument("--fd", type=int, required=True)
    parser.add_argument("--arena-fd", type=int, required=True)
    arguments = parser.parse_args()
    assert os.environ.get("PYTHONHASHSEED") == "0", "replays need PYTHONHASHSEED=0"
    control = socket.socket(fileno=arguments.fd)
    os.set_inheritable(arguments.fd, False)
    os.set_inheritable(arguments.arena_fd, False)
    preload()
    ForkServer(control, arguments.arena_fd).serve()


def preload() -> None:
    """Import what every worker needs; nothing that starts threads."""
    for name in _SINGLE_THREADED:
        os.environ.setdefault(name, "1")  # Ray's default for a task with one CPU, too
    import cloudpickle  # noqa: F401
    import numpy  # noqa: F401

    import regrow._worker  # noqa: F401

    assert threading.active_count() == 1
    assert len(os.listdir("/proc/self/task")) == 1, "something that was imported starts threads"
    gc.collect()
    gc.freeze()  # what is shared stays shared


class ForkServer:
    """See the module."""

    def __init__(self, control: socket.socket, arena_fd: int) -> None:
        self._control = control
        self._arena_fd = arena_fd
        self._frames = FrameReader()
        self._numbers: dict[int, int] = {}
        self._died, self._child_died = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)

    def serve(self) -> None:
        """Fork and reap until the node closes the control socket."""
        signal.signal(signal.SIGCHLD, lambda _number, _frame: None)
        signal.set_wakeup_fd(self._child_died, warn_on_full_buffer=False)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        poll = select.poll()
        poll.register(self._control, select.POLLIN)
        poll.register(self._died, select.POLLIN)
        while True:
            ready = {fd for fd, _ in poll.poll()}
            if self._died in ready:
                os.read(self._died, 4096)
                self._reap()
            if self._control.fileno() in ready:
                data = self._control.recv(65536)
                if not data:
                    return
                for body in self._frames.feed(data):
                    self._fork(msgspec.msgpack.decode(body, type=dict[str, Any]))

    def _fork(self, request: Mapping[str, Any]) -> None:
        number = request["number"]
        words_fd = LastWords.create_fd()
        pid = os.fork()
        if pid == 0:
            self._become_worker(request, words_fd)
        self._numbers[pid] = number
        self._tell({"number": number, "pid": pid}, words_fd)
        os.close(words_fd)

    def _reap(self) -> None:
        while self._numbers:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                return
            self._tell({"number": self._numbers.pop(pid), "pid": pid, "status": status})

    def _tell(self, message: dict[str, int], *fds: int) -> None:
        body = frame(msgspec.msgpack.encode(message))
        try:
            if fds:
                sent = socket.send_fds(self._control, [body], fds)
                body = body[sent:]
            self._control.sendall(body)
        except BrokenPipeError:
            return  # the node is gone: the next read says so

    def _become_worker(self, request: Mapping[str, Any], words_fd: int) -> NoReturn:
        """In the child: take on the surroundings of a worker, and never return."""
        status = 1
        try:
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            self._control.close()
            os.close(self._died)
            os.close(self._child_died)
            die_with_parent()
            _redirect(Path(request["log"]))
            os.environ.update(request["env"])
            reseed()
            from regrow import _worker

            path = os.environ["REGROW_NODE_SOCKET"]
            token = os.environ.pop("REGROW_TOKEN")
            words = LastWords(words_fd)
            os.close(words_fd)
            status = _worker.run(path, token, request["number"], self._arena_fd, words)
        except BaseException:
            sys.excepthook(*sys.exc_info())
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)


def die_with_parent() -> None:
    """SIGKILL this process when the fork server dies."""
    parent = os.getppid()
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL))
    if os.getppid() != parent or parent == 1:
        os._exit(1)


def reseed() -> None:
    """Forks must not draw the same numbers. (``random`` sees to it by itself.)"""
    numpy_random = sys.modules.get("numpy.random")
    if numpy_random is not None:
        numpy_random.seed()


def _redirect(folder: Path) -> None:
    """What is printed goes to the worker's log files, from where it is told to the driver."""
    for stream in (1, 2):
        log = log_path(folder, os.getpid(), stream)
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_CLOEXEC
        fd = os.open(log, flags, 0o600)
        os.dup2(fd, stream)
        os.close(fd)


if __name__ == "__main__":
    main()
