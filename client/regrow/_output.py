"""What workers print: sent to the driver line by line, and printed there with a prefix, as in Ray.

A worker's descriptors 1 and 2 are log files.  What goes through ``sys.stdout`` is written there and
sent at once; what others write there (``os.write``, libraries in C, child processes) is found by
reading the log.  The node reads the rest when the worker is dead: an ``Output`` says how far in the
log it goes.

Decides how a line looks, and in which order lines are told.
"""

from __future__ import annotations

import codecs
import io
import os
import sys
import threading
from collections.abc import Callable
from typing import Any, Final

from regrow.messages import Output, Printed

#: A line of others is told in parts if it is longer.
_LINE_MAX: Final = 64 * 1024
#: How often the logs are looked at while a task runs; less and less often if nothing is there.
_LOOK_MIN_S: Final = 0.1
_LOOK_MAX_S: Final = 1.0


class LineSender(io.TextIOBase):
    """A standard stream of a worker. ``stream`` is 1 or 2, and its descriptor; ``send`` gets
    complete lines."""

    def __init__(
        self, stream: int, source: Callable[[], tuple[int, str]], send: Callable[[Output], None]
    ) -> None:
        self._stream = stream
        # Of its own: its position is the end of what was written through it, not through others.
        path = f"/proc/self/fd/{stream}"
        self._own = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
        self._log = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        #: How far in the log everything was sent.
        self._told = 0
        #: Number of the job and label of what runs.
        self._source = source
        self._send = send
        self._lock = threading.RLock()
        self._partial = ""
        self._bytes = _ByteStream(self)

    def write(self, text: str, /) -> int:
        with self._lock:
            *lines, self._partial = (self._partial + text).split("\n")
            if lines:
                self._out(lines)
        return len(text)

    def end_line(self) -> None:
        """Send a line that has no end yet; called when a task ends."""
        if self._partial:
            with self._lock:
                line, self._partial = self._partial, ""
                self._out([line])

    def _out(self, lines: list[str]) -> None:
        text = "\n".join(lines) + "\n"
        try:
            data = text.encode()
        except UnicodeEncodeError:  # half of a surrogate pair
            data = text.encode(errors="backslashreplace")
            lines = data.decode().split("\n")[:-1]
        self.collect(whole_lines=False)
        left = memoryview(data)
        while left:
            left = left[os.write(self._own, left) :]
        end = os.lseek(self._own, 0, os.SEEK_CUR)
        self._tell_others(end - len(data), False)  # what came between
        self._tell(lines, end)

    def collect(self, whole_lines: bool = True) -> bool:
        """Send what others wrote to the log; whether there was anything. Called after every task:
        cheap if there is nothing."""
        if os.lseek(self._log, 0, os.SEEK_END) == self._told:
            return False
        with self._lock:
            end = os.lseek(self._log, 0, os.SEEK_END)
            self._told = min(self._told, end)  # somebody may have emptied the file
            return self._tell_others(end, whole_lines)

    def _tell_others(self, end: int, whole_lines: bool) -> bool:
        begin = self._told
        while self._told < end:
            data = os.pread(self._log, min(end - self._told, _LINE_MAX), self._told)
            size = data.rfind(b"\n") + 1
            if not size and (not whole_lines or len(data) == _LINE_MAX):
                size = len(data)
            if not size:
                break
            self._tell(lines_of(data[:size]), self._told + size)
        return self._told > begin

    def _tell(self, lines: list[str], end: int) -> None:
        job, label = self._source()
        self._told = end
        self._send(Output(self._stream, job, label, lines, end))

    def flush(self) -> None:
        """Nothing to do: complete lines leave at once."""

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._stream

    def isatty(self) -> bool:
        return False

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return "utf-8"

    @property
    def buffer(self) -> Any:
        """For programs that write bytes."""
        return self._bytes


class _ByteStream(io.BufferedIOBase):
    """Bytes for a ``LineSender``."""

    def __init__(self, text: LineSender) -> None:
        self._text = text
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def write(self, data: Any, /) -> int:
        view = memoryview(data).cast("B")
        self._text.write(self._decoder.decode(view))
        return view.nbytes

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._text.fileno()


class LogWatcher:
    """Looks at the logs while tasks run, on a thread of its own."""

    def __init__(self, streams: list[LineSender]) -> None:
        self._streams = streams
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="regrow-output", daemon=True)
        self._thread.start()

    def _watch(self) -> None:
        interval_s = _LOOK_MIN_S
        while not self._over.wait(interval_s):
            found = [stream.collect() for stream in self._streams]
            interval_s = _LOOK_MIN_S if any(found) else min(interval_s * 2, _LOOK_MAX_S)

    def close(self) -> None:
        self._over.set()
        self._thread.join()


def lines_of(data: bytes) -> list[str]:
    """The lines of raw output."""
    return data.removesuffix(b"\n").decode(errors="replace").split("\n")


def print_lines(printed: Printed, own_node: int) -> None:
    """Print what a worker printed, or (as process 0) what the cluster itself has to say."""
    output = printed.output
    where = "" if printed.node_id == own_node else f", node={printed.node_id}"
    prefix = f"({output.label} pid={printed.pid}{where}) " if printed.pid else f"({output.label}) "
    stream = sys.stderr if output.stream == 2 else sys.stdout
    if stream is None:  # the interpreter is ending
        return
    stream.write("".join(f"{prefix}{line}\n" for line in output.lines))
    stream.flush()
