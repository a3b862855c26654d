"""The demo's program: a synchronous parameter server over shards that tasks deal out.

A program like a user's own: it uses only the public verbs. It decides which task depends on which
and where things run; the arithmetic is `regrow.demo_model`'s, and what is killed is its caller's
choice. Gradients are reduced in a fixed order, so the final weights do not depend on timing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

import regrow as ray
from regrow import demo_model as model

#: The head offers this resource and hosts the server; the other nodes offer the second and run
#: the tasks, so that any of them can take over the tasks of one that died.
HEAD = {"head": 1.0}
WORKER = {"worker": 1000.0}
ON_HEAD = {"head": 0.001}
ON_WORKER = {"worker": 1.0}


@dataclass(frozen=True)
class Plan:
    """The size of a run. Eight epochs of six steps reach an accuracy of 0.947."""

    epochs: int = 8
    steps: int = 6
    shards: int = 6
    #: The epoch in which a node is killed, where one is.
    kill_epoch: int = 4

    @property
    def total_steps(self) -> int:
        """Return the number of steps of the whole run."""
        return self.epochs * self.steps


@dataclass(frozen=True)
class Step:
    """Where a run is."""

    epoch: int
    #: Within the epoch, from 0.
    step: int
    #: References of the epoch's shards.
    shards: list[Any]
    #: References of the step's gradients, once they are submitted.
    gradients: list[Any] = field(default_factory=list)

    def number(self, plan: Plan) -> int:
        """Return the number of the step in the whole run, from 1."""
        return self.epoch * plan.steps + self.step + 1


@ray.remote(resources=ON_WORKER)
def training_rows() -> model.Rows:
    """Return the rows to learn from (some 750 kB)."""
    rows, _ = model.training_and_test_rows()
    return rows


@ray.remote(resources=ON_WORKER)
def deal_shard(rows: model.Rows, epoch: int, index: int, shards: int) -> model.Rows:
    """Return one shard of an epoch (some 125 kB: too large for the log, so only nodes hold it)."""
    return model.shard(rows, epoch, index, shards)


@ray.remote(resources=ON_WORKER)
def batch_gradient(weights: model.Floats, rows: model.Rows, step: int, steps: int) -> model.Floats:
    """Return the gradient of a shard's batch."""
    return model.gradient(weights, model.batch(rows, step, steps))


@ray.remote(num_cpus=0, resources=ON_HEAD, max_restarts=-1, checkpoint_every=20)
class ParameterServer:
    """Holds the weights and the momentum; steps when all gradients of a step are there."""

    def __init__(self) -> None:
        self._weights = model.initial_weights()
        self._velocity = np.zeros_like(self._weights)

    def weights(self) -> model.Floats:
        """Return the weights as they are."""
        return self._weights

    def apply(self, *gradients: model.Floats) -> model.Floats:
        """Take one step along the gradients, summed in the order given; return the weights."""
        self._weights, self._velocity = model.momentum_step(
            self._weights, self._velocity, gradients
        )
        return self._weights


def train(
    plan: Plan,
    on_shards: Callable[[Step], None],
    on_submitted: Callable[[Step], None],
    on_step: Callable[[], None],
) -> Any:
    """Train from nothing and return the reference of the final weights.

    ``on_shards`` is called when an epoch's shards are all there, ``on_submitted`` when a step's
    tasks are on their way, ``on_step`` when the step is done.
    """
    # mypy knows what a decorator makes of a function, but not of a class.
    server = ParameterServer.remote()  # type: ignore[attr-defined]
    weights = server.weights.remote()
    rows = training_rows.remote()
    for epoch in range(plan.epochs):
        shards = [deal_shard.remote(rows, epoch, i, plan.shards) for i in range(plan.shards)]
        ray.wait(shards, num_returns=plan.shards, fetch_local=False)
        on_shards(Step(epoch, 0, shards))
        for step in range(plan.steps):
            gradients = [batch_gradient.remote(weights, part, step, plan.steps) for part in shards]
            weights = server.apply.remote(*gradients)
            on_submitted(Step(epoch, step, shards, gradients))
            ray.wait([weights])
            on_step()
    return weights
