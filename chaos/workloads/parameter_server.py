"""A parameter server: weights in an actor, gradients by tasks, whole numbers, so exact to the bit.

Each client has a server of its own, and its steps follow each other; a step that were lost, applied
twice or computed from old weights would change all that follow.
"""

from __future__ import annotations

from typing import Any, ClassVar

import msgspec
import numpy as np

import regrow as ray
from regrow.chaos.history import Operation
from regrow.chaos.workloads.workload import Client, Workload

MODULUS = 2_147_483_629


def gradient(weights: Any, worker: int, step: int) -> Any:
    """What one worker makes of the weights."""
    return (weights * (worker + 3) + step * 17 + worker) % MODULUS


class Server:
    """Holds the weights."""

    def __init__(self, size: int) -> None:
        self.weights = np.arange(size, dtype=np.int64)

    def current(self) -> Any:
        """The weights."""
        return self.weights

    def apply(self, *gradients: Any) -> Any:
        """Add gradients; the new weights."""
        for one in gradients:
            self.weights = (self.weights * 5 + one) % MODULUS
        return self.weights


class ParameterServerWorkload(Workload):
    """See the module."""

    name: ClassVar[str] = "parameter_server"

    class Parameters(msgspec.Struct, forbid_unknown_fields=True):
        """Of each client's training."""

        size: int = 4_000
        workers: int = 4
        checkpoint_every: int = 10

    def run_client(self, client: Client) -> None:
        """One step after the other."""
        given = self.parameters
        actor = ray.remote(max_restarts=-1, checkpoint_every=given.checkpoint_every)(Server)
        task = ray.remote(max_retries=-1)(gradient)
        server = client.call(actor, given.size)
        weights = client.call(server.current)
        for number in client.rounds():
            with client.operation("step", [client.number, number]) as pending:
                made = [
                    client.call(task, weights, worker, number) for worker in range(given.workers)
                ]
                weights = client.call(server.apply, *made)
                pending.ok(_sum_of(client.get(weights)))

    def expected(self, operation: Operation) -> Any:
        """The sum of the weights after so many steps."""
        given = self.parameters
        if not hasattr(self, "_sums"):
            self._server = Server(given.size)
            self._sums: list[int] = []
        while len(self._sums) <= operation.value[1]:
            step, weights = len(self._sums), self._server.current()
            made = [gradient(weights, worker, step) for worker in range(given.workers)]
            self._sums.append(_sum_of(self._server.apply(*made)))
        return self._sums[operation.value[1]]


def _sum_of(weights: Any) -> int:
    return int((weights * np.arange(1, len(weights) + 1)).sum() % MODULUS)
