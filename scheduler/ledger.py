"""The resource ledger of a node: what is there, what is taken. Decides nothing else.

Amounts are integers in ten-thousandths, so that fractions add up exactly.  A *shape* is the sorted
tuple of a demand: equal demands are one shape, which is what tasks queue by.
"""

from __future__ import annotations

from typing import Final

from regrow.config import RESOURCE_UNIT
from regrow.messages import Resources

Shape = tuple[tuple[str, int], ...]

#: The demand of a task that names none.
ONE_CPU: Final[Shape] = (("CPU", RESOURCE_UNIT),)
NOTHING: Final[Shape] = ()


def shape_of(resources: Resources | None, default: Shape = ONE_CPU) -> Shape:
    """The shape of a demand as specs carry it."""
    if resources is None:
        return default
    return tuple(sorted((name, amount) for name, amount in resources.items() if amount))


def missing(shape: Shape, total: Resources) -> str:
    """What of ``shape`` a node with ``total`` can never offer, in words; "" if nothing."""
    short = [
        f"{name}: {amount / RESOURCE_UNIT:g} asked, {total.get(name, 0) / RESOURCE_UNIT:g} there"
        for name, amount in shape
        if total.get(name, 0) < amount
    ]
    return ", ".join(short)


class Ledger:
    """``total`` and what of it is ``available`` (negative while a task that had given its CPU back
    goes on)."""

    def __init__(self, total: Resources) -> None:
        self.total: Resources = dict(total)
        self.available: Resources = dict(total)
        #: GPUs by number: how much of each is free.
        self._gpus = [RESOURCE_UNIT] * (total.get("GPU", 0) // RESOURCE_UNIT)

    @property
    def claimed(self) -> int:
        """By how much what is available differs from the total, of all resources together."""
        return sum(abs(amount - self.available.get(name, 0)) for name, amount in self.total.items())

    def fits(self, shape: Shape) -> bool:
        """Whether the shape can be acquired now."""
        available = self.available
        for name, amount in shape:
            if available.get(name, 0) < amount:
                return False
        return not self._gpus or self._find_gpus(shape) is not None

    def could_ever_fit(self, shape: Shape) -> bool:
        """Whether an idle node would have room for it."""
        total = self.total
        return all(total.get(name, 0) >= amount for name, amount in shape)

    def acquire(self, shape: Shape, force: bool = False) -> list[int]:
        """Takes the shape; returns the numbers of the GPUs that it got. ``force`` takes even what
        is not there (a blocked task that goes on does not wait for its CPU)."""
        assert force or self.fits(shape), "acquired more than is available"
        for name, amount in shape:
            self.available[name] = self.available.get(name, 0) - amount
        gpus = self._find_gpus(shape) or [] if self._gpus else []
        share = self._gpu_share(shape)
        for number in gpus:
            self._gpus[number] -= share
        return gpus

    def release(self, shape: Shape, gpus: list[int]) -> None:
        """Gives back what ``acquire`` took."""
        for name, amount in shape:
            self.available[name] += amount
        share = self._gpu_share(shape)
        for number in gpus:
            self._gpus[number] += share

    def check(self) -> None:
        """Invariants: nothing is available that is not there."""
        for name, amount in self.available.items():
            assert amount <= self.total.get(name, 0), f"more {name} available than there is"
        for free in self._gpus:
            assert 0 <= free <= RESOURCE_UNIT, "a GPU is given out twice"

    @staticmethod
    def _gpu_share(shape: Shape) -> int:
        for name, amount in shape:
            if name == "GPU":
                return min(amount, RESOURCE_UNIT)
        return 0

    def _find_gpus(self, shape: Shape) -> list[int] | None:
        """The GPUs for this shape: one that is partly used for a fraction, else whole ones."""
        amount = next((amount for name, amount in shape if name == "GPU"), 0)
        if not amount:
            return []
        if amount < RESOURCE_UNIT:
            fitting = [(free, n) for n, free in enumerate(self._gpus) if free >= amount]
            return [min(fitting)[1]] if fitting else None
        whole = [n for n, free in enumerate(self._gpus) if free == RESOURCE_UNIT]
        count = amount // RESOURCE_UNIT
        return whole[:count] if len(whole) >= count else None
