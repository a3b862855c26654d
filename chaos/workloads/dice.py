"""Tasks that make something else each time they run: the committed answer stays the answer.

Each throws small dice, whose result is in the log, and makes a large array of noise, which is only
in arenas: made again it is another, which the log has to tell of; the dice stay as they fell.
"""

from __future__ import annotations

import os
import threading
from typing import Any, ClassVar

import msgspec
import numpy as np

import regrow as ray
from regrow.chaos.workloads.workload import Client, Workload


def thrown(token: str, elements: int) -> tuple[int, Any]:
    """Dice, and an array of noise."""
    noise = np.frombuffer(os.urandom(8 * elements), dtype=np.int64)
    return int.from_bytes(os.urandom(4), "big"), noise


@ray.remote(max_retries=-1)
def read(dice: int, noise: Any) -> int:
    """The dice, by somebody who needs the noise, too."""
    assert len(noise)
    return dice


class DiceWorkload(Workload):
    """See the module."""

    name: ClassVar[str] = "dice"
    checkers: ClassVar[tuple[str, ...]] = ("stable", "differences_told")
    nondeterministic: ClassVar[frozenset[str]] = frozenset({"thrown"})

    class Parameters(msgspec.Struct, forbid_unknown_fields=True):
        """Of the noise, 8 bytes each; so many throws are looked at again at the end."""

        elements: int = 20_000
        kept: int = 50

    def set_up(self, client: Client) -> None:
        """Nothing was thrown yet."""
        self._kept: list[tuple[str, Any, Any]] = []
        self._lock = threading.Lock()

    def run_client(self, client: Client) -> None:
        """Throw, and ask twice."""
        throw = ray.remote(num_returns=2, max_retries=-1)(thrown)
        for number in client.rounds():
            token = f"{client.number}.{number}"
            dice, noise = client.call(throw, token, self.parameters.elements)
            with client.operation("ask", token) as pending:
                pending.ok(client.get(dice))
            with self._lock:
                self._kept = [*self._kept, (token, dice, noise)][-self.parameters.kept :]

    def finish(self, client: Client) -> None:
        """Ask once more, by way of what may have had to be made again."""
        for token, dice, noise in self._kept:
            with client.operation("ask", token) as pending:
                pending.ok(client.get(client.call(read, dice, noise)))
