"""A job with tasks, large results, nested tasks and actors, whose driver may kill itself midway.

Every execution leaves a line in the file NIGHTLY_TRACE; the result is printed as JSON.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from hashlib import sha256

import regrow as ray

STEPS = 40
TIMEOUT_S = 60.0


def note(what: str) -> None:
    with open(os.environ["NIGHTLY_TRACE"], "a") as file:
        file.write(what + "\n")


def stop_at(place: str) -> None:
    """The driver is gone, as if by a power cut."""
    if os.environ.get("NIGHTLY_KILL") == place:
        os.kill(os.getpid(), signal.SIGKILL)
    if os.environ.get("NIGHTLY_WAIT") == place:
        print(place, flush=True)
        sys.stdin.readline()


@ray.remote
def step(i: int) -> int:
    note(f"step {i}")
    return i * i


@ray.remote
def large(i: int) -> bytes:
    note(f"large {i}")
    return bytes([i]) * 100_000


@ray.remote
def digest(data: bytes) -> str:
    note(f"digest {data[0]}")
    return sha256(data).hexdigest()


@ray.remote
def tree(i: int) -> int:
    note(f"tree {i}")
    return sum(ray.get([step.remote(1000 + 10 * i + k) for k in range(3)], timeout=TIMEOUT_S))


class Ledger:
    def __init__(self) -> None:
        self.lines: list[int] = []

    def add(self, amount: int) -> int:
        note(f"add {amount}")
        self.lines.append(amount)
        return sum(self.lines)

    def all(self) -> list[int]:
        return self.lines


class Forgetful:
    def __init__(self) -> None:
        self.count = 0

    def next(self) -> int:
        self.count += 1
        return self.count


@ray.remote
def double(i: int) -> int:
    note(f"double {i}")
    return 2 * i


def main() -> None:
    ray.init(job=sys.argv[1], num_cpus=2, logging_level="ERROR")
    ledger = ray.remote(max_restarts=-1)(Ledger).remote()
    forgetful = ray.remote(Forgetful).remote()
    squares = ray.get([step.remote(i) for i in range(STEPS)], timeout=TIMEOUT_S)
    blobs = [large.remote(i) for i in range(4)]
    digests = ray.get([digest.remote(blob) for blob in blobs], timeout=TIMEOUT_S)
    sums = [ray.get(ledger.add.remote(i), timeout=TIMEOUT_S) for i in range(10)]
    counts = ray.get([forgetful.next.remote() for _ in range(5)], timeout=TIMEOUT_S)
    doubles = ray.get([double.remote(forgetful.next.remote()) for _ in range(2)])
    stop_at("middle")
    trees = ray.get([tree.remote(i) for i in range(3)], timeout=TIMEOUT_S)
    sums += ray.get([ledger.add.remote(i) for i in range(10, 20)], timeout=TIMEOUT_S)
    again = [sha256(ray.get(blob, timeout=TIMEOUT_S)).hexdigest() for blob in blobs]
    lines = ray.get(ledger.all.remote(), timeout=TIMEOUT_S)
    stop_at("end")
    print(json.dumps([squares, digests, sums, counts, doubles, trees, again == digests, lines]))


if __name__ == "__main__":
    main()
