"""A job that is meant to be killed and run again: what was acknowledged is not run again.

Each round is a small pipeline: items, each a task with a small result, and a sum over them. Tasks
note that they ran, in the file of the run's history itself.
"""

from __future__ import annotations

import time
from typing import Any, ClassVar

import msgspec

import regrow as ray
from regrow.chaos.history import Operation
from regrow.chaos.workloads.workload import RAN, Client, Workload


@ray.remote(max_retries=-1)
def item(token: str, history: str, work_s: float) -> int:
    """Some work, which leaves a note."""
    from pathlib import Path

    from regrow.chaos.history import Recorder

    with Recorder(Path(history)) as recorder:
        recorder.note(RAN, token)
    time.sleep(work_s)
    return sum(map(int, token.split(".")))


@ray.remote(max_retries=-1)
def summed(*values: int) -> int:
    """The sum."""
    return sum(values)


class NightlyWorkload(Workload):
    """See the module."""

    name: ClassVar[str] = "nightly"
    checkers: ClassVar[tuple[str, ...]] = ("answers", "not_again")

    class Parameters(msgspec.Struct, forbid_unknown_fields=True):
        """Of each round."""

        items: int = 8
        work_s: float = 0.02

    def run_client(self, client: Client) -> None:
        """One pipeline after the other."""
        given = self.parameters
        for number in client.rounds():
            tokens = [f"{client.number}.{number}.{index}" for index in range(given.items)]
            with client.operation("pipeline", [client.number, number]) as pending:
                refs: list[Any] = [
                    client.call(item, token, str(client.history), given.work_s) for token in tokens
                ]
                for token, ref in zip(tokens, refs, strict=True):
                    with client.operation("item", token) as one:
                        one.ok(client.get(ref))
                pending.ok(client.get(client.call(summed, *refs)))

    def expected(self, operation: Operation) -> Any:
        """Sums of the numbers in the tokens."""
        if operation.name == "item":
            return sum(map(int, operation.value.split(".")))
        client, number = operation.value
        return sum(client + number + index for index in range(self.parameters.items))
