"""What ``wait`` and ``get(timeout=...)`` answered during a call of an actor that restarts.

Their answers depend on time.  So they are logged with the call, as an object that it put, and when
the call runs again to bring the actor back it is given the same ones.  Decides what is noted and
what is answered; who waits for what is the client's business.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from regrow.exceptions import ReplayMismatchError

#: The places that ``wait`` found ready; whether a timed ``get`` had its values in time.
Answer = list[int] | bool
_decoder = msgspec.msgpack.Decoder(list[Answer])


class Answers:
    """Those of one call. ``given``: of its first run, if it runs again; b"" if there were none."""

    __slots__ = ("_given", "_next", "_noted")

    def __init__(self, given: bytes | None) -> None:
        self._noted: list[Answer] = []
        self._given = None if given is None else _decoder.decode(given) if given else []
        self._next = 0

    @property
    def replays(self) -> bool:
        """Whether the answers are known."""
        return self._given is not None

    def note(self, answer: Answer) -> None:
        """The first run was answered this. Lists are copied."""
        if self._given is None:
            self._noted.append(answer if isinstance(answer, bool) else list(answer))

    def places(self, count: int) -> Sequence[int]:
        """What ``wait`` for some of ``count`` references answered. Raises ReplayMismatchError where
        it was not called then."""
        answer = self._following()
        if isinstance(answer, bool) or any(place >= count for place in answer):
            raise _mismatch(f"waits for {count} references")
        return answer

    def in_time(self) -> bool:
        """What became of a timed ``get``. Raises ReplayMismatchError where none was called then."""
        answer = self._following()
        if not isinstance(answer, bool):
            raise _mismatch("calls get(timeout=...)")
        return answer

    def packed(self) -> bytes:
        """What is to be logged; b"": nothing."""
        return msgspec.msgpack.encode(self._noted) if self._noted else b""

    def _following(self) -> Answer:
        assert self._given is not None
        if self._next == len(self._given):
            raise _mismatch("calls wait or get(timeout=...) more often")
        self._next += 1
        return self._given[self._next - 1]


def _mismatch(what: str) -> ReplayMismatchError:
    return ReplayMismatchError(
        f"a method that runs again to bring its actor back {what}, which it did not do when it ran "
        "first. Methods have to be deterministic given the actor's state, their arguments and what "
        "wait and get(timeout=...) answered"
    )
