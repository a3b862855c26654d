"""Actors that restart: what logging and checkpoints cost, and how soon one is back.

    python benchmarks/actors.py

Prints calls a second in batches of 1,000, medians of alternating runs, and the time from the
SIGKILL of an actor's process to the result of its next call.
"""

from __future__ import annotations

import os
import signal
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

import regrow as ray

RUNS = 5
CALLS = 20_000
BATCH = 1_000
KINDS: dict[str, dict[str, Any]] = {
    "without max_restarts": {},
    "max_restarts=-1": {"max_restarts": -1},
    "max_restarts=-1, checkpoint_every=100": {"max_restarts": -1, "checkpoint_every": 100},
}


class Counter:
    """Writes down its process; its state is a number and a small array."""

    def __init__(self, note: str) -> None:
        Path(note).write_text(str(os.getpid()))
        self.value = 0
        self.seen = np.zeros(100)

    def increment(self) -> int:
        self.value += 1
        self.seen[self.value % 100] += 1
        return self.value


def calls_per_second(options: dict[str, Any], note: Path) -> float:
    counter = ray.remote(Counter).options(**options).remote(str(note))
    ray.get(counter.increment.remote())
    start = time.perf_counter()
    for _ in range(CALLS // BATCH):
        ray.get([counter.increment.remote() for _ in range(BATCH)])
    rate = CALLS / (time.perf_counter() - start)
    ray.kill(counter)
    return rate


def seconds_until_back(options: dict[str, Any], calls: int, note: Path) -> float:
    counter = ray.remote(Counter).options(**options).remote(str(note))
    ray.get([counter.increment.remote() for _ in range(calls)])
    start = time.perf_counter()
    os.kill(int(note.read_text()), signal.SIGKILL)
    if ray.get(counter.increment.remote()) != calls + 1:
        raise SystemExit("the actor came back with another state")
    passed = time.perf_counter() - start
    ray.kill(counter)
    return passed


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        note = Path(folder) / "pid"
        os.environ["REGROW_HOME"] = str(Path(folder) / "home")
        ray.init()
        rates: dict[str, list[float]] = {kind: [] for kind in KINDS}
        for _ in range(RUNS):
            for kind, options in KINDS.items():
                rates[kind].append(calls_per_second(options, note))
        for kind, measured in rates.items():
            print(f"{kind}: {statistics.median(measured):,.0f} calls/s")
        for options, calls in (
            ({"max_restarts": -1, "checkpoint_every": 500}, 10_400),
            ({"max_restarts": -1}, 10_000),
        ):
            back = [seconds_until_back(options, calls, note) for _ in range(RUNS)]
            print(f"{calls:,} calls, {options}: back after {statistics.median(back):.2f} s")
        ray.shutdown()


if __name__ == "__main__":
    main()
