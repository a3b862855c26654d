"""Virtual time, the one random source, and the trace.

Everything that happens in a simulation is a call that was scheduled here. Calls of one moment run
in the order in which they were scheduled, so a seed determines all of it.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from hashlib import blake2b
from heapq import heappop, heappush
from typing import Any

import msgspec


class SafetyViolation(AssertionError):
    """Something happened that never may."""


class LivenessViolation(AssertionError):
    """Something did not happen although nothing prevented it any more."""


class World:
    """``now`` is in milliseconds. ``show`` is given every line of the trace, if wanted."""

    def __init__(
        self,
        seed: int,
        course: int = 0,
        show: Callable[[str], None] | None = None,
        coarse: bool = False,
    ) -> None:
        self.seed = seed
        self.rng = random.Random(f"course {course} of {seed}")
        self.now = 0.0
        self.steps = 0
        self._show = show
        #: Of what happens only the kind is in the trace.
        self._coarse = coarse
        self._queue: list[tuple[float, int, Callable[..., object], tuple[Any, ...]]] = []
        self._number = 0
        self._hash = blake2b(digest_size=16)

    # time

    def after(self, delay_ms: float, act: Callable[..., object], *args: Any) -> None:
        """Calls ``act(*args)`` in ``delay_ms``."""
        self.at(self.now + delay_ms, act, *args)

    def at(self, time_ms: float, act: Callable[..., object], *args: Any) -> None:
        self._number += 1
        heappush(self._queue, (time_ms, self._number, act, args))

    def step(self) -> bool:
        """Runs the next call. False: there is none."""
        if not self._queue:
            return False
        self.now, _, act, args = heappop(self._queue)
        self.steps += 1
        act(*args)
        return True

    # trace

    def trace(self, who: str, what: str, detail: Any = None) -> None:
        """Adds a line. ``detail`` is any message or event; it is shown, and its bytes count."""
        self._hash.update(f"{self.now:.4f} {who} {what}".encode())
        if detail is not None:
            what_else = type(detail).__name__.encode() if self._coarse else _encode(detail)
            self._hash.update(what_else)
        if self._show is not None:
            text = "" if detail is None else describe(detail)
            self._show(f"{self.now:11.3f} {who:>8} {what} {text}".rstrip())

    @property
    def traced(self) -> bool:
        return self._show is not None

    def digest(self) -> str:
        """Of the whole trace so far."""
        return self._hash.hexdigest()


_encode = msgspec.msgpack.Encoder(enc_hook=repr).encode


def describe(value: Any) -> str:
    """A message, event or effect on one line: ids as their last digits."""
    if isinstance(value, msgspec.Raw):
        return "spec"
    if isinstance(value, bytes):
        if len(value) in (16, 20):
            return value[:4].hex() + "~" + value[8:16].hex()[-4:] + value[16:].hex().lstrip("0")
        return f"{len(value)}B"
    if isinstance(value, msgspec.Struct):
        fields = (
            f"{name}={describe(item)}"
            for name in value.__struct_fields__
            if (item := getattr(value, name)) not in (None, b"", [], {}, "")
        )
        return f"{type(value).__name__}({', '.join(fields)})"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(describe(item) for item in value) + "]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{k}: {describe(v)}" for k, v in value.items()) + "}"
    return repr(value)


class Pipe:
    """One direction of a connection: what was sent arrives in order, or not at all after
    ``cut``."""

    def __init__(self, world: World, latency_ms: Callable[[], float]) -> None:
        self._world = world
        self._latency_ms = latency_ms
        self._last = 0.0
        self.open = True

    def send(self, act: Callable[..., object], *args: Any) -> None:
        """``act(*args)`` when it has arrived."""
        world = self._world
        self._last = max(self._last, world.now + self._latency_ms())
        world.at(self._last, self._arrive, act, args)

    def hold_until(self, time_ms: float) -> None:
        """Nothing arrives before."""
        self._last = max(self._last, time_ms)

    def cut(self) -> None:
        """What is under way is lost, and nothing more gets through."""
        self.open = False

    def _arrive(self, act: Callable[..., object], args: tuple[Any, ...]) -> None:
        if self.open:
            act(*args)
