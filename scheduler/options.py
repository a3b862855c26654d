"""The command line of the node daemon, and what it finds in the cluster's home."""

from __future__ import annotations

import argparse
import json
import os
import time
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from regrow.config import RESOURCE_UNIT
from regrow.gcs.postgres_progress import Patience
from regrow.messages import Resources

_ARENA_SHARE = 0.3
_ARENA_MAX = 64 << 30
_WAIT_S = 60.0


@dataclass(frozen=True, slots=True)
class NodeOptions:
    """What a node is started with. Sizes in bytes."""

    home: Path
    runtime_dir: Path
    num_cpus: float
    num_gpus: float
    custom: dict[str, float]
    memory: int
    object_store_memory: int
    labels: dict[str, str]
    is_head: bool
    host: str
    advertise: str
    node_id: int
    spill_dir: Path
    spill_capacity: int
    ready_fd: int
    log_dir: Path = field(default=Path())

    def resources(self, address: str) -> Resources:
        """What the node offers, in ten-thousandths; also itself, by its address, for what must
        run there."""
        amounts = {"CPU": self.num_cpus, "memory": float(self.memory), **self.custom}
        amounts[f"node:{address}"] = 1.0
        if self.is_head:
            amounts["node:__internal_head__"] = 1.0
        if self.num_gpus:
            amounts["GPU"] = self.num_gpus
        return {name: round(amount * RESOURCE_UNIT) for name, amount in amounts.items() if amount}

    def read_token(self) -> str:
        """The cluster's token: ``REGROW_TOKEN``, else the file in its home."""
        return os.environ.get("REGROW_TOKEN") or (self.home / "token").read_text().strip()

    def wait_for_cluster(self) -> None:
        """Waits until the control store has written where it is, which it does when Postgres has
        recovered. Raises TimeoutError."""
        path = self.home / "gcs.json"
        patience = Patience(self.home / "postgres", _WAIT_S)
        while not path.exists():
            if patience.is_over():
                raise TimeoutError(f"no control store appeared in {path} within {_WAIT_S:g} s")
            time.sleep(0.005)

    def tell_ready(self, node_id: int) -> None:
        """One line to whoever started the node; a second incarnation finds nobody there."""
        if self.ready_fd < 0:
            return
        try:
            os.write(self.ready_fd, f"ready {node_id}\n".encode())
            os.close(self.ready_fd)
        except OSError:
            return  # nobody waits any more

    @staticmethod
    def without_node_id(arguments: list[str]) -> list[str]:
        """The arguments for the next incarnation, which has nobody waiting for it."""
        rest: list[str] = []
        skip = False
        for argument in arguments:
            if skip:
                skip = False
            elif argument in ("--node-id", "--ready-fd"):
                skip = True
            else:
                rest.append(argument)
        return rest


def parse_options(arguments: list[str]) -> NodeOptions:
    """Parses the daemon's command line; ends the process with status 2 if it is wrong."""
    parser = argparse.ArgumentParser(prog="python -m regrow.scheduler.daemon")
    parser.add_argument("--home", type=Path, required=True)
    parser.add_argument("--runtime-dir", type=Path, required=True)
    parser.add_argument("--num-cpus", type=float, default=None)
    parser.add_argument("--num-gpus", type=float, default=0)
    parser.add_argument("--resources", type=json.loads, default={})
    parser.add_argument("--memory", type=int, default=0)
    parser.add_argument("--object-store-memory", type=int, default=0)
    parser.add_argument("--labels", type=json.loads, default={})
    parser.add_argument("--head", action="store_true")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--advertise", default="")
    parser.add_argument("--node-id", type=int, default=0)
    parser.add_argument("--spill-dir", type=Path, default=None)
    parser.add_argument("--spill-capacity", type=int, default=0)
    parser.add_argument("--ready-fd", type=int, default=-1)
    given = parser.parse_args(arguments)
    total = psutil.virtual_memory().total
    arena = given.object_store_memory or min(int(total * _ARENA_SHARE), _ARENA_MAX)
    log_dir = given.home / "logs"
    log_dir.mkdir(parents=True, exist_ok=True)
    return NodeOptions(
        home=given.home,
        runtime_dir=given.runtime_dir,
        num_cpus=(os.cpu_count() or 1) if given.num_cpus is None else given.num_cpus,
        num_gpus=given.num_gpus,
        custom=given.resources,
        memory=given.memory or max(total - arena, 0),
        object_store_memory=arena,
        labels=given.labels,
        is_head=given.head,
        host=given.host,
        advertise=given.advertise,
        node_id=given.node_id,
        spill_dir=given.spill_dir or given.home / "spill",
        spill_capacity=given.spill_capacity,
        ready_fd=given.ready_fd,
        log_dir=log_dir,
    )
