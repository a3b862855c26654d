"""Many arguments: one task that needs the results of a thousand, some of them large."""

from __future__ import annotations

from typing import Any, ClassVar

import msgspec
import numpy as np

import regrow as ray
from regrow.chaos.history import Operation
from regrow.chaos.workloads.workload import Client, Workload

MODULUS = 1_000_003


@ray.remote(max_retries=-1)
def part(seed: int, index: int, elements: int) -> Any:
    """A number; as an array, if there are elements."""
    value = (seed + index * index) % MODULUS
    return np.full(elements, value, dtype=np.int64) if elements else value


@ray.remote(max_retries=-1)
def gathered(*parts: Any) -> int:
    """A sum in which every part has another weight."""
    return sum(weight * int(np.asarray(one).flat[0]) for weight, one in enumerate(parts, 1))


class FanInWorkload(Workload):
    """See the module."""

    name: ClassVar[str] = "fan_in"

    class Parameters(msgspec.Struct, forbid_unknown_fields=True):
        """Of each task: its arguments, one in so many large, with so many elements."""

        width: int = 1_000
        large_every: int = 25
        elements: int = 4_000

    def run_client(self, client: Client) -> None:
        """One gathering after the other."""
        given = self.parameters
        for number in client.rounds():
            seed = self.random(client.number, number).randrange(MODULUS)
            with client.operation("gather", seed) as pending:
                refs = [
                    client.call(
                        part, seed, index, 0 if index % given.large_every else given.elements
                    )
                    for index in range(given.width)
                ]
                pending.ok(client.get(client.call(gathered, *refs)))

    def expected(self, operation: Operation) -> Any:
        """The sum."""
        return sum(
            (index + 1) * ((operation.value + index * index) % MODULUS)
            for index in range(self.parameters.width)
        )
