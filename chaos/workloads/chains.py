"""Deep chains of tasks: each adds to the result of the one before; some results are large.

Some links are kept, and read once more at the end: after the faults they have to be replayed from
far back. With ``length = 10_000`` that is a lineage deeper than any stack.
"""

from __future__ import annotations

import threading
from typing import Any, ClassVar

import msgspec
import numpy as np

import regrow as ray
from regrow.chaos.history import Operation
from regrow.chaos.workloads.workload import Client, Workload

MODULUS = 1_000_003


@ray.remote(max_retries=-1)
def link(before: Any, number: int, elements: int) -> Any:
    """The total so far; as an array of so many elements, if there are any."""
    total = (int(np.asarray(before).flat[0]) * 3 + number) % MODULUS
    return np.full(elements, total, dtype=np.int64) if elements else total


def total_of(start: int, length: int) -> int:
    """What a chain comes to."""
    for number in range(length):
        start = (start * 3 + number) % MODULUS
    return start


class ChainsWorkload(Workload):
    """See the module."""

    name: ClassVar[str] = "chains"

    class Parameters(msgspec.Struct, forbid_unknown_fields=True):
        """Of each chain."""

        length: int = 200
        #: Each so many links the result is too large for the log.
        large_every: int = 20
        #: Bytes of such a result are 8 times that.
        elements: int = 4_000
        #: So many chains are read once more at the end.
        kept: int = 4

    def set_up(self, client: Client) -> None:
        """Nothing is kept yet."""
        self._kept: list[tuple[list[int], Any]] = []
        self._lock = threading.Lock()

    def run_client(self, client: Client) -> None:
        """One chain after the other."""
        given = self.parameters
        for number in client.rounds():
            start = self.random(client.number, number).randrange(MODULUS)
            with client.operation("chain", [start, given.length]) as pending:
                ref: Any = start
                for index in range(given.length):
                    large = index % given.large_every == given.large_every - 1
                    ref = client.call(link, ref, index, given.elements if large else 0)
                    if large:
                        kept = [start, index + 1], ref
                pending.ok(int(np.asarray(client.get(ref)).flat[0]))
            with self._lock:
                self._kept = [*self._kept, kept][-given.kept :]

    def finish(self, client: Client) -> None:
        """What was in arenas is read once more."""
        for what, ref in self._kept:
            with client.operation("chain", what) as pending:
                pending.ok(int(client.get(ref)[0]))

    def expected(self, operation: Operation) -> Any:
        """The total."""
        start, length = operation.value
        return total_of(start, length)
