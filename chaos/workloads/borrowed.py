"""References that travel: inside lists, through tasks that pass them on, into states of actors.

Who made an object may be gone, and its node with it, when somebody reads it through such a path.
"""

from __future__ import annotations

from typing import Any, ClassVar

import msgspec
import numpy as np

import regrow as ray
from regrow.chaos.history import Operation
from regrow.chaos.workloads.workload import OPERATION_S, Client, Workload

MODULUS = 1_000_003


@ray.remote(max_retries=-1)
def made(number: int, elements: int) -> list[Any]:
    """A list with references to two arrays: one of a task, one that it put itself."""
    task = ray.remote(max_retries=-1)(filled)
    return [task.remote(number, elements), ray.put(filled(number + 1, elements))]


def filled(number: int, elements: int) -> Any:
    """An array that is too large for the log."""
    return np.full(elements, number, dtype=np.int64)


@ray.remote(max_retries=-1)
def passed_on(refs: list[Any], hops: int, keeper: Any, token: str) -> int:
    """Give the references to the next task, the last one to the keeper; how many it holds then."""
    if hops:
        return int(ray.get(passed_on.remote(refs, hops - 1, keeper, token), timeout=OPERATION_S))
    return int(ray.get(keeper.keep.remote(token, refs), timeout=OPERATION_S))


@ray.remote(max_retries=-1)
def asked(keeper: Any, token: str) -> int:
    """The sum of what the references that are kept stand for."""
    refs = ray.get(keeper.kept.remote(token), timeout=OPERATION_S)
    return int(sum(int(array[-1]) for array in ray.get(refs, timeout=OPERATION_S)))


class Keeper:
    """Keeps references in its state; the oldest go."""

    def __init__(self, most: int) -> None:
        self.most = most
        self.refs: dict[str, list[Any]] = {}

    def keep(self, token: str, refs: list[Any]) -> int:
        """How many entries it has then."""
        self.refs[token] = refs
        while len(self.refs) > self.most:
            del self.refs[next(iter(self.refs))]
        return len(self.refs)

    def kept(self, token: str) -> list[Any]:
        """The references of a token."""
        return self.refs[token]

    def tokens(self) -> list[str]:
        """What it has."""
        return list(self.refs)


class BorrowedWorkload(Workload):
    """See the module."""

    name: ClassVar[str] = "borrowed"

    class Parameters(msgspec.Struct, forbid_unknown_fields=True):
        """How references travel, and how many are kept."""

        hops: int = 2
        elements: int = 4_000
        kept: int = 20
        checkpoint_every: int = 7

    def set_up(self, client: Client) -> None:
        """One keeper for each client."""
        given = self.parameters
        actor = ray.remote(max_restarts=-1, checkpoint_every=given.checkpoint_every, num_cpus=0)
        self._keepers: list[Any] = [
            client.call(actor(Keeper), given.kept) for _ in range(self.clients)
        ]

    def run_client(self, client: Client) -> None:
        """Send references on their way, and read them at its end."""
        given = self.parameters
        keeper = self._keepers[client.number - 1]
        for number in client.rounds():
            first = self.random(client.number, number).randrange(MODULUS)
            token = f"{number}:{first}"
            with client.operation("kept", [number, first]) as pending:
                refs = client.get(client.call(made, first, given.elements))
                held = client.get(client.call(passed_on, refs, given.hops, keeper, token))
                del refs
                pending.ok([held, client.get(client.call(asked, keeper, token))])

    def finish(self, client: Client) -> None:
        """Whatever is kept can be read once more."""
        for keeper in self._keepers:
            for token in client.get(client.call(keeper.tokens)):
                number, first = map(int, token.split(":"))
                with client.operation("kept", [number, first]) as pending:
                    held = min(number + 1, self.parameters.kept)
                    pending.ok([held, client.get(client.call(asked, keeper, token))])

    def expected(self, operation: Operation) -> Any:
        """Entries, and the sum of the two arrays' last elements."""
        number, first = operation.value
        return [min(number + 1, self.parameters.kept), 2 * first + 1]
