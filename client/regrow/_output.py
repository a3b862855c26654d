"""What workers print: sent to the driver line by line, and printed there with a prefix, as in Ray.

Decides how a line looks.  The worker's log file gets everything as well.
"""

from __future__ import annotations

import io
import sys
import threading
from collections.abc import Callable
from typing import Any, TextIO

from regrow.messages import Output, Printed


class LineSender(io.TextIOBase):
    """A standard stream of a worker. ``stream`` is 1 or 2; ``send`` gets complete lines."""

    def __init__(
        self, stream: int, log: TextIO, source: Callable[[], tuple[int, str]],
        send: Callable[[Output], None],
    ) -> None:  # fmt: skip
        self._stream = stream
        self._log = log
        #: Number of the job and label of what runs.
        self._source = source
        self._send = send
        self._lock = threading.RLock()
        self._partial = ""

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
        self._log.write("\n".join(lines) + "\n")
        self._log.flush()
        job, label = self._source()
        self._send(Output(self._stream, job, label, lines))

    def flush(self) -> None:
        """Nothing to do: complete lines leave at once."""

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._log.fileno()

    def isatty(self) -> bool:
        return False

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return "utf-8"

    @property
    def buffer(self) -> Any:
        """For programs that write bytes; they go to the log file only."""
        return self._log.buffer


def print_lines(printed: Printed, own_node: int) -> None:
    """Print what a worker printed."""
    output = printed.output
    where = "" if printed.node_id == own_node else f", node={printed.node_id}"
    prefix = f"({output.label} pid={printed.pid}{where}) "
    stream = sys.stderr if output.stream == 2 else sys.stdout
    if stream is None:  # the interpreter is ending
        return
    stream.write("".join(f"{prefix}{line}\n" for line in output.lines))
    stream.flush()
