"""``python -m regrow.demo_driver HOME FILE``: the demo's training as the driver of a named job.

It says on standard output which step it has submitted and which is done, and writes the weights to
FILE. Killed and run again, it finds what it had done.
"""

from __future__ import annotations

import sys

import numpy as np

import regrow as ray
from regrow.demo_training import Plan, Step, train

JOB = "demo"
SUBMITTED, DONE = "submitted", "done"


def main(home: str, file: str) -> None:
    """Train in the cluster of this home."""
    plan, done = Plan(), 0

    def leave_alone(_: Step) -> None:
        """Let the epoch be."""

    def submitted(step: Step) -> None:
        print(SUBMITTED, step.number(plan), flush=True)

    def stepped() -> None:
        nonlocal done
        done += 1
        print(DONE, done, flush=True)

    ray.init(address=home, job=JOB, logging_level="ERROR", log_to_driver=False)
    np.save(file, ray.get(train(plan, leave_alone, submitted, stepped)))
    ray.shutdown()


if __name__ == "__main__":
    main(*sys.argv[1:])
