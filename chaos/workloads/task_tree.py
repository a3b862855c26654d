"""A tree of tasks: each submits children and adds up what they return, with large values between.

The values between the levels are larger than the log keeps, so a node that dies takes some along.
"""

from __future__ import annotations

from typing import Any, ClassVar

import msgspec
import numpy as np

import regrow as ray
from regrow.chaos.history import Operation
from regrow.chaos.workloads.workload import OPERATION_S, Client, Workload

MODULUS = 1_000_003


@ray.remote(max_retries=-1)
def leaf(number: int, elements: int) -> Any:
    """An array that is too large for the log (8 bytes an element)."""
    return np.full(elements, number, dtype=np.int64)


@ray.remote(max_retries=-1)
def branch(number: int, depth: int, fan_out: int, elements: int) -> Any:
    """An array whose elements are all the sum of the tree below it."""
    if depth == 0:
        total = int(ray.get(leaf.remote(number, elements), timeout=OPERATION_S)[0])
    else:
        children = [
            branch.remote(_child(number, index), depth - 1, fan_out, elements)
            for index in range(fan_out)
        ]
        total = sum(int(array[-1]) for array in ray.get(children, timeout=OPERATION_S))
    return np.full(elements, total % MODULUS, dtype=np.int64)


def _child(number: int, index: int) -> int:
    return (number * 31 + index + 1) % MODULUS


def total_of(number: int, depth: int, fan_out: int) -> int:
    """What ``branch`` computes, without a cluster."""
    if depth == 0:
        return number % MODULUS
    return (
        sum(total_of(_child(number, index), depth - 1, fan_out) for index in range(fan_out))
        % MODULUS
    )


class TaskTreeWorkload(Workload):
    """See the module."""

    name: ClassVar[str] = "task_tree"

    class Parameters(msgspec.Struct, forbid_unknown_fields=True):
        """Of each tree."""

        depth: int = 2
        fan_out: int = 3
        #: Of each array, 8 bytes each.
        elements: int = 4_000

    def run_client(self, client: Client) -> None:
        """One tree after the other."""
        given = self.parameters
        for number in client.rounds():
            root = self.random(client.number, number).randrange(MODULUS)
            with client.operation("tree", root) as pending:
                ref = client.call(branch, root, given.depth, given.fan_out, given.elements)
                array = client.get(ref)
                assert (array == array[0]).all(), "all elements are the same"
                pending.ok(int(array[0]))

    def expected(self, operation: Operation) -> Any:
        """The sum of the tree."""
        return total_of(operation.value, self.parameters.depth, self.parameters.fan_out)
