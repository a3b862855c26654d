"""What happened in a run, as those who did it wrote it down: operations, faults, notes.

One JSON object a line, appended with one write each, so that what a killed process has written is
there. Times are seconds of the machine's monotonic clock, which all processes share. Judges
nothing: that is the checkers'. The model is Jepsen's history: an operation that was begun and has
no answer is *unknown*, not failed; it may have taken effect.
"""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from enum import StrEnum
from pathlib import Path
from typing import Any, Final, Self

import msgspec


class Kind(StrEnum):
    """What a line says."""

    #: An operation begins; ends well; is refused with a typed error; or ends nobody knows how.
    INVOKE = "invoke"
    OK = "ok"
    FAIL = "fail"
    UNKNOWN = "unknown"
    #: A fault is injected; it is healed.
    FAULT = "fault"
    HEAL = "heal"
    #: A phase of the run begins, or a driver starts or ends.
    NOTE = "note"


class Line(msgspec.Struct, frozen=True, omit_defaults=True):
    """One line."""

    at_s: float
    kind: Kind
    #: Of an operation: who did it, its number there, and what it is.
    process: str = ""
    number: int = 0
    name: str = ""
    #: Of an invocation its argument, of an answer its result; of a fault what was hit.
    value: Any = None
    #: The class of the error, and what it says.
    error: str = ""
    detail: str = ""


class Operation(msgspec.Struct):
    """An operation with its answer, if there was one."""

    process: str
    number: int
    name: str
    value: Any
    invoked_s: float
    #: UNKNOWN as long as nobody has heard of its end.
    kind: Kind = Kind.UNKNOWN
    result: Any = None
    error: str = ""
    detail: str = ""
    ended_s: float | None = None

    def __str__(self) -> str:
        end = f" -> {self.kind} {self.result!r} {self.error}".rstrip()
        return f"{self.process}#{self.number} {self.name}({self.value!r}){end}"


class Pending:
    """An operation under way: the caller says how it ended."""

    def __init__(self) -> None:
        self.kind = Kind.UNKNOWN
        self.result: Any = None

    def ok(self, result: Any = None) -> None:
        """It was acknowledged with this result."""
        self.kind, self.result = Kind.OK, result


_ENCODER: Final = msgspec.json.Encoder()
_DECODER: Final = msgspec.json.Decoder(Line)


class Recorder:
    """Writes lines to a file that several processes append to. Threads may share it."""

    def __init__(self, path: Path) -> None:
        self._descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        self._numbers = itertools.count(1)

    def write(self, line: Line) -> None:
        """Append one line."""
        os.write(self._descriptor, _ENCODER.encode(line) + b"\n")

    def note(self, name: str, value: Any = None) -> None:
        """Something that is neither an operation nor a fault."""
        self.write(Line(time.monotonic(), Kind.NOTE, name=name, value=value))

    def fault(self, at_s: float, name: str, target: str) -> None:
        """At this moment a fault was injected into this target."""
        self.write(Line(at_s, Kind.FAULT, name=name, value=target))

    def heal(self, name: str, target: str) -> None:
        """What was broken works again."""
        self.write(Line(time.monotonic(), Kind.HEAL, name=name, value=target))

    @contextmanager
    def operation(self, process: str, name: str, value: Any) -> Iterator[Pending]:
        """Record an operation: its begin, and its end as the body tells.

        A body that raises one of regrow's errors has failed; any other exception is recorded as
        well, and raised on.
        """
        from regrow.exceptions import RayError

        number = next(self._numbers)
        self.write(Line(time.monotonic(), Kind.INVOKE, process, number, name, value))
        pending = Pending()
        try:
            yield pending
        except RayError as error:
            self._ended(process, number, name, Kind.FAIL, error)
        except BaseException as error:
            self._ended(process, number, name, Kind.UNKNOWN, error)
            raise
        else:
            now = time.monotonic()
            self.write(Line(now, pending.kind, process, number, name, pending.result))

    def _ended(
        self, process: str, number: int, name: str, kind: Kind, error: BaseException
    ) -> None:
        text = str(error).strip().split("\n")[-1][:500]
        self.write(
            Line(
                time.monotonic(), kind, process, number, name,
                error=type(error).__name__, detail=text,
            )
        )  # fmt: skip

    def close(self) -> None:
        """No more is written."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Fault(msgspec.Struct):
    """A fault that was injected."""

    name: str
    target: str
    at_s: float
    healed_s: float | None = None


class History(msgspec.Struct):
    """A whole run, in the order in which it was written."""

    lines: list[Line]

    @classmethod
    def read(cls, path: Path) -> History:
        """Read a file; a last line that was cut off by a kill is left out."""
        lines = []
        for raw in path.read_bytes().split(b"\n"):
            if raw:
                try:
                    lines.append(_DECODER.decode(raw))
                except msgspec.DecodeError:
                    continue
        return cls(lines)

    def operations(self, name: str | None = None) -> list[Operation]:
        """All operations, or those of one name, in the order in which they began."""
        found: dict[tuple[str, int], Operation] = {}
        for line in self.lines:
            key = (line.process, line.number)
            if line.kind is Kind.INVOKE:
                found[key] = Operation(line.process, line.number, line.name, line.value, line.at_s)
            elif line.kind in (Kind.OK, Kind.FAIL, Kind.UNKNOWN) and key in found:
                one = found[key]
                one.kind, one.result, one.ended_s = line.kind, line.value, line.at_s
                one.error, one.detail = line.error, line.detail
        return [one for one in found.values() if name is None or one.name == name]

    def faults(self) -> list[Fault]:
        """The faults that were injected, with the time of their healing."""
        found: list[Fault] = []
        for line in self.lines:
            if line.kind is Kind.FAULT:
                found.append(Fault(line.name, str(line.value), line.at_s))
            elif line.kind is Kind.HEAL:
                for fault in found:
                    if (fault.name, fault.target, fault.healed_s) == (line.name, line.value, None):
                        fault.healed_s = line.at_s
        return found

    def notes(self, name: str) -> list[Line]:
        """The notes of this name."""
        return [line for line in self.lines if line.kind is Kind.NOTE and line.name == name]

    @property
    def begun_s(self) -> float:
        """When the first line was written."""
        return self.lines[0].at_s if self.lines else 0.0

    @property
    def ended_s(self) -> float:
        """When the last line was written."""
        return max((line.at_s for line in self.lines), default=0.0)


class Follower:
    """Counts what a history tells while it is written, without reading anything twice."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("rb")
        self._rest = b""
        self._acknowledged = 0

    def acknowledged(self) -> int:
        """Operations acknowledged so far."""
        *lines, self._rest = (self._rest + self._file.read()).split(b"\n")
        for raw in lines:
            with suppress(msgspec.DecodeError):
                self._acknowledged += _DECODER.decode(raw).kind is Kind.OK
        return self._acknowledged

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()


def recovery_times(faults: Iterable[Fault], operations: Iterable[Operation]) -> list[float]:
    """Seconds from each fault until what it hit had ended: the operations that were under way.

    Where these ended with their driver, until the next operation was acknowledged. Faults that hit
    no operation are left out.
    """
    everything = list(operations)
    acknowledged = sorted(
        one.ended_s for one in everything if one.kind is Kind.OK and one.ended_s is not None
    )
    times = []
    for fault in faults:
        hit = [
            one
            for one in everything
            if one.invoked_s <= fault.at_s and (one.ended_s is None or one.ended_s > fault.at_s)
        ]
        ends = [one.ended_s for one in hit if one.ended_s is not None]
        if hit and not ends:
            ends = [end for end in acknowledged if end > fault.at_s][:1]
        if ends:
            times.append(max(ends) - fault.at_s)
    return times
