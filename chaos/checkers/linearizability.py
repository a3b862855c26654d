"""Whether a history of one object can be explained by some order of its operations.

The search of Wing and Gong (1993) with Lowe's improvement (2017): it goes through the operations in
the order of their begins and ends, takes one of those that have begun and are not yet placed, and
goes back where an operation's end is met before its place; pairs of (operations placed, state) that
have been seen are not looked at again. Operations without an answer may take effect at any later
time, or never. Objects are independent of each other (Herlihy and Wing), so each is searched alone.
Reads no clock and draws nothing.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from typing import Any, Final

import msgspec

from regrow.chaos.checkers.models import Model

#: Steps of one search; past them there is no verdict, which is told as a finding.
STEPS_MAX: Final = 2_000_000


class Call(msgspec.Struct, frozen=True):
    """An operation on one object. ``ended_s`` is None if nobody knows whether it took effect."""

    name: str
    argument: Any
    result: Any
    invoked_s: float
    ended_s: float | None
    process: str = ""

    def __str__(self) -> str:
        end = "?" if self.ended_s is None else f"{self.result!r} at {self.ended_s:.3f}"
        return f"{self.process} {self.name}({self.argument!r}) at {self.invoked_s:.3f} -> {end}"


class Verdict(msgspec.Struct, frozen=True):
    """Linearizable, or not; in the second case how far the best attempt came."""

    holds: bool
    #: The operation that could not be placed in the attempt that came farthest.
    stuck: Call | None = None
    placed: int = 0
    #: The search was given up.
    unknown: bool = False


class _Entry:
    """A begin or an end, in a list linked both ways."""

    __slots__ = ("after", "before", "call", "end", "number")

    def __init__(self, number: int, call: Call) -> None:
        self.number = number
        self.call = call
        #: Of a begin: its end. None: this is an end.
        self.end: _Entry | None = None
        self.before: _Entry | None = None
        self.after: _Entry | None = None


def check(calls: Sequence[Call], model: Model, steps_max: int = STEPS_MAX) -> Verdict:
    """Search an order of ``calls`` that the model allows and that keeps to real time."""
    return _Search(calls, model, steps_max).run()


class _Search:
    def __init__(self, calls: Sequence[Call], model: Model, steps_max: int) -> None:
        self._model = model
        self._steps_left = steps_max
        self._head, self._answered = _linked(calls)
        self._placed: list[tuple[_Entry, Hashable]] = []
        self._bits = 0
        self._seen: set[tuple[int, Hashable]] = set()

    def run(self) -> Verdict:
        """Until all answered operations are placed, or nothing is left to try."""
        state = self._model.initial
        entry = self._head.after
        best, stuck = -1, None
        while self._answered:
            assert entry is not None, "answered operations have ends in the list"
            self._steps_left -= 1
            if self._steps_left < 0:
                return Verdict(holds=False, stuck=stuck, placed=max(best, 0), unknown=True)
            if entry.end is not None:
                after = self._try(entry, state)
                if after is None:
                    entry = entry.after
                else:
                    [state] = after
                    entry = self._head.after
                continue
            # The end of an operation that has no place yet: whatever follows comes too late.
            if len(self._placed) > best:
                best, stuck = len(self._placed), entry.call
            if not self._placed:
                return Verdict(holds=False, stuck=stuck, placed=best)
            entry, state = self._take_back()
        return Verdict(holds=True, placed=len(self._placed))

    def _try(self, entry: _Entry, state: Hashable) -> tuple[Hashable] | None:
        """Place this operation next; the state after it, or None if it cannot be there."""
        call = entry.call
        known = call.ended_s is not None
        step = self._model.step(state, call.name, call.argument, call.result, known)
        if step is None:
            return None
        bits = self._bits | 1 << entry.number
        if (bits, step[0]) in self._seen:
            return None
        self._seen.add((bits, step[0]))
        self._placed.append((entry, state))
        self._bits = bits
        self._answered -= known
        _lift(entry)
        return step

    def _take_back(self) -> tuple[_Entry | None, Hashable]:
        """The operation placed last is not there: what comes next, and the state before it."""
        entry, state = self._placed.pop()
        self._bits &= ~(1 << entry.number)
        self._answered += entry.call.ended_s is not None
        _put_back(entry)
        return entry.after, state


def _linked(calls: Iterable[Call]) -> tuple[_Entry, int]:
    """The head of the list, and how many operations have been answered."""
    moments: list[tuple[float, int, int, _Entry]] = []
    answered = 0
    for number, call in enumerate(calls):
        begin, end = _Entry(number, call), _Entry(number, call)
        begin.end = end
        # At one moment begins come first: operations that touch overlap.
        moments.append((call.invoked_s, 0, number, begin))
        if call.ended_s is not None:
            answered += 1
            moments.append((call.ended_s, 1, number, end))
    moments.sort(key=lambda moment: moment[:3])
    head = last = _Entry(-1, Call("", None, None, 0.0, None))
    for *_, entry in moments:
        last.after, entry.before = entry, last
        last = entry
    return head, answered


def _lift(begin: _Entry) -> None:
    """Take an operation, begin and end, out of the list."""
    assert begin.end is not None
    for entry in (begin, begin.end):
        if entry.before is not None:
            entry.before.after = entry.after
        if entry.after is not None:
            entry.after.before = entry.before


def _put_back(begin: _Entry) -> None:
    """Undo ``_lift``; the last one lifted goes back first."""
    assert begin.end is not None
    for entry in (begin.end, begin):
        if entry.before is not None:
            entry.before.after = entry
        if entry.after is not None:
            entry.after.before = entry
