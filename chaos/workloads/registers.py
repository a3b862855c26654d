"""Registers that clients write, read, and swap if they hold what is expected: linearizable."""

from __future__ import annotations

from typing import Any, ClassVar

import msgspec

import regrow as ray
from regrow.chaos.workloads.workload import Client, Workload


class Register:
    """One value."""

    def __init__(self) -> None:
        self.value = 0

    def read(self, token: str) -> int:
        """It."""
        return self.value

    def write(self, token: str, value: int) -> None:
        """Make it another."""
        self.value = value

    def swap(self, token: str, value: tuple[int, int]) -> bool:
        """Make it the second value if it is the first; whether it was."""
        old, new = value
        if self.value != old:
            return False
        self.value = new
        return True


class RegistersWorkload(Workload):
    """See the module."""

    name: ClassVar[str] = "registers"
    checkers: ClassVar[tuple[str, ...]] = ("linearizable",)
    model: ClassVar[str] = "register"

    class Parameters(msgspec.Struct, forbid_unknown_fields=True):
        """How many registers of how many values; after how many calls each is saved."""

        registers: int = 3
        values: int = 5
        checkpoint_every: int = 10

    def set_up(self, client: Client) -> None:
        """Make the registers."""
        actor = ray.remote(max_restarts=-1, checkpoint_every=self.parameters.checkpoint_every)
        self._registers: list[Any] = [
            client.call(actor(Register)) for _ in range(self.parameters.registers)
        ]

    def run_client(self, client: Client) -> None:
        """One operation after the other."""
        given = self.parameters
        for number in client.rounds():
            rng = self.random(client.number, number)
            which, name = rng.randrange(given.registers), rng.choice(["read", "write", "swap"])
            token = f"{client.number}.{number}"
            values = [rng.randrange(given.values), rng.randrange(given.values)]
            argument = {"read": None, "write": values[0], "swap": values}[name]
            value = {"on": f"register {which}", "token": token, "argument": argument}
            with client.operation(name, value) as pending:
                method = getattr(self._registers[which], name)
                given_to = [token] if argument is None else [token, argument]
                pending.ok(client.get(client.call(method, *given_to)))
