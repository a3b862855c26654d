"""What a cluster keeps in memory of a job that goes on and on.

    python benchmarks/history.py

Resident memory of the control store and of the node, in MiB, after so many tasks; every thousand
tasks an actor that restarts (``checkpoint_every=100``) is called 50 times.
"""

from __future__ import annotations

import psutil

import regrow as ray
from regrow.cluster_utils import Cluster

STEPS = (20_000, 50_000, 100_000, 200_000, 400_000)
BATCH = 1_000


@ray.remote
def task(number: int) -> int:
    return number


class Counter:
    def __init__(self) -> None:
        self.count = 0

    def add(self) -> int:
        self.count += 1
        return self.count


def resident_mib(module: str) -> int:
    """Of the biggest process that runs this module."""
    sizes = [0]
    for process in psutil.process_iter(["cmdline", "memory_info"]):
        if module in " ".join(process.info["cmdline"] or []):
            sizes.append(process.info["memory_info"].rss >> 20)
    return max(sizes)


def main() -> None:
    with Cluster(initialize_head=True, head_node_args={"num_cpus": 2}) as cluster:
        cluster.connect()
        counter = ray.remote(Counter).options(max_restarts=-1, checkpoint_every=100).remote()
        done = 0
        for step in STEPS:
            while done < step:
                ray.get([task.remote(number) for number in range(BATCH)])
                ray.get([counter.add.remote() for _ in range(50)])
                done += BATCH
            store, node = resident_mib("regrow.gcs.main"), resident_mib("regrow.scheduler")
            print(
                f"{done:>9,} tasks   control store {store:>4} MiB   node {node:>4} MiB", flush=True
            )
        ray.shutdown()


if __name__ == "__main__":
    main()
