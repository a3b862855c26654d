"""Transfers between accounts, which are actors: by tasks and by tellers, both of which may die.

A transfer takes from one account, and gives to another if that was possible. Whoever carries it out
may be killed in between; run again, it finds the calls that it had made.
"""

from __future__ import annotations

from typing import Any, ClassVar

import msgspec

import regrow as ray
from regrow.chaos.workloads.workload import OPERATION_S, Client, Workload


class Account:
    """A balance, with everything that was booked."""

    def __init__(self, opening: int) -> None:
        self.balance = opening
        self.entries: list[tuple[str, int]] = []

    def book(self, token: str, amount: int) -> bool:
        """Whether there was enough for it."""
        if self.balance + amount < 0:
            return False
        self.balance += amount
        self.entries.append((token, amount))
        return True

    def read(self) -> tuple[int, list[tuple[str, int]]]:
        """The balance and its entries."""
        return self.balance, self.entries


def moved(source: Any, target: Any, token: str, amount: int) -> bool:
    """Whether the transfer was carried out."""
    if not ray.get(source.book.remote(token, -amount), timeout=OPERATION_S):
        return False
    return bool(ray.get(target.book.remote(token, amount), timeout=OPERATION_S))


@ray.remote(max_retries=-1)
def transfer(source: Any, target: Any, token: str, amount: int) -> bool:
    """See ``moved``."""
    return moved(source, target, token, amount)


class Teller:
    """An actor that carries transfers out."""

    def transfer(self, source: Any, target: Any, token: str, amount: int) -> bool:
        """See ``moved``."""
        return moved(source, target, token, amount)


class BankWorkload(Workload):
    """See the module."""

    name: ClassVar[str] = "bank"
    checkers: ClassVar[tuple[str, ...]] = ("bank",)

    class Parameters(msgspec.Struct, forbid_unknown_fields=True):
        """How many accounts, with how much at first; and after how many calls they are saved."""

        accounts: int = 5
        opening: int = 100
        checkpoint_every: int = 25

    def set_up(self, client: Client) -> None:
        """Open the accounts, and hire a teller for each client."""
        given = self.parameters
        actor = ray.remote(max_restarts=-1, checkpoint_every=given.checkpoint_every, num_cpus=0)
        self._accounts: list[Any] = [
            client.call(actor(Account), given.opening) for _ in range(given.accounts)
        ]
        self._tellers: list[Any] = [client.call(actor(Teller)) for _ in range(self.clients)]

    def run_client(self, client: Client) -> None:
        """One transfer after the other."""
        for number in client.rounds():
            rng = self.random(client.number, number)
            source, target = rng.sample(range(len(self._accounts)), 2)
            amount, token = rng.randint(1, 60), f"{client.number}.{number}"
            by = self._tellers[client.number - 1].transfer if rng.random() < 0.5 else transfer
            value = {"token": token, "source": source, "target": target, "amount": amount}
            with client.operation("transfer", value) as pending:
                accounts = self._accounts[source], self._accounts[target]
                pending.ok(client.get(client.call(by, *accounts, token, amount)))

    def finish(self, client: Client) -> None:
        """Read all accounts."""
        with client.operation("accounts") as pending:
            pending.ok(client.get([client.call(account.read) for account in self._accounts]))
