"""Lists to which clients append, several items at once: linearizable, in each caller's order.

The items of a burst are sent without waiting for any of them.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any, ClassVar

import msgspec

import regrow as ray
from regrow.chaos.workloads.workload import Client, Workload


class AppendList:
    """Items, in the order in which they came."""

    def __init__(self) -> None:
        self.items: list[str] = []

    def append(self, item: str) -> int:
        """The new length."""
        self.items.append(item)
        return len(self.items)

    def read(self) -> list[str]:
        """All items."""
        return self.items


class ListsWorkload(Workload):
    """See the module."""

    name: ClassVar[str] = "lists"
    checkers: ClassVar[tuple[str, ...]] = ("linearizable", "fifo")
    model: ClassVar[str] = "append"

    class Parameters(msgspec.Struct, forbid_unknown_fields=True):
        """How many lists; how often they are saved; how large bursts and pauses between are."""

        lists: int = 2
        checkpoint_every: int = 20
        burst: int = 5
        #: One round in so many reads instead.
        read_every: int = 10

    def set_up(self, client: Client) -> None:
        """Make the lists."""
        actor = ray.remote(max_restarts=-1, checkpoint_every=self.parameters.checkpoint_every)
        self._lists: list[Any] = [
            client.call(actor(AppendList)) for _ in range(self.parameters.lists)
        ]

    def run_client(self, client: Client) -> None:
        """Append bursts, and read now and then."""
        given = self.parameters
        for number in client.rounds():
            rng = self.random(client.number, number)
            which = rng.randrange(len(self._lists))
            if number % given.read_every == given.read_every - 1:
                self._read(client, which, f"{client.number}.{number}")
                continue
            tokens = [f"{client.number}.{number}.{i}" for i in range(rng.randint(1, given.burst))]
            values = [{"on": f"list {which}", "token": t, "argument": t} for t in tokens]
            with ExitStack() as stack:
                pending = client.operations(stack, "append", values)
                refs = [client.call(self._lists[which].append, token) for token in tokens]
                for one, length in zip(pending, client.get(refs), strict=True):
                    one.ok(length)

    def _read(self, client: Client, which: int, token: str) -> None:
        with client.operation("read", {"on": f"list {which}", "token": token}) as pending:
            pending.ok(client.get(client.call(self._lists[which].read)))

    def finish(self, client: Client) -> None:
        """Read what they have come to."""
        for which in range(len(self._lists)):
            self._read(client, which, f"end of life {client.life}")
