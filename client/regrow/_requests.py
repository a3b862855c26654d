"""What a client asks its node and is answered by one message: questions, and room for objects.

Knows what is asked and not answered yet, so that it can be asked again over a new connection.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable
from typing import Final

from msgspec import Struct

from regrow._link import Link, Message
from regrow._memory import Memory
from regrow.exceptions import BY_CODE, ClusterConnectionError, GetTimeoutError, RaySystemError
from regrow.messages import Answer, Ask, Create, Created, Location, SystemFailure

ASK_TIMEOUT_S: Final = 60.0
#: Failures that are ValueErrors in Ray.
_NAME_ERRORS: Final = ("actor_name_taken", "actor_not_found")


class Room(Struct, frozen=True):
    """Where an object may be written, and in whose memory."""

    location: Location
    memory: Memory
    #: Of the link: the number of the connection over which it was given.
    generation: int


class _Request:
    """One question; see ``regrow._reader.Awaited``."""

    __slots__ = ("_settled", "answer", "message", "room")

    def __init__(self, message: Message) -> None:
        self.message = message
        self.answer: Created | Answer | None = None
        self.room: Room | None = None
        self._settled = threading.Event()

    def settle(self, answer: Created | Answer | None) -> None:
        """The answer; None: there will be none."""
        self.answer = answer
        self._settled.set()

    def is_done(self) -> bool:
        return self._settled.is_set()

    def sleep(self, timeout_s: float | None) -> bool:
        return self._settled.wait(timeout_s)


class Requests:
    """See the module. ``memory`` gives that of the present node."""

    def __init__(self, link: Link, memory: Callable[[], Memory]) -> None:
        self._link = link
        self._memory = memory
        self._open: dict[int | bytes, _Request] = {}
        self._numbers = itertools.count(1)

    @property
    def open(self) -> list[Message]:
        """What has not been answered yet."""
        return [request.message for request in list(self._open.values())]

    def ask(self, what: str, body: bytes, timeout_s: float | None) -> bytes:
        """Ask the node something; raises what it answers with, or GetTimeoutError."""
        number = next(self._numbers)
        request = self._put(number, Ask(number, what, body), timeout_s)
        answer = request.answer
        assert isinstance(answer, Answer)
        if answer.error is not None:
            raise as_error(answer.error)
        return answer.body

    def make_room(self, oid: bytes, attempt: int, size: int) -> Room:
        """Where to write an object; the caller seals it. Raises ObjectStoreFullError."""
        request = self._put(oid, Create(oid, attempt, size), None)
        assert isinstance(request.answer, Created)
        if request.room is None:
            error = request.answer.error
            raise as_error(error or SystemFailure("system", "the node made no room"))
        return request.room

    def _put(self, key: int | bytes, message: Message, timeout_s: float | None) -> _Request:
        request = self._open[key] = _Request(message)
        try:
            self._link.post(message)
            self._link.flush()
            if not self._link.wait(request, timeout_s):
                raise GetTimeoutError(
                    f"{_name_of(message)} was not answered in {timeout_s:g} s. If the control "
                    "store is down (`regrow status` says so), `regrow start --head` on its machine "
                    "starts it again."
                )
        finally:
            self._open.pop(key, None)
        if request.answer is None:
            self._link.check()  # raises why
            raise RaySystemError("the connection to the node was lost")
        return request

    def answered(self, key: int | bytes, answer: Created | Answer) -> None:
        """The node answered; called by whoever reads."""
        request = self._open.get(key)
        if request is None:
            return  # it came too late
        if isinstance(answer, Created) and answer.location is not None:
            request.room = Room(answer.location, self._memory(), self._link.generation)
        request.settle(answer)

    def give_up(self) -> None:
        """Nobody will answer."""
        for request in list(self._open.values()):
            request.settle(None)


def _name_of(message: Message) -> str:
    """What a person calls the request."""
    return f"the request {message.what!r}" if isinstance(message, Ask) else "a request to the node"


def as_error(failure: SystemFailure) -> Exception:
    """The exception for what the system reports."""
    if failure.code in _NAME_ERRORS:
        return ValueError(failure.message)
    if failure.code == ClusterConnectionError.code:  # ours: see ``give_up``
        return ClusterConnectionError(failure.message)
    kind = BY_CODE.get(failure.code)
    if kind is None:
        return RaySystemError(f"{failure.code}: {failure.message}")
    return kind(failure.message)
