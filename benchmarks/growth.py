"""A million tasks, and what they leave behind in the memory of node and GCS; regrow alone.

After 100 k finished tasks whose references were dropped, and again after 1 M, the proportional set
size of the node daemon and of the GCS is read once it has stopped falling. It may grow by less than
10 % in between: finished work belongs to Postgres, not to memory.

Run: python benchmarks/growth.py [--tasks 1000000] [--base 100000]
"""

import argparse
import os
import sys
import time
import uuid
from pathlib import Path

from rich.console import Console
from rich.progress import track

sys.path.insert(0, str(Path(__file__).parents[1]))

import regrow as ray
from benchmarks import memory, store

BATCH = 10_000
GROWTH_LIMIT = 0.10
#: Command lines of the node daemon and the GCS contain these.
DAEMONS = ("regrow.scheduler.daemon", "regrow.gcs.main")
SETTLE_S = 1.0
SETTLE_TIMEOUT_S = 20.0


@ray.remote
def noop() -> bytes:
    """Do nothing."""
    return b"ok"


def run_batches(count: int, what: str) -> float:
    """Run ``count`` tasks in batches whose references are dropped; return the seconds taken."""
    start = time.perf_counter()
    for _ in track(range(count // BATCH), what, console=Console(stderr=True)):
        ray.get([noop.remote() for _ in range(BATCH)])
    return time.perf_counter() - start


def settled_mb(mark: str) -> float:
    """Return the memory of node and GCS in MB once it has stopped falling by 1 % a second."""
    deadline = time.monotonic() + SETTLE_TIMEOUT_S
    now = daemons_mb(mark)
    while time.monotonic() < deadline:
        time.sleep(SETTLE_S)
        before, now = now, daemons_mb(mark)
        if now > 0.99 * before:
            break
    return now


def daemons_mb(mark: str) -> float:
    """Return the memory of the node daemon and the GCS in MB."""
    found = sum(memory.cluster_pss_mb(mark, name) for name in DAEMONS)
    assert found > 0, "no daemon found: their command lines have changed"
    return found


def main() -> int:
    """Print rate, rows and growth; return 1 if memory grew too much."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tasks", type=int, default=1_000_000)
    parser.add_argument("--base", type=int, default=100_000)
    arguments = parser.parse_args()
    mark = os.environ[memory.MARKER] = uuid.uuid4().hex
    with store.private_home():
        ray.init()
        rows = store.committed_rows()
        seconds = run_batches(arguments.base, "first tasks")
        base_mb = settled_mb(mark)
        seconds += run_batches(arguments.tasks - arguments.base, "the others")
        end_mb = settled_mb(mark)
        rows = store.committed_rows() - rows
        ray.shutdown()
    growth = end_mb / base_mb - 1
    print(f"{arguments.tasks:,} tasks in batches of {BATCH:,}: {arguments.tasks / seconds:,.0f} /s")
    print(f"rows committed to Postgres: {rows:,}")
    print(f"node and GCS: {base_mb:.1f} MB after {arguments.base:,}, {end_mb:.1f} MB at the end")
    held = growth < GROWTH_LIMIT
    print(f"growth {growth:+.1%}, floor < {GROWTH_LIMIT:.0%}: {'pass' if held else 'FAIL'}")
    return 0 if held else 1


if __name__ == "__main__":
    sys.exit(main())
