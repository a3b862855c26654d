"""Races for the name of an actor: exactly one wins, and everybody gets the same actor.

Half of the races use ``get_if_exists``; in the others those who come too late get the ValueError of
a name in use, and ask for the actor by its name.
"""

from __future__ import annotations

import contextlib
from typing import Any, ClassVar

import msgspec

import regrow as ray
from regrow.chaos.workloads.workload import OPERATION_S, Client, Workload


class Named:
    """Says who made it."""

    def __init__(self, maker: int) -> None:
        self.maker = maker

    def who(self) -> int:
        """Who made it."""
        return self.maker


@ray.remote(max_retries=-1)
def raced(name: str, racer: int, get_if_exists: bool) -> tuple[int, int, bool]:
    """The racer, who made the actor that it got, and whether it was told that it won."""
    actor = ray.remote(max_restarts=-1, num_cpus=0)(Named)
    won = False
    if get_if_exists:
        handle: Any = actor.options(name=name, lifetime="detached", get_if_exists=True).remote(
            racer
        )
    else:
        try:
            handle = actor.options(name=name, lifetime="detached").remote(racer)
            won = True
        except ValueError:
            handle = ray.get_actor(name)
    return racer, int(ray.get(handle.who.remote(), timeout=OPERATION_S)), won


class NamesWorkload(Workload):
    """See the module."""

    name: ClassVar[str] = "names"
    checkers: ClassVar[tuple[str, ...]] = ("one_winner",)

    class Parameters(msgspec.Struct, forbid_unknown_fields=True):
        """How many race for each name."""

        racers: int = 4

    def run_client(self, client: Client) -> None:
        """One race after the other; the actor is killed after each."""
        for number in client.rounds():
            name = f"{client.number}-{number}"
            with client.operation("race", name) as pending:
                refs = [
                    client.call(raced, name, racer, number % 2 == 0)
                    for racer in range(self.parameters.racers)
                ]
                pending.ok(client.get(refs))
            with contextlib.suppress(ValueError):  # an earlier life of the driver has killed it
                ray.kill(ray.get_actor(name))
