"""Counters that restart: every increment takes effect once, and is seen by those that come later.

Each counter is an actor with ``max_restarts=-1``. An increment returns the count that it made, so
the answers of one counter are all different, and later ones are larger: it is linearizable exactly
if they are in the order of real time and none is missing or doubled.
"""

from __future__ import annotations

from typing import Any, ClassVar

import msgspec

import regrow as ray
from regrow.chaos.workloads.workload import Client, Workload


class Counter:
    """Counts, and remembers who made it count."""

    def __init__(self, ballast: int = 0) -> None:
        self.ballast = bytes(ballast)
        self.count = 0
        self.tokens: list[str] = []

    def increment(self, token: str) -> int:
        """Count one up; the new count."""
        self.count += 1
        self.tokens.append(token)
        return self.count

    def read(self) -> tuple[int, list[str]]:
        """The count, and the tokens in the order in which they were counted."""
        return self.count, self.tokens


class CounterWorkload(Workload):
    """See the module."""

    name: ClassVar[str] = "counter"
    checkers: ClassVar[tuple[str, ...]] = ("counters",)

    class Parameters(msgspec.Struct, forbid_unknown_fields=True):
        """How many counters, and after how many calls the state of each is saved.

        A state with ``ballast`` (bytes) is too large for the log, and goes to storage.
        """

        counters: int = 2
        checkpoint_every: int = 20
        ballast: int = 0

    def set_up(self, client: Client) -> None:
        """Make the counters."""
        actor = ray.remote(max_restarts=-1, checkpoint_every=self.parameters.checkpoint_every)
        self._counters: list[Any] = [
            client.call(actor(Counter), self.parameters.ballast)
            for _ in range(self.parameters.counters)
        ]

    def run_client(self, client: Client) -> None:
        """Increment one of them after the other."""
        for number in client.rounds():
            which = self.random(client.number, number).randrange(len(self._counters))
            token = f"{client.number}.{number}"
            with client.operation("increment", [which, token]) as pending:
                ref = client.call(self._counters[which].increment, token)
                pending.ok(client.get(ref))

    def finish(self, client: Client) -> None:
        """Read what they have counted."""
        for which, counter in enumerate(self._counters):
            with client.operation("read", which) as pending:
                pending.ok(client.get(client.call(counter.read)))
