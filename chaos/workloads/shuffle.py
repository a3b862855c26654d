"""All-to-all: mappers make a part for each reducer, which reads one of each mapper.

One shuffle is larger than the arenas together can be made to be, so that parts are spilled, dropped
and made again.
"""

from __future__ import annotations

from typing import Any, ClassVar

import msgspec
import numpy as np

import regrow as ray
from regrow.chaos.history import Operation
from regrow.chaos.workloads.workload import Client, Workload

MODULUS = 1_000_003


def part_of(seed: int, mapper: int, reducer: int, elements: int) -> Any:
    """The numbers that a mapper sends to a reducer."""
    first = (seed * 7919 + mapper * 104_729 + reducer * 1_299_709) % MODULUS
    return (np.arange(elements, dtype=np.int64) * 31 + first) % MODULUS


def parts(seed: int, mapper: int, reducers: int, elements: int) -> Any:
    """What a mapper returns."""
    made = [part_of(seed, mapper, reducer, elements) for reducer in range(reducers)]
    return made if reducers > 1 else made[0]


@ray.remote(max_retries=-1)
def reduced(*arrays: Any) -> int:
    """The sum of all that it is given."""
    return int(sum(int(array.sum()) for array in arrays))


class ShuffleWorkload(Workload):
    """See the module."""

    name: ClassVar[str] = "shuffle"

    class Parameters(msgspec.Struct, forbid_unknown_fields=True):
        """Of each shuffle; it moves mappers * reducers * elements * 8 bytes."""

        mappers: int = 6
        reducers: int = 6
        elements: int = 100_000

    def run_client(self, client: Client) -> None:
        """One shuffle after the other."""
        given = self.parameters
        mapper = ray.remote(num_returns=given.reducers, max_retries=-1)(parts)
        for number in client.rounds():
            seed = self.random(client.number, number).randrange(MODULUS)
            with client.operation("shuffle", seed) as pending:
                made = [
                    client.call(mapper, seed, index, given.reducers, given.elements)
                    for index in range(given.mappers)
                ]
                columns = zip(*made, strict=True) if given.reducers > 1 else [made]
                pending.ok(client.get([client.call(reduced, *column) for column in columns]))

    def expected(self, operation: Operation) -> Any:
        """The sum of each reducer."""
        given = self.parameters
        return [
            sum(
                int(part_of(operation.value, mapper, reducer, given.elements).sum())
                for mapper in range(given.mappers)
            )
            for reducer in range(given.reducers)
        ]
