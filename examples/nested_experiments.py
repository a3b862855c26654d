"""Nested parallelism: experiments that are tasks, each running its own simulations as tasks.

How long does a ferry queue get? Each experiment fixes how many cars a ferry takes and simulates
several days in parallel. An experiment that waits for its days gives its CPU back, so this never
deadlocks, however few CPUs there are.

Run: python examples/nested_experiments.py
"""

import random

import regrow as ray

CAPACITIES = [4, 5, 6, 8]
DAYS_PER_EXPERIMENT = 6
SAILINGS_PER_DAY = 200


@ray.remote
def simulate_day(capacity: int, seed: int) -> int:
    """Return the longest queue of a day, in cars left behind by a sailing."""
    arrivals = random.Random(seed)
    waiting = longest = 0
    for _ in range(SAILINGS_PER_DAY):
        waiting += arrivals.randint(0, 9)
        waiting = max(0, waiting - capacity)
        longest = max(longest, waiting)
    return longest


@ray.remote
def experiment(capacity: int, days: int) -> tuple[int, float]:
    """Return the capacity and the longest queue of a day, averaged over the days."""
    longest = ray.get([simulate_day.remote(capacity, seed) for seed in range(days)])
    return capacity, sum(longest) / days


def main() -> dict[int, float]:
    """Return, by the ferry's capacity, the mean over the days of the longest queue."""
    results = ray.get([experiment.remote(cars, DAYS_PER_EXPERIMENT) for cars in CAPACITIES])
    return {capacity: round(queue, 2) for capacity, queue in results}


if __name__ == "__main__":
    ray.init()
    for capacity, queue in main().items():
        print(f"{capacity} cars a ferry: longest queue {queue:7.2f} cars on the mean day")
    ray.shutdown()
