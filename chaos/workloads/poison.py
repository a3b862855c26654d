"""Tasks and calls that kill their worker, beside others that must not suffer from it.

A task that kills its worker three times is given up, with its reason (WorkerCrashedError), however
often it may be retried; a call of an actor that restarts likewise, and the actor goes on.
"""

from __future__ import annotations

import os
import signal
from typing import Any, ClassVar

import msgspec

import regrow as ray
from regrow.chaos.history import Operation
from regrow.chaos.workloads.workload import Client, Workload
from regrow.exceptions import WorkerCrashedError


@ray.remote(max_retries=-1)
def poison(number: int) -> None:
    """Kills whoever runs it."""
    os.kill(os.getpid(), signal.SIGKILL)


@ray.remote(max_retries=-1)
def healthy(number: int) -> int:
    """Does its work."""
    return number * number


class Eater:
    """Counts what it has eaten."""

    def __init__(self) -> None:
        self.eaten = 0

    def eat(self, poisoned: bool) -> int:
        """How much it has eaten; poison kills the process, and leaves no trace."""
        if poisoned:
            os.kill(os.getpid(), signal.SIGKILL)
        self.eaten += 1
        return self.eaten


class PoisonWorkload(Workload):
    """See the module."""

    name: ClassVar[str] = "poison"

    class Parameters(msgspec.Struct, forbid_unknown_fields=True):
        """One task in so many is poisoned."""

        every: int = 5

    def run_client(self, client: Client) -> None:
        """Healthy food, and poison now and then, for tasks and for an actor."""
        eater = client.call(ray.remote(max_restarts=-1, num_cpus=0)(Eater))
        for number in client.rounds():
            poisoned = number % self.parameters.every == self.parameters.every - 1
            with client.operation("poison" if poisoned else "healthy", number) as pending:
                pending.ok(_eaten(client, client.call(poison if poisoned else healthy, number)))
            with client.operation("fed", [number, poisoned]) as pending:
                pending.ok(_eaten(client, client.call(eater.eat, poisoned)))

    def expected(self, operation: Operation) -> Any:
        """The typed error of what was poisoned; the others as ever."""
        if operation.name == "healthy":
            return operation.value**2
        if operation.name == "poison" or operation.value[1]:
            return WorkerCrashedError.__name__
        number, every = operation.value[0] + 1, self.parameters.every
        return number - number // every


def _eaten(client: Client, ref: Any) -> Any:
    """The result, or the name of the error that is expected."""
    try:
        return client.get(ref)
    except WorkerCrashedError as error:
        return type(error).__name__
