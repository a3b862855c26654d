"""Objects that the driver puts with ``durable=True``: they outlive every node."""

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
def first_of(array: Any) -> int:
    """Its first element; all are the same."""
    assert (array == array[0]).all()
    return int(array[0])


class PutsWorkload(Workload):
    """See the module."""

    name: ClassVar[str] = "puts"

    class Parameters(msgspec.Struct, forbid_unknown_fields=True):
        """Of each array, 8 bytes each; so many are read once more at the end."""

        elements: int = 20_000
        kept: int = 20

    def set_up(self, client: Client) -> None:
        """Nothing was put yet."""
        self._kept: list[tuple[int, Any]] = []
        self._lock = threading.Lock()

    def run_client(self, client: Client) -> None:
        """Put an array, small now and then, and read it by a task and here."""
        for number in client.rounds():
            value = self.random(client.number, number).randrange(MODULUS)
            elements = self.parameters.elements if number % 4 else 10
            with client.operation("put", value) as pending:
                ref = ray.put(np.full(elements, value, dtype=np.int64), durable=True)
                pending.ok([client.get(client.call(first_of, ref)), int(client.get(ref)[-1])])
            with self._lock:
                self._kept = [*self._kept, (value, ref)][-self.parameters.kept :]

    def finish(self, client: Client) -> None:
        """Read what was put long ago."""
        for value, ref in self._kept:
            with client.operation("put", value) as pending:
                pending.ok([client.get(client.call(first_of, ref)), int(client.get(ref)[-1])])

    def expected(self, operation: Operation) -> Any:
        """The value, twice."""
        return [operation.value, operation.value]
