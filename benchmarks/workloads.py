"""One side of the comparison: every workload, run against regrow or Ray, printed as JSON.

Both sides run this same file in a process of their own; `compare.py` alternates them. Rates are
taken over repeated windows after a warm-up, and the median of the windows counts.

Run: python benchmarks/workloads.py --impl regrow --rows tasks_batch_1k,put_small
"""

import argparse
import contextlib
import importlib
import json
import os
import statistics
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks import memory

BATCH = 1000
CHAIN = 300
SUBMITTERS = 4
ACTORS = 10
MEGABYTE = 10**6
TASK_RESULT_BYTES = 8 * 1024 * 1024
HELD_REFS = 10_000


@dataclass
class Windows:
    """How long a rate is measured."""

    warm_up_s: float
    window_s: float
    windows: int

    def rate(self, operation: Callable[[], object], count: float) -> float:
        """Return the median over the windows of ``count`` per second of ``operation``."""
        self._run(operation, self.warm_up_s)
        rates = []
        for _ in range(self.windows):
            runs, seconds = self._run(operation, self.window_s)
            rates.append(runs * count / seconds)
        return statistics.median(rates)

    @staticmethod
    def _run(operation: Callable[[], object], at_least_s: float) -> tuple[int, float]:
        start = time.perf_counter()
        runs = 0
        while True:
            operation()
            runs += 1
            seconds = time.perf_counter() - start
            if seconds >= at_least_s:
                return runs, seconds


FULL = Windows(warm_up_s=1.0, window_s=2.0, windows=3)
QUICK = Windows(warm_up_s=0.2, window_s=0.4, windows=2)


@dataclass
class Side:
    """One implementation, started; the remote functions the workloads use."""

    ray: Any
    windows: Windows
    noop: Any = field(init=False)
    step: Any = field(init=False)
    submitter: Any = field(init=False)
    large: Any = field(init=False)
    holder: Any = field(init=False)
    actor: Any = field(init=False)

    def __post_init__(self) -> None:
        ray = self.ray

        def noop() -> bytes:
            return b"ok"

        remote_noop = ray.remote(noop)

        def step(value: int) -> int:
            return value + 1

        def submitter(count: int) -> None:
            ray.get([remote_noop.remote() for _ in range(count)])

        def large(size: int) -> Any:
            return np.ones(size, np.uint8)

        def holder(count: int) -> Any:
            return [ray.put(1) for _ in range(count)]

        class Echo:
            def ping(self) -> bytes:
                return b"ok"

        self.noop, self.step, self.submitter = remote_noop, ray.remote(step), ray.remote(submitter)
        self.large, self.holder = ray.remote(large), ray.remote(holder)
        self.actor = ray.remote(num_cpus=0)(Echo)

    def tasks_batch(self, count: int) -> float:
        return self.windows.rate(
            lambda: self.ray.get([self.noop.remote() for _ in range(count)]), count
        )

    def tasks_one_at_a_time(self) -> float:
        return self.windows.rate(lambda: self.ray.get(self.noop.remote()), 1)

    def tasks_nested(self) -> float:
        share = BATCH // SUBMITTERS
        return self.windows.rate(
            lambda: self.ray.get([self.submitter.remote(share) for _ in range(SUBMITTERS)]), BATCH
        )

    def chain(self) -> float:
        def run() -> None:
            value: Any = 0
            for _ in range(CHAIN):
                value = self.step.remote(value)
            assert self.ray.get(value) == CHAIN

        return self.windows.rate(run, CHAIN)

    def actor_calls_batch(self) -> float:
        actor = self._ready_actor()
        rate = self.windows.rate(
            lambda: self.ray.get([actor.ping.remote() for _ in range(BATCH)]), BATCH
        )
        self.ray.kill(actor)
        return rate

    def actor_calls_one_at_a_time(self) -> float:
        actor = self._ready_actor()
        rate = self.windows.rate(lambda: self.ray.get(actor.ping.remote()), 1)
        self.ray.kill(actor)
        return rate

    def put_small(self) -> float:
        return self.windows.rate(lambda: self.ray.put(0), 1)

    def get_local(self) -> float:
        ref = self.ray.put(0)
        return self.windows.rate(lambda: self.ray.get(ref), 1)

    def wait_1000(self) -> float:
        def run() -> None:
            pending = [self.noop.remote() for _ in range(BATCH)]
            while pending:
                _, pending = self.ray.wait(pending)

        return self.windows.rate(run, BATCH)

    def put_large(self, size: int) -> float:
        """GB/s of put in steady state: the array before is dropped."""
        array = np.ones(size, np.uint8)
        return self.windows.rate(lambda: self.ray.put(array), size / 1e9)

    def task_results_8mib(self) -> float:
        """GB/s of results, made by tasks and read by the driver."""

        def run() -> None:
            for ref in [self.large.remote(TASK_RESULT_BYTES) for _ in range(8)]:
                assert self.ray.get(ref)[-1] == 1

        return self.windows.rate(run, 8 * TASK_RESULT_BYTES / 1e9)

    def get_10k_refs(self) -> float:
        ref = self.holder.remote(HELD_REFS)
        assert len(self.ray.get(ref)) == HELD_REFS
        return self.windows.rate(lambda: self.ray.get(ref), 1)

    def ten_actors(self) -> float:
        """Seconds until ten new actors have answered."""
        start = time.perf_counter()
        actors = [self.actor.remote() for _ in range(ACTORS)]
        self.ray.get([actor.ping.remote() for actor in actors])
        seconds = time.perf_counter() - start
        for actor in actors:
            self.ray.kill(actor)
        return seconds

    def _ready_actor(self) -> Any:
        actor = self.actor.remote()
        self.ray.get(actor.ping.remote())
        return actor


#: Rows measured on one running cluster, in this order.
ROWS: dict[str, Callable[[Side], float]] = {
    "ten_actors": Side.ten_actors,
    "tasks_batch_1k": lambda side: side.tasks_batch(1000),
    "tasks_batch_10k": lambda side: side.tasks_batch(10_000),
    "tasks_batch_100k": lambda side: Side(side.ray, Windows(0.0, 0.0, 1)).tasks_batch(100_000),
    "tasks_one_at_a_time": Side.tasks_one_at_a_time,
    "tasks_nested": Side.tasks_nested,
    "chain_300": Side.chain,
    "actor_calls_batch": Side.actor_calls_batch,
    "actor_calls_one_at_a_time": Side.actor_calls_one_at_a_time,
    "put_small": Side.put_small,
    "get_local": Side.get_local,
    "wait_1000": Side.wait_1000,
    "put_100mb": lambda side: side.put_large(100 * MEGABYTE),
    "put_800mb": lambda side: side.put_large(800 * MEGABYTE),
    "task_results_8mib": Side.task_results_8mib,
    "get_10k_refs": Side.get_10k_refs,
}
#: Rows measured while the cluster starts.
START_ROWS = ["init_cold", "init_first_task", "init_warm", "idle_memory"]
IDLE_S = 3.0


def start(ray: Any, options: dict[str, Any]) -> float:
    """Start a local cluster; return the seconds that took."""
    begin = time.perf_counter()
    ray.init(**options)
    return time.perf_counter() - begin


def measure_start(ray: Any, options: dict[str, Any], mark: str) -> dict[str, float]:
    """Start twice on one home, and leave the second cluster running."""
    values = {"init_cold": start(ray, options)}
    begin = time.perf_counter()
    ray.get(ray.remote(_answer).remote())
    values["init_first_task"] = values["init_cold"] + time.perf_counter() - begin
    ray.shutdown()
    values["init_warm"] = start(ray, options)
    # Ray starts its workers after init has returned: both sides get the same time to settle.
    time.sleep(IDLE_S)
    values["idle_memory"] = memory.cluster_pss_mb(mark)
    return values


def _answer() -> int:
    return 42


def run(impl: str, rows: list[str], windows: Windows, durability: str) -> dict[str, Any]:
    """Run the rows against one implementation.

    Returns {row: {value, committed}}, or {row: {error}} for a row that failed.
    """
    ray = importlib.import_module(impl)
    # Ray writes a line of its log for each start; regrow has none to silence.
    options = {"durability": durability} if impl == "regrow" else {"logging_level": "ERROR"}
    results: dict[str, Any] = {}
    with home(impl) as committed_rows:
        if set(rows) & set(START_ROWS):
            for row, value in measure_start(ray, options, os.environ[memory.MARKER]).items():
                results[row] = {"value": value}
        else:
            start(ray, options)
        side = Side(ray, windows)
        for row in (row for row in ROWS if row in rows):
            before = committed_rows()
            try:
                value = ROWS[row](side)
            except Exception as error:  # told, and the row fails: it must not cost the others
                results[row] = {"error": f"{type(error).__name__}: {error}"}
                print(f"{impl}: {row} failed: {results[row]['error']}", file=sys.stderr)
                continue
            results[row] = {"value": value, "committed": committed_rows() - before}
            print(f"{impl}: {row} {value:.4g}", file=sys.stderr)
        ray.shutdown()
    return {row: results[row] for row in rows}


@contextlib.contextmanager
def home(impl: str) -> Iterator[Callable[[], int]]:
    """Give the side a home of its own; yield a function that counts the rows it committed."""
    if impl == "ray":
        yield lambda: 0
        return
    from benchmarks import store

    with store.private_home():
        yield store.committed_rows


def main() -> None:
    """Run the rows asked for in a home of their own and print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--impl", choices=["regrow", "ray"], required=True)
    parser.add_argument("--rows", default=",".join(START_ROWS + list(ROWS)))
    parser.add_argument("--durability", choices=["commit", "async"], default="commit")
    parser.add_argument("--quick", action="store_true")
    arguments = parser.parse_args()
    rows = arguments.rows.split(",")
    unknown = sorted(set(rows) - set(ROWS) - set(START_ROWS))
    if unknown:
        parser.error(f"unknown rows: {', '.join(unknown)}")
    os.environ.setdefault(memory.MARKER, uuid.uuid4().hex)
    windows = QUICK if arguments.quick else FULL
    results = run(arguments.impl, rows, windows, arguments.durability)
    print(json.dumps(results))


if __name__ == "__main__":
    main()
