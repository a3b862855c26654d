"""Tasks with several return values, which a generator yields, each small or large by itself."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar

import msgspec
import numpy as np

import regrow as ray
from regrow.chaos.history import Operation
from regrow.chaos.workloads.workload import Client, Workload

MODULUS = 1_000_003


def yielded(seed: int, count: int, elements: int) -> Iterator[Any]:
    """Numbers; each third one as an array."""
    for index in range(count):
        value = (seed * 31 + index) % MODULUS
        yield np.full(elements, value, dtype=np.int64) if index % 3 == 2 else value


@ray.remote(max_retries=-1)
def doubled(value: Any) -> int:
    """Twice the number."""
    return 2 * int(np.asarray(value).flat[0])


class GeneratorsWorkload(Workload):
    """See the module."""

    name: ClassVar[str] = "generators"

    class Parameters(msgspec.Struct, forbid_unknown_fields=True):
        """Of each generator."""

        count: int = 7
        elements: int = 4_000

    def run_client(self, client: Client) -> None:
        """One generator after the other; what it yields is read in another order."""
        given = self.parameters
        task = ray.remote(num_returns=given.count, max_retries=-1)(yielded)
        for number in client.rounds():
            rng = self.random(client.number, number)
            seed = rng.randrange(MODULUS)
            with client.operation("yield", seed) as pending:
                refs = client.call(task, seed, given.count, given.elements)
                order = rng.sample(range(given.count), given.count)
                made = {index: client.call(doubled, refs[index]) for index in order}
                pending.ok(client.get([made[index] for index in range(given.count)]))

    def expected(self, operation: Operation) -> Any:
        """Each number twice."""
        return [
            2 * ((operation.value * 31 + index) % MODULUS) for index in range(self.parameters.count)
        ]
